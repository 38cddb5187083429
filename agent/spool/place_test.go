package spool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// documents is Documents in memory.
type documents struct {
	mu   sync.Mutex
	docs map[string]string
	puts int
	fail error
}

func (d *documents) Document(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if doc, ok := d.docs[name]; ok {
		return []byte(doc), nil
	}
	return nil, nil
}

func (d *documents) PutDocument(name string, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return d.fail
	}
	if d.docs == nil {
		d.docs = map[string]string{}
	}
	d.docs[name] = string(data)
	if data == nil {
		delete(d.docs, name)
	}
	d.puts++
	return nil
}

var (
	// wrong is what a hub in the past takes for the time, right what it is.
	wrong = time.Unix(1_790_000_000, 0).UTC()
	right = time.Unix(1_800_000_000, 0).UTC()
	// sure is when all is certain.
	sure = vms.TimeRange{Start: wrong.Add(-24 * time.Hour), End: wrong.Add(24 * time.Hour)}
	boot = Origin{Boot: "boot1", Zero: wrong}
)

// feed appends chunks of a second of an epoch, four to a recording: those up to
// unsure are of the wrong time. Chunk 1 begins at from.
func feed(s *Spool, e vms.Epoch, first, last, unsure uint64, from time.Time) {
	s.PutInit(vms.Init{Epoch: e, ID: 1})
	for seq := first; seq <= last; seq++ {
		c := vms.Chunk{Epoch: e, Seq: seq, Init: 1, MoofLen: 8, Payload: make([]byte, 744), CameraTime: from.Add(time.Duration(seq)*time.Second - time.Hour)}
		c.CRC = wire.Checksum(c.Payload)
		if seq%4 == 1 {
			c.Flags = vms.FlagKey | vms.FlagFirst
		}
		if seq <= unsure {
			c.Flags |= vms.FlagTimeUncertain
		}
		c.Start = from.Add(time.Duration(seq-1) * time.Second)
		c.End = c.Start.Add(time.Second)
		s.Append(c)
	}
}

