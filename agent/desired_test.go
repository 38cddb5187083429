package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

// TestDesiredIsObeyed: the cloud's document starts and stops streams, the hub
// says how each is, and the LAN cannot take over or stop what the cloud wants.
func TestDesiredIsObeyed(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	cam := camtest.Start(t, camtest.Options{Loop: true, Username: "admin", Password: "pa55"})
	h := runHub(t, c)
	foreign := c.want(t, "ch_3", wire.ModeContinuous, cam.Camera())
	foreign.NVRURL = "ws://evil.example/"
	c.toHub <- c.desired(10,
		c.want(t, "ch_1", wire.ModeContinuous, cam.Camera()), c.unwanted(t, "ch_2", cam.Camera()), foreign,
		c.want(t, "ch_4", wire.ModeContinuous, vms.Camera{URL: "file:///x"}))
	r := c.reported(t, "revision 10 is done", func(r *wire.Reported) bool {
		return r.Revision == 10 && r.State == wire.Failed && item(r, "ch_1").Stream == wire.StateBuffering
	})
	if !r.Online || r.Hub != "hub_1" || r.Boot == "" || r.Serial == 0 || r.Agent == "" || r.At.IsZero() || r.Clock == nil || len(r.Streams) != 4 {
		t.Errorf("report %+v", r)
	}
	for ch, want := range map[vms.ChannelID]wire.SyncState{"ch_1": wire.InSync, "ch_2": wire.InSync, "ch_3": wire.Failed, "ch_4": wire.Failed} {
		i := item(r, ch)
		if i.State != want || i.Running != (ch == "ch_1") || i.Origin != wire.OriginCloud || (want == wire.Failed) != (ch != "ch_1" && i.Problem != "") || strings.Contains(i.Problem, "pa55") {
			t.Errorf("%+v, want %s", i, want)
		}
	}
	s := h.until("it runs", func(s lan.Stream) bool { return s.Origin == "cloud" && s.Frames > 0 })
	if code, body := h.start(c.token(t, nil), vms.Camera{URL: "rtsp://127.0.0.1:2/"}); code != 403 && code != 409 {
		t.Errorf("taken over from the LAN: %d %s", code, body)
	}
	if code, body := h.call("DELETE", "/v1/streams/"+string(s.ID), nil); code != 403 {
		t.Errorf("stopped from the LAN: %d %s", code, body)
	}
	// The same again, and an old one, change nothing.
	c.toHub <- c.desired(10)
	c.toHub <- c.desired(9)
	// A mode that records all the time too is no reason to tear the stream apart.
	c.toHub <- c.desired(11, c.want(t, "ch_1", wire.ModeOnDemand, cam.Camera()))
	c.reported(t, "revision 11 is done", func(r *wire.Reported) bool { return r.Revision == 11 && r.State == wire.InSync })
	if got := h.streams(); len(got) != 1 || got[0].ID != s.ID || cam.Plays() != 1 {
		t.Errorf("streams %+v; the camera was opened %d times", got, cam.Plays())
	}
	c.toHub <- c.desired(12, c.unwanted(t, "ch_1", cam.Camera()))
	c.reported(t, "it has stopped", func(r *wire.Reported) bool {
		return r.Revision == 12 && r.State == wire.InSync && !item(r, "ch_1").Running
	})
	h.until("what it holds waits for a worker", func(s lan.Stream) bool { return s.Delivering })
	if code, body := h.call("GET", "/v1/status", nil); code != 200 || !strings.Contains(body, `"control":"online"`) {
		t.Errorf("status: %d %s", code, body)
	}
}

// TestRebootWithoutTheCloud: what the cloud wanted and what the LAN asked for
// runs again at once, although the cloud is away; so the hub pulls its cameras
// all the time that it is up.
func TestRebootWithoutTheCloud(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	cam := camtest.Start(t, camtest.Options{Loop: true, Username: "admin", Password: "pa55"})
	cfg := Config{Dir: enrolled(t, c), Drain: 50 * time.Millisecond}
	h := runHubWith(t, cfg)
	c.toHub <- c.desired(1, c.want(t, "ch_1", wire.ModeContinuous, cam.Camera()), c.unwanted(t, "ch_2", cam.Camera()))
	c.reported(t, "it is done", func(r *wire.Reported) bool { return r.Revision == 1 && r.State == wire.InSync })
	// The camera of a channel that the cloud declares need not be said.
	if code, body := h.start(c.tokenOf(t, "ch_2"), vms.Camera{}); code != 201 {
		t.Fatalf("start on the LAN: %d %s", code, body)
	}
	both := func(what string) {
		t.Helper()
		var last []lan.Stream
		h.poll(func() bool {
			last = h.streams()
			n := 0
			for _, s := range last {
				if s.Frames > 0 && s.Origin == map[vms.ChannelID]string{"ch_1": "cloud", "ch_2": "lan"}[s.Channel] {
					n++
				}
			}
			return n == 2
		}, func() { t.Fatalf("%s: %+v", what, last) })
	}
	both("before the reboot")
	h.stop()
	c.srv.CloseClientConnections()
	c.srv.Close()
	h = runHubWith(t, cfg)
	both("after the reboot")
}

