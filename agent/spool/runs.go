package spool

import (
	"math"
	"slices"
)

// run is an unbroken run of chunk numbers, both ends included.
type run struct{ first, last uint64 }

// runs are chunk numbers of one epoch: sorted, disjoint and not adjacent. The
// zero value is empty.
type runs []run

// search returns the first run that does not end before seq.
func (r runs) search(seq uint64) int {
	lo, hi := 0, len(r)
	for lo < hi {
		if m := (lo + hi) / 2; r[m].last < seq {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

func (r runs) has(seq uint64) bool {
	i := r.search(seq)
	return i < len(r) && r[i].first <= seq
}

// above returns the least number that is not below seq.
func (r runs) above(seq uint64) (uint64, bool) {
	i := r.search(seq)
	if i == len(r) {
		return 0, false
	}
	return max(seq, r[i].first), true
}

// below returns the greatest number that is not above seq.
func (r runs) below(seq uint64) (uint64, bool) {
	i := r.search(seq)
	if i < len(r) && r[i].first <= seq {
		return seq, true
	}
	if i == 0 {
		return 0, false
	}
	return r[i-1].last, true
}

// missing returns the least number from seq on that is not in r; the greatest
// there is when all are.
func (r runs) missing(seq uint64) uint64 {
	switch i := r.search(seq); {
	case i == len(r) || r[i].first > seq:
		return seq
	case r[i].last == math.MaxUint64:
		return math.MaxUint64
	default:
		return r[i].last + 1
	}
}

// missingBelow returns the greatest number up to seq that is not in r; 0 when all are.
func (r runs) missingBelow(seq uint64) uint64 {
	switch i := r.search(seq); {
	case i == len(r) || r[i].first > seq:
		return seq
	case r[i].first == 0:
		return 0
	default:
		return r[i].first - 1
	}
}

// count returns how many of [first, last] are in r.
func (r runs) count(first, last uint64) (n uint64) {
	for i := r.search(first); i < len(r) && r[i].first <= last; i++ {
		n += min(r[i].last, last) - max(r[i].first, first) + 1
	}
	return n
}

func (r *runs) add(first, last uint64) {
	if first > last {
		return
	}
	v := *r
	// i: the first run that [first, last] touches or precedes; j: the first wholly behind it.
	i := v.search(first)
	if i > 0 && first > 0 && v[i-1].last == first-1 {
		i--
	}
	j := i
	for j < len(v) && (v[j].first <= last || v[j].first-1 == last) {
		first, last = min(first, v[j].first), max(last, v[j].last)
		j++
	}
	*r = slices.Replace(v, i, j, run{first, last})
}

func (r *runs) remove(first, last uint64) {
	v := *r
	i := v.search(first)
	j := i
	var left []run
	for j < len(v) && v[j].first <= last {
		if v[j].first < first {
			left = append(left, run{v[j].first, first - 1})
		}
		if v[j].last > last {
			left = append(left, run{last + 1, v[j].last})
		}
		j++
	}
	if i < j {
		*r = slices.Replace(v, i, j, left...)
	}
}
