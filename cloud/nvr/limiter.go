package nvr

import (
	"sync"
	"time"
)

// limiter is a token bucket.
type limiter struct {
	clock func() time.Time
	rate  float64 // per second
	burst float64

	mu   sync.Mutex
	left float64
	at   time.Time
}

func newLimiter(clock func() time.Time, rate float64, burst int) *limiter {
	return &limiter{clock: clock, rate: rate, burst: float64(burst), left: float64(burst), at: clock()}
}

// allow takes one token, if there is one.
func (l *limiter) allow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock()
	if d := now.Sub(l.at).Seconds(); d > 0 {
		l.left = min(l.burst, l.left+d*l.rate)
	}
	l.at = now
	if l.left < 1 {
		return false
	}
	l.left--
	return true
}
