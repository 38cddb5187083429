package api

import (
	"net/netip"
	"sync"
	"time"
)

// maxClients bounds the clients that a limiter tells apart; beyond that the
// new ones share one allowance.
const maxClients = 4096

// limiter allows each client burst calls at once and one more every interval.
type limiter struct {
	burst    float64
	interval time.Duration
	now      func() time.Time

	mu      sync.Mutex
	buckets map[netip.Prefix]bucket
	swept   time.Time // when forgetLocked last looked at them all
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newLimiter(burst int, interval time.Duration, now func() time.Time) *limiter {
	return &limiter{burst: float64(burst), interval: interval, now: now, buckets: make(map[netip.Prefix]bucket)}
}

// allow takes one call from the client's allowance, or says how long to wait.
// A client is an IPv4 address or an IPv6 network of 64 bits, which one person
// has to themselves. Clients behind a proxy are one client.
func (l *limiter) allow(remoteAddr string) (wait time.Duration, ok bool) {
	client := clientOf(remoteAddr)
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	b, known := l.buckets[client]
	if !known && len(l.buckets) >= maxClients {
		l.forgetLocked(now)
		if len(l.buckets) >= maxClients {
			client = netip.Prefix{}
			b, known = l.buckets[client]
		}
	}
	if !known {
		b = bucket{l.burst, now}
	}
	b = l.filled(b, now)
	if ok = b.tokens >= 1; ok {
		b.tokens--
	} else {
		wait = time.Duration((1 - b.tokens) * float64(l.interval))
	}
	l.buckets[client] = b
	return wait, ok
}

// filled returns b as it is now.
func (l *limiter) filled(b bucket, now time.Time) bucket {
	if d := now.Sub(b.at); d > 0 {
		b.tokens, b.at = min(l.burst, b.tokens+float64(d)/float64(l.interval)), now
	}
	return b
}

// forgetLocked drops clients with a full allowance: new ones are like them. It
// looks at most once per interval, so that a crowd does not make each call dear.
func (l *limiter) forgetLocked(now time.Time) {
	if now.Sub(l.swept) < l.interval {
		return
	}
	l.swept = now
	for k, b := range l.buckets {
		if l.filled(b, now).tokens >= l.burst {
			delete(l.buckets, k)
		}
	}
}

func clientOf(remoteAddr string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := ap.Addr().Unmap().WithZone(""), 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
