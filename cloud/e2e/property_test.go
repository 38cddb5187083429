package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
)

// Settings of TestProperties. A seed names a schedule, but not in which order
// goroutines run nor how long a retry waits: to see a failure again, run its
// seed a hundred times.
var (
	propertyRuns = os.Getenv("PROPERTY_RUNS") // how many schedules: 150
	propertySeed = os.Getenv("PROPERTY_SEED") // only this one, PROPERTY_RUNS times
	// propertyOnly are the numbers of the steps to do, such as "0,3,4"; and
	// "shrink" finds the fewest that still fail.
	propertyOnly = os.Getenv("PROPERTY_STEPS")
	propertyLog  = os.Getenv("PROPERTY_LOG") != "" // all that was logged, when a run fails
)

// TestProperties drives agents and workers as they are, with an NVR and an
// object store in memory, through random schedules of everything that breaks,
// on a fake clock. It holds them to the invariants of the system:
//
//   - a chunk leaves the hub only when it is durable, or as a declared gap;
//   - recordings of a channel never overlap, and no chunk is in two of them;
//   - the timeline of a range covers the range: each instant is recorded,
//     pending or a gap with a cause, and in the end nothing is pending;
//   - what was captured is lost only where the hub's memory was too small, was
//     lost with the hub, or a worker can never take it;
//   - when all is well again, live records and the hub gets rid of all it holds.
func TestProperties(t *testing.T) {
	runs := 150
	if propertyRuns != "" {
		n, err := strconv.Atoi(propertyRuns)
		if err != nil {
			t.Fatalf("PROPERTY_RUNS: %v", err)
		}
		runs = n
	}
	if testing.Short() {
		runs = min(runs, 20)
	}
	seeds := func(i int) uint64 { return uint64(i) }
	if propertySeed != "" {
		seed, err := strconv.ParseUint(propertySeed, 10, 64)
		if err != nil {
			t.Fatalf("PROPERTY_SEED: %v", err)
		}
		seeds = func(int) uint64 { return seed }
	} else if propertyRuns != "" {
		first := rand.Uint64N(1 << 40)
		seeds = func(i int) uint64 { return first + uint64(i) }
	}
	if propertyOnly == "shrink" {
		shrink(t, seeds(0), runs)
		return
	}
	var next, failed atomic.Int64
	start := time.Now()
	t.Run("schedules", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for i := int(next.Add(1)) - 1; i < runs && failed.Load() < 20; i = int(next.Add(1)) - 1 {
					s := newSchedule(seeds(i)).only(propertyOnly)
					if r := s.run(t); len(r.violations) > 0 {
						failed.Add(1)
						t.Errorf("PROPERTY_SEED=%d: %s", s.seed, r)
					}
				}
			})
		}
	})
	n := min(runs, int(next.Load()))
	t.Logf("figure property_runs=%d failed=%d ms_per_run=%.1f", n, failed.Load(), float64(time.Since(start).Milliseconds())/float64(max(n, 1)))
}

// shrink looks for the fewest steps of a schedule that still fail within so many runs.
func shrink(t *testing.T, seed uint64, runs int) {
	s := newSchedule(seed)
	fails := func(c schedule) *outcome {
		for range runs {
			if r := c.run(t); len(r.violations) > 0 {
				return r
			}
		}
		return nil
	}
	last := fails(s)
	if last == nil {
		t.Fatalf("seed %d does not fail within %d runs", seed, runs)
	}
	for i := len(s.steps) - 1; i >= 0; i-- {
		c := s
		c.steps = slices.Delete(slices.Clone(s.steps), i, i+1)
		if i < len(c.steps) {
			c.steps[i].after += s.steps[i].after
		}
		if r := fails(c); r != nil {
			s, last = c, r
			t.Logf("%d steps still fail", len(s.steps))
		}
	}
	t.Errorf("PROPERTY_SEED=%d PROPERTY_STEPS=%s: %s", seed, s.numbers(), last)
}

