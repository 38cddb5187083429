// Package segment turns chunks into recordings. It decides nothing: the agent
// stamped each chunk with the recording it belongs to, and the same chunks make
// the same object, byte for byte, whichever worker takes them.
package segment

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/zipato/vms/pkg/vms"
)

// Verdict is what is to be done with a chunk.
type Verdict int

// The verdicts.
const (
	// Duplicate: this chunk came before.
	Duplicate Verdict = iota
	// Begin: a recording begins with this chunk.
	Begin
	// Append: the chunk follows the last one of an open recording.
	Append
	// Undecodable: the keyframe that this chunk needs was never taken; it can
	// only be refused, so that its GOP becomes a gap.
	Undecodable
	// OutOfSequence: chunks before this one are missing and nobody said why.
	OutOfSequence
	// Orphan: what comes before this chunk was not taken here, or is not open any
	// more; it may be durable. Whoever knows is to be asked before the chunk can
	// be placed.
	Orphan
	// Rest: what comes before this chunk is in the store and cannot be continued,
	// because it was closed as a recording of its own, or its parts are damaged.
	// A recording begins with this chunk, and is played after that.
	Rest
)

// State is how far an open recording is.
type State int

// The states.
const (
	// Growing: nothing says that the next chunk will not come.
	Growing State = iota
	// Continued: what follows is durable, but not here: it may be more of the
	// same recording, as parts.
	Continued
	// Complete: nothing can follow any more.
	Complete
)

// Limits of what an agent can make a Segmenter remember.
const (
	// MaxOpen bounds the open recordings of a stream: each jump of the live lane
	// leaves one for the backfill lane.
	MaxOpen = 32
	// maxParked bounds the recordings of a stream that are known to be in the
	// store as parts only. What follows a forgotten one begins anew.
	maxParked = 512
	// maxHoles bounds the declared holes, runs of numbers.
	maxHoles = 1024
)

// Open is a recording that is not complete.
type Open struct {
	Chunks    vms.ChunkRange
	Recording uint32
	Init      uint32
	// Parked: it is not on this worker's disk, only in the store, as parts.
	// Init is not known then.
	Parked bool
	// Busy: it is being restored from parts.
	Busy bool
	// Over: nothing can ever continue it: its epoch is not held any more by the
	// hub, or another process has had all of it.
	Over bool

	asked uint64 // the number that follows, when parts were looked for in vain
}

// Segmenter knows what there is of one stream and which recordings of it are
// open. They belong to the stream: whichever lane brings the next chunk may
// continue one. The zero value is ready. It is not safe for concurrent use.
type Segmenter struct {
	have  vms.ChunkSet // taken, or durable as parts
	taken vms.ChunkSet // of these, what came to this worker
	// By the word of the agent: what will never come, and what is durable by way
	// of another worker.
	missing, elsewhere vms.ChunkSet
	ends               vms.ChunkSet // the last chunks before a pause
	open               []*Open
	only               Lane // of Next
}

// Lane is where one lane of a stream stands. The zero value is ready.
type Lane struct {
	// Backfill: this lane goes from recording to recording in any order.
	Backfill bool

	epoch vms.Epoch
	last  uint64 // taken
	next  uint64 // the number that follows; 0 before the first of a connection
	free  bool   // it may begin at another recording
}

// Connected notes a new connection: the agent goes on behind what it was told
// is here, and that need not be where it was.
func (l *Lane) Connected() { l.next, l.free = 0, true }

// Preview notes a chunk that is shown only: the lane has left its place, and
// records again from the next recording on.
func (l *Lane) Preview() { l.free = true }

// Epoch is that of the last chunk taken, zero before the first.
func (l *Lane) Epoch() vms.Epoch { return l.epoch }

// Past reports whether the lane has come further than chunk seq of e.
func (l *Lane) Past(e vms.Epoch, seq uint64) bool { return l.epoch == e && l.last > seq }

// Position names the last chunk taken, for errors.
func (l *Lane) Position() string { return fmt.Sprintf("%s:%d", l.epoch, l.last) }

// Next places and takes a chunk of a stream that has one lane.
func (s *Segmenter) Next(c *vms.Chunk) Verdict {
	v, o := s.Place(&s.only, c, true)
	switch v {
	case Begin, Append, Duplicate, Rest:
		s.Take(&s.only, c, v, o)
	}
	s.open = slices.DeleteFunc(s.open, func(o *Open) bool { return s.State(o) == Complete })
	return v
}

