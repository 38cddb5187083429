package worker_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// another is a second worker with the same store and NVR, and a tmpfs of its own.
func (r *rig) another(options ...func(*worker.Config)) *rig {
	r.t.Helper()
	b := newRig(r.t, append([]func(*worker.Config){func(c *worker.Config) { c.Store, c.NVR = r.store, r.nvr }}, options...)...)
	b.store, b.nvr = r.store, r.nvr
	return b
}

// hub is an agent that holds what is not durable, and goes on after what the
// worker says it has.
type hub struct {
	t       *testing.T
	r       *rig
	cs      []vms.Chunk
	durable vms.ChunkSet
	gen     vms.Generation

	a    *agent
	have vms.ChunkSet
	pos  uint64 // handed out on this connection, or had before
	next int
}

func newHub(r *rig, cs []vms.Chunk) *hub { return &hub{t: r.t, r: r, cs: cs} }

// connect opens the live lane at r, again and again until r welcomes it.
func (h *hub) connect(r *rig) {
	h.t.Helper()
	h.leave()
	if h.r != r || h.gen == 0 {
		h.r = r
		h.gen++
	}
	for try := 0; ; try++ {
		a, _, err := r.dial(r.ticket("ch", h.gen), wire.PushProtocol)
		if err != nil {
			h.t.Fatal(err)
		}
		a.send(&wire.Hello{Agent: "test", Lane: vms.LaneLive, Epochs: []vms.Epoch{1}})
		if w, ok := (<-a.in).(*wire.Welcome); ok {
			a.welcome, h.a = w, a
			break
		}
		a.hangUp()
		if try == 100 {
			h.t.Fatal("no welcome")
		}
		time.Sleep(3 * time.Second)
	}
	h.have = vms.ChunkSet{}
	for _, x := range h.a.welcome.Have {
		h.have.Add(x)
	}
	h.a.init(1, 1)
	h.pos, h.next = 0, 0
}

func (h *hub) leave() {
	if h.a != nil {
		h.take()
		h.a.hangUp()
		h.take()
		h.a = nil
	}
}

// take frees what is durable.
func (h *hub) take() {
	h.a.take()
	for _, x := range h.a.durable.Ranges() {
		h.durable.Add(x)
	}
}

// push sends everything up to chunk last that the worker has not and the hub still holds.
func (h *hub) push(last int) {
	for ; h.next < min(last, len(h.cs)); h.next++ {
		c := h.cs[h.next]
		switch {
		case h.have.Has(c.Epoch, c.Seq):
			h.pos = c.Seq
			continue
		case h.durable.Has(c.Epoch, c.Seq):
			continue
		}
		if hole := span(1, h.pos+1, c.Seq-1); h.pos > 0 && hole.First <= hole.Last {
			h.tell(&wire.GapMessage{ID: "durable", Chunks: hole, Cause: wire.CauseDurable})
		}
		h.a.paced(c)
		h.pos = c.Seq
	}
	synctest.Wait()
}

// tell says something, if the connection stands.
func (h *hub) tell(m wire.PushMessage) { h.a.tell(m) }

// pressure asks for parts, so late that small ones are made too.
func (h *hub) pressure() {
	time.Sleep(11 * time.Second)
	h.tell(&wire.Pressure{Held: 9, Budget: 10})
	time.Sleep(time.Second)
	h.take()
}

// learn is what the NVR tells the hub over the session: what is registered.
func (h *hub) learn() {
	h.r.nvr.set(func(n *nvr) {
		for _, r := range n.rows {
			h.durable.Add(r.Chunks)
		}
	})
}

// finish sends the rest and waits until all of it is durable.
func (h *hub) finish(r *rig) {
	h.t.Helper()
	n := len(h.cs)
	whole := span(1, 1, h.cs[n-1].Seq)
	for range 50 {
		h.connect(r)
		h.push(n)
		h.tell(stopped(1, whole.Last))
		time.Sleep(30 * time.Second)
		h.take()
		if h.durable.Covers(whole) {
			h.leave()
			return
		}
	}
	h.t.Errorf("durable %v of %s", h.durable.Ranges(), whole)
}

