package worker_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// jumped is a worker after its agent has jumped ahead: of the recordings 1-10,
// 11-20 and 21-30 the live lane has brought the last one, which is stored and
// registered, and goes on with 31; backfill is at 11-15.
func jumped(r *rig, cs []vms.Chunk) (live, back *agent) {
	r.t.Helper()
	live = r.open(r.ticket("ch", 1), vms.LaneLive, 1)
	live.init(1, 1)
	live.chunks(cs[20:31]...)
	live.isDurable(span(1, 21, 30))
	back = r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
	back.init(1, 1)
	back.chunks(cs[10:15]...)
	synctest.Wait()
	time.Sleep(1500 * time.Millisecond)
	return live, back
}

// completed checks that 11-20 is stored whole, which nothing told b but the NVR.
func completed(b *rig, cs []vms.Chunk) {
	b.t.Helper()
	want := alone(b.t, cs)
	time.Sleep(10 * time.Second)
	b.store.set(func(s *store) {
		for k, o := range s.objects {
			if o.Chunks == span(1, 11, 20) && string(s.bodies[k]) == string(want[k]) {
				return
			}
		}
		b.t.Error("11-20 is not stored as a whole")
	})
	if n := b.nvr.parts(); n != 0 {
		b.t.Errorf("%d parts have no whole", n)
	}
}

// TestARecordingEndsWhereTheNextOneIsStored: the lane that brought the next one,
// to the process before this one or to another worker, brings it no more, and
// says nothing of it either.
func TestARecordingEndsWhereTheNextOneIsStored(t *testing.T) {
	cs := tape(t, 1, 1, 31, 300)
	goOn := func(b *rig, from int) {
		live := b.open(b.ticket("ch", 2), vms.LaneLive, 1)
		live.init(1, 1)
		live.chunks(cs[30:]...)
		back := b.open(b.ticket("ch", 2), vms.LaneBackfill, 1)
		back.init(1, 1)
		back.chunks(cs[from:20]...)
		synctest.Wait()
		completed(b, cs)
		back.take()
		if !back.durable.Covers(span(1, 11, 20)) {
			b.t.Errorf("the agent knows that %v is durable", back.durable.Ranges())
		}
		if used, _ := b.w.Use(); used != int64(len(cs[30].Payload)) {
			b.t.Errorf("%d bytes are left in the directory", used)
		}
		live.hangUp()
		back.hangUp()
	}
	t.Run("after a restart", func(t *testing.T) {
		inBubble(t, func(r *rig) {
			live, back := jumped(r, cs)
			b := r.restart(true, 0)
			defer b.shutdown()
			live.hangUp()
			back.hangUp()
			goOn(b, 15)
		})
	})
	t.Run("after a takeover", func(t *testing.T) {
		inBubble(t, func(r *rig) {
			live, back := jumped(r, cs)
			live.hangUp()
			back.hangUp()
			b := r.another()
			defer b.shutdown()
			goOn(b, 10)
		})
	})
}

// TestTheNextOneIsStoredLater: by another worker that is slow; and while the NVR
// is away nobody knows.
func TestTheNextOneIsStoredLater(t *testing.T) {
	cs := tape(t, 1, 1, 31, 300)
	inBubble(t, func(r *rig) {
		r.store.set(func(s *store) { s.fail = errors.New("out of order") })
		live := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		live.init(1, 1)
		live.chunks(cs[20:31]...)
		synctest.Wait()
		live.hangUp()
		b := r.another(func(c *worker.Config) { c.Store = newStore() })
		defer b.shutdown()
		back := b.open(b.ticket("ch", 2), vms.LaneBackfill, 1)
		back.init(1, 1)
		back.chunks(cs[10:20]...)
		time.Sleep(20 * time.Second)
		r.nvr.set(func(n *nvr) { n.failParts = errors.New("away") })
		r.store.set(func(s *store) { s.fail = nil })
		time.Sleep(5 * time.Minute)
		if n := r.nvr.wholes(span(1, 11, 20)); n != 0 {
			r.t.Fatal("it is complete although nobody can say so")
		}
		r.nvr.set(func(n *nvr) { n.failParts = nil })
		time.Sleep(3 * time.Minute)
		if n := r.nvr.wholes(span(1, 11, 20)); n != 1 {
			r.t.Errorf("the NVR knows %d whole recordings of it", n)
		}
		b.tmpfsIsEmpty()
		back.hangUp()
	})
}

