package uplink

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// probeFast is how often a lane is pinged while backfill is under way,
	// probeSlow otherwise, and only when something was sent meanwhile.
	probeFast = 100 * time.Millisecond
	probeSlow = time.Second
	// firstWindow is how many bytes of live may be under way before the first
	// ping was answered; a window is never less than leastWindow nor more than
	// mostWindow.
	firstWindow = 32 << 10
	leastWindow = 16 << 10
	mostWindow  = 4 << 20
	// quick: bytes that arrive so soon may be twice as many. tooLong: they must
	// be fewer, about what arrives in windowTime.
	quick      = time.Second
	tooLong    = 2 * time.Second
	windowTime = 1500 * time.Millisecond
	// deaf: a worker that answers no ping for so long, and yet acknowledges, does
	// not answer pings.
	deaf = time.Minute
	// lowUnsent is how much may wait in the kernel when live hands out more or a
	// ping goes: a ping that cannot be written for 5 s breaks the connection.
	lowUnsent  = 8 << 10
	unsentLook = 10 * time.Millisecond
)

// probing is what a connection knows of its pings: they show how long what was
// sent is under way.
type probing struct {
	writing  atomic.Bool   // a piece is being written
	answered chan struct{} // a ping was, or will never be
	pinging  sync.WaitGroup

	pingMu  sync.Mutex
	written int64     // bytes of chunks that the socket has taken
	arrived int64     // of these, what was before the last answered ping
	pinged  int64     // and before the last ping
	window  int64     // how many may be under way
	out     time.Time // when the ping went that is not answered; zero: none
	last    time.Time // when the last one went
}

// probe pings the worker and tells the governor what it sees, until ctx ends.
func (c *laneConn) probe(ctx context.Context) error {
	for {
		every := probeSlow
		active, begins := c.flow.active()
		if active {
			every = probeFast
		}
		c.tellLag()
		c.ping(ctx, every)
		t := time.NewTimer(every)
		select {
		case <-t.C:
		case <-begins:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// tellLag tells the governor how far live is behind.
func (c *laneConn) tellLag() {
	if c.lane.Kind != vms.LaneLive || c.lane.Governor == nil {
		return
	}
	c.mu.Lock()
	var lag time.Duration
	if c.cursor != nil {
		_, lag = c.cursor.Behind()
	}
	preview := c.preview
	c.mu.Unlock()
	c.flow.behind(lag, preview)
}

// ping sends a ping when one is due and can be written. It does not wait for it.
func (c *laneConn) ping(ctx context.Context, every time.Duration) {
	if c.writing.Load() || unsent(c.raw) > lowUnsent {
		return
	}
	c.pingMu.Lock()
	defer c.pingMu.Unlock()
	now := time.Now()
	if !c.out.IsZero() || now.Sub(c.last) < every || every == probeSlow && c.written == c.pinged {
		return
	}
	c.out, c.last, c.pinged = now, now, c.written
	flight := c.written - c.arrived
	mark := c.flow.pinged()
	c.pinging.Go(func() {
		err := c.conn.Ping(ctx)
		rtt := time.Since(now)
		c.flow.ponged(mark, rtt, err == nil)
		c.pingMu.Lock()
		defer c.pingMu.Unlock()
		c.out = time.Time{}
		if err == nil {
			c.arrived = c.pinged
			switch {
			case rtt > tooLong:
				c.window = max(leastWindow, int64(float64(flight)*windowTime.Seconds()/rtt.Seconds()))
			case rtt < quick && flight > c.window/2:
				c.window = min(2*c.window, mostWindow)
			}
		}
		signal(c.answered)
	})
}

// room waits until live may send more: until what it has sent is about to
// arrive. Otherwise a slow uplink, whose buffers may hold minutes, would show
// viewers the past, and there would never be a lag to jump over.
func (c *laneConn) room(ctx context.Context) error {
	if c.lane.Kind != vms.LaneLive {
		return nil
	}
	for {
		wait := unsentLook
		if unsent(c.raw) <= lowUnsent {
			c.pingMu.Lock()
			full := c.written-c.arrived >= c.window
			out := c.out
			c.pingMu.Unlock()
			switch {
			case !full || !out.IsZero() && time.Since(out) >= deaf:
				return nil
			case out.IsZero():
				c.ping(ctx, 0)
			default:
				wait = deaf - time.Since(out)
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-c.answered:
		case <-t.C:
		case <-c.hand.Done():
		}
		t.Stop()
		if c.hand.Err() != nil {
			return c.hand.Err()
		}
	}
}
