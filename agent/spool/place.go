package spool

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// What a hub captures before anybody has told it the time is flagged
// FlagTimeUncertain, and its times are provisional: right beside each other, of
// one origin, and nothing else. No lane gets it, and no NVR hears of it, before
// it is placed: all of it is moved by one sum. What is on flash stays there as it
// was written; the sum is kept beside it, before anything is sent that counts on
// it, and applied when a chunk is read. So an agent that is killed at any moment
// either has sent nothing of an epoch, or places the rest of it as it did the
// beginning.

// Origin names the clock that provisional times come from: a boot of the hub.
type Origin struct {
	Boot string `json:"boot"`
	// Zero is the provisional time of the boot itself.
	Zero time.Time `json:"zero"`
}

// Placement is what becomes of provisional times.
type Placement struct {
	// Shift is added to them; whole microseconds.
	Shift time.Duration `json:"shift"`
	// Sure is where, in provisional times, the result is good enough to lose its flag.
	Sure vms.TimeRange `json:"sure"`
}

// Documents keeps small documents by name. PutDocument returns when it is on
// flash, nil drops one; Document returns nil when there is none of that name.
type Documents interface {
	Document(name string) ([]byte, error)
	PutDocument(name string, data []byte) error
}

// Bridge is what PlaceRest is told of clocks.
type Bridge struct {
	// Place says what becomes of the times of an origin; false: no clock of the hub
	// can tell. They are of a stretch that is so long.
	Place func(o Origin, stretch time.Duration) (Placement, bool)
	// Began is UTC of the hub's present boot: what an earlier one captured lies before it.
	Began time.Time
	// Floor is a time that had certainly passed when the program was built: a
	// camera whose clock shows less has none.
	Floor time.Time
	// Wait: the camera may still come and tell what its clock shows now.
	Wait bool
}

const (
	// document is the name under which placements are kept.
	document = "placements"
	// rawPrefix marks, in Facts, the id of a gap whose times are provisional.
	rawPrefix = "raw-"
	// cameraDrift is what a camera's clock may be off by; certain what a time may be
	// that counts as known.
	cameraDrift = 500e-6
	certain     = time.Second
)

// timing says what is to be made of the times of an epoch. It stands under Spool.mu.
type timing struct {
	origin Origin
	last   uint64 // chunks up to this one have provisional times as they were stamped; 0: none
	raw    bool   // and were not placed
	by     Placement
	// unsaved: they were placed, some are on flash, and Documents does not have it.
	unsaved bool
	// What the camera's clock showed, and when that was by the provisional time.
	camera, cameraAt time.Time
}

// withheld reports whether nobody may hear of the epoch yet.
func (t *timing) withheld() bool { return t != nil && (t.raw || t.unsaved) }

// moves reports whether chunk seq is not at the time that it was stamped with.
func (t *timing) moves(seq uint64) bool { return t != nil && !t.raw && seq <= t.last }

// at is when what belongs to chunk seq was, by what it was stamped with.
func (t *timing) at(seq uint64, stamped time.Time) time.Time {
	if !t.moves(seq) || stamped.IsZero() {
		return stamped
	}
	return stamped.Add(t.by.Shift)
}

// place returns c at its time.
func (t *timing) place(c vms.Chunk) vms.Chunk {
	if !t.moves(c.Seq) {
		return c
	}
	if !c.Start.Before(t.by.Sure.Start) && !c.End.After(t.by.Sure.End) {
		c.Flags &^= vms.FlagTimeUncertain
	}
	c.Start, c.End = c.Start.Add(t.by.Shift), c.End.Add(t.by.Shift)
	return c
}

// timed returns what is known of the times of the epoch at ord.
func (s *Spool) timed(ord int) *timing {
	for i := range s.epochs {
		if s.epochs[i].ord == ord {
			return s.epochs[i].time
		}
	}
	return nil
}

// withheld reports whether no lane may have the epoch at ord.
func (s *Spool) withheld(ord int) bool {
	return s.timed(ord).withheld()
}

// withholds reports whether an epoch that no lane may have lies in [from, to).
func (s *Spool) withholds(from, to key) bool {
	return slices.ContainsFunc(s.epochs, func(e epochState) bool {
		return from.ord <= e.ord && e.ord < to.ord && e.time.withheld()
	})
}

// Withheld reports whether anything is held that no lane may have, because it has
// no time yet.
func (s *Spool) Withheld() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.epochs, func(e epochState) bool { return e.time.withheld() && s.holdsEpoch(e.ord) })
}