// times lists what a cursor hands out as seconds since right, with a "?" where
// that is uncertain; runs are joined.
func times(t *testing.T, c *Cursor) string {
	t.Helper()
	type span struct {
		from, to time.Duration
		unsure   bool
	}
	var spans []span
	for {
		item, ok, err := pull(c)
		if err != nil || !ok {
			break
		}
		if item.Chunk == nil {
			continue
		}
		n := span{item.Chunk.Start.Sub(right), item.Chunk.End.Sub(right), item.Chunk.Flags.Has(vms.FlagTimeUncertain)}
		if k := len(spans) - 1; k >= 0 && spans[k].to == n.from && spans[k].unsure == n.unsure {
			spans[k].to = n.to
			continue
		}
		spans = append(spans, n)
	}
	var out []string
	for _, n := range spans {
		word := seconds(n.from) + "-" + seconds(n.to)
		if n.unsure {
			word += "?"
		}
		out = append(out, word)
	}
	return strings.Join(out, ", ")
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// gapTimes lists the gaps that the NVR hears of, when they are kept.
func gapTimes(s *Spool) string {
	var out []string
	first := s.Gaps(100) // those that Facts has otherwise are kept first
	s.store.saveGaps(true)
	for _, g := range append(first, s.Gaps(100)...) {
		out = append(out, fmt.Sprintf("%s %s-%s", g.Cause, seconds(g.Start.Sub(right)), seconds(g.End.Sub(right))))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// provisional is a spool with ten chunks and a gap of the wrong time.
func provisional(t *testing.T, cfg Config) (*Store, *Spool) {
	cfg.Origin = boot
	st := store(t, cfg)
	s := st.Spool("ch_1")
	s.DeclareProvisional(vms.Gap{ID: "gap_1", Cause: vms.CauseCameraOffline, TimeRange: vms.TimeRange{Start: wrong.Add(-5 * time.Second), End: wrong}})
	feed(s, epoch, 1, 10, 10, wrong)
	return st, s
}

// TestProvisionalTimeStaysOnTheHub: no lane and no NVR hears of what has no time
// yet, whatever else happens to it; then all of it has its place.
func TestProvisionalTimeStaysOnTheHub(t *testing.T) {
	_, s := provisional(t, Config{RAM: 1 << 20})
	live, back := s.Live("w1", nil), s.Backfill("w1", nil, false)
	s.End(epoch, 10, "camera_offline")
	quiet := func(when string) {
		t.Helper()
		for what, c := range map[string]*Cursor{"live": live, "backfill": back} {
			if got := walk(c); got != "" && got != "EOF" {
				t.Errorf("%s hands out %s %s", what, got, when)
			}
		}
		if h, g := s.Holding(), s.Gaps(10); len(h)+len(g) > 0 || wanted(s) {
			t.Errorf("%s the NVR hears of %v and %v, backfill is wanted: %v", when, h, g, wanted(s))
		}
	}
	quiet("at first")
	s.Skip(epoch, 6)
	quiet("when a GOP was dropped")
	if by := s.Place(epoch, Placement{Shift: right.Sub(wrong), Sure: sure}); by != right.Sub(wrong) {
		t.Errorf("moved by %v", by)
	}
	check(t, "live", times(t, live), "0-4, 8-10")
	check(t, "gaps", gapTimes(s), "camera_offline -5-0, rejected 4-8")
	if h := s.Holding(); len(h) != 2 || !h[0].Start.Equal(right) {
		t.Errorf("holding %v", h)
	}
	// What follows is certain, and goes on where that ends.
	feed(s, epoch, 11, 12, 0, right)
	check(t, "live", times(t, live), "10-12")
	if st := s.Stats(); !st.CapturedUntil.Equal(right.Add(12 * time.Second)) {
		t.Errorf("captured until %v", st.CapturedUntil)
	}
	if by := s.Place(epoch, Placement{Shift: time.Hour}); by != right.Sub(wrong) {
		t.Errorf("placed again, it says %v", by)
	}
}

// TestOldTimesAreBroughtWhileNewOnesWait: what an earlier run knew the time of.
func TestOldTimesAreBroughtWhileNewOnesWait(t *testing.T) {
	cfg := onFlash(t)
	st, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	feed(st.Spool("ch_1"), epoch, 1, 8, 0, right.Add(-time.Hour))
	if err := errors.Join(st.Flush(t.Context()), st.Close()); err != nil {
		t.Fatal(err)
	}
	st = store(t, cfg)
	s := st.Spool("ch_1")
	feed(s, epoch+1, 1, 8, 8, wrong)
	live, back := s.Live("w1", nil), s.Backfill("w1", nil, false)
	check(t, "backfill", times(t, back), "-3600--3592")
	check(t, "live", times(t, live), "")
	s.Place(epoch+1, Placement{Shift: right.Sub(wrong), Sure: sure})
	check(t, "live", times(t, live), "0-8")
}

// TestUncertainWhereTheClockHadDrifted: only what is certain loses its flag, in
// RAM and on flash.
func TestUncertainWhereTheClockHadDrifted(t *testing.T) {
	for name, cfg := range map[string]Config{"RAM": {RAM: 1 << 20}, "flash": onFlash(t)} {
		t.Run(name, func(t *testing.T) {
			st, s := provisional(t, cfg)
			if cfg.Dir != "" {
				if err := st.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			s.Place(epoch, Placement{Shift: right.Sub(wrong), Sure: vms.TimeRange{Start: wrong.Add(3 * time.Second), End: sure.End}})
			check(t, "backfill", times(t, whole(s, nil)), "0-3?, 3-10")
		})
	}
}

// killed is what the next run finds when the agent was killed now: flash, facts
// and documents as they are.
func killed(t *testing.T, cfg Config) Config {
	t.Helper()
	next := cfg
	next.Dir = t.TempDir()
	putFiles(t, next.Dir, filesIn(t, cfg.Dir))
	if d, ok := cfg.Documents.(*documents); ok {
		d.mu.Lock()
		defer d.mu.Unlock()
		c := &documents{docs: map[string]string{}}
		for k, v := range d.docs {
			c.docs[k] = v
		}
		next.Documents = c
	}
	f := cfg.Facts.(*facts)
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &facts{gaps: map[vms.ChannelID][]vms.Gap{}}
	for ch, g := range f.gaps {
		c.gaps[ch] = copyGaps(g)
	}
	next.Facts = c
	return next
}

// clock is a Bridge of a hub that has learnt the time, and what its boots are off by.
func clock(off map[string]time.Duration) Bridge {
	return Bridge{
		Place: func(o Origin, _ time.Duration) (Placement, bool) {
			by, ok := off[o.Boot]
			return Placement{Shift: by, Sure: sure}, ok
		},
		Began: right.Add(time.Hour), Floor: wrong.Add(-24 * time.Hour),
	}
}

// TestKilledBeforeAndAfterPlacing: an agent that is killed between any two steps
// has sent nothing, or the next one goes on as it did.
func TestKilledBeforeAndAfterPlacing(t *testing.T) {
	cfg := onFlash(t)
	docs := &documents{}
	cfg.Documents = docs
	st, s := provisional(t, cfg)
	bridge := clock(map[string]time.Duration{"boot1": right.Sub(wrong) + 7*time.Millisecond})
	const again = "0.007-8.007" // of the ten, two are in RAM
	next := func(when, want, wantGaps string) {
		t.Helper()
		st, err := Open(killed(t, cfg))
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		s := st.Spool("ch_1")
		if !s.PlaceRest(0, bridge) {
			t.Errorf("%s: something is left", when)
		}
		st.work(t.Context())
		check(t, when, times(t, s.Backfill("w1", nil, false)), want)
		check(t, when+", gaps", gapTimes(s), wantGaps)
	}
	for range 2 { // the first two recordings go to flash
		st.io.Lock()
		if err := st.spill(s, false); err != nil {
			t.Fatal(err)
		}
		st.io.Unlock()
	}
	next("killed before the time is known", again, "")
	st.io.Lock()
	if err := s.save(false); err != nil { // a gap that waits for long
		t.Fatal(err)
	}
	st.io.Unlock()
	next("killed with a gap kept", again, "camera_offline -4.993-0.007")

	s.Place(epoch, Placement{Shift: right.Sub(wrong), Sure: sure})
	back := whole(s, nil)
	check(t, "before the placement is kept", times(t, back), "")
	next("killed before the placement is kept", again, "camera_offline -4.993-0.007")
	st.work(t.Context())
	check(t, "when the placement is kept", times(t, back), "0-10")
	// The gap is kept later: until then it is there as it was, under its old name,
	// and a kill would take back what was said of it.
	if g := s.Gaps(10); len(g) > 0 {
		t.Errorf("the NVR hears of %v too early", g)
	}
	next("killed before the gap is kept", "0-8", "camera_offline -4.993-0.007")
	st.io.Lock()
	if err := s.save(false); err != nil {
		t.Fatal(err)
	}
	st.io.Unlock()
	next("killed with all kept", "0-8", "camera_offline -5-0")
	// What was in RAM goes to flash as it was stamped, and comes back placed.
	feed(s, epoch, 11, 14, 0, right)
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	next("killed at the end", "0-14", "camera_offline -5-0")
	puts := docs.puts
	st.work(t.Context())
	if docs.puts != puts {
		t.Error("what has not changed is kept again")
	}
	s.Durable([]vms.ChunkRange{rangeOf(1, 14)})
	st.work(t.Context())
	st.work(t.Context())
	if doc, ok := docs.docs[document]; ok {
		t.Errorf("kept of an epoch that is gone: %s", doc)
	}
}

// TestFlashThatCannotKeepThePlacement must not keep the footage from the lanes.
func TestFlashThatCannotKeepThePlacement(t *testing.T) {
	cfg := onFlash(t)
	docs := &documents{}
	cfg.Documents = docs
	st, s := provisional(t, cfg)
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	docs.fail = errors.New("no flash")
	s.Place(epoch, Placement{Shift: right.Sub(wrong), Sure: sure})
	st.work(t.Context())
	check(t, "backfill", times(t, whole(s, nil)), "0-10")
}

// TestTimeIsLearntWhileABatchIsOnItsWayToFlash.
func TestTimeIsLearntWhileABatchIsOnItsWayToFlash(t *testing.T) {
	cfg := onFlash(t)
	cfg.Documents = &documents{}
	st, s := provisional(t, cfg)
	st.io.Lock()
	chunks, inits := s.takeBatch(cfg.BatchBytes, false)
	s.Place(epoch, Placement{Shift: right.Sub(wrong), Sure: sure})
	check(t, "before it is there", times(t, whole(s, nil)), "")
	b, err := st.write(s, inits, chunks)
	if err != nil {
		t.Fatal(err)
	}
	next, err := Open(killed(t, cfg))
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	check(t, "after a kill", times(t, whole(next.Spool("ch_1"), nil)), "0-4")
	st.used.Add(-s.landed(b))
	st.io.Unlock()
	st.work(t.Context())
	check(t, "backfill", times(t, whole(s, nil)), "0-10")
}

// boots makes what three boots without the time have left on flash: epochs 1 to
// 3, each of ten seconds, that said it was so late when they began.
func boots(t *testing.T, froms ...time.Time) Config {
	cfg := onFlash(t)
	cfg.RAM, cfg.BatchBytes, cfg.Documents = 1<<20, 1<<20, &documents{}
	for i, from := range froms {
		cfg.Origin = Origin{Boot: fmt.Sprint("boot", i+1), Zero: from}
		st, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		feed(st.Spool("ch_1"), vms.Epoch(i+1), 1, 10, 10, from)
		if err := errors.Join(st.Flush(t.Context()), st.Close()); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Origin = Origin{Boot: "boot9", Zero: wrong}
	return cfg
}

func TestEarlierBootsAreBridgedOrEstimated(t *testing.T) {
	const day = 24 * time.Hour
	for name, tt := range map[string]struct {
		froms  []time.Time
		off    map[string]time.Duration
		camera time.Duration // what the camera's clock is off by now; 0: no camera
		want   string
	}{
		// feed's camera shows a second less than an hour less than the provisional time.
		"known by the clock": {
			froms: []time.Time{wrong, wrong.Add(time.Minute)},
			off:   map[string]time.Duration{"boot1": right.Sub(wrong) - time.Minute, "boot2": right.Sub(wrong) + time.Hour},
			want:  "-60--50, 3660-3670",
		},
		"bridged by the camera": {
			froms: []time.Time{wrong, wrong.Add(time.Minute)}, camera: right.Sub(wrong) + 90*time.Minute,
			want: "1801-1811, 1861-1871",
		},
		"bridged by the camera, over hours": {
			froms: []time.Time{wrong, wrong.Add(time.Minute)}, camera: right.Sub(wrong),
			want: "-3599--3589?, -3539--3529?",
		},
		"bridged by a camera that began anew": {
			froms: []time.Time{wrong}, camera: right.Sub(wrong) + 10*day, want: "-10000000--9999990?",
		},
		"estimated":            {froms: []time.Time{wrong, wrong.Add(time.Minute)}, want: "-10000000--9999990?, -9999940--9999930?"},
		"estimated, too late":  {froms: []time.Time{wrong, right.Add(day), right.Add(2 * day)}, want: "-10000000--9999990?, 3580-3600?"},
		"estimated, no order":  {froms: []time.Time{wrong.Add(day), wrong}, want: "-9913600--9913580?"},
		"one known in between": {froms: []time.Time{wrong, wrong, wrong}, off: map[string]time.Duration{"boot2": 5 * time.Second}, want: "-10000005--9999995?, -9999995--9999985, -9999985--9999975?"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := boots(t, tt.froms...)
			st := store(t, cfg)
			s := st.Spool("ch_1")
			b := clock(tt.off)
			b.Wait = true
			later := tt.off == nil || len(tt.off) < len(tt.froms)
			if s.PlaceRest(99, b) == later {
				t.Error("the camera is not waited for, or in vain")
			}
			if tt.camera != 0 {
				c := vms.Chunk{Epoch: 99, Seq: 1, Init: 1, Flags: vms.FlagKey | vms.FlagFirst, Start: right.Add(time.Hour), Payload: make([]byte, 10)}
				c.End, c.CameraTime = c.Start.Add(time.Second), c.Start.Add(-tt.camera)
				s.Append(c)
			} else {
				b.Wait = false
			}
			if !s.PlaceRest(99, b) {
				t.Error("something is left")
			}
			st.work(t.Context())
			got := strings.TrimSuffix(times(t, whole(s, nil)), ", 3600-3601") // the camera's
			check(t, "placed", got, tt.want)
			next, err := Open(killed(t, cfg))
			if err != nil {
				t.Fatal(err)
			}
			defer next.Close()
			check(t, "in the next run", times(t, whole(next.Spool("ch_1"), nil)), tt.want)
		})
	}
}

// TestDroppedBeforeTheTimeIsKnown: a full flash drops provisional footage like
// any other. Its gap survives a kill, and is placed with the rest, or without.
func TestDroppedBeforeTheTimeIsKnown(t *testing.T) {
	cfg := onFlash(t)
	cfg.Documents = &documents{}
	st, s := provisional(t, cfg)
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for len(files(t, cfg.Dir)) > 1 {
		st.io.Lock()
		if err := st.dropFile(); err != nil {
			t.Fatal(err)
		}
		st.io.Unlock()
	}
	next, err := Open(killed(t, cfg))
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	n := next.Spool("ch_1")
	if g := n.Gaps(10); len(g) != 0 {
		t.Errorf("the NVR hears of %v", g)
	}
	n.PlaceRest(0, clock(map[string]time.Duration{"boot1": right.Sub(wrong)}))
	next.work(t.Context())
	check(t, "footage", times(t, whole(n, nil)), "8-10")
	check(t, "gaps", gapTimes(n), "buffer_full 0-8, camera_offline -5-0")
	// All of it: only gaps are left, and where they were from.
	st.io.Lock()
	if err := st.dropFile(); err != nil {
		t.Fatal(err)
	}
	st.io.Unlock()
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	bare, err := Open(killed(t, cfg))
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	n = bare.Spool("ch_1")
	n.PlaceRest(0, clock(map[string]time.Duration{"boot1": right.Sub(wrong)}))
	check(t, "gaps", gapTimes(n), "buffer_full 0-10, camera_offline -5-0")
	check(t, "gaps of the run itself", func() string {
		s.Place(epoch, Placement{Shift: right.Sub(wrong), Sure: sure})
		s.PlaceRest(epoch, clock(map[string]time.Duration{"boot1": right.Sub(wrong)}))
		return gapTimes(s)
	}(), "buffer_full 0-10, camera_offline -5-0")
}

// TestDamagedDocumentIsNone: what it said is estimated.
func TestDamagedDocumentIsNone(t *testing.T) {
	cfg := boots(t, wrong)
	cfg.Documents.(*documents).docs[document] = "{"
	st := store(t, cfg)
	s := st.Spool("ch_1")
	if !s.PlaceRest(0, clock(map[string]time.Duration{"boot1": time.Hour})) {
		t.Error("something is left")
	}
	st.work(t.Context())
	check(t, "placed", times(t, whole(s, nil)), "-10000000--9999990?")
}

// TestPlacingWhileEverythingHappens, for the race detector.
func TestPlacingWhileEverythingHappens(t *testing.T) {
	cfg := onFlash(t)
	cfg.Documents = &documents{}
	cfg.Origin = boot
	st := store(t, cfg)
	start(t, st)
	s := st.Spool("ch_1")
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		c := s.Backfill("w1", nil, false)
		for {
			select {
			case <-stop:
				return
			default:
			}
			item, ok, err := pull(c)
			if err == nil && ok && item.Chunk != nil && item.Chunk.Start.Before(right) {
				t.Errorf("chunk %d at %v", item.Chunk.Seq, item.Chunk.Start)
			}
			s.Holding()
			s.Stats()
			s.Gaps(3)
			s.Resend()
		}
	})
	rnd := rand.New(rand.NewPCG(1, 1))
	for e := vms.Epoch(1); e <= 5; e++ {
		n := uint64(20 + rnd.IntN(40))
		feed(s, e, 1, n, n, wrong)
		s.Place(e, Placement{Shift: right.Sub(wrong) + time.Duration(e)*time.Hour, Sure: sure})
		feed(s, e, n+1, n+20, 0, right.Add(time.Duration(e)*time.Hour))
	}
	close(stop)
	wg.Wait()
}
