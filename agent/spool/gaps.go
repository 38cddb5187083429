package spool

import (
	"slices"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// maxHoles: from so many on, those that nobody needs are looked for.
	maxHoles = 256
	// maxGaps: from so many uncommitted gaps on, neighbours become one.
	maxGaps = 1024
	// gapPatience is how long the NVR may take to commit a gap before it is put on flash.
	gapPatience = 5 * time.Second
	// gapRest is how often a gap that grows is put there again.
	gapRest = time.Minute
)

// hole is a run of chunks that were dropped: what a lane says in their place.
type hole struct {
	ord int
	run
	id    vms.GapID
	cause vms.Cause
}

// gapState is a gap that the NVR has not committed yet.
type gapState struct {
	gap vms.Gap
	ord int // of its chunks; -1 without
	// raw: its times are provisional, of origin. The NVR is not told of it yet.
	// old: Facts has it under its old name still.
	raw, old bool
	origin   Origin
	// sent: it was handed out, and must not grow any more.
	sent, inFlight bool
	// A gap that is declared again while it is on its way is not committed by
	// the answer to what it was before; the same for what is in Facts.
	version, asked, saved uint64
	since                 time.Time // of the oldest change that is not in Facts
	savedAt               time.Time
	urgent                bool // the NVR waits for it
}

// touch notes that g is another than before.
func (g *gapState) touch() {
	if g.version == g.saved {
		g.since = time.Now()
	}
	g.version++
}

// dropped declares a run of chunks missing: by a gap that is next to it where
// one can grow, else by a new one.
func (s *Spool) dropped(ord int, e vms.Epoch, r run, start, end time.Time, cause vms.Cause) {
	var g *gapState
	var origin Origin
	t := s.timed(ord)
	raw := t != nil && t.raw && r.first <= t.last
	if raw {
		origin = t.origin
	}
	for _, o := range slices.Backward(s.gaps) {
		if o.ord != ord || o.sent || o.gap.Cause != cause || o.raw != raw {
			continue
		}
		if c := o.gap.Chunks; c.Last+1 == r.first {
			c.Last, o.gap.End = r.last, end
		} else if r.last+1 == c.First {
			c.First, o.gap.Start = r.first, start
		} else {
			continue
		}
		g = o
		break
	}
	if g == nil {
		g = &gapState{ord: ord, raw: raw, origin: origin, gap: vms.Gap{
			ID: vms.NewID[vms.GapID]("gap"), Cause: cause,
			TimeRange: vms.TimeRange{Start: start, End: end},
			Chunks:    &vms.ChunkRange{Epoch: e, First: r.first, Last: r.last},
		}}
		s.gaps = append(s.gaps, g)
	}
	g.touch()
	s.addHole(hole{ord: ord, run: r, id: g.gap.ID, cause: cause})
	s.mergeGaps()
}

// addHole remembers a hole; it becomes one with its neighbours of the same gap.
func (s *Spool) addHole(h hole) {
	for i := len(s.holes) - 1; i >= 0; i-- {
		o := s.holes[i]
		if o.ord == h.ord && o.cause == h.cause && o.id == h.id && (o.last+1 == h.first || h.last+1 == o.first) {
			h.first, h.last = min(h.first, o.first), max(h.last, o.last)
			s.holes = slices.Delete(s.holes, i, i+1)
		}
	}
	s.holes = append(s.holes, h)
	if len(s.holes) >= maxHoles {
		s.tidyHoles()
	}
}

