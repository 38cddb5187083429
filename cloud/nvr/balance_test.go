package nvr_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

func zone(z string) func(*vms.WorkerInfo)  { return func(w *vms.WorkerInfo) { w.Zone = z } }
func capacity(n int) func(*vms.WorkerInfo) { return func(w *vms.WorkerInfo) { w.Capacity.Streams = n } }

func TestAssignByLoad(t *testing.T) {
	t.Run("the worker with the fewest", func(t *testing.T) {
		f := newFleet(t, nil)
		for _, id := range []vms.WorkerID{"w1", "w2", "w3"} {
			f.up(id, nil)
		}
		f.want("nine", f.joined(9, ""), map[vms.WorkerID]int{"w1": 3, "w2": 3, "w3": 3})
	})
	t.Run("by capacity", func(t *testing.T) {
		f := newFleet(t, nil)
		f.up("w1", capacity(10))
		f.up("w2", capacity(30))
		f.want("twenty", f.joined(20, ""), map[vms.WorkerID]int{"w1": 5, "w2": 15})
	})
	t.Run("by bytes, too", func(t *testing.T) {
		f := newFleet(t, func(c *nvr.Config) { c.RebalanceEvery = time.Hour })
		f.up("w1", nil).load.BytesPerSecond = 9_000_000
		f.up("w2", nil).load.BytesPerSecond = 1_000_000
		f.joined(10, "")
		f.pass(time.Minute)
		if n := counts(f.joined(4, "")); n["w2"] != 4 {
			t.Errorf("new streams went to %v, want all to the one that has less to do", n)
		}
	})
	t.Run("what it was just given counts at once", func(t *testing.T) {
		f := newFleet(t, func(c *nvr.Config) { c.RebalanceEvery = time.Hour })
		f.up("w1", nil).load.BytesPerSecond = 10_000_000
		f.joined(20, "")
		f.pass(time.Minute)
		f.up("w2", nil)
		if n := counts(f.joined(30, "")); n["w1"] < 3 || n["w1"] > 7 {
			t.Errorf("new streams went to %v, want 20 to the empty one, and then to both alike", n)
		}
	})
	t.Run("not to a full one", func(t *testing.T) {
		f := newFleet(t, nil)
		f.up("w1", nil)
		f.up("w2", nil).load.Overloaded = true
		f.pass(time.Second)
		f.want("six", f.joined(6, ""), map[vms.WorkerID]int{"w1": 6})
		f.workers["w1"].load.Overloaded = true
		f.pass(time.Second)
		f.want("two when all are full", f.joined(2, ""), map[vms.WorkerID]int{"w2": 2})
		f.pass(time.Minute)
		f.want("those it has accepted", f.streams, map[vms.WorkerID]int{"w1": 6, "w2": 2})
	})
	t.Run("not above a capacity", func(t *testing.T) {
		// Which it reaches although it has less to do than the other one.
		for name, c := range map[string]vms.WorkerCapacity{"streams": {Streams: 2}, "bytes": {BytesPerSecond: 2000}} {
			f := newFleet(t, func(c *nvr.Config) { c.RebalanceEvery = time.Hour })
			f.up("w1", func(w *vms.WorkerInfo) { w.Capacity = c }).load.BytesPerSecond = 2200
			f.up("w2", nil).load.BytesPerSecond = 1_000_000
			f.joined(4, "")
			f.pass(3 * time.Minute)
			if n := counts(f.joined(2, "")); n["w2"] != 2 {
				t.Errorf("%s: new ones went to %v", name, n)
			}
		}
	})
	t.Run("not where it is no good", func(t *testing.T) {
		f := newFleet(t, nil)
		f.up("w1", nil)
		f.up("w2", nil)
		a := f.joined(1, "")[0]
		a.want("w1-1")
		if as := a.at(); as.Worker != "w2" || as.Why != wire.WhyRequested || as.Generation != 2 {
			t.Errorf("assigned %+v", as)
		}
		// It was assigned another, never got there, and is where it was: that one is better.
		f.pass(5 * time.Second)
		a.want("w1-1")
		if as := a.at(); as.Worker != "w1" {
			t.Errorf("assigned %s, which the agent could not reach", as.Worker)
		}
		// It has not heard of its new one.
		a.want("w2-1")
		if as := a.at(); as.Worker != "w1" || as.Generation != 4 {
			t.Errorf("assigned %s, generation %d, want the other one still", as.Worker, as.Generation)
		}
		f.kill("w2")
		f.pass(5 * time.Second)
		a.want("w1-1")
		if as := a.at(); as.Worker != "w1" || as.Generation != 5 {
			t.Errorf("assigned %s, generation %d, want the only one once more", as.Worker, as.Generation)
		}
	})
}

