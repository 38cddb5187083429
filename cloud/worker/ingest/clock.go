package ingest

import (
	"time"

	"github.com/zipato/vms/pkg/wire"
)

// clock looks after all connections, as long as there are some: they have no
// timers of their own, and an idle one costs a look every ackPace.
func (s *Server) clock(stop <-chan struct{}) {
	t := time.NewTicker(ackPace)
	defer t.Stop()
	var conns []*Conn
	for {
		select {
		case <-stop:
			return
		case now := <-t.C:
			s.ledger.look()
			s.mu.Lock()
			conns = conns[:0]
			for c := range s.conns {
				conns = append(conns, c)
			}
			s.mu.Unlock()
			for _, c := range conns {
				c.tick(now)
			}
			clear(conns)
		}
	}
}

// tick does for c what is due by now.
func (c *Conn) tick(now time.Time) {
	if r := c.late(now); r != nil {
		c.end(r)
		return
	}
	raised := c.srv.ledger.tick(&c.account, now)
	c.mu.Lock()
	defer c.mu.Unlock()
	// The next tick may be too late for what is due every ackEvery.
	c.due = c.due || raised || now.Sub(c.acked) > ackEvery-2*ackPace
	c.kick(now)
	if c.ready && c.cause == nil && !c.pinging && now.Sub(c.active) >= quiet {
		c.pinging = true
		c.jobs.Go(c.ping)
	}
}

// late says what an agent has not done in time, nil: nothing.
func (c *Conn) late(now time.Time) *Refusal {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ready || c.cause != nil {
		return nil
	}
	if came := c.net.came.Load(); came != c.came || c.waiting {
		c.came, c.active = came, now
	}
	switch d := now.Sub(c.begun); {
	case c.greeting && now.Sub(c.opened) >= helloTimeout:
		return Refuse(wire.ClassRetry, wire.CodeTimeout, "no hello came within %v", helloTimeout)
	case now.Sub(c.active) >= quiet+pongTimeout:
		return Refuse(wire.ClassRetry, wire.CodeTimeout, "nothing came for %v and no ping was answered", quiet+pongTimeout)
	case !c.begun.IsZero() && !c.waiting && d > slowGrace && int64((d-slowGrace)/time.Second) > (c.came-c.before)/slowRate:
		return Refuse(wire.ClassRetry, wire.CodeTimeout, "a message comes more slowly than %d bytes a second: %d in %v", slowRate, c.came-c.before, d.Truncate(time.Second))
	}
	return nil
}
