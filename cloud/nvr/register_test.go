package nvr_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// The worker, the bucket and the reconciler tell of the same objects at once,
// some twice: each is registered once and announced once.
func TestRegisterIsIdempotent(t *testing.T) {
	w := nvrtest.New(t, nil)
	c := w.Channel(t, acct, "")
	events := w.Subscribe(t.Context(), acct)
	var wg sync.WaitGroup
	for i := range uint64(5) {
		r := w.Recording(c.ID, 5, i*30+1, i*30+30)
		w.Objects.Put(r)
		for range 3 {
			wg.Go(func() {
				if err := w.RecordingUploaded(t.Context(), r); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				if err := w.ObjectCreated(t.Context(), r.Key); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				if err := w.Reconcile(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for range 5 {
		if e := recv(t, events); e.Type != nvr.EventRecording || e.Rec == nil {
			t.Errorf("event %+v", e)
		}
	}
	select {
	case e := <-events:
		t.Errorf("announced once too often: %+v", e)
	default:
	}
	p, err := w.Recordings(t.Context(), acct, c.ID, nvr.RecordingQuery{})
	if err != nil || len(p.Recordings) != 5 || len(p.Gaps) != 0 {
		t.Errorf("Recordings = %d, gaps %v, %v, want 5 without gaps", len(p.Recordings), p.Gaps, err)
	}
}

func TestObjectEventsThatRegisterNothing(t *testing.T) {
	w := nvrtest.New(t, nil)
	c := w.Channel(t, acct, "")
	good := w.Recording(c.ID, 5, 1, 30)
	put := func(change func(*vms.Recording)) string {
		r := good
		change(&r)
		w.Objects.Put(r)
		return r.Key
	}
	otherKey := vms.RecordingKey(c.ID, good.Start, 9)
	for name, key := range map[string]string{
		"gone":        good.Key,
		"not ours":    "clips/x.mp4",
		"wrong key":   put(func(r *vms.Recording) { r.Key = otherKey }),
		"no checksum": put(func(r *vms.Recording) { r.Number, r.Key, r.SHA256 = 1, vms.RecordingKey(c.ID, r.Start, 1), [32]byte{} }),
		"no time":     put(func(r *vms.Recording) { r.Number, r.Key, r.End = 2, vms.RecordingKey(c.ID, r.Start, 2), r.Start }),
		"a day": put(func(r *vms.Recording) {
			r.Number, r.Key, r.End = 3, vms.RecordingKey(c.ID, r.Start, 3), r.Start.Add(24*time.Hour)
		}),
		"empty":         put(func(r *vms.Recording) { r.Number, r.Key, r.Bytes = 4, vms.RecordingKey(c.ID, r.Start, 4), 0 }),
		"never a chunk": put(func(r *vms.Recording) { r.Number, r.Key, r.Chunks.First = 5, vms.RecordingKey(c.ID, r.Start, 5), 0 }),
		"no channel":    put(func(r *vms.Recording) { r.Channel, r.Key = "ch_none", vms.RecordingKey("ch_none", r.Start, 0) }),
	} {
		if err := w.ObjectCreated(t.Context(), key); err != nil {
			t.Errorf("%s: %v, want nil: asking again does not help", name, err)
		}
	}
	if p, err := w.Recordings(t.Context(), acct, c.ID, nvr.RecordingQuery{}); err != nil || len(p.Recordings) != 0 {
		t.Errorf("registered %+v, %v", p.Recordings, err)
	}
	down := errors.New("down")
	w.Objects.Fail = func(string, string) error { return down }
	if err := w.ObjectCreated(t.Context(), good.Key); !errors.Is(err, down) {
		t.Errorf("with the store down = %v, want its error: the event must come again", err)
	}
}

func TestRecordingsPages(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	s := session(t, w, c.ID, hub)
	w.Worker(t, worker)
	var recs []vms.Recording
	for i := range uint64(7) { // a hole of 10 s after each
		r := w.Recording(c.ID, 5, i*40+1, i*40+30)
		recs = append(recs, r)
		if err := w.RecordingUploaded(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	end := recs[6].End
	gap := vms.Gap{ID: "g1", Cause: vms.CauseBufferFull, TimeRange: vms.TimeRange{Start: recs[2].End, End: recs[3].Start}}
	for range 2 {
		got, err := w.Gaps(t.Context(), s, &wire.Gaps{Gaps: []vms.Gap{gap, {ID: "tiny", Cause: vms.CauseUnknown, TimeRange: vms.TimeRange{Start: end, End: end}}}})
		if err != nil || !slices.Equal(got.IDs, []vms.GapID{"g1", "tiny"}) {
			t.Fatalf("Gaps = %+v, %v", got, err)
		}
	}
	held := wire.HeldRange{Chunks: vms.ChunkRange{Epoch: 5, First: 271, Last: 280}, Start: end, End: end.Add(10 * time.Second)}
	assign(t, w, s, &wire.SessionHello{Holding: []wire.HeldRange{held}}, newLink())

	whole, err := w.Recordings(t.Context(), acct, c.ID, nvr.RecordingQuery{})
	if err != nil {
		t.Fatal(err)
	}
	if len(whole.Recordings) != 7 || len(whole.Gaps) != 6 || whole.NextCursor != "" ||
		len(whole.Pending) != 1 || !whole.Pending[0].Start.Equal(end) || whole.Gaps[2].ID != "g1" || whole.Gaps[0].Cause != vms.CauseUnknown {
		t.Errorf("whole timeline: %d recordings, gaps %+v, pending %+v", len(whole.Recordings), whole.Gaps, whole.Pending)
	}
	if r := whole.Recordings[0]; r.ID == "" || r.URL == "" || r.URLExpiresAt.IsZero() {
		t.Errorf("recording = %+v", r)
	}
	// Pages tell the same, each thing once.
	for _, limit := range []int{1, 2, 3, 7} {
		var sum nvr.Page
		q := nvr.RecordingQuery{Limit: limit}
		for {
			p, err := w.Recordings(t.Context(), acct, c.ID, q)
			if err != nil {
				t.Fatal(err)
			}
			sum.Recordings = append(sum.Recordings, p.Recordings...)
			sum.Gaps = append(sum.Gaps, p.Gaps...)
			sum.Pending = append(sum.Pending, p.Pending...)
			if q.Cursor = p.NextCursor; q.Cursor == "" {
				break
			}
		}
		if got, want := fmt.Sprint(sum.Recordings, sum.Gaps, sum.Pending), fmt.Sprint(whole.Recordings, whole.Gaps, whole.Pending); got != want {
			t.Errorf("limit %d: %s\nwant %s", limit, got, want)
		}
	}
	// A window inside a hole knows why it is empty.
	mid := recs[0].End.Add(time.Second)
	p, err := w.Recordings(t.Context(), acct, c.ID, nvr.RecordingQuery{From: mid, To: mid.Add(time.Second)})
	if err != nil || len(p.Recordings) != 0 || len(p.Gaps) != 1 || p.Gaps[0].Duration() != time.Second {
		t.Errorf("inside a hole: %+v, %v", p, err)
	}
	if _, err := w.Recordings(t.Context(), acct, c.ID, nvr.RecordingQuery{From: mid, To: mid}); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("an empty query = %v, want ErrInvalid", err)
	}
}

// A crash between any two steps of the sweep leaves nothing that the next one
// does not finish, and no late notice brings a recording back.
func TestSweepSurvivesACrashAtEveryStep(t *testing.T) {
	crash := errors.New("crash")
	for _, step := range []string{"none", "before the row", "before the object", "after the object"} {
		t.Run(step, func(t *testing.T) {
			w := nvrtest.New(t, func(c *nvr.Config) { c.Retention.Age = time.Hour - 60*time.Second })
			c := w.Channel(t, acct, "")
			old, young := w.Recording(c.ID, 5, 1, 30), w.Recording(c.ID, 5, 61, 90)
			for _, r := range []vms.Recording{old, young} {
				w.Objects.Put(r)
				if err := w.RecordingUploaded(t.Context(), r); err != nil {
					t.Fatal(err)
				}
			}
			switch step {
			case "before the row":
				w.Store.Fail(crash)
			case "before the object":
				w.Objects.Fail = func(op, _ string) error {
					if op == "delete" {
						return crash
					}
					return nil
				}
			case "after the object":
				w.Objects.Fail = func(op, key string) error {
					if op == "delete" {
						w.Store.Fail(crash) // the object goes, its garbage row stays
					}
					return nil
				}
			}
			if err := w.Sweep(t.Context()); (step != "none") != errors.Is(err, crash) {
				t.Fatalf("Sweep = %v", err)
			}
			w.Store.Fail(nil)
			w.Objects.Fail = nil

			notices := func() {
				t.Helper()
				for _, err := range []error{w.ObjectCreated(t.Context(), old.Key), w.Reconcile(t.Context())} {
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			listed := func() (keys []string) {
				p, err := w.Recordings(t.Context(), acct, c.ID, nvr.RecordingQuery{})
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range p.Recordings {
					keys = append(keys, r.Key)
				}
				return keys
			}
			notices()
			if step != "before the row" && !slices.Equal(listed(), []string{young.Key}) {
				t.Errorf("after the crash listed: %v", listed())
			}
			if err := w.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			notices()
			if !slices.Equal(listed(), []string{young.Key}) || !slices.Equal(w.Objects.Keys(), []string{young.Key}) {
				t.Errorf("listed %v, in the bucket %v, want only the young one", listed(), w.Objects.Keys())
			}
			if g, err := w.Store.Garbage(t.Context(), w.Clock.Now(), 10); err != nil || len(g) != 0 {
				t.Errorf("garbage rows left: %v, %v", g, err)
			}
		})
	}
}

// fullDisk is a store in which nothing can be written that makes it larger.
type fullDisk struct {
	nvr.Store
	err error
}

func (s *fullDisk) Expire(ctx context.Context, cutoff time.Time, maxBytes int64, now time.Time, limit int) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	return s.Store.Expire(ctx, cutoff, maxBytes, now, limit)
}

// What is garbage already goes although nothing new can become garbage: that
// is what makes room on a full disk.
func TestSweepClearsGarbageOnAFullDisk(t *testing.T) {
	full := errors.New("disk full")
	disk := &fullDisk{}
	w := nvrtest.New(t, func(c *nvr.Config) { disk.Store, c.Store = c.Store, disk })
	c := w.Channel(t, acct, "")
	r := w.Recording(c.ID, 5, 1, 30)
	w.Objects.Put(r)
	if err := w.RecordingUploaded(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := w.DeleteChannel(t.Context(), acct, c.ID); err != nil {
		t.Fatal(err)
	}
	disk.err = full
	if err := w.Sweep(t.Context()); !errors.Is(err, full) {
		t.Errorf("Sweep = %v, want that the disk is full", err)
	}
	if keys := w.Objects.Keys(); len(keys) != 0 {
		t.Errorf("objects left: %v", keys)
	}
}

func TestRetentionBySize(t *testing.T) {
	w := nvrtest.New(t, func(c *nvr.Config) { c.Retention.Bytes = 2500 })
	c := w.Channel(t, acct, "")
	for i := range uint64(5) {
		r := w.Recording(c.ID, 5, i*30+1, i*30+30)
		w.Objects.Put(r)
		if err := w.RecordingUploaded(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(w.Objects.Keys()); n != 2 {
		t.Errorf("%d objects of 1000 bytes are left, want 2 within 2500", n)
	}
}
