package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// errGone: the connection ended without a word.
var errGone = errors.New("connection lost")

// Conn is one connection, as the worker sees it. Its one goroutine reads; what
// is to be said is said by another that lives no longer than that takes, and
// when it is time for that the server's clock knows.
type Conn struct {
	Ticket token.Push
	Kind   vms.Lane

	srv  *Server
	ws   *websocket.Conn
	net  *meter // below ws
	over chan struct{}
	jobs sync.WaitGroup // writing, pinging
	account

	// What the goroutine that reads holds: the message that it is in, the header
	// of its chunk, and the chunk.
	message io.Reader
	header  [wire.ChunkHeaderLen]byte
	chunk   vms.Chunk

	mu       sync.Mutex
	ready    bool // to be written to
	opened   time.Time
	greeting bool // hello has not come
	lane     Lane // from when welcome was said
	cause    error
	writing  bool // a goroutine is; after the last words for good
	pinging  bool
	due      bool // an acknowledgement is
	acked    time.Time

	received uint64
	begun    time.Time // of the message that is being read, zero: there is none
	before   int64     // bytes that came before it
	waiting  bool      // it is the worker's turn, not the agent's
	came     int64     // bytes that came, as the clock saw it, and when more did
	active   time.Time
}

// meter counts what comes on a connection, ping and pong included, and each
// piece of a long message: on a slow uplink a chunk takes longer than a
// connection may be quiet.
type meter struct {
	net.Conn
	came atomic.Int64
	*lowat
}

func (m *meter) Read(b []byte) (int, error) {
	m.want(len(b))
	n, err := m.Conn.Read(b)
	m.came.Add(int64(n))
	return n, err
}

// Close ends the connection with a refusal. It does not wait.
func (c *Conn) Close(r *Refusal) { c.end(r) }

// end notes why the connection ends, if nothing ended it before, and has it said.
func (c *Conn) end(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		c.cause = cause
		close(c.over)
	}
	c.kick(time.Now())
}

// ended returns why the connection ends, nil while it does not.
func (c *Conn) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// serve takes messages until the connection ends, and returns why.
func (c *Conn) serve() error {
	hello, err := c.readHello()
	if err != nil {
		return err
	}
	if err := c.greet(hello); err != nil {
		return err
	}
	for {
		typ, err := c.next()
		if err != nil {
			return err
		}
		if typ == websocket.MessageBinary {
			err = c.readChunk()
		} else {
			err = c.readControl()
		}
		if err != nil {
			return err
		}
		if err := c.ended(); err != nil {
			return err
		}
	}
}

// greet answers the hello.
func (c *Conn) greet(hello *wire.Hello) error {
	c.mu.Lock()
	c.greeting = false
	err := c.cause
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.Kind = hello.Lane
	lane, err := c.srv.Streams.Attach(c.Ticket, hello, c)
	if err != nil {
		return err
	}
	have := lane.Have()
	credit, _ := c.srv.ledger.account(&c.account)
	err = c.send(&wire.Welcome{
		Instance: c.srv.Instance, Generation: c.Ticket.Generation, Have: have[:min(len(have), wire.MaxRanges)],
		MaxChunk: c.srv.MaxChunk, Credit: credit, ResumeTicket: c.srv.resume.seal(c.Ticket), Watched: lane.Watched(),
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lane = lane
	c.due = true // what is durable already need not wait
	c.kick(time.Now())
	return err
}

// drain throws away what still comes until the connection is closed: to do that
// in order takes somebody who reads.
func (c *Conn) drain() {
	for {
		if c.message != nil {
			if _, err := io.Copy(io.Discard, c.message); err != nil {
				return
			}
		}
		if _, err := c.next(); err != nil {
			return
		}
	}
}

// next waits for a message, which c.message reads. Reading ends with the
// connection only: to cancel a read of this library closes it, before the agent
// could be told why.
func (c *Conn) next() (websocket.MessageType, error) {
	typ, r, err := c.ws.Reader(context.Background())
	if err != nil {
		if websocket.CloseStatus(err) != -1 {
			return typ, err
		}
		return typ, fmt.Errorf("%w: %v", errGone, err)
	}
	c.message = r
	c.mu.Lock()
	c.begun, c.before = time.Now(), c.net.came.Load()
	c.mu.Unlock()
	return typ, nil
}

// readChunk reads the header first: it says how large the payload is, and what
// to answer if it is too large.
func (c *Conn) readChunk() error {
	head := c.header[:]
	if n, err := io.ReadFull(c.message, head); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return Refuse(wire.ClassRetry, wire.CodeMalformed, "a chunk message of %d bytes is shorter than its header", n)
		}
		return fmt.Errorf("%w: %v", errGone, err)
	}
	total := int64(wire.ChunkHeaderLen) + wire.PayloadLen(head)
	if total > c.srv.MaxChunk {
		return RefuseChunk(named(head), wire.CodeTooLarge, "a chunk of %d bytes; this worker takes %d", total, c.srv.MaxChunk)
	}
	l := &c.srv.ledger
	w, granted := l.enter(&c.account, total)
	if !granted {
		return Refuse(wire.ClassRetry, wire.CodeCredit, "more bytes than were granted")
	}
	err := c.wait(w)
	if err == nil {
		err = c.takeChunk(head, int(total))
	}
	now := time.Now()
	raised := l.leave(&c.account, w, total, err == nil, now)
	if err != nil {
		return err
	}
	c.srv.chunks.Add(1)
	c.srv.bytes.Add(total)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received++
	if raised {
		c.due = true
		c.kick(now)
	}
	return nil
}