// profile is how the world of a schedule is made.
type profile struct {
	workers, channels int
	chunk             time.Duration
	size              int
	gops              []int
	ram, flash        int64
	fileBytes         int64
	batchBytes        int64
	policy            spool.Policy
	roomy             bool // nothing of a schedule can fill the hub's memory
	newestFirst       bool
	governed          bool
	schedule          string
	grace, forget     time.Duration
	reconcile         time.Duration
	events            bool
}

// step is something that happens after the one before.
type step struct {
	n     int
	after time.Duration
	what  string
	i     int           // of which worker or camera
	d     time.Duration // how long
	x     int
}

func (s step) String() string {
	return fmt.Sprintf("%d: +%v %s %d %v %d", s.n, s.after, s.what, s.i, s.d, s.x)
}

type schedule struct {
	seed uint64
	profile
	steps []step
}

// stepKinds are what happens, as often as they stand here.
var stepKinds = strings.Fields(`
	cut cut cut cut outage outage silent silent slow slow acks acks acks delay
	kill kill kill restart restart drain move move move
	storedown storeslow storelies storelies noread
	nvrdown nvrrestart muddle sessions
	agentstop agentcrash agentcrash
	away away codec epoch poison
	calm`)

func newSchedule(seed uint64) schedule {
	rng := rand.New(rand.NewPCG(seed, 0x5eed))
	pick := func(ds ...time.Duration) time.Duration { return ds[rng.IntN(len(ds))] }
	upTo := func(least, most time.Duration) time.Duration {
		return (least + time.Duration(rng.Int64N(int64(most-least)))).Round(10 * time.Millisecond)
	}
	s := schedule{seed: seed}
	p := &s.profile
	p.workers, p.channels = 2+rng.IntN(2), 1+rng.IntN(5)/4
	p.chunk = pick(500*time.Millisecond, time.Second)
	p.size = 200 << rng.IntN(4)
	for range 1 + rng.IntN(4) {
		p.gops = append(p.gops, 1+rng.IntN(8))
	}
	if rng.IntN(5) == 0 {
		p.gops = append(p.gops, 20+rng.IntN(80))
	}
	// A chunk takes size bytes on average, one in a GOP three times as many, and
	// 256 bytes of the spool.
	second := int64(float64(2*p.size+400) * float64(time.Second) / float64(p.chunk))
	p.ram = second * int64(p.channels) * 3600
	p.roomy = true
	if rng.IntN(2) == 0 {
		p.ram = second * int64(15+rng.IntN(60)) // some hold little more than one recording
		p.roomy = false
	}
	if rng.IntN(5) < 3 {
		p.flash, p.fileBytes, p.batchBytes = 64<<20, 64<<10<<rng.IntN(3), p.ram/6
		switch rng.IntN(4) {
		case 0:
			p.flash, p.fileBytes, p.roomy = 3<<20, 256<<10, false
			p.policy = spool.Policy(rng.IntN(2))
		}
	}
	p.newestFirst = rng.IntN(3) == 0
	p.governed = rng.IntN(2) == 0
	if p.governed && rng.IntN(3) == 0 {
		p.schedule = fmt.Sprint(second * 8 * int64(p.channels) * 2 * int64(1+rng.IntN(5)))
	}
	p.grace, p.forget = pick(5*time.Second, 30*time.Second), pick(20*time.Second, time.Minute, 10*time.Minute)
	p.reconcile = pick(time.Minute, time.Hour)
	p.events = rng.IntN(10) < 7
	for n := range 3 + rng.IntN(20) {
		st := step{n: n, what: stepKinds[rng.IntN(len(stepKinds))]}
		switch rng.IntN(4) {
		case 0:
			st.after = upTo(0, 300*time.Millisecond)
		case 1:
			st.after = upTo(0, 3*time.Second)
		default:
			st.after = upTo(0, 25*time.Second)
		}
		switch rng.IntN(3) {
		case 0:
			st.d = upTo(100*time.Millisecond, 3*time.Second)
		case 1:
			st.d = upTo(3*time.Second, 15*time.Second)
		default:
			st.d = upTo(15*time.Second, 70*time.Second)
		}
		st.i, st.x = rng.IntN(6), rng.IntN(1000)
		s.steps = append(s.steps, st)
	}
	return s
}