// Place says what is to be done with c, which came on l, and to which open
// recording it belongs. Nothing changes before Take. Preview chunks are not its
// business. asked: it was asked what is durable of what comes before c, and what
// was found is open, or noted with Durable.
//
// A recording begins with a chunk that is flagged first. With any other it
// begins only where a keyframe has lost what comes before it, or nobody knows of
// that, and as a Rest. A chunk that depends on others which are nowhere, neither
// here nor in the store, has to wait for them: its hub holds them.
func (s *Segmenter) Place(l *Lane, c *vms.Chunk, asked bool) (Verdict, *Open) {
	if s.have.Has(c.Epoch, c.Seq) {
		return Duplicate, nil
	}
	before := c.Seq - 1
	first, key := c.Flags.Has(vms.FlagFirst), c.Flags.Has(vms.FlagKey)
	had, inOrder := s.have.Has(c.Epoch, before), s.follows(l, c)
	lost := c.Seq == 1 || s.missing.Has(c.Epoch, before) && !had
	tail := s.tail(c.Epoch, before)
	continues := tail != nil && !first && tail.Recording == c.Recording && (tail.Parked || tail.Init == c.Init)
	switch {
	case !inOrder && !l.Backfill && (!l.free || !first && !continues):
		return OutOfSequence, nil
	case first:
		return Begin, nil
	case continues && (tail.Busy || tail.Parked):
		return Orphan, tail
	case continues:
		return Append, tail
	case (lost || tail != nil) && key: // after a hole, or when the stamps changed
		return Begin, nil
	case lost || tail != nil:
		return Undecodable, nil
	case !asked:
		return Orphan, nil
	case had || s.elsewhere.Has(c.Epoch, before):
		return Rest, nil
	case key && inOrder:
		return Begin, nil // it has lost its beginning, and its hub has forgotten that
	}
	return OutOfSequence, nil
}

// follows reports whether everything between the lane's last chunk and c is
// there or explained.
func (s *Segmenter) follows(l *Lane, c *vms.Chunk) bool {
	return l.next == 0 || c.Epoch != l.epoch || c.Seq == l.next || c.Seq > l.next && s.explained(l.epoch, l.next, c.Seq-1)
}

func (s *Segmenter) explained(e vms.Epoch, first, last uint64) bool {
	r := vms.ChunkRange{Epoch: e, First: first, Last: last}
	if s.have.Covers(r) {
		return true
	}
	if !s.have.Has(e, first) && !s.missing.Has(e, first) && !s.elsewhere.Has(e, first) {
		return false // as most often: what follows is costly
	}
	var all vms.ChunkSet
	for _, set := range []*vms.ChunkSet{&s.have, &s.missing, &s.elsewhere} {
		for _, x := range set.Ranges() {
			if x.Epoch == e {
				all.Add(x)
			}
		}
	}
	return all.Covers(r)
}

// Take notes that c was dealt with as Place said, and returns the open
// recording that it is in now.
func (s *Segmenter) Take(l *Lane, c *vms.Chunk, v Verdict, o *Open) *Open {
	if v == Begin && !l.Backfill && !l.free && l.epoch != 0 && l.epoch != c.Epoch && (c.Seq == 1 || s.explained(c.Epoch, 1, c.Seq-1)) {
		s.End(l.epoch, l.last) // live went on in order: the epoch before is over
	}
	l.epoch, l.last, l.next = c.Epoch, c.Seq, c.Seq+1
	if v == Duplicate {
		return nil
	}
	l.free = false
	r := vms.ChunkRange{Epoch: c.Epoch, First: c.Seq, Last: c.Seq}
	if v == Begin || v == Rest {
		o = &Open{Chunks: r, Recording: c.Recording, Init: c.Init}
		s.open = append(s.open, o)
	}
	o.Chunks.Last = c.Seq
	s.have.Add(r)
	s.taken.Add(r)
	for _, set := range []*vms.ChunkSet{&s.missing, &s.elsewhere} {
		if set.Has(c.Epoch, c.Seq) {
			// It comes all the same, and so may the rest of that hole.
			for _, x := range set.Ranges() {
				if x.Contains(r) {
					set.Remove(vms.ChunkRange{Epoch: c.Epoch, First: c.Seq, Last: x.Last})
				}
			}
		}
	}
	return o
}

// tail returns the open recording that ends with chunk seq, or nil.
func (s *Segmenter) tail(e vms.Epoch, seq uint64) *Open {
	for _, o := range s.open {
		if o.Chunks.Epoch == e && o.Chunks.Last == seq {
			return o
		}
	}
	return nil
}

// At returns the open recording that l brought the last chunk of, or nil.
func (s *Segmenter) At(l *Lane) *Open { return s.tail(l.epoch, l.last) }