// wait waits until there is room for the message.
func (c *Conn) wait(w *waiter) error {
	if w == nil {
		return nil
	}
	c.pause(true)
	defer c.pause(false)
	select {
	case <-w.ready:
		return nil
	case <-c.over:
		return c.ended()
	}
}

// pause notes that the agent has to wait for the worker, or not any more.
func (c *Conn) pause(waiting bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting, c.begun, c.before = waiting, time.Now(), c.net.came.Load()
}

// takeChunk reads the payload, and gives the chunk to the lane.
func (c *Conn) takeChunk(head []byte, total int) error {
	buf := c.srv.buffers.get(total)
	kept := false
	defer func() {
		c.chunk = vms.Chunk{} // of a buffer that is others' now
		if !kept {
			c.srv.buffers.put(buf)
		}
	}()
	msg := buf.b[:total]
	copy(msg, head)
	if _, err := io.ReadFull(c.message, msg[wire.ChunkHeaderLen:]); err != nil {
		if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %v", errGone, err)
		}
		// Not RefuseChunk: a link that was cut can look like this, and the chunk
		// is fine then.
		ch := named(head)
		return Refuse(wire.ClassRetry, wire.CodeMalformed, "chunk %s:%d: the message ends before the payload does", ch.Epoch, ch.Seq)
	}
	if n, _ := io.ReadFull(c.message, head[:1]); n != 0 {
		return RefuseChunk(named(msg[:wire.ChunkHeaderLen]), wire.CodeMalformed, "bytes after the payload")
	}
	c.arrived()
	var err error
	if c.chunk, err = wire.DecodeChunk(msg); err != nil {
		return RefuseChunk(&c.chunk, wire.CodeMalformed, "%v", err)
	}
	kept, err = c.lane.Chunk(&c.chunk)
	return err
}

// arrived notes that a message is all here: what follows is the worker's time.
func (c *Conn) arrived() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun = time.Time{}
}

// named is the chunk of a header, as far as that can be read.
func named(head []byte) *vms.Chunk {
	c, _ := wire.DecodeChunk(head) // the error says that there is no payload
	return &c
}

// control reads a text message.
func (c *Conn) control() (wire.PushMessage, error) {
	data, err := io.ReadAll(io.LimitReader(c.message, wire.MaxControl+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errGone, err)
	}
	c.arrived()
	m, err := wire.DecodePush(data)
	if err != nil {
		return nil, Refuse(wire.ClassRetry, wire.CodeMalformed, "%v", err)
	}
	return m, nil
}

// readHello reads the first message.
func (c *Conn) readHello() (*wire.Hello, error) {
	typ, err := c.next()
	if err != nil {
		return nil, err
	}
	if typ == websocket.MessageText {
		m, err := c.control()
		if err != nil {
			return nil, err
		}
		if hello, ok := m.(*wire.Hello); ok {
			return hello, nil
		}
	}
	return nil, Refuse(wire.ClassRetry, wire.CodeMalformed, "the first message must be hello")
}

func (c *Conn) readControl() error {
	m, err := c.control()
	if err != nil {
		return err
	}
	_, ends := m.(*wire.End)
	c.srv.ledger.said(&c.account, !ends, time.Now())
	switch m := m.(type) {
	case *wire.InitMessage:
		return c.lane.Init(m.Init())
	case *wire.GapMessage:
		return c.lane.Gap(m)
	case *wire.Pressure:
		return c.lane.Pressure(m)
	case *wire.End:
		return c.lane.End(m)
	}
	return Refuse(wire.ClassRetry, wire.CodeMalformed, "hello comes once, and the rest only from a worker")
}
