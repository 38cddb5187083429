// Package ingest is the worker's end of the push protocol: it checks tickets
// before it upgrades, reads chunks no faster than it grants credit, and says
// what was received and what became durable. What a chunk means is not its business.
package ingest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	helloTimeout = 10 * time.Second
	// ackEvery is how often an acknowledgement goes out even if nothing moved.
	ackEvery = 5 * time.Second
	// ackPace is how soon one goes out when something did.
	ackPace = 200 * time.Millisecond
	// quiet is how long a connection may bring nothing before it is pinged, and
	// pongTimeout how long the answer may take then.
	quiet       = 15 * time.Second
	pongTimeout = 15 * time.Second
	// lastWords is how long a message may take to go out.
	lastWords = 5 * time.Second
	// maxSentence is the limit of an error's message, bytes.
	maxSentence = 1000
)

// Refusal ends a lane: the message goes to the agent, then the connection is
// closed with its class.
type Refusal struct{ wire.ErrorMessage }

func (r *Refusal) Error() string { return fmt.Sprintf("%s (%s): %s", r.Code, r.Class, r.Message) }

// Refuse makes a Refusal. The message is cut to what the protocol carries.
func Refuse(class wire.Class, code, format string, args ...any) *Refusal {
	text := fmt.Sprintf(format, args...)
	if len(text) > maxSentence {
		text = strings.ToValidUTF8(text[:maxSentence], "")
	}
	return &Refusal{wire.ErrorMessage{Class: class, Code: code, Message: text}}
}

// RefuseChunk makes a Refusal that tells the agent never to send c again.
func RefuseChunk(c *vms.Chunk, code, format string, args ...any) *Refusal {
	r := Refuse(wire.ClassSkip, code, format, args...)
	r.Epoch, r.Seq = c.Epoch, c.Seq
	if c.Epoch == 0 || c.Seq == 0 {
		r.Class = wire.ClassRetry // it cannot even be named
	}
	return r
}

// Streams is the worker behind the connections.
type Streams interface {
	// Attach opens a lane. It fences older connections of the same lane: their
	// Lane is ended before Attach returns.
	Attach(t token.Push, hello *wire.Hello, c *Conn) (Lane, error)
}

// Lane takes what one connection brings. Its methods are called one at a time,
// but for Status and Watched, which may be called beside any other. A *Refusal
// ends the connection as it says; another error is the worker's own fault and
// ends it with retry.
type Lane interface {
	// Have is what this worker has of the epochs in the hello.
	Have() []vms.ChunkRange
	Init(vms.Init) error
	Chunk(vms.Chunk) error
	Gap(*wire.GapMessage) error
	Pressure(*wire.Pressure) error
	End(*wire.End) error
	// Status returns what became durable since the last call, and what holds progress.
	Status() (durable []vms.ChunkRange, hold wire.Hold)
	// Watched reports whether somebody looks at the live picture.
	Watched() bool
	// Detach is called once, when the connection is gone.
	Detach(err error)
}

// Server accepts lanes. Fill in the fields; it is an http.Handler.
type Server struct {
	Instance vms.Instance
	// Check verifies a ticket of the NVR. Its errors wrap vms.ErrExpired or vms.ErrUnauthorized.
	Check func(ticket string) (token.Push, error)
	// Revoked reports whether the ticket's session was revoked.
	Revoked func(token.Push) bool
	// Fenced reports whether a newer generation of the lane's channel is known.
	Fenced func(token.Push) bool
	// Holds reports whether something is still known of a channel: a resume
	// ticket is good no longer than that. nil: always.
	Holds   func(vms.ChannelID) bool
	Streams Streams
	// Room is how many bytes tmpfs can still take; 0 stops credit.
	Room func() int64
	// MaxChunk is the largest binary message, at least wire.MinMaxChunk.
	MaxChunk int64
	MaxConns int
	Log      *slog.Logger

	resume resumer
	mu     sync.Mutex
	conns  map[*Conn]bool
	closed bool
	wg     sync.WaitGroup
}

