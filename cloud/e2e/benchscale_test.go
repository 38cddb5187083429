package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// What many workers promise. `make bench-scale` fails when one is missed.
const (
	scaleStreams    = 60
	scaleWorkers    = 3
	maxInterruption = 500 * time.Millisecond
	maxAgain        = 7 * time.Second
	minAssignments  = 500
	maxImbalance    = 10 // per cent
)

// scaleRecording is the length of a recording: a third of the usual one, so that
// three times as many boundaries are crossed.
const scaleRecording = 30 * time.Second

// TestScaleBench measures what many workers promise, one after the other: they
// would slow each other down.
func TestScaleBench(t *testing.T) {
	if os.Getenv("BENCH_SCALE") == "" {
		t.Skip("it takes minutes: make bench-scale")
	}
	t.Run("assignments", benchAssignments)
	t.Run("streams", benchStreams)
	t.Run("churn", benchChurn)
}

// scaleFleet is 60 streams, or BENCH_SCALE_STREAMS, on three workers. They are
// alike: how many there are is what matters.
func scaleFleet(t *testing.T) *fleet {
	t.Helper()
	n := scaleStreams
	if v := os.Getenv("BENCH_SCALE_STREAMS"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil || n < 1 {
			t.Fatalf("BENCH_SCALE_STREAMS=%q: want a number", v)
		}
	}
	return startFleet(t, n, scaleKinds[:1], splitOptions{stackOptions: stackOptions{recording: scaleRecording}, workers: scaleWorkers})
}

// benchStreams measures what becomes of the live picture while workers are
// drained one after the other, and how soon streams are recorded again when one dies.
func benchStreams(t *testing.T) {
	f := scaleFleet(t)
	b := &bench{stack: f.stack}
	f.watched()
	begin := time.Now()
	f.roll(f.drain)
	f.lasts(2 * scaleRecording)
	worst, usual := f.interrupted(begin, time.Now())
	b.figure("scale_live_pace_ms", float64(usual.Milliseconds()), "ms (between two messages with pictures)")
	b.want("scale_drain_live_interrupted_ms", float64(worst.Milliseconds()), "ms (the worst of all viewers)", func(v float64) bool {
		return v <= float64(maxInterruption.Milliseconds())
	})
	moves, missed := f.followed()
	b.figure("scale_drain_moves", float64(moves), "")
	b.want("scale_drain_pictures_missed", float64(missed), "", func(v float64) bool { return v == 0 })

	list := f.workerList()
	w := slices.MaxFunc(f.workers, func(x, y *workerNode) int { return list[x.id].Assigned - list[y.id].Assigned })
	had := f.at(w.id)
	w.kill()
	killed := time.Now()
	again := f.takenOver(time.Minute, w, had, killed)
	t.Logf("the streams are recorded again after %v", again)
	b.figure("scale_kill_streams", float64(len(had)), "")
	b.want("scale_kill_recording_again_ms", float64(slices.Max(again).Milliseconds()), "ms (the slowest stream)", func(v float64) bool {
		return v <= float64(maxAgain.Milliseconds())
	})
	f.again(w)
	f.lasts(2 * scaleRecording)
	worst, _ = f.interrupted(killed, time.Now())
	b.figure("scale_kill_live_interrupted_ms", float64(worst.Milliseconds()), "ms (the worst of all viewers)")
	f.finish(t, "bench")
}

// followed is how often viewers went over to another worker, and how many
// pictures they never got.
func (f *fleet) followed() (moves, missed int) {
	for _, v := range f.viewers {
		m, lost := v.counts()
		moves, missed = moves+m, missed+lost
	}
	return moves, missed
}

// churnEvery is how often something happens to a worker.
const churnEvery = 20 * time.Second

