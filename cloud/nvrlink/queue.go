package nvrlink

import "sync"

// queue is what one goroutine takes from and many put into, first in, first out,
// bounded in bytes. Nobody who puts into it waits.
type queue[T any] struct {
	// ready has something in it when the queue may have.
	ready chan struct{}

	mu    sync.Mutex
	items []sized[T]
	bytes int
	limit int
}

type sized[T any] struct {
	v    T
	size int
}

func newQueue[T any](limit int) *queue[T] {
	return &queue[T]{ready: make(chan struct{}, 1), limit: limit}
}

// push puts v in, which counts as so many bytes, or returns false: it is full.
func (q *queue[T]) push(v T, size int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bytes+size > q.limit {
		return false
	}
	q.items = append(q.items, sized[T]{v, size})
	q.bytes += size
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return true
}

// pop takes the oldest one out, if there is one.
func (q *queue[T]) pop() (v T, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		return v, false
	}
	x := q.items[0]
	q.items[0] = sized[T]{} // what it holds may go
	q.items = q.items[1:]
	q.bytes -= x.size
	return x.v, true
}
