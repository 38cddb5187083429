package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// read takes messages until the connection ends.
func (c *Conn) read(ctx context.Context, lane Lane) error {
	for {
		typ, r, err := c.ws.Reader(ctx)
		if err != nil {
			if websocket.CloseStatus(err) != -1 {
				return err
			}
			return fmt.Errorf("%w: %v", errGone, err)
		}
		c.touch()
		if typ == websocket.MessageBinary {
			err = c.readChunk(r, lane)
		} else {
			err = c.readControl(r, lane)
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

// progress is a reader that notes each piece that comes: on a slow uplink one
// chunk takes longer than a connection may be quiet.
type progress struct {
	io.Reader
	c *Conn
}

func (p progress) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if n > 0 {
		p.c.touch()
	}
	return n, err
}

// readChunk reads the header first: it says how large the payload is, and what
// to answer if it is too large.
func (c *Conn) readChunk(r io.Reader, lane Lane) error {
	msg := make([]byte, wire.ChunkHeaderLen)
	r = progress{r, c}
	if n, err := io.ReadFull(r, msg); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return Refuse(wire.ClassRetry, wire.CodeMalformed, "a chunk message of %d bytes is shorter than its header", n)
		}
		return fmt.Errorf("%w: %v", errGone, err)
	}
	total := int64(wire.ChunkHeaderLen) + wire.PayloadLen(msg)
	if total > c.srv.MaxChunk {
		ch, _ := wire.DecodeChunk(msg)
		return RefuseChunk(&ch, wire.CodeTooLarge, "a chunk of %d bytes; this worker takes %d", total, c.srv.MaxChunk)
	}
	c.mu.Lock()
	over := c.bytes+total > c.credit
	c.mu.Unlock()
	if over {
		return Refuse(wire.ClassRetry, wire.CodeCredit, "more bytes than were granted")
	}
	full := make([]byte, total)
	copy(full, msg)
	if _, err := io.ReadFull(r, full[wire.ChunkHeaderLen:]); err != nil {
		if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %v", errGone, err)
		}
		ch, _ := wire.DecodeChunk(msg)
		return RefuseChunk(&ch, wire.CodeMalformed, "the message ends before the payload does")
	}
	if n, _ := r.Read(make([]byte, 1)); n != 0 {
		ch, _ := wire.DecodeChunk(msg)
		return RefuseChunk(&ch, wire.CodeMalformed, "bytes after the payload")
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

func (c *Conn) readControl(r io.Reader, lane Lane) error {
	data, err := io.ReadAll(io.LimitReader(r, wire.MaxControl+1))
	if err != nil {
		return fmt.Errorf("%w: %v", errGone, err)
	}
	m, err := wire.DecodePush(data)
	if err != nil {
		return Refuse(wire.ClassRetry, wire.CodeMalformed, "%v", err)
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
	if c.credit-c.bytes < c.srv.MaxChunk/2 && c.srv.Room() < c.srv.MaxChunk {
		a.Hold = wire.HoldTmpfs
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
	ctx, cancel := context.WithTimeout(ctx, quiet)
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
