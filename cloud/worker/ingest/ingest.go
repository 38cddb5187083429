// Package ingest is the worker's end of the push protocol: it checks tickets
// before it upgrades, reads chunks no faster than it grants credit, and says
// what was received and what became durable. What a chunk means is not its business.
package ingest

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

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
	// A message that has begun may be quiet for slowGrace, and comes then at
	// slowRate bytes a second in the mean, or more: an eighth of what an uplink of
	// 64 kbit/s brings. Whoever is slower only holds memory.
	slowGrace = 30 * time.Second
	slowRate  = 1 << 10
	// defaultMemory is the default of Server.Memory.
	defaultMemory = 256 << 20
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
	// Chunk takes c. Both c and its payload are the lane's during the call only,
	// unless kept says that somebody holds the payload: c itself never stays.
	Chunk(c *vms.Chunk) (kept bool, err error)
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
	// Admits reports whether a lane of the ticket's channel is let in; nil: all are.
	Admits func(token.Push) bool
	// Room is how many bytes tmpfs can still take. With less than MaxChunk credit
	// stops. It is called often, and calls nothing of the Server.
	Room func() int64
	// MaxChunk is the largest binary message, at least wire.MinMaxChunk.
	MaxChunk int64
	MaxConns int
	// Memory bounds the bytes of chunks that are being received: 256 MiB. Each
	// connection has 72 KiB of it for itself; whose chunk is larger waits until it
	// fits into the rest, which has room for two largest ones at least.
	Memory int64
	Log    *slog.Logger

	resume  resumer
	buffers buffers
	chunks  atomic.Uint64 // taken
	bytes   atomic.Int64  // of these
	acks    atomic.Uint64
	once    sync.Once
	ledger  ledger

	mu     sync.Mutex
	conns  map[*Conn]bool
	still  chan struct{} // stops the clock
	closed bool
	wg     sync.WaitGroup
}

// Stats are what a Server has done, and what it is doing.
type Stats struct {
	Conns    int
	Chunks   uint64 // taken
	Bytes    int64  // of these, with headers
	Acks     uint64
	Credit   int64 // bytes that were promised and did not come yet
	InFlight int64 // bytes of chunks that are being received
}

// Stats returns them.
func (s *Server) Stats() Stats {
	st := Stats{Conns: s.Conns(), Chunks: s.chunks.Load(), Bytes: s.bytes.Load(), Acks: s.acks.Load()}
	st.Credit, st.InFlight = s.ledger.stats()
	return st
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
	c := &Conn{Ticket: t, srv: s, net: &meter{}, over: make(chan struct{})}
	if s.Admits != nil && !s.Admits(t) || !s.enter(c) {
		problem.Write(w, &problem.Problem{Type: wire.ProblemBusy, Status: http.StatusServiceUnavailable, Title: "This worker takes no more streams",
			RetryAfter: 2 * time.Second})
		return
	}
	defer s.exit(c)
	c.ws, err = websocket.Accept(&hijacker{w, c.net}, r, &websocket.AcceptOptions{
		Subprotocols: []string{wire.PushProtocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return // Accept has answered
	}
	defer c.ws.CloseNow()
	// The limits are ours, kind by kind: the library's would close the
	// connection before the agent could be told which chunk it was.
	c.ws.SetReadLimit(-1)
	err = c.run()
	s.Log.Info("lane closed", "channel", t.Channel, "lane", c.Kind, "generation", t.Generation, "err", err)
}

// hijacker puts a meter before the connection that it hands out.
type hijacker struct {
	http.ResponseWriter
	meter *meter
}

func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.meter.Conn, h.meter.lowat = conn, newLowat(conn)
	return h.meter, rw, nil
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
	s.once.Do(func() {
		memory := s.Memory
		if memory == 0 {
			memory = defaultMemory
		}
		s.ledger.room, s.ledger.maxChunk, s.ledger.memory = s.Room, s.MaxChunk, lend(memory, s.MaxChunk, s.MaxConns)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.MaxConns > 0 && len(s.conns) >= s.MaxConns {
		return false
	}
	if len(s.conns) == 0 {
		still := make(chan struct{})
		s.conns, s.still = make(map[*Conn]bool), still
		s.wg.Go(func() { s.clock(still) })
	}
	s.conns[c] = true
	s.wg.Add(1)
	return true
}

func (s *Server) exit(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.conns, c); len(s.conns) == 0 {
		close(s.still)
	}
	s.wg.Done()
}

// run lives as long as the connection. Whatever ended it is told to the agent
// as far as it still listens.
func (c *Conn) run() error {
	now := time.Now()
	l := &c.srv.ledger
	l.open(&c.account, now)
	defer l.close(&c.account)
	c.mu.Lock()
	c.ready, c.greeting, c.opened, c.active = true, true, now, now
	c.kick(now) // it may have been ended before it began
	c.mu.Unlock()
	c.end(c.serve())
	c.drain()
	c.jobs.Wait() // now nobody calls the lane any more
	err := c.ended()
	if c.lane != nil {
		c.lane.Detach(err)
	}
	return err
}
