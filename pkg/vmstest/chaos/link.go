package chaos

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// inFlight is how many pieces a direction may hold back, for latency: with
// pieces of at most 16 KiB, 1 MiB in each direction.
const (
	inFlight = 64
	maxPiece = 16 << 10
)

// link is one connection of a client and its counterpart to the target.
type link struct {
	p      *Proxy
	client *net.TCPConn

	mu     sync.Mutex
	target *net.TCPConn // nil until dialled
	dead   bool
	cancel context.CancelFunc // nil until run
}

// reset makes both sides see a reset connection.
func (l *link) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	if l.cancel != nil {
		l.cancel()
	}
	for _, c := range []*net.TCPConn{l.client, l.target} {
		if c != nil {
			_ = c.SetLinger(0) // an error here means that it is closed already
			c.Close()
		}
	}
}

// run forwards until both directions are over or the link is reset.
func (l *link) run() {
	ctx, cancel := context.WithCancel(l.p.ctx)
	defer cancel()
	l.mu.Lock()
	l.cancel = cancel
	l.mu.Unlock()
	defer l.client.Close()

	// While stalled not even the connection to the target is made.
	if !l.p.gate(ctx) {
		return
	}
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", l.p.target)
	if err != nil {
		l.reset()
		return
	}
	target := conn.(*net.TCPConn)
	defer target.Close()
	l.mu.Lock()
	l.target = target
	dead := l.dead
	l.mu.Unlock()
	if dead {
		return
	}

	var wg sync.WaitGroup
	wg.Go(func() { l.forward(ctx, l.client, target, &l.p.upRate, &l.p.up) })
	wg.Go(func() { l.forward(ctx, target, l.client, &l.p.downRate, &l.p.down) })
	wg.Wait()
}

// piece is what one read gave, and when it is due on the other side.
type piece struct {
	data []byte
	due  time.Time
}

// forward copies one direction and passes its end on: a half-closed connection
// stays half closed, an error resets the link.
func (l *link) forward(ctx context.Context, from, to *net.TCPConn, rate *pacer, count *atomic.Int64) {
	pieces := make(chan piece, inFlight)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(pieces)
		for {
			buf := make([]byte, rate.piece())
			n, err := from.Read(buf)
			if n > 0 {
				p := piece{buf[:n], time.Now().Add(time.Duration(l.p.latency.Load()))}
				select {
				case pieces <- p:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					l.reset() // a reset on one side is one on the other
				}
				return
			}
		}
	})
	for p := range pieces {
		if !sleepUntil(ctx, p.due) || !sleepUntil(ctx, rate.reserve(len(p.data))) || !l.p.gate(ctx) {
			break
		}
		n, err := to.Write(p.data)
		count.Add(int64(n))
		if err != nil {
			l.reset()
			break
		}
	}
	if ctx.Err() != nil {
		l.reset() // also wakes the reader
		return
	}
	_ = to.CloseWrite() // fails when the other side is gone, which ends the other direction
}

func sleepUntil(ctx context.Context, due time.Time) bool {
	wait := time.Until(due)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// pacer spreads bytes over time. The zero pacer does not.
type pacer struct {
	mu   sync.Mutex
	rate int64     // bytes per second, 0 for no limit
	free time.Time // when the line is free again
}

func (r *pacer) set(rate int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rate, r.free = max(0, rate), time.Time{}
}

// reserve takes the line for n bytes and returns when the last of them is through.
func (r *pacer) reserve(n int) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.rate == 0 {
		return now
	}
	if r.free.Before(now) {
		r.free = now
	}
	r.free = r.free.Add(time.Duration(float64(n) / float64(r.rate) * float64(time.Second)))
	return r.free
}

// piece is how much to read at once: a slow line moves in small steps, about 20 a second.
func (r *pacer) piece() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rate == 0 {
		return maxPiece
	}
	return int(min(max(r.rate/20, 256), maxPiece))
}
