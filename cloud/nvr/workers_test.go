package nvr_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

func TestStreamsOfADeadWorkerMove(t *testing.T) {
	f := newFleet(t, nil)
	for _, id := range []vms.WorkerID{"w1", "w2", "w3"} {
		f.up(id, nil)
	}
	all := f.joined(30, "")
	f.want("in the beginning", all, map[vms.WorkerID]int{"w1": 10, "w2": 10, "w3": 10})
	f.kill("w2")
	f.pass(1800 * time.Millisecond)
	f.want("while it may come back", all, map[vms.WorkerID]int{"w1": 10, "w2": 10, "w3": 10})
	if s := f.status("w2"); s.State != nvr.WorkerLost || s.Assigned != 10 {
		t.Errorf("status %+v, want lost with its streams", s)
	}
	f.pass(400 * time.Millisecond)
	f.want("when it is dead", all, map[vms.WorkerID]int{"w1": 15, "w3": 15})
	for _, a := range all {
		if as := a.at(); as.Generation == 2 && as.Why != wire.WhyLost || as.Generation > 2 {
			t.Errorf("moved with generation %d and why %q", as.Generation, as.Why)
		}
	}
	if s := f.status("w2"); s.State != nvr.WorkerLost || s.Assigned != 0 {
		t.Errorf("status %+v, want lost without streams", s)
	}
	f.pass(11 * time.Minute)
	if s := f.status("w2"); s.ID != "" {
		t.Errorf("still listed: %+v", s)
	}
}

func TestWorkerThatComesBackInTimeKeepsItsStreams(t *testing.T) {
	f := newFleet(t, nil)
	w1 := f.up("w1", nil)
	f.up("w2", nil)
	all := f.joined(4, "")
	f.kill("w1")
	f.pass(time.Second)
	line := f.Worker(t, w1.info) // the same process
	w1.link, w1.mute = line, false
	f.pass(10 * time.Second)
	f.want("after all", all, map[vms.WorkerID]int{"w1": 2, "w2": 2})
	if s := f.status("w1"); s.State != nvr.WorkerUp || s.Assigned != 2 {
		t.Errorf("status %+v", s)
	}
	// A second link of the process, before we knew that the first broke.
	again := f.Worker(t, w1.info)
	if _, replaced := line.Told(); replaced != 1 {
		t.Error("the older link was not replaced")
	}
	f.WorkerDown("w1", w1.info.Instance, line) // late
	if s := f.status("w1"); s.State != nvr.WorkerUp {
		t.Errorf("the end of the older link made it %s", s.State)
	}
	f.WorkerDown("w1", "another", again)
	if s := f.status("w1"); s.State != nvr.WorkerUp {
		t.Errorf("the end of another instance made it %s", s.State)
	}
}

func TestSilentWorkerIsDead(t *testing.T) {
	f := newFleet(t, nil)
	w1 := f.up("w1", nil)
	f.up("w2", nil)
	all := f.joined(4, "")
	w1.mute = true // half open: nobody says that the line broke
	f.pass(3600 * time.Millisecond)
	f.want("after 3.6 s", all, map[vms.WorkerID]int{"w1": 2, "w2": 2})
	f.pass(1400 * time.Millisecond)
	f.want("after 5 s", all, map[vms.WorkerID]int{"w2": 4})
	w1.mute = false
	f.pass(2 * time.Second)
	if s := f.status("w1"); s.State != nvr.WorkerUp || s.Assigned != 0 {
		t.Errorf("when it is heard again: %+v", s)
	}
	for range 2 {
		f.stream("").join("")
	}
	f.want("new ones", f.streams, map[vms.WorkerID]int{"w1": 2, "w2": 4})
}

// Whoever was stopped itself has heard nobody, which says nothing.
func TestOwnSleepKillsNoWorker(t *testing.T) {
	f := newFleet(t, nil)
	f.up("w1", nil)
	f.up("w2", nil)
	all := f.joined(4, "")
	f.pass(5 * time.Second)
	f.Clock.Add(time.Hour)
	f.pass(5 * time.Second)
	f.want("after an hour's sleep", all, map[vms.WorkerID]int{"w1": 2, "w2": 2})
	for _, a := range all {
		if a.at().Generation != 1 {
			t.Errorf("channel %s was moved", a.ch)
		}
	}
}

