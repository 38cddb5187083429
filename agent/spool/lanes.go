package spool

import (
	"io"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// liveLag is how far the live lane may lag before it jumps to the newest picture.
	liveLag = 10 * time.Second
	// liveAway is how long the live lane may be without a connection before what
	// is its own belongs to backfill: it would not begin there any more.
	liveAway = liveLag
)

// lanes says who brings what. Each chunk that is held belongs to one lane: to
// live from bound on, before it to backfill, but for what an elder live cursor,
// which hands over to another connection, still has to bring. While live sends
// previews, bound is the next chunk flagged first behind them; until there is
// one it is unknown, and backfill has all.
type lanes struct {
	bounded bool
	bound   key
	live    *Cursor
	elder   *Cursor // was live, until it handed over
	back    *Cursor
	away    *time.Timer // runs while there is no live cursor and something is live's
	opened  [3]*Cursor  // for open
}

// open lists the cursors that are open. The slice is good until the next call.
func (s *Spool) open() []*Cursor { return s.peers(nil) }

// peers lists the open cursors of connections to the worker that c goes to,
// its own included; all that are open when c is nil. The slice is good until the next call.
func (s *Spool) peers(c *Cursor) []*Cursor {
	n := 0
	for _, o := range [...]*Cursor{s.live, s.elder, s.back} {
		if o != nil && (c == nil || o.worker == c.worker) {
			s.opened[n] = o
			n++
		}
	}
	return s.opened[:n]
}

// elders reports whether what stands at k is still brought by an elder live
// cursor that is not c.
func (s *Spool) elders(c *Cursor, k key) bool {
	e := s.elder
	return e != nil && e != c && !k.before(e.from) && k.before(e.until)
}

// boundary is where what is backfill's ends.
func (s *Spool) boundary() key {
	if s.bounded {
		return s.bound
	}
	return never
}

// Live returns the cursor of a connection of the live lane to a worker that has
// these chunks. It replaces the one before. When what the worker lacks of the
// region of live goes back more than 10 s, it begins with previews.
func (s *Spool) Live(worker vms.Instance, have []vms.ChunkRange) *Cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.beginLive(s.newCursor(vms.LaneLive, worker, have))
}

// beginLive makes c the live cursor, in place of the one before and of the heir
// that it may have.
func (s *Spool) beginLive(c *Cursor) *Cursor {
	defer s.notify()
	for s.live != nil && s.live != c {
		s.live.shut()
	}
	s.live = c
	s.stopAway()
	if s.bounded {
		if r, ok := s.outstanding(c, s.bound, never); ok && s.late(r) {
			c.jump()
		}
		return c
	}
	if s.back != nil && s.back.max.ord >= 0 {
		// Backfill is on its way to the present: it goes on up to the next recording.
		c.jump()
		return c
	}
	if r, ok := s.outstanding(c, key{}, never); ok && s.late(r) {
		c.jump()
		return c
	}
	s.bounded, s.bound = true, key{ord: s.ords}
	if r, ok := s.heldFrom(key{}); ok {
		s.bound = r.key
	} else if s.last.seq > 0 {
		s.bound = s.last.next()
	}
	return c
}

// late reports whether live should jump over r to something newer.
func (s *Spool) late(r ref) bool {
	if s.lastEnd.Sub(r.start()) <= liveLag {
		return false
	}
	k, ok := s.newestKey()
	return ok && r.key.before(k) || !ok && r.at != nil
}

// Backfill returns the cursor of a connection of the backfill lane to a worker
// that has these chunks. It replaces the one before.
func (s *Spool) Backfill(worker vms.Instance, have []vms.ChunkRange, newestFirst bool) *Cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.notify()
	if s.back != nil {
		s.back.shut()
	}
	c := s.newCursor(vms.LaneBackfill, worker, have)
	c.newestFirst = newestFirst
	s.back = c
	return c
}

// BackfillWanted reports whether the backfill lane has anything to bring, or has
// brought what is not durable yet, and returns a channel that is closed at the
// next change.
func (s *Spool) BackfillWanted() (bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to := s.boundary()
	_, wanted := s.outstanding(nil, key{}, to)
	if r, ok := s.heldFrom(key{}); ok && s.back != nil && r.key.before(to) && !s.withheld(r.ord) {
		wanted = true
	}
	for _, e := range s.ends {
		wanted = wanted || !e.said && e.key.before(to) && !s.elders(nil, e.key) && !s.withheld(e.ord)
	}
	return wanted, s.wait()
}

