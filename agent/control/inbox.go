package control

import (
	"context"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/zipato/vms/pkg/wire"
)

// message is one that the broker sent and no callback has had yet.
type message struct {
	topic   string
	payload []byte
	ack     func()
}

// receive takes a message over from paho, whose goroutine it must not keep from
// reading pings for long: so it only queues. It waits while the inbox is full,
// until over is closed: then the message is lost here, not acknowledged, and
// comes again on the next connection.
func (c *Client) receive(over context.Context, m mqtt.Message) {
	n := weight(m.Payload())
	if c.room.Acquire(over, n) != nil {
		return
	}
	select {
	case c.inbox <- message{topic: m.Topic(), payload: m.Payload(), ack: m.Ack}:
	case <-over.Done():
		c.room.Release(n)
	}
}

// weight is a payload's share of the inbox.
func weight(payload []byte) int64 { return min(int64(len(payload)), inboxBytes) }

// dispatch calls the callbacks until ctx ends. What is in the inbox then is not
// acknowledged: it comes again when the agent is back.
func (c *Client) dispatch(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-c.stated:
			if c.cfg.OnState != nil {
				_, why := c.Connected()
				c.cfg.OnState(why)
			}
		case m := <-c.inbox:
			c.handle(m)
			// Also what cannot be read: it would only come again. Of a connection that
			// is gone this does nothing, and the broker repeats the message.
			m.ack()
			c.room.Release(weight(m.payload))
		}
	}
}

// handle gives m to its callback.
func (c *Client) handle(m message) {
	if len(m.payload) == 0 {
		return // how a retained message is cleared
	}
	decoded, err := wire.DecodeSession(m.payload)
	if err != nil {
		c.cfg.Log.Warn("MQTT message dropped", "topic", m.topic, "err", err)
		return
	}
	switch v := decoded.(type) {
	case *wire.Desired:
		if m.topic == wire.Topic(c.cfg.Hub, wire.LeafDesired) {
			call(c.cfg.OnDesired, v)
			return
		}
	case *wire.Command:
		if m.topic == wire.Topic(c.cfg.Hub, wire.LeafCommand) {
			call(c.cfg.OnCommand, v)
			return
		}
	case *wire.Reported:
		if m.topic == wire.Topic(c.cfg.Hub, wire.LeafReported) {
			c.hear(v)
			call(c.cfg.OnReported, v)
			return
		}
	}
	c.cfg.Log.Warn("MQTT message dropped: it does not belong on its topic", "topic", m.topic)
}

func call[T any](f func(T), v T) {
	if f != nil {
		f(v)
	}
}

// hear notes what the broker keeps as this hub's report. A last will may be
// published long after its connection broke, and after the hub's report on the
// next one: then the world thinks that the hub is offline.
func (c *Client) hear(r *wire.Reported) {
	c.mu.Lock()
	ours := r.Boot == c.cfg.Boot && r.Online
	c.alien = !ours
	c.echoed = c.echoed || ours
	c.mu.Unlock()
	ring(c.heard)
}

// reported returns whether this hub's report came back on this connection, and
// whether what came last is none of this run.
func (c *Client) reported() (echoed, alien bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.echoed, c.alien
}
