package worker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

// notices repeats what the NVR must be told until it has been, in order per channel.
type notices struct {
	log *slog.Logger

	mu     sync.Mutex
	ctx    context.Context
	queues map[vms.ChannelID][]notice
	wg     sync.WaitGroup
}

// notice is one thing to tell.
type notice struct {
	tell func(context.Context) error
	// done, if set, is called when the NVR has heard it, or with the error that
	// says that it never will.
	done func(error)
}

func (n *notices) start(ctx context.Context) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ctx = ctx
	for ch := range n.queues {
		n.wg.Go(func() { n.run(ctx, ch) })
	}
}

func (n *notices) send(ch vms.ChannelID, tell func(context.Context) error, done func(error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.queues == nil {
		n.queues = make(map[vms.ChannelID][]notice)
	}
	q, running := n.queues[ch]
	n.queues[ch] = append(q, notice{tell, done})
	if !running && n.ctx != nil {
		ctx := n.ctx
		n.wg.Go(func() { n.run(ctx, ch) })
	}
}

func (n *notices) run(ctx context.Context, ch vms.ChannelID) {
	b := retry.Backoff{Min: 200 * time.Millisecond, Max: 10 * time.Second}
	for {
		n.mu.Lock()
		q := n.queues[ch]
		if len(q) == 0 {
			delete(n.queues, ch)
			n.mu.Unlock()
			return
		}
		n.mu.Unlock()
		err := q[0].tell(ctx)
		switch {
		case ctx.Err() != nil && err != nil:
			return
		case err != nil && !errors.Is(err, vms.ErrNotFound) && !errors.Is(err, vms.ErrInvalid):
			wait := b.Next(0)
			n.log.Warn("cannot tell the NVR, will try again", "channel", ch, "err", err, "wait", wait)
			if !retry.Sleep(ctx, wait) {
				return
			}
			continue
		case err != nil:
			n.log.Error("the NVR will not hear a notice", "channel", ch, "err", err)
		}
		b = retry.Backoff{Min: b.Min, Max: b.Max}
		if done := q[0].done; done != nil {
			done(err)
		}
		n.mu.Lock()
		n.queues[ch] = n.queues[ch][1:]
		n.mu.Unlock()
	}
}

// drain waits until everything has been told, at most so long.
func (n *notices) drain(d time.Duration) {
	done := make(chan struct{})
	go func() {
		n.wg.Wait()
		close(done)
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

func (n *notices) wait() { n.wg.Wait() }
