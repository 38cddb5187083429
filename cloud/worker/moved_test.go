package worker_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// liveSite serves the live pictures of a worker.
type liveSite struct {
	r       *rig
	ln      *pipes
	srv     *http.Server
	viewers []*viewer
}

func (r *rig) liveSite() *liveSite {
	s := &liveSite{r: r, ln: newPipes(), srv: &http.Server{Handler: r.w.LiveHandler(), ReadHeaderTimeout: time.Minute}}
	r.wg.Go(func() { _ = s.srv.Serve(s.ln) })
	return s
}

// close ends it, and those who look on.
func (s *liveSite) close() {
	_ = s.srv.Close()
	for _, v := range s.viewers {
		_ = v.c.CloseNow()
	}
}

// viewer looks on, and notes the texts that it gets, and "picture" for a run of
// binary messages.
type viewer struct {
	c *websocket.Conn

	mu  sync.Mutex
	got []string
}

func (s *liveSite) viewer(ch vms.ChannelID) *viewer {
	s.r.t.Helper()
	v := &viewer{c: s.r.dialLive(s.ln, ch)}
	s.viewers = append(s.viewers, v)
	s.r.wg.Go(func() {
		for {
			typ, data, err := v.c.Read(context.Background())
			if err != nil {
				return
			}
			word := "picture"
			if typ == websocket.MessageText {
				var e struct{ Type, Cause, URL string }
				_ = json.Unmarshal(data, &e)
				word = strings.TrimSpace(e.Type + " " + e.Cause + e.URL)
			}
			v.mu.Lock()
			if n := len(v.got); n == 0 || word != "picture" || v.got[n-1] != word {
				v.got = append(v.got, word)
			}
			v.mu.Unlock()
		}
	})
	synctest.Wait()
	return v
}

// expect compares what came since the last call.
func (v *viewer) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	if !slices.Equal(v.got, want) {
		t.Errorf("the viewer got %q, want %q", v.got, want)
	}
	v.got = nil
}

