package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The lanes dial through the default client. Host names that end in .simulated
// are those of networks in memory, each in a bubble of its own.
func init() { http.DefaultClient.Transport = simulated{} }

var (
	simNets  sync.Map // host -> *simNet
	simNames atomic.Uint64
)

type simulated struct{}

func (simulated) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.URL.Host, ".simulated") {
		return http.DefaultTransport.RoundTrip(r)
	}
	n, ok := simNets.Load(r.URL.Host)
	if !ok {
		return nil, errors.New("no such host")
	}
	return n.(*simNet).transport.RoundTrip(r)
}

// simNet is the way from the hub to one worker's address: a listener, and what
// happens to the bytes between.
type simNet struct {
	host      string
	transport *http.Transport

	mu      sync.Mutex
	server  *simListener // who listens; nil: refused
	links   map[*simLink]bool
	down    bool // nobody gets through
	barred  bool // the hub is off
	silent  bool // nobody gets through, and nobody is told so
	changed chan struct{}
	rate    float64 // bytes/s from hub to worker; 0: no limit
	delay   time.Duration
	cutAck  int  // connections that break when the worker writes, from here on so many
	eat     int  // writes of the worker that still pass before that
	oneSide bool // what breaks then is noticed by the hub only
}

func newSimNet(host string) *simNet {
	n := &simNet{host: host, links: make(map[*simLink]bool), changed: make(chan struct{})}
	n.transport = &http.Transport{DialContext: n.dial, DisableKeepAlives: true}
	simNets.Store(host, n)
	return n
}

func (n *simNet) close() { simNets.Delete(n.host) }

// set changes how the network is.
func (n *simNet) set(f func(*simNet)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n)
	close(n.changed)
	n.changed = make(chan struct{})
	for l := range n.links {
		l.up.shape(n.silent, n.rate, n.delay)
		l.down.shape(n.silent, 0, n.delay)
	}
}

// bar keeps the hub, which is off, from dialling.
func (n *simNet) bar(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.barred = on
}

// cut breaks all connections; oneSide: the worker does not notice.
func (n *simNet) cut(oneSide bool) {
	n.mu.Lock()
	links := n.links
	n.links = make(map[*simLink]bool)
	n.mu.Unlock()
	for l := range links {
		l.cut(oneSide)
	}
}

func (n *simNet) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	for {
		n.mu.Lock()
		silent, down, server, changed := n.silent && !n.barred, n.down || n.barred, n.server, n.changed
		n.mu.Unlock()
		if !silent {
			if down || server == nil {
				return nil, syscall.ECONNREFUSED
			}
			l := n.link()
			select {
			case server.conns <- l.worker:
				return l.hub, nil
			case <-server.closed:
				l.cut(false)
				return nil, syscall.ECONNREFUSED
			case <-ctx.Done():
				l.cut(false)
				return nil, ctx.Err()
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

func (n *simNet) link() *simLink {
	l := &simLink{net: n, up: newSimPipe(), down: newSimPipe()}
	l.hub = &simConn{in: l.down, out: l.up}
	l.worker = &simConn{in: l.up, out: l.down}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[l] = true
	l.up.shape(n.silent, n.rate, n.delay)
	l.down.shape(n.silent, 0, n.delay)
	l.down.written = l.wrote
	return l
}

// simListener is where one run of a worker accepts.
type simListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newSimListener() *simListener {
	return &simListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *simListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *simListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *simListener) Addr() net.Addr { return simAddr{} }

type simAddr struct{}

func (simAddr) Network() string { return "simulated" }
func (simAddr) String() string  { return "192.0.2.1:1" }

// simLink is one connection.
type simLink struct {
	net         *simNet
	up, down    *simPipe // from the hub, to the hub
	hub, worker *simConn
}

// cut breaks the connection: both sides hear of it, or the hub alone.
func (l *simLink) cut(oneSide bool) {
	l.down.fail(syscall.ECONNRESET, !oneSide, true)
	l.up.fail(syscall.ECONNRESET, true, !oneSide)
}

// wrote is told of each write of the worker, and reports whether the network
// swallows it and breaks.
func (l *simLink) wrote() bool {
	n := l.net
	n.mu.Lock()
	if n.cutAck == 0 {
		n.mu.Unlock()
		return false
	}
	if n.eat > 0 {
		n.eat--
		n.mu.Unlock()
		return false
	}
	n.cutAck--
	delete(n.links, l)
	oneSide := n.oneSide
	n.mu.Unlock()
	l.cut(oneSide)
	return true
}

// simPipe is one direction of a connection: what was written arrives in order,
// some time later.
type simPipe struct {
	written func() bool // nil: nobody asks

	mu      sync.Mutex
	changed chan struct{}
	queue   []simPacket
	queued  int
	err     error // for whoever reads
	werr    error // for whoever writes
	closed  bool  // by the reader
	lost    bool  // what is written goes nowhere
	silent  bool
	rate    float64
	delay   time.Duration
	free    time.Time // when the line is free for the next byte
}

type simPacket struct {
	data []byte
	due  time.Time
}

// simBuffer is how many bytes a sender's socket takes before it waits.
const simBuffer = 32 << 10

func newSimPipe() *simPipe { return &simPipe{changed: make(chan struct{})} }

// notify wakes who waits. p.mu is held.
func (p *simPipe) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *simPipe) shape(silent bool, rate float64, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if rate != p.rate { // what waits on the line goes on at the new rate
		now := time.Now()
		p.free = now
		for i := range p.queue {
			q := &p.queue[i]
			if !q.due.After(now) {
				continue
			}
			if rate > 0 {
				p.free = p.free.Add(time.Duration(float64(len(q.data)) / rate * float64(time.Second)))
			}
			q.due = p.free.Add(delay)
		}
	}
	p.silent, p.rate, p.delay = silent, rate, delay
	p.notify()
}

// fail ends the pipe for who writes, who reads, or both: what is under way is
// lost. Who is not told writes into the void, or waits for ever.
func (p *simPipe) fail(err error, writer, reader bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reader && p.err == nil {
		p.err = err
	}
	if writer && p.werr == nil {
		p.werr = err
	}
	p.queue, p.queued, p.lost = nil, 0, true
	p.notify()
}

// end lets the reader have what was written, and then io.EOF.
func (p *simPipe) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = io.EOF
	}
	if p.werr == nil {
		p.werr = net.ErrClosed
	}
	p.notify()
}