// benchChurn: for BENCH_SCALE_CHURN a worker is killed, drained or started
// every 20 s, and what was captured from then to the next time is all there.
func benchChurn(t *testing.T) {
	if os.Getenv("BENCH_SCALE_CHURN") == "" {
		t.Skip("set BENCH_SCALE_CHURN, as make bench-scale does: such as to 30m")
	}
	lasts := benchSpan(t, "BENCH_SCALE_CHURN", 0)
	f := scaleFleet(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var events []churnEvent
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		next := time.Now().Add(churnEvery)
		events = append(events, f.disturb(r))
		f.lasts(time.Until(next))
	}
	for _, w := range f.workers {
		if w.gone() {
			f.again(w)
		}
	}
	f.lasts(2 * scaleRecording)
	f.stop()
	spans := make([]tally, len(events))
	for _, src := range f.sources {
		tl := f.stored(src, 2*time.Minute)
		if len(tl.Gaps) != 0 {
			t.Errorf("%s: gaps %+v, want none", src.name, tl.Gaps)
		}
		src.book(t, tl, events, spans)
		f.store.wantRows(t, src.ch, tl)
	}
	for _, w := range f.bucket.end() {
		t.Error(w)
	}
	for i, e := range events {
		n, verdict := spans[i], "ok"
		if n.recorded != n.captured || n.doubled > 0 {
			verdict = "FAIL"
			t.Errorf("%s: %d units captured, %d recorded, %d doubled", e.name, n.captured, n.recorded, n.doubled)
		}
		fmt.Printf("fault scale_churn_%03d_%s captured %d recorded %d declared %d doubled %d verdict %s\n",
			i+1, e.name, n.captured, n.recorded, max(n.captured-n.recorded, 0), n.doubled, verdict)
	}
}

// churnEvent is something that happened to a worker.
type churnEvent struct {
	at   time.Time
	name string
}

// gone reports whether the process has ended.
func (w *workerNode) gone() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// disturb kills, drains or starts a worker; one at least stays up.
func (f *fleet) disturb(r *rand.Rand) churnEvent {
	f.t.Helper()
	list := f.workerList()
	up := 0
	for _, w := range f.workers {
		if !w.gone() && list[w.id].State == "up" {
			up++
		}
	}
	type choice struct {
		what string
		do   func()
	}
	var all []choice
	for _, w := range f.workers {
		switch {
		case w.gone():
			all = append(all, choice{"start_" + string(w.id), w.start})
		case up > 1 || list[w.id].State != "up":
			all = append(all, choice{"kill_" + string(w.id), w.kill})
			if list[w.id].State == "up" {
				all = append(all, choice{"drain_" + string(w.id), func() { w.signal(syscall.SIGTERM) }})
			}
		}
	}
	if len(all) == 0 {
		f.t.Fatalf("nothing can be done to any worker: %+v", list)
	}
	c := all[r.IntN(len(all))]
	e := churnEvent{time.Now(), c.what}
	c.do()
	f.t.Logf("%s; workers were %+v", c.what, list)
	return e
}

// book counts what was sent after each event, up to the next, and what became of it.
func (s *source) book(t *testing.T, tl timeline, events []churnEvent, spans []tally) {
	t.Helper()
	s.mu.Lock() // the camera is frozen
	defer s.mu.Unlock()
	if n := s.cam.Plays(); n != 1 || s.others != 0 {
		t.Errorf("%s: %d sessions with the camera, %d units to a second client; want 1 and 0", s.name, n, s.others)
	}
	sent := s.sent["v"]
	number := make(map[unitSum]int, len(sent))
	for i, u := range sent {
		number[u.sum] = i
	}
	found := make([]int, len(sent))
	newest := -1
	path := filepath.Join(t.TempDir(), "recording.mp4")
	for i, r := range tl.Recordings {
		if i > 0 && !r.Start.Equal(tl.Recordings[i-1].End) {
			t.Errorf("%s: recording %d starts at %v, the one before ends at %v", s.name, i, r.Start, tl.Recordings[i-1].End)
		}
		download(t, r, path)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m, err := readMP4(data)
		if err != nil || len(m.samples) == 0 || !m.samples[0].sync {
			t.Errorf("%s: recording %d of %d bytes: %v, or it does not begin with a keyframe", s.name, i, len(data), err)
			continue
		}
		for _, sample := range m.samples {
			sum, err := s.sum(sample)
			if err != nil {
				t.Fatal(err)
			}
			n, ok := number[sum]
			switch {
			case !ok:
				t.Errorf("%s: recording %d holds a picture that was never sent", s.name, i)
			case found[n] == 0 && n < newest:
				t.Errorf("%s: picture %d comes after picture %d", s.name, n, newest)
			}
			if ok {
				found[n]++
				newest = max(newest, n)
			}
		}
	}
	at := 0
	for i, u := range sent {
		for at+1 < len(events) && !u.at.Before(events[at+1].at) {
			at++
		}
		spans[at].captured++
		if found[i] > 0 {
			spans[at].recorded++
			spans[at].doubled += found[i] - 1
		}
	}
}
