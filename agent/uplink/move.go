package uplink

import (
	"context"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// handOver is how long a moved live lane waits for the chunk that begins the
	// next recording; past it the new worker gets all that is not durable yet.
	handOver = 45 * time.Second
	// settleTime is how long the connection that was moved away from waits until
	// what it has sent is durable.
	settleTime = 60 * time.Second
)

// instead is the way out of a connection that waits to take over: when wait has
// ended and nothing was handed to it yet, it goes on with what then returns.
type instead struct {
	wait context.Context
	then func() Cursor
}

// move brings the lane from c to the worker that is assigned now, new
// connection before old, and returns the connection that has the lane then: c
// itself when the NVR has changed its mind. An error: the lane is down.
func (l *Lane) move(ctx context.Context, c *laneConn) (*laneConn, error) {
	// However often the NVR changes its mind, moves are spaced like dials.
	held := time.Since(c.since)
	l.pace.lost(held, false, 0, l.pace.b.Max)
	l.pace.next = l.pace.next.Add(-held)
	for {
		both, cancel := context.WithCancel(ctx) // ends with c, too
		stop := context.AfterFunc(c.ctx, cancel)
		l.pace.wait(both, false, nil)
		stop()
		cancel()
		as, _ := l.Assigned.Latest()
		switch {
		case c.ctx.Err() != nil || ctx.Err() != nil:
			<-c.done
			return nil, c.broken()
		case as.WorkerURL == c.as.WorkerURL:
			return c, nil
		}
		// Should c break meanwhile, there is all the more need of another.
		next, err := l.open(ctx, as)
		if err == nil {
			l.Log.Info("moving to another worker", "lane", l.Kind, "from", c.as.Worker, "to", as.Worker)
			return l.shift(ctx, c, next)
		}
		if c.ctx.Err() != nil {
			<-c.done
			return nil, err
		}
		wait, final := l.lost(as, err)
		if final != nil {
			c.stop()
			<-c.done
			return nil, err
		}
		l.Log.Warn("cannot move to the other worker yet", "lane", l.Kind, "worker", as.Worker, "err", err, "wait", wait)
	}
}

// shift lets next take over from c, which lives on for a while to hear what
// becomes durable. No chunk has two owners: c lets go of its cursor before next
// gets one, unless the cursors hand over by themselves.
func (l *Lane) shift(ctx context.Context, c, next *laneConn) (*laneConn, error) {
	if l.retiring != nil {
		l.retiring.stop()
	}
	l.retiring = c
	c.retire()
	succ := c.handOver(next)
	if succ == nil {
		c.giveBack()
		l.start(ctx, next, l.cursor(next), nil)
		return next, nil
	}
	wait, late := context.WithCancel(ctx)
	l.start(ctx, next, succ, &instead{wait: wait, then: func() Cursor { return l.cursor(next) }})
	limit := time.NewTimer(handOver)
	defer limit.Stop()
	select {
	case <-limit.C:
		l.Log.Warn("no recording began in time: the new worker gets what is not durable", "lane", l.Kind)
	case <-c.released: // handed over, or lost
	case <-next.done:
	}
	if c.giveBack() {
		context.AfterFunc(next.ctx, late) // succ has begun, or is about to
	} else {
		late()
	}
	return next, nil
}

// handOver splits the cursor of a live connection for next; nil: it has none any
// more, or it is backfill's, which starts over from what the new worker has.
func (c *laneConn) handOver(next *laneConn) Cursor {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lane.Kind != vms.LaneLive || c.cursor == nil {
		return nil
	}
	return c.cursor.HandOver(next.instance, next.have)
}

// giveBack ends what c hands out and waits until it has let go of its cursor.
// handed: the cursor was at its end.
func (c *laneConn) giveBack() (handed bool) {
	c.letGo()
	t := time.NewTimer(lastWord)
	defer t.Stop()
	select {
	case <-c.released:
	case <-t.C: // stuck in a chunk
		c.stop()
		<-c.released
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handed
}
