package worker_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// drain begins to drain r, and returns what says that it is done.
func (r *rig) drain(ctx context.Context) (done chan struct{}) {
	done = make(chan struct{})
	r.wg.Go(func() {
		r.w.Drain(ctx)
		close(done)
	})
	synctest.Wait()
	return done
}

func isDone(done chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// refusedAsBusy checks that a lane is refused before the upgrade, with when to come again.
func (r *rig) refusedAsBusy(ch vms.ChannelID) {
	r.t.Helper()
	a, resp, err := r.dial(r.ticket(ch, 1), wire.PushProtocol)
	if err == nil {
		a.hangUp()
		r.t.Errorf("a lane of %s is let in", ch)
		return
	}
	if p := problem.ReadResponse(resp); problem.TypeOf(p) != wire.ProblemBusy || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		r.t.Errorf("a lane of %s is refused with %v", ch, p)
	}
}

// parts lists the notices of parts.
func (n *nvr) toldParts() (out []string) {
	n.set(func(n *nvr) {
		for _, x := range n.told {
			if strings.HasPrefix(x, "part ") {
				out = append(out, x)
			}
		}
	})
	return out
}

// TestDrainWaitsForAllThatIsHere: for lanes, and until what they brought is
// durable; whoever is here may come back for that, nobody else is let in.
func TestDrainWaitsForAllThatIsHere(t *testing.T) {
	cs := tape(t, 1, 1, 40, 300)
	inBubble(t, func(r *rig) {
		b := r.another()
		defer b.shutdown()
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(cs[:15]...)
		synctest.Wait()
		if r.w.Load().Draining {
			r.t.Error("it drains before it was told to")
		}
		done, again := r.drain(r.t.Context()), r.drain(r.t.Context())
		if !r.w.Load().Draining {
			r.t.Error("Load does not say that it drains")
		}
		r.refusedAsBusy("other")
		a.hangUp() // a flapping link
		a = r.open(a.welcome.ResumeTicket, vms.LaneLive, 1)
		a.init(1, 1)

		// The next recording begins at the other worker.
		next := b.open(b.ticket("ch", 2), vms.LaneLive, 1)
		next.init(1, 1)
		r.w.Moved("ch", "wss://b")
		a.chunks(cs[15:20]...)
		r.store.set(func(s *store) { s.delay = 7 * time.Second })
		a.send(&wire.End{Epoch: 1, Seq: 20, Cause: "moved"})
		next.chunks(cs[20:]...)
		next.send(stopped(1, 40))
		time.Sleep(5 * time.Second)
		if isDone(done) {
			r.t.Error("drained before the last recording was stored")
		}
		a.isDurable(span(1, 11, 20))
		time.Sleep(time.Minute)
		if isDone(done) {
			r.t.Error("drained while there is a lane")
		}
		r.nvr.setFail(errors.New("away"))
		a.hangUp()
		time.Sleep(2 * time.Second)
		if isDone(done) {
			r.t.Error("drained before the NVR heard of the lane's end")
		}
		r.nvr.setFail(nil)
		time.Sleep(10 * time.Second)
		if !isDone(done) || !isDone(again) {
			r.t.Errorf("not drained: %+v", r.w.Load())
		}
		next.isDurable(span(1, 21, 40))
		next.hangUp()
		if l := r.w.Load(); l.Streams != 0 || l.Lanes != 0 || l.UploadsWaiting != 0 {
			r.t.Errorf("load %+v", l)
		}
		r.settled(alone(r.t, cs))
		if p := r.nvr.toldParts(); len(p) > 0 {
			r.t.Errorf("parts were made: %q", p)
		}
		r.tmpfsIsEmpty()
	})
}

// TestDrainAfterAReplay: what the agent brings to its next worker once more is
// not waited for, not stored, and not lost.
func TestDrainAfterAReplay(t *testing.T) {
	cs := tape(t, 1, 1, 30, 300)
	inBubble(t, func(r *rig) {
		b := r.another()
		defer b.shutdown()
		h := newHub(r, cs)
		h.connect(r)
		h.push(15)
		time.Sleep(2 * time.Second)
		h.take()
		done := r.drain(r.t.Context())
		r.w.Moved("ch", "wss://b")
		h.connect(b)
		h.push(18)
		time.Sleep(3 * time.Second)
		if !isDone(done) {
			r.t.Errorf("not drained: %+v", r.w.Load())
		}
		c := r.restart(false, 0) // as it is replaced
		defer c.shutdown()
		h.push(30)
		h.finish(b)
		time.Sleep(2 * time.Minute)
		if p := r.nvr.toldParts(); len(p) > 0 {
			r.t.Errorf("parts were made: %q", p)
		}
		c.settled(alone(r.t, cs))
		c.store.same(r.t, alone(r.t, cs))
		c.tmpfsIsEmpty()
	})
}

// TestDrainOfWhatAnAgentLeft: one that is gone, and nobody knows whereto, has
// its grace time; then what there is of it is stored as parts.
func TestDrainOfWhatAnAgentLeft(t *testing.T) {
	cs := tape(t, 1, 1, 15, 300)
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(cs...)
		synctest.Wait()
		a.hangUp()
		done := r.drain(r.t.Context())
		time.Sleep(20 * time.Second)
		if isDone(done) {
			r.t.Error("drained although the agent may come back")
		}
		time.Sleep(15 * time.Second)
		if !isDone(done) {
			r.t.Errorf("not drained: %+v", r.w.Load())
		}
		if p := r.nvr.toldParts(); !slices.Equal(p, []string{"part ch 11-15"}) {
			r.t.Errorf("parts %q", p)
		}
	})
}

// TestDrainHasAnEnd: that of its context, or of the worker.
func TestDrainHasAnEnd(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
		defer cancel()
		short, long := r.drain(ctx), r.drain(r.t.Context())
		time.Sleep(61 * time.Second)
		if !isDone(short) || isDone(long) {
			r.t.Errorf("after the time was up: %v, %v", isDone(short), isDone(long))
		}
		r.shutdown()
		if !isDone(long) {
			r.t.Error("Drain outlives Run")
		}
		if m, _ := a.closed(); m.Code != wire.CodeDraining || m.Class != wire.ClassReassign {
			r.t.Errorf("the agent was told %+v", m)
		}
	})
}

// TestWhatMovedIsNotStoredTwice: also where nobody drains. What is left of a
// recording whose agent went elsewhere is stored as parts only where the whole is
// not there after the grace time.
func TestWhatMovedIsNotStoredTwice(t *testing.T) {
	cs := tape(t, 1, 1, 30, 300)
	for _, gone := range []bool{false, true} {
		inBubble(t, func(r *rig) {
			b := r.another()
			defer b.shutdown()
			h := newHub(r, cs)
			h.connect(r)
			h.push(15)
			time.Sleep(2 * time.Second)
			h.take()
			r.w.Moved("ch", "wss://b")
			h.connect(b)
			if gone {
				h.push(12)
				h.leave() // burnt
				time.Sleep(3 * time.Minute)
				if p := r.nvr.toldParts(); !slices.Contains(p, "part ch 11-15") {
					r.t.Errorf("parts %q", p)
				}
				return
			}
			h.push(19)
			time.Sleep(27 * time.Second) // it comes just in time
			h.push(22)
			time.Sleep(10 * time.Second)
			h.finish(b)
			time.Sleep(15 * time.Minute)
			if p := r.nvr.toldParts(); len(p) > 0 {
				r.t.Errorf("parts were made: %q", p)
			}
			r.settled(alone(r.t, cs))
			r.tmpfsIsEmpty()
		})
	}
}
