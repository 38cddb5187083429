package spool

import (
	"math"
	"slices"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// key orders what a spool holds: the epoch's place in time, then the chunk
// number, then an end behind the chunk it follows.
type key struct {
	ord int
	seq uint64
	end bool
}

// never lies behind everything.
var never = key{ord: math.MaxInt, seq: math.MaxUint64, end: true}

func (k key) compare(o key) int {
	switch {
	case k.ord != o.ord:
		if k.ord < o.ord {
			return -1
		}
		return 1
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

func (k key) before(o key) bool { return k.compare(o) < 0 }

// next is where the chunk behind k would stand.
func (k key) next() key {
	if k.seq == math.MaxUint64 {
		return key{ord: k.ord + 1}
	}
	return key{ord: k.ord, seq: k.seq + 1}
}

// entry is a chunk in RAM. raw is how it was stamped, where that is another: so
// it goes to flash, and is placed when it is read.
type entry struct {
	ord        int
	chunk, raw *vms.Chunk
}

func (e entry) key() key { return key{ord: e.ord, seq: e.chunk.Seq} }

// follows reports whether n is the chunk right after e.
func (e entry) follows(n entry) bool { return e.ord == n.ord && e.chunk.Seq+1 == n.chunk.Seq }

// shelved is a block on flash: an unbroken run of chunks, less those that are gone.
type shelved struct {
	*block
	ord     int
	gone    runs
	dropped bool // some of gone were not durable but dropped
	// time is that of its epoch: what stands in the block is as it was stamped.
	time *timing
}

// held counts the chunks that are not gone.
func (b *shelved) held() uint64 { return b.Last - b.First + 1 - b.gone.count(b.First, b.Last) }

// share is what n of the chunks take, about.
func (b *shelved) share(n uint64) int64 {
	return int64(float64(b.Bytes) * float64(n) / float64(b.Last-b.First+1))
}

// flags are those that the index knows of: of chunks that begin a GOP or a recording.
func (b *shelved) flags(seq uint64) vms.Flags {
	if i, ok := b.mark(seq); ok && b.Marks[i].Seq == seq {
		return b.Marks[i].Flags
	}
	return 0
}

// mark returns the last mark that is not behind seq.
func (b *shelved) mark(seq uint64) (int, bool) {
	i, ok := slices.BinarySearchFunc(b.Marks, seq, func(m mark, seq uint64) int {
		switch {
		case m.Seq < seq:
			return -1
		case m.Seq > seq:
			return 1
		}
		return 0
	})
	if !ok {
		i--
	}
	return i, i >= 0
}

// startOf is when chunk seq begins: exact where a GOP does, in between a
// straight line.
func (b *shelved) startOf(seq uint64) time.Time {
	from, at, next := b.First, b.time.at(b.First, b.Start), 0
	if i, ok := b.mark(seq); ok {
		m := &b.Marks[i]
		from, at, next = m.Seq, b.time.at(m.Seq, m.Start), i+1
	}
	to, until := b.Last+1, b.time.at(b.Last, b.End)
	if next < len(b.Marks) {
		m := &b.Marks[next]
		to, until = m.Seq, b.time.at(m.Seq, m.Start)
	}
	if seq <= from {
		return at
	}
	if seq >= to {
		return until
	}
	d := until.Sub(at)
	return at.Add(time.Duration(float64(d) * float64(seq-from) / float64(to-from))).Truncate(time.Microsecond)
}

// endOf is when chunk seq ends, as exact as startOf.
func (b *shelved) endOf(seq uint64) time.Time { return b.startOf(seq + 1) }

// ref is a chunk that is held: in RAM, or on flash.
type ref struct {
	key
	chunk *vms.Chunk // in RAM
	at    *shelved   // on flash
}

func (r ref) epoch() vms.Epoch {
	if r.at != nil {
		return r.at.Epoch
	}
	return r.chunk.Epoch
}

func (r ref) flags() vms.Flags {
	if r.at != nil {
		return r.at.flags(r.seq)
	}
	return r.chunk.Flags
}

func (r ref) start() time.Time {
	if r.at != nil {
		return r.at.startOf(r.seq)
	}
	return r.chunk.Start
}

func (r ref) end() time.Time {
	if r.at != nil {
		return r.at.endOf(r.seq)
	}
	return r.chunk.End
}

// ram returns the first entry that is not before k.
func (s *Spool) ram(k key) int {
	lo, hi := 0, len(s.entries)
	for lo < hi {
		if m := (lo + hi) / 2; s.entries[m].key().before(k) {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// flash returns the first block that does not end before k.
func (s *Spool) flash(k key) int {
	lo, hi := 0, len(s.blocks)
	for lo < hi {
		if m, b := (lo+hi)/2, s.blocks[(lo+hi)/2]; (key{ord: b.ord, seq: b.Last}).before(k) {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// heldFrom returns the first chunk that is held and not before k. What is on
// flash is older than what is in RAM.
func (s *Spool) heldFrom(k key) (ref, bool) {
	if k.end {
		k = k.next()
	}
	for _, b := range s.blocks[s.flash(k):] {
		seq := b.First
		if b.ord == k.ord {
			seq = max(seq, k.seq)
		}
		if seq = b.gone.missing(seq); seq <= b.Last {
			return ref{key: key{ord: b.ord, seq: seq}, at: b}, true
		}
	}
	if i := s.ram(k); i < len(s.entries) {
		return ref{key: s.entries[i].key(), chunk: s.entries[i].chunk}, true
	}
	return ref{}, false
}

// heldBefore returns the last chunk that is held and before k.
func (s *Spool) heldBefore(k key) (ref, bool) {
	if i := s.ram(k); i > 0 {
		return ref{key: s.entries[i-1].key(), chunk: s.entries[i-1].chunk}, true
	}
	i := s.flash(k)
	if i < len(s.blocks) && (key{ord: s.blocks[i].ord, seq: s.blocks[i].First}).before(k) {
		i++ // it begins before k
	}
	for i--; i >= 0; i-- {
		b := s.blocks[i]
		seq := b.Last
		if b.ord == k.ord && k.seq <= seq && (!k.end || k.seq != seq) {
			seq = k.seq
			if !k.end {
				seq--
			}
		}
		if seq = b.gone.missingBelow(seq); seq >= b.First {
			return ref{key: key{ord: b.ord, seq: seq}, at: b}, true
		}
	}
	return ref{}, false
}

// heldAt returns chunk seq of the epoch at ord.
func (s *Spool) heldAt(ord int, seq uint64) (ref, bool) {
	k := key{ord: ord, seq: seq}
	r, ok := s.heldFrom(k)
	return r, ok && r.key == k
}

// holdsEpoch reports whether any chunk of the epoch at ord is held.
func (s *Spool) holdsEpoch(ord int) bool {
	r, ok := s.heldFrom(key{ord: ord})
	return ok && r.ord == ord
}

// gopEnd returns the last chunk of the GOP that r belongs to, as far as it is
// held without a hole.
func (s *Spool) gopEnd(r ref) ref {
	for {
		n, ok := s.heldAt(r.ord, r.seq+1)
		if !ok || n.flags().Has(vms.FlagKey) {
			return r
		}
		r = n
	}
}

// gopStart returns the first chunk of the GOP that r belongs to, as far as it
// is held without a hole.
func (s *Spool) gopStart(r ref) ref {
	for !r.flags().Has(vms.FlagKey) {
		p, ok := s.heldAt(r.ord, r.seq-1)
		if !ok {
			break
		}
		r = p
	}
	return r
}

// recordingStart returns where the recording of r begins, as far as it is held.
func (s *Spool) recordingStart(r ref) key {
	if r.at == nil {
		i := s.ram(r.key)
		for ; i >= 0 && s.entries[i].ord == r.ord; i-- {
			if s.entries[i].chunk.Flags.Has(vms.FlagFirst) {
				return s.entries[i].key()
			}
		}
	}
	for i := min(s.flash(r.key), len(s.blocks)-1); i >= 0 && s.blocks[i].ord >= r.ord; i-- {
		b := s.blocks[i]
		for _, m := range slices.Backward(b.Marks) {
			if m.Flags.Has(vms.FlagFirst) && b.ord == r.ord && m.Seq <= r.seq && !b.gone.has(m.Seq) {
				return key{ord: b.ord, seq: m.Seq}
			}
		}
	}
	return key{ord: r.ord}
}

// recordingEnd returns where the recording behind that of r begins, and
// whether r's is complete: nothing will be appended to it any more.
func (s *Spool) recordingEnd(r ref) (end key, complete bool) {
	for _, b := range s.blocks[s.flash(r.key):] {
		if b.ord != r.ord {
			return key{ord: r.ord + 1}, true
		}
		for _, m := range b.Marks {
			if m.Flags.Has(vms.FlagFirst) && m.Seq > r.seq && !b.gone.has(m.Seq) {
				return key{ord: b.ord, seq: m.Seq}, true
			}
		}
	}
	for _, e := range s.entries[s.ram(r.key.next()):] {
		if e.ord != r.ord {
			break
		}
		if e.chunk.Flags.Has(vms.FlagFirst) {
			return e.key(), true
		}
	}
	if r.ord != s.newest().ord {
		return key{ord: r.ord + 1}, true
	}
	n := len(s.ends)
	return key{ord: r.ord + 1}, n > 0 && s.last.before(s.ends[n-1].key)
}

// newestKey returns the newest keyframe in RAM that may be shown.
func (s *Spool) newestKey() (key, bool) {
	for _, e := range slices.Backward(s.entries) {
		if e.chunk.Flags.Has(vms.FlagKey) && !s.withheld(e.ord) {
			return e.key(), true
		}
	}
	return key{}, false
}

// forget takes chunks of one epoch out of what is held and returns the bytes
// of RAM that this frees, how many there were, and the end of the newest.
func (s *Spool) forget(ord int, first, last uint64, dropped bool) (freed int64, n uint64, end time.Time) {
	from := key{ord: ord, seq: first}
	for i := s.flash(from); i < len(s.blocks); i++ {
		b := s.blocks[i]
		if b.ord != ord || b.First > last {
			break
		}
		lo, hi := max(first, b.First), min(last, b.Last)
		had := hi - lo + 1 - b.gone.count(lo, hi)
		if had == 0 {
			continue
		}
		if at := b.endOf(b.gone.missingBelow(hi)); at.After(end) {
			end = at
		}
		n += had
		b.gone.add(lo, hi)
		b.dropped = b.dropped || dropped
		if b.held() == 0 {
			s.emptied(b)
		}
	}
	if n > 0 {
		s.blocks = slices.DeleteFunc(s.blocks, func(b *shelved) bool { return b.ord == ord && b.held() == 0 })
	}
	i := s.ram(from)
	j := i
	for ; j < len(s.entries) && s.entries[j].ord == ord && s.entries[j].chunk.Seq <= last; j++ {
		c := s.entries[j].chunk
		freed += size(c)
		n++
		if c.End.After(end) {
			end = c.End
		}
		if s.inFlight(s.entries[j]) {
			s.flightBytes -= size(c)
		}
	}
	s.cut(i, j)
	s.bytes -= freed
	return freed, n, end
}

// cut removes entries [i, j).
func (s *Spool) cut(i, j int) {
	if i == 0 { // nearly always: no copying
		clear(s.entries[:j])
		s.entries = s.entries[j:]
		return
	}
	s.entries = slices.Delete(s.entries, i, j)
}

// emptied counts a block that holds nothing any more: its file may go with the last one.
func (s *Spool) emptied(b *shelved) {
	f := s.files[b.file]
	f.blocks--
	f.dropped = f.dropped || b.dropped
	if f.blocks == 0 {
		s.store.kick()
	}
}
