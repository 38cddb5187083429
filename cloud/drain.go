package cloud

import (
	"context"
	"sync"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// drainFor is how long a worker that is told to end waits until its streams
	// are elsewhere: the NVR spreads their moves over 10 s, each waits for its next
	// recording or 45 s, and what came last has to be stored.
	drainFor = 100 * time.Second
	// nvrAway is for how long a worker that drains waits for an NVR that is away,
	// which alone can move its streams: it may be about to come back.
	nvrAway = 10 * time.Second
)

// load is what the NVR hears of the worker with each heartbeat.
func (c *Cloud) load() vms.WorkerLoad {
	l := c.worker.Load()
	if l.Draining {
		c.told.set()
	}
	return l
}

// orderDrain is the NVR's order to get rid of the streams. It does not wait.
func (c *Cloud) orderDrain() {
	c.told.set() // it knows
	c.ordered.set()
}

// drain takes no new streams and waits until those that are here are elsewhere
// and stored, or ctx ends. It reports whether they are.
func (c *Cloud) drain(ctx context.Context) bool {
	begun := time.Now()
	c.draining.Store(true)
	c.worker.Drain(ctx)
	c.announce(ctx)
	if ctx.Err() != nil {
		return false
	}
	c.log.Info("worker has no streams any more", "took", time.Since(begun).Round(time.Millisecond))
	return true
}

// announce waits until the NVR has heard that the worker drains, if it is there,
// also without streams: it must give it none now, nor take it for lost.
func (c *Cloud) announce(ctx context.Context) {
	t := time.NewTicker(heartbeat / 20)
	defer t.Stop()
	for c.link == nil || c.link.Up() {
		select {
		case <-c.told.ch:
			return
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// drained returns when the worker's work is to end: after a drain because ctx has
// ended, which is given cfg.DrainFor; after one that the NVR ordered, which is
// given all the time that it takes, if this is a worker alone; or because rest,
// of the whole process, has ended.
func (c *Cloud) drained(ctx, rest context.Context) {
	select {
	case <-ctx.Done():
	case <-rest.Done():
	case <-c.ordered.ch:
		patient, told := context.WithCancel(rest)
		stop := context.AfterFunc(ctx, told)
		done := c.drain(patient)
		stop()
		told()
		if done && c.nvr == nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-rest.Done():
		}
	}
	if rest.Err() != nil || !c.replaced() {
		return
	}
	limited, cancel := context.WithTimeout(rest, c.cfg.DrainFor)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	if c.link != nil {
		watch.Go(func() { c.giveUp(limited, cancel) })
	}
	if !c.drain(limited) && rest.Err() == nil {
		c.log.Warn("worker ends before all its streams are elsewhere; their hubs bring what is missing", "lanes", c.worker.Load().Lanes)
	}
}

// replaced reports whether there may be another worker that takes the streams of
// this one when it ends.
func (c *Cloud) replaced() bool {
	if c.nvr == nil {
		return true // the NVR knows; while there is none it leaves the streams here
	}
	for _, w := range c.nvr.Workers() {
		if w.ID != c.info.ID && w.State == nvr.WorkerUp {
			return true
		}
	}
	return false
}

// giveUp ends a drain when the NVR is away for too long. It returns when ctx ends.
func (c *Cloud) giveUp(ctx context.Context, end func()) {
	if !whileUp(ctx, c.link.Up, nvrAway) {
		c.log.Warn("the NVR is away, and nobody moves the worker's streams")
		end()
	}
}

// whileUp waits until ctx ends (true), or until up has been false for so long.
func whileUp(ctx context.Context, up func() bool, patience time.Duration) bool {
	since := time.Now()
	for retry.Sleep(ctx, time.Second) {
		if up() {
			since = time.Now()
		} else if time.Since(since) >= patience {
			return false
		}
	}
	return true
}
