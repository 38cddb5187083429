package spool

import (
	"math/rand/v2"
	"testing"
)

// TestRunsAreASet compares runs with a set of numbers, step by step.
func TestRunsAreASet(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	const n = 40
	for range 200 {
		var r runs
		var set [n + 2]bool
		for range 60 {
			first := 1 + rnd.Uint64N(n)
			last := min(n, first+rnd.Uint64N(6))
			add := rnd.IntN(3) > 0
			if add {
				r.add(first, last)
			} else {
				r.remove(first, last)
			}
			for i := first; i <= last; i++ {
				set[i] = add
			}
			for i, v := range r {
				if v.first > v.last || i > 0 && r[i-1].last+1 >= v.first {
					t.Fatalf("not normal: %v", r)
				}
			}
			count := uint64(0)
			for i := range uint64(n + 1) {
				if r.has(i) != set[i] {
					t.Fatalf("%v has %d: %v", r, i, r.has(i))
				}
				if set[i] && first <= i && i <= last {
					count++
				}
				up, down := i, i
				for set[up] {
					up++
				}
				for down > 0 && set[down] {
					down--
				}
				if r.missing(i) != up || r.missingBelow(i) != down {
					t.Fatalf("%v misses %d above %d and %d below, want %d and %d", r, r.missing(i), i, r.missingBelow(i), up, down)
				}
				for up = i; up <= n && !set[up]; {
					up++
				}
				for down = i; down > 0 && !set[down]; {
					down--
				}
				if got, ok := r.above(i); ok != (up <= n) || ok && got != up {
					t.Fatalf("%v: %d is the next from %d on, want %d", r, got, i, up)
				}
				if got, ok := r.below(i); ok != (down > 0) || ok && got != down {
					t.Fatalf("%v: %d is the last up to %d, want %d", r, got, i, down)
				}
			}
			if got := r.count(first, last); got != count {
				t.Fatalf("%v has %d of %d to %d, want %d", r, got, first, last, count)
			}
		}
	}
}
