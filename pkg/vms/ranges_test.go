package vms

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// model is a ChunkSet as one would explain it: the set of its members.
type model map[member]bool

type member struct {
	e   Epoch
	seq uint64
}

func (m model) set(r ChunkRange, in bool) {
	if r.First > r.Last {
		return
	}
	for seq := r.First; ; seq++ {
		if in {
			m[member{r.Epoch, seq}] = true
		} else {
			delete(m, member{r.Epoch, seq})
		}
		if seq == r.Last { // not in the loop's head: Last may be the largest number
			return
		}
	}
}

func (m model) covers(r ChunkRange) bool {
	for seq := r.First; ; seq++ {
		if !m[member{r.Epoch, seq}] {
			return false
		}
		if seq == r.Last {
			return true
		}
	}
}

// TestChunkSetAgainstModel makes random changes near both ends of the numbers
// and compares every answer.
func TestChunkSetAgainstModel(t *testing.T) {
	for _, base := range []uint64{0, 1, 1 << 40, math.MaxUint64 - 19} {
		t.Run(fmt.Sprintf("from %d", base), func(t *testing.T) {
			for seed := range uint64(200) {
				runModel(t, rand.New(rand.NewPCG(seed, base)), base)
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

func runModel(t *testing.T, rng *rand.Rand, base uint64) {
	t.Helper()
	const width = 20
	var s ChunkSet
	m := make(model)
	draw := func() ChunkRange {
		a, b := rng.Uint64N(width), rng.Uint64N(width)
		return ChunkRange{Epoch(1 + rng.IntN(2)), base + min(a, b), base + max(a, b)}
	}
	for step := range 40 {
		r := draw()
		switch rng.IntN(20) {
		case 0:
			s.Forget(r.Epoch)
			m.set(ChunkRange{r.Epoch, base, base + width - 1}, false)
		case 1, 2, 3, 4, 5, 6:
			s.Remove(r)
			m.set(r, false)
		default:
			s.Add(r)
			m.set(r, true)
		}
		compareSets(t, &s, m, base, width)
		if q := draw(); s.Covers(q) != m.covers(q) {
			t.Errorf("step %d: Covers(%s) = %v", step, q, s.Covers(q))
		}
		if t.Failed() {
			t.Fatalf("step %d, after %s: %v", step, r, s.Ranges())
		}
	}
}

func compareSets(t *testing.T, s *ChunkSet, m model, base, width uint64) {
	t.Helper()
	n := 0
	for e := Epoch(1); e <= 2; e++ {
		for i := range width {
			if got, want := s.Has(e, base+i), m[member{e, base + i}]; got != want {
				t.Errorf("Has(%s, %d) = %v, want %v", e, base+i, got, want)
			}
			if m[member{e, base + i}] && (i == 0 || !m[member{e, base + i - 1}]) {
				n++ // a run begins here
			}
		}
	}
	ranges := s.Ranges()
	if len(ranges) != n || s.Len() != n {
		t.Errorf("%d ranges and Len %d, want %d runs: %v", len(ranges), s.Len(), n, ranges)
	}
	for i := 1; i < len(ranges); i++ {
		if a, b := ranges[i-1], ranges[i]; a.Epoch > b.Epoch || a.Epoch == b.Epoch && (a.Last >= b.First || a.Last+1 == b.First) {
			t.Errorf("ranges %s and %s touch or are out of order", a, b)
		}
	}
}

// TestEmptyRangesChangeNothing: First behind Last is no chunk at all.
func TestEmptyRangesChangeNothing(t *testing.T) {
	for name, change := range map[string]func(*ChunkSet, ChunkRange){"Add": (*ChunkSet).Add, "Remove": (*ChunkSet).Remove} {
		var s ChunkSet
		s.Add(ChunkRange{1, 1, 10})
		change(&s, ChunkRange{1, 6, 4})
		if got, want := s.Ranges(), []ChunkRange{{1, 1, 10}}; !slices.Equal(got, want) {
			t.Errorf("%s of an empty range: %v, want %v", name, got, want)
		}
	}
}

// TestZeroChunkSetIsReady calls everything on one.
func TestZeroChunkSetIsReady(t *testing.T) {
	var s ChunkSet
	s.Remove(ChunkRange{1, 1, 2})
	s.Forget(1)
	if s.Has(1, 1) || s.Covers(ChunkRange{1, 1, 1}) || s.Len() != 0 || len(s.Ranges()) != 0 {
		t.Errorf("a zero set holds %v", s.Ranges())
	}
}

func TestChunkRangeContains(t *testing.T) {
	r := ChunkRange{1, 10, 20}
	for o, want := range map[ChunkRange]bool{
		{1, 10, 20}: true, {1, 11, 19}: true, {1, 10, 10}: true, {1, 20, 20}: true,
		{1, 9, 20}: false, {1, 10, 21}: false, {2, 10, 20}: false, {1, 1, 5}: false,
	} {
		if r.Contains(o) != want {
			t.Errorf("%s contains %s: %v, want %v", r, o, r.Contains(o), want)
		}
	}
}

func TestChunkRangeJSON(t *testing.T) {
	r := ChunkRange{0xab, 1, math.MaxUint64}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := `["00000000000000ab",1,18446744073709551615]`; string(b) != want {
		t.Errorf("JSON %s, want %s", b, want)
	}
	var got ChunkRange
	if err := json.Unmarshal(b, &got); err != nil || got != r {
		t.Errorf("read back %v, %v", got, err)
	}
	for _, bad := range []string{
		`null`, `{}`, `[]`, `["00000000000000ab",1]`, `["00000000000000ab",1,2,3]`, `["ab",1,2]`, `[171,1,2]`,
		`["00000000000000ab",0,2]`, `["00000000000000ab",3,2]`, `["0000000000000000",1,2]`, `["00000000000000ab",-1,2]`,
		`["00000000000000ab","1","2"]`, `["00000000000000ab",1,18446744073709551616]`, `["00000000000000ab",1.5,2]`, `["00000000000000ab",null,2]`,
	} {
		got := ChunkRange{9, 9, 9}
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s is taken as %s", bad, got)
		} else if got != (ChunkRange{9, 9, 9}) {
			t.Errorf("%s is refused, but wrote %s", bad, got)
		}
	}
}