// only leaves the steps whose numbers are listed.
func (s schedule) only(numbers string) schedule {
	if numbers == "" {
		return s
	}
	var out []step
	var skipped time.Duration
	for _, st := range s.steps {
		if slices.Contains(strings.Split(numbers, ","), strconv.Itoa(st.n)) {
			st.after += skipped
			out, skipped = append(out, st), 0
		} else {
			skipped += st.after
		}
	}
	s.steps = out
	return s
}

func (s schedule) numbers() string {
	var out []string
	for _, st := range s.steps {
		out = append(out, strconv.Itoa(st.n))
	}
	return strings.Join(out, ",")
}

// outcome is what a run came to.
type outcome struct {
	schedule   schedule
	violations []string
	log        []string
}

func (o *outcome) String() string {
	var b strings.Builder
	for _, v := range o.violations {
		fmt.Fprintf(&b, "\n  %s", v)
	}
	fmt.Fprintf(&b, "\n  world: %+v\n  steps:", o.schedule.profile)
	for _, st := range o.schedule.steps {
		fmt.Fprintf(&b, "\n    %s", st)
	}
	for _, l := range o.log {
		fmt.Fprintf(&b, "\n  | %s", l)
	}
	return b.String()
}

// run plays the schedule in a bubble of its own.
func (s schedule) run(t *testing.T) *outcome {
	o := &outcome{schedule: s}
	dir := simDir(t)
	defer os.RemoveAll(dir)
	// A run that never ends, or spins, cannot tell its seed.
	hung := time.AfterFunc(2*time.Minute, func() {
		fmt.Fprintf(os.Stderr, "PROPERTY_SEED=%d hangs: %s\n", s.seed, o)
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		os.Exit(1)
	})
	defer hung.Stop()
	synctest.Test(t, func(*testing.T) {
		w := newWorld(s, dir)
		w.play()
		if w.heal() {
			w.finalCheck()
		}
		w.end()
		o.violations = w.violations
		if len(o.violations) > 0 && propertyLog {
			o.log = w.log.lines()
		}
	})
	return o
}