func TestDrain(t *testing.T) {
	for name, begin := range map[string]func(f *fleet){
		"by the API": func(f *fleet) {
			if err := f.DrainWorker(f.t.Context(), "w1"); err != nil {
				f.t.Fatal(err)
			}
		},
		"by itself": func(f *fleet) { f.workers["w1"].load.Draining = true },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, func(c *nvr.Config) { c.RebalanceEvery = time.Hour })
			w1 := f.up("w1", nil)
			all := f.joined(40, "")
			begin(f)
			f.pass(15 * time.Second)
			f.want("without another worker", all, map[vms.WorkerID]int{"w1": 40})
			if s := f.status("w1"); s.State != nvr.WorkerDraining {
				t.Errorf("state %s", s.State)
			}
			late := f.stream("")
			late.join("")
			if as := late.at(); as.Worker != "" {
				t.Errorf("a new stream was assigned to %s, which drains", as.Worker)
			}
			f.up("w2", nil)
			f.pass(time.Second)
			if n := counts(all)["w2"]; n < 1 || n > 15 {
				t.Errorf("%d of 40 went in the first second, want some", n)
			}
			if late.at().Worker != "w2" {
				t.Error("the new stream does not go to the new worker")
			}
			f.pass(9 * time.Second)
			f.want("after 10 s", all, map[vms.WorkerID]int{"w2": 40})
			for _, a := range all {
				if as := a.at(); as.Why != wire.WhyDrain || as.Generation != 2 {
					t.Fatalf("moved with generation %d, why %q", as.Generation, as.Why)
				}
			}
			f.kill("w1")
			if s := f.status("w1"); s.ID != "" {
				t.Errorf("still listed after it left: %+v", s)
			}
			w1.mute = true
			f.pass(5 * time.Second)
			f.want("in the end", all, map[vms.WorkerID]int{"w2": 40})
		})
	}
	t.Run("of nobody", func(t *testing.T) {
		if err := newFleet(t, nil).DrainWorker(t.Context(), "w1"); !errors.Is(err, vms.ErrNotFound) {
			t.Errorf("= %v, want ErrNotFound", err)
		}
	})
	t.Run("is told once more over a new link", func(t *testing.T) {
		f := newFleet(t, nil)
		w1 := f.up("w1", nil)
		if err := f.DrainWorker(t.Context(), "w1"); err != nil {
			t.Fatal(err)
		}
		if drained, _ := w1.link.Told(); drained != 1 {
			t.Errorf("told %d times, want once", drained)
		}
		w1.link = f.Worker(t, w1.info)
		if drained, _ := w1.link.Told(); drained != 1 {
			t.Errorf("told %d times over the new link, want once", drained)
		}
		w1 = f.again("w1")
		if drained, _ := w1.link.Told(); drained != 0 || f.status("w1").State != nvr.WorkerUp {
			t.Error("another process with that name drains, too")
		}
	})
	t.Run("of many takes ten seconds", func(t *testing.T) {
		f := newFleet(t, nil)
		f.up("w1", nil)
		all := f.joined(500, "")
		f.up("w2", nil)
		if err := f.DrainWorker(t.Context(), "w1"); err != nil {
			t.Fatal(err)
		}
		f.pass(5 * time.Second)
		if n := counts(all)["w2"]; n < 200 || n > 300 {
			t.Errorf("%d of 500 went in 5 s, want about half", n)
		}
		f.pass(6 * time.Second)
		f.want("after 11 s", all, map[vms.WorkerID]int{"w2": 500})
	})
}

// again starts a worker's process anew, after a moment.
func (f *fleet) again(id vms.WorkerID) *node {
	f.t.Helper()
	f.kill(id)
	f.pass(time.Second)
	return f.up(id, nil)
}

func TestRestartedWorkerGetsItsStreamsBack(t *testing.T) {
	f := newFleet(t, nil)
	f.up("w1", nil)
	f.up("w2", nil)
	all := f.joined(10, "")
	f.up("w3", nil)
	before := make(map[*agent]vms.WorkerID)
	for _, a := range all {
		f.laneUp(a)
		before[a] = a.at().Worker
	}
	f.again("w1")
	f.pass(time.Second)
	for _, a := range all {
		if as := a.at(); as.Worker != before[a] {
			t.Errorf("went from %s to %s, which has nothing of it", before[a], as.Worker)
		}
		if as := a.at(); as.Worker == "w1" && (as.Why != wire.WhyLost || as.Generation != 2) {
			t.Errorf("told %q, generation %d: the agent would not drop a line that leads nowhere", as.Why, as.Generation)
		}
	}
}

