package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/wire"
)

// errGone: the connection ended without a word.
var errGone = errors.New("connection lost")

// grant returns the credit, absolute, for a connection that has brought so
// many bytes: one largest chunk ahead, as long as there is room for it.
func (s *Server) grant(bytes int64) int64 {
	if s.Room() < s.MaxChunk {
		return 0
	}
	return bytes + s.MaxChunk
}

// reading runs f, which reads, in a goroutine of its own. When f has failed,
// what still comes is thrown away until ctx ends: to close a connection in
// order takes somebody who reads.
func (c *Conn) reading(ctx context.Context, f func(context.Context) error) <-chan error {
	ended := make(chan error, 1)
	c.readers.Go(func() {
		err := f(ctx)
		ended <- err
		for err != nil {
			if c.message != nil {
				if _, err := io.Copy(io.Discard, c.message); err != nil {
					return
				}
			}
			if _, err := c.next(ctx); err != nil {
				return
			}
		}
	})
	return ended
}

// next waits for a message, which c.message reads.
func (c *Conn) next(ctx context.Context) (websocket.MessageType, error) {
	typ, r, err := c.ws.Reader(ctx)
	if err != nil {
		if websocket.CloseStatus(err) != -1 {
			return typ, err
		}
		return typ, fmt.Errorf("%w: %v", errGone, err)
	}
	c.touch()
	c.message = r
	return typ, nil
}

// read takes messages until the connection ends.
func (c *Conn) read(ctx context.Context, lane Lane) error {
	for {
		typ, err := c.next(ctx)
		if err != nil {
			return err
		}
		if typ == websocket.MessageBinary {
			err = c.readChunk(lane)
		} else {
			err = c.readControl(lane)
		}
		if err != nil {
			return err
		}
	}
}

// touch notes that something came.
func (c *Conn) touch() {
	c.mu.Lock()
	c.active = time.Now()
	c.mu.Unlock()
}

// progress reads the message and notes each piece that comes: on a slow uplink
// one chunk takes longer than a connection may be quiet.
type progress Conn

func (p *progress) Read(b []byte) (int, error) {
	c := (*Conn)(p)
	n, err := c.message.Read(b)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// readChunk reads the header first: it says how large the payload is, and what
// to answer if it is too large.
func (c *Conn) readChunk(lane Lane) error {
	msg, r := c.header[:], (*progress)(c)
	if n, err := io.ReadFull(r, msg); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return Refuse(wire.ClassRetry, wire.CodeMalformed, "a chunk message of %d bytes is shorter than its header", n)
		}
		return fmt.Errorf("%w: %v", errGone, err)
	}
	named, _ := wire.DecodeChunk(msg) // as far as the header goes
	total := int64(wire.ChunkHeaderLen) + wire.PayloadLen(msg)
	if total > c.srv.MaxChunk {
		return RefuseChunk(&named, wire.CodeTooLarge, "a chunk of %d bytes; this worker takes %d", total, c.srv.MaxChunk)
	}
	c.mu.Lock()
	over := c.bytes+total > c.credit
	c.mu.Unlock()
	if over {
		return Refuse(wire.ClassRetry, wire.CodeCredit, "more bytes than were granted")
	}
	full, err := readMessage(r, msg, total)
	if err != nil {
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: %v", errGone, err)
		}
		// Not RefuseChunk: a link that was cut can look like this, and the chunk
		// is fine then.
		return Refuse(wire.ClassRetry, wire.CodeMalformed, "chunk %s:%d: the message ends before the payload does", named.Epoch, named.Seq)
	}
	if n, _ := io.ReadFull(r, msg[:1]); n != 0 {
		return RefuseChunk(&named, wire.CodeMalformed, "bytes after the payload")
	}
	ch, err := wire.DecodeChunk(full)
	if err != nil {
		return RefuseChunk(&ch, wire.CodeMalformed, "%v", err)
	}
	if err := lane.Chunk(ch); err != nil {
		return err
	}
	c.mu.Lock()
	c.received++
	c.bytes += total
	low := c.credit-c.bytes < c.srv.MaxChunk/2
	c.mu.Unlock()
	if low {
		c.Wake()
	}
	return nil
}

// firstPiece is what is allocated for a message on the word of its header
// alone; more grows with what comes, so that many that promise and do not send
// cost little.
const firstPiece = 256 << 10