// simDir makes a directory, on a file system in memory where there is one: it
// is not the disk that is tested.
func simDir(t *testing.T) string {
	t.Helper()
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = ""
	}
	dir, err := os.MkdirTemp(parent, "vms-property-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// world is everything that a schedule happens to.
type world struct {
	schedule
	dir     string
	log     *simLog
	bucket  *simBucket
	cloud   *simCloud
	workers []*simWorker
	cameras []*simCamera
	hub     *simHub

	noSession atomic.Bool
	over      chan struct{} // closed in the end
	stopCams  chan struct{}
	camWait   sync.WaitGroup
	laterWait sync.WaitGroup

	forgotten map[chunkID]bool // held when the agent ended in order
	crashed   bool             // the hub's memory was lost, and not looked at since

	mu         sync.Mutex
	rng        *rand.Rand
	violations []string
}

func newWorld(s schedule, dir string) *world {
	w := &world{schedule: s, dir: dir, over: make(chan struct{}), stopCams: make(chan struct{}), rng: rand.New(rand.NewPCG(s.seed, 2))}
	w.log = newSimLog(w)
	w.cloud = &simCloud{w: w, store: nvrtest.NewStore(), sids: map[vms.ChannelID]vms.SID{}, known: map[vms.WorkerID]vms.WorkerInfo{}, lines: map[vms.WorkerID]*simWorkerLine{}, sessions: map[*simSession]bool{}}
	w.bucket = &simBucket{rng: rand.New(rand.NewPCG(s.seed, 3)), objects: map[string]simObject{}, ever: map[vms.ChannelID]*vms.ChunkSet{}, created: w.cloud.created}
	var chs []vms.ChannelID
	for i := range s.channels {
		c := &simCamera{ch: vms.ChannelID("ch_" + strconv.Itoa(i+1)), chunk: s.chunk, gops: s.gops, size: s.size,
			phase: simRecording * time.Duration(i) / time.Duration(s.channels), rng: rand.New(rand.NewPCG(s.seed, uint64(10+i)))}
		w.cameras = append(w.cameras, c)
		chs = append(chs, c.ch)
	}
	w.cloud.begin(chs)
	name := simNames.Add(1)
	for i := range s.profile.workers {
		id := vms.WorkerID("w" + strconv.Itoa(i+1))
		wk := &simWorker{w: w, id: id, net: newSimNet(fmt.Sprintf("%s-%d.simulated", id, name))}
		w.workers = append(w.workers, wk)
		wk.start()
	}
	for _, c := range w.cameras {
		w.camWait.Go(func() { c.run(w.stopCams) })
	}
	w.hub = &simHub{w: w, facts: simFacts{gaps: map[vms.ChannelID]map[vms.GapID]vms.Gap{}}}
	w.hub.start()
	return w
}

func (w *world) camera(ch vms.ChannelID) *simCamera {
	for _, c := range w.cameras {
		if c.ch == ch {
			return c
		}
	}
	return nil
}

func (w *world) intn(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

// chance is true once in n times.
func (w *world) chance(n int) bool { return w.intn(n) == 0 }

func (w *world) upTo(d time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.rng.Int64N(int64(d)))
}

func (w *world) violation(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.violations) < 12 {
		w.violations = append(w.violations, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

// later runs f after d, unless the run is over.
func (w *world) later(d time.Duration, f func()) {
	w.laterWait.Go(func() {
		select {
		case <-w.over:
		case <-time.After(d):
			f()
		}
	})
}

// within waits for wg, at most so long.
func (w *world) within(d time.Duration, wg *sync.WaitGroup) bool {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// play does the steps.
func (w *world) play() {
	time.Sleep(2 * time.Second)
	for _, st := range w.steps {
		w.pause(st.after)
		w.log.logger("STEP").Info("next", "step", st)
		w.do(st)
	}
	w.pause(3 * time.Second)
}

// pause lets time pass, and looks what the hub has let go.
func (w *world) pause(d time.Duration) {
	for d > 0 {
		n := min(d, 2*time.Second)
		time.Sleep(n)
		d -= n
		w.checkReleased()
	}
}

func (w *world) do(st step) {
	wk := w.workers[st.i%len(w.workers)]
	cam := w.cameras[st.i%len(w.cameras)]
	each := func(f func(*simNet)) { // one worker's way, or all: the hub's own uplink
		if st.x%3 == 0 {
			wk.net.set(f)
			return
		}
		for _, o := range w.workers {
			o.net.set(f)
		}
	}
	switch st.what {
	case "cut":
		for _, o := range w.workers {
			o.net.cut(st.x%4 == 0)
		}
	case "outage":
		each(func(n *simNet) { n.down = true })
		for _, o := range w.workers {
			if o == wk || st.x%3 != 0 {
				o.net.cut(st.x%4 == 0)
			}
		}
		both := st.x%2 == 0
		if both {
			w.noSession.Store(true)
			w.cloud.cutSessions()
		}
		w.later(st.d, func() {
			each(func(n *simNet) { n.down = false })
			w.noSession.Store(false)
		})
	case "silent":
		each(func(n *simNet) { n.silent = true })
		w.later(st.d, func() { each(func(n *simNet) { n.silent = false }) })
	case "slow":
		rate := float64(w.size) * float64(time.Second) / float64(w.chunk) * float64(w.channels) * []float64{0.5, 1, 1.5, 3, 10}[st.x%5]
		each(func(n *simNet) { n.rate = rate })
		w.later(st.d, func() { each(func(n *simNet) { n.rate = 0 }) })
	case "delay":
		each(func(n *simNet) { n.delay = time.Duration(st.x) * time.Millisecond })
		w.later(st.d, func() { each(func(n *simNet) { n.delay = 0 }) })
	case "acks":
		each(func(n *simNet) { n.cutAck, n.eat, n.oneSide = 1+st.x%3, st.x%7, st.x%4 == 0 })
		w.later(st.d, func() { each(func(n *simNet) { n.cutAck, n.eat, n.oneSide = 0, 0, false }) })
	case "kill", "restart":
		wk.end(st.what == "kill")
		w.later(st.d/2, wk.start)
	case "drain":
		wk.end(false)
		w.later(st.d, wk.start)
	case "move":
		w.move(cam.ch)
	case "storedown":
		w.bucket.set(func(b *simBucket) { b.down = true })
		w.later(st.d, func() { w.bucket.set(func(b *simBucket) { b.down = false }) })
	case "storeslow":
		w.bucket.set(func(b *simBucket) { b.slow = time.Duration(st.x*20) * time.Millisecond })
		w.later(st.d, func() { w.bucket.set(func(b *simBucket) { b.slow = 0 }) })
	case "storelies":
		w.bucket.set(func(b *simBucket) { b.lies = 1 + st.x%4 })
	case "noread":
		w.bucket.set(func(b *simBucket) { b.noRead = true })
		w.later(st.d, func() { w.bucket.set(func(b *simBucket) { b.noRead = false }) })
	case "nvrdown":
		w.cloud.setDown(true)
		w.later(st.d, func() { w.cloud.setDown(false) })
	case "nvrrestart":
		w.cloud.restart()
	case "muddle":
		w.cloud.setMuddle(true)
		w.later(st.d, func() { w.cloud.setMuddle(false) })
	case "sessions":
		w.noSession.Store(true)
		w.cloud.cutSessions()
		w.later(st.d, func() { w.noSession.Store(false) })
	case "agentstop":
		w.hub.stop()
		w.pause(st.d / 4)
		w.hub.start()
	case "agentcrash":
		w.hub.crash()
		w.pause(st.d / 4)
		w.hub.start()
	case "away":
		cam.leave(st.d)
	case "codec", "epoch", "poison":
		cam.change(st.what)
	case "calm":
		w.calm()
		w.pause(20 * time.Second)
	default:
		panic(st.what)
	}
}

// move asks the NVR for another worker although nothing is wrong.
func (w *world) move(ch vms.ChannelID) {
	if w.hub.boot == nil {
		return
	}
	for _, s := range w.hub.boot.streams {
		if s.ch == ch {
			s.ask()
		}
	}
}

// calm makes all well that is not well.
func (w *world) calm() {
	w.noSession.Store(false)
	w.cloud.setDown(false)
	w.cloud.setMuddle(false)
	w.bucket.set(func(b *simBucket) { b.down, b.slow, b.lies, b.noRead = false, 0, 0, false })
	for _, wk := range w.workers {
		wk.net.set(func(n *simNet) {
			n.down, n.silent, n.rate, n.delay, n.cutAck, n.eat, n.oneSide = false, false, 0, 0, 0, 0, false
		})
		wk.start()
	}
	w.hub.start()
}

// end stops everything.
func (w *world) end() {
	close(w.over)
	w.laterWait.Wait()
	w.hub.stop()
	for _, wk := range w.workers {
		wk.end(false)
	}
	w.cloud.mu.Lock()
	w.cloud.stop()
	w.cloud.mu.Unlock()
	for _, wk := range w.workers {
		if !w.within(5*time.Minute, &wk.wait) {
			w.violation("worker %s does not end", wk.id)
		}
		wk.net.close()
	}
	w.camWait.Wait()
	w.cloud.wait.Wait()
}