// stamped takes a chunk that was just captured: an entry of the epoch at ord.
func (s *Spool) stamped(ord int, c *vms.Chunk) entry {
	e := entry{ord: ord, chunk: c}
	t := s.timed(ord)
	switch {
	case !c.Flags.Has(vms.FlagTimeUncertain):
		if !c.CameraTime.IsZero() {
			s.camera, s.cameraAt = c.CameraTime, c.Start
		}
	case t.last == 0 || t.raw:
		t.raw, t.last, t.origin = true, c.Seq, s.store.cfg.Origin
	default: // muxed before its epoch was placed, and late
		t.last = c.Seq
		placed := t.place(*c)
		e.chunk, e.raw = &placed, c
	}
	return e
}

// Place gives the chunks of epoch e that have provisional times, and the gaps of
// this run that do, their place. It returns by how much the epoch was moved: less
// or more than p says only when it had been placed before.
func (s *Spool) Place(e vms.Epoch, p Placement) (shift time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.epochIndex(e); i >= 0 {
		switch t := s.epochs[i].time; {
		case t.raw:
			s.settle(s.epochs[i].ord, t, p)
		case t.last > 0:
			return t.by.Shift
		}
	}
	for _, g := range s.gaps {
		if g.raw && g.origin == s.store.cfg.Origin && (g.gap.Chunks == nil || g.gap.Chunks.Epoch == e) {
			s.settleGap(g, p.Shift)
		}
	}
	s.notify()
	s.store.kick()
	return p.Shift
}

// settle places the epoch at ord, with its gaps.
func (s *Spool) settle(ord int, t *timing, p Placement) {
	p.Shift = p.Shift.Truncate(time.Microsecond)
	t.by, t.raw = p, false
	t.unsaved = s.store.cfg.Documents != nil && s.onFlash(ord)
	for i := s.ram(key{ord: ord}); i < len(s.entries); i++ {
		e := &s.entries[i]
		if e.ord != ord || e.chunk.Seq > t.last {
			break
		}
		placed := t.place(*e.chunk)
		e.chunk, e.raw = &placed, e.chunk
	}
	if s.last.ord == ord && s.last.seq <= t.last {
		s.lastEnd = s.lastEnd.Add(p.Shift)
	}
	for _, g := range s.gaps {
		if g.raw && g.ord == ord {
			s.settleGap(g, p.Shift)
		}
	}
}

// settleGap places a gap. In Facts it has another name from then on: one that is
// found there under the old one was not placed.
func (s *Spool) settleGap(g *gapState, shift time.Duration) {
	if g.saved > 0 {
		s.drops = append(s.drops, g.factID())
		g.saved, g.old = 0, true
	}
	g.raw = false
	g.gap.Start, g.gap.End = g.gap.Start.Add(shift), g.gap.End.Add(shift)
	g.touch()
	g.since = time.Now()
}

// onFlash reports whether chunks of the epoch at ord are there, or on their way:
// also such as nobody wants any more, whose file is there still.
func (s *Spool) onFlash(ord int) bool {
	return s.flight.first != 0 && s.flightOrd == ord || s.filed(s.named(ord))
}

// filed reports whether an epoch has a file on flash.
func (s *Spool) filed(e vms.Epoch) bool {
	for _, f := range s.files {
		if f.epoch == e {
			return true
		}
	}
	return false
}

// PlaceRest places what Place does not: what earlier runs of the agent, and
// earlier streams of this one, captured in provisional time. Where a clock of the
// hub or the camera's own went on since, that tells; else it goes, in order and
// with its flag, where it fits before the present boot. It is to be called, when
// the hub knows the time, until it returns true. current is the epoch that is
// captured now, which is not its business.
func (s *Spool) PlaceRest(current vms.Epoch, b Bridge) (done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := false
	for i := range s.epochs {
		e := &s.epochs[i]
		if !e.time.raw || e.epoch == current {
			continue
		}
		span := s.spanOf(e.ord)
		p, ok := b.Place(e.time.origin, span.Duration())
		if !ok {
			p, ok = s.byCamera(e.time, span, b)
		}
		if ok {
			s.settle(e.ord, e.time, p)
		} else {
			left = true
		}
	}
	if left && b.Wait && s.cameraAt.IsZero() {
		return false
	}
	s.estimate(current, b)
	s.gaps = slices.DeleteFunc(s.gaps, func(g *gapState) bool {
		return g.raw && (g.gap.Chunks == nil || g.gap.Chunks.Epoch != current) && !s.placeGap(g, b)
	})
	s.notify()
	s.store.kick()
	return true
}

// spanOf is the time of the chunks of an epoch that are held.
func (s *Spool) spanOf(ord int) (r vms.TimeRange) {
	first, ok := s.heldFrom(key{ord: ord})
	if !ok || first.ord != ord {
		return r
	}
	last, _ := s.heldBefore(key{ord: ord + 1})
	return vms.TimeRange{Start: first.start(), End: last.end()}
}

