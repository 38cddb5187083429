package nvr

import (
	"slices"

	"github.com/zipato/vms/pkg/vms"
)

// Placement is what becomes of a recording that comes among others.
type Placement struct {
	// Drop: the others have every chunk of it, and its own object is garbage.
	Drop bool
	// Superseded are the keys of others whose chunks all stand elsewhere now.
	Superseded []string
	// Conflict is the key of another that should not be there as well.
	Conflict string
}

// Place is the rule by which recordings of a channel never overlap. others are
// those that overlap r in time, and, if there are parts among these, those that
// overlap them (Reach); a Store applies what it says in the transaction that
// registers r.
//
// Nothing goes whose chunks are not all in one other recording, or, when it is
// a part, in others together: the hub has forgotten them on the strength of it,
// and whoever takes the recording over fetches them there.
//
// Two workers may store the same chunks in parts that begin and end
// differently, or one of them may have closed the recording, because the hub has
// lost the rest, when the other had more of it. All stay until the whole takes
// their place, or a rest that goes on where the closed one ends; readers cut the
// earlier one off where the later one begins.
func Place(r vms.Recording, others []vms.Recording) Placement {
	for i, o := range others {
		if !o.Chunks.Contains(r.Chunks) {
			continue
		}
		// A part gives way to a whole that has all of it, or what wholes lack of it.
		rest := append(slices.Delete(slices.Clone(others), i, i+1), r)
		if r.Provisional() || !o.Provisional() || !covered(o, rest) {
			return Placement{Drop: true}
		}
	}
	if r.Provisional() && covered(r, others) {
		return Placement{Drop: true}
	}
	var p Placement
	all := []vms.Recording{r}
	for _, o := range others {
		if r.Chunks.Contains(o.Chunks) {
			p.Superseded = append(p.Superseded, o.Key)
			continue
		}
		all = append(all, o)
		twice := sharesChunks(r, o) && (r.Provisional() || o.Provisional())
		if p.Conflict == "" && !twice && o.Start.Before(r.End) && r.Start.Before(o.End) {
			p.Conflict = o.Key
		}
	}
	for i := len(all) - 1; i > 0; i-- {
		rest := slices.Delete(slices.Clone(all), i, i+1)
		if all[i].Provisional() && covered(all[i], rest) {
			p.Superseded = append(p.Superseded, all[i].Key)
			all = rest
		}
	}
	return p
}

// Reach is the time in which a Store looks for others that Place has to know:
// that of r and of the parts that overlap it.
func Reach(r vms.Recording, others []vms.Recording) vms.TimeRange {
	t := vms.TimeRange{Start: r.Start, End: r.End}
	for _, o := range others {
		if !o.Provisional() {
			continue
		}
		if o.Start.Before(t.Start) {
			t.Start = o.Start
		}
		if o.End.After(t.End) {
			t.End = o.End
		}
	}
	return t
}

// covered reports whether rs together have all chunks of r.
func covered(r vms.Recording, rs []vms.Recording) bool {
	var all vms.ChunkSet
	for _, o := range rs {
		all.Add(o.Chunks)
	}
	return all.Covers(r.Chunks)
}

func sharesChunks(a, b vms.Recording) bool {
	return a.Chunks.Epoch == b.Chunks.Epoch && a.Chunks.First <= b.Chunks.Last && b.Chunks.First <= a.Chunks.Last
}

// apart is a page of recordings, by start, that do not overlap: where two have
// the same chunks, because one is a part, the earlier one is played only up to
// where the later one begins. next is the first of the page behind, if there is one.
func apart(recs []vms.Recording, next *vms.Recording) []vms.Recording {
	recs = slices.Clone(recs)
	for i := range recs {
		after := next
		if i+1 < len(recs) {
			after = &recs[i+1]
		}
		if after != nil && sharesChunks(recs[i], *after) && after.Start.After(recs[i].Start) && after.Start.Before(recs[i].End) {
			recs[i].End = after.Start
			if after.Chunks.First > recs[i].Chunks.First {
				recs[i].Chunks.Last = after.Chunks.First - 1
			}
		}
	}
	return recs
}
