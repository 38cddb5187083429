package vms

import (
	"encoding/json"
	"fmt"
	"slices"
)

// ChunkRange is an unbroken run of chunks of one epoch, both ends included, as
// it stands in every message: JSON ["<epoch>", first, last].
type ChunkRange struct {
	Epoch       Epoch
	First, Last uint64
}

// Contains reports whether o lies wholly inside r.
func (r ChunkRange) Contains(o ChunkRange) bool {
	return r.Epoch == o.Epoch && r.First <= o.First && o.Last <= r.Last
}

func (r ChunkRange) String() string { return fmt.Sprintf("%s:%d-%d", r.Epoch, r.First, r.Last) }

// MarshalJSON writes ["<epoch>", first, last].
func (r ChunkRange) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `["%s",%d,%d]`, r.Epoch, r.First, r.Last), nil
}

// UnmarshalJSON reads ["<epoch>", first, last] and refuses an empty range.
func (r *ChunkRange) UnmarshalJSON(b []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(b, &parts); err != nil {
		return fmt.Errorf("chunk range: %w", err)
	}
	if len(parts) != 3 {
		return fmt.Errorf("chunk range has %d elements, want [epoch, first, last]", len(parts))
	}
	var v ChunkRange
	for i, dst := range []any{&v.Epoch, &v.First, &v.Last} {
		if err := json.Unmarshal(parts[i], dst); err != nil {
			return fmt.Errorf("chunk range: %w", err)
		}
	}
	if v.Epoch == 0 || v.First == 0 || v.First > v.Last {
		return fmt.Errorf("chunk range %s is empty or counts from zero", v)
	}
	*r = v
	return nil
}

// ChunkSet is a set of chunks kept as sorted, disjoint, non-adjacent runs per
// epoch. The zero value is empty and ready.
type ChunkSet struct {
	runs map[Epoch][]span
}

type span struct{ first, last uint64 }

// Add puts r into the set.
func (s *ChunkSet) Add(r ChunkRange) {
	if r.First > r.Last {
		return
	}
	if s.runs == nil {
		s.runs = make(map[Epoch][]span)
	}
	runs := s.runs[r.Epoch]
	// i: first run that r touches or precedes; j: first run wholly after r.
	i, _ := slices.BinarySearchFunc(runs, r.First, func(v span, first uint64) int {
		if first > 0 && v.last < first-1 { // not last+1: that could overflow
			return -1
		}
		return 1
	})
	j := i
	n := span{r.First, r.Last}
	for j < len(runs) && (runs[j].first <= r.Last || runs[j].first-1 == r.Last) {
		n.first, n.last = min(n.first, runs[j].first), max(n.last, runs[j].last)
		j++
	}
	s.runs[r.Epoch] = slices.Replace(runs, i, j, n)
}

// Remove takes r out of the set.
func (s *ChunkSet) Remove(r ChunkRange) {
	if r.First > r.Last {
		return
	}
	var out []span
	for _, v := range s.runs[r.Epoch] {
		if v.last < r.First || v.first > r.Last {
			out = append(out, v)
			continue
		}
		if v.first < r.First {
			out = append(out, span{v.first, r.First - 1})
		}
		if v.last > r.Last {
			out = append(out, span{r.Last + 1, v.last})
		}
	}
	if len(out) == 0 {
		delete(s.runs, r.Epoch)
		return
	}
	s.runs[r.Epoch] = out
}

// Has reports whether chunk seq of epoch e is in the set.
func (s *ChunkSet) Has(e Epoch, seq uint64) bool {
	for _, v := range s.runs[e] {
		if v.first <= seq && seq <= v.last {
			return true
		}
	}
	return false
}

// Covers reports whether the whole of r is in the set.
func (s *ChunkSet) Covers(r ChunkRange) bool {
	for _, v := range s.runs[r.Epoch] {
		if v.first <= r.First && r.Last <= v.last {
			return true
		}
	}
	return false
}

// Ranges lists the set, epochs in numeric order (which means nothing but is
// always the same), runs in order.
func (s *ChunkSet) Ranges() []ChunkRange {
	epochs := make([]Epoch, 0, len(s.runs))
	for e := range s.runs {
		epochs = append(epochs, e)
	}
	slices.Sort(epochs)
	var out []ChunkRange
	for _, e := range epochs {
		for _, v := range s.runs[e] {
			out = append(out, ChunkRange{e, v.first, v.last})
		}
	}
	return out
}

// Len counts the runs.
func (s *ChunkSet) Len() int {
	n := 0
	for _, r := range s.runs {
		n += len(r)
	}
	return n
}

// Forget drops everything known of epoch e.
func (s *ChunkSet) Forget(e Epoch) { delete(s.runs, e) }
