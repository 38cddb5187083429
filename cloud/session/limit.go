package session

import (
	"sync"
	"time"
)

// maxNames bounds how many names a limiters remembers. Past it those that have
// rested longest are forgotten: they have their whole burst again anyway, or
// somebody rotates names, which no memory would help against.
const maxNames = 20_000

// limiters is a token bucket per name.
type limiters struct {
	rate, burst float64

	mu    sync.Mutex
	names map[string]bucket
}

type bucket struct {
	left float64
	at   time.Time
}

func newLimiters(rate, burst float64) *limiters {
	return &limiters{rate: rate, burst: burst, names: make(map[string]bucket)}
}

// allow takes a token of name's bucket, if there is one.
func (l *limiters) allow(name string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.names[name]
	if !ok {
		if len(l.names) >= maxNames {
			l.forget(now)
		}
		b = bucket{l.burst, now}
	}
	b = l.fill(b, now)
	ok = b.left >= 1
	if ok {
		b.left--
	}
	l.names[name] = b
	return ok
}

func (l *limiters) fill(b bucket, now time.Time) bucket {
	if d := now.Sub(b.at).Seconds(); d > 0 {
		b.left = min(l.burst, b.left+d*l.rate)
	}
	b.at = now
	return b
}

// forget drops full buckets; if there are none, all.
func (l *limiters) forget(now time.Time) {
	for name, b := range l.names {
		if l.fill(b, now).left >= l.burst {
			delete(l.names, name)
		}
	}
	if len(l.names) >= maxNames {
		clear(l.names)
	}
}