func TestAssignKeepsTheWorker(t *testing.T) {
	f := newFleet(t, func(c *nvr.Config) { c.RebalanceEvery = time.Hour })
	w1 := f.up("w1", nil)
	a := f.joined(10, "")
	f.up("w2", nil)
	w1.load.Overloaded = true
	f.pass(time.Second)
	for i, x := range a {
		x.leave()
		x.join("w1-1")
		if as := x.at(); as.Worker != "w1" || as.Why != wire.WhyStart {
			t.Fatalf("stream %d was assigned %s, why %q", i, as.Worker, as.Why)
		}
	}
	// Its line is broken: who asks now waits for it.
	f.kill("w1")
	a[0].leave()
	a[0].join("w1-1")
	f.pass(time.Second)
	if as := a[0].at(); as.Worker != "w1" || as.Generation != 2 {
		t.Errorf("assigned to %s, generation %d in the grace time, want nothing", as.Worker, as.Generation)
	}
	f.pass(3 * time.Second)
	if as := a[0].at(); as.Worker != "w2" || as.Why != wire.WhyLost {
		t.Errorf("assigned %s, why %q when it is dead", as.Worker, as.Why)
	}
	// One that drains is kept only if there is no other.
	if err := f.DrainWorker(t.Context(), "w2"); err != nil {
		t.Fatal(err)
	}
	a[1].leave()
	a[1].join("w2-1")
	if as := a[1].at(); as.Worker != "w2" || as.Generation != 4 {
		t.Errorf("assigned %s, generation %d, want the only one", as.Worker, as.Generation)
	}
	f.up("w3", nil)
	a[2].leave()
	a[2].join("w2-1")
	if as := a[2].at(); as.Worker != "w3" || as.Why != wire.WhyDrain {
		t.Errorf("assigned %s, why %q", as.Worker, as.Why)
	}
}

func TestZones(t *testing.T) {
	f := newFleet(t, nil)
	f.up("a1", zone("a"))
	f.up("a2", zone("a"))
	b1 := f.up("b1", zone("b"))
	inA, inB, any := f.joined(2, "a"), f.joined(8, "b"), f.joined(2, "")
	f.want("zone a", inA, map[vms.WorkerID]int{"a1": 1, "a2": 1})
	f.want("zone b", inB, map[vms.WorkerID]int{"b1": 8})
	f.want("no zone", any, map[vms.WorkerID]int{"a1": 1, "a2": 1})
	f.pass(3 * time.Minute)
	f.want("what wants to be there stays", inB, map[vms.WorkerID]int{"b1": 8})

	b1.load.Overloaded = true
	f.pass(time.Second)
	more := f.joined(2, "b")
	if n := counts(more); n["b1"] != 0 {
		t.Errorf("a full worker of the zone got %d", n["b1"])
	}
	f.kill("b1")
	f.pass(5 * time.Second)
	if n := counts(inB); n["a1"]+n["a2"] != 8 {
		t.Errorf("zone b is dead, and its streams are at %v", n)
	}
	f.up("b1", zone("b"))
	f.pass(2 * time.Minute)
	f.want("zone b is back", inB, map[vms.WorkerID]int{"b1": 8})
	f.want("zone b is back, for the late ones", more, map[vms.WorkerID]int{"b1": 2})
	for _, x := range inB {
		if as := x.at(); as.Why != wire.WhyRebalance {
			t.Errorf("back with why %q", as.Why)
		}
	}

	z := "a"
	if _, err := f.UpdateHub(t.Context(), acct, inB[0].s.Hub, nvr.HubPatch{Zone: &z}); err != nil {
		t.Fatal(err)
	}
	f.pass(2 * time.Minute)
	if as := inB[0].at(); as.Worker == "b1" {
		t.Error("a hub that got another zone stays in the old one")
	}
	bad := "Somewhere else"
	if _, err := f.UpdateHub(t.Context(), acct, inB[0].s.Hub, nvr.HubPatch{Zone: &bad}); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("zone %q: %v", bad, err)
	}
}