// parked returns the parked recording that holds chunk seq, or nil.
func (s *Segmenter) parked(e vms.Epoch, seq uint64) *Open {
	for _, o := range s.open {
		if o.Parked && o.Chunks.Contains(vms.ChunkRange{Epoch: e, First: seq, Last: seq}) {
			return o
		}
	}
	return nil
}

// Hole takes the agent's word on l that the chunks r will not come; durable:
// because they are in the store by way of another worker.
func (s *Segmenter) Hole(l *Lane, r vms.ChunkRange, durable bool) {
	if r.Epoch == l.epoch && l.next != 0 && l.next <= r.Last &&
		(r.First <= l.next || s.explained(l.epoch, l.next, r.First-1)) {
		l.next = r.Last + 1
	}
	set := &s.missing
	if durable {
		set = &s.elsewhere
		s.missing.Remove(r)
	}
	if set.Len() >= maxHoles {
		*set = vms.ChunkSet{} // recordings before these holes stay open until they are stored as parts
	}
	set.Add(r)
}

// End takes the agent's word that nothing of e follows chunk seq for now; 0: that
// nothing of it came before.
func (s *Segmenter) End(e vms.Epoch, seq uint64) {
	if seq == 0 {
		return
	}
	if s.ends.Len() >= maxHoles {
		s.ends = vms.ChunkSet{}
	}
	s.ends.Add(vms.ChunkRange{Epoch: e, First: seq, Last: seq})
}

// Open lists the open recordings, parked ones too.
func (s *Segmenter) Open() []*Open { return slices.Clone(s.open) }

// State tells how far o is.
func (s *Segmenter) State(o *Open) State {
	switch {
	case o.Busy:
		return Growing
	case o.Over:
		return Complete
	}
	e, next := o.Chunks.Epoch, o.Chunks.Last+1
	if o.asked != next {
		if p := s.parked(e, next); p != nil && p != o && p.Recording == o.Recording {
			return Continued
		}
		if s.elsewhere.Has(e, next) && !s.have.Has(e, next) {
			return Continued
		}
	}
	if s.have.Has(e, next) || s.missing.Has(e, next) || s.elsewhere.Has(e, next) || s.ends.Has(e, o.Chunks.Last) {
		return Complete
	}
	return Growing
}

// Close takes o from the open recordings. Its chunks stay what they are.
func (s *Segmenter) Close(o *Open) {
	s.open = slices.DeleteFunc(s.open, func(x *Open) bool { return x == o })
}

// Park notes that o is not on this worker's disk any more: its chunks up to
// durable, 0 for none, are in the store as parts, the others must come again.
func (s *Segmenter) Park(o *Open, durable uint64) {
	s.Lose(o.Chunks, durable)
	s.Close(o)
	if durable >= o.Chunks.First {
		s.open = append(s.open, &Open{
			Chunks:    vms.ChunkRange{Epoch: o.Chunks.Epoch, First: o.Chunks.First, Last: min(durable, o.Chunks.Last)},
			Recording: o.Recording, Parked: true,
		})
		s.limitParked()
	}
}

// limitParked forgets the oldest parked recordings when there are too many.
func (s *Segmenter) limitParked() {
	n := -maxParked
	for _, o := range s.open {
		if o.Parked {
			n++
		}
	}
	s.open = slices.DeleteFunc(s.open, func(o *Open) bool {
		if n > 0 && o.Parked && !o.Busy {
			n--
			return true
		}
		return false
	})
}

// Lose notes that r is not on this worker's disk any more, see Park.
func (s *Segmenter) Lose(r vms.ChunkRange, durable uint64) {
	s.taken.Remove(r)
	r.First = max(r.First, durable+1)
	s.have.Remove(r)
}

// Durable notes that r is in the store, as a part or in a recording.
func (s *Segmenter) Durable(r vms.ChunkRange) {
	s.have.Add(r)
	s.elsewhere.Remove(r)
}

