package live

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// Most tests publish what is not stored: it is in memory then.

var init1 = &vms.Init{Epoch: 1, ID: 1, Segment: []byte("init 1"), Tracks: []vms.Track{{ID: 1, Kind: "video", Codec: "avc1.64001f"}}}

const key = vms.FlagKey

// pic is a chunk whose payload says which it is.
func pic(epoch vms.Epoch, seq uint64, flags vms.Flags, size int) *vms.Chunk {
	p := fmt.Sprintf("%d:%d", epoch, seq)
	return &vms.Chunk{Epoch: epoch, Seq: seq, Init: 1, Recording: 1, Flags: flags, Payload: append([]byte(p), make([]byte, size)...)}
}

// words tells a queue as a viewer sees it.
func words(items []item) string {
	var out []string
	for _, it := range items {
		switch {
		case it.init != nil:
			out = append(out, fmt.Sprintf("init%d", it.init.ID))
		case it.jump:
			out = append(out, "jump")
		case it.offline != "":
			out = append(out, "offline("+it.offline+")")
		case it.moved:
			out = append(out, "moved("+it.url+")")
		default:
			name, _, _ := strings.Cut(string(it.chunk.Payload), "\x00")
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

// look is a viewer that comes.
func (s *Stream) look() *viewer {
	v := s.join()
	s.begin(v)
	return v
}

func (s *Stream) expect(t *testing.T, v *viewer, want string) {
	t.Helper()
	if got := words(s.take(v)); got != want {
		t.Errorf("viewer gets %q, want %q", got, want)
	}
}

func TestLateJoinerBeginsAtTheKeyframe(t *testing.T) {
	s := &Stream{}
	v0 := s.look()
	s.expect(t, v0, "offline(waiting for the camera)")
	for seq := uint64(1); seq <= 12; seq++ {
		var f vms.Flags
		if seq%5 == 1 {
			f = key
		}
		s.Publish(init1, pic(1, seq, f, 10), false)
	}
	s.expect(t, v0, "init1 1:1 1:2 1:3 1:4 1:5 1:6 1:7 1:8 1:9 1:10 1:11 1:12")
	v := s.look()
	s.expect(t, v, "init1 1:11 1:12")
	s.Publish(init1, pic(1, 13, 0, 10), false)
	s.expect(t, v, "1:13")
	s.leave(v0)
	s.leave(v)
	if s.Watched() {
		t.Error("watched by nobody")
	}
}

func TestStreamThatBeginsAnew(t *testing.T) {
	init2 := &vms.Init{Epoch: 1, ID: 2, Segment: []byte("init 2")}
	again := &vms.Init{Epoch: 1, ID: 1, Segment: init1.Segment}
	other := &vms.Init{Epoch: 2, ID: 1, Segment: []byte("init of 2")}
	s := &Stream{}
	v := s.look()
	s.take(v)
	s.Publish(init1, pic(1, 1, 0, 0), false) // no keyframe yet
	s.Publish(init1, pic(1, 2, key, 0), false)
	s.Publish(again, pic(1, 3, 0, 0), false) // said again on another connection: the same init
	s.expect(t, v, "init1 1:2 1:3")
	s.Publish(init1, pic(1, 2, key, 0), false) // sent again to be stored
	s.Publish(init1, pic(1, 3, 0, 0), false)
	s.expect(t, v, "")
	s.Publish(init1, pic(1, 7, 0, 0), false) // a hole: nothing before a keyframe
	s.Publish(init1, pic(1, 8, 0, 0), false)
	s.Publish(init1, pic(1, 9, key, 0), false)
	s.expect(t, v, "init1 1:9")
	s.Publish(init2, pic(1, 10, key, 0), false) // another codec
	s.expect(t, v, "init2 1:10")
	s.Publish(other, pic(2, 1, key|vms.FlagFirst, 0), false) // another epoch counts from one
	s.expect(t, v, "init1 2:1")
}

func TestOfflineAndBack(t *testing.T) {
	s := &Stream{}
	s.Publish(init1, pic(1, 1, key, 0), false)
	v := s.look()
	s.Offline("stopped")
	s.Offline("stopped")
	s.expect(t, v, "init1 1:1 offline(stopped)")
	late := s.look()
	s.expect(t, late, "offline(stopped)")
	s.Publish(init1, pic(1, 2, 0, 0), false)
	s.expect(t, v, "")
	s.Publish(init1, pic(1, 3, key, 0), false)
	s.expect(t, v, "init1 1:3")
	s.expect(t, late, "init1 1:3")
}

// TestSlowViewerLosesWholeGOPs: and never waits for more than the bound.
func TestSlowViewerLosesWholeGOPs(t *testing.T) {
	s := &Stream{}
	slow := s.look()
	s.take(slow)
	s.Publish(init1, pic(1, 1, key, 0), false)
	s.expect(t, slow, "init1 1:1")
	seq := uint64(1)
	for range 5 { // GOPs of 10 MB, none of which it takes
		for i := range 10 {
			var f vms.Flags
			if i == 0 {
				f = key
			}
			seq++
			s.Publish(init1, pic(1, seq, f, 1<<20), false)
			if slow.size > maxQueue {
				t.Fatalf("%d bytes wait", slow.size)
			}
		}
	}
	s.Publish(init1, pic(1, seq+1, key, 0), false)
	s.Publish(init1, pic(1, seq+2, 0, 0), false)
	s.expect(t, slow, fmt.Sprintf("jump 1:%d 1:%d", seq+1, seq+2))
	s.Publish(init1, pic(1, seq+3, 0, 0), false)
	s.expect(t, slow, fmt.Sprintf("1:%d", seq+3))
}

// TestSlowViewerGetsItsInit: one that was thrown away with the queue comes again.
func TestSlowViewerGetsItsInit(t *testing.T) {
	s := &Stream{}
	v := s.look()
	s.take(v)
	s.Publish(init1, pic(1, 1, key, maxQueue-10), false) // with the init, never taken
	s.Publish(init1, pic(1, 2, 0, 100), false)
	s.Publish(init1, pic(1, 3, key, 0), false)
	s.expect(t, v, "init1 1:3")
}

func TestQueuesAreBounded(t *testing.T) {
	s := &Stream{}
	v := s.look()
	for i := range uint64(100) { // each begins anew with a keyframe of 1 MiB
		s.Publish(&vms.Init{Epoch: vms.Epoch(i + 1), ID: 1}, pic(vms.Epoch(i+1), 1, key, 1<<20), false)
		s.Offline(fmt.Sprint(i))
	}
	if v.size > maxQueue {
		t.Errorf("%d bytes wait", v.size)
	}
	for i := range uint64(3 * maxItems) {
		s.Publish(&vms.Init{Epoch: vms.Epoch(i + 1000), ID: 1}, pic(vms.Epoch(i+1000), 1, key, 0), false)
		s.Offline(fmt.Sprint(i))
	}
	if n := len(v.queue); n > maxItems+2 {
		t.Errorf("%d messages wait", n)
	}
}

// TestHugeGOPIsNotKept: who comes in its middle waits for the next keyframe.
func TestHugeGOPIsNotKept(t *testing.T) {
	s := &Stream{}
	s.Publish(init1, pic(1, 1, key, 0), false)
	for seq := uint64(2); seq < 12; seq++ {
		s.Publish(init1, pic(1, seq, 0, 1<<20), false)
	}
	if s.gop != nil {
		t.Error("the GOP is kept")
	}
	v := s.look()
	s.Publish(init1, pic(1, 12, 0, 0), false)
	s.expect(t, v, "")
	s.Publish(init1, pic(1, 13, key, 0), false)
	s.expect(t, v, "init1 1:13")
}

// site serves s, and returns a function that looks on.
func site(t *testing.T, s *Server) (url string) {
	t.Helper()
	s.Check = func(ticket string) (vms.ChannelID, error) {
		if ch, ok := strings.CutPrefix(ticket, "good-"); ok {
			return vms.ChannelID(ch), nil
		}
		return "", vms.ErrUnauthorized
	}
	s.Log = vmstest.Log(t)
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return "ws" + strings.TrimPrefix(srv.URL, "http")
}

func look(t *testing.T, url string) *websocket.Conn {
	t.Helper()
	c, resp, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{Subprotocols: []string{Protocol}})
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body != nil {
		resp.Body.Close()
	}
	t.Cleanup(func() { c.CloseNow() })
	c.SetReadLimit(32 << 20)
	return c
}

// next reads one message: the type of a text, or the payload.
func next(t *testing.T, c *websocket.Conn) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	typ, data, err := c.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if typ == websocket.MessageText {
		var e event
		if err := json.Unmarshal(data, &e); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(e.Type + " " + e.MIME + e.Cause + e.URL)
	}
	name, _, _ := strings.Cut(string(data), "\x00")
	return name
}

func TestViewer(t *testing.T) {
	vmstest.NoLeaks(t)
	var s Server
	url := site(t, &s)
	st := s.Stream("ch")
	st.Publish(init1, pic(1, 1, key, 1), false)
	st.Publish(init1, pic(1, 2, 0, 1), false)
	c := look(t, url+"?ticket=good-ch")
	for _, want := range []string{`init video/mp4; codecs="avc1.64001f"`, "init 1", "1:1", "1:2"} {
		if got := next(t, c); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if !st.Watched() || s.Viewers() != 1 {
		t.Errorf("watched %v, viewers %d", st.Watched(), s.Viewers())
	}
	st.Offline("stopped")
	if got := next(t, c); got != "offline stopped" {
		t.Errorf("got %q", got)
	}
	st.Publish(init1, pic(1, 9, key, 1), false)
	for _, want := range []string{`init video/mp4; codecs="avc1.64001f"`, "init 1", "1:9"} {
		if got := next(t, c); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	eventually(t, func() bool { return !st.Watched() && s.Viewers() == 0 })
}

func TestTicketIsRefusedBeforeTheUpgrade(t *testing.T) {
	vmstest.NoLeaks(t)
	var s Server
	url := site(t, &s)
	for _, ticket := range []string{"", "?ticket=bad"} {
		c, resp, err := websocket.Dial(t.Context(), url+ticket, nil)
		if err == nil {
			c.CloseNow()
			t.Fatal("upgraded without a ticket")
		}
		if resp == nil || resp.StatusCode != http.StatusUnauthorized || problem.TypeOf(problem.ReadResponse(resp)) != wire.ProblemTicketInvalid {
			t.Errorf("refused with %v (%v)", resp, err)
		}
	}
	if s.Viewers() != 0 {
		t.Errorf("%d viewers", s.Viewers())
	}
}

// TestViewerSaysNothing: one that does is not listened to.
func TestViewerSaysNothing(t *testing.T) {
	vmstest.NoLeaks(t)
	var s Server
	c := look(t, site(t, &s)+"?ticket=good-ch")
	if got := next(t, c); got != "offline waiting for the camera" {
		t.Errorf("got %q", got)
	}
	if err := c.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Read(t.Context()); err == nil {
		t.Error("the viewer was answered")
	}
	eventually(t, func() bool { return s.Viewers() == 0 })
}

// TestStalledViewerHoldsUpNobody: Publish returns although the viewer's socket is full.
func TestStalledViewerHoldsUpNobody(t *testing.T) {
	vmstest.NoLeaks(t)
	var s Server
	url := site(t, &s)
	st := s.Stream("ch")
	stalled := look(t, url+"?ticket=good-ch") // never reads
	lively := look(t, url+"?ticket=good-ch")
	eventually(t, func() bool { return s.Viewers() == 2 })
	next(t, lively)
	for i := range uint64(60) {
		st.Publish(init1, pic(1, i+1, key, 1<<20), false)
		for next(t, lively) != fmt.Sprintf("1:%d", i+1) {
		}
	}
	// It gets whole GOPs only: after each jump a keyframe, never a chunk twice.
	stalled.SetReadLimit(-1)
	last := 0
	for last != 60 {
		var seq int
		if got := next(t, stalled); strings.HasPrefix(got, "1:") {
			if _, err := fmt.Sscanf(got, "1:%d", &seq); err != nil || seq <= last {
				t.Fatalf("%q after 1:%d", got, last)
			}
			last = seq
		}
	}
}

// eventually polls until ok or for ten seconds.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not happen within ten seconds")
		}
	}
}