// tidyHoles forgets the holes of epochs that are forgotten, makes one of
// neighbours, and forgets those before everything held, but for the last one
// of each epoch: a worker may stand before it.
func (s *Spool) tidyHoles() {
	s.holes = slices.DeleteFunc(s.holes, func(h hole) bool { return s.named(h.ord) == 0 })
	if len(s.holes) < maxHoles {
		return
	}
	slices.SortFunc(s.holes, func(a, b hole) int {
		return key{ord: a.ord, seq: a.first}.compare(key{ord: b.ord, seq: b.first})
	})
	merged := s.holes[:0]
	for _, h := range s.holes {
		if n := len(merged); n > 0 && merged[n-1].ord == h.ord && merged[n-1].last+1 == h.first && merged[n-1].cause == h.cause {
			merged[n-1].last, merged[n-1].id = h.last, h.id
			continue
		}
		merged = append(merged, h)
	}
	first, held := s.heldFrom(key{})
	s.holes = s.holes[:0]
	for i, h := range merged {
		last := i+1 == len(merged) || merged[i+1].ord != h.ord
		if last || held && !(key{ord: h.ord, seq: h.last + 1}).before(first.key) {
			s.holes = append(s.holes, h)
		}
	}
}

// mergeGaps bounds what months without an NVR leave: neighbours in time
// between which nothing is held become one gap, with the cause of the longer.
func (s *Spool) mergeGaps() {
	if len(s.gaps) <= maxGaps {
		return
	}
	slices.SortStableFunc(s.gaps, func(a, b *gapState) int { return a.gap.Start.Compare(b.gap.Start) })
	first, held := s.heldFrom(key{})
	kept := s.gaps[:0]
	for i, g := range s.gaps {
		n := len(kept)
		if n == 0 || len(s.gaps)-i < maxGaps/4 || held && g.gap.Start.After(first.start()) {
			kept = append(kept, g)
			continue
		}
		o := kept[n-1]
		if o.inFlight || g.inFlight || g.gap.Start.Sub(o.gap.End) > time.Second || o.raw != g.raw || o.origin != g.origin {
			kept = append(kept, g)
			continue
		}
		m := &gapState{ord: -1, gap: o.gap, raw: o.raw, origin: o.origin}
		m.gap.ID = vms.NewID[vms.GapID]("gap")
		if g.gap.End.Sub(g.gap.Start) > o.gap.End.Sub(o.gap.Start) {
			m.gap.Cause = g.gap.Cause
		}
		if g.gap.End.After(m.gap.End) {
			m.gap.End = g.gap.End
		}
		m.gap.Chunks = nil
		if o.ord >= 0 && o.ord == g.ord && o.gap.Chunks.Last+1 == g.gap.Chunks.First {
			m.ord = o.ord
			m.gap.Chunks = &vms.ChunkRange{Epoch: o.gap.Chunks.Epoch, First: o.gap.Chunks.First, Last: g.gap.Chunks.Last}
		}
		m.touch()
		for _, old := range []*gapState{o, g} {
			if old.saved > 0 {
				s.drops = append(s.drops, old.factID())
			}
		}
		kept[n-1] = m
	}
	clear(s.gaps[len(kept):])
	s.gaps = kept
}

// explain says why the first of chunks r will not come on this lane, and those
// behind it for which the same is true.
func (s *Spool) explain(ord int, r run) *wire.GapMessage {
	m := &wire.GapMessage{ID: "durable", Cause: wire.CauseDurable}
	for _, h := range s.holes {
		switch {
		case h.ord != ord || h.last < r.first || h.first > r.last:
		case h.first > r.first: // another hole begins inside
			r.last = h.first - 1
		default:
			m.ID, m.Cause = h.id, h.cause
			r.last = min(r.last, h.last)
		}
	}
	m.Chunks = vms.ChunkRange{Epoch: s.named(ord), First: r.first, Last: r.last}
	return m
}

// Declare keeps a gap that no dropped chunk explains, such as a camera that is
// away. Declared again under its id it replaces what was said before.
func (s *Spool) Declare(g vms.Gap) { s.declare(g, false) }

// DeclareProvisional is Declare for a gap whose times are provisional, as those
// of the chunks around it are: the NVR hears of it when they have their place.
func (s *Spool) DeclareProvisional(g vms.Gap) { s.declare(g, true) }