// byCamera places an epoch of an earlier boot by the camera's clock, if that was
// set then and ran on since.
func (s *Spool) byCamera(t *timing, span vms.TimeRange, b Bridge) (p Placement, ok bool) {
	since := s.camera.Sub(t.camera)
	if s.cameraAt.IsZero() || t.camera.IsZero() || t.camera.Before(b.Floor) || since < 0 {
		return p, false
	}
	was := s.cameraAt.Add(-since) // UTC when the camera's clock showed t.camera
	p.Shift = was.Sub(t.cameraAt).Truncate(time.Microsecond)
	if span.End.Add(p.Shift).After(b.Began) {
		return p, false // it was set in between
	}
	around := time.Duration(float64(certain)/cameraDrift) - since
	if around > 0 {
		p.Sure = vms.TimeRange{Start: t.cameraAt.Add(-around), End: t.cameraAt.Add(around)}
	}
	return p, true
}

// estimate places what no clock can: where its provisional time says, but behind
// what came earlier, and before what came later, which counts more.
func (s *Spool) estimate(current vms.Epoch, b Bridge) {
	type place struct {
		*epochState
		vms.TimeRange
	}
	var all []place
	var end time.Time
	for i := range s.epochs {
		e := &s.epochs[i]
		r := s.spanOf(e.ord)
		if e.epoch == current || r.Start.IsZero() {
			continue
		}
		if late := end.Sub(r.Start); e.time.raw && !end.IsZero() && late > 0 {
			r.Start, r.End = r.Start.Add(late), r.End.Add(late)
		}
		end = r.End
		all = append(all, place{e, r})
	}
	before := b.Began
	for _, p := range slices.Backward(all) {
		if p.time.raw {
			was := s.spanOf(p.ord).Start
			if over := p.End.Sub(before); over > 0 {
				p.Start = p.Start.Add(-over)
			}
			s.settle(p.ord, p.time, Placement{Shift: p.Start.Sub(was)})
		}
		if p.Start.Before(before) {
			before = p.Start
		}
	}
}

// placeGap places a gap of no epoch that is held. One of which nothing is known
// is dropped: it is nowhere on the timeline, and the NVR sees for itself that
// footage is missing.
func (s *Spool) placeGap(g *gapState, b Bridge) (ok bool) {
	if p, ok := b.Place(g.origin, 0); ok {
		s.settleGap(g, p.Shift)
		return true
	}
	for i := range s.epochs {
		if t := s.epochs[i].time; t.last > 0 && !t.raw && t.origin == g.origin {
			s.settleGap(g, t.by.Shift)
			return true
		}
	}
	if g.saved > 0 {
		s.drops = append(s.drops, g.factID())
	}
	return false
}

// placements is the document.
type placements struct {
	Epochs []keptEpoch `json:"epochs,omitempty"`
	Gaps   []keptGap   `json:"gaps,omitempty"`
}

// keptEpoch is an epoch on flash some of whose chunks were stamped with
// provisional times.
type keptEpoch struct {
	Channel vms.ChannelID `json:"channel"`
	Epoch   vms.Epoch     `json:"epoch"`
	Origin  Origin        `json:"origin"`
	// Last is the last one of them, when they were placed; 0: they were not.
	Last  uint64    `json:"last,omitempty"`
	Place Placement `json:"place,omitzero"`
}

// keptGap is a gap in provisional time.
type keptGap struct {
	Channel vms.ChannelID `json:"channel"`
	ID      vms.GapID     `json:"id"`
	Origin  Origin        `json:"origin"`
}

func (p *placements) of(ch vms.ChannelID) (out placements) {
	for _, e := range p.Epochs {
		if e.Channel == ch {
			out.Epochs = append(out.Epochs, e)
		}
	}
	for _, g := range p.Gaps {
		if g.Channel == ch {
			out.Gaps = append(out.Gaps, g)
		}
	}
	return out
}

func (p *placements) drop(ch vms.ChannelID) {
	p.Epochs = slices.DeleteFunc(slices.Clone(p.Epochs), func(e keptEpoch) bool { return e.Channel == ch })
	p.Gaps = slices.DeleteFunc(slices.Clone(p.Gaps), func(g keptGap) bool { return g.Channel == ch })
}

// loadPlacements reads the document. Without it, what is provisional on flash is
// placed as well as can be.
func (st *Store) loadPlacements() {
	if st.cfg.Documents == nil {
		return
	}
	data, err := st.cfg.Documents.Document(document)
	if err == nil && data != nil {
		if err = json.Unmarshal(data, &st.kept); err != nil {
			st.kept = placements{}
		}
	}
	if err != nil {
		st.cfg.Log.Error("cannot read when footage on flash was captured; it will be estimated", "err", err)
		return
	}
	st.keptData = data
}

