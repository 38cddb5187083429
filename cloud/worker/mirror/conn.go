package mirror

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// packetsAhead is how many RTP packets the RTSP client may have that are not
	// written: fewer than its queue holds, which fails when it is full.
	packetsAhead = 48
	writeQueue   = 64 // a power of two; RTCP packets go through it, too
	// gather is how many bytes are written at once, at most: a packet is 1.4 kB,
	// and each write a system call.
	gather = 32 << 10
	// socketBuffer bounds what the kernel keeps for a server that is too slow:
	// what is in there is older than what could be sent instead.
	socketBuffer = 256 << 10
	// goodbye is how long the last words to a server may take when we must go.
	goodbye = time.Second
)

// conn is the connection below an RTSP client. The client queues packets without
// saying when it has written them; conn counts, so that a session knows when it
// may go on, and writes many at once.
type conn struct {
	net.Conn
	pending atomic.Int32  // RTP packets that the client was given and has not written
	room    chan struct{} // has one: pending fell
	hurried atomic.Bool

	mu  sync.Mutex // while bytes are written; before nothing else
	buf []byte
}

func newConn(c net.Conn) *conn { return &conn{Conn: c, room: make(chan struct{}, 1)} }

// dial opens a connection as an RTSP client wants it.
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetWriteBuffer(socketBuffer) // else it is as large as it is
	}
	return c, nil
}

// dialTLS returns a func that does the same and TLS.
func dialTLS(conf *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conf := conf.Clone()
		if conf == nil {
			conf = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if conf.ServerName == "" {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			conf.ServerName = host
		}
		raw, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c := tls.Client(raw, conf)
		if err := c.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		return c, nil
	}
}

// isRTP reports whether b is an RTP packet between RTSP messages (RFC 2326,
// 10.12) with a payload type of ours: RTCP's types are 200 to 207 (RFC 5761, 4).
func isRTP(b []byte) bool { return len(b) > 5 && b[0] == '$' && b[5]&0x7f >= dynamic }

// Write implements net.Conn. What it says to have written may wait for the next
// packet, which is under way then.
func (c *conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, b...)
	more := false
	if isRTP(b) {
		more = c.pending.Add(-1) > 0
		defer signal(c.room)
	}
	if more && len(c.buf) < gather {
		return len(b), nil
	}
	_, err := c.Conn.Write(c.buf)
	c.buf = c.buf[:0]
	return len(b), err
}

// SetWriteDeadline implements net.Conn. In a hurry no deadline is later than goodbye.
func (c *conn) SetWriteDeadline(t time.Time) error {
	err := c.Conn.SetWriteDeadline(t)
	if c.hurried.Load() {
		err = c.Conn.SetWriteDeadline(time.Now().Add(goodbye))
	}
	return err
}

// hurry makes every write end soon.
func (c *conn) hurry() {
	c.hurried.Store(true)
	_ = c.Conn.SetWriteDeadline(time.Now().Add(goodbye))
}

// Close implements net.Conn. TLS would say goodbye once more.
func (c *conn) Close() error {
	if t, ok := c.Conn.(*tls.Conn); ok && c.hurried.Load() {
		return t.NetConn().Close()
	}
	return c.Conn.Close()
}

// next waits until the client may be given one more packet, and counts it; false:
// gone was closed.
func (c *conn) next(gone <-chan struct{}) bool {
	for c.pending.Load() >= packetsAhead {
		select {
		case <-gone:
			return false
		case <-c.room:
		}
	}
	c.pending.Add(1)
	return true
}

// drained waits until all packets are written, or gone is closed.
func (c *conn) drained(gone <-chan struct{}) {
	for c.pending.Load() > 0 {
		select {
		case <-gone:
			return
		case <-c.room:
		}
	}
	c.mu.Lock() // the last write is over
	defer c.mu.Unlock()
}

// noted wraps what dial opens, and tells note.
func noted(dial func(context.Context, string, string) (net.Conn, error), note func(*conn) *conn) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return note(newConn(c)), nil
	}
}