func TestOneIDForTwoProcesses(t *testing.T) {
	f := newFleet(t, nil)
	w1 := f.up("w1", nil)
	all := f.joined(3, "")
	twin := w1.info
	twin.Instance = "twin"
	for range 20 {
		if err := f.WorkerUp(twin, &nvrtest.WorkerLink{}); !errors.Is(err, vms.ErrConflict) || !strings.Contains(err.Error(), "w1") {
			t.Fatalf("WorkerUp = %v, want ErrConflict", err)
		}
		f.pass(time.Second)
	}
	f.want("in spite of a twin", all, map[vms.WorkerID]int{"w1": 3})
	if a := all[0].at(); a.Generation != 1 {
		t.Error("the twin had a stream moved")
	}
	w1.mute = true // killed, and its line is half open
	f.pass(3 * time.Second)
	if err := f.WorkerUp(twin, &nvrtest.WorkerLink{}); err != nil {
		t.Errorf("WorkerUp = %v once the other one is not heard", err)
	}
	if _, replaced := w1.link.Told(); replaced != 1 {
		t.Error("its line was not replaced")
	}
}

func TestWorkerMustBeUsable(t *testing.T) {
	good := vms.WorkerInfo{ID: "w1", Instance: "i1", PushURL: "wss://w1/push/v1", LiveURL: "wss://w1/live/v1/mse", Zone: "eu-1", Version: "1.2.3"}
	f := newFleet(t, nil)
	for name, change := range map[string]func(*vms.WorkerInfo){
		"no id": func(w *vms.WorkerInfo) { w.ID = "" }, "wild id": func(w *vms.WorkerInfo) { w.ID = "../w" },
		"no instance": func(w *vms.WorkerInfo) { w.Instance = "" }, "no push URL": func(w *vms.WorkerInfo) { w.PushURL = "" },
		"HTTP": func(w *vms.WorkerInfo) { w.PushURL = "http://w1/" }, "live HTTP": func(w *vms.WorkerInfo) { w.LiveURL = "http://w1/" },
		"long URL": func(w *vms.WorkerInfo) { w.PushURL += strings.Repeat("x", 2000) }, "zone": func(w *vms.WorkerInfo) { w.Zone = "EU 1" },
		"capacity": func(w *vms.WorkerInfo) { w.Capacity.Streams = -1 }, "version": func(w *vms.WorkerInfo) { w.Version = strings.Repeat("1", 65) },
	} {
		w := good
		change(&w)
		if err := f.WorkerUp(w, &nvrtest.WorkerLink{}); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if err := f.WorkerUp(good, nil); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("without a link: %v", err)
	}
	if err := f.WorkerUp(good, &nvrtest.WorkerLink{}); err != nil {
		t.Errorf("a good one: %v", err)
	}
	f.WorkerAlive("w1", "i1", vms.WorkerLoad{Lanes: 7})
	f.WorkerAlive("w1", "i0", vms.WorkerLoad{Lanes: 8})
	f.WorkerAlive("w9", "i1", vms.WorkerLoad{Lanes: 9})
	if all := f.Workers(); len(all) != 1 || all[0].WorkerInfo != good || all[0].Lanes != 7 || !all[0].Since.Equal(f.Clock.Now()) {
		t.Errorf("workers %+v", all)
	}
}

func TestNoWorkerAtAll(t *testing.T) {
	f := newFleet(t, nil)
	a := f.stream("")
	a.join("")
	state := func(s string) {
		t.Helper()
		if err := f.State(t.Context(), a.s, &wire.StreamState{State: s}); err != nil {
			t.Fatal(err)
		}
	}
	problem := func() string {
		t.Helper()
		c, err := f.NVR.Channel(t.Context(), acct, a.ch)
		if err != nil {
			t.Fatal(err)
		}
		return c.Problem
	}
	const sentence = "No worker is there to record; the hub keeps the footage."
	state(wire.StateBuffering)
	if p := problem(); p != sentence {
		t.Errorf("problem %q, want that no worker is there", p)
	}
	if _, err := f.Live(t.Context(), acct, a.ch, false); !errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Live = %v", err)
	}
	state(wire.StateNoCamera)
	if p := problem(); p != "" {
		t.Errorf("problem %q although there is nothing to record", p)
	}
	state(wire.StateBuffering)
	f.up("w1", nil)
	f.pass(200 * time.Millisecond)
	if as := a.at(); as.Worker != "w1" || as.Generation != 1 || as.Why != wire.WhyStart {
		t.Errorf("assigned %+v", as)
	}
	if p := problem(); p != "" {
		t.Errorf("problem %q with a worker", p)
	}
	f.kill("w1")
	f.pass(5 * time.Second)
	if p := problem(); p != sentence {
		t.Errorf("problem %q when the last worker is dead", p)
	}
	f.up("w2", nil)
	f.pass(200 * time.Millisecond)
	if as := a.at(); as.Worker != "w2" || as.Generation != 2 || as.Why != wire.WhyLost {
		t.Errorf("assigned %+v after the death", as)
	}
}

