package chaos

import (
	"context"
	"sync"
	"time"
)

// A bottleneck queues at most so much: 64 KiB, as a small router does, and
// never more than it passes in a second.
const (
	maxQueue     = 64 << 10
	maxQueueTime = time.Second
)

// line is one direction of the bottleneck that all links share: first in,
// first out, at a rate, behind a queue that is bounded. Who sends more than it
// passes delays everybody, as on a home uplink. The zero line has no limit.
type line struct {
	admit sync.Mutex // held by the one whose turn it is to enter the queue

	mu      sync.Mutex
	rate    int64         // bytes per second, 0 for no limit
	free    time.Time     // when what is queued is through
	changed chan struct{} // closed when rate changes; nil before anybody asked
}

func (l *line) set(rate int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate, l.free = max(0, rate), time.Time{}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// signal is closed when the rate changes. l.mu is held.
func (l *line) signal() <-chan struct{} {
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

// slot is a place in the queue.
type slot struct {
	due     time.Time       // when its last byte is through
	changed <-chan struct{} // the line is another one now: it is through at once
}

// enter waits until the queue has room for n bytes, behind all who came
// before, and returns their place in it. It returns false when ctx ended.
func (l *line) enter(ctx context.Context, n int) (slot, bool) {
	l.admit.Lock()
	defer l.admit.Unlock()
	for {
		now := time.Now()
		l.mu.Lock()
		changed := l.signal()
		if l.rate == 0 {
			l.mu.Unlock()
			return slot{due: now, changed: changed}, ctx.Err() == nil
		}
		if l.free.Before(now) {
			l.free = now
		}
		queue := min(maxQueueTime, l.takes(maxQueue))
		if full := l.free.Sub(now) - queue; full > 0 {
			l.mu.Unlock()
			if !sleepUntil(ctx, now.Add(full), changed) {
				return slot{}, false
			}
			continue
		}
		l.free = l.free.Add(l.takes(n))
		s := slot{due: l.free, changed: changed}
		l.mu.Unlock()
		return s, true
	}
}

// takes is how long n bytes are under way. l.mu is held and there is a rate.
func (l *line) takes(n int) time.Duration {
	return time.Duration(float64(n) / float64(l.rate) * float64(time.Second))
}

// piece is how much to read at once: a slow line moves in small steps, about 20 a second.
func (l *line) piece() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return maxPiece
	}
	return int(min(max(l.rate/20, 256), maxPiece))
}

// sleepUntil waits for due, or until early is closed. It returns false when ctx ended.
func sleepUntil(ctx context.Context, due time.Time, early <-chan struct{}) bool {
	wait := time.Until(due)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-early:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