// Conn is one connection, as the worker sees it.
type Conn struct {
	Ticket token.Push
	Kind   vms.Lane

	srv    *Server
	ws     *websocket.Conn
	net    net.Conn // below ws
	cancel context.CancelCauseFunc
	wake   chan struct{}

	// What the goroutine that reads holds: the message that it is in, and the
	// header of its chunk.
	readers sync.WaitGroup
	message io.Reader
	header  [wire.ChunkHeaderLen]byte

	mu       sync.Mutex
	received uint64
	bytes    int64 // of binary messages
	credit   int64
	active   time.Time
}

// Close ends the connection with a refusal. It does not wait.
func (c *Conn) Close(r *Refusal) { c.cancel(r) }

// Wake makes an acknowledgement go out soon.
func (c *Conn) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Conns counts the connections.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Shutdown ends every connection with r, takes no more, and waits for them.
func (s *Server) Shutdown(r *Refusal) {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.Close(r)
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// ServeHTTP takes GET with "Authorization: Bearer <ticket>" and upgrades it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t, err := s.ticket(r)
	if err != nil {
		typ := wire.ProblemTicketInvalid
		if errors.Is(err, vms.ErrExpired) {
			typ = wire.ProblemTicketExpired
		}
		problem.Write(w, &problem.Problem{Type: typ, Status: http.StatusUnauthorized, Title: "Ticket refused",
			Detail: fmt.Sprintf("Ask the NVR for a new assignment: %v.", err)})
		return
	}
	if s.Revoked(t) {
		problem.Write(w, &problem.Problem{Type: wire.ProblemRevoked, Status: http.StatusGone, Title: "The stream's session was revoked"})
		return
	}
	if s.Fenced(t) {
		problem.Write(w, &problem.Problem{Type: wire.ProblemFenced, Status: http.StatusConflict, Title: "A newer connection has this stream",
			Detail: "A ticket of a newer generation was used; ask the NVR for a new assignment."})
		return
	}
	if !offersProtocol(r) {
		problem.Write(w, &problem.Problem{Status: http.StatusBadRequest, Title: "Unknown protocol",
			Detail: "This is a WebSocket of the subprotocol " + wire.PushProtocol + "."})
		return
	}
	c := &Conn{Ticket: t, srv: s, wake: make(chan struct{}, 1), active: time.Now()}
	if !s.enter(c) {
		problem.Write(w, &problem.Problem{Type: wire.ProblemBusy, Status: http.StatusServiceUnavailable, Title: "This worker takes no more streams",
			RetryAfter: 2 * time.Second})
		return
	}
	defer s.exit(c)
	c.ws, err = websocket.Accept(&hijacker{w, &c.net}, r, &websocket.AcceptOptions{
		Subprotocols: []string{wire.PushProtocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return // Accept has answered
	}
	defer c.ws.CloseNow()
	// The limits are ours, kind by kind: the library's would close the
	// connection before the agent could be told which chunk it was.
	c.ws.SetReadLimit(-1)
	err = s.run(r.Context(), c)
	s.Log.Info("lane closed", "channel", t.Channel, "lane", c.Kind, "generation", t.Generation, "err", err)
}

// hijacker keeps the connection that it hands out.
type hijacker struct {
	http.ResponseWriter
	conn *net.Conn
}

func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	*h.conn = conn
	return conn, rw, err
}

// offersProtocol: a client that does not speak ours is refused before the upgrade.
func offersProtocol(r *http.Request) bool {
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(name), wire.PushProtocol) {
				return true
			}
		}
	}
	return false
}

func (s *Server) ticket(r *http.Request) (token.Push, error) {
	bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return token.Push{}, fmt.Errorf("%w: the Authorization header brings no bearer ticket", vms.ErrUnauthorized)
	}
	if t, ok := s.resume.open(bearer); ok {
		if s.Holds != nil && !s.Holds(t.Channel) {
			return token.Push{}, fmt.Errorf("%w: this worker holds nothing of the stream any more", vms.ErrExpired)
		}
		return t, nil
	}
	return s.Check(bearer)
}