// The store is away when a worker dies: nothing is forgotten.
func TestDeathDuringAStoreOutage(t *testing.T) {
	f := newFleet(t, nil)
	f.up("w1", nil)
	all := f.joined(5, "")
	f.up("w2", nil)
	f.kill("w1")
	f.Store.Fail(errors.New("disk on fire"))
	for range 20 {
		f.Clock.Add(200 * time.Millisecond)
		f.WorkerAlive("w2", f.workers["w2"].info.Instance, vms.WorkerLoad{})
		_ = f.TendWorkers(t.Context())
	}
	f.want("in the outage", all, map[vms.WorkerID]int{"w1": 5})
	f.Store.Fail(nil)
	f.pass(200 * time.Millisecond)
	f.want("after it", all, map[vms.WorkerID]int{"w2": 5})
}

func TestRevokedStreamsAreCutOffAtEveryWorker(t *testing.T) {
	f := newFleet(t, nil)
	w1, w2 := f.up("w1", nil), f.up("w2", nil)
	f.up("w3", nil)
	a := f.joined(3, "")
	for _, x := range a {
		f.laneUp(x)
	}
	f.kill("w2")
	if err := f.DeleteChannel(t.Context(), acct, a[0].ch); err != nil {
		t.Fatal(err)
	}
	if got := w1.link.Revoked(); !slices.Equal(got, []vms.SID{a[0].s.SID}) {
		t.Errorf("w1 was told of %v", got)
	}
	if !a[0].revoked {
		t.Error("the agent was not told")
	}
	f.pass(5 * time.Second)
	w2.mute = false
	if got := f.Worker(t, w2.info).Revoked(); !slices.Equal(got, []vms.SID{a[0].s.SID}) { // a partition that healed
		t.Errorf("w2 was told of %v when it came back", got)
	}
	// A restart of ours, meanwhile: the worker says what it has, and is told.
	link := f.Worker(t, w2.info)
	e := vms.StreamEvent{Channel: a[1].ch, SID: a[1].s.SID, Generation: 9, Worker: "w2", Instance: w2.info.Instance, Lane: vms.LaneLive, At: f.Clock.Now()}
	if err := f.StreamStarted(t.Context(), e); err != nil || len(link.Revoked()) != 0 {
		t.Errorf("StreamStarted = %v, revoked %v", err, link.Revoked())
	}
	if err := f.Store.RevokeSession(a[2].s.SID); err != nil {
		t.Fatal(err)
	}
	a[2].leave()
	e.Channel, e.SID = a[2].ch, a[2].s.SID
	if err := f.StreamStarted(t.Context(), e); err != nil || !slices.Equal(link.Revoked(), []vms.SID{a[2].s.SID}) {
		t.Errorf("StreamStarted = %v, revoked %v, want the stream cut off", err, link.Revoked())
	}
}

func TestStreamingEndsWithItsWorker(t *testing.T) {
	f := newFleet(t, nil)
	w1 := f.up("w1", nil)
	a := f.joined(1, "")[0]
	events := f.Subscribe(t.Context(), acct)
	f.laneUp(a)
	if e := recv(t, events); e.Type != nvr.EventStreamingStarted {
		t.Errorf("event %+v", e)
	}
	f.kill("w1")
	f.pass(5 * time.Second)
	if e := recv(t, events); e.Type != nvr.EventStreamingEnded || e.Cause != "worker_lost" || e.Channel != a.ch {
		t.Errorf("event %+v", e)
	}
	if c, err := f.NVR.Channel(t.Context(), acct, a.ch); err != nil || c.Streaming {
		t.Errorf("channel %+v, %v, want that it does not stream", c, err)
	}
	if _, err := f.Live(t.Context(), acct, a.ch, false); !errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Live = %v, want unavailable", err)
	}
	w1.mute, w1.link = false, f.Worker(t, w1.info) // it was only a partition, and nobody else was there
	if e := recv(t, events); e.Type != nvr.EventStreamingStarted {
		t.Errorf("event %+v", e)
	}
	if c, err := f.NVR.Channel(t.Context(), acct, a.ch); err != nil || !c.Streaming || c.Worker != "w1" {
		t.Errorf("channel %+v, %v, want that it streams", c, err)
	}
	f.again("w1")
	if e := recv(t, events); e.Type != nvr.EventStreamingEnded {
		t.Errorf("event %+v when it was started anew", e)
	}
	late := vms.StreamEvent{Channel: a.ch, SID: a.s.SID, Generation: 99, Worker: "w1", Instance: "w1-1", Lane: vms.LaneLive, At: f.Clock.Now()}
	if err := f.StreamEnded(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-events:
		t.Errorf("event %+v for what was known", e)
	default:
	}
}

