package e2e

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

// scaleKinds are the cameras of the tests of many workers: the kinds of
// recordings are other tests' matter.
var scaleKinds = []cameraKind{
	{name: "h264", spec: vmstest.ClipSpec{FPS: 10, GOP: 10, Kbps: 60}},
	{name: "h264_bframes", spec: vmstest.ClipSpec{FPS: 10, GOP: 20, BFrames: 2, Kbps: 60}},
	{name: "h264_aac", spec: vmstest.ClipSpec{GOP: 25, Audio: "aac", Kbps: 100}},
}

// fleet is a split stack, and the cameras whose streams its workers share.
type fleet struct {
	*splitStack
	sources []*source
	of      [][]*source // by hub
	viewers []*follower
	bucket  *bucketWatch
}

// perHub is how many cameras a hub has at the most.
const perHub = 20

// startFleet starts everything and waits until all streams are recorded.
func startFleet(t testing.TB, streams int, kinds []cameraKind, o splitOptions) *fleet {
	t.Helper()
	if o.recording == 0 {
		o.recording = 3 * time.Second
	}
	o.hubs = (streams + perHub - 1) / perHub
	f := &fleet{splitStack: startSplit(t, o), of: make([][]*source, o.hubs)}
	f.bucket = f.watchBucket(500 * time.Millisecond)
	f.come(streams, kinds)
	if o.workers > 0 {
		f.recorded(30*time.Second, time.Now())
		f.spreadEvenly(streams, 20*time.Second)
	}
	return f
}

// come adds cameras, and starts their streams.
func (f *fleet) come(streams int, kinds []cameraKind) {
	f.t.Helper()
	more := make([][]*source, len(f.hubs))
	for i := range streams {
		k, h := kinds[i%len(kinds)], i%len(f.hubs)
		src := startSourceOf(f.t, k, k.media(f.t), fmt.Sprintf("%s %d", k.name, len(f.sources)+1))
		src.ch = f.hubs[h].addChannel(src.name, src.cam.URL())
		f.sources = append(f.sources, src)
		f.of[h], more[h] = append(f.of[h], src), append(more[h], src)
	}
	for i, h := range f.hubs {
		h.begin(more[i])
	}
}

// streams is what all hubs say of their streams, and false when one does not answer.
func (f *fleet) streams() ([]agentStream, bool) {
	var all []agentStream
	for _, h := range f.hubs {
		list, err := h.tryStreams()
		if err != nil {
			return nil, false
		}
		all = append(all, list...)
	}
	return all, true
}

// stop freezes the cameras, and stops the channels when the hubs have all that was sent.
func (f *fleet) stop() {
	f.t.Helper()
	for i, h := range f.hubs {
		h.end(f.of[i])
	}
}

// stored waits until everything of a stopped source is in the store.
func (f *fleet) stored(src *source, within time.Duration) timeline {
	f.t.Helper()
	for i, of := range f.of {
		if slices.Contains(of, src) {
			return f.hubs[i].settledWithin(src.ch, within)
		}
	}
	f.t.Fatalf("%s is no camera of the fleet", src.name)
	return timeline{}
}

// watched has viewers look at every stream, and waits until all of them see it.
func (f *fleet) watched() {
	f.t.Helper()
	for _, src := range f.sources {
		f.viewers = append(f.viewers, f.follow(f.t, src.ch))
	}
	for i, v := range f.viewers {
		f.eventually(20*time.Second, "a viewer sees "+f.sources[i].name, v.sees)
	}
}

// interrupted returns the worst that any viewer saw between from and to, and
// what is usual.
func (f *fleet) interrupted(from, to time.Time) (worst, usual time.Duration) {
	f.t.Helper()
	for i, v := range f.viewers {
		beyond, often, err := v.interruption(from, to)
		if err != nil {
			f.t.Errorf("viewer of %s: %v", f.sources[i].name, err)
		}
		worst, usual = max(worst, beyond), max(usual, often)
	}
	return worst, usual
}