// came notes a chunk that was appended.
func (s *Spool) came(k key, f vms.Flags) {
	if s.live == nil {
		if s.bounded && s.away == nil {
			s.startAway()
		}
		return
	}
	if !f.Has(vms.FlagFirst) {
		return
	}
	if c := s.live; c.heir != nil {
		s.handOver(c, k)
		return
	}
	if !s.bounded && s.live.preview {
		s.bounded, s.bound = true, k
	}
}

// startAway gives the live lane time to come back.
func (s *Spool) startAway() {
	var t *time.Timer
	t = time.AfterFunc(liveAway, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.away == t && s.live == nil {
			s.away, s.bounded = nil, false
			s.notify()
		}
	})
	s.away = t
}

func (s *Spool) stopAway() {
	if s.away != nil {
		s.away.Stop()
		s.away = nil
	}
}

// region is what a live cursor that does not preview brings.
func (c *Cursor) region() (from, to key) {
	if c.until != never {
		return c.from, c.until
	}
	return c.s.bound, never
}

// jump goes to the newest keyframe in RAM, or to the next one that comes, and
// leaves everything before the next recording to backfill.
func (c *Cursor) jump() {
	s := c.s
	c.preview, s.bounded = true, false
	c.leap, c.fresh, c.pos = c.max.ord >= 0, true, key{ord: -1}
	var ok bool
	if c.at, ok = s.newestKey(); !ok {
		c.at, c.wantKey = key{ord: s.ords}, true
		if s.last.seq > 0 {
			c.at = s.last.next()
		}
	}
	c.fix()
	s.notify()
}

// fix says where live begins to record, if that is known: at the first chunk
// flagged first that is neither before its previews nor sent by backfill.
func (c *Cursor) fix() {
	s := c.s
	from := c.at
	if s.back != nil && from.before(s.back.max.next()) && s.back.max.ord >= 0 {
		from = s.back.max.next()
	}
	for _, e := range s.entries[s.ram(from):] {
		if e.chunk.Flags.Has(vms.FlagFirst) {
			s.bounded, s.bound = true, e.key()
			return
		}
	}
}

// stepLive is the next step of a live cursor.
func (c *Cursor) stepLive() step {
	if c.preview {
		if st, ok := c.stepPreview(); ok {
			return st
		}
	}
	from, to := c.region()
	r, ok := c.s.outstanding(c, from, to)
	passes := ok && c.s.withholds(from, r.key)
	if passes && r.flags().Has(vms.FlagFirst) {
		// Live does not go back for it when it has its time: backfill brings it.
		passes, from = false, r.key
		if c.until == never {
			c.s.bound = from
		} else {
			c.from = from
		}
	}
	// After a jump, or over what has no time yet, it records from the beginning of a
	// recording, or not at all.
	lost := passes || c.fresh && r.key != from
	switch {
	case ok && c.until == never && (lost || c.s.late(r)):
		c.jump()
		if st, ok := c.stepPreview(); ok {
			return st
		}
		from, to = c.region()
	case ok && c.until != never && lost:
		c.from, from = to, to
	}
	if st := c.forth(from, to); !st.idle() || c.until == never {
		return st
	}
	return c.part()
}

// stepPreview is the next step of a live cursor that previews; false when it
// does not any more.
func (c *Cursor) stepPreview() (step, bool) {
	s := c.s
	for {
		to := c.until
		if to == never && s.bounded {
			if r, ok := s.heldFrom(s.bound); ok && r.key != s.bound {
				s.bounded = false // it was dropped, or is durable by another way
				c.fix()
			}
			to = s.boundary()
		}
		i := s.ram(c.at)
		if !c.at.before(to) || i < len(s.entries) && !s.entries[i].key().before(to) {
			if c.until != never {
				return c.part(), true
			}
			if !c.leap {
				c.preview = false
				return step{}, false
			}
			// Only a preview may come out of turn: without one the worker would take
			// what is jumped over for missing.
			if i := s.ram(to); i < len(s.entries) && s.entries[i].key() == to {
				return c.show(s.entries[i]), true
			}
			c.jump() // what is on flash is old
			continue
		}
		if i == len(s.entries) {
			return c.previewEnd(never), true
		}
		e := s.entries[i]
		if s.withheld(e.ord) {
			c.at, c.wantKey = key{ord: e.ord + 1}, true
			continue
		}
		newest, ok := s.newestKey()
		ok = ok && e.key().before(newest) && newest.before(to)
		switch {
		case ok && s.lastEnd.Sub(e.chunk.Start) > liveLag && c.until == never:
			c.jump()
			continue
		case e.key() == c.at && !c.wantKey || e.chunk.Flags.Has(vms.FlagKey):
		case ok:
			c.at, c.wantKey = newest, false
			continue
		default: // the rest of a GOP whose beginning is gone
			for i < len(s.entries) && !s.entries[i].chunk.Flags.Has(vms.FlagKey) {
				i++
			}
			if i < len(s.entries) {
				c.at, c.wantKey = s.entries[i].key(), false
				continue
			}
			c.at, c.wantKey = s.last.next(), true
			return step{}, true
		}
		if st := c.previewEnd(e.key()); !st.idle() {
			return st, true
		}
		c.at, c.wantKey = e.key().next(), false
		return c.show(e), true
	}
}

