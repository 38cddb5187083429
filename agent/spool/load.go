package spool

import (
	"slices"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// load takes in what an earlier run of the agent left: gaps that the NVR has not
// committed, and what is on flash but for what is in one of them.
func (s *Spool) load(gaps []vms.Gap, lost []damage, kept placements) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shelf != nil {
		for _, b := range s.shelf.blocks() {
			ord := s.loadedOrdinal(b.Epoch)
			s.blocks = append(s.blocks, &shelved{block: b, ord: ord, time: s.timed(ord)})
			s.fileOf(b).blocks++
			s.last, s.lastEnd = key{ord: ord, seq: b.Last}, b.End
		}
	}
	for _, d := range lost {
		if d.First > 0 && !d.Start.IsZero() {
			s.loadedOrdinal(d.Epoch)
		}
	}
	s.loadTimes(kept)
	for _, g := range gaps {
		o := &gapState{gap: g, ord: -1, sent: true, version: 1, saved: 1, savedAt: time.Now()}
		if g.ID, o.raw = ofFacts(g.ID); o.raw {
			if slices.ContainsFunc(gaps, func(o vms.Gap) bool { return o.ID == g.ID }) {
				s.drops = append(s.drops, rawPrefix+g.ID) // killed between the two
				continue
			}
			o.gap.ID = g.ID
			if i := slices.IndexFunc(kept.Gaps, func(k keptGap) bool { return k.ID == g.ID }); i >= 0 {
				o.origin = kept.Gaps[i].Origin
			}
		}
		s.gaps = append(s.gaps, o)
		if g.Chunks == nil {
			continue
		}
		if i := s.epochIndex(g.Chunks.Epoch); i >= 0 {
			o.ord = s.epochs[i].ord
			s.forget(o.ord, g.Chunks.First, g.Chunks.Last, true)
			s.holes = append(s.holes, hole{ord: o.ord, run: run{g.Chunks.First, g.Chunks.Last}, id: g.ID, cause: g.Cause})
		}
	}
	for _, d := range lost {
		s.store.cfg.Log.Error("a file of the spool cannot be read: what it held is lost", "channel", s.channel,
			"epoch", d.Epoch, "first", d.First, "last", d.Last, "err", d.Err)
		if d.Start.IsZero() || d.First == 0 {
			continue // not even its name says what it was
		}
		d.Last = max(d.First, d.Last)
		if d.End.Before(d.Start) {
			d.End = d.Start
		}
		if slices.ContainsFunc(gaps, func(g vms.Gap) bool {
			return g.Chunks != nil && g.Chunks.Contains(vms.ChunkRange{Epoch: d.Epoch, First: d.First, Last: d.Last})
		}) {
			continue // said before
		}
		ord := s.loadedOrdinal(d.Epoch)
		t := s.timed(ord)
		s.dropped(ord, d.Epoch, run{d.First, d.Last}, t.at(d.First, d.Start), t.at(d.Last, d.End), vms.CauseStorageFailed)
	}
	// The epochs are over: whoever is sent the last chunk is told so.
	for _, e := range s.epochs {
		if r, ok := s.heldBefore(key{ord: e.ord + 1}); ok && r.ord == e.ord {
			s.ends = append(s.ends, end{key: key{ord: e.ord, seq: r.seq, end: true}, cause: string(vms.CauseAgentRestarted)})
		}
	}
	s.bound = key{ord: s.ords} // what was held before this run is backfill's
}

// loadedOrdinal returns the place of an epoch without tidying up: not all that
// is held is known yet.
func (s *Spool) loadedOrdinal(e vms.Epoch) int {
	if i := s.epochIndex(e); i >= 0 {
		return s.epochs[i].ord
	}
	s.epochs = append(s.epochs, epochState{ord: s.ords, epoch: e, inits: map[uint32]vms.Init{}, time: new(timing)})
	s.ords++
	return s.ords - 1
}
