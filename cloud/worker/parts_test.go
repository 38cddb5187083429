package worker_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

var pressed = &wire.Pressure{Held: 9, Budget: 10}

// TestPressureMakesWhatIsOpenDurable: cut where the next part can be decoded
// from, if that is most of it; and the recording becomes whole all the same.
func TestPressureMakesWhatIsOpenDurable(t *testing.T) {
	cs := tape(t, 1, 1, 20, 500)
	for name, tt := range map[string]struct {
		sent int
		want vms.ChunkRange
	}{
		"most of it, up to a keyframe": {9, span(1, 1, 5)},
		"all, when a cut leaves most":  {5, span(1, 1, 5)},
		"up to the last keyframe":      {6, span(1, 1, 5)},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
				a.init(1, 1)
				a.chunks(cs[:tt.sent]...)
				time.Sleep(11 * time.Second)
				a.send(pressed)
				a.isDurable(tt.want)
				r.store.expect(r.t, tt.want)
				if a.durable.Len() != 1 || a.durable.Ranges()[0] != tt.want {
					r.t.Errorf("durable %v, want %s", a.durable.Ranges(), tt.want)
				}
				a.chunks(cs[tt.sent:]...)
				a.send(stopped(1, 20))
				a.isDurable(span(1, 1, 20))
				r.settled(alone(r.t, cs))
				a.hangUp()
			})
		})
	}
}

// TestPressureMakesNoSillyParts: however often it is said.
func TestPressureMakesNoSillyParts(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		cs := tape(r.t, 1, 1, 10, 1000)
		for i := range 9 { // 3 s each: 27 s
			a.chunks(cs[i])
			for range 30 {
				a.send(pressed)
				time.Sleep(100 * time.Millisecond)
			}
		}
		if n := r.nvr.parts(); n < 1 || n > 3 {
			r.t.Errorf("%d parts in 27 s", n)
		}
		a.hangUp()
	})
	inBubble(t, func(r *rig) { // said too early, it is not forgotten
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		cs := tape(r.t, 1, 1, 9, 1000)
		a.chunks(cs[:3]...)
		a.send(pressed)
		time.Sleep(9 * time.Second)
		r.store.expect(r.t)
		a.chunks(cs[3:4]...)
		time.Sleep(3 * time.Second)
		r.store.expect(r.t, span(1, 1, 4))
		a.chunks(cs[4:]...)
		time.Sleep(20 * time.Second) // and once is not for ever
		r.store.expect(r.t, span(1, 1, 4))
		a.hangUp()
	})
	inBubble(t, func(r *rig) { // a large one does not wait, and only one is under way
		hold := make(chan struct{})
		r.store.set(func(s *store) { s.hold = hold })
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		cs := tape(r.t, 1, 1, 9, 600<<10)
		a.paced(cs[:6]...)
		a.send(pressed)
		synctest.Wait()
		a.paced(cs[6:]...)
		a.send(pressed)
		time.Sleep(6 * time.Second)
		r.store.set(func(s *store) { s.hold = nil })
		close(hold)
		a.isDurable(span(1, 1, 5))
		time.Sleep(5 * time.Second)
		r.store.expect(r.t, span(1, 1, 5))
		a.send(pressed)
		a.isDurable(span(1, 6, 9))
		a.hangUp()
	})
}

// TestAPartIsDurableWhenTheNVRHasIt: not when the store has.
func TestAPartIsDurableWhenTheNVRHasIt(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.nvr.setFail(errors.New("away"))
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		cs := tape(r.t, 1, 1, 30, 500)
		a.chunks(cs[:7]...)
		time.Sleep(11 * time.Second)
		a.send(pressed)
		time.Sleep(2 * time.Minute)
		a.take()
		r.store.expect(r.t, span(1, 1, 5))
		if a.durable.Len() != 0 {
			r.t.Errorf("durable %v although the NVR does not know of it", a.durable.Ranges())
		}
		if a.last.Hold != wire.HoldStore {
			r.t.Errorf("hold %q while the part waits for the NVR", a.last.Hold)
		}
		r.nvr.setFail(nil)
		a.isDurable(span(1, 1, 5))
		a.hangUp()
	})
}

