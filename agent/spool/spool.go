// Package spool keeps the chunks that are not durable yet. It is the one place
// where the agent drops footage: when the budget is full, whole GOPs, oldest
// first, and every drop becomes a gap with a cause. Appending never blocks.
package spool

import (
	"slices"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Spool holds the chunks of one channel, over all its epochs of this run of
// the agent. Make it with Budget.NewSpool. All methods may be called at the
// same time.
type Spool struct {
	budget *Budget

	mu      sync.Mutex
	entries []entry // ascending by key
	epochs  []epochState
	holes   []hole
	bytes   int64
	// starving says why a GOP was dropped up to its newest chunk, so that what
	// follows of it cannot be decoded either; empty when it was not.
	starving vms.Cause
	changed  chan struct{} // closed and replaced when entries or holes change
	durable  time.Time     // end of the newest chunk known to be durable
	lost     uint64        // chunks dropped and declared
}

// key orders entries: the epoch's place in time, then the chunk number, then
// an end behind the chunk it follows.
type key struct {
	ord int
	seq uint64
	end bool
}

func (k key) compare(o key) int {
	switch {
	case k.ord != o.ord:
		return k.ord - o.ord
	case k.seq != o.seq:
		if k.seq < o.seq {
			return -1
		}
		return 1
	case k.end == o.end:
		return 0
	case o.end:
		return -1
	}
	return 1
}

type entry struct {
	key
	chunk *vms.Chunk // nil for an end
	cause string     // of an end
}

type epochState struct {
	epoch vms.Epoch
	inits map[uint32]vms.Init
}

// hole is a run of chunks that were dropped, and the gap that says so.
type hole struct {
	ord         int
	first, last uint64
	gap         vms.Gap
	sent        bool // handed out: it must not grow any more
	committed   bool
	// A gap that is declared again while it is on its way is not committed by
	// the answer to what it was before.
	version, asked uint64
	inFlight       bool
}

// ordinal returns the place of epoch e, which it adds when it is new.
func (s *Spool) ordinal(e vms.Epoch) int {
	for i := range s.epochs {
		if s.epochs[i].epoch == e {
			return i
		}
	}
	s.epochs = append(s.epochs, epochState{epoch: e, inits: map[uint32]vms.Init{}})
	return len(s.epochs) - 1
}

func (s *Spool) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// PutInit keeps an init for the chunks that will name it.
func (s *Spool) PutInit(i vms.Init) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epochs[s.ordinal(i.Epoch)].inits[i.ID] = i
}

// Init returns the init that a chunk names.
func (s *Spool) Init(e vms.Epoch, id uint32) (vms.Init, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.epochs {
		if s.epochs[i].epoch == e {
			init, ok := s.epochs[i].inits[id]
			return init, ok
		}
	}
	return vms.Init{}, false
}

// Append takes the next chunk of an epoch. It never blocks; it may drop older
// chunks, of this or another stream, to keep the budget.
func (s *Spool) Append(c vms.Chunk) {
	s.mu.Lock()
	ord := s.ordinal(c.Epoch)
	if s.starving != "" && !c.Flags.Has(vms.FlagKey) {
		s.dropped(ord, &c, s.starving)
		s.notify()
		s.mu.Unlock()
		return
	}
	s.starving = ""
	s.entries = append(s.entries, entry{key: key{ord: ord, seq: c.Seq}, chunk: &c})
	n := size(&c)
	s.bytes += n
	s.notify()
	s.mu.Unlock()
	s.budget.add(n)
}

// size is what a chunk costs: its bytes and what keeps them.
func size(c *vms.Chunk) int64 { return int64(len(c.Payload)) + 256 }

// End notes that nothing of epoch e follows for now, so that the worker can
// complete the recording.
func (s *Spool) End(e vms.Epoch, seq uint64, cause string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key{ord: s.ordinal(e), seq: seq, end: true}
	i, found := slices.BinarySearchFunc(s.entries, k, func(e entry, k key) int { return e.compare(k) })
	if !found {
		s.entries = slices.Insert(s.entries, i, entry{key: k, cause: cause})
		s.notify()
	}
}