// shut is the reader that closes.
func (p *simPipe) shut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.notify()
}

func (p *simPipe) write(b []byte, until *simDeadline) (int, error) {
	if p.written != nil && p.written() {
		return len(b), nil
	}
	p.mu.Lock()
	for {
		if p.werr != nil {
			defer p.mu.Unlock()
			return 0, p.werr
		}
		if p.closed && !p.silent && !p.lost {
			defer p.mu.Unlock()
			return 0, syscall.EPIPE
		}
		if p.queued < simBuffer {
			break
		}
		changed := p.changed
		p.mu.Unlock()
		if err := until.wait(changed, time.Time{}); err != nil {
			return 0, err
		}
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	if p.rate > 0 {
		p.free = p.free.Add(time.Duration(float64(len(b)) / p.rate * float64(time.Second)))
	}
	p.queued += len(b)
	if p.lost {
		return len(b), nil
	}
	p.queue = append(p.queue, simPacket{append([]byte(nil), b...), p.free.Add(p.delay)})
	p.notify()
	return len(b), nil
}

func (p *simPipe) read(b []byte, until *simDeadline) (int, error) {
	p.mu.Lock()
	for {
		var due time.Time
		switch {
		case p.closed:
			p.mu.Unlock()
			return 0, net.ErrClosed
		case p.silent && (p.err == nil || errors.Is(p.err, io.EOF)):
		case len(p.queue) > 0:
			due = p.queue[0].due
			if !due.After(time.Now()) {
				q := &p.queue[0]
				n := copy(b, q.data)
				q.data = q.data[n:]
				if len(q.data) == 0 {
					p.queue = p.queue[1:]
				}
				was := p.queued
				p.queued -= n
				if was >= simBuffer && p.queued < simBuffer {
					p.notify()
				}
				p.mu.Unlock()
				return n, nil
			}
		case p.err != nil:
			defer p.mu.Unlock()
			return 0, p.err
		}
		changed := p.changed
		p.mu.Unlock()
		if err := until.wait(changed, due); err != nil {
			return 0, err
		}
		p.mu.Lock()
	}
}

// simDeadline is a deadline that may change while somebody waits for it.
type simDeadline struct {
	mu      sync.Mutex
	at      time.Time
	changed chan struct{}
}

func (d *simDeadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// wait waits for changed, for due if it is one, or for the deadline, which is an error.
func (d *simDeadline) wait(changed <-chan struct{}, due time.Time) error {
	d.mu.Lock()
	at := d.at
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	moved := d.changed
	d.mu.Unlock()
	now := time.Now()
	if !at.IsZero() && !at.After(now) {
		return os.ErrDeadlineExceeded
	}
	first := due
	if !at.IsZero() && (first.IsZero() || at.Before(first)) {
		first = at
	}
	if first.IsZero() {
		select {
		case <-changed:
		case <-moved:
		}
		return nil
	}
	t := time.NewTimer(first.Sub(now))
	defer t.Stop()
	select {
	case <-changed:
	case <-moved:
	case <-t.C:
	}
	return nil
}

// simConn is one side of a connection.
type simConn struct {
	in, out *simPipe
	rd, wd  simDeadline
}

func (c *simConn) Read(b []byte) (int, error)  { return c.in.read(b, &c.rd) }
func (c *simConn) Write(b []byte) (int, error) { return c.out.write(b, &c.wd) }

func (c *simConn) Close() error {
	c.out.end()
	c.in.shut()
	return nil
}

func (c *simConn) LocalAddr() net.Addr                { return simAddr{} }
func (c *simConn) RemoteAddr() net.Addr               { return simAddr{} }
func (c *simConn) SetDeadline(t time.Time) error      { c.rd.set(t); c.wd.set(t); return nil }
func (c *simConn) SetReadDeadline(t time.Time) error  { c.rd.set(t); return nil }
func (c *simConn) SetWriteDeadline(t time.Time) error { c.wd.set(t); return nil }
