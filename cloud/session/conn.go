package session

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// queue is how many messages wait for a slow agent. What it misses after
	// that it learns by shaking hands again.
	queue = 64
	// writeWithin bounds one write.
	writeWithin = 10 * time.Second
	// Messages that an agent may send: some per second, and a heap after it
	// was away.
	messageRate, messageBurst = 20, 300
)

// conn is one session. Its reader is the goroutine that calls serve, its
// writer the only one that serve starts; all others only queue.
type conn struct {
	h   *Handler
	s   nvr.Session
	log *slog.Logger

	out     chan []byte
	quit    chan struct{} // closed by stop: the writer empties out and closes
	gone    chan struct{} // closed when nothing of the session is left
	greeted chan struct{} // closed when hello has come
	boot    string        // which run of an agent it is; after greeted

	ctx  context.Context // of all that the session does; kill ends it
	kill func()          // ends the session at once, without a goodbye

	mu      sync.Mutex
	stopped bool
	code    websocket.StatusCode
	reason  string
	heard   chan struct{} // closed and replaced with every message
}

var (
	_ nvr.StreamLink = (*conn)(nil)
	_ nvr.HubLink    = (*conn)(nil)
)

func newConn(h *Handler, s nvr.Session) *conn {
	log := h.Log.With("hub", s.Hub)
	if s.SID != "" {
		log = log.With("sid", s.SID, "channel", s.Channel)
	}
	ctx, kill := context.WithCancel(context.Background())
	return &conn{
		h: h, s: s, log: log, ctx: ctx, kill: kill,
		out: make(chan []byte, queue), quit: make(chan struct{}), gone: make(chan struct{}), greeted: make(chan struct{}),
		heard: make(chan struct{}),
	}
}

// tap closes the socket of an upgraded connection when the session is killed.
// websocket.Conn waits up to 5 s for a peer to answer its close, whatever the
// context says.
type tap struct {
	http.ResponseWriter
	killed context.Context
}

// Hijack implements http.Hijacker.
func (t tap) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err == nil {
		context.AfterFunc(t.killed, func() { _ = nc.Close() }) // mostly closed already
	}
	return nc, rw, err
}

// serve runs the session until either side ends it.
func (c *conn) serve(ws *websocket.Conn) {
	defer ws.CloseNow() //nolint:errcheck // closed already, or beyond saying goodbye
	ws.SetReadLimit(wire.MaxControl)
	var wg sync.WaitGroup
	wg.Go(func() { c.write(c.ctx, ws) })
	start := time.Now()
	err := c.read(c.ctx, ws)
	var ref *nvr.Refusal
	if errors.As(err, &ref) && errors.Is(err, vms.ErrRevoked) {
		c.Revoke(ref.Detail) // since the handshake
	}
	c.stop(closeFor(err))
	wg.Wait()
	c.log.Info("session over", "after", time.Since(start).Round(time.Millisecond), "err", err)
}

// read takes the agent's messages until the connection or the protocol breaks.
func (c *conn) read(ctx context.Context, ws *websocket.Conn) error {
	m, err := c.next(ctx, ws, c.h.HelloWithin)
	if err != nil {
		return err
	}
	hello, ok := m.(*wire.SessionHello)
	if !ok {
		return violation("the first message must be hello")
	}
	c.boot = hello.Boot
	close(c.greeted)
	if c.s.SID != "" && c.h.rivalled(ctx, c) {
		return errRival
	}
	c.log.Info("session open", "agent", hello.Agent, "boot", hello.Boot)
	if c.s.SID == "" {
		c.h.NVR.HubConnected(c.s, c.boot, c)
		defer c.h.NVR.HubGone(c.s, c)
	} else {
		a, err := c.h.NVR.Assign(ctx, c.s, hello, c)
		defer c.h.NVR.Detach(c.s, c)
		if err != nil {
			return err
		}
		if a != nil {
			c.Send(a)
		}
	}
	rate := newLimiters(messageRate, messageBurst)
	for {
		m, err := c.next(ctx, ws, c.h.Silence)
		if err != nil {
			return err
		}
		if !rate.allow("", time.Now()) {
			return violation("too many messages")
		}
		if err := c.handle(ctx, m); err != nil {
			return err
		}
	}
}

// next reads one message.
func (c *conn) next(ctx context.Context, ws *websocket.Conn, within time.Duration) (wire.SessionMessage, error) {
	rctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	typ, data, err := ws.Read(rctx)
	if err != nil {
		if rctx.Err() != nil && ctx.Err() == nil {
			return nil, fmt.Errorf("nothing heard for %s", within)
		}
		return nil, err
	}
	c.mu.Lock()
	close(c.heard)
	c.heard = make(chan struct{})
	c.mu.Unlock()
	if typ != websocket.MessageText {
		return nil, violation("binary message")
	}
	return wire.DecodeSession(data)
}