// TestViewersFollowTheStream: they hear where it is as soon as the NVR says so,
// see the picture here until it ends here, and hear nothing of an end then. Who
// comes later is sent there, too, until the stream is back.
func TestViewersFollowTheStream(t *testing.T) {
	cs := tape(t, 1, 1, 60, 300)
	inBubble(t, func(r *rig) {
		site := r.liveSite()
		defer site.close()
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(cs[:12]...)
		v := site.viewer("ch")
		v.expect(t, "init", "picture")
		r.w.Moved("ch", "wss://b?ticket=1")
		a.chunks(cs[12:18]...)
		v.expect(t, "moved wss://b?ticket=1", "picture")
		late := site.viewer("ch")
		late.expect(t, "moved wss://b?ticket=1", "init", "picture")
		a.hangUp() // a flapping link: it did not leave yet
		a = r.open(a.welcome.ResumeTicket, vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(cs[18:20]...)
		a.send(&wire.End{Epoch: 1, Seq: 20, Cause: "moved"})
		v.expect(t, "picture")
		late.expect(t, "picture")
		a.isDurable(span(1, 1, 20))
		a.hangUp()
		time.Sleep(time.Minute)
		v.expect(t)
		later := site.viewer("ch")
		later.expect(t, "moved wss://b?ticket=1", "offline moved")

		a = r.open(r.ticket("ch", 3), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(cs[40:46]...)
		for _, x := range []*viewer{v, late, later} {
			x.expect(t, "init", "picture")
		}
		site.viewer("ch").expect(t, "init", "picture")
		a.send(&wire.End{Epoch: 1, Seq: 46, Cause: "moved"}) // and nobody says whereto
		v.expect(t, "moved")
		a.hangUp()
	})
}

// TestViewersOfALostLane: what is said of it depends on whether the NVR knows where it is.
func TestViewersOfALostLane(t *testing.T) {
	cs := tape(t, 1, 1, 12, 300)
	inBubble(t, func(r *rig) {
		site := r.liveSite()
		defer site.close()
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(cs...)
		v := site.viewer("ch")
		a.hangUp()
		time.Sleep(5 * time.Second)
		v.expect(t, "init", "picture")
		r.w.Moved("ch", "wss://b")
		time.Sleep(time.Minute)
		v.expect(t, "moved wss://b")
		r.nvr.expect(t, "started ch live 1", "recording ch 1-10", "ended ch live 1 moved", "part ch 11-12")

		b := r.open(r.ticket("x", 1), vms.LaneLive, 1)
		b.init(1, 1)
		b.chunks(cs...)
		w := site.viewer("x")
		b.hangUp()
		time.Sleep(time.Minute)
		w.expect(t, "init", "picture", "offline connection_lost")

		// Somebody looks at a channel that was never here.
		y := site.viewer("y")
		r.w.Moved("y", "wss://b")
		y.expect(t, "offline waiting for the camera", "moved wss://b")
	})
}

// TestALateWordOfAMoveIsForgotten: the stream has come back before it arrived.
func TestALateWordOfAMoveIsForgotten(t *testing.T) {
	inBubble(t, func(r *rig) {
		site := r.liveSite()
		defer site.close()
		r.nvr.setFail(errors.New("away"))
		a := r.open(r.ticket("ch", 3), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(tape(t, 1, 1, 3, 300)...)
		r.w.Moved("ch", "wss://b")
		r.nvr.setFail(nil)
		time.Sleep(time.Minute)
		site.viewer("ch").expect(t, "init", "picture")
		a.hangUp()
	})
}

// TestTheNVRIsToldAgain: after its line came up it hears which lanes are up, in
// order with what became of them, and who looks on; at once, and once.
func TestTheNVRIsToldAgain(t *testing.T) {
	inBubble(t, func(r *rig) {
		site := r.liveSite()
		defer site.close()
		expect := func(want ...string) {
			r.t.Helper()
			synctest.Wait()
			r.nvr.set(func(n *nvr) {
				if slices.Sort(n.told); !slices.Equal(n.told, want) {
					r.t.Errorf("told %q, want %q", n.told, want)
				}
				n.told = nil
			})
		}
		a := r.open(r.ticket("a", 1), vms.LaneLive, 1)
		back := r.open(r.ticket("a", 1), vms.LaneBackfill, 1)
		b := r.open(r.ticket("b", 7), vms.LaneLive, 1)
		c := r.open(r.ticket("c", 1), vms.LaneLive, 1)
		c.hangUp()
		site.viewer("a")
		time.Sleep(35 * time.Second)
		expect("ended c live 1 connection_lost", "started a backfill 1", "started a live 1", "started b live 7", "started c live 1")
		r.nvr.heardViewers()
		r.w.Relinked(r.t.Context())
		expect("started a backfill 1", "started a live 1", "started b live 7")
		time.Sleep(time.Second)
		synctest.Wait()
		if got := r.nvr.heardViewers(); !slices.Equal(got, []string{"a 1"}) {
			r.t.Errorf("of viewers it was told %q", got)
		}

		// What waits goes out when the line is there, and is not piled up while it flaps.
		r.nvr.setFail(errors.New("away"))
		b.hangUp()
		d := r.open(r.ticket("d", 1), vms.LaneLive, 1)
		for range 100 {
			r.w.Relinked(r.t.Context())
			time.Sleep(5 * time.Second)
		}
		r.nvr.setFail(nil)
		r.w.Relinked(r.t.Context())
		synctest.Wait()
		r.nvr.set(func(n *nvr) {
			count := map[string]int{}
			for _, x := range n.told {
				count[x]++
			}
			if len(n.told) > 9 || count["started a live 1"] == 0 || count["started a backfill 1"] == 0 || count["started d live 1"] == 0 ||
				n.told[slices.IndexFunc(n.told, func(x string) bool { return strings.HasPrefix(x, "ended b") })] != "ended b live 7 connection_lost" {
				r.t.Errorf("told %q", n.told)
			}
			last := ""
			for _, x := range n.told {
				if strings.Contains(x, " b ") {
					last = x
				}
			}
			if !strings.HasPrefix(last, "ended b") {
				r.t.Errorf("the last word of b is %q", last)
			}
		})
		for _, x := range []*agent{a, back, d} {
			x.hangUp()
		}
	})
}

// TestLiveStreamsAreMirrored: what the live lane brings is published, and a URL
// that cannot be is an error at once. What is published is the mirror's business.
func TestLiveStreamsAreMirrored(t *testing.T) {
	tk := newTickets()
	cfg := worker.Config{ID: "w1", Dir: t.TempDir(), Store: newStore(), NVR: &nvr{}, CheckPush: tk.push, CheckView: tk.view, Mirror: "rtsp://user:secret@host/all"}
	if _, err := worker.New(cfg); !errors.Is(err, vms.ErrInvalid) || strings.Contains(err.Error(), "secret") {
		t.Errorf("New = %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r := newRig(t, func(c *worker.Config) { c.Mirror = "rtsp://" + ln.Addr().String() + "/{channel}" })
	defer r.shutdown()
	a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
	a.init(1, 1)
	a.chunks(tape(t, 1, 1, 5, 300)...)
	if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, " rtsp://"+ln.Addr().String()+"/ch") {
		t.Errorf("the mirror's server hears %q, %v", line, err)
	}
	_ = a.c.CloseNow()
}
