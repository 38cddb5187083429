package spool

import (
	"context"
	"slices"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Cursor walks over a spool in order, behind the writer. One lane owns it.
type Cursor struct {
	s   *Spool
	pos key // what was handed out last; ord -1 before the first
}

// NewCursor returns a cursor that stands after the chunks that a worker says
// it has: at the first held chunk that is not among them.
func (s *Spool) NewCursor(have []vms.ChunkRange) *Cursor {
	var set vms.ChunkSet
	for _, r := range have {
		set.Add(r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &Cursor{s: s, pos: key{ord: -1}}
	for _, e := range s.entries {
		if e.chunk == nil {
			continue // an end is cheap to say again
		}
		if !set.Has(s.epochs[e.ord].epoch, e.seq) {
			return c
		}
		c.pos = e.key
	}
	if c.pos.ord >= 0 || len(s.epochs) == 0 {
		return c
	}
	// Nothing is held. What the worker has of the present epoch is where it stands.
	ord := len(s.epochs) - 1
	for _, r := range set.Ranges() {
		if r.Epoch == s.epochs[ord].epoch {
			c.pos = key{ord: ord, seq: r.Last}
		}
	}
	return c
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
	if e.ord == c.pos.ord && e.seq > c.pos.seq+1 && e.chunk != nil {
		g := c.s.explain(e.ord, c.pos.seq+1, e.seq-1)
		c.pos = key{ord: e.ord, seq: e.seq - 1}
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
