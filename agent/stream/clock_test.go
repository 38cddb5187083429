package stream

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// TestTheTimeIsLearntInTheMiddle of a call: what is stamped goes on in provisional
// time until all of it moves, and is certain from then on.
func TestTheTimeIsLearntInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, sp := newStream(t)
		s.mu.Lock()
		defer s.mu.Unlock()
		chunk := func(seq uint64) (c vms.Chunk) {
			time.Sleep(200 * time.Millisecond)
			now, uncertain := s.utc(time.Now())
			c = vms.Chunk{Epoch: s.epoch, Seq: seq, Flags: vms.FlagKey, Start: now.Add(-200 * time.Millisecond), End: now}
			if uncertain {
				c.Flags |= vms.FlagTimeUncertain
			}
			s.chunk(c)
			return c
		}
		a := chunk(1)
		ahead := 30 * 365 * 24 * time.Hour
		now := time.Now()
		s.cfg.Clock.Learn(now, now, now.Add(ahead))
		b := chunk(2)
		if !b.Start.Equal(a.End) || !b.Flags.Has(vms.FlagTimeUncertain) {
			t.Errorf("after the time is learnt a chunk begins at %v, the one before ended at %v; flags %b", b.Start, a.End, b.Flags)
		}
		if h := sp.Holding(); len(h) > 0 {
			t.Errorf("the NVR hears of %v", h)
		}
		s.settle()
		c := chunk(3)
		h := sp.Holding()
		if len(h) != 1 || h[0].Chunks.Last != 3 || !h[0].End.Equal(time.Now().Add(ahead)) || c.Flags.Has(vms.FlagTimeUncertain) {
			t.Errorf("holding %v, want three chunks up to now", h)
		}
		if g := sp.Gaps(10); len(g) > 0 {
			t.Errorf("gaps %v", g)
		}
	})
}

// TestAbsenceBeforeTheTimeIsKnown: the NVR hears of it when the time is, with the
// time that it was.
func TestAbsenceBeforeTheTimeIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, sp := newStream(t)
		begun := time.Now()
		time.Sleep(15 * time.Second)
		s.growAbsence()
		if g := sp.Gaps(10); len(g) > 0 {
			t.Errorf("gaps %v, of no time", g)
		}
		ahead := 30 * 365 * 24 * time.Hour
		learn(s, ahead)
		g := sp.Gaps(10)
		if len(g) != 1 || !g[0].Start.Equal(begun.Add(ahead)) || g[0].Duration() != 15*time.Second {
			t.Fatalf("gaps %v, want 15 s from %v", g, begun.Add(ahead))
		}
		time.Sleep(5 * time.Second)
		give(s, s.epoch, 1)
		sp.Resend()
		same := sp.Gaps(10)
		if len(same) != 1 || same[0].ID != g[0].ID || same[0].Duration() != 20*time.Second-200*time.Millisecond {
			t.Errorf("gaps %v, want the same one, up to the first chunk", same)
		}
	})
}