// TestPressureWhileTheStoreIsDown: nothing is called durable, nothing is lost.
func TestPressureWhileTheStoreIsDown(t *testing.T) {
	cs := tape(t, 1, 1, 30, 500)
	inBubble(t, func(r *rig) {
		r.store.set(func(s *store) { s.fail = errors.New("out of order") })
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		for i := range 25 {
			a.chunks(cs[i])
			time.Sleep(4 * time.Second)
			a.send(pressed)
		}
		a.take()
		if a.durable.Len() != 0 || a.last.Hold != wire.HoldStore {
			r.t.Errorf("durable %v, hold %q", a.durable.Ranges(), a.last.Hold)
		}
		r.store.set(func(s *store) { s.fail = nil })
		a.chunks(cs[25:]...)
		a.send(stopped(1, 30))
		a.isDurable(span(1, 1, 30))
		r.settled(alone(r.t, cs))
		a.hangUp()
	})
}

// TestAPartThatTheNVRRefusesIsNotTriedAgain: the recording waits for its end.
func TestAPartThatTheNVRRefusesIsNotTriedAgain(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		cs := tape(r.t, 1, 1, 10, 500)
		r.nvr.setFail(vms.ErrInvalid)
		for i := range 10 {
			a.chunks(cs[i])
			time.Sleep(11 * time.Second)
			a.send(pressed)
		}
		r.store.expect(r.t, span(1, 1, 1))
		r.nvr.setFail(nil)
		a.send(stopped(1, 10))
		a.isDurable(span(1, 1, 10))
		a.hangUp()
	})
}

// TestAHubThatIsGone: after the grace its footage is stored as parts; when it
// comes back, here or elsewhere, it goes on; when it does not, a janitor makes
// a recording of them.
func TestAHubThatIsGone(t *testing.T) {
	cs := tape(t, 1, 1, 20, 500)
	begin := func(r *rig) *hub {
		h := newHub(r, cs)
		h.connect(r)
		h.push(8)
		h.pressure()
		h.push(17)
		h.leave()
		time.Sleep(25 * time.Second)
		r.store.expect(r.t, span(1, 1, 5), span(1, 1, 10)) // within the grace
		time.Sleep(10 * time.Second)
		if want := []vms.ChunkRange{span(1, 1, 5), span(1, 11, 17), span(1, 1, 10)}; !slices.Equal(r.store.ranges(), want) {
			r.t.Errorf("objects hold %v, want %v", r.store.ranges(), want)
		}
		return h
	}
	t.Run("comes back here", func(t *testing.T) {
		inBubble(t, func(r *rig) {
			h := begin(r)
			asked := r.nvr.asked
			h.finish(r)
			if r.nvr.asked != asked {
				r.t.Errorf("the NVR was asked for what is open here")
			}
			r.settled(alone(r.t, cs))
		})
	})
	t.Run("comes back here, late", func(t *testing.T) {
		inBubble(t, func(r *rig) {
			h := begin(r)
			time.Sleep(11 * time.Minute)
			r.tmpfsIsEmpty()
			h.gen = 0
			h.finish(r)
			r.settled(alone(r.t, cs))
		})
	})
	t.Run("comes back elsewhere", func(t *testing.T) {
		inBubble(t, func(r *rig) {
			h := begin(r)
			b := r.another()
			defer b.shutdown()
			h.learn()
			h.finish(b)
			time.Sleep(15 * time.Minute)
			r.settled(alone(r.t, cs))
		})
	})
	t.Run("never comes back", func(t *testing.T) {
		inBubble(t, func(r *rig) {
			begin(r)
			b := r.another() // any number of janitors
			defer b.shutdown()
			time.Sleep(2 * time.Hour)
			if r.nvr.parts() != 1 {
				r.t.Errorf("%d parts before the hub is given up", r.nvr.parts())
			}
			r.nvr.set(func(n *nvr) { n.gone = true })
			time.Sleep(time.Hour)
			r.settled(alone(r.t, cs[:17]))
		})
	})
	t.Run("comes back after all", func(t *testing.T) {
		inBubble(t, func(r *rig) {
			h := begin(r)
			r.nvr.set(func(n *nvr) { n.gone = true })
			time.Sleep(time.Hour)
			r.settled(alone(r.t, cs[:17]))
			h.learn()
			h.gen = 0
			h.finish(r)
			// What follows begins in the middle of a GOP, and is kept.
			if got := r.store.ranges(); !slices.Contains(got, span(1, 18, 20)) {
				r.t.Errorf("objects hold %v", got)
			}
			for _, row := range r.nvr.rows {
				if row.Dependent != (row.Chunks.First == 18) {
					r.t.Errorf("%s: dependent %v", row.Chunks, row.Dependent)
				}
			}
		})
	})
}