func (s *Server) enter(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.MaxConns > 0 && len(s.conns) >= s.MaxConns {
		return false
	}
	if s.conns == nil {
		s.conns = make(map[*Conn]bool)
	}
	// Close before the context is there must not be lost.
	c.cancel = func(error) {}
	s.conns[c] = true
	s.wg.Add(1)
	return true
}

func (s *Server) exit(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.wg.Done()
}

// run lives as long as the connection. Whatever ended it is told to the agent
// as far as it still listens.
func (s *Server) run(ctx context.Context, c *Conn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	c.cancel = cancel
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return c.farewell(Refuse(wire.ClassReassign, wire.CodeDraining, "this worker is going away"))
	}
	// The reader's context must outlive a refusal: cancelling a read of this
	// library closes the connection before the agent could be told why.
	rctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		stop()
		c.ws.CloseNow()
		c.readers.Wait()
	}()
	lane, err := s.greet(ctx, rctx, c)
	if err != nil {
		return c.farewell(err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.write(gctx, lane) })
	g.Go(func() error { return c.watch(gctx) })
	g.Go(func() error {
		select {
		case err := <-c.reading(rctx, func(ctx context.Context) error { return c.read(ctx, lane) }):
			return err
		case <-gctx.Done():
			return context.Cause(gctx)
		}
	})
	err = g.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	err = c.farewell(err)
	stop()
	c.ws.CloseNow()
	c.readers.Wait() // the lane is not called any more
	lane.Detach(err)
	return err
}

// farewell tells the agent why, and returns why.
func (c *Conn) farewell(err error) error {
	var r *Refusal
	switch {
	case errors.As(err, &r):
	case websocket.CloseStatus(err) != -1, errors.Is(err, errGone):
		return err // the agent closed
	default:
		r = Refuse(wire.ClassRetry, wire.CodeInternal, "the worker has a problem of its own; come back")
	}
	// The library waits for the agent's half of the closing handshake, and not
	// everywhere with a limit: an agent that stalls must not keep the lane.
	if c.net.SetDeadline(time.Now().Add(lastWords)) != nil {
		return err // it is gone
	}
	if data, e := wire.EncodePush(&r.ErrorMessage); e == nil {
		if c.ws.Write(context.Background(), websocket.MessageText, data) == nil {
			c.ws.Close(websocket.StatusCode(r.Class.Code()), r.Code)
		}
	}
	return err
}

// greet waits for the hello and answers it.
func (s *Server) greet(ctx, rctx context.Context, c *Conn) (Lane, error) {
	var hello *wire.Hello
	read := c.reading(rctx, func(ctx context.Context) (err error) {
		hello, err = c.readHello(ctx)
		return err
	})
	late := time.NewTimer(helloTimeout)
	defer late.Stop()
	select {
	case err := <-read:
		if err != nil {
			return nil, err
		}
	case <-late.C:
		return nil, Refuse(wire.ClassRetry, wire.CodeTimeout, "no hello came within %v", helloTimeout)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	c.Kind = hello.Lane
	lane, err := s.Streams.Attach(c.Ticket, hello, c)
	if err != nil {
		return nil, err
	}
	c.credit = s.grant(0)
	have := lane.Have()
	err = c.send(ctx, &wire.Welcome{
		Instance: s.Instance, Generation: c.Ticket.Generation, Have: have[:min(len(have), wire.MaxRanges)],
		MaxChunk: s.MaxChunk, Credit: c.credit, ResumeTicket: s.resume.seal(c.Ticket), Watched: lane.Watched(),
	})
	if err != nil {
		lane.Detach(err)
		return nil, err
	}
	c.Wake() // what is durable already need not wait
	return lane, nil
}