// Durable frees what is in S3.
func (s *Spool) Durable(ranges []vms.ChunkRange) {
	if len(ranges) == 0 {
		return
	}
	s.mu.Lock()
	var freed int64
	before := len(s.entries)
	s.entries = slices.DeleteFunc(s.entries, func(e entry) bool {
		for _, r := range ranges {
			if s.epochs[e.ord].epoch != r.Epoch || e.seq < r.First || e.seq > r.Last {
				continue
			}
			if e.chunk != nil {
				freed += size(e.chunk)
				if e.chunk.End.After(s.durable) {
					s.durable = e.chunk.End
				}
			}
			return true
		}
		return false
	})
	s.bytes -= freed
	if len(s.entries) != before {
		s.freeInits()
		s.notify()
	}
	s.mu.Unlock()
	s.budget.add(-freed)
}

// freeInits forgets the inits that no held chunk names, but for the newest of
// the present epoch, which the next chunk names.
func (s *Spool) freeInits() {
	least := make(map[int]uint32)
	for _, e := range s.entries {
		if e.chunk == nil {
			continue
		}
		if n, ok := least[e.ord]; !ok || e.chunk.Init < n {
			least[e.ord] = e.chunk.Init
		}
	}
	for i := range s.epochs {
		inits := s.epochs[i].inits
		n, held := least[i]
		switch {
		case held:
		case i < len(s.epochs)-1:
			s.epochs[i].inits = nil
			continue
		default:
			for id := range inits {
				n = max(n, id)
			}
		}
		for id := range inits {
			if id < n {
				delete(inits, id)
			}
		}
	}
}

// Skip drops the GOP of a chunk that the worker will never take.
func (s *Spool) Skip(e vms.Epoch, seq uint64) {
	s.mu.Lock()
	var freed int64
	i := slices.IndexFunc(s.entries, func(en entry) bool {
		return en.chunk != nil && en.chunk.Epoch == e && en.seq == seq
	})
	if i >= 0 {
		from := i
		for from > 0 && !s.entries[from].startsGOP() && s.entries[from-1].follows(s.entries[from]) {
			from--
		}
		to := i + 1
		for to < len(s.entries) && !s.entries[to].startsGOP() && s.entries[to-1].follows(s.entries[to]) {
			to++
		}
		newest := to == len(s.entries)
		freed = s.drop(from, to, vms.CauseRejected)
		if newest {
			s.starving = vms.CauseRejected
		}
		s.notify()
	}
	s.mu.Unlock()
	s.budget.add(-freed)
}

func (e entry) startsGOP() bool { return e.chunk != nil && e.chunk.Flags.Has(vms.FlagKey) }

// follows reports whether n is the chunk right after e.
func (e entry) follows(n entry) bool {
	return e.chunk != nil && n.chunk != nil && e.ord == n.ord && e.seq+1 == n.seq
}

// dropOldest drops the oldest GOP, with the ends before it, and returns the
// bytes it freed, 0 when nothing is left.
func (s *Spool) dropOldest() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := slices.IndexFunc(s.entries, func(e entry) bool { return e.chunk != nil })
	if from < 0 {
		return 0
	}
	to := from + 1
	for to < len(s.entries) && !s.entries[to].startsGOP() && s.entries[to-1].follows(s.entries[to]) {
		to++
	}
	newest := to == len(s.entries)
	freed := s.drop(0, to, vms.CauseBufferFull)
	if newest {
		s.starving = vms.CauseBufferFull
	}
	s.notify()
	return freed
}

// drop removes entries [from, to) and declares them missing.
func (s *Spool) drop(from, to int, cause vms.Cause) (freed int64) {
	for _, e := range s.entries[from:to] {
		if e.chunk != nil {
			freed += size(e.chunk)
			s.dropped(e.ord, e.chunk, cause)
		}
	}
	s.entries = slices.Delete(s.entries, from, to)
	s.bytes -= freed
	return freed
}

// dropped puts one chunk into a hole, the last one where it can grow.
func (s *Spool) dropped(ord int, c *vms.Chunk, cause vms.Cause) {
	s.lost++
	if n := len(s.holes); n > 0 {
		h := &s.holes[n-1]
		if h.ord == ord && h.last+1 == c.Seq && !h.sent && h.gap.Cause == cause {
			h.last = c.Seq
			h.gap.End, h.gap.Chunks.Last = c.End, c.Seq
			return
		}
	}
	r := vms.ChunkRange{Epoch: c.Epoch, First: c.Seq, Last: c.Seq}
	s.holes = append(s.holes, hole{ord: ord, first: c.Seq, last: c.Seq, gap: vms.Gap{
		ID: vms.NewID[vms.GapID]("gap"), Cause: cause,
		TimeRange: vms.TimeRange{Start: c.Start, End: c.End}, Chunks: &r,
	}})
}

