package worker_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/vms"
)

// TestLoadIsWhatThereIs: streams, lanes, and bytes a second over the last ten.
func TestLoadIsWhatThereIs(t *testing.T) {
	cs := tape(t, 1, 1, 30, 100<<10)
	inBubble(t, func(r *rig) {
		if l := r.w.Load(); l != (vms.WorkerLoad{TmpfsLimit: 512 << 20}) {
			r.t.Errorf("load of nothing: %+v", l)
		}
		r.store.set(func(s *store) { s.fail = errors.New("out of order") })
		a := r.open(r.ticket("a", 1), vms.LaneLive, 1)
		back := r.open(r.ticket("a", 1), vms.LaneBackfill, 1)
		b := r.open(r.ticket("b", 1), vms.LaneLive, 1)
		a.init(1, 1)
		for i := range cs {
			a.paced(cs[i])
			time.Sleep(time.Second)
		}
		synctest.Wait()
		used, _ := r.w.Use()
		l := r.w.Load()
		if l.Streams != 2 || l.Lanes != 3 || l.TmpfsUsed != used || used < 3_000_000 || l.UploadsWaiting != 2 || l.Overloaded || l.Draining {
			r.t.Errorf("load %+v", l)
		}
		if l.BytesPerSecond < 90<<10 || l.BytesPerSecond > 115<<10 {
			r.t.Errorf("%d bytes a second", l.BytesPerSecond)
		}
		if l.Lag < 28*time.Second || l.Lag > 31*time.Second {
			r.t.Errorf("durable lag %v", l.Lag)
		}
		for _, x := range []*agent{a, back, b} {
			x.hangUp()
		}
		time.Sleep(12 * time.Second)
		if l := r.w.Load(); l.BytesPerSecond != 0 || l.Lanes != 0 || l.Streams != 2 {
			r.t.Errorf("load %+v after 12 s of silence", l)
		}
		time.Sleep(30 * time.Second)
		if l := r.w.Load(); l.Streams != 0 {
			r.t.Errorf("load %+v after the grace time", l)
		}
		r.store.set(func(s *store) { s.fail = nil })
		time.Sleep(time.Minute)
	})
}

// TestACrowdedWorkerKeepsWhatItHas: and takes no others, until there is place.
func TestACrowdedWorkerKeepsWhatItHas(t *testing.T) {
	inBubble(t, func(r *rig) {
		a, b := r.open(r.ticket("a", 1), vms.LaneLive, 1), r.open(r.ticket("b", 1), vms.LaneLive, 1)
		if !r.w.Load().Overloaded {
			r.t.Error("a worker that is full does not say so")
		}
		r.refusedAsBusy("c")
		a.hangUp()
		a = r.open(r.ticket("a", 2), vms.LaneLive, 1)
		back := r.open(r.ticket("b", 1), vms.LaneBackfill, 1)
		b.hangUp()
		back.hangUp()
		time.Sleep(20 * time.Second)
		r.refusedAsBusy("c") // b may come back
		time.Sleep(12 * time.Second)
		if r.w.Load().Overloaded {
			r.t.Error("still overloaded")
		}
		c := r.open(r.ticket("c", 1), vms.LaneLive, 1)
		b = r.open(r.ticket("b", 2), vms.LaneLive, 1) // there is something of it here
		for _, x := range []*agent{a, b, c} {
			x.hangUp()
		}
	}, func(c *worker.Config) { c.Capacity.Streams = 2 })
}

