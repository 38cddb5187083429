package worker_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// preview is a chunk as live sends it to be shown only.
func preview(c vms.Chunk) vms.Chunk {
	c.Flags = c.Flags&^vms.FlagFirst | vms.FlagPreview
	return c
}

// TestBackfillGoesOnWithWhatLiveLeft: live jumps ahead of a backlog, and the
// recording that it left open is completed by the other lane.
func TestBackfillGoesOnWithWhatLiveLeft(t *testing.T) {
	cs := tape(t, 1, 1, 60, 500)
	want := alone(t, cs)
	for name, order := range map[string][][2]int{
		"oldest first": {{14, 40}},
		"newest first": {{30, 40}, {20, 30}, {14, 20}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				live := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
				live.init(1, 1)
				live.chunks(cs[:14]...)
				synctest.Wait()
				live.hangUp()
				live = r.open(live.welcome.ResumeTicket, vms.LaneLive, 1)
				live.init(1, 1)
				for _, c := range cs[35:40] {
					live.chunks(preview(c))
				}
				live.chunks(cs[40:47]...)
				back := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
				back.init(1, 1)
				for _, o := range order {
					back.chunks(cs[o[0]:o[1]]...)
					synctest.Wait()
				}
				back.isDurable(span(1, 1, 40))
				live.isDurable(span(1, 1, 40)) // both are told
				live.chunks(cs[47:]...)
				live.send(stopped(1, 60))
				live.isDurable(span(1, 1, 60))
				r.settled(want)
				live.hangUp()
				back.hangUp()
			})
		})
	}
}

// TestALaneMayNotJumpOtherwise: a number that does not follow stays an offence.
func TestALaneMayNotJumpOtherwise(t *testing.T) {
	cs := tape(t, 1, 1, 60, 100)
	for name, tt := range map[string]struct {
		lane vms.Lane
		do   func(a *agent)
	}{
		"live to a first, without previews":      {vms.LaneLive, func(a *agent) { a.chunks(cs[20]) }},
		"live behind previews, to no first":      {vms.LaneLive, func(a *agent) { a.chunks(preview(cs[24]), cs[25]) }},
		"backfill, to no first":                  {vms.LaneBackfill, func(a *agent) { a.chunks(cs[25]) }},
		"backfill backwards, to no first":        {vms.LaneBackfill, func(a *agent) { a.chunks(cs[40], cs[25]) }},
		"backfill, past the next of an open one": {vms.LaneBackfill, func(a *agent) { a.chunks(cs[40], cs[14]) }},
		"live, to what is declared on no account": {vms.LaneLive, func(a *agent) {
			a.send(&wire.GapMessage{ID: "g", Chunks: span(1, 15, 20), Cause: "x"})
			a.chunks(cs[20])
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				a := r.open(r.ticket("ch", 1), tt.lane, 1)
				a.init(1, 1)
				a.chunks(cs[10:13]...)
				tt.do(a)
				if m, _ := a.closed(); m.Code != wire.CodeSequence || m.Class != wire.ClassRetry {
					r.t.Errorf("the agent was told %+v", m)
				}
			})
		})
	}
}

// TestAHelloMayBeOld: an epoch that began after it goes on, and chunks of one
// that the agent has let go before it may still be on their way.
func TestAHelloMayBeOld(t *testing.T) {
	old, cs := tape(t, 1, 1, 20, 100), tape(t, 2, 1, 20, 100)
	want := alone(t, old)
	for k, b := range alone(t, cs) {
		want[k] = b
	}
	inBubble(t, func(r *rig) {
		live := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		live.init(1, 1)
		live.chunks(old[:19]...)
		synctest.Wait()
		back := r.open(r.ticket("ch", 1), vms.LaneBackfill)
		live.chunks(old[18:]...)
		live.send(stopped(1, 20))
		live.init(2, 1)
		live.chunks(cs[:4]...)
		synctest.Wait()
		back.hangUp()
		back = r.open(back.welcome.ResumeTicket, vms.LaneBackfill, 1)
		live.chunks(cs[4:]...)
		live.send(stopped(2, 20))
		live.isDurable(span(2, 1, 20))
		r.settled(want)
		live.hangUp()
		back.hangUp()
		r.open(r.ticket("ch", 1), vms.LaneBackfill, 3).hangUp() // nothing is kept for ever
		if have := r.open(r.ticket("ch", 1), vms.LaneLive, 1, 2).welcome.Have; len(have) != 0 {
			r.t.Errorf("have %v", have)
		}
	})
}

// TestAnEndAheadClosesNothing: live says how far the stream goes, and backfill
// is not there yet.
func TestAnEndAheadClosesNothing(t *testing.T) {
	cs := tape(t, 1, 1, 15, 100)
	inBubble(t, func(r *rig) {
		back := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		back.init(1, 1)
		back.chunks(cs[:13]...)
		live := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		live.init(1, 1)
		live.chunks(preview(cs[14]))
		live.send(stopped(1, 15))
		time.Sleep(20 * time.Second)
		r.store.expect(r.t, span(1, 1, 10))
		back.chunks(cs[13:]...)
		back.isDurable(span(1, 11, 15))
		r.settled(alone(r.t, cs))
		live.hangUp()
		back.hangUp()
	})
}

// TestWhatLiveLeavesIsStoredAsParts: the backfill lane may be hours behind, and
// tmpfs is not for that.
func TestWhatLiveLeavesIsStoredAsParts(t *testing.T) {
	cs := tape(t, 1, 1, 40, 100)
	inBubble(t, func(r *rig) {
		live := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		live.init(1, 1)
		live.chunks(cs[:14]...)
		live.chunks(preview(cs[25]))
		live.chunks(cs[30:33]...)
		synctest.Wait()
		for i := range 80 {
			time.Sleep(time.Second)
			if i%15 == 0 {
				live.chunks(cs[33+i/15])
			}
		}
		live.take()
		if want := []vms.ChunkRange{span(1, 1, 14)}; !slices.Equal(live.durable.Ranges(), want) {
			r.t.Errorf("durable %v, want %v", live.durable.Ranges(), want)
		}
		back := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		back.init(1, 1)
		back.chunks(cs[14:30]...)
		live.chunks(cs[39:]...)
		live.send(stopped(1, 40))
		live.isDurable(span(1, 1, 40))
		r.settled(alone(r.t, cs))
		live.hangUp()
		back.hangUp()
	})
}

// TestOpenRecordingsAreBounded: whatever an agent leaves behind.
func TestOpenRecordingsAreBounded(t *testing.T) {
	cs := tape(t, 1, 1, 1000, 100)
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		a.init(1, 1)
		for i := 0; i < 1000; i += 20 {
			a.chunks(cs[i])
		}
		if m, _ := a.closed(); m.Class != wire.ClassRetry || m.RetryAfterMS == 0 {
			r.t.Errorf("the agent was told %+v", m)
		}
		time.Sleep(2 * time.Minute)
		if n := r.nvr.parts(); n < 20 || n > 32 {
			r.t.Errorf("%d parts", n)
		}
		// An honest agent goes on where it was.
		h := newHub(r, cs[:100])
		h.gen = 0
		h.finish(r)
		for _, w := range []string{"1-10", "11-20", "91-100"} {
			if !slices.ContainsFunc(r.store.ranges(), func(x vms.ChunkRange) bool { return fmt.Sprintf("%d-%d", x.First, x.Last) == w }) {
				r.t.Errorf("no recording %s", w)
			}
		}
	})
}
