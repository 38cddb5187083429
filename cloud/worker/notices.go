package worker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

// maxEvents bounds the beginnings and ends of streams that wait for the NVR, per
// channel. While it is away for long, a link that flaps must not fill the memory:
// of more, the oldest pairs of a beginning and its end are dropped, as if the
// stream had not been. What is stored is never dropped; a channel of recordings of
// 30 s keeps about 1 MB a day.
const maxEvents = 64

// notices repeats what the NVR must be told until it has been, in order per channel.
type notices struct {
	log *slog.Logger

	mu     sync.Mutex
	ctx    context.Context
	queues map[vms.ChannelID][]notice // the first one may be under way
	woken  chan struct{}              // closed by hurry; nil: nobody waits
	wg     sync.WaitGroup
}

// notice is one thing to tell.
type notice struct {
	tell func(context.Context) error
	// done, if set, is called when the NVR has heard it, or with the error that
	// says that it never will.
	done func(error)

	kind kind
	lane vms.Lane // of a beginning or an end
}

// kind of a notice.
type kind int

const (
	stored kind = iota
	began
	ended
)

func (n *notices) start(ctx context.Context) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ctx = ctx
	for ch := range n.queues {
		n.wg.Go(func() { n.run(ctx, ch) })
	}
}

// started and ended tell that a stream began, or is over. done may be nil.
func (n *notices) started(nvr NVR, e vms.StreamEvent, done func(error)) {
	n.send(e.Channel, notice{kind: began, lane: e.Lane, done: done, tell: func(ctx context.Context) error { return nvr.StreamStarted(ctx, e) }})
}

// again tells once more that a stream began, which is up. If that waits to be
// told anyway it is enough; what is under way may be said to an NVR that is gone.
func (n *notices) again(nvr NVR, e vms.StreamEvent) {
	n.mu.Lock()
	q := n.queues[e.Channel]
	waits := false
	for i := 1; i < len(q); i++ {
		if q[i].kind != stored && q[i].lane == e.Lane {
			waits = q[i].kind == began
		}
	}
	n.mu.Unlock()
	if !waits {
		n.started(nvr, e, nil)
	}
}

func (n *notices) ended(nvr NVR, e vms.StreamEvent) {
	n.send(e.Channel, notice{kind: ended, lane: e.Lane, tell: func(ctx context.Context) error { return nvr.StreamEnded(ctx, e) }})
}

// uploaded tells that r, of ch, is stored. done may be nil.
func (n *notices) uploaded(nvr NVR, ch vms.ChannelID, r vms.Recording, done func(error)) {
	n.send(ch, notice{kind: stored, done: done, tell: func(ctx context.Context) error { return nvr.RecordingUploaded(ctx, r) }})
}

func (n *notices) send(ch vms.ChannelID, x notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.queues == nil {
		n.queues = make(map[vms.ChannelID][]notice)
	}
	q, running := n.queues[ch]
	if x.kind != stored {
		q = limitEvents(q)
	}
	n.queues[ch] = append(q, x)
	if !running && n.ctx != nil {
		ctx := n.ctx
		n.wg.Go(func() { n.run(ctx, ch) })
	}
}

// limitEvents drops the oldest beginning that is not under way, and its end, if
// there are too many.
func limitEvents(q []notice) []notice {
	events := 0
	for i := range q {
		if q[i].kind != stored {
			events++
		}
	}
	if events < maxEvents {
		return q
	}
	for i := 1; i < len(q); i++ {
		if q[i].kind != began {
			continue
		}
		for j := i + 1; j < len(q); j++ {
			if q[j].lane == q[i].lane && q[j].kind == ended {
				return slices.Delete(slices.Delete(q, j, j+1), i, i+1)
			}
		}
	}
	return q
}

func (n *notices) run(ctx context.Context, ch vms.ChannelID) {
	b := retry.Backoff{Min: 200 * time.Millisecond, Max: 10 * time.Second}
	level := slog.LevelWarn // said once: an outage must not fill the log
	for {
		n.mu.Lock()
		q := n.queues[ch]
		if len(q) == 0 {
			delete(n.queues, ch)
			n.mu.Unlock()
			return
		}
		n.mu.Unlock()
		x := q[0]
		err := x.tell(ctx)
		switch {
		case ctx.Err() != nil && err != nil:
			return
		case err != nil && !errors.Is(err, vms.ErrNotFound) && !errors.Is(err, vms.ErrInvalid):
			wait := b.Next(0)
			n.log.Log(ctx, level, "cannot tell the NVR, will try again until it hears", "channel", ch, "err", err, "wait", wait)
			level = slog.LevelDebug
			if !n.sleep(ctx, wait) {
				return
			}
			continue
		case err != nil:
			n.log.Error("the NVR will not hear a notice", "channel", ch, "err", err)
		}
		b, level = retry.Backoff{Min: b.Min, Max: b.Max}, slog.LevelWarn
		if x.done != nil {
			x.done(err)
		}
		n.mu.Lock()
		q = n.queues[ch]
		q[0] = notice{} // what it holds may go
		n.queues[ch] = q[1:]
		n.mu.Unlock()
	}
}

// sleep waits until d is over or somebody is in a hurry; false: ctx has ended.
func (n *notices) sleep(ctx context.Context, d time.Duration) bool {
	n.mu.Lock()
	if n.woken == nil {
		n.woken = make(chan struct{})
	}
	woken := n.woken
	n.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-woken:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// hurry has everything tried now that could not be told.
func (n *notices) hurry() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.woken != nil {
		close(n.woken)
		n.woken = nil
	}
}

// told reports whether nothing waits.
func (n *notices) told() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.queues) == 0
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
