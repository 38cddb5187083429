// Package retry spaces the attempts of a loop that must not give up: with
// jitter, so that a thousand hubs do not come back in the same second, with a
// ceiling, and with a reset that has to be earned.
package retry

import (
	"context"
	"math"
	"math/rand/v2"
	"time"
)

// Defaults of a Backoff whose fields are zero.
const (
	DefaultMin    = time.Second
	DefaultMax    = time.Minute
	DefaultSteady = time.Minute
)

// Backoff chooses how long to wait before the next attempt. The zero value is
// ready and uses the defaults. It belongs to one loop: no two goroutines may
// share it.
type Backoff struct {
	// Min is the shortest wait, Max the longest.
	Min, Max time.Duration
	// Steady is how long a link must have held to count as good again. A peer
	// that accepts and drops at once earns nothing and is not hammered.
	Steady time.Duration

	// ceiling is the upper end of the last wait, zero before the first.
	ceiling time.Duration
	// uniform draws from [0, n); nil: math/rand/v2. Tests replace it.
	uniform func(n int64) int64
}

// Next returns the wait before the next attempt. held is how long the attempt
// that just ended was of use; zero when it never was.
//
// The wait is uniform between Min and a ceiling that doubles with each failure,
// from twice Min up to Max. A held of Steady or more starts over.
func (b *Backoff) Next(held time.Duration) time.Duration {
	lo, hi, steady := b.bounds()
	if held >= steady {
		b.ceiling = 0
	}
	if b.ceiling == 0 {
		b.ceiling = lo
	}
	if b.ceiling > hi/2 { // not 2*ceiling > hi: that could overflow
		b.ceiling = hi
	} else {
		b.ceiling *= 2
	}
	draw := b.uniform
	if draw == nil {
		draw = rand.Int64N
	}
	n := int64(b.ceiling - lo)
	if n < math.MaxInt64 {
		n++ // the ceiling itself is a possible wait
	}
	return lo + time.Duration(draw(n))
}

// bounds fills in defaults and repairs a Max below Min.
func (b *Backoff) bounds() (lo, hi, steady time.Duration) {
	lo, hi, steady = b.Min, b.Max, b.Steady
	if lo <= 0 {
		lo = DefaultMin
		if hi > 0 {
			lo = min(lo, hi)
		}
	}
	if hi <= 0 {
		hi = DefaultMax
	}
	if steady <= 0 {
		steady = DefaultSteady
	}
	return lo, max(lo, hi), steady
}

// Sleep waits for d and reports true, or reports false as soon as ctx ends.
func Sleep(ctx context.Context, d time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
