package nvr_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

var worker = vms.WorkerInfo{ID: "w1", Instance: "i1", PushURL: "ws://w1/push/v1", LiveURL: "ws://w1/live/v1/mse"}

// recv waits for something that must come.
func recv[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-ch:
		if !ok {
			t.Fatal("the channel was closed")
		}
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came within 10 s")
	}
	panic("unreachable")
}

// running starts the NVR's background work for as long as the test lasts.
func running(t *testing.T, w *nvrtest.World) {
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// session opens a stream's session with a token, as its hub would.
func session(t *testing.T, w *nvrtest.World, ch vms.ChannelID, hub vms.HubID) nvr.Session {
	t.Helper()
	tok, err := w.StreamToken(t.Context(), acct, ch)
	if err != nil {
		t.Fatal(err)
	}
	s, err := w.Store.BindSession(t.Context(), tok.SID, hub)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func assign(t *testing.T, w *nvrtest.World, s nvr.Session, hello *wire.SessionHello, l *link) *wire.Assign {
	t.Helper()
	a, err := w.Assign(t.Context(), s, hello, l)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAssign(t *testing.T) {
	w := nvrtest.New(t, func(c *nvr.Config) { c.Retention.Age = 2 * time.Hour })
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	s := session(t, w, c.ID, hub)
	if err := w.RecordingUploaded(t.Context(), w.Recording(c.ID, 5, 1, 30)); err != nil {
		t.Fatal(err)
	}
	held := []wire.HeldRange{
		{Chunks: vms.ChunkRange{Epoch: 5, First: 20, Last: 40}, Start: w.Clock.Now(), End: w.Clock.Now().Add(time.Second)},
		{Chunks: vms.ChunkRange{Epoch: 6, First: 1, Last: 9}, Start: w.Clock.Now(), End: w.Clock.Now().Add(time.Second)},
	}

	// No worker: nothing to assign, but what is durable is said at once.
	first := newLink()
	if a := assign(t, w, s, &wire.SessionHello{Holding: held}, first); a != nil {
		t.Fatalf("Assign without a worker = %+v", a)
	}
	want := vms.ChunkRange{Epoch: 5, First: 20, Last: 30}
	if d, ok := recv(t, first.told).(*wire.Durable); !ok || len(d.Ranges) != 1 || d.Ranges[0] != want {
		t.Errorf("told %+v, want durable %s", d, want)
	}
	w.Worker(t, worker)
	a, ok := recv(t, first.told).(*wire.Assign)
	if !ok || a.Generation != 1 || a.Worker != "w1" || a.WorkerURL != worker.PushURL || a.RetentionSeconds != 7200 || a.Channel != c.ID {
		t.Fatalf("told %+v when a worker registered", a)
	}
	if _, err := wire.EncodeSession(a); err != nil {
		t.Errorf("the assignment is not valid: %v", err)
	}
	p, err := w.Signer.Verifier().VerifyPush(a.Ticket, "w1", w.Clock.Now())
	if err != nil || p.Channel != c.ID || p.SID != s.SID || p.Hub != hub || p.Generation != 1 || !p.Expires.Equal(a.TicketExpires.Truncate(time.Second)) {
		t.Errorf("ticket = %+v, %v", p, err)
	}

	// A newer connection fences the older one and keeps its worker.
	w.Worker(t, vms.WorkerInfo{ID: "w0", Instance: "i0", PushURL: "ws://w0/push/v1"})
	second := newLink()
	a = assign(t, w, s, &wire.SessionHello{Worker: "i1", Holding: held}, second)
	if a == nil || a.Worker != "w1" || a.Generation != 2 || len(a.Durable) != 1 || a.Durable[0] != want {
		t.Errorf("assignment of the second connection = %+v", a)
	}
	if _, replaced := first.ended(); !replaced {
		t.Error("the older connection was not replaced")
	}
	if _, err := w.WantWorker(t.Context(), s, &wire.WantWorker{}, first); !errors.Is(err, vms.ErrConflict) {
		t.Errorf("WantWorker of the older connection = %v, want ErrConflict", err)
	}
	w.Detach(s, first) // late: it must not take the newer one down
	a, err = w.WantWorker(t.Context(), s, &wire.WantWorker{Instance: "i1", Why: "stuck"}, second)
	if err != nil || a.Worker != "w0" || a.Generation != 3 || a.Why != "requested" {
		t.Errorf("WantWorker = %+v, %v, want the other worker", a, err)
	}
	a, err = w.WantWorker(t.Context(), s, &wire.WantWorker{Instance: "i0"}, second)
	if err != nil || a.Worker != "w1" {
		t.Errorf("WantWorker = %+v, %v, want the other worker", a, err)
	}

	// What is registered from now on is told to the connection that is there.
	if err := w.RecordingUploaded(t.Context(), w.Recording(c.ID, 5, 31, 60)); err != nil {
		t.Fatal(err)
	}
	if d, ok := recv(t, second.told).(*wire.Durable); !ok || d.Ranges[0].Last != 60 {
		t.Errorf("told %+v, want what became durable", d)
	}
}

func TestDeleteChannelEndsItsStream(t *testing.T) {
	w := nvrtest.New(t, nil)
	line := w.Worker(t, worker)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	s := session(t, w, c.ID, hub)
	stream := newLink()
	before := desired(t, w, hub).Revision
	assign(t, w, s, &wire.SessionHello{}, stream)
	r := w.Recording(c.ID, 5, 1, 30)
	w.Objects.Put(r)
	if err := w.RecordingUploaded(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := w.DeleteChannel(t.Context(), acct, c.ID); err != nil {
		t.Fatal(err)
	}
	if why, _ := stream.ended(); why == "" {
		t.Error("the stream's session was not revoked")
	}
	if cut := line.Revoked(); !slices.Equal(cut, []vms.SID{s.SID}) {
		t.Errorf("the workers were told to cut off %v, want %v", cut, s.SID)
	}
	if d := desired(t, w, hub); len(d.Streams) != 0 || d.Revision <= before {
		t.Errorf("the hub is to do %+v, want nothing any more", d)
	}
	var ref *nvr.Refusal
	if _, err := w.Assign(t.Context(), s, &wire.SessionHello{}, newLink()); !errors.As(err, &ref) || ref.Problem != wire.ProblemRevoked {
		t.Errorf("Assign after the deletion = %v, want revoked", err)
	}
	late := w.Recording(c.ID, 5, 31, 60) // the worker finishes what it had
	w.Objects.Put(late)
	if err := w.RecordingUploaded(t.Context(), late); err != nil {
		t.Errorf("a late recording = %v, want nil: the worker must not retry", err)
	}
	if err := w.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if keys := w.Objects.Keys(); len(keys) != 0 {
		t.Errorf("left in the bucket: %v", keys)
	}
}

// An agent that ends, for an update or with its hub, says that its streams
// stopped. What the cloud wanted all the while is missing then; what was
// stopped by somebody is not.
func TestOnlyAStopThatSomebodyWantedIsNoGap(t *testing.T) {
	for name, tt := range map[string]struct {
		stop func(t *testing.T, w *nvrtest.World, id vms.ChannelID)
		gaps int
	}{
		"agent ended": {func(*testing.T, *nvrtest.World, vms.ChannelID) {}, 1},
		"stopped": {func(t *testing.T, w *nvrtest.World, id vms.ChannelID) {
			stop(t, w, id)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := nvrtest.New(t, nil)
			w.Worker(t, worker)
			hub, _ := w.Hub(t, acct)
			c := w.Channel(t, acct, hub)
			online(w, hub)
			l := newLink()
			start := func() nvr.Session {
				t.Helper()
				s := start(t, w, c)
				a := assign(t, w, s, &wire.SessionHello{}, l)
				s.Generation = a.Generation
				return s
			}
			put := func(epoch vms.Epoch, from, to time.Time) {
				t.Helper()
				r := w.Recording(c.ID, epoch, 1, 30)
				r.Start, r.End, r.Key = from, to, vms.RecordingKey(c.ID, from, 0)
				if err := w.RecordingUploaded(t.Context(), r); err != nil {
					t.Fatal(err)
				}
			}
			state := func(s nvr.Session, word string) {
				t.Helper()
				if err := w.State(t.Context(), s, &wire.StreamState{State: word}); err != nil {
					t.Fatal(err)
				}
			}
			s := start()
			state(s, wire.StateStreaming)
			put(1, w.Clock.Now().Add(-30*time.Second), w.Clock.Now())
			tt.stop(t, w, c.ID)
			state(s, wire.StateStopped)
			w.Clock.Add(10 * time.Minute)
			s = start()
			state(s, wire.StateStreaming)
			put(2, w.Clock.Now(), w.Clock.Now().Add(30*time.Second))
			p, err := w.Recordings(t.Context(), acct, c.ID, nvr.RecordingQuery{To: w.Clock.Now().Add(time.Hour)})
			if err != nil || len(p.Recordings) != 2 || len(p.Gaps) != tt.gaps {
				t.Errorf("%d recordings, gaps %+v, %v, want %d gaps", len(p.Recordings), p.Gaps, err, tt.gaps)
			}
		})
	}
}

// TestSilenceOfAWantedChannelIsTold: the end of the timeline is never silently
// empty while the channel should record: pending, and a gap in the end.
func TestSilenceOfAWantedChannelIsTold(t *testing.T) {
	w := nvrtest.New(t, nil)
	w.Worker(t, worker)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	online(w, hub)
	l := newLink()
	s := start(t, w, c)
	s.Generation = assign(t, w, s, &wire.SessionHello{}, l).Generation
	r := w.Recording(c.ID, 1, 1, 30)
	r.End = w.Clock.Now()
	r.Start = r.End.Add(-30 * time.Second)
	r.Key = vms.RecordingKey(c.ID, r.Start, 0)
	if err := w.RecordingUploaded(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	held := []wire.HeldRange{{Chunks: vms.ChunkRange{Epoch: 1, First: 31, Last: 40}, Start: r.End, End: r.End.Add(10 * time.Second)}}
	if _, err := w.Holding(t.Context(), s, &wire.Holding{Ranges: held}); err != nil {
		t.Fatal(err)
	}
	timeline := func() (gaps []vms.Gap, pending []vms.TimeRange) {
		t.Helper()
		p, err := w.Recordings(t.Context(), acct, c.ID, nvr.RecordingQuery{})
		if err != nil {
			t.Fatal(err)
		}
		return p.Gaps, p.Pending
	}
	w.Clock.Add(2 * time.Minute)
	if gaps, pending := timeline(); len(gaps) != 0 || len(pending) != 1 {
		t.Errorf("with a session: gaps %+v, pending %+v; the hub will tell", gaps, pending)
	}
	later := []wire.HeldRange{{Chunks: vms.ChunkRange{Epoch: 2, First: 1, Last: 9}, Start: r.End.Add(time.Minute), End: r.End.Add(2 * time.Minute)}}
	if _, err := w.Holding(t.Context(), s, &wire.Holding{Ranges: later}); err != nil {
		t.Fatal(err)
	}
	if gaps, pending := timeline(); len(gaps) != 1 || gaps[0].Cause != vms.CauseAgentRestarted || gaps[0].Duration() != time.Minute || len(pending) != 1 {
		t.Errorf("another epoch is held: gaps %+v, pending %+v; want the hole before it", gaps, pending)
	}
	if _, err := w.Holding(t.Context(), s, &wire.Holding{Ranges: held}); err != nil {
		t.Fatal(err)
	}
	w.Detach(s, l)
	gaps, pending := timeline()
	if len(gaps) != 0 || len(pending) != 1 || !pending[0].Start.Equal(held[0].Start) || !pending[0].End.Equal(w.Clock.Now()) {
		t.Errorf("hub away: gaps %+v, pending %+v; want what it holds and what it may have recorded since", gaps, pending)
	}
	w.Clock.Add(25 * time.Hour)
	if gaps, pending = timeline(); len(gaps) != 2 || gaps[0].Cause != vms.CauseHubUnreachable || len(pending) != 0 {
		t.Errorf("hub away for a day: gaps %+v, pending %+v; want what it holds to be a gap as well", gaps, pending)
	}
}

func TestStreamStateAndLive(t *testing.T) {
	w := nvrtest.New(t, nil)
	w.Worker(t, worker)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	s := session(t, w, c.ID, hub)
	l := newLink()
	a := assign(t, w, s, &wire.SessionHello{}, l)
	ctx := t.Context()
	subCtx, unsubscribe := context.WithCancel(ctx)
	events := w.Subscribe(subCtx, acct)
	others := w.Subscribe(subCtx, "other")

	if _, err := w.Live(ctx, acct, c.ID, false); !errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Live before the stream = %v, want ErrUnavailable", err)
	}
	if err := w.State(ctx, s, &wire.StreamState{State: wire.StateNoCamera, Problem: "No answer."}); err != nil {
		t.Fatal(err)
	}
	if got, _ := w.NVR.Channel(ctx, acct, c.ID); got.State != wire.StateNoCamera || got.Problem != "No answer." || got.Streaming {
		t.Errorf("channel = %+v, want no_camera", got)
	}
	e := vms.StreamEvent{Channel: c.ID, SID: s.SID, Hub: hub, Generation: a.Generation, Worker: "w1", Instance: "i1", Lane: vms.LaneLive, At: w.Clock.Now()}
	for range 2 { // told twice, one event
		if err := w.StreamStarted(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.State(ctx, s, &wire.StreamState{State: wire.StateStreaming}); err != nil {
		t.Fatal(err)
	}
	if got, _ := w.NVR.Channel(ctx, acct, c.ID); got.State != wire.StateStreaming || !got.Streaming || got.Worker != "w1" || !got.StreamingSince.Equal(e.At) {
		t.Errorf("channel = %+v, want streaming", got)
	}
	live, err := w.Live(ctx, acct, c.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	prefix := worker.LiveURL + "?ticket="
	if v, err := w.Signer.Verifier().VerifyView(live.MSE[len(prefix):], "w1", w.Clock.Now()); err != nil || v.Channel != c.ID {
		t.Errorf("Live = %s: %+v, %v", live.MSE, v, err)
	}
	old := e
	old.Generation--
	for _, end := range []vms.StreamEvent{old, e, e} { // the first is late, the last one double
		if err := w.StreamEnded(ctx, end); err != nil {
			t.Fatal(err)
		}
	}
	if got := recv(t, events); got.Type != nvr.EventStreamingStarted || got.Channel != c.ID {
		t.Errorf("event %+v, want streaming_started", got)
	}
	if got := recv(t, events); got.Type != nvr.EventStreamingEnded {
		t.Errorf("event %+v, want streaming_ended", got)
	}
	unsubscribe()
	if e, ok := <-events; ok {
		t.Errorf("one more event: %+v", e)
	}
	if e, ok := <-others; ok {
		t.Errorf("another account got %+v", e)
	}
}

func TestSlowSubscriberIsDropped(t *testing.T) {
	w := nvrtest.New(t, nil)
	events := w.Subscribe(t.Context(), acct)
	s := nvr.Session{Account: acct, Hub: "hub_x"}
	for range 300 {
		l := newLink()
		w.HubConnected(s, "boot_1", l)
		w.HubGone(s, l)
	}
	n := 0
	for range events { // ends, since it is closed
		n++
	}
	if n == 0 || n >= 600 {
		t.Errorf("a slow subscriber got %d of 600 events before it was dropped", n)
	}
}
