// Package segment turns chunks into recordings. It decides nothing: the agent
// stamped each chunk with the recording it belongs to, and the same chunks make
// the same object, byte for byte, whichever worker takes them.
package segment

import (
	"fmt"

	"github.com/zipato/vms/pkg/vms"
)

// Verdict is what is to be done with a chunk.
type Verdict int

// The verdicts.
const (
	// Duplicate: this chunk came before.
	Duplicate Verdict = iota
	// Begin: close the open recording, if any, and begin one with this chunk.
	Begin
	// Append: the chunk follows the last one of the open recording.
	Append
	// Undecodable: the keyframe that this chunk needs was never taken; it can
	// only be refused, so that its GOP becomes a gap.
	Undecodable
	// OutOfSequence: chunks before this one are missing and nobody said why.
	OutOfSequence
)

// Segmenter follows the numbers of one lane of one stream. The zero value is
// ready. It is not safe for concurrent use.
type Segmenter struct {
	open  bool
	epoch vms.Epoch
	last  uint64 // taken; not what a hole passed over
	// next is the least number that may follow, more than last+1 after a declared hole.
	next      uint64
	recording uint32
	init      uint32
}

// Next places c. Preview chunks are not its business.
func (s *Segmenter) Next(c *vms.Chunk) Verdict {
	sameEpoch := c.Epoch == s.epoch
	switch {
	case sameEpoch && c.Seq <= s.last:
		return Duplicate
	case sameEpoch && c.Seq > s.next:
		return OutOfSequence
	case sameEpoch && c.Seq < s.next:
		return Duplicate // a chunk that was declared missing has come after all, too late for its place
	case c.Flags.Has(vms.FlagFirst):
		s.begin(c)
		return Begin
	case s.open && sameEpoch && c.Recording == s.recording && c.Init == s.init:
		s.last, s.next = c.Seq, c.Seq+1
		return Append
	case c.Flags.Has(vms.FlagKey):
		// The rest of a recording after a hole, or of one whose beginning another
		// worker made durable.
		s.begin(c)
		return Begin
	}
	return Undecodable
}

func (s *Segmenter) begin(c *vms.Chunk) {
	s.open, s.epoch, s.recording, s.init = true, c.Epoch, c.Recording, c.Init
	s.last, s.next = c.Seq, c.Seq+1
}

// Missing returns the numbers between the last chunk taken and c, and whether
// there are any: they must be explained before c can follow.
func (s *Segmenter) Missing(c *vms.Chunk) (vms.ChunkRange, bool) {
	return s.MissingBefore(c.Epoch, c.Seq)
}

// MissingBefore is Missing for a number of which there is no chunk.
func (s *Segmenter) MissingBefore(e vms.Epoch, seq uint64) (vms.ChunkRange, bool) {
	r := vms.ChunkRange{Epoch: e, First: s.next, Last: seq - 1}
	return r, e == s.epoch && s.next != 0 && s.next < seq
}

// Hole takes the agent's word that r will not come, and reports whether the
// open recording ends before it. A hole that lies elsewhere changes nothing.
func (s *Segmenter) Hole(r vms.ChunkRange) (closes bool) {
	if r.Epoch != s.epoch || r.First > s.next || r.Last < s.next {
		return false
	}
	s.next = r.Last + 1
	closes, s.open = s.open, false
	return closes
}

// End takes the agent's word that nothing of the epoch follows for now, and
// reports whether the open recording is complete.
func (s *Segmenter) End() (closes bool) {
	closes, s.open = s.open, false
	return closes
}

// Epoch is that of the last chunk taken, zero before the first.
func (s *Segmenter) Epoch() vms.Epoch { return s.epoch }

// Position names the last chunk taken, for errors.
func (s *Segmenter) Position() string { return fmt.Sprintf("%s:%d", s.epoch, s.last) }