// TestDesiredLimitsTheUplink in the hub's time zone, in the place of the flag.
func TestDesiredLimitsTheUplink(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	h := runHubWith(t, Config{Dir: enrolled(t, c), UplinkLimit: "4M"})
	limit := func(want int64) {
		t.Helper()
		h.poll(func() bool { return h.a.Status().Uplink.Limit == want }, func() {
			t.Fatalf("the limit is %d bit/s, want %d", h.a.Status().Uplink.Limit, want)
		})
	}
	limit(4_000_000)
	for rev, tt := range []struct {
		uplink string
		want   int64
	}{{"2M", 2_000_000}, {"", 4_000_000}, {"1M", 1_000_000}, {"as much as there is", 4_000_000}} {
		d := c.desired(int64(rev + 1))
		d.Limits.Uplink, d.TimeZone = tt.uplink, "Europe/Zagreb"
		c.toHub <- d
		limit(tt.want)
	}
}

// TestCommandsOfTheCloud: each kind that is announced does what it says.
func TestCommandsOfTheCloud(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	c.worker.there.Store(true)
	c.worker.store.Store(true)
	jpeg := append([]byte{0xff, 0xd8, 0xff, 0xe0}, bytes.Repeat([]byte("x"), 1000)...)
	var uploaded atomic.Int64
	pictures := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			n, _ := io.Copy(io.Discard, r.Body)
			uploaded.Store(n)
			return
		}
		w.Header().Set("Content-Type", "image/jpeg")
		_, _ = w.Write(jpeg)
	}))
	defer pictures.Close()
	cam := camtest.Start(t, camtest.Options{Loop: true})
	h := runHub(t, c)
	still := vms.Camera{Host: "127.0.0.1", Templates: map[string]string{"snapshot": strings.Replace(pictures.URL, "127.0.0.1", "{host}", 1) + "/jpg"}}
	event := c.want(t, "ch_1", wire.ModeEvent, cam.Camera())
	event.PreRoll, event.PostRoll = 5, 30
	c.toHub <- c.desired(1, event, c.unwanted(t, "ch_2", still))
	h.until("it is pulled, and not recorded", func(s lan.Stream) bool {
		return s.CameraSessions == 1 && s.Mode == "event" && !s.Recording && s.HeldChunks == 0
	})
	ids := 0
	command := func(kind wire.CommandKind, ch vms.ChannelID, edit func(*wire.Command)) *wire.CommandReply {
		t.Helper()
		ids++
		m := &wire.Command{ID: fmt.Sprint("cmd_", ids), Deadline: time.Now().Add(40 * time.Second), Kind: kind, Channel: ch}
		if edit != nil {
			edit(m)
		}
		c.toHub <- m
		return c.answer(t, m.ID)
	}
	if r := command(wire.CommandEvent, "ch_1", nil); !r.OK {
		t.Fatalf("event: %+v", r)
	}
	c.reported(t, "the hub says that it records", func(r *wire.Reported) bool { return item(r, "ch_1").Recording })
	h.until("it is recorded", func(s lan.Stream) bool { return s.Recording && !s.CapturedUntil.IsZero() })
	if code, body := h.call("POST", "/v1/events", map[string]any{"post_roll_s": 1}); code != 202 {
		t.Errorf("event on the LAN: %d %s", code, body)
	}
	if r := command(wire.CommandDrain, "", nil); !r.OK {
		t.Errorf("drain: %+v", r)
	}
	if n := len(c.worker.chunks()); n == 0 {
		t.Error("nothing is stored after a drain")
	}
	if r := command(wire.CommandRestartStream, "ch_1", nil); !r.OK {
		t.Errorf("restart-stream: %+v", r)
	}
	h.until("the camera was left and pulled anew", func(s lan.Stream) bool { return s.CameraSessions == 2 })
	r := command(wire.CommandSnapshot, "ch_2", func(m *wire.Command) { m.UploadURL = pictures.URL + "/put" })
	var result struct{ Bytes int64 }
	if err := json.Unmarshal(r.Result, &result); err != nil || !r.OK || result.Bytes != int64(len(jpeg)) || uploaded.Load() != result.Bytes {
		t.Errorf("snapshot: %+v %s, %d bytes uploaded", r, r.Result, uploaded.Load())
	}
	if r := command(wire.CommandDoctor, "", nil); !r.OK || !bytes.Contains(r.Result, []byte(`"findings"`)) {
		t.Errorf("doctor: %+v %s", r, r.Result)
	}
	for _, bad := range []*wire.CommandReply{
		command(wire.CommandEvent, "ch_2", nil), command(wire.CommandRestartStream, "ch_2", nil), command("dance", "", nil),
		command(wire.CommandSnapshot, "ch_9", func(m *wire.Command) { m.UploadURL = pictures.URL }),
		command(wire.CommandDrain, "ch_9", nil),
	} {
		if bad.OK || bad.Problem == "" {
			t.Errorf("%+v", bad)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