func TestRebalanceIsGentle(t *testing.T) {
	f := newFleet(t, nil)
	f.up("w1", nil)
	all := f.joined(100, "")
	f.up("w2", nil)
	moved := 0
	for f.pass(10 * time.Second); ; f.pass(10 * time.Second) {
		n := counts(all)["w2"]
		if n-moved > 10 {
			t.Fatalf("%d streams moved in 10 s", n-moved)
		}
		if n == moved {
			break
		}
		moved = n
	}
	if moved != 48 { // 52 and 48 differ by less than a tenth
		t.Errorf("%d of 100 moved to the new worker, want 48 and no more", moved)
	}
	for _, a := range all {
		if as := a.at(); as.Generation > 2 || as.Generation == 2 && as.Why != wire.WhyRebalance {
			t.Errorf("a stream was moved to generation %d, why %q", as.Generation, as.Why)
		}
	}
	// What was moved rests, whatever happens.
	if err := f.DrainWorker(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	f.pass(10 * time.Second)
	f.up("w3", nil)
	f.pass(3 * time.Minute)
	for _, a := range all {
		for i, as := range a.got {
			if i > 1 && as.Why == wire.WhyRebalance && a.heard[i].Sub(a.heard[i-1]) < time.Minute {
				t.Errorf("moved after %s", a.heard[i].Sub(a.heard[i-1]))
			}
		}
	}
	if n := counts(all); n["w3"] < 45 {
		t.Errorf("in the end streams are at %v", n)
	}
}

func TestRebalanceByBytesSettles(t *testing.T) {
	f := newFleet(t, nil)
	f.up("w1", nil)
	all := f.joined(40, "")
	f.up("w2", nil)
	heavy := all[:20] // bring ten times as much
	for range 60 {
		f.pass(10 * time.Second)
		for id, n := range f.workers {
			n.load.BytesPerSecond = int64(counts(all)[id]-counts(heavy)[id])*250_000 + int64(counts(heavy)[id])*2_500_000
		}
	}
	before := counts(all)
	gens := 0
	for _, a := range all {
		gens += int(a.at().Generation)
	}
	f.pass(3 * time.Minute)
	after := 0
	for _, a := range all {
		after += int(a.at().Generation)
	}
	if after != gens {
		t.Errorf("%d streams still move to and fro, from %v to %v", after-gens, before, counts(all))
	}
	b1, b2 := f.workers["w1"].load.BytesPerSecond, f.workers["w2"].load.BytesPerSecond
	if b1 > 2*b2 || b2 > 2*b1 {
		t.Errorf("bytes %d and %d with streams %v", b1, b2, before)
	}
}

// TestBalanceAfterJoinsAndLeaves: whatever comes and goes, and whatever dies,
// workers have alike in the end, no agent hears of an older generation last, and
// nobody is where the NVR does not know.
func TestBalanceAfterJoinsAndLeaves(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 6))
			f := newFleet(t, nil)
			for i := range 3 + seed {
				f.up(vms.WorkerID(fmt.Sprintf("w%d", i)), nil)
			}
			for i := range 120 {
				f.stream("").holds = i%2 == 0
			}
			here := make(map[*agent]bool)
			for range 1000 {
				a := f.streams[rnd.IntN(len(f.streams))]
				switch here[a] = !here[a]; {
				case here[a] && rnd.IntN(2) == 0:
					a.join(f.instance(a)) // the lane held while the session broke
				case here[a]:
					a.join("")
				default:
					a.leave()
				}
				if rnd.IntN(20) == 0 {
					f.pass(time.Duration(rnd.IntN(5)) * 200 * time.Millisecond)
				}
				if rnd.IntN(100) == 0 {
					f.again(vms.WorkerID(fmt.Sprintf("w%d", rnd.IntN(3))))
				}
			}
			f.pass(4 * time.Minute)
			var there []*agent
			for a, in := range here {
				if in {
					there = append(there, a)
				}
			}
			n := counts(there)
			least, most := len(there), 0
			for _, w := range f.Workers() {
				least, most = min(least, n[w.ID]), max(most, n[w.ID])
				if w.Assigned != n[w.ID] {
					t.Errorf("worker %s has %d streams, the NVR counts %d", w.ID, n[w.ID], w.Assigned)
				}
			}
			mean := float64(len(there)) / float64(len(f.workers))
			if d := float64(most - least); d > 1 && d > mean/10 {
				t.Errorf("%d streams are at %v", len(there), n)
			}
		})
	}
}