// TestTheJanitorGoesOnWithTheRest: parts that are broken, or lack a
// predecessor, do not keep others from being assembled.
func TestTheJanitorGoesOnWithTheRest(t *testing.T) {
	inBubble(t, func(r *rig) {
		for _, ch := range []vms.ChannelID{"a", "b", "c"} {
			a := r.open(r.ticket(ch, 1), vms.LaneLive, 1)
			a.init(1, 1)
			cs := tape(r.t, 1, 1, 9, 300)
			for _, n := range []int{3, 6, 9} {
				a.chunks(cs[n-3 : n]...)
				time.Sleep(11 * time.Second)
				a.send(pressed)
				synctest.Wait()
			}
			a.hangUp()
		}
		time.Sleep(15 * time.Minute)
		r.store.set(func(s *store) {
			for k, b := range s.bodies {
				if strings.HasPrefix(k, "parts/a/") && strings.HasSuffix(k, "/1-3") {
					b[len(b)-2]++
				}
			}
		})
		r.nvr.set(func(n *nvr) {
			n.gone = true
			for k := range n.rows {
				if strings.HasPrefix(k, "parts/b/") && strings.HasSuffix(k, "/1-3") {
					delete(n.rows, k)
				}
			}
		})
		time.Sleep(time.Hour)
		r.nvr.set(func(n *nvr) {
			var got []string
			for _, row := range n.rows {
				if !row.Provisional() {
					got = append(got, string(row.Channel)+" "+row.Chunks.String())
				}
			}
			slices.Sort(got)
			want := []string{"a 0000000000000001:4-9", "b 0000000000000001:4-9", "c 0000000000000001:1-9"}
			if !slices.Equal(got, want) {
				r.t.Errorf("recordings %q, want %q", got, want)
			}
		})
	})
}

// TestAWorkerThatGoesAwayStoresWhatNobodyElseHas: as parts, and told to the NVR
// before it is gone.
func TestAWorkerThatGoesAwayStoresWhatNobodyElseHas(t *testing.T) {
	inBubble(t, func(r *rig) {
		gone, here := r.open(r.ticket("gone", 1), vms.LaneLive, 1), r.open(r.ticket("here", 1), vms.LaneLive, 1)
		for _, a := range []*agent{gone, here} {
			a.init(1, 1)
			a.chunks(tape(r.t, 1, 1, 7, 300)...)
		}
		synctest.Wait()
		gone.hangUp()
		r.stop()
		here.closed()
		r.ended <- <-r.ended
		r.store.expect(r.t, span(1, 1, 7))
		if r.nvr.parts() != 1 {
			r.t.Errorf("%d parts", r.nvr.parts())
		}
	})
}

// TestStoredPartsMakeRoom: when tmpfs is short of it, what is in the store
// already is taken from there, and comes back when it goes on.
func TestStoredPartsMakeRoom(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.w.Leave(37 << 19)
		cs := tape(r.t, 1, 1, 10, 1<<19)
		h := newHub(r, cs)
		h.connect(r)
		other := r.open(r.ticket("other", 1), vms.LaneLive, 1) // with so little room it would not be let in later
		h.push(9)
		synctest.Wait()
		h.pressure()
		h.leave()
		time.Sleep(40 * time.Second)
		other.init(1, 1)
		big := tape(r.t, 1, 1, 11, 800<<10) // one recording nearly fills the directory
		if n := other.paced(big...); n != 11 {
			r.t.Errorf("only %d chunks were taken: %+v", n, other.last)
		}
		other.send(stopped(1, 11))
		other.isDurable(span(1, 1, 11))
		h.finish(r)
		for k, b := range alone(r.t, cs) {
			if !bytes.Equal(r.store.bodies[k], b) {
				r.t.Errorf("%s is not the same", k)
			}
		}
		other.hangUp()
	}, func(c *worker.Config) { c.Forget = time.Hour })
}

func TestUploadsAreCounted(t *testing.T) {
	m := obs.NewRegistry()
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(tape(r.t, 1, 1, 7, 300)...)
		time.Sleep(11 * time.Second)
		a.send(pressed)
		a.isDurable(span(1, 1, 5))
		a.send(stopped(1, 7))
		a.isDurable(span(1, 1, 7))
		var text strings.Builder
		if err := m.WriteText(&text); err != nil {
			r.t.Fatal(err)
		}
		for _, line := range []string{"vms_worker_parts_total 1", "vms_worker_recordings_total 1", `vms_worker_uploaded_bytes_total{kind="part"} `, `vms_worker_uploaded_bytes_total{kind="recording"} `} {
			if !strings.Contains(text.String(), line) {
				r.t.Errorf("no %q in\n%s", line, text.String())
			}
		}
		a.hangUp()
	}, func(c *worker.Config) { c.Metrics = m })
}
