package nvr

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// shortest is the shortest hole that counts: below it there are only roundings.
const shortest = time.Millisecond

// A stop is not a gap, and neither is the time between the command and the
// last frame before it, or the first frame after the next start.
const (
	settleBefore = 5 * time.Second
	settleAfter  = 15 * time.Second
)

// timeline says what is missing and what is pending inside window. recorded
// beats gap beats pending: no instant is in two of them.
//
// recs are the recordings of the window by start, with the neighbour on either
// side of it if there is one; declared are the gaps that hubs reported; idle
// is when nobody wanted the channel to record; held is what hubs still have.
// Idle explains a hole and nothing else: what was recorded, lost or is pending
// then was recorded all the same.
//
// A hole between two recordings that nothing explains becomes a gap of its
// own: between two epochs the agent restarted; inside one the cause is unknown.
//
// newest says that no recording comes after recs: what hubs hold behind them
// then counts like a recording, so that a hole before it is told at once.
func timeline(window vms.TimeRange, recs []vms.Recording, newest bool, declared []vms.Gap, idle []vms.TimeRange, held []heldRange) (gaps []vms.Gap, pending []vms.TimeRange) {
	var recorded ranges
	for _, r := range recs {
		recorded = append(recorded, vms.TimeRange{Start: r.Start, End: r.End})
	}
	recorded = recorded.union()
	lost := make(ranges, 0, len(declared))
	declared = slices.Clone(declared)
	slices.SortStableFunc(declared, func(a, b vms.Gap) int { return a.Start.Compare(b.Start) })
	var told time.Time // how far the gaps before reach
	for _, g := range declared {
		whole := g.TimeRange
		if whole.Start.Before(told) {
			whole.Start = told
		}
		if g.End.After(told) {
			told = g.End
		}
		for i, p := range clip(whole, window).minus(recorded).visible() {
			piece := g
			piece.TimeRange = p
			if i > 0 { // a recording stands in the middle of it
				piece.ID = vms.GapID(string(g.ID[:min(len(g.ID), 56)]) + "-" + strconv.Itoa(i+1))
			}
			gaps, lost = append(gaps, piece), append(lost, p)
		}
	}
	taken := append(lost, recorded...).union() // what has its place on the timeline already
	var buffered ranges
	for _, h := range held {
		buffered = append(buffered, h.TimeRange)
	}
	pending = buffered.union().clip(window).minus(taken).visible()

	explained := append(slices.Clone(taken), pending...)
	missing := holes(recs)
	if newest {
		missing = append(missing, holesBehind(recs, held, declared)...)
	}
	for _, h := range missing {
		explained := slices.Clone(explained)
		if !lostChunks(h, declared, held) {
			explained = append(explained, settled(idle, h.TimeRange)...)
		}
		explained = explained.union()
		for _, p := range clip(h.TimeRange, window).minus(explained).visible() {
			gaps = append(gaps, vms.Gap{ID: derivedID(p), Cause: h.cause, TimeRange: p, Chunks: h.chunks})
		}
	}
	slices.SortStableFunc(gaps, func(a, b vms.Gap) int { return a.Start.Compare(b.Start) })
	return gaps, pending
}

type hole struct {
	vms.TimeRange
	cause  vms.Cause
	chunks *vms.ChunkRange
}

// holes lists the times between recordings.
func holes(recs []vms.Recording) []hole {
	var out []hole
	for i := 1; i < len(recs); i++ {
		a, b := recs[i-1], recs[i]
		if b.Start.Sub(a.End) < shortest {
			continue
		}
		h := hole{TimeRange: vms.TimeRange{Start: a.End, End: b.Start}, cause: vms.CauseAgentRestarted}
		if a.Chunks.Epoch == b.Chunks.Epoch {
			h.cause = vms.CauseUnknown
			if a.Chunks.Last+1 < b.Chunks.First {
				h.chunks = &vms.ChunkRange{Epoch: a.Chunks.Epoch, First: a.Chunks.Last + 1, Last: b.Chunks.First - 1}
			}
		}
		out = append(out, h)
	}
	return out
}

// lostChunks reports whether chunks were made in a hole that nobody has and
// nobody has declared: it was no idle time then, whatever was wanted.
func lostChunks(h hole, declared []vms.Gap, held []heldRange) bool {
	if h.chunks == nil {
		return false
	}
	var lost vms.ChunkSet
	lost.Add(*h.chunks)
	for _, g := range declared {
		if g.Chunks != nil {
			lost.Remove(*g.Chunks)
		}
	}
	for _, r := range held {
		lost.Remove(r.chunks)
	}
	return lost.Len() > 0
}