// show hands out a preview. It begins no recording, wherever it stands.
func (c *Cursor) show(e entry) step {
	p := *e.chunk
	p.Flags = p.Flags&^(vms.FlagFirst|vms.FlagDependent) | vms.FlagPreview
	c.leap = false
	c.shown = e.key()
	return step{out: wire.Outgoing{Chunk: &p}}
}

// previewEnd tells viewers that nothing follows the last preview for now. The
// lane that brings the footage says it too.
func (c *Cursor) previewEnd(to key) step {
	if c.shown.ord < 0 {
		return step{}
	}
	e := c.nextEnd(c.shown, to)
	if e == nil || e.ord != c.shown.ord || e.seq != c.shown.seq {
		return step{}
	}
	said := e.said
	k := e.key
	st := c.handEnd(e)
	for i := range c.s.ends {
		if c.s.ends[i].key == k {
			c.s.ends[i].said = said
		}
	}
	return st
}

// HandOver moves the live lane to a new connection, to a worker that has these
// chunks, without a break: c goes on up to the next chunk flagged first that is
// appended from now on, says End with the cause "moved", then returns io.EOF.
// The cursor that is returned waits for that chunk and begins there. Closing it
// before leaves c as it was.
func (c *Cursor) HandOver(worker vms.Instance, have []vms.ChunkRange) *Cursor {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.newCursor(vms.LaneLive, worker, have)
	if s.live != c {
		return s.beginLive(n)
	}
	if c.heir != nil {
		c.heir.shut()
	}
	n.waiting = true
	c.heir = n
	return n
}

// handOver makes the heir of c the live cursor from k on.
func (s *Spool) handOver(c *Cursor, k key) {
	if s.elder != nil {
		s.elder.shut()
	}
	c.from, c.until, c.untilEpoch = s.bound, k, s.named(k.ord)
	if !s.bounded || c.preview {
		c.from = k // it records nothing any more
	}
	n := c.heir
	c.heir, n.waiting = nil, false
	s.elder, s.live = c, n
	s.bounded, s.bound = true, k
}

// part is the last that a cursor says which has handed over.
func (c *Cursor) part() step {
	if c.parted {
		return step{err: io.EOF}
	}
	c.parted = true
	e, seq := c.untilEpoch, c.until.seq-1
	if c.pos.ord >= 0 && c.pos.ord != c.until.ord && !c.preview {
		e, seq = c.epoch, c.pos.seq // the epoch before is over
	}
	return step{out: wire.Outgoing{End: &wire.End{Epoch: e, Seq: seq, Cause: "moved"}}}
}

// shut takes a cursor out of the spool.
func (c *Cursor) shut() {
	s := c.s
	if c.closed {
		return
	}
	c.closed = true
	switch {
	case c.waiting:
		if s.live != nil && s.live.heir == c {
			s.live.heir = nil
		}
	case s.elder == c:
		s.elder = nil
	case s.back == c:
		s.back = nil
	case s.live == c:
		s.live = nil
		if c.heir != nil { // the next recording would begin there, and nobody would bring what is before it
			c.heir.waiting = false
			s.beginLive(c.heir)
			c.heir = nil
		} else if s.bounded {
			s.startAway()
		}
	}
	for _, o := range s.open() {
		if o.worker != c.worker {
			continue
		}
		for e, set := range c.got {
			for _, r := range *set {
				add(o.hints, e, r)
			}
		}
	}
	s.notify()
}

// forgetEpoch forgets what cursors know of an epoch of which nothing is held any more.
func (s *Spool) forgetEpoch(e vms.Epoch) {
	for _, c := range s.open() {
		delete(c.got, e)
		delete(c.sure, e)
		delete(c.hushed, e)
		delete(c.hints, e)
	}
}
