package uplink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// laneConn is one connection of a lane.
type laneConn struct {
	lane *Lane
	conn *websocket.Conn

	inits   map[initKey]bool // sent on this connection
	granted chan struct{}    // credit grew
	// patience is how long the durable mark may stand still.
	patience time.Duration

	mu       sync.Mutex
	credit   int64 // absolute, as granted
	sent     int64 // bytes of binary messages
	maxChunk int64
	moved    time.Time // when the durable mark moved last, or nothing was outstanding
	newest   vms.ChunkRange
}

type initKey struct {
	epoch vms.Epoch
	id    uint32
}

// greet exchanges hello and welcome.
func (c *laneConn) greet(ctx context.Context) (*wire.Welcome, error) {
	err := c.write(ctx, &wire.Hello{Agent: c.lane.Agent, Lane: c.lane.Kind, Epochs: c.lane.Source.Epochs()})
	if err != nil {
		return nil, err
	}
	m, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *wire.Welcome:
		c.credit, c.maxChunk = m.Credit, m.MaxChunk
		return m, nil
	case *wire.ErrorMessage:
		return nil, &CloseError{*m}
	}
	return nil, fmt.Errorf("the worker did not begin with a welcome")
}

func (c *laneConn) write(ctx context.Context, m wire.PushMessage) error {
	data, err := wire.EncodePush(m)
	if err != nil {
		return err
	}
	return c.conn.Write(ctx, websocket.MessageText, data)
}

// read waits for one message, at most as long as a worker may be silent.
func (c *laneConn) read(ctx context.Context) (wire.PushMessage, error) {
	rctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	typ, data, err := c.conn.Read(rctx)
	if err != nil {
		var ce websocket.CloseError
		switch {
		case rctx.Err() != nil && ctx.Err() == nil:
			return nil, fmt.Errorf("the worker said nothing for %v", silence)
		case errors.As(err, &ce) && ce.Code >= 4000:
			return nil, &CloseError{wire.ErrorMessage{Class: wire.ClassOf(int(ce.Code)), Code: "closed", Message: ce.Reason}}
		}
		return nil, err
	}
	if typ != websocket.MessageText {
		return nil, fmt.Errorf("the worker sent a binary message")
	}
	m, err := wire.DecodePush(data)
	if err != nil {
		return nil, fmt.Errorf("message of the worker: %w", err)
	}
	return m, nil
}

// receive takes acknowledgements until the connection ends.
func (c *laneConn) receive(ctx context.Context) error {
	for {
		m, err := c.read(ctx)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *wire.Ack:
			if err := c.ack(m); err != nil {
				return err
			}
		case *wire.ErrorMessage:
			return &CloseError{*m}
		default:
			return fmt.Errorf("the worker sent what only an agent sends")
		}
	}
}

func (c *laneConn) ack(m *wire.Ack) error {
	c.lane.Source.Durable(m.Durable) // this, and only this, frees chunks
	c.lane.OnWatched(m.Watched)
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.Credit > c.credit {
		c.credit = m.Credit
		select {
		case c.granted <- struct{}{}:
		default:
		}
	}
	if len(m.Durable) > 0 || m.Hold != wire.HoldNone || c.newest == (vms.ChunkRange{}) {
		c.moved = time.Now()
	}
	for _, r := range m.Durable {
		if r.Contains(c.newest) {
			c.newest = vms.ChunkRange{} // nothing outstanding
		}
	}
	if time.Since(c.moved) > c.patience {
		return &CloseError{wire.ErrorMessage{Class: wire.ClassReassign, Code: "stalled",
			Message: fmt.Sprintf("nothing became durable for %v", c.patience)}}
	}
	return nil
}

// send pushes what the cursor hands out, each init before the first chunk that
// names it, and never more than the worker has granted.
func (c *laneConn) send(ctx context.Context, cur Cursor) error {
	var header [wire.ChunkHeaderLen]byte
	for {
		item, err := cur.Next(ctx)
		if err != nil {
			return err
		}
		switch {
		case item.Gap != nil:
			err = c.write(ctx, item.Gap)
		case item.End != nil:
			err = c.write(ctx, item.End)
		default:
			err = c.sendChunk(ctx, item.Chunk, header[:0])
		}
		if err != nil {
			return c.lastWord(ctx, err)
		}
	}
}

// lastWord returns err, which ended the sending, but not before the worker's
// own reason could be read: a refusal that is lost would only come again.
func (c *laneConn) lastWord(ctx context.Context, err error) error {
	if closed := (*CloseError)(nil); !errors.As(err, &closed) {
		retry.Sleep(ctx, lastWord)
	}
	return err
}

func (c *laneConn) sendChunk(ctx context.Context, ch *vms.Chunk, header []byte) error {
	size := int64(wire.ChunkHeaderLen + len(ch.Payload))
	if size > c.maxChunk {
		return &CloseError{wire.ErrorMessage{Class: wire.ClassSkip, Code: wire.CodeTooLarge, Epoch: ch.Epoch, Seq: ch.Seq,
			Message: fmt.Sprintf("a chunk of %d bytes, the worker takes %d", size, c.maxChunk)}}
	}
	k := initKey{ch.Epoch, ch.Init}
	if !c.inits[k] {
		init, ok := c.lane.Source.Init(ch.Epoch, ch.Init)
		if !ok {
			return nil // its epoch was freed under us: the chunk is durable
		}
		err := c.write(ctx, &wire.InitMessage{Epoch: init.Epoch, ID: init.ID, Tracks: init.Tracks, Segment: init.Segment})
		if err != nil {
			return err
		}
		c.inits[k] = true
	}
	if err := c.waitCredit(ctx, size); err != nil {
		return err
	}
	w, err := c.conn.Writer(ctx, websocket.MessageBinary)
	if err != nil {
		return err
	}
	if _, err := w.Write(wire.AppendChunkHeader(header, ch)); err != nil {
		return err
	}
	if _, err := w.Write(ch.Payload); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent += size
	if c.newest == (vms.ChunkRange{}) {
		c.moved = time.Now()
	}
	c.newest = vms.ChunkRange{Epoch: ch.Epoch, First: ch.Seq, Last: ch.Seq}
	return nil
}

// waitCredit waits until size more bytes may be sent.
func (c *laneConn) waitCredit(ctx context.Context, size int64) error {
	for {
		c.mu.Lock()
		ok := c.sent+size <= c.credit
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.granted:
		}
	}
}