// TestOverload: what makes a worker say that it is, and what makes it refuse.
func TestOverload(t *testing.T) {
	inBubble(t, func(r *rig) {
		limit := r.w.Load().TmpfsLimit
		expect := func(what string, want bool) {
			r.t.Helper()
			time.Sleep(1500 * time.Millisecond)
			if got := r.w.Load().Overloaded; got != want {
				r.t.Errorf("%s: overloaded %v", what, got)
			}
		}
		a := r.open(r.ticket("a", 1), vms.LaneLive, 1)
		expect("idle", false)
		r.w.Leave(limit * 22 / 100)
		expect("78 % in use", false)
		r.w.Leave(limit * 19 / 100)
		expect("81 % in use", true)
		r.refusedAsBusy("b")
		a.hangUp()
		a = r.open(r.ticket("a", 1), vms.LaneLive, 1)
		r.w.Leave(limit * 28 / 100)
		expect("72 % in use", true)
		r.w.Leave(limit * 31 / 100)
		expect("69 % in use", false)
		r.w.Leave(limit)

		// A store that is away: the NVR should send no streams; one that it sends all
		// the same is taken.
		r.store.set(func(s *store) { s.fail = errors.New("out of order") })
		a.init(1, 1)
		a.chunks(tape(r.t, 1, 1, 11, 300)...)
		time.Sleep(85 * time.Second)
		expect("lag of 86 s", false)
		time.Sleep(5 * time.Second)
		expect("lag of 93 s", true)
		b := r.open(r.ticket("b", 1), vms.LaneLive, 1)
		r.store.set(func(s *store) { s.fail = nil })
		time.Sleep(time.Minute)
		expect("stored", false)
		a.hangUp()
		b.hangUp()
	})
}

// TestBytesPerSecondHaveALimit: with which it says that it is overloaded.
func TestBytesPerSecondHaveALimit(t *testing.T) {
	cs := tape(t, 1, 1, 60, 100<<10)
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("a", 1), vms.LaneLive, 1)
		a.init(1, 1)
		at := 0
		push := func(every time.Duration, want bool) {
			r.t.Helper()
			for range 15 {
				a.paced(cs[at])
				at++
				time.Sleep(every)
			}
			if l := r.w.Load(); l.Overloaded != want {
				r.t.Errorf("%d bytes a second: overloaded %v", l.BytesPerSecond, l.Overloaded)
			}
		}
		push(2*time.Second, false)
		push(time.Second, true)
		r.refusedAsBusy("b")
		push(2*time.Second, false)
		b := r.open(r.ticket("b", 1), vms.LaneLive, 1)
		a.hangUp()
		b.hangUp()
	}, func(c *worker.Config) { c.Capacity.BytesPerSecond = 90 << 10 })
}

// TestAWorkerThatFoundStreamsTakesThem: they are its own, although it is full.
func TestAWorkerThatFoundStreamsTakesThem(t *testing.T) {
	inBubble(t, func(r *rig) {
		for i := range 3 {
			a := r.open(r.ticket(vms.ChannelID(fmt.Sprint("ch", i)), 1), vms.LaneLive, 1)
			a.init(1, 1)
			a.chunks(tape(r.t, 1, 1, 3, 300)...)
			synctest.Wait()
			defer a.hangUp()
		}
		time.Sleep(2 * time.Second)
		b := r.restart(true, 0, func(c *worker.Config) { c.Capacity.Streams = 1 })
		defer b.shutdown()
		for i := range 3 {
			a := b.open(b.ticket(vms.ChannelID(fmt.Sprint("ch", i)), 2), vms.LaneLive, 1)
			defer a.hangUp()
		}
		b.refusedAsBusy("ch3")
	})
}

// TestWhatIsStoredDoesNotOverload: what is kept of it only to be continued makes
// room for streams that are new.
func TestWhatIsStoredDoesNotOverload(t *testing.T) {
	cs := tape(t, 1, 1, 9, 8<<20-1000)
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("a", 1), vms.LaneLive, 1)
		a.init(1, 1)
		if n := a.paced(cs...); n != 9 {
			r.t.Fatalf("%d chunks were taken", n)
		}
		time.Sleep(2 * time.Second)
		r.refusedAsBusy("b")
		a.hangUp()
		time.Sleep(time.Minute)
		if l := r.w.Load(); l.Overloaded || l.TmpfsUsed > 0 {
			r.t.Errorf("load %+v", l)
		}
		b := r.open(r.ticket("b", 1), vms.LaneLive, 1)
		b.hangUp()
	}, func(c *worker.Config) { c.DirBytes, c.Forget = 88<<20, time.Hour })
}