// TestATakeoverIsSeamless: wherever a worker was left, whatever was durable as
// parts by then, another one makes the object that one alone would have made.
func TestATakeoverIsSeamless(t *testing.T) {
	cs := tape(t, 1, 1, 24, 300)
	want := alone(t, cs)
	for at := 1; at < 24; at++ { // where the part ends
		for more := range 3 { // and how much the first worker had beyond it
			inBubble(t, func(r *rig) {
				b := r.another()
				defer b.shutdown()
				h := newHub(r, cs)
				h.connect(r)
				h.push(at)
				h.pressure()
				h.push(at + more)
				h.connect(b)
				if more == 0 && len(h.a.welcome.Have) == 0 {
					r.t.Errorf("left after chunk %d: the second worker has nothing", at)
				}
				h.push(20)
				h.finish(b)
				time.Sleep(time.Minute)
				r.store.same(r.t, want)
				if r.nvr.parts() != 0 {
					r.t.Errorf("left after chunk %d: %d parts have no whole", at, r.nvr.parts())
				}
			})
		}
	}
}

// TestATakeoverKeepsSpansApart: two spans in a row number their recordings
// alike. What another worker stored of the second one's is not appended to the
// first one's, which this worker has open and which ends right before it.
func TestATakeoverKeepsSpansApart(t *testing.T) {
	cs := tape(t, 1, 1, 20, 300)
	cs[5].Flags |= vms.FlagFirst // another span, which counts from 0 again
	want := alone(t, cs)
	for stored := 6; stored < 10; stored++ { // the last chunk that the other one stored
		for at := 1; at <= 5; at++ { // the last that this one had
			inBubble(t, func(r *rig) {
				b := r.another()
				defer b.shutdown()
				h := newHub(r, cs)
				h.connect(r)
				h.push(at)
				h.connect(b)
				h.push(stored)
				h.pressure()
				if r.nvr.parts() != 1 {
					r.t.Fatalf("%d parts of the second span", r.nvr.parts())
				}
				h.connect(r)
				h.push(stored + 2)
				h.finish(r)
				time.Sleep(15 * time.Minute)
				r.store.same(r.t, want)
				r.settled(want)
			})
		}
	}
}

// TestSpansInPartsStayApart: the same when both are in the store as parts only,
// and whoever has them knows of neither.
func TestSpansInPartsStayApart(t *testing.T) {
	cs := tape(t, 1, 1, 20, 300)
	cs[5].Flags |= vms.FlagFirst
	want := alone(t, cs)
	inBubble(t, func(r *rig) {
		b, c := r.another(), r.another()
		defer c.shutdown()
		h := newHub(r, cs)
		h.connect(r)
		h.push(5)
		h.pressure()
		r.store.set(func(s *store) { s.getFail = errors.New("out of order") })
		h.connect(b) // it cannot complete the first span's
		h.push(9)
		h.pressure()
		h.leave()
		if r.nvr.parts() != 2 {
			r.t.Fatalf("%d parts, want one of each span", r.nvr.parts())
		}
		b.shutdown()
		r.store.set(func(s *store) { s.getFail = nil })
		h.connect(c)
		h.push(11)
		h.finish(c)
		time.Sleep(15 * time.Minute)
		r.settled(want)
	})
}

// TestTakeoversAtRandom: parts, lost links, workers that come and go, some of
// them to act long after the hub has gone on elsewhere; some are killed, or told
// to stop, and start again.
func TestTakeoversAtRandom(t *testing.T) {
	cs := tape(t, 1, 1, 55, 200)
	want := alone(t, cs)
	runs := 60
	if testing.Short() {
		runs = 10
	}
	seed := rand.Uint64()
	if v, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed, runs = v, 1
	}
	for i := range runs {
		t.Run(fmt.Sprintf("seed %d", seed+uint64(i)), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed+uint64(i), 1))
			inBubble(t, func(r *rig) {
				workers := []*rig{r}
				h := newHub(r, cs)
				h.connect(r)
				at := 0
				for range 12 {
					switch rng.IntN(10) {
					case 0, 1, 2:
						at = min(at+rng.IntN(14), len(cs))
						h.push(at)
					case 3, 4:
						h.pressure()
					case 5:
						h.connect(h.r) // a lost link
						h.push(at)
					case 6: // to a new worker; the old one still has it
						b := r.another()
						workers = append(workers, b)
						h.connect(b)
						h.push(at)
					case 7: // to any of them
						h.connect(workers[rng.IntN(len(workers))])
						h.push(at)
					case 8: // away for a while
						w := h.r
						h.leave()
						time.Sleep(time.Duration(rng.IntN(90)) * time.Second)
						h.learn()
						h.connect(w)
						h.push(at)
					case 9: // its process ends, and there is another
						i := rng.IntN(len(workers))
						old := workers[i]
						workers[i] = old.restart(rng.IntN(2) == 0, time.Duration(rng.IntN(3)*rng.IntN(90))*time.Second)
						if h.r == old {
							h.connect(workers[i])
							h.push(at)
						}
					}
				}
				h.finish(workers[rng.IntN(len(workers))])
				defer workers[0].shutdown()
				for _, w := range workers[1:] {
					w.shutdown()
				}
				time.Sleep(15 * time.Minute)
				r.settled(want) // of what a worker stored that came too late, nothing is left
			})
		})
	}
}

