// Package ingest is the worker's end of the push protocol: it checks tickets
// before it upgrades, reads chunks no faster than it grants credit, and says
// what was received and what became durable. What a chunk means is not its business.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	// lastWords is how long an error message may take to go out.
	lastWords = 5 * time.Second
)

// Refusal ends a lane: the message goes to the agent, then the connection is
// closed with its class.
type Refusal struct{ wire.ErrorMessage }

func (r *Refusal) Error() string { return fmt.Sprintf("%s (%s): %s", r.Code, r.Class, r.Message) }

// Refuse makes a Refusal.
func Refuse(class wire.Class, code, format string, args ...any) *Refusal {
	return &Refusal{wire.ErrorMessage{Class: class, Code: code, Message: fmt.Sprintf(format, args...)}}
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
// but for Status and Watched, which may be called beside any other. A *Refusal ends the connection as it says; another error is the worker's own
// fault and ends it with retry.
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
	// Fenced reports whether a newer generation of the lane's channel is known.
	Fenced  func(token.Push) bool
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
	cancel context.CancelCauseFunc
	wake   chan struct{}

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
	if s.Fenced(t) {
		problem.Write(w, &problem.Problem{Type: wire.ProblemFenced, Status: http.StatusConflict, Title: "A newer connection has this stream",
			Detail: "A ticket of a newer generation was used; ask the NVR for a new assignment."})
		return
	}
	c := &Conn{Ticket: t, srv: s, wake: make(chan struct{}, 1), active: time.Now()}
	if !s.enter(c) {
		problem.Write(w, &problem.Problem{Type: wire.ProblemBusy, Status: http.StatusServiceUnavailable, Title: "This worker takes no more streams",
			RetryAfter: 2 * time.Second})
		return
	}
	defer s.exit(c)
	c.ws, err = websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{wire.PushProtocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return // Accept has answered
	}
	defer c.ws.CloseNow()
	if c.ws.Subprotocol() != wire.PushProtocol {
		c.ws.Close(websocket.StatusPolicyViolation, "the subprotocol must be "+wire.PushProtocol)
		return
	}
	c.ws.SetReadLimit(max(s.MaxChunk, wire.MaxControl) + 1)
	err = s.run(r.Context(), c)
	s.Log.Info("lane closed", "channel", t.Channel, "lane", c.Kind, "generation", t.Generation, "err", err)
}

func (s *Server) ticket(r *http.Request) (token.Push, error) {
	bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return token.Push{}, fmt.Errorf("%w: the Authorization header brings no bearer ticket", vms.ErrUnauthorized)
	}
	if t, ok := s.resume.open(bearer); ok {
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
	lane, err := s.greet(ctx, c)
	if err != nil {
		return c.farewell(err)
	}
	// The reader's context must outlive a refusal: cancelling a read of this
	// library closes the connection before the agent could be told why.
	rctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.write(gctx, lane) })
	g.Go(func() error { return c.watch(gctx) })
	read := make(chan error, 1)
	go func() { read <- c.read(rctx, lane) }()
	g.Go(func() error {
		select {
		case err := <-read:
			read <- err
			return err
		case <-gctx.Done():
			return context.Cause(gctx)
		}
	})
	err = g.Wait()
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		err = cause
	}
	err = c.farewell(err)
	stop()
	c.ws.CloseNow()
	<-read // the lane is not called any more
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
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	if data, e := wire.EncodePush(&r.ErrorMessage); e == nil {
		if c.ws.Write(ctx, websocket.MessageText, data) == nil {
			c.ws.Close(websocket.StatusCode(r.Class.Code()), r.Code)
		}
	}
	return err
}

// greet waits for the hello and answers it.
func (s *Server) greet(ctx context.Context, c *Conn) (Lane, error) {
	hctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	typ, data, err := c.ws.Read(hctx)
	if err != nil {
		return nil, fmt.Errorf("%w: no hello: %v", errGone, err)
	}
	if typ != websocket.MessageText {
		return nil, Refuse(wire.ClassRetry, wire.CodeMalformed, "the first message must be hello")
	}
	m, err := wire.DecodePush(data)
	if err != nil {
		return nil, Refuse(wire.ClassRetry, wire.CodeMalformed, "%v", err)
	}
	hello, ok := m.(*wire.Hello)
	if !ok {
		return nil, Refuse(wire.ClassRetry, wire.CodeMalformed, "the first message must be hello")
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
