package uplink

import (
	"cmp"
	"context"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
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

// move tries to bring the lane from c to the worker of as, new connection before
// old, and returns the connection that has the lane then: c when it is too early,
// when the NVR has changed its mind, or, with an error, when the other worker
// cannot take it, or did not live to. None: coming back is of no use.
func (l *Lane) move(ctx context.Context, c *laneConn, as *wire.Assign) (*laneConn, *errBroken) {
	if !c.spaced {
		c.spaced = true
		l.pace.space(time.Since(c.since))
	}
	if !l.await(ctx, c, as) {
		return c, nil
	}
	// Should c break meanwhile, there is all the more need of another.
	next, err := l.open(ctx, as)
	if err == nil {
		l.Log.Info("moving to another worker", "lane", l.Kind, "from", c.as.Worker, "to", as.Worker, "why", as.Why)
		next, err = l.shift(ctx, c, next)
	}
	if err == nil || ctx.Err() != nil {
		return cmp.Or(next, c), err
	}
	wait, final := l.lost(err)
	if final != nil {
		c.stop()
		<-c.done
		return nil, err
	}
	l.Log.Warn("cannot move to the other worker yet", "lane", l.Kind, "worker", as.Worker, "err", err, "wait", wait)
	return c, err
}

// await waits until the lane may dial again, and reports whether there is a
// reason to: c has the lane, and is to lose it to the worker of as.
func (l *Lane) await(ctx context.Context, c *laneConn, as *wire.Assign) bool {
	ctx, done := l.Assigned.while(ctx, as)
	defer done()
	t := time.NewTimer(time.Until(l.pace.next))
	defer t.Stop()
	select {
	case <-t.C:
		l.pace.hurried = false
		return ctx.Err() == nil && !c.over()
	case <-c.released:
	case <-ctx.Done():
	}
	return false
}

// shift lets next take over from c, which lives on for a while to hear what
// becomes durable, and returns next. No chunk has two owners: c lets go of its
// cursor before next gets one, unless the cursors hand over by themselves. An
// error: next is gone before that, or is not the one to go to any more.
func (l *Lane) shift(ctx context.Context, c, next *laneConn) (*laneConn, *errBroken) {
	succ := c.handOver(next)
	if succ == nil {
		l.retire(c)
		c.giveBack()
		l.start(ctx, next, l.cursor(next), nil)
		return next, nil
	}
	wait, late := context.WithCancel(ctx)
	l.start(ctx, next, succ, &instead{wait: wait, then: func() Cursor { return l.cursor(next) }})
	if err := l.handOver(c, next); err != nil {
		late()
		return nil, err
	}
	if c.giveBack() {
		context.AfterFunc(next.ctx, late) // succ has begun, or is about to
	} else {
		late()
	}
	l.retire(c)
	return next, nil
}

// handOver waits until next may have what c has not brought: when c was at its
// end, is lost, or has waited for that for too long.
func (l *Lane) handOver(c, next *laneConn) *errBroken {
	limit := time.NewTimer(handOver)
	defer limit.Stop()
	for !c.over() {
		as, changed := l.Assigned.Latest()
		switch {
		case l.gone(c, as):
			c.drop()
			<-c.released
			return nil
		case l.Assigned.gone(next.as):
			next.drop()
			<-next.done
			return &errBroken{errGone, next.as, true, time.Since(next.since)}
		case as.WorkerURL != next.as.WorkerURL:
			next.stop()
			<-next.done
			return &errBroken{errOvertaken, next.as, true, time.Since(next.since)}
		}
		next.as = as
		select {
		case <-c.released: // handed over, or lost
		case <-limit.C:
			l.Log.Warn("no recording began in time: the new worker gets what is not durable", "lane", l.Kind)
			return nil
		case <-next.done:
			return next.broken()
		case <-changed:
		}
	}
	return nil
}

// retire makes c, which was moved away from, wait for what becomes durable of
// what it has brought. There is one such at a time.
func (l *Lane) retire(c *laneConn) {
	if l.retiring != nil {
		l.retiring.stop()
	}
	l.retiring = c
	c.retire()
	l.tellWatched()
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
