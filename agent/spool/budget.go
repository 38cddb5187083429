package spool

import (
	"sync"
	"sync/atomic"
)

// Budget bounds the bytes of all streams of a hub together.
type Budget struct {
	limit int64
	used  atomic.Int64

	mu     sync.Mutex // taken before Spool.mu, never after
	spools []*Spool
}

// NewBudget returns a budget of so many bytes of RAM.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// NewSpool returns an empty spool that shares the budget.
func (b *Budget) NewSpool() *Spool {
	s := &Spool{budget: b, changed: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spools = append(b.spools, s)
	return s
}

// Used returns the bytes held now; Limit what may be held.
func (b *Budget) Used() int64 { return b.used.Load() }

// Limit is the budget in bytes.
func (b *Budget) Limit() int64 { return b.limit }

// add accounts for n bytes more or less, and makes room when there are too
// many: the stream that holds most gives its oldest GOP.
func (b *Budget) add(n int64) {
	if b.used.Add(n) <= b.limit || n <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.used.Load() > b.limit {
		var most *Spool
		var mostBytes int64
		for _, s := range b.spools {
			if held := s.held(); held > mostBytes {
				most, mostBytes = s, held
			}
		}
		if most == nil {
			return
		}
		freed := most.dropOldest()
		b.used.Add(-freed)
		if freed == 0 {
			return
		}
	}
}

func (s *Spool) held() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}
