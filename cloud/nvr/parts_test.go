package nvr_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// store puts an object into the bucket and tells of it as its worker would.
func store(t *testing.T, w *nvrtest.World, rs ...vms.Recording) {
	t.Helper()
	for _, r := range rs {
		w.Objects.Put(r)
		if err := w.RecordingUploaded(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
}

func keysOf(rs []vms.Recording) []string {
	out := make([]string, 0, len(rs))
	for _, r := range rs {
		out = append(out, r.Key)
	}
	return out
}

func timelineOf(t *testing.T, w *nvrtest.World, ch vms.ChannelID) nvr.Page {
	t.Helper()
	p, err := w.Recordings(t.Context(), acct, ch, nvr.RecordingQuery{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A part is footage like any other until its whole is there, and its object
// outlives every URL of it.
func TestPartsAreRecordedUntilTheirWhole(t *testing.T) {
	w := nvrtest.New(t, func(c *nvr.Config) { c.URLTTL = time.Hour })
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	w.Worker(t, worker)
	s := session(t, w, c.ID, hub)
	l := newLink()
	held := []wire.HeldRange{{Chunks: vms.ChunkRange{Epoch: 5, First: 1, Last: 40}, Start: w.Recording(c.ID, 5, 1, 40).Start, End: w.Recording(c.ID, 5, 1, 40).End}}
	assign(t, w, s, &wire.SessionHello{Holding: held}, l)

	p1, p2 := w.Part(c.ID, 5, 1, 10), w.Part(c.ID, 5, 11, 25)
	store(t, w, p1)
	if d, ok := recv(t, l.told).(*wire.Durable); !ok || d.Ranges[0] != p1.Chunks {
		t.Errorf("told %+v, want that the part is durable", d)
	}
	w.Objects.Put(p2) // of this one only the bucket tells
	if err := w.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := timelineOf(t, w, c.ID)
	if len(p.Recordings) != 2 || !p.Recordings[1].Provisional() || p.Recordings[1].URL == "" || len(p.Gaps) != 0 ||
		len(p.Pending) != 1 || !p.Pending[0].Start.Equal(p2.End) {
		t.Errorf("timeline of parts: %+v", p)
	}
	if got, err := w.Parts(t.Context(), c.ID, []vms.Epoch{4, 5}); err != nil || !slices.Equal(keysOf(got), []string{p1.Key, p2.Key}) {
		t.Errorf("Parts = %v, %v", keysOf(got), err)
	}
	if got, err := w.Parts(t.Context(), c.ID, nil); err != nil || len(got) != 0 {
		t.Errorf("Parts of no epoch = %v, %v", keysOf(got), err)
	}
	whole := w.Recording(c.ID, 5, 1, 30)
	store(t, w, whole)
	if p := timelineOf(t, w, c.ID); len(p.Recordings) != 1 || p.Recordings[0].Key != whole.Key {
		t.Errorf("timeline of the whole: %+v", p.Recordings)
	}
	if got, err := w.Parts(t.Context(), c.ID, []vms.Epoch{5}); err != nil || len(got) != 0 {
		t.Errorf("Parts after the whole = %v, %v", keysOf(got), err)
	}
	for _, tt := range []struct {
		later time.Duration
		keys  int
	}{{0, 3}, {time.Hour, 3}, {2 * time.Minute, 1}} {
		w.Clock.Add(tt.later)
		if err := w.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.Reconcile(t.Context()); err != nil { // it must not bring them back
			t.Fatal(err)
		}
		if keys := w.Objects.Keys(); len(keys) != tt.keys || len(timelineOf(t, w, c.ID).Recordings) != 1 {
			t.Errorf("%v later: in the bucket %v, want %d objects", tt.later, keys, tt.keys)
		}
	}
}

// What retention would have deleted is not kept for a URL.
func TestRetentionEndsURLs(t *testing.T) {
	w := nvrtest.New(t, func(c *nvr.Config) { c.Retention.Age = time.Hour })
	c := w.Channel(t, acct, "")
	store(t, w, w.Part(c.ID, 5, 1, 10), w.Recording(c.ID, 5, 1, 30))
	w.Clock.Add(time.Minute)
	if err := w.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if keys := w.Objects.Keys(); len(keys) != 0 {
		t.Errorf("left behind retention: %v", keys)
	}
}

// Parts that share chunks are cut apart where they are listed.
func TestPartsThatShareChunksAreListedApart(t *testing.T) {
	w := nvrtest.New(t, nil)
	c := w.Channel(t, acct, "")
	p1, p2 := w.Part(c.ID, 5, 1, 20), w.Part(c.ID, 5, 11, 30)
	store(t, w, p1, p2)
	for _, limit := range []int{1, 10} {
		p, err := w.Recordings(t.Context(), acct, c.ID, nvr.RecordingQuery{Limit: limit})
		if err != nil || len(p.Recordings) != min(limit, 2) || !p.Recordings[0].Start.Equal(p1.Start) || !p.Recordings[0].End.Equal(p2.Start) || len(p.Gaps) != 0 {
			t.Errorf("limit %d: %+v, %v", limit, p, err)
		}
	}
	if parts, err := w.Parts(t.Context(), c.ID, []vms.Epoch{5}); err != nil || len(parts) != 2 || parts[0].End != p1.End {
		t.Errorf("Parts = %+v, %v, want them as they are", parts, err)
	}
}

func TestAbandonedParts(t *testing.T) {
	type world struct {
		*nvrtest.World
		ch  vms.ChannelID
		hub vms.HubID
	}
	begin := func(t *testing.T) world {
		w := nvrtest.New(t, nil)
		hub, _ := w.Hub(t, acct)
		c := w.Channel(t, acct, hub)
		w.Worker(t, worker)
		w.Clock.Add(-2 * time.Hour) // what is recorded lies in the hour before the clock's beginning
		store(t, w, w.Part(c.ID, 5, 1, 10), w.Part(c.ID, 5, 11, 20))
		w.Clock.Add(2 * time.Hour)
		return world{w, c.ID, hub}
	}
	abandoned := func(t *testing.T, w world, want int) {
		t.Helper()
		got, err := w.AbandonedParts(t.Context(), 0)
		if err != nil || len(got) != want {
			t.Errorf("AbandonedParts = %v, %v, want %d", keysOf(got), err, want)
		}
	}
	held := func(e vms.Epoch) []wire.HeldRange {
		return []wire.HeldRange{{Chunks: vms.ChunkRange{Epoch: e, First: 21, Last: 30}, Start: time.Unix(1, 0), End: time.Unix(2, 0)}}
	}
	t.Run("hub stays away", func(t *testing.T) {
		w := begin(t)
		w.Clock.Add(time.Hour)
		abandoned(t, w, 0)
		w.Clock.Add(20 * time.Hour)
		abandoned(t, w, 0)
		w.Clock.Add(2 * time.Hour)
		abandoned(t, w, 2)
		store(t, w.World, w.Recording(w.ch, 5, 1, 20)) // the janitor's
		abandoned(t, w, 0)
	})
	t.Run("not right after our own start", func(t *testing.T) {
		w := begin(t)
		again := nvrtest.New(t, func(c *nvr.Config) {
			w.Clock.Add(25 * time.Hour)
			c.Store, c.Clock = w.Store, w.Clock.Now
		})
		if got, err := again.AbandonedParts(t.Context(), 0); err != nil || len(got) != 0 {
			t.Errorf("AbandonedParts = %v, %v", keysOf(got), err)
		}
		w.Clock.Add(11 * time.Minute)
		if got, err := again.AbandonedParts(t.Context(), 0); err != nil || len(got) != 2 {
			t.Errorf("AbandonedParts = %v, %v", keysOf(got), err)
		}
	})
	t.Run("hub was here lately", func(t *testing.T) {
		w := begin(t)
		l := newLink()
		s := session(t, w.World, w.ch, w.hub)
		s.Generation = assign(t, w.World, s, &wire.SessionHello{Holding: held(5)}, l).Generation
		w.Clock.Add(48 * time.Hour)
		abandoned(t, w, 0) // it is there, and holds the rest
		w.Detach(s, l)
		w.Clock.Add(23 * time.Hour)
		abandoned(t, w, 0)
		w.Clock.Add(2 * time.Hour)
		abandoned(t, w, 2)
	})
	t.Run("the epoch is over", func(t *testing.T) {
		w := begin(t)
		s := session(t, w.World, w.ch, w.hub)
		store(t, w.World, w.Recording(w.ch, 6, 101, 130))
		w.Clock.Add(time.Hour)
		assign(t, w.World, s, &wire.SessionHello{Epoch: 5}, newLink())
		abandoned(t, w, 0) // it writes this epoch
		assign(t, w.World, s, &wire.SessionHello{Epoch: 6, Holding: held(5)}, newLink())
		abandoned(t, w, 0) // it holds the rest
		if _, err := w.Holding(t.Context(), s, &wire.Holding{Ranges: held(6)}); err != nil {
			t.Fatal(err)
		}
		abandoned(t, w, 2)
	})
	t.Run("the epoch may go on", func(t *testing.T) {
		w := begin(t)
		s := session(t, w.World, w.ch, w.hub)
		assign(t, w.World, s, &wire.SessionHello{Epoch: 6, Holding: held(6)}, newLink())
		w.Clock.Add(time.Hour)
		abandoned(t, w, 0) // nothing newer is recorded
		store(t, w.World, w.Recording(w.ch, 5, 101, 130))
		abandoned(t, w, 0) // it went on
	})
	t.Run("recordings come whole", func(t *testing.T) {
		w := begin(t)
		other := w.Part(w.ch, 5, 31, 40)
		other.Number, other.Key = 1, vms.PartKey(w.ch, other.Chunks, 1)
		store(t, w.World, other)
		w.Clock.Add(25 * time.Hour)
		for limit, want := range map[int]int{1: 2, 2: 2, 3: 3} {
			if got, err := w.AbandonedParts(t.Context(), limit); err != nil || len(got) != want {
				t.Errorf("limit %d: %v, %v, want %d", limit, keysOf(got), err, want)
			}
		}
		down := errors.New("down")
		w.Store.Fail(down)
		if _, err := w.AbandonedParts(t.Context(), 1); !errors.Is(err, down) {
			t.Errorf("without a store: %v", err)
		}
	})
}

// Parts of which nothing can be made stay where they are, and do not keep
// others from being named.
func TestAbandonedPartsTakeTurns(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	var want []string
	w.Clock.Add(-2 * time.Hour)
	for range 5 {
		c := w.Channel(t, acct, hub)
		p, q := w.Part(c.ID, 5, 1, 10), w.Part(c.ID, 5, 11, 20)
		store(t, w, p, q)
		want = append(want, p.Key, q.Key)
	}
	w.Clock.Add(48 * time.Hour)
	slices.Sort(want)
	for range 3 {
		var got []string
		for range 3 { // two epochs of two parts each time, the last of which comes first again
			parts, err := w.AbandonedParts(t.Context(), 3)
			if err != nil || len(parts) != 4 {
				t.Fatalf("AbandonedParts = %v, %v", keysOf(parts), err)
			}
			got = append(got, keysOf(parts)...)
		}
		slices.Sort(got)
		if got := slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("three rounds named %v, want %v", got, want)
		}
	}
}

func TestWholes(t *testing.T) {
	w := nvrtest.New(t, nil)
	c := w.Channel(t, acct, "")
	store(t, w, w.Recording(c.ID, 5, 1, 10), w.Part(c.ID, 5, 8, 20), w.Part(c.ID, 5, 21, 30), w.Recording(c.ID, 5, 31, 40), w.Recording(c.ID, 6, 101, 110))
	whole := func(first, last uint64) vms.ChunkRange { return vms.ChunkRange{Epoch: 5, First: first, Last: last} }
	for _, tt := range []struct {
		ask  vms.ChunkRange
		want []vms.ChunkRange
	}{
		{whole(9, 9), []vms.ChunkRange{whole(1, 10)}},
		{whole(10, 31), []vms.ChunkRange{whole(1, 10), whole(31, 40)}},
		{whole(11, 30), nil},
		{whole(41, 1<<62), nil},
	} {
		if got, err := w.Wholes(t.Context(), c.ID, tt.ask); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("Wholes(%s) = %v, %v, want %v", tt.ask, got, err, tt.want)
		}
	}
	p := timelineOf(t, w, c.ID)
	if len(p.Recordings) != 5 || p.Recordings[0].Chunks != whole(1, 7) || !p.Recordings[0].End.Equal(p.Recordings[1].Start) {
		t.Errorf("the timeline has %+v, want the closed recording up to the part that has more", p.Recordings)
	}
	w.Store.Fail(errors.New("down"))
	if _, err := w.Wholes(t.Context(), c.ID, whole(1, 2)); err == nil {
		t.Error("no error without a store")
	}
}

// A ticket is renewed at half of its life, by an assignment that changes
// nothing else: also long after the token has expired.
func TestTicketsAreRenewed(t *testing.T) {
	w := nvrtest.New(t, func(c *nvr.Config) { c.TicketTTL, c.TokenTTL = 40*time.Millisecond, time.Hour })
	running(t, w)
	w.Worker(t, worker)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	s := session(t, w, c.ID, hub)
	l := newLink()
	first := assign(t, w, s, &wire.SessionHello{}, l)
	w.Clock.Add(10 * time.Millisecond)
	young := newLink()
	assign(t, w, session(t, w, w.Channel(t, acct, hub).ID, hub), &wire.SessionHello{}, young)
	w.Clock.Add(10 * time.Millisecond)
	recv(t, l.told)
	if sent := young.sent(); len(sent) != 0 {
		t.Errorf("a young ticket was renewed: %+v", sent)
	}
	for _, later := range []time.Duration{20 * time.Millisecond, 25 * time.Hour} {
		w.Clock.Add(later)
		a, ok := recv(t, l.told).(*wire.Assign)
		if !ok || a.Why != "renew" || a.Generation != first.Generation || a.Worker != first.Worker || a.WorkerURL != first.WorkerURL {
			t.Fatalf("told %+v, want the assignment with a new ticket", a)
		}
		if p, err := w.Signer.Verifier().VerifyPush(a.Ticket, "w1", w.Clock.Now()); err != nil || p.Generation != first.Generation || p.SID != s.SID {
			t.Errorf("ticket = %+v, %v", p, err)
		}
		if _, err := wire.EncodeSession(a); err != nil {
			t.Error(err)
		}
	}
	// One that moved keeps its new generation; one that is gone gets nothing.
	moved, err := w.WantWorker(t.Context(), s, &wire.WantWorker{}, l)
	if err != nil {
		t.Fatal(err)
	}
	w.Clock.Add(20 * time.Millisecond)
	if a, ok := recv(t, l.told).(*wire.Assign); !ok || a.Generation != moved.Generation {
		t.Errorf("told %+v, want generation %d", a, moved.Generation)
	}
	w.Detach(s, l)
	sent := len(l.sent())
	other := newLink()
	assign(t, w, session(t, w, c.ID, hub), &wire.SessionHello{}, other)
	w.Clock.Add(20 * time.Millisecond)
	recv(t, other.told)
	if n := len(l.sent()); n != sent {
		t.Errorf("a session that is gone was told %+v", l.sent()[sent:])
	}
}

// A hub that comes back brings what it holds of a stream that was stopped
// meanwhile: it is pending, its gaps are committed, it gets a worker, and the
// channel does not look as if it recorded.
func TestStoppedStreamIsStillDelivered(t *testing.T) {
	w := nvrtest.New(t, nil)
	w.Worker(t, worker)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	old := session(t, w, c.ID, hub)
	if err := w.Store.EndSession(t.Context(), old.SID); err != nil {
		t.Fatal(err)
	}
	if err := w.Store.SetIdle(t.Context(), c.ID, true, w.Clock.Now()); err != nil {
		t.Fatal(err)
	}
	w.Clock.Add(10 * time.Minute)
	old, err := w.Store.Session(t.Context(), old.SID) // as the handshake finds it
	if err != nil {
		t.Fatal(err)
	}
	r := w.Recording(c.ID, 5, 1, 30)
	held := []wire.HeldRange{{Chunks: r.Chunks, Start: r.Start, End: r.End, Lane: vms.LaneBackfill}}
	l := newLink()
	a := assign(t, w, old, &wire.SessionHello{Holding: held}, l)
	if a == nil || a.WorkerURL == "" {
		t.Fatalf("assignment = %+v", a)
	}
	if err := w.State(t.Context(), old, &wire.StreamState{State: wire.StateBuffering}); err != nil {
		t.Fatal(err)
	}
	e := vms.StreamEvent{Channel: c.ID, SID: old.SID, Hub: hub, Generation: a.Generation, Worker: "w1", Instance: "i1", Lane: vms.LaneBackfill, At: w.Clock.Now()}
	if err := w.StreamStarted(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	gap := vms.Gap{ID: "g1", Cause: vms.CauseStorageFailed, TimeRange: vms.TimeRange{Start: r.Start.Add(-time.Minute), End: r.Start}}
	if got, err := w.Gaps(t.Context(), old, &wire.Gaps{Gaps: []vms.Gap{gap}}); err != nil || len(got.IDs) != 1 {
		t.Errorf("Gaps = %+v, %v", got, err)
	}
	if p := timelineOf(t, w, c.ID); len(p.Pending) != 1 || !p.Pending[0].Start.Equal(r.Start) || len(p.Gaps) != 1 || p.Gaps[0].ID != "g1" {
		t.Errorf("timeline: pending %+v, gaps %+v", p.Pending, p.Gaps)
	}
	if got, _ := w.NVR.Channel(t.Context(), acct, c.ID); got.Streaming || got.State != nvr.StateIdle {
		t.Errorf("while old footage comes the channel is %+v", got)
	}
	if idle, err := w.Store.Idle(t.Context(), c.ID, w.Clock.Now().Add(-time.Hour), w.Clock.Now().Add(time.Hour)); err != nil || len(idle) != 1 || !idle[0].End.After(w.Clock.Now()) {
		t.Errorf("idle = %+v, %v: nobody wants it to record", idle, err)
	}
	store(t, w, r)
	if p := timelineOf(t, w, c.ID); len(p.Recordings) != 1 || len(p.Pending) != 0 {
		t.Errorf("after it came: %d recordings, pending %+v", len(p.Recordings), p.Pending)
	}
}

// Beside a stream that runs, a session that only delivers changes nothing of
// what is said of the channel, whatever it says.
func TestDeliveryDoesNotSpeakForTheStream(t *testing.T) {
	w := nvrtest.New(t, nil)
	w.Worker(t, worker)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	run, old := session(t, w, c.ID, hub), session(t, w, c.ID, hub)
	a := assign(t, w, run, &wire.SessionHello{}, newLink())
	if err := w.State(t.Context(), run, &wire.StreamState{State: wire.StateStreaming}); err != nil {
		t.Fatal(err)
	}
	e := vms.StreamEvent{Channel: c.ID, SID: run.SID, Hub: hub, Generation: a.Generation, Worker: "w1", Instance: "i1", Lane: vms.LaneLive, At: w.Clock.Now()}
	if err := w.StreamStarted(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	assign(t, w, old, &wire.SessionHello{}, newLink()) // a higher generation
	if err := w.State(t.Context(), old, &wire.StreamState{State: wire.StateStopped}); err != nil {
		t.Fatal(err)
	}
	if got, _ := w.NVR.Channel(t.Context(), acct, c.ID); !got.Streaming || got.State != wire.StateStreaming {
		t.Errorf("channel = %+v, want streaming", got)
	}
	if idle, err := w.Store.Idle(t.Context(), c.ID, w.Clock.Now().Add(-time.Hour), w.Clock.Now().Add(time.Hour)); err != nil || len(idle) != 0 {
		t.Errorf("idle = %+v, %v: it records", idle, err)
	}
}