func TestViewersFollowTheStream(t *testing.T) {
	f := newFleet(t, nil)
	w1 := f.up("w1", nil)
	a := f.joined(1, "")[0]
	old := f.laneUp(a)
	f.up("w2", nil)
	live := func() string {
		t.Helper()
		u, err := f.Live(t.Context(), acct, a.ch, false)
		if err != nil {
			t.Fatal(err)
		}
		host, _, _ := strings.Cut(strings.TrimPrefix(u.MSE, "ws://"), "/")
		return host
	}
	if err := f.DrainWorker(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	f.pass(time.Second)
	if _, told := w1.link.MovedTo(a.ch); told || live() != "w1" {
		t.Error("viewers are sent away before anybody is there")
	}
	now := f.laneUp(a)
	u, told := w1.link.MovedTo(a.ch)
	ticket, ok := strings.CutPrefix(u, "ws://w2/live/v1/mse?ticket=")
	v, err := f.Signer.Verifier().VerifyView(ticket, "w2", f.Clock.Now())
	if !told || !ok || err != nil || v.Channel != a.ch {
		t.Errorf("viewers are sent to %q, ticket %+v, %v", u, v, err)
	}
	// Until the next recording begins, the old worker has the picture.
	if live() != "w1" {
		t.Error("a new viewer is sent to a worker that has nothing yet")
	}
	f.laneUp(a) // its connection broke, and is back
	if n := w1.link.Moves(); n != 1 {
		t.Errorf("viewers are told %d times where the stream is", n)
	}
	f.pass(10 * time.Second)
	old.Cause, old.At = "moved", f.Clock.Now()
	if err := f.StreamEnded(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if live() != "w2" {
		t.Error("a new viewer is sent to a worker that has nothing any more")
	}

	// It ends before it begins elsewhere, and the line to its worker is broken meanwhile.
	w2 := f.workers["w2"]
	now.Cause = "timeout"
	if err := f.StreamEnded(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	f.up("w3", nil)
	a.want(w2.info.Instance)
	f.WorkerDown("w2", w2.info.Instance, w2.link)
	f.laneUp(a)
	if live() != "w3" {
		t.Error("a new viewer is not sent to where it is")
	}
	if u, _ := f.Worker(t, w2.info).MovedTo(a.ch); !strings.HasPrefix(u, "ws://w3/") {
		t.Errorf("after the line is back viewers are sent to %q", u)
	}

	// An old worker that never says that it is over does not keep the picture for ever.
	f.again("w3")
	f.pass(time.Second)
	f.laneUp(a)
	a.want(f.workers["w3"].info.Instance)
	f.laneUp(a)
	f.pass(46 * time.Second)
	if live() == "w3" {
		t.Error("viewers go to a worker that the stream left long ago")
	}
}

// After a restart of the NVR agents and workers come in any order: nobody has to move.
func TestRestartOfTheNVRMovesNobody(t *testing.T) {
	f := newFleet(t, nil)
	a := f.stream("")
	b := f.stream("")
	a.join("w1-1")
	f.up("w2", nil)
	b.join("w2-1")
	f.pass(3 * time.Second)
	if as := a.at(); as.Worker != "" {
		t.Errorf("moved to %s before its worker could come back", as.Worker)
	}
	f.up("w1", nil)
	f.pass(10 * time.Second)
	f.want("when all are there", f.streams, map[vms.WorkerID]int{"w1": 1, "w2": 1})
	if as := a.at(); as.Worker != "w1" || as.Why != wire.WhyStart || as.Generation != 1 {
		t.Errorf("assigned %+v", as)
	}
	// The worker has not said what it has, but the agent does.
	if err := f.State(t.Context(), a.s, &wire.StreamState{State: wire.StateStreaming}); err != nil {
		t.Fatal(err)
	}
	if u, err := f.Live(t.Context(), acct, a.ch, false); err != nil || !strings.HasPrefix(u.MSE, "ws://w1/") {
		t.Errorf("Live = %q, %v", u.MSE, err)
	}
	c := f.stream("")
	c.join("w9-1") // it did not survive
	if as := c.at(); as.Worker == "" || as.Why != wire.WhyLost {
		t.Errorf("assigned %+v, want another worker because its own is lost", as)
	}
}
