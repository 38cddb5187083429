package ingest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/wire"
)

// Wake makes an acknowledgement go out soon.
func (c *Conn) Wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.due = true
	c.kick(time.Now())
}

// kick starts the goroutine that writes, if there is something to say now and it
// does not run. c.mu is held.
func (c *Conn) kick(now time.Time) {
	if c.ready && !c.writing && (c.cause != nil || c.ackDue(now)) {
		c.writing = true
		c.jobs.Go(c.write)
	}
}

// ackDue: when something moved, but not more often than about every ackPace: a
// tick may come a little early. c.mu is held.
func (c *Conn) ackDue(now time.Time) bool {
	return c.lane != nil && c.due && now.Sub(c.acked) >= ackPace*3/4
}

// write says what there is to say, and after the last words nothing more.
func (c *Conn) write() {
	for {
		c.mu.Lock()
		now := time.Now()
		switch {
		case c.cause != nil:
			err := c.cause
			c.mu.Unlock()
			c.farewell(err)
			return
		case c.ackDue(now):
			c.due, c.acked = false, now
			c.mu.Unlock()
			if err := c.ack(); err != nil {
				c.end(err)
			}
		default:
			c.writing = false
			c.mu.Unlock()
			return
		}
	}
}

func (c *Conn) ack() error {
	durable, hold := c.lane.Status()
	credit, short := c.srv.ledger.account(&c.account)
	c.mu.Lock()
	a := wire.Ack{Received: c.received, Credit: credit, Hold: hold}
	if short || c.waiting {
		a.Hold = wire.HoldTmpfs // a chunk of the largest size would not fit: it may be what waits
	}
	c.mu.Unlock()
	a.Watched = c.lane.Watched()
	for {
		n := min(len(durable), wire.MaxRanges)
		a.Durable, durable = durable[:n], durable[n:]
		if err := c.send(&a); err != nil {
			return err
		}
		c.srv.acks.Add(1)
		if len(durable) == 0 {
			return nil
		}
	}
}

func (c *Conn) send(m wire.PushMessage) error {
	data, err := wire.EncodePush(m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	if err := c.ws.Write(ctx, websocket.MessageText, data); err != nil {
		return fmt.Errorf("%w: %v", errGone, err)
	}
	return nil
}

// ping asks a quiet connection for a sign of life: a hub whose camera is away is
// quiet, one that lost power is gone. The answer comes to the meter.
func (c *Conn) ping() {
	ctx, cancel := context.WithTimeout(context.Background(), pongTimeout)
	defer cancel()
	_ = c.ws.Ping(ctx) // the clock knows what came
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pinging = false
}

// farewell tells the agent why, as far as it still listens, and closes.
func (c *Conn) farewell(err error) {
	defer c.ws.CloseNow()
	var r *Refusal
	switch {
	case errors.As(err, &r):
	case websocket.CloseStatus(err) != -1, errors.Is(err, errGone):
		return // the agent closed
	default:
		r = Refuse(wire.ClassRetry, wire.CodeInternal, "the worker has a problem of its own; come back")
	}
	// The library waits for the agent's half of the closing handshake, and not
	// everywhere with a limit: an agent that stalls must not keep the lane.
	if c.net.SetDeadline(time.Now().Add(lastWords)) != nil {
		return // it is gone
	}
	if data, e := wire.EncodePush(&r.ErrorMessage); e == nil {
		if c.ws.Write(context.Background(), websocket.MessageText, data) == nil {
			c.ws.Close(websocket.StatusCode(r.Class.Code()), r.Code)
		}
	}
}