// instance is the run of the worker that an agent pushes to.
func (f *fleet) instance(a *agent) vms.Instance {
	if n := f.workers[a.at().Worker]; n != nil {
		return n.info.Instance
	}
	return ""
}

// TestAssignmentsRace: agents come, ask and go while workers drain, die and are
// told to rebalance. The last word to an agent is always what the NVR believes.
func TestAssignmentsRace(t *testing.T) {
	f := newFleet(t, func(c *nvr.Config) {
		c.RebalanceEvery, c.RebalanceRest, c.DrainOver = time.Millisecond, time.Millisecond, 10*time.Millisecond
		c.WorkerGrace, c.WorkerSettle = 5*time.Millisecond, time.Millisecond
		c.Clock = time.Now
	})
	running(t, f.World)
	for _, id := range []vms.WorkerID{"w1", "w2", "w3"} {
		f.up(id, nil)
	}
	for range 30 {
		f.stream("")
	}
	var wg sync.WaitGroup
	for i, a := range f.streams {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			a.join("")
			for range 30 {
				switch rnd.IntN(3) {
				case 0:
					a.leave()
					a.join(vms.Instance(fmt.Sprintf("w%d-1", rnd.IntN(4))))
				default:
					a.want(vms.Instance(fmt.Sprintf("w%d-1", rnd.IntN(4))))
				}
			}
		})
	}
	for i := range 20 {
		id := vms.WorkerID(fmt.Sprintf("w%d", i%3+1))
		n := f.workers[id]
		if i%2 == 0 {
			if err := f.DrainWorker(t.Context(), id); err != nil && !errors.Is(err, vms.ErrNotFound) {
				t.Error(err)
			}
		}
		f.WorkerDown(id, n.info.Instance, n.link)
		if i%4 == 0 {
			time.Sleep(7 * time.Millisecond) // long enough to be dead
		}
		f.up(id, nil)
	}
	wg.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for {
		if err := f.CheckSeats(); err != nil {
			t.Fatal(err)
		}
		for id, n := range f.workers {
			f.WorkerAlive(id, n.info.Instance, vms.WorkerLoad{})
		}
		got := counts(f.streams)
		if !slices.ContainsFunc(f.Workers(), func(w nvr.WorkerStatus) bool { return w.Assigned != got[w.ID] || w.State != nvr.WorkerUp }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("agents obey %v, the NVR believes %+v", got, f.Workers())
		}
		time.Sleep(time.Millisecond)
	}
}

// interrupted is a store in the transactions of which something else happens first.
type interrupted struct {
	*nvrtest.Store
	then func()
}

func (s *interrupted) NextGenerations(ctx context.Context, sids []vms.SID) ([]vms.Generation, error) {
	gens, err := s.Store.NextGenerations(ctx, sids)
	if then := s.then; then != nil {
		s.then = nil
		then()
	}
	return gens, err
}