// handle does what one message asks for.
func (c *conn) handle(ctx context.Context, m wire.SessionMessage) error {
	switch m := m.(type) {
	case *wire.Pong:
		return nil
	case *wire.Ping:
		c.Send(&wire.Pong{})
		return nil
	case *wire.TimeQuery:
		c.Send(&wire.TimeAnswer{Sent: m.Sent, ServerTime: c.h.Clock().UTC()})
		return nil
	}
	if c.s.SID == "" {
		return c.handleControl(ctx, m)
	}
	switch m := m.(type) {
	case *wire.Holding:
		d, err := c.h.NVR.Holding(ctx, c.s, m)
		if d != nil {
			c.Send(d)
		}
		return err
	case *wire.Gaps:
		committed, err := c.h.NVR.Gaps(ctx, c.s, m)
		if committed != nil {
			c.Send(committed)
		}
		return err
	case *wire.StreamState:
		return c.h.NVR.State(ctx, c.s, m)
	case *wire.WantWorker:
		a, err := c.h.NVR.WantWorker(ctx, c.s, m, c)
		if a != nil {
			c.Send(a)
		}
		return err
	}
	return violation("message that does not belong on a stream's session")
}

// handleControl does what a message on a control line asks for.
func (c *conn) handleControl(ctx context.Context, m wire.SessionMessage) error {
	switch m := m.(type) {
	case *wire.Reported:
		if m.Hub != c.s.Hub {
			return violation("report of another hub")
		}
		c.h.NVR.HubReported(ctx, c.s, m)
		return nil
	case *wire.CommandReply:
		c.h.NVR.CommandReplied(m, c.s.Hub)
		return nil
	}
	return violation("message that does not belong on a control line")
}

// write sends what is queued, and a ping when it is time.
func (c *conn) write(ctx context.Context, ws *websocket.Conn) {
	send := func(data []byte) bool {
		wctx, cancel := context.WithTimeout(ctx, writeWithin)
		defer cancel()
		return ws.Write(wctx, websocket.MessageText, data) == nil // the reader says why not
	}
	ping, err := wire.EncodeSession(&wire.Ping{})
	if err != nil {
		panic("session: a ping cannot be encoded: " + err.Error())
	}
	t := time.NewTicker(c.h.PingEvery)
	defer t.Stop()
	for {
		select {
		case data := <-c.out:
			if !send(data) {
				return
			}
		case <-t.C:
			if !send(ping) {
				return
			}
		case <-c.quit:
			for {
				select {
				case data := <-c.out: // a last word, such as revoke
					if !send(data) {
						return
					}
					continue
				default:
				}
				break
			}
			c.mu.Lock()
			code, reason := c.code, c.reason
			c.mu.Unlock()
			_ = ws.Close(code, reason) // the agent may be gone already
			return
		}
	}
}

// Send implements nvr.StreamLink and nvr.HubLink. An agent that does not read is cut off.
func (c *conn) Send(m wire.SessionMessage) {
	data, err := wire.EncodeSession(m)
	if err != nil {
		c.log.Error("message not sent", "err", err)
		return
	}
	select {
	case c.out <- data:
	default:
		c.log.Warn("agent does not read, session cut off")
		c.kill()
	}
}

// Revoke implements nvr.StreamLink and nvr.HubLink.
func (c *conn) Revoke(why string) {
	c.Send(&wire.Revoke{Why: why})
	c.stop(websocket.StatusPolicyViolation, "revoked")
}

// Replace implements nvr.StreamLink.
func (c *conn) Replace() { c.stop(websocket.StatusGoingAway, "replaced by a newer connection") }

// answers reports whether anything is heard within d after a ping.
func (c *conn) answers(ctx context.Context, d time.Duration) bool {
	c.mu.Lock()
	heard := c.heard
	c.mu.Unlock()
	c.Send(&wire.Ping{})
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-heard:
		return true
	case <-c.gone:
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// stop has the session closed with a reason, once.
func (c *conn) stop(code websocket.StatusCode, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped {
		c.stopped, c.code, c.reason = true, code, reason
		close(c.quit)
	}
}

// errRival is a second agent with the identity of a hub.
var errRival = errors.New("another agent is connected with the identity of this hub")

// violation is an agent that does not keep to the protocol.
type violation string

func (v violation) Error() string { return string(v) }

// closeFor chooses the close code that tells the agent why. Reasons are fixed
// texts: what an error says may be of any length, or nobody's business.
func closeFor(err error) (websocket.StatusCode, string) {
	var v violation
	var ref *nvr.Refusal
	switch {
	case errors.As(err, &v):
		return websocket.StatusPolicyViolation, string(v)
	case errors.Is(err, errRival):
		return websocket.StatusPolicyViolation, errRival.Error()
	case errors.Is(err, wire.ErrMalformed):
		return websocket.StatusPolicyViolation, "malformed message"
	case errors.As(err, &ref):
		return websocket.StatusPolicyViolation, "refused"
	case errors.Is(err, vms.ErrConflict):
		return websocket.StatusGoingAway, "replaced by a newer connection"
	}
	return websocket.StatusInternalError, "try again"
}
