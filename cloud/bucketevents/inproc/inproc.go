// Package inproc is a bucketevents.Source inside one process, fed by the
// embedded object store. It is bounded: when it is full it drops events, and
// says so, so that its owner lists the bucket instead. It forgets everything
// when the process ends; then, too, the owner lists.
package inproc

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/zipato/vms/cloud/bucketevents"
	"github.com/zipato/vms/pkg/retry"
)

const (
	// DefaultCapacity holds the recordings of 100 channels for more than half
	// an hour, in less than a megabyte.
	DefaultCapacity = 8192
	// minBackoff and maxBackoff bound the wait before a failed event is
	// delivered again. What fails is the database or the store, seldom for long.
	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// Queue is the source. Make it with New.
type Queue struct {
	capacity   int
	onOverflow func()
	log        *slog.Logger
	wake       chan struct{} // holds one token when Run has something to look at

	mu       sync.Mutex
	fresh    []bucketevents.Event
	failed   []failure // waiting to be delivered again, soonest first
	overflow bool      // events were dropped since onOverflow was last called
	dropped  int64     // events, in all
}

type failure struct {
	event   bucketevents.Event
	due     time.Time
	backoff retry.Backoff
}

var _ bucketevents.Source = (*Queue)(nil)

// Options of a Queue.
type Options struct {
	// Capacity is how many events it holds, those that wait for another
	// delivery included. Zero: DefaultCapacity.
	Capacity int
	// OnOverflow is called by Run after events were dropped, once for as many
	// as were dropped until then. It should make somebody list the bucket.
	OnOverflow func()
	Log        *slog.Logger
}

// New returns an empty queue.
func New(o Options) *Queue {
	q := &Queue{
		capacity:   o.Capacity,
		onOverflow: o.OnOverflow,
		log:        cmp.Or(o.Log, slog.Default()),
		wake:       make(chan struct{}, 1),
	}
	if q.capacity <= 0 {
		q.capacity = DefaultCapacity
	}
	return q
}

// Publish adds an event, or drops it when the queue is full. It never waits:
// it is called by the store, while a writer waits for its answer.
func (q *Queue) Publish(e bucketevents.Event) {
	q.mu.Lock()
	if len(q.fresh)+len(q.failed) < q.capacity {
		q.fresh = append(q.fresh, e)
	} else {
		q.overflow = true
		q.dropped++
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default: // Run has not looked since the last token
	}
}

// Len returns how many events wait, Dropped how many were dropped in all.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.fresh) + len(q.failed)
}

// Dropped returns how many events were dropped since New.
func (q *Queue) Dropped() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
}

// Run implements bucketevents.Source. Events that wait when ctx ends stay in
// the queue for the next Run.
func (q *Queue) Run(ctx context.Context, handle func(context.Context, bucketevents.Event) error) error {
	for ctx.Err() == nil {
		f, overflow, wait := q.next(time.Now())
		switch {
		case overflow:
			q.log.Warn("bucket events dropped, the bucket must be listed", "dropped", q.Dropped())
			if q.onOverflow != nil {
				q.onOverflow()
			}
		case f == nil:
			q.sleep(ctx, wait)
		default:
			if err := handle(ctx, f.event); err != nil {
				q.again(ctx, f, err)
			}
		}
	}
	return nil
}

// next takes what is to be done now: a call of onOverflow, or an event; else it
// tells how long there is nothing to do, negative for "until something comes".
func (q *Queue) next(now time.Time) (f *failure, overflow bool, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.overflow:
		// Before the call, so that what is dropped during it causes another.
		q.overflow = false
		return nil, true, 0
	case len(q.failed) > 0 && !q.failed[0].due.After(now):
		f := q.failed[0]
		q.failed = slices.Delete(q.failed, 0, 1)
		return &f, false, 0
	case len(q.fresh) > 0:
		f := failure{event: q.fresh[0], backoff: retry.Backoff{Min: minBackoff, Max: maxBackoff}}
		q.fresh = slices.Delete(q.fresh, 0, 1)
		return &f, false, 0
	case len(q.failed) > 0:
		return nil, false, q.failed[0].due.Sub(now)
	}
	return nil, false, -1
}

// again keeps an event whose handling failed. It may exceed the capacity by
// one: that place was taken while the event was being handled.
func (q *Queue) again(ctx context.Context, f *failure, err error) {
	wait := f.backoff.Next(0)
	if ctx.Err() != nil {
		wait = 0 // handle was told to stop; it is no fault of the event
	} else {
		q.log.Warn("bucket event not handled", "key", f.event.Key, "err", err, "wait", wait)
	}
	f.due = time.Now().Add(wait)
	q.mu.Lock()
	defer q.mu.Unlock()
	i, _ := slices.BinarySearchFunc(q.failed, f.due, func(o failure, due time.Time) int {
		if o.due.After(due) {
			return 1
		}
		return -1 // equal ones keep their order
	})
	q.failed = slices.Insert(q.failed, i, *f)
}

// sleep waits for a Publish, for d, or for the end.
func (q *Queue) sleep(ctx context.Context, d time.Duration) {
	var due <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
	case <-q.wake:
	case <-due:
	}
}