// TestAPartRegisteredDuringATakeover: the first worker's part comes to the NVR
// when the second one is in the middle of the same recording already, and the
// hub frees it.
func TestAPartRegisteredDuringATakeover(t *testing.T) {
	cs := tape(t, 1, 1, 20, 300)
	want := alone(t, cs)
	for second := 1; second < 8; second++ {
		inBubble(t, func(r *rig) {
			b := r.another()
			defer b.shutdown()
			hold := make(chan struct{})
			r.nvr.set(func(n *nvr) { n.hold = hold })
			h := newHub(r, cs)
			h.connect(r)
			h.push(8)
			h.pressure() // stored, and not registered: not durable
			if h.durable.Len() != 0 {
				r.t.Errorf("durable %v before the NVR knows of the part", h.durable.Ranges())
			}
			h.connect(b)
			if len(h.a.welcome.Have) != 0 {
				r.t.Errorf("have %v", h.a.welcome.Have)
			}
			h.push(second)
			close(hold)
			synctest.Wait()
			r.nvr.set(func(n *nvr) { n.hold = nil })
			h.learn()
			if !h.durable.Covers(span(1, 1, 5)) {
				r.t.Errorf("the hub learnt %v", h.durable.Ranges())
			}
			h.push(15)
			h.finish(b)
			r.store.same(r.t, want)
		})
	}
}

// TestNothingIsSkippedWhileTheBeginningIsOutOfReach: the agent is told to come
// again, and goes on when NVR and store are back.
func TestNothingIsSkippedWhileTheBeginningIsOutOfReach(t *testing.T) {
	cs := tape(t, 1, 1, 20, 300)
	want := alone(t, cs)
	for name, set := range map[string]func(r *rig, err error){
		"NVR":   func(r *rig, err error) { r.nvr.set(func(n *nvr) { n.failParts = err }) },
		"store": func(r *rig, err error) { r.store.set(func(s *store) { s.getFail = err }) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				b := r.another()
				defer b.shutdown()
				h := newHub(r, cs)
				h.connect(r)
				h.push(7)
				h.pressure()
				h.leave()
				set(r, errors.New("out of order"))
				for range 5 {
					a, _, err := b.dial(b.ticket("ch", 2), wire.PushProtocol)
					if err != nil {
						t.Fatal(err)
					}
					a.send(&wire.Hello{Agent: "test", Lane: vms.LaneLive, Epochs: []vms.Epoch{1}})
					if _, ok := (<-a.in).(*wire.Welcome); ok {
						a.init(1, 1)
						a.chunks(cs[5:]...) // what it holds still
					}
					m, _ := a.closed()
					if name == "store" && (m.Class != wire.ClassRetry || m.RetryAfterMS == 0) {
						t.Errorf("the agent was told %+v", m)
					}
				}
				set(r, nil)
				h.gen = 1
				h.finish(b)
				r.store.same(r.t, want)
			})
		})
	}
}

