package uplink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// linger is how long a backfill connection stays when nothing is left, in
	// case there is more in a moment.
	linger = time.Second
	// maxUnderway bounds what is remembered of chunks that were not called received.
	maxUnderway = 1 << 16
)

// send pushes what the cursor hands out, each init before the first chunk that
// names it, and never more than the worker has granted. Writing lasts as long as
// ctx, handing out as c.hand.
func (c *laneConn) send(ctx context.Context, instead *instead) error {
	var header [wire.ChunkHeaderLen]byte
	for {
		if err := c.room(ctx); err != nil {
			return err
		}
		item, err := c.next(instead)
		if err != nil {
			return err
		}
		instead = nil
		switch {
		case item.Gap != nil:
			err = c.write(ctx, item.Gap)
		case item.End != nil:
			err = c.write(ctx, item.End)
		default:
			err = c.sendChunk(ctx, item.Chunk, header[:0])
		}
		if err != nil {
			return err
		}
	}
}

// next returns what to send next.
func (c *laneConn) next(instead *instead) (wire.Outgoing, error) {
	cur := c.cursor // the sender alone changes it
	if instead != nil {
		ctx, cancel := context.WithCancel(c.hand)
		stop := context.AfterFunc(instead.wait, cancel)
		item, err := cur.Next(ctx)
		late := err != nil && ctx.Err() != nil && c.hand.Err() == nil
		stop()
		cancel()
		if !late {
			return item, err
		}
		c.mu.Lock()
		cur.Close()
		cur = instead.then()
		c.cursor = cur
		c.mu.Unlock()
	}
	if c.lane.Kind == vms.LaneBackfill {
		return c.nextOfBacklog(cur)
	}
	item, err := cur.Next(c.hand)
	if errors.Is(err, io.EOF) {
		err = errHandedOver
	}
	return item, err
}

// nextOfBacklog waits at the end of the backlog until there is more, or until
// all of it is durable (ErrIdle).
func (c *laneConn) nextOfBacklog(cur Cursor) (wire.Outgoing, error) {
	idle := time.NewTimer(linger) // runs while nothing is wanted
	defer idle.Stop()
	idle.Stop()
	running := false
	for {
		wanted, changed := c.lane.Source.BackfillWanted() // before Next, or a change could be missed
		item, err := cur.Next(c.hand)
		if !errors.Is(err, io.EOF) {
			return item, err
		}
		switch {
		case wanted:
			idle.Stop()
		case !running:
			idle.Reset(linger)
		}
		running = !wanted
		select {
		case <-c.hand.Done():
			return wire.Outgoing{}, c.hand.Err()
		case <-changed:
		case <-idle.C:
			return wire.Outgoing{}, ErrIdle
		}
	}
}

func (c *laneConn) sendChunk(ctx context.Context, ch *vms.Chunk, header []byte) error {
	size := int64(wire.ChunkHeaderLen + len(ch.Payload))
	if size > c.maxChunk {
		return skip(ch, wire.CodeTooLarge, "a chunk of %d bytes, the worker takes %d", size, c.maxChunk)
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
	if err := c.waitCredit(size); err != nil {
		return err
	}
	if err := c.writeChunk(ctx, wire.AppendChunkHeader(header, ch), ch.Payload); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent += size
	c.preview = ch.Flags.Has(vms.FlagPreview)
	m := receipt{vms.ChunkRange{Epoch: ch.Epoch, First: ch.Seq, Last: ch.Seq}, ch.End}
	if c.preview {
		m = receipt{}
	} else if !c.durable.Has(ch.Epoch, ch.Seq) {
		if c.unsettled.Len() == 0 {
			c.moved = time.Now()
		}
		c.unsettled.Add(m.chunk)
	}
	c.underway = append(c.underway, m)
	if len(c.underway) > maxUnderway { // a worker that never says what it received
		c.underway = append([]receipt(nil), c.underway[maxUnderway/2:]...)
		c.received += maxUnderway / 2
	}
	return nil
}

func skip(ch *vms.Chunk, code, format string, args ...any) error {
	return &CloseError{wire.ErrorMessage{Class: wire.ClassSkip, Code: code, Epoch: ch.Epoch, Seq: ch.Seq, Message: fmt.Sprintf(format, args...)}}
}

// writeChunk writes one message in pieces, as the governor lets it: what is in a
// socket can no longer give way to anything.
func (c *laneConn) writeChunk(ctx context.Context, header, payload []byte) error {
	w, err := c.conn.Writer(ctx, websocket.MessageBinary)
	if err != nil {
		return err
	}
	for part := header; len(part) > 0; {
		if err := c.room(ctx); err != nil {
			return err
		}
		n := min(len(part), c.flow.piece())
		if err := c.flow.take(c.hand, n); err != nil {
			return err
		}
		c.writing.Store(true)
		_, err := w.Write(part[:n])
		c.writing.Store(false)
		if err != nil {
			return err
		}
		c.flow.wrote(n)
		c.pingMu.Lock()
		c.written += int64(n)
		c.pingMu.Unlock()
		if part = part[n:]; len(part) == 0 {
			part, payload = payload, nil
		}
	}
	c.writing.Store(true)
	defer c.writing.Store(false)
	return w.Close()
}

// waitCredit waits until size more bytes may be sent.
func (c *laneConn) waitCredit(size int64) error {
	for {
		c.mu.Lock()
		ok := c.sent+size <= c.credit
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-c.hand.Done():
			return c.hand.Err()
		case <-c.granted:
		}
	}
}
