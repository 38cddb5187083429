package spool

import (
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Holding lists what is held as unbroken runs with the time they cover and the
// lane that will bring them; the oldest ones, when there are more than a
// message may have.
func (s *Spool) Holding() []wire.HeldRange {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []wire.HeldRange
	add := func(ord int, h wire.HeldRange) bool {
		h.Lane = s.laneOf(key{ord: ord, seq: h.Chunks.First})
		if n := len(out); n > 0 {
			l := &out[n-1]
			if l.Chunks.Epoch == h.Chunks.Epoch && l.Chunks.Last+1 == h.Chunks.First && l.End.Equal(h.Start) && l.Lane == h.Lane {
				l.Chunks.Last, l.End, l.Bytes = h.Chunks.Last, h.End, l.Bytes+h.Bytes
				return true
			}
		}
		if len(out) == wire.MaxRanges {
			return false
		}
		out = append(out, h)
		return true
	}
	for _, b := range s.blocks {
		if b.time.withheld() {
			continue // nobody could say when it was
		}
		for from := b.gone.missing(b.First); from <= b.Last; {
			to := b.Last
			if n, ok := b.gone.above(from); ok {
				to = min(to, n-1)
			}
			to = s.sameLane(b.ord, from, to)
			h := wire.HeldRange{
				Chunks: vms.ChunkRange{Epoch: b.Epoch, First: from, Last: to},
				Start:  b.startOf(from), End: b.endOf(to), Bytes: b.share(to - from + 1),
			}
			if !add(b.ord, h) {
				return out
			}
			from = b.gone.missing(to + 1)
		}
	}
	for _, e := range s.entries {
		if s.withheld(e.ord) {
			continue
		}
		c := e.chunk
		h := wire.HeldRange{
			Chunks: vms.ChunkRange{Epoch: c.Epoch, First: c.Seq, Last: c.Seq},
			Start:  c.Start, End: c.End, Bytes: int64(len(c.Payload)),
		}
		if !add(e.ord, h) {
			return out
		}
	}
	return out
}

// laneOf says which lane brings the chunk at k.
func (s *Spool) laneOf(k key) vms.Lane {
	if s.bounded && !k.before(s.bound) || s.elder != nil && !k.before(s.elder.from) && k.before(s.elder.until) {
		return vms.LaneLive
	}
	return vms.LaneBackfill
}

// sameLane cuts chunks from to to of one epoch where another lane begins.
func (s *Spool) sameLane(ord int, from, to uint64) uint64 {
	cut := func(k key) {
		if k.ord == ord && from < k.seq && k.seq <= to {
			to = k.seq - 1
		}
	}
	if s.bounded {
		cut(s.bound)
	}
	if s.elder != nil {
		cut(s.elder.from)
		cut(s.elder.until)
	}
	return to
}

// Stats is what a spool holds.
type Stats struct {
	// RAM is what the chunks in memory cost, in bytes; Flash what the files of
	// the channel take, also where what they hold is durable already.
	RAM, Flash int64
	Chunks     int
	// CapturedUntil is the end of the newest chunk; DurableUntil that of the
	// newest one known to be in S3.
	CapturedUntil, DurableUntil time.Time
	// Oldest is the start of the oldest chunk that is held.
	Oldest time.Time
	// Dropped counts chunks that were dropped and declared.
	Dropped uint64
	// Gaps counts those that the NVR has not committed.
	Gaps int
}

// Stats returns what the spool holds.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	st := Stats{
		RAM: s.bytes, Chunks: len(s.entries), CapturedUntil: s.lastEnd, DurableUntil: s.durable,
		Dropped: s.lost, Gaps: len(s.gaps),
	}
	for _, b := range s.blocks {
		st.Chunks += int(b.held())
	}
	if r, ok := s.heldFrom(key{}); ok {
		st.Oldest = r.start()
	}
	sh := s.shelf
	s.mu.Unlock()
	if sh != nil {
		st.Flash = sh.bytes()
	}
	return st
}