// wholes counts the rows of whole recordings that hold c and nothing else.
func (n *nvr) wholes(c vms.ChunkRange) (count int) {
	n.set(func(n *nvr) {
		for _, r := range n.rows {
			if !r.Provisional() && r.Chunks == c {
				count++
			}
		}
	})
	return count
}

// TestPartsAreCompletedWhenTheNextOneIsStored: also when all that is left of the
// recording is in the store.
func TestPartsAreCompletedWhenTheNextOneIsStored(t *testing.T) {
	cs := tape(t, 1, 1, 31, 300)
	inBubble(t, func(r *rig) {
		b := r.another()
		live, old := jumped(r, cs)
		live.hangUp()
		old.hangUp()
		back := b.open(b.ticket("ch", 2), vms.LaneBackfill, 1)
		back.init(1, 1)
		back.chunks(cs[10:20]...)
		synctest.Wait()
		b.shutdown() // with the recording open
		if b.nvr.parts() != 0 {
			r.t.Fatal("a part was made while the agent was there")
		}
		c := r.another()
		back = c.open(c.ticket("ch", 3), vms.LaneBackfill, 1)
		back.init(1, 1)
		back.chunks(cs[10:20]...)
		time.Sleep(3 * time.Second)
		back.hangUp()
		c.shutdown() // with the agent away: it leaves a part
		if c.nvr.parts() != 1 {
			r.t.Fatalf("%d parts", c.nvr.parts())
		}
		d := r.another()
		defer d.shutdown()
		live = d.open(d.ticket("ch", 4), vms.LaneLive, 1)
		live.init(1, 1)
		live.chunks(cs[30:]...)
		synctest.Wait()
		completed(d, cs)
		live.send(&wire.End{Epoch: 1, Seq: 31})
		live.hangUp()
	})
}

// TestTheNVRIsNotAskedInVain: of a camera that is silent it is asked a few times,
// of one that is not never.
func TestTheNVRIsNotAskedInVain(t *testing.T) {
	cs := tape(t, 1, 1, 60, 300)
	inBubble(t, func(r *rig) {
		asked := func() (n int) {
			r.nvr.set(func(v *nvr) { n = v.asked })
			return n
		}
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		before := asked()
		for _, c := range cs {
			a.chunks(c)
			time.Sleep(4 * time.Second)
		}
		if n := asked() - before; n != 0 {
			r.t.Errorf("asked %d times while chunks came", n)
		}
		time.Sleep(time.Hour)
		if n := asked() - before; n == 0 || n > 70 {
			r.t.Errorf("asked %d times in an hour of silence", n)
		}
		a.hangUp()
	})
}

// TestWhatOverlapsIsNotStoredAsAWhole: what follows is in a recording that has
// some of this one, too. It is stored as a part, and its janitor will see.
func TestWhatOverlapsIsNotStoredAsAWhole(t *testing.T) {
	cs := tape(t, 1, 1, 15, 300)
	inBubble(t, func(r *rig) {
		other := vms.Recording{Key: "recordings/ch/other", Channel: "ch", Chunks: span(1, 14, 20)}
		r.nvr.set(func(n *nvr) { n.rows = map[string]vms.Recording{other.Key: other} })
		back := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		back.init(1, 1)
		back.chunks(cs[10:15]...)
		time.Sleep(5 * time.Minute)
		r.store.expect(t, span(1, 11, 15))
		if r.nvr.parts() != 1 {
			t.Errorf("%d parts", r.nvr.parts())
		}
		back.isDurable(span(1, 11, 20))
		back.hangUp()
	})
}
