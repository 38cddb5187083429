package spool

import (
	"context"
	"math"
	"slices"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Cursor walks over a spool in order, behind the writer. One lane owns it.
type Cursor struct {
	s    *Spool
	have []vms.ChunkRange // ascending inside an epoch
	pos  key              // what was handed out last; ord -1 before the first
}

// NewCursor returns a cursor that stands after the chunks that a worker says
// it has: before the first held chunk that is not among them. What lies between
// the worker's last chunk before that one and the chunk itself is a hole that
// has to be explained: it was dropped, or went another way.
func (s *Spool) NewCursor(have []vms.ChunkRange) *Cursor {
	var set vms.ChunkSet
	for _, r := range have {
		set.Add(r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &Cursor{s: s, have: set.Ranges(), pos: key{ord: -1}}
	for _, e := range s.entries {
		if e.chunk == nil {
			continue // an end is cheap to say again
		}
		if !set.Has(s.epochs[e.ord].epoch, e.seq) {
			c.enter(e.ord, e.seq)
			return c
		}
		c.pos = e.key
	}
	// Nothing is held that the worker has not. What it has of the present epoch is where it stands.
	if n := len(s.epochs); n > 0 {
		c.enter(n-1, math.MaxUint64)
	}
	return c
}

// enter moves the cursor to the last chunk before seq that the worker has of
// an epoch, unless it stands behind that already.
func (c *Cursor) enter(ord int, seq uint64) {
	for _, r := range c.have {
		k := key{ord: ord, seq: r.Last}
		if r.Epoch == c.s.epochs[ord].epoch && r.Last < seq && c.pos.compare(k) < 0 {
			c.pos = k
		}
	}
}

// Next returns what follows, waiting until there is something or ctx ends.
func (c *Cursor) Next(ctx context.Context) (wire.Outgoing, error) {
	for {
		item, changed := c.try()
		if item != (wire.Outgoing{}) {
			return item, nil
		}
		select {
		case <-ctx.Done():
			return wire.Outgoing{}, ctx.Err()
		case <-changed:
		}
	}
}

// try returns what follows, or the channel that tells when to look again.
func (c *Cursor) try() (wire.Outgoing, <-chan struct{}) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	i, found := slices.BinarySearchFunc(c.s.entries, c.pos, func(e entry, k key) int { return e.compare(k) })
	if found {
		i++
	}
	if i == len(c.s.entries) {
		return wire.Outgoing{}, c.s.changed
	}
	e := &c.s.entries[i]
	before := e.seq // the chunk that has to be sent or explained before e
	if e.chunk != nil {
		before--
	}
	if e.ord != c.pos.ord || before > c.pos.seq {
		c.enter(e.ord, before+1)
	}
	if e.ord == c.pos.ord && before > c.pos.seq {
		g := c.s.explain(e.ord, c.pos.seq+1, before)
		c.pos = key{ord: e.ord, seq: before}
		return wire.Outgoing{Gap: &g}, nil
	}
	c.pos = e.key
	if e.chunk == nil {
		return wire.Outgoing{End: &wire.End{Epoch: c.s.epochs[e.ord].epoch, Seq: e.seq, Cause: e.cause}}, nil
	}
	return wire.Outgoing{Chunk: e.chunk}, nil
}

// explain says why chunks [first, last] will not come on this lane.
func (s *Spool) explain(ord int, first, last uint64) wire.GapMessage {
	m := wire.GapMessage{
		ID: "durable", Cause: wire.CauseDurable,
		Chunks: vms.ChunkRange{Epoch: s.epochs[ord].epoch, First: first, Last: last},
	}
	for _, h := range s.holes {
		if h.ord == ord && h.first <= last && first <= h.last {
			m.ID, m.Cause = h.gap.ID, h.gap.Cause
			break
		}
	}
	return m
}

// Behind is the number of payload bytes that are held and not yet handed out.
func (c *Cursor) Behind() (bytes int64) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	i, found := slices.BinarySearchFunc(c.s.entries, c.pos, func(e entry, k key) int { return e.compare(k) })
	if found {
		i++
	}
	for _, e := range c.s.entries[i:] {
		if e.chunk != nil {
			bytes += int64(len(e.chunk.Payload))
		}
	}
	return bytes
}