// Parts notes which parts of recordings of epoch e can be had. What of them was
// not taken here is parked: it can be continued.
func (s *Segmenter) Parts(e vms.Epoch, parts []vms.Recording) {
	over := false
	s.open = slices.DeleteFunc(s.open, func(o *Open) bool {
		gone := o.Parked && !o.Busy && o.Chunks.Epoch == e
		over = over || gone && o.Over
		return gone
	})
	away := make(map[uint32]*vms.ChunkSet) // by number of the recording
	for _, p := range parts {
		if away[p.Number] == nil {
			away[p.Number] = &vms.ChunkSet{}
		}
		away[p.Number].Add(p.Chunks)
	}
	taken := s.taken.Ranges()
	for number, set := range away {
		for _, r := range taken {
			set.Remove(r)
		}
		for _, o := range s.open {
			if o.Parked {
				set.Remove(o.Chunks) // being restored
			}
		}
		for _, r := range set.Ranges() {
			s.open = append(s.open, &Open{Chunks: r, Recording: number, Parked: true, Over: over})
		}
	}
	slices.SortStableFunc(s.open, func(a, b *Open) int { return cmp.Compare(a.Chunks.First, b.Chunks.First) })
	for _, o := range s.open {
		if p := s.parked(e, o.asked); o.Chunks.Epoch == e && p != nil && p != o && p.Recording == o.Recording {
			o.asked = 0 // there are some that there were not when it was asked
		}
	}
	s.limitParked()
}

// Source returns what parts can bring chunk seq of e back: the recording that
// it is in or follows, and the number from which on chunks are needed. A parked
// recording is needed whole. nil: there is none.
func (s *Segmenter) Source(e vms.Epoch, seq uint64) (o *Open, from uint64) {
	p := s.parked(e, seq)
	if p == nil || p.Busy {
		return nil, 0
	}
	if o := s.tail(e, p.Chunks.First-1); o != nil && !o.Parked && !o.Busy && o.Recording == p.Recording {
		return o, p.Chunks.First
	}
	return p, p.Chunks.First
}

// Split makes two of a parked recording, the second of which begins with chunk
// first: two spans in a row may number theirs alike.
func (s *Segmenter) Split(o *Open, first uint64) {
	if first <= o.Chunks.First || first > o.Chunks.Last {
		return
	}
	s.open = append(s.open, &Open{Chunks: vms.ChunkRange{Epoch: o.Chunks.Epoch, First: o.Chunks.First, Last: first - 1}, Recording: o.Recording, Parked: true})
	o.Chunks.First = first
}

// Found notes a recording that another process has left on this worker's disk:
// over, if nothing follows it. It has nothing that is open, or was taken, already.
func (s *Segmenter) Found(r vms.ChunkRange, number, init uint32, over bool) *Open {
	o := &Open{Chunks: r, Recording: number, Init: init, Over: over}
	s.open = append(s.open, o)
	s.have.Add(r)
	s.taken.Add(r)
	return o
}

// Restored notes that r was brought back from parts and is in o now.
func (s *Segmenter) Restored(o *Open, r vms.ChunkRange, init uint32) {
	o.Parked, o.Init = false, init
	o.Chunks.Last = r.Last
	s.have.Add(r)
	s.taken.Add(r)
	s.missing.Remove(r)
	s.elsewhere.Remove(r)
	s.open = slices.DeleteFunc(s.open, func(x *Open) bool { return x != o && x.Parked && r.Contains(x.Chunks) })
	for _, x := range s.open {
		if x != o && x.Parked && x.Chunks.Epoch == r.Epoch && r.First <= x.Chunks.First && x.Chunks.First <= r.Last {
			x.Chunks.First = r.Last + 1
		}
	}
}

// Alone notes that no parts continue the recording that ends before chunk seq of e.
func (s *Segmenter) Alone(e vms.Epoch, seq uint64) {
	if o := s.tail(e, seq-1); o != nil {
		o.asked = seq
	}
}

// Holds reports whether o is open.
func (s *Segmenter) Holds(o *Open) bool { return slices.Contains(s.open, o) }

// Have lists what there is of the stream.
func (s *Segmenter) Have() []vms.ChunkRange { return s.have.Ranges() }

// Covers reports whether all of r was taken or is durable.
func (s *Segmenter) Covers(r vms.ChunkRange) bool { return s.have.Covers(r) }

// Seen reports whether the chunk behind o was taken here: o ends where its agent
// ended it, and not because of what was lost.
func (s *Segmenter) Seen(o *Open) bool { return s.taken.Has(o.Chunks.Epoch, o.Chunks.Last+1) }

// Keep forgets all epochs but held. The open recordings of the others are complete;
// it returns those that nothing else has completed.
func (s *Segmenter) Keep(held []vms.Epoch) (cut []*Open) {
	for _, o := range s.open {
		if slices.Contains(held, o.Chunks.Epoch) {
			continue
		}
		if s.State(o) != Complete {
			cut = append(cut, o)
		}
		o.Over = true
	}
	for _, set := range []*vms.ChunkSet{&s.have, &s.taken, &s.missing, &s.elsewhere, &s.ends} {
		for _, r := range set.Ranges() {
			if !slices.Contains(held, r.Epoch) {
				set.Forget(r.Epoch)
			}
		}
	}
	return cut
}