// savePlacements keeps what has to be known of the provisional times of what is
// on flash, if that has changed, and lets lanes have what waited for it. Flash
// that fails does not keep it from them for ever. Store.io is held.
func (st *Store) savePlacements() {
	if st.cfg.Documents == nil {
		return
	}
	var doc placements
	open := map[vms.ChannelID]bool{}
	waiting := map[*Spool][]*timing{}
	st.mu.Lock()
	kept, before := st.kept, st.keptData
	st.mu.Unlock()
	for _, s := range st.all() {
		open[s.channel] = true
		s.mu.Lock()
		for _, e := range kept.of(s.channel).Epochs {
			if s.epochIndex(e.Epoch) < 0 && s.filed(e.Epoch) { // forgotten, but there if the agent is killed now
				doc.Epochs = append(doc.Epochs, e)
			}
		}
		for i := range s.epochs {
			e := &s.epochs[i]
			if e.time.unsaved {
				waiting[s] = append(waiting[s], e.time)
			}
			if e.time.last == 0 || !s.onFlash(e.ord) {
				continue
			}
			k := keptEpoch{Channel: s.channel, Epoch: e.epoch, Origin: e.time.origin}
			if !e.time.raw {
				k.Last, k.Place = e.time.last, e.time.by
			}
			doc.Epochs = append(doc.Epochs, k)
		}
		for _, g := range s.gaps {
			if g.raw || slices.Contains(s.drops, rawPrefix+g.gap.ID) { // or Facts has it so still
				doc.Gaps = append(doc.Gaps, keptGap{s.channel, g.gap.ID, g.origin})
			}
		}
		s.mu.Unlock()
	}
	for _, e := range kept.Epochs {
		if !open[e.Channel] {
			doc.Epochs = append(doc.Epochs, e)
		}
	}
	for _, g := range kept.Gaps {
		if !open[g.Channel] {
			doc.Gaps = append(doc.Gaps, g)
		}
	}
	if before == nil && len(doc.Epochs)+len(doc.Gaps)+len(waiting) == 0 {
		return // as nearly always
	}
	data, err := json.Marshal(doc)
	if len(doc.Epochs)+len(doc.Gaps) == 0 {
		data = nil
	}
	if err == nil && !bytes.Equal(data, before) {
		if err = st.cfg.Documents.PutDocument(document, data); err == nil {
			st.mu.Lock()
			st.kept, st.keptData = doc, data
			st.mu.Unlock()
		}
	}
	if err != nil {
		st.cfg.Log.Error("cannot keep when footage on flash was captured; if the agent is killed now it will be estimated", "err", err)
	}
	for s, ts := range waiting {
		s.mu.Lock()
		for _, t := range ts {
			t.unsaved = false
		}
		s.notify()
		s.mu.Unlock()
	}
}

// loadTimes finds out which epochs on flash have provisional times, and what was
// made of them.
func (s *Spool) loadTimes(kept placements) {
	for i := range s.epochs {
		e := &s.epochs[i]
		t := e.time
		j := slices.IndexFunc(kept.Epochs, func(k keptEpoch) bool { return k.Epoch == e.epoch })
		if j >= 0 {
			t.origin = kept.Epochs[j].Origin
		}
		if j >= 0 && kept.Epochs[j].Last > 0 {
			t.last, t.by = kept.Epochs[j].Last, kept.Epochs[j].Place
			continue
		}
		if j >= 0 && !s.onFlash(e.ord) { // all of it is damaged
			t.last, t.raw = math.MaxUint64, true
		}
		var newest *shelved
		for _, b := range s.blocks {
			if b.ord == e.ord {
				if last := b.uncertain(); last > 0 {
					t.last, t.raw, newest = last, true, b
				}
			}
		}
		if newest == nil {
			continue
		}
		// What its camera's clock showed then may tell when it was.
		if c, err := s.shelf.read(newest.block, t.last); err == nil && !c.CameraTime.IsZero() {
			t.camera, t.cameraAt = c.CameraTime, c.Start
		}
	}
	if n := len(s.epochs); n > 0 {
		s.lastEnd = s.epochs[n-1].time.at(s.last.seq, s.lastEnd)
	}
}

// uncertain returns the last chunk of the block that was stamped with an
// uncertain time, 0 when none was. They come before all others.
func (b *shelved) uncertain() (last uint64) {
	for i, m := range b.Marks {
		if !m.Flags.Has(vms.FlagTimeUncertain) {
			break
		}
		if last = b.Last; i+1 < len(b.Marks) {
			last = b.Marks[i+1].Seq - 1
		}
	}
	return last
}

// factID is the id that the gap has in Facts.
func (g *gapState) factID() vms.GapID {
	if g.raw {
		return rawPrefix + g.gap.ID
	}
	return g.gap.ID
}

// ofFacts is the inverse of factID.
func ofFacts(id vms.GapID) (_ vms.GapID, raw bool) {
	rest, raw := strings.CutPrefix(string(id), rawPrefix)
	return vms.GapID(rest), raw
}
