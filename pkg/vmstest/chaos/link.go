package chaos

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
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
	path   string       // of the client's last request
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
	dialer := net.Dialer{Timeout: dialTimeout, Control: plainSocket}
	conn, err := dialer.DialContext(ctx, "tcp", l.p.target)
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
	in := inspector{onRequest: l.asked, damage: l.p.damages}
	wg.Go(func() { l.forward(ctx, l.client, target, &l.p.upLine, &l.p.up, in.see) })
	wg.Go(func() {
		l.forward(ctx, target, l.client, &l.p.downLine, &l.p.down, func([]byte) bool { return true })
	})
	wg.Wait()
}

// asked notes what the client asks for, and returns false when that is cut.
func (l *link) asked(_, path string) bool {
	l.mu.Lock()
	l.path = path
	l.mu.Unlock()
	return l.p.asked(path)
}

// asks reports whether the last request was for a path that begins with prefix.
func (l *link) asks(prefix string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.HasPrefix(l.path, prefix)
}

// piece is what one read gave, and when it is due on the other side.
type piece struct {
	data    []byte
	place   slot
	latency time.Time // not before
}

// forward copies one direction and passes its end on: a half-closed connection
// stays half closed, an error resets the link, and so does what see refuses.
func (l *link) forward(ctx context.Context, from, to *net.TCPConn, shared *line, count *atomic.Int64, see func([]byte) bool) {
	pieces := make(chan piece, inFlight)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(pieces)
		for {
			buf := make([]byte, shared.piece())
			n, err := from.Read(buf)
			if n > 0 {
				if !see(buf[:n]) {
					l.reset()
					return
				}
				place, ok := shared.enter(ctx, n)
				if !ok {
					return
				}
				p := piece{buf[:n], place, time.Now().Add(time.Duration(l.p.latency.Load()))}
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
		if !sleepUntil(ctx, p.place.due, p.place.changed) || !sleepUntil(ctx, p.latency, nil) || !l.p.gate(ctx) {
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