func (s *Spool) declare(g vms.Gap, raw bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.notify()
	for _, o := range s.gaps {
		if o.gap.ID == g.ID && o.raw == raw {
			o.gap = g
			o.touch()
			return
		}
	}
	o := &gapState{gap: g, ord: -1, raw: raw}
	if raw {
		o.origin = s.store.cfg.Origin
	}
	if i := slices.Index(s.drops, g.ID); i >= 0 { // Facts has it still, as it was
		s.drops = slices.Delete(s.drops, i, i+1)
		o.version, o.saved = 1, 1
	}
	o.touch()
	s.gaps = append(s.gaps, o)
	s.mergeGaps()
}

// Gaps returns, at most max of them, the gaps that the NVR has not committed
// and that are not on their way to it: call Resend when the session is new. A
// drop that goes on afterwards makes a gap of its own.
func (s *Spool) Gaps(max int) []vms.Gap {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []vms.Gap
	for _, g := range s.gaps {
		if g.inFlight || g.raw || len(out) == max {
			continue
		}
		if (g.saved > 0 || g.old) && g.saved != g.version && s.store.cfg.Facts != nil {
			// It has grown since it was saved. Should the agent be killed now, it would
			// take back what it said: it is saved first.
			g.urgent = true
			s.store.kick()
			continue
		}
		g.sent, g.inFlight, g.asked = true, true, g.version
		out = append(out, g.value())
	}
	return out
}

// value is a copy that does not change when the gap grows.
func (g *gapState) value() vms.Gap {
	v := g.gap
	if v.Chunks != nil {
		r := *v.Chunks
		v.Chunks = &r
	}
	return v
}

// Resend takes gaps that are on their way for lost.
func (s *Spool) Resend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.gaps {
		g.inFlight = false
	}
}

// Committed notes that the NVR has gaps in its database.
func (s *Spool) Committed(ids []vms.GapID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gaps = slices.DeleteFunc(s.gaps, func(g *gapState) bool {
		if !slices.Contains(ids, g.gap.ID) {
			return false
		}
		g.inFlight = false
		if g.asked != g.version {
			return false
		}
		if g.saved > 0 {
			s.drops = append(s.drops, g.gap.ID)
		}
		return true
	})
}

// toSave returns the gaps that Facts should get now, and those that it may
// forget. due: only those whose time has come.
func (s *Spool) toSave(due bool) (put []vms.Gap, versions []uint64, drop []vms.GapID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, g := range s.gaps {
		if g.saved == g.version || due && !g.urgent && (now.Sub(g.since) < gapPatience || g.saved > 0 && now.Sub(g.savedAt) < gapRest) {
			continue
		}
		v := g.value()
		v.ID = g.factID()
		put, versions = append(put, v), append(versions, g.version)
	}
	drop, s.drops = s.drops, nil
	return put, versions, drop
}

// save puts gaps into Facts: all that are not there, or only those that are due.
// It must not be called twice at a time.
func (s *Spool) save(due bool) error {
	f := s.store.cfg.Facts
	s.store.savePlacements() // which boot provisional ones are of
	put, versions, drop := s.toSave(due)
	if f == nil {
		return nil
	}
	if len(put) > 0 {
		if err := f.PutGaps(s.channel, put); err != nil {
			s.mu.Lock()
			s.drops = append(s.drops, drop...)
			s.mu.Unlock()
			return err
		}
		s.saved(put, versions)
	}
	if len(drop) > 0 {
		if err := f.DropGaps(s.channel, drop); err != nil {
			s.mu.Lock()
			s.drops = append(s.drops, drop...)
			s.mu.Unlock()
			return err
		}
	}
	return nil
}

func (s *Spool) saved(put []vms.Gap, versions []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for i, v := range put {
		j := slices.IndexFunc(s.gaps, func(g *gapState) bool { return g.factID() == v.ID })
		if j < 0 { // committed, merged or placed meanwhile
			s.drops = append(s.drops, v.ID)
			continue
		}
		g := s.gaps[j]
		g.saved, g.savedAt, g.since, g.urgent, g.old = versions[i], now, now, false, false
		s.notify()
	}
}