// TestNewerAssignmentWins: two orders for one stream meet; what the agent obeys
// is what the NVR believes, and no order fails for it.
func TestNewerAssignmentWins(t *testing.T) {
	store := &interrupted{Store: nvrtest.NewStore()}
	f := newFleet(t, func(c *nvr.Config) { c.Store = store })
	f.World.Store = store.Store
	for name, meet := range map[string]func(a *agent, move func()){
		"the agent asks while it is moved": func(a *agent, move func()) {
			store.then = func() { a.want("nobody") }
			move()
		},
		"it is moved while the agent asks": func(a *agent, move func()) {
			store.then = move
			a.want("nobody")
		},
		"the agent comes back while it is moved": func(a *agent, move func()) {
			store.then = func() { a.leave(); a.join("") }
			move()
		},
		"the agent goes, with what it holds, while it is moved": func(a *agent, move func()) {
			a.leave()
			a.holds = true
			a.join("w1-1")
			store.then = a.leave
			move()
		},
		"the agent goes while it is moved": func(a *agent, move func()) {
			store.then = a.leave
			move()
		},
		"it is revoked while it is moved": func(a *agent, move func()) {
			store.then = func() {
				if err := f.DeleteChannel(t.Context(), acct, a.ch); err != nil {
					t.Error(err)
				}
			}
			move()
		},
	} {
		for how, begin := range map[string]func() error{
			"drain": func() error { return f.DrainWorker(t.Context(), "w1") },
			"death": func() error { f.kill("w1"); return nil },
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				f.t = t
				f.up("w1", nil)
				a := f.joined(1, "")[0]
				f.up("w2", nil)
				f.up("w3", nil)
				meet(a, func() {
					if err := begin(); err != nil {
						t.Error(err)
					}
					f.pass(3 * time.Second)
				})
				f.pass(time.Second)
				for _, w := range f.Workers() {
					if want := counts([]*agent{a})[w.ID]; w.Assigned > want {
						t.Errorf("worker %s has %d streams, the agent obeys %+v", w.ID, w.Assigned, a.at())
					}
				}
				a.leave()
				for _, id := range []vms.WorkerID{"w1", "w2", "w3"} {
					f.kill(id)
				}
				f.pass(3 * time.Second)
			})
		}
	}
}

func TestWorkersWanted(t *testing.T) {
	full := vms.WorkerLoad{Overloaded: true}
	for name, tt := range map[string]struct {
		capacity vms.WorkerCapacity
		workers  int
		streams  int
		load     func(i int) vms.WorkerLoad
		want     int
	}{
		"none":               {want: 1},
		"none, and streams":  {streams: 50, want: 1},
		"no limits":          {workers: 3, streams: 50, want: 1},
		"few streams":        {workers: 3, streams: 7, capacity: vms.WorkerCapacity{Streams: 10}, want: 1},
		"more streams":       {workers: 3, streams: 15, capacity: vms.WorkerCapacity{Streams: 10}, want: 3},
		"too many streams":   {workers: 3, streams: 30, capacity: vms.WorkerCapacity{Streams: 10}, want: 5},
		"bytes":              {workers: 2, capacity: vms.WorkerCapacity{BytesPerSecond: 1000}, load: func(int) vms.WorkerLoad { return vms.WorkerLoad{BytesPerSecond: 1000} }, want: 3},
		"tmpfs":              {workers: 2, load: func(int) vms.WorkerLoad { return vms.WorkerLoad{TmpfsUsed: 90, TmpfsLimit: 100} }, want: 3},
		"one of two lags":    {workers: 2, load: func(i int) vms.WorkerLoad { return vms.WorkerLoad{Lag: time.Duration(i) * 70 * time.Second} }, want: 3},
		"the only one lags":  {workers: 1, load: func(int) vms.WorkerLoad { return vms.WorkerLoad{Lag: 70 * time.Second} }, want: 2},
		"all lag: the store": {workers: 2, load: func(int) vms.WorkerLoad { return vms.WorkerLoad{Lag: 70 * time.Second} }, want: 1},
		"some overloaded":    {workers: 5, load: func(i int) vms.WorkerLoad { return map[bool]vms.WorkerLoad{true: full}[i < 3] }, want: 7},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, nil)
			for i := range tt.workers {
				n := f.up(vms.WorkerID(fmt.Sprintf("w%d", i)), func(w *vms.WorkerInfo) { w.Capacity = tt.capacity })
				if tt.load != nil {
					n.load = tt.load(i)
				}
			}
			f.joined(tt.streams, "")
			f.pass(3 * time.Minute)
			if got := f.WorkersWanted(); got != tt.want {
				t.Errorf("wants %d workers, want %d", got, tt.want)
			}
		})
	}
}