// readMessage returns header and what follows it up to total bytes. An error
// of io.ErrUnexpectedEOF: the message is shorter.
func readMessage(r io.Reader, header []byte, total int64) ([]byte, error) {
	full := append(make([]byte, 0, min(total, firstPiece)), header...)
	for int64(len(full)) < total {
		n := min(int64(cap(full)), total) - int64(len(full))
		if n == 0 {
			full = slices.Grow(full, int(min(total-int64(len(full)), int64(len(full)))))
			continue
		}
		at := len(full)
		full = full[:at+int(n)]
		if _, err := io.ReadFull(r, full[at:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return full, nil
}

// control reads a text message.
func (c *Conn) control() (wire.PushMessage, error) {
	data, err := io.ReadAll(io.LimitReader((*progress)(c), wire.MaxControl+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errGone, err)
	}
	m, err := wire.DecodePush(data)
	if err != nil {
		return nil, Refuse(wire.ClassRetry, wire.CodeMalformed, "%v", err)
	}
	return m, nil
}

// readHello reads the first message.
func (c *Conn) readHello(ctx context.Context) (*wire.Hello, error) {
	typ, err := c.next(ctx)
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

func (c *Conn) readControl(lane Lane) error {
	m, err := c.control()
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *wire.InitMessage:
		return lane.Init(m.Init())
	case *wire.GapMessage:
		return lane.Gap(m)
	case *wire.Pressure:
		return lane.Pressure(m)
	case *wire.End:
		return lane.End(m)
	}
	return Refuse(wire.ClassRetry, wire.CodeMalformed, "hello comes once, and the rest only from a worker")
}

// write sends acknowledgements: at once when something moved, but not more
// often than ackPace, and at least every ackEvery.
func (c *Conn) write(ctx context.Context, lane Lane) error {
	t := time.NewTimer(ackEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		case <-c.wake:
		}
		if err := c.ack(ctx, lane); err != nil {
			return err
		}
		pace := time.NewTimer(ackPace)
		select {
		case <-ctx.Done():
			pace.Stop()
			return context.Cause(ctx)
		case <-pace.C:
		}
		t.Reset(ackEvery - ackPace)
	}
}

func (c *Conn) ack(ctx context.Context, lane Lane) error {
	durable, hold := lane.Status()
	c.mu.Lock()
	c.credit = max(c.credit, c.srv.grant(c.bytes))
	a := wire.Ack{Received: c.received, Credit: c.credit, Hold: hold, Watched: lane.Watched()}
	if c.credit-c.bytes < c.srv.MaxChunk && c.srv.Room() < c.srv.MaxChunk {
		a.Hold = wire.HoldTmpfs // a chunk of the largest size would not fit: it may be what waits
	}
	c.mu.Unlock()
	for {
		n := min(len(durable), wire.MaxRanges)
		a.Durable, durable = durable[:n], durable[n:]
		if err := c.send(ctx, &a); err != nil {
			return err
		}
		if len(durable) == 0 {
			return nil
		}
	}
}

func (c *Conn) send(ctx context.Context, m wire.PushMessage) error {
	data, err := wire.EncodePush(m)
	if err != nil {
		return err
	}
	// Not ctx: a write that is cancelled breaks the connection, and then the
	// agent could not be told why it ends.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	if err := c.ws.Write(ctx, websocket.MessageText, data); err != nil {
		return fmt.Errorf("%w: %v", errGone, err)
	}
	return nil
}

// watch pings a connection that brings nothing, and gives it up when no answer
// comes: a hub whose camera is away is quiet, one that lost power is gone.
func (c *Conn) watch(ctx context.Context) error {
	t := time.NewTicker(quiet / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
		c.mu.Lock()
		since := time.Since(c.active)
		c.mu.Unlock()
		if since < quiet {
			continue
		}
		pctx, cancel := context.WithTimeout(ctx, pongTimeout)
		err := c.ws.Ping(pctx)
		cancel()
		c.mu.Lock()
		still := time.Since(c.active) >= quiet
		c.mu.Unlock()
		if err != nil && still && ctx.Err() == nil {
			return Refuse(wire.ClassRetry, wire.CodeTimeout, "nothing came for %v and no ping was answered", quiet+pongTimeout)
		}
	}
}
