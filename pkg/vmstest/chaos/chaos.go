// Package chaos is a network link that breaks on command: a TCP proxy in front
// of a real server. Each fault looks to both sides as it would in the field: a
// cut resets connections, a stall keeps them open and silent.
package chaos

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// dialTimeout bounds the connection to the target, which is on this machine.
const dialTimeout = 10 * time.Second

// Proxy forwards TCP connections to one target. All methods may be called from
// any goroutine and act on open connections too.
type Proxy struct {
	target   string
	listener net.Listener
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	up, down atomic.Int64
	accepted atomic.Int64
	upLine   line
	downLine line
	latency  atomic.Int64 // nanoseconds, one way

	mu       sync.Mutex
	cut      bool
	cutPath  string           // empty for none
	requests map[string]int64 // by path, without the query
	harm     int64            // the next frame of so many bytes of a binary message is damaged; 0 for none
	harmed   int
	resumed  chan struct{} // not nil while stalled; closed by Resume
	links    map[*link]bool
}

// New starts a proxy to target (host:port) that is gone when t is.
func New(t testing.TB, target string) *Proxy {
	t.Helper()
	p, err := Listen(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Listen starts a proxy to target on a free port of 127.0.0.1. Close ends it.
func Listen(target string) (*Proxy, error) {
	config := net.ListenConfig{Control: plainSocket}
	l, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("chaos proxy: %w", err)
	}
	p := &Proxy{target: target, listener: l, links: make(map[*link]bool), requests: make(map[string]int64)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Add(1)
	go p.accept()
	return p, nil
}

// Addr returns where clients connect instead of the target.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut resets all connections, on both sides, and every new one as soon as it is
// made. The port stays taken, so that nobody else gets it before Restore.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for l := range p.links {
		l.reset()
	}
}

// CutOnce resets all connections and lets new ones through.
func (p *Proxy) CutOnce() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.reset()
	}
}

// CutPath is Cut for the connections whose last HTTP request was for a path
// that begins with prefix, and for each that asks for one. So one of several
// services behind the target is away.
func (p *Proxy) CutPath(prefix string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutPath = prefix
	for l := range p.links {
		if l.asks(prefix) {
			l.reset()
		}
	}
}

// Restore ends Cut and CutPath.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut, p.cutPath = false, ""
}

// Damage flips one bit in the next binary WebSocket message that a client
// sends, in the middle of its next frame of at least so many bytes.
func (p *Proxy) Damage(least int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.harm = max(1, least)
}

// Damaged returns how many messages Damage has hit.
func (p *Proxy) Damaged() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.harmed
}

// damages decides about one frame of so many bytes.
func (p *Proxy) damages(size int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.harm == 0 || size < p.harm {
		return false
	}
	p.harm = 0
	p.harmed++
	return true
}

// asked counts a request, and returns false when its path is cut.
func (p *Proxy) asked(path string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	path, _, _ = strings.Cut(path, "?")
	p.requests[path]++
	return p.cutPath == "" || !strings.HasPrefix(path, p.cutPath)
}

// Requests returns the number of HTTP requests for paths that begin with
// prefix, including those that CutPath reset.
func (p *Proxy) Requests(prefix string) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := int64(0)
	for path, k := range p.requests {
		if strings.HasPrefix(path, prefix) {
			n += k
		}
	}
	return n
}

// Stall forwards nothing more, in neither direction, and tells nobody: the link
// is half open. New connections are accepted and get no answer.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.resumed == nil {
		p.resumed = make(chan struct{})
	}
}

// Resume ends Stall; what was under way arrives now.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.resumed != nil {
		close(p.resumed)
		p.resumed = nil
	}
}

// SetRate limits each direction to so many bytes a second. All connections
// share one queue, first in, first out; when that is full, senders wait. Zero,
// the beginning, is no limit.
func (p *Proxy) SetRate(bytesPerSecond int64) {
	p.upLine.set(bytesPerSecond)
	p.downLine.set(bytesPerSecond)
}

// SetUpRate is SetRate for what clients send, as on a home's line.
func (p *Proxy) SetUpRate(bytesPerSecond int64) { p.upLine.set(bytesPerSecond) }

// SetLatency delays everything by d, one way, without limiting throughput.
func (p *Proxy) SetLatency(d time.Duration) { p.latency.Store(int64(d)) }

// Up returns the bytes forwarded from clients to the target so far.
func (p *Proxy) Up() int64 { return p.up.Load() }

// Down returns the bytes forwarded from the target to clients so far.
func (p *Proxy) Down() int64 { return p.down.Load() }

// Accepted returns the number of connections made so far, including those that
// Cut reset.
func (p *Proxy) Accepted() int64 { return p.accepted.Load() }

// Open returns the number of connections that are open now.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Close resets everything and waits until nothing of the proxy runs.
func (p *Proxy) Close() {
	p.cancel()
	p.listener.Close()
	p.CutOnce()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	defer p.wg.Done()
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.accepted.Add(1)
		l := &link{p: p, client: conn.(*net.TCPConn)}
		if !p.add(l) {
			continue
		}
		p.wg.Add(1)
		go func() {
			defer p.wg.Done()
			defer p.remove(l)
			l.run()
		}()
	}
}

// add takes l in, or resets it and returns false while the link is cut.
func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut || p.ctx.Err() != nil {
		l.reset()
		return false
	}
	p.links[l] = true
	return true
}

func (p *Proxy) remove(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// gate waits while the link is stalled. It returns false when ctx ended.
func (p *Proxy) gate(ctx context.Context) bool {
	p.mu.Lock()
	resumed := p.resumed
	p.mu.Unlock()
	if resumed == nil {
		return ctx.Err() == nil
	}
	select {
	case <-resumed:
		return true
	case <-ctx.Done():
		return false
	}
}