// TestPartsThatAreNoUseAreLeftAlone: footage goes on all the same.
func TestPartsThatAreNoUseAreLeftAlone(t *testing.T) {
	cs := tape(t, 1, 1, 20, 300)
	for name, damage := range map[string]func(r *rig){
		"gone": func(r *rig) { r.store.set(func(s *store) { clear(s.bodies) }) },
		"changed": func(r *rig) {
			r.store.set(func(s *store) {
				for _, b := range s.bodies {
					b[len(b)-1]++
				}
			})
		},
		"cut": func(r *rig) {
			r.store.set(func(s *store) {
				for k, b := range s.bodies {
					s.bodies[k] = b[:len(b)/2]
				}
			})
		},
		"without the beginning": func(r *rig) {
			r.nvr.set(func(n *nvr) {
				for k, p := range n.rows {
					if p.Chunks.First == 1 {
						delete(n.rows, k)
					}
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				b := r.another()
				defer b.shutdown()
				h := newHub(r, cs)
				h.connect(r)
				h.push(3)
				h.pressure()
				h.push(7)
				h.pressure()
				h.leave()
				damage(r)
				h.finish(b)
				got := r.store.ranges()
				if !slices.Contains(got, span(1, 6, 10)) || !slices.Contains(got, span(1, 11, 20)) {
					t.Errorf("objects hold %v, want 6-10 as a recording that depends on what is before", got)
				}
			})
		})
	}
}

// TestAWholeChainOfPartsIsCompleted: its last chunk was the recording's last,
// and the next recording is all that another worker ever sees.
func TestAWholeChainOfPartsIsCompleted(t *testing.T) {
	cs := tape(t, 1, 1, 20, 300)
	inBubble(t, func(r *rig) {
		h := newHub(r, cs)
		h.connect(r)
		h.push(10)
		h.leave()
		time.Sleep(40 * time.Second)
		h.learn()
		b := r.another()
		defer b.shutdown()
		h.connect(b)
		h.push(12)
		time.Sleep(5 * time.Second)
		if got := r.store.ranges(); !slices.Contains(got, span(1, 1, 10)) || r.nvr.parts() != 0 {
			r.t.Errorf("objects hold %v, %d parts have no whole", got, r.nvr.parts())
		}
		h.finish(b)
		r.store.same(r.t, alone(r.t, cs))
	})
}

// TestAnEpochThatIsOverIsCompleted: also when what was of it is in parts only.
func TestAnEpochThatIsOverIsCompleted(t *testing.T) {
	cs := tape(t, 1, 1, 7, 300)
	inBubble(t, func(r *rig) {
		h := newHub(r, cs)
		h.connect(r)
		h.push(7)
		h.leave()
		time.Sleep(11 * time.Minute)
		r.tmpfsIsEmpty()
		b := r.open(r.ticket("ch", 2), vms.LaneLive, 1, 2)
		b.hangUp()
		c := r.open(r.ticket("ch", 2), vms.LaneLive, 2)
		if len(c.welcome.Have) != 0 {
			r.t.Errorf("have %v of an epoch that is over", c.welcome.Have)
		}
		time.Sleep(10 * time.Second)
		r.store.same(r.t, alone(r.t, cs))
		c.hangUp()
	})
}

// TestAnAgentThatLostWhatItHadElsewhere: it has gone on with a recording at another
// worker, ended there, and comes back with nothing of it. What this worker has is
// not all there is, whether the other one has stored the rest or will: no
// recording is made of it before all of that is there.
func TestAnAgentThatLostWhatItHadElsewhere(t *testing.T) {
	cs := tape(t, 1, 1, 19, 300)
	want := alone(t, cs)
	for name, tt := range map[string]struct{ part, rest, park bool }{
		"it keeps all of it":           {},
		"it has stored a part":         {rest: true},
		"there was a part before":      {part: true},
		"two parts":                    {part: true, rest: true},
		"the part was all that it had": {part: true, park: true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				b := r.another()
				defer b.shutdown()
				h := newHub(r, cs)
				h.connect(r)
				h.push(14)
				if tt.part {
					h.pressure()
				}
				if tt.park {
					h.leave()
					limit := r.w.Load().TmpfsLimit
					r.w.Leave(limit / 10)
					time.Sleep(33 * time.Second)
					r.w.Leave(limit)
				} else {
					h.push(16)
				}
				h.connect(b)
				h.push(17)
				if tt.rest {
					h.pressure()
				}
				h.push(19)
				h.leave()
				a := r.open(r.ticket("ch", 3), vms.LaneLive, 2)
				time.Sleep(time.Minute)
				for _, c := range r.store.ranges() {
					if c.First == 11 && c.Last > 14 && r.nvr.wholes(c) > 0 {
						t.Errorf("%s is stored as a recording", c)
					}
				}
				time.Sleep(10 * time.Minute)
				r.nvr.set(func(n *nvr) { n.gone = true }) // what is left of that epoch
				time.Sleep(30 * time.Minute)
				r.settled(want)
				r.store.same(t, want)
				a.hangUp()
			})
		})
	}
}
