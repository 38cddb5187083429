package inproc_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/bucketevents"
	"github.com/zipato/vms/cloud/bucketevents/inproc"
)

func event(i int) bucketevents.Event {
	return bucketevents.Event{Bucket: "vms", Key: fmt.Sprintf("recordings/c/%d.mp4", i)}
}

func quiet(o inproc.Options) *inproc.Queue {
	o.Log = slog.New(slog.DiscardHandler)
	return inproc.New(o)
}

// run runs q in the background; stop ends it and waits.
func run(t *testing.T, q *inproc.Queue, handle func(context.Context, bucketevents.Event) error) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx, handle) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v after its context ended, want nil", err)
		}
	}
}

func TestEventsArriveInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quiet(inproc.Options{})
		q.Publish(event(0)) // before Run
		var got []bucketevents.Event
		stop := run(t, q, func(_ context.Context, e bucketevents.Event) error {
			got = append(got, e)
			return nil
		})
		for i := 1; i < 5; i++ {
			q.Publish(event(i))
			time.Sleep(time.Minute)
		}
		stop()
		if want := []bucketevents.Event{event(0), event(1), event(2), event(3), event(4)}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if q.Len() != 0 || q.Dropped() != 0 {
			t.Errorf("%d left, %d dropped", q.Len(), q.Dropped())
		}
	})
}

// A database that is away for ten minutes costs no event, and is not hammered.
func TestFailedEventComesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quiet(inproc.Options{})
		began := time.Now()
		tries, handled := 0, map[string]int{}
		stop := run(t, q, func(_ context.Context, e bucketevents.Event) error {
			tries++
			if time.Since(began) < 10*time.Minute {
				return errors.New("database is away")
			}
			handled[e.Key]++
			return nil
		})
		for i := range 3 {
			q.Publish(event(i))
		}
		time.Sleep(12 * time.Minute)
		stop()
		if want := map[string]int{event(0).Key: 1, event(1).Key: 1, event(2).Key: 1}; !maps.Equal(handled, want) {
			t.Errorf("handled %v, want each once", handled)
		}
		if tries < 30 || tries > 3*120 {
			t.Errorf("%d tries in ten minutes", tries)
		}
	})
}

func TestPoisonEventHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quiet(inproc.Options{})
		handled := 0
		stop := run(t, q, func(_ context.Context, e bucketevents.Event) error {
			if e == event(0) {
				return errors.New("never")
			}
			handled++
			return nil
		})
		for i := range 100 {
			q.Publish(event(i))
		}
		synctest.Wait()
		if handled != 99 {
			t.Errorf("%d of 99 handled at once", handled)
		}
		stop()
		if q.Len() != 1 {
			t.Errorf("%d events left, want the poison one", q.Len())
		}
	})
}

// When it is full it drops, never waits, and asks once for a listing; again
// when more is dropped later.
func TestOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		overflows := 0
		q := quiet(inproc.Options{Capacity: 10, OnOverflow: func() { overflows++ }})
		for i := range 25 {
			q.Publish(event(i))
		}
		if q.Len() != 10 || q.Dropped() != 15 {
			t.Errorf("%d waiting, %d dropped, want 10 and 15", q.Len(), q.Dropped())
		}
		handled := 0
		block := make(chan struct{})
		stop := run(t, q, func(context.Context, bucketevents.Event) error {
			<-block
			handled++
			return nil
		})
		synctest.Wait()
		if overflows != 1 {
			t.Errorf("%d calls of OnOverflow, want 1", overflows)
		}
		for i := range 5 { // one place is free: the first event is being handled
			q.Publish(event(i))
		}
		if q.Dropped() != 19 {
			t.Errorf("%d dropped, want 19", q.Dropped())
		}
		close(block)
		synctest.Wait()
		if overflows != 2 || handled != 11 || q.Len() != 0 {
			t.Errorf("%d overflows, %d handled, %d left, want 2, 11, 0", overflows, handled, q.Len())
		}
		stop()
	})
}

// What is dropped while OnOverflow runs causes another call: the listing that
// runs may have passed that key already.
func TestOverflowDuringOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		overflows := 0
		var q *inproc.Queue
		q = quiet(inproc.Options{Capacity: 1, OnOverflow: func() {
			if overflows++; overflows == 1 {
				q.Publish(event(9))
			}
		}})
		q.Publish(event(0))
		q.Publish(event(1))
		stop := run(t, q, func(context.Context, bucketevents.Event) error { return nil })
		synctest.Wait()
		stop()
		if overflows != 2 {
			t.Errorf("%d calls of OnOverflow, want 2", overflows)
		}
	})
}

// An event whose handling was cut short by the end is there for the next Run.
func TestInterruptedEventStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quiet(inproc.Options{})
		q.Publish(event(0))
		started := make(chan struct{})
		stop := run(t, q, func(ctx context.Context, _ bucketevents.Event) error {
			close(started)
			<-ctx.Done()
			return ctx.Err()
		})
		<-started
		stop()
		handled := 0
		stop = run(t, q, func(context.Context, bucketevents.Event) error {
			handled++
			return nil
		})
		synctest.Wait()
		stop()
		if handled != 1 {
			t.Errorf("handled %d times, want once", handled)
		}
	})
}

// Many writers publish while events fail now and then: none is lost.
func TestPublishersAndRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quiet(inproc.Options{})
		handled, tries := map[string]int{}, map[string]int{}
		stop := run(t, q, func(_ context.Context, e bucketevents.Event) error {
			if tries[e.Key]++; tries[e.Key]%3 != 0 {
				return errors.New("try again")
			}
			handled[e.Key]++
			return nil
		})
		var writers sync.WaitGroup
		for w := range 8 {
			writers.Go(func() {
				for i := range 100 {
					q.Publish(event(w*100 + i))
				}
			})
		}
		writers.Wait()
		time.Sleep(time.Hour)
		stop()
		if len(handled) != 800 || q.Len() != 0 {
			t.Errorf("%d of 800 handled, %d left", len(handled), q.Len())
		}
	})
}