// recorded waits until workers have, of every stream, something that was
// captured after since, and returns how long each stream took from then on.
func (f *fleet) recorded(within time.Duration, since time.Time) map[vms.ChannelID]time.Duration {
	f.t.Helper()
	took := make(map[vms.ChannelID]time.Duration)
	f.eventually(within, "every stream is recorded again", func() bool {
		list, ok := f.streams()
		if !ok {
			f.t.Fatal("a hub's agent does not answer")
		}
		for _, st := range list {
			if _, ok := took[st.Channel]; !ok && st.ReceivedUntil.After(since) {
				took[st.Channel] = time.Since(since)
			}
		}
		return len(took) >= len(f.sources)
	})
	return took
}

// takenOver waits until other workers than dead, which ended at since, have
// footage to store of the streams that it had, and show pictures of what was
// captured since; and returns how long each took. It is more exact than
// recorded: workers tell hubs what they have only every few seconds.
func (f *fleet) takenOver(limit time.Duration, dead *workerNode, streams map[vms.ChannelID]bool, since time.Time) []time.Duration {
	f.t.Helper()
	had, took := make(map[vms.ChannelID]time.Time), make(map[vms.ChannelID]time.Duration)
	f.eventually(limit, "all streams of "+string(dead.id)+" are taken over", func() bool {
		for _, w := range f.workers {
			if w == dead {
				continue
			}
			for _, ch := range w.holds() {
				if had[ch].IsZero() {
					had[ch] = time.Now()
				}
			}
		}
		for i, src := range f.sources {
			at, seen := f.viewers[i].saw(src, since)
			if stored := had[src.ch]; seen && !stored.IsZero() && streams[src.ch] && took[src.ch] == 0 {
				if stored.After(at) {
					at = stored
				}
				took[src.ch] = at.Sub(since)
			}
		}
		return len(took) == len(streams)
	})
	return slices.Sorted(maps.Values(took))
}

// holds lists the channels of which the worker has something to store.
func (w *workerNode) holds() []vms.ChannelID {
	resp, err := http.Get(w.url + "/metrics")
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil
	}
	var out []vms.ChannelID
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, `vms_worker_durable_lag_seconds{channel="`); ok {
			if ch, value, ok := strings.Cut(rest, `"} `); ok && strings.TrimSpace(value) != "0" {
				out = append(out, vms.ChannelID(ch))
			}
		}
	}
	return out
}

// finish stops the cameras and wants all that they sent to be recorded: each
// picture once, in its place, in objects that are the rows'.
func (f *fleet) finish(t *testing.T, name string) tally {
	t.Helper()
	f.stop()
	var all tally
	for _, src := range f.sources {
		tl := f.stored(src, time.Minute)
		got := src.check(t, tl)
		if got.recorded != got.captured || got.doubled > 0 {
			t.Errorf("%s: %d units captured, %d recorded, %d doubled", src.name, got.captured, got.recorded, got.doubled)
		}
		all.add(got)
		f.store.wantRows(t, src.ch, tl)
	}
	for _, w := range f.bucket.end() {
		t.Error(w)
	}
	verdict := "ok"
	if t.Failed() {
		verdict = "FAIL"
	}
	fmt.Printf("fault scale_%s captured %d recorded %d declared %d doubled %d verdict %s\n",
		name, all.captured, all.recorded, max(all.captured-all.recorded, 0), all.doubled, verdict)
	return all
}

// lasts lets real time pass: how long it goes on is part of the test.
func (s *stack) lasts(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.t.Context().Done():
	}
}

// at returns the streams that a worker has, as the API says.
func (f *fleet) at(id vms.WorkerID) map[vms.ChannelID]bool {
	out := make(map[vms.ChannelID]bool)
	for ch, c := range f.channelList() {
		if c.Worker == id {
			out[ch] = true
		}
	}
	return out
}