// holesBehind lists the times between the last recording and what hubs hold or
// declare behind it, and between that, where the epoch changes: inside one, what
// is neither held nor recorded may only not be registered yet. A gap without
// chunks, such as a camera's absence, begins where its hub's footage ended: what
// is missing before it is missing.
func holesBehind(recs []vms.Recording, held []heldRange, declared []vms.Gap) []hole {
	var last heldRange
	if k := len(recs) - 1; k >= 0 {
		last = heldRange{vms.TimeRange{Start: recs[k].Start, End: recs[k].End}, recs[k].Chunks}
	}
	held = slices.Clone(held)
	for _, g := range declared {
		h := heldRange{TimeRange: g.TimeRange}
		if g.Chunks != nil {
			h.chunks = *g.Chunks
		}
		held = append(held, h)
	}
	slices.SortStableFunc(held, func(a, b heldRange) int { return a.Start.Compare(b.Start) })
	var out []hole
	for _, h := range held {
		if last.chunks.Epoch != 0 && h.chunks.Epoch != last.chunks.Epoch && h.Start.Sub(last.End) >= shortest {
			out = append(out, hole{TimeRange: vms.TimeRange{Start: last.End, End: h.Start}, cause: vms.CauseAgentRestarted})
		}
		if h.End.After(last.End) {
			epoch := last.chunks.Epoch
			if last = h; last.chunks.Epoch == 0 {
				last.chunks.Epoch = epoch // whoever comes next in the same epoch is no restart
			}
		}
	}
	return out
}

// derivedID names a gap that nobody declared: the same as long as it is the same.
func derivedID(r vms.TimeRange) vms.GapID {
	return vms.GapID(fmt.Sprintf("derived_%x_%x", r.Start.UnixMicro(), r.End.UnixMicro()))
}

// settled returns the idle times in a hole, with what belongs to their stop and
// start. A hole without any is none of their doing, however near it is.
func settled(idle []vms.TimeRange, hole vms.TimeRange) ranges {
	var out ranges
	for _, r := range idle {
		if !r.Overlaps(hole) {
			continue
		}
		out = append(out, vms.TimeRange{Start: r.Start.Add(-settleBefore), End: r.End.Add(settleAfter)})
	}
	return out
}

// ranges are stretches of time. After union they are in order and apart.
type ranges []vms.TimeRange

// union sorts and joins. Empty ranges vanish.
func (rs ranges) union() ranges {
	s := make(ranges, 0, len(rs))
	for _, r := range rs {
		if r.Start.Before(r.End) {
			s = append(s, r)
		}
	}
	slices.SortFunc(s, func(a, b vms.TimeRange) int { return a.Start.Compare(b.Start) })
	out := s[:0]
	for _, r := range s {
		if k := len(out) - 1; k >= 0 && !r.Start.After(out[k].End) {
			if r.End.After(out[k].End) {
				out[k].End = r.End
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// minus takes cuts, which is a union, out of rs, which is one too.
func (rs ranges) minus(cuts ranges) ranges {
	var out ranges
	for _, r := range rs {
		// The first cut that ends after r begins; those before cannot touch it.
		i, _ := slices.BinarySearchFunc(cuts, r.Start, func(c vms.TimeRange, t time.Time) int {
			if c.End.After(t) {
				return 1
			}
			return -1
		})
		for ; i < len(cuts) && cuts[i].Start.Before(r.End); i++ {
			if r.Start.Before(cuts[i].Start) {
				out = append(out, vms.TimeRange{Start: r.Start, End: cuts[i].Start})
			}
			r.Start = cuts[i].End
		}
		if r.Start.Before(r.End) {
			out = append(out, r)
		}
	}
	return out
}

func (rs ranges) clip(w vms.TimeRange) ranges {
	var out ranges
	for _, r := range rs {
		out = append(out, clip(r, w)...)
	}
	return out
}

// visible leaves out what is too short to be seen.
func (rs ranges) visible() ranges {
	return slices.DeleteFunc(rs, func(r vms.TimeRange) bool { return r.Duration() < shortest })
}

// clip is the part of r inside w: one range or none.
func clip(r, w vms.TimeRange) ranges {
	if r.Start.Before(w.Start) {
		r.Start = w.Start
	}
	if r.End.After(w.End) {
		r.End = w.End
	}
	if !r.Start.Before(r.End) {
		return nil
	}
	return ranges{r}
}