// Declare keeps a gap that no dropped chunk explains, such as a camera that is
// away. Declared again under its id it replaces what was said before.
func (s *Spool) Declare(g vms.Gap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.notify()
	for i := range s.holes {
		if h := &s.holes[i]; h.gap.ID == g.ID {
			h.gap, h.committed = g, false
			h.version++
			return
		}
	}
	s.holes = append(s.holes, hole{ord: -1, gap: g})
}

// Gaps returns, at most max of them, the gaps that the NVR has not committed
// and that are not on their way to it: call Resend when the session is new. A
// drop that goes on afterwards makes a gap of its own.
func (s *Spool) Gaps(max int) []vms.Gap {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []vms.Gap
	for i := range s.holes {
		h := &s.holes[i]
		if h.committed || h.inFlight || len(out) == max {
			continue
		}
		h.sent, h.inFlight, h.asked = true, true, h.version
		g := h.gap
		if g.Chunks != nil {
			r := *g.Chunks
			g.Chunks = &r
		}
		out = append(out, g)
	}
	return out
}

// Resend takes gaps that are on their way for lost.
func (s *Spool) Resend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.holes {
		s.holes[i].inFlight = false
	}
}

// Committed frees gaps that the NVR has in its database. The holes stay known
// as long as their epoch is, because a lane still has to explain them.
func (s *Spool) Committed(ids []vms.GapID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.holes {
		if h := &s.holes[i]; slices.Contains(ids, h.gap.ID) {
			h.inFlight = false
			h.committed = h.asked == h.version
		}
	}
	s.tidy()
}

// tidy forgets committed holes that lie before everything held, but for the
// last one of each epoch: a cursor may stand before it.
func (s *Spool) tidy() {
	if len(s.holes) < 256 {
		return
	}
	newest := make(map[int]uint64) // the last chunk of the last hole of each epoch
	for _, h := range s.holes {
		newest[h.ord] = max(newest[h.ord], h.last)
	}
	s.holes = slices.DeleteFunc(s.holes, func(h hole) bool {
		if !h.committed || h.ord >= 0 && h.last == newest[h.ord] {
			return false
		}
		return h.ord < 0 || len(s.entries) == 0 || h.ord < s.entries[0].ord ||
			h.ord == s.entries[0].ord && h.last+1 < s.entries[0].seq
	})
}

func (s *Spool) holdsEpoch(ord int) bool {
	return slices.ContainsFunc(s.entries, func(e entry) bool { return e.ord == ord })
}

// Epochs lists the epochs of which chunks are held, oldest first, and the
// newest one even when nothing of it is.
func (s *Spool) Epochs() []vms.Epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []vms.Epoch
	for i := range s.epochs {
		if i == len(s.epochs)-1 || s.holdsEpoch(i) {
			out = append(out, s.epochs[i].epoch)
		}
	}
	return out
}

// Holding lists what is held as unbroken runs with the time they cover.
func (s *Spool) Holding() []wire.HeldRange {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []wire.HeldRange
	for i, e := range s.entries {
		if e.chunk == nil {
			continue
		}
		c := e.chunk
		if n := len(out); n > 0 && i > 0 && out[n-1].Chunks.Epoch == c.Epoch && out[n-1].Chunks.Last+1 == c.Seq && out[n-1].End.Equal(c.Start) {
			out[n-1].Chunks.Last, out[n-1].End = c.Seq, c.End
			out[n-1].Bytes += int64(len(c.Payload))
			continue
		}
		if len(out) == wire.MaxRanges {
			break
		}
		out = append(out, wire.HeldRange{
			Chunks: vms.ChunkRange{Epoch: c.Epoch, First: c.Seq, Last: c.Seq},
			Start:  c.Start, End: c.End, Bytes: int64(len(c.Payload)),
		})
	}
	return out
}

// Stats is what the spool holds.
type Stats struct {
	Bytes  int64
	Chunks int
	// DurableUntil is the end of the newest chunk known to be in S3.
	DurableUntil time.Time
	// Dropped counts chunks that were dropped and declared.
	Dropped uint64
}

// Stats returns what the spool holds.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Bytes: s.bytes, DurableUntil: s.durable, Dropped: s.lost}
	for _, e := range s.entries {
		if e.chunk != nil {
			st.Chunks++
		}
	}
	return st
}

// Changed returns a channel that is closed at the next change.
func (s *Spool) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}