// TestScale: workers come and go, as processes of their own, and nothing that
// was captured is lost, doubled or altered.
func TestScale(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*testing.T){
		"rolling_drain":   scaleRollingDrain,
		"worker_killed":   scaleWorkerKilled,
		"no_worker":       scaleNoWorker,
		"partition_nvr":   scalePartitionNVR,
		"partition_hub":   scalePartitionHub,
		"two_workers_try": scaleRace,
		"overload":        scaleOverload,
		"nvr_killed":      scaleNVRKilled,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

// Bounds for a machine that does ten other things meanwhile: what is promised is
// measured by TestScaleBench.
const (
	busyInterruption = 3 * time.Second
	busyAgain        = 15 * time.Second
)

// scaleRollingDrain: a deploy. Each worker in turn is told to go, by a signal or
// by the API, goes with status 0, and comes back.
func scaleRollingDrain(t *testing.T) {
	f := startFleet(t, 12, scaleKinds, splitOptions{workers: 3})
	f.watched()
	begin := time.Now()
	f.roll(f.drain)
	worst, usual := f.interrupted(begin, time.Now())
	moves, missed := f.followed()
	t.Logf("%d viewers went over %d times, missed %d pictures, and were interrupted for %v at the most beyond the usual %v", len(f.viewers), moves, missed, worst, usual)
	if worst > busyInterruption {
		t.Errorf("a viewer saw nothing for %v beyond the usual %v", worst, usual)
	}
	if moves < len(f.viewers) {
		t.Errorf("%d moves of %d viewers, want one for each stream at least", moves, len(f.viewers))
	}
	f.finish(t, "rolling_drain")
}

// drain tells a worker to go: every second one by the API, the others by a signal.
func (f *fleet) drain(i int, w *workerNode) {
	f.t.Helper()
	if i%2 == 1 {
		f.call("POST", "/workers/"+string(w.id)+"/drain", nil, nil)
	} else {
		w.signal(syscall.SIGTERM)
	}
}

// roll drains every worker, one after the other, and starts it again.
func (f *fleet) roll(drain func(int, *workerNode)) {
	f.t.Helper()
	for i, w := range f.workers {
		had, begin := f.workerList()[w.id].Assigned, time.Now()
		drain(i, w)
		f.drained(w, 100*time.Second)
		f.t.Logf("worker %s gave away %d streams and ended within %v", w.id, had, time.Since(begin).Round(10*time.Millisecond))
		if left := f.workerList()[w.id]; left.ID != "" {
			f.t.Errorf("the NVR still knows worker %s, which has left in order: %+v", w.id, left)
		}
		f.again(w)
	}
}

// scaleWorkerKilled: a worker dies with what it has, and is started again on its
// directory while others finish what it had begun.
func scaleWorkerKilled(t *testing.T) {
	f := startFleet(t, 6, scaleKinds, splitOptions{workers: 3})
	w := f.workers[0]
	had := f.at(w.id)
	if len(had) != 2 {
		t.Errorf("worker %s has %d streams, want 2", w.id, len(had))
	}
	w.kill()
	worst := time.Duration(0)
	for ch, d := range f.recorded(30*time.Second, time.Now()) {
		if had[ch] {
			worst = max(worst, d)
		}
	}
	t.Logf("the streams of the dead worker are recorded again after %v", worst.Round(time.Millisecond))
	if worst > busyAgain {
		t.Errorf("a stream is recorded again %v after its worker died", worst)
	}
	if st := f.workerList()[w.id].State; st != "lost" {
		t.Errorf("the API calls the dead worker %q, want lost", st)
	}
	f.again(w)
	f.lasts(3 * f.recording)
	f.finish(t, "worker_killed")
}

// scaleNoWorker: there is no worker at first, and later none any more. Hubs keep
// what they have, the API says so, and one that comes gets it all.
func scaleNoWorker(t *testing.T) {
	f := startFleet(t, 3, scaleKinds, splitOptions{})
	hold := func(when string) {
		f.eventually(30*time.Second, "the API says that no worker is there "+when, func() bool {
			list := f.channelList()
			for _, src := range f.sources {
				if !strings.HasPrefix(list[src.ch].Problem, "No worker is there") {
					return false
				}
			}
			return len(list) > 0
		})
		held := make(map[vms.ChannelID]int)
		f.eventually(30*time.Second, "the hub holds more and more "+when, func() bool {
			more := 0
			list, ok := f.streams()
			for _, st := range list {
				if was, ok := held[st.Channel]; !ok {
					held[st.Channel] = st.HeldChunks
				} else if st.HeldChunks >= was+10 {
					more++
				}
			}
			return ok && more == len(f.sources)
		})
	}
	hold("at first")
	f.addWorker()
	f.recorded(30*time.Second, time.Now())
	f.eventually(10*time.Second, "the API has no problem any more", func() bool {
		list := f.channelList()
		for _, src := range f.sources {
			if c := list[src.ch]; c.Problem != "" || c.Worker != f.workers[0].id {
				return false
			}
		}
		return len(list) > 0
	})
	f.workers[0].kill()
	hold("any more")
	f.again(f.workers[0])
	f.recorded(30*time.Second, time.Now())
	// The last one has nobody to give its streams to. It goes on until there is one,
	w := f.workers[0]
	w.signal(syscall.SIGTERM)
	f.eventually(10*time.Second, "the only worker drains", func() bool { return f.workerList()[w.id].State == "draining" })
	f.recorded(30*time.Second, time.Now())
	f.args = []string{"-drain-for", "2s"}
	other := f.addWorker()
	f.drained(w, 30*time.Second)
	// or for as long as it may; what is not stored it keeps for its next run.
	begin := time.Now()
	other.signal(syscall.SIGTERM)
	f.drained(other, 10*time.Second)
	if d := time.Since(begin); d < 2*time.Second {
		t.Errorf("the only worker ended within %v, want 2 s in which another one might have come", d)
	}
	hold("for the second time")
	f.again(other)
	f.recorded(30*time.Second, time.Now())
	f.finish(t, "no_worker")
}

// scaleOverload: more streams come than the only worker takes. It keeps what it
// has and sends the others away, which hold until another worker comes.
func scaleOverload(t *testing.T) {
	const takes = 2
	f := startFleet(t, takes, scaleKinds, splitOptions{workers: 1, workerArgs: []string{"-max-streams", strconv.Itoa(takes)}})
	w := f.workers[0]
	f.come(takes, scaleKinds)
	f.lasts(3 * f.recording)
	has := func(sources []*source, id vms.WorkerID) {
		t.Helper()
		for _, src := range sources {
			// A lane that was sent away again and again comes back every half a minute;
			// the other one brings meanwhile what is captured.
			f.eventually(45*time.Second, fmt.Sprintf("the API calls %s at worker %q", src.name, id), func() bool { return f.at(id)[src.ch] })
		}
	}
	has(f.sources[:takes], w.id)
	has(f.sources[takes:], "")
	f.args = nil
	other := f.addWorker()
	begin := time.Now()
	f.recorded(60*time.Second, begin)
	t.Logf("all streams are recorded %v after another worker has come", time.Since(begin).Round(10*time.Millisecond))
	has(f.sources[:takes], w.id)
	has(f.sources[takes:], other.id)
	f.finish(t, "overload")
}

// scaleNVRKilled: the NVR dies, and with it the store. It has forgotten who
// records what when it is back; workers and hubs tell it, and nobody is moved.
func scaleNVRKilled(t *testing.T) {
	f := startFleet(t, 4, scaleKinds, splitOptions{workers: 2})
	where := func() map[vms.ChannelID]vms.WorkerID {
		out := make(map[vms.ChannelID]vms.WorkerID)
		for ch, c := range f.channelList() {
			out[ch] = c.Worker
		}
		return out
	}
	before, workers := where(), f.workerList()
	f.cloud.kill()
	f.lasts(f.recording)
	f.cloud.start()
	for _, w := range f.workers {
		f.up(w)
		if is, was := f.workerList()[w.id].Instance, workers[w.id].Instance; is != was {
			t.Errorf("worker %s is instance %s, it was %s: it did not outlive the NVR", w.id, is, was)
		}
	}
	f.eventually(30*time.Second, "the streams are where they were", func() bool { return maps.Equal(where(), before) })
	f.eventually(60*time.Second, "the hub is online", f.online)
	f.lasts(10 * time.Second) // in which an NVR that has just started could make up its mind
	if now := where(); !maps.Equal(now, before) {
		t.Errorf("the streams were at %v, and are at %v now that the NVR was started again", before, now)
	}
	f.finish(t, "nvr_killed")
}

// scalePartitionNVR: a worker and the NVR do not hear each other any more, and
// nobody is told. The streams go to the other worker, while the first one is
// well, has what it had, and reaches the store.
func scalePartitionNVR(t *testing.T) {
	f := startFleet(t, 4, scaleKinds, splitOptions{workers: 2, faults: true})
	w := f.workers[0]
	instance := f.workerList()[w.id].Instance
	w.nvr.Stall()
	begin := time.Now()
	f.eventually(15*time.Second, "the other worker has all streams", func() bool { return f.workerList()[f.workers[1].id].Assigned == len(f.sources) })
	t.Logf("the streams are moved %v after the partition", time.Since(begin).Round(10*time.Millisecond))
	f.recorded(30*time.Second, time.Now())
	f.lasts(2 * f.recording)
	w.nvr.Resume()
	f.up(w)
	if is := f.workerList()[w.id].Instance; is != instance {
		t.Errorf("worker %s is back as instance %s, it was %s: it did not live through the partition", w.id, is, instance)
	}
	f.lasts(2 * f.recording)
	f.finish(t, "partition_nvr")
}

// scalePartitionHub: hubs do not reach a worker any more, which the NVR hears
// well. They ask for another one, and what was under way arrives late.
func scalePartitionHub(t *testing.T) {
	f := startFleet(t, 4, scaleKinds, splitOptions{workers: 2, faults: true})
	w := f.workers[0]
	w.hubs.Stall()
	cut := time.Now()
	if !fullChaos {
		// The connections count as dead by now. Each of three that are tried in vain
		// would wait as long.
		f.lasts(16 * time.Second)
		w.hubs.Cut()
	}
	worst := time.Duration(0)
	for _, d := range f.recorded(90*time.Second, cut) {
		worst = max(worst, d)
	}
	t.Logf("all streams are recorded %v after the partition", worst.Round(10*time.Millisecond))
	w.hubs.Resume()
	w.hubs.Restore()
	f.lasts(2 * f.recording)
	f.finish(t, "partition_hub")
}

// scaleRace: a worker stands still with recordings that it cannot store, and its
// streams go on elsewhere. When it wakes up, it and the others have the same
// recordings to store, whole and in part. There is one set of objects in the
// end, and none is ever written over.
func scaleRace(t *testing.T) {
	f := startFleet(t, 4, scaleKinds, splitOptions{workers: 2, faults: true})
	w, other := f.workers[0], f.workers[1]
	w.bucket.Stall()
	f.lasts(2 * f.recording)
	w.signal(syscall.SIGSTOP)
	f.eventually(15*time.Second, "the other worker has all streams", func() bool { return f.workerList()[other.id].Assigned == len(f.sources) })
	f.recorded(30*time.Second, time.Now())
	// Both store from now on: the one what it had, the other what it was given again.
	w.bucket.Resume()
	w.signal(syscall.SIGCONT)
	f.up(w)
	f.lasts(f.recording)
	// And the other way round, with the link to the NVR cut before, so that the
	// streams are at one while the other has them still.
	other.bucket.Stall()
	other.nvr.Cut()
	f.eventually(15*time.Second, "the first worker has all streams", func() bool { return f.workerList()[w.id].Assigned == len(f.sources) })
	f.recorded(30*time.Second, time.Now())
	other.bucket.Resume()
	other.nvr.Restore()
	f.up(other)
	// Whoever waits for hubs that do not come back gives up after half a minute.
	f.lasts(35 * time.Second)
	f.finish(t, "two_workers_try")
}
