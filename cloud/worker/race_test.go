package worker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/cloud/worker/upload"
	"github.com/zipato/vms/pkg/vms"
)

// island is a worker and its lines to the NVR and the store, which can be cut.
// What it sent to the store before arrives all the same, and late.
type island struct {
	*rig
	noNVR, noStore atomic.Bool
	late           time.Duration
	moved          bool // what the NVR could not tell it
}

var errCut = errors.New("the line is cut")

func (i *island) lines(c *worker.Config) {
	c.NVR = cutNVR{c.NVR, &i.noNVR}
	c.Store = lateStore{c.Store, i}
}

// says passes on, when there is a line, that the live lane is at another worker.
func (i *island) says() {
	if i.moved && !i.noNVR.Load() {
		i.moved = false
		i.w.Moved("ch", "")
	}
}

type cutNVR struct {
	worker.NVR
	cut *atomic.Bool
}

func (n cutNVR) StreamStarted(ctx context.Context, e vms.StreamEvent) error {
	if n.cut.Load() {
		return errCut
	}
	return n.NVR.StreamStarted(ctx, e)
}

func (n cutNVR) StreamEnded(ctx context.Context, e vms.StreamEvent) error {
	if n.cut.Load() {
		return errCut
	}
	return n.NVR.StreamEnded(ctx, e)
}

func (n cutNVR) RecordingUploaded(ctx context.Context, r vms.Recording) error {
	if n.cut.Load() {
		return errCut
	}
	return n.NVR.RecordingUploaded(ctx, r)
}

func (n cutNVR) Parts(ctx context.Context, ch vms.ChannelID, epochs []vms.Epoch) ([]vms.Recording, error) {
	if n.cut.Load() {
		return nil, errCut
	}
	return n.NVR.Parts(ctx, ch, epochs)
}

func (n cutNVR) Wholes(ctx context.Context, ch vms.ChannelID, r vms.ChunkRange) ([]vms.ChunkRange, error) {
	if n.cut.Load() {
		return nil, errCut
	}
	return n.NVR.Wholes(ctx, ch, r)
}

func (n cutNVR) AbandonedParts(ctx context.Context, limit int) ([]vms.Recording, error) {
	if n.cut.Load() {
		return nil, errCut
	}
	return n.NVR.AbandonedParts(ctx, limit)
}

type lateStore struct {
	upload.Store
	i *island
}

func (s lateStore) Put(ctx context.Context, r vms.Recording, body io.ReadSeeker) error {
	if s.i.noStore.Load() {
		return errCut
	}
	time.Sleep(s.i.late)
	err := s.Store.Put(context.WithoutCancel(ctx), r, body)
	if s.i.noStore.Load() {
		return errCut // it is there, and nobody hears of it
	}
	return err
}

func (s lateStore) Stat(ctx context.Context, key string) (vms.Recording, error) {
	if s.i.noStore.Load() {
		return vms.Recording{}, errCut
	}
	return s.Store.Stat(ctx, key)
}

func (s lateStore) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if s.i.noStore.Load() {
		return nil, errCut
	}
	return s.Store.Get(ctx, key)
}

// racer is a hub whose connections may stay half open when it has gone to another
// worker: what it had sent before comes out of them at any time.
type racer struct {
	hub
	at   *island
	left []*halfOpen
}

type halfOpen struct {
	a    *agent
	next int
}

func (h *racer) goTo(i *island, keep bool) {
	if keep && h.a != nil {
		h.take()
		h.left = append(h.left, &halfOpen{h.a, h.next})
		h.a = nil
	}
	if old := h.at; old != nil && old != i {
		old.moved = true
	}
	h.at, i.moved = i, false
	h.connect(i.rig)
}

// trickle delivers some of what was sent on connections that the hub has given up.
func (h *racer) trickle(n int) {
	for _, o := range h.left {
		for ; n > 0 && o.next < len(h.cs); n-- {
			o.a.chunks(h.cs[o.next])
			o.next++
		}
	}
	synctest.Wait()
}

func (h *racer) hangUpAll() {
	for _, o := range h.left {
		o.a.hangUp()
	}
	h.left = nil
}

// reconcile registers what is in the store, whole recordings first, as the NVR
// does when it lists the bucket: their workers may not have lived to tell of them.
func (r *rig) reconcile() {
	r.t.Helper()
	var wholes, parts []vms.Recording
	r.store.set(func(s *store) {
		for _, o := range s.objects {
			if o.Provisional() {
				parts = append(parts, o)
			} else {
				wholes = append(wholes, o)
			}
		}
	})
	for _, o := range append(wholes, parts...) {
		if err := r.nvr.RecordingUploaded(r.t.Context(), o); err != nil {
			r.t.Fatal(err)
		}
	}
}

// TestWorkersRaceForOneStream: two or three workers get the same chunks at the
// same time, cut off from the NVR or the store now and then, or both; some end in
// the middle of it. There is one set of objects in the end, each as one worker
// alone would have made it, and no other whole recording was ever stored.
func TestWorkersRaceForOneStream(t *testing.T) {
	cs := tape(t, 1, 1, 65, 200)
	want := alone(t, cs)
	runs := 50
	if testing.Short() {
		runs = 10
	}
	seed := rand.Uint64()
	if v, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed, runs = v, 1
	}
	for n := range runs {
		t.Run(fmt.Sprintf("seed %d", seed+uint64(n)), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed+uint64(n), 3))
			inBubble(t, func(r *rig) {
				var workers []*island
				for range 2 + rng.IntN(2) {
					i := &island{late: time.Duration(rng.IntN(3)*rng.IntN(20)) * time.Second}
					i.rig = r.another(i.lines)
					workers = append(workers, i)
				}
				any := func() *island { return workers[rng.IntN(len(workers))] }
				h := &racer{hub: hub{t: r.t, cs: cs}}
				h.goTo(workers[0], false)
				at := 0
				for range 20 {
					switch rng.IntN(11) {
					case 0, 1, 2:
						at = min(at+rng.IntN(10), len(cs)-1)
						h.push(at)
					case 3:
						h.pressure()
					case 4, 5: // elsewhere, and the worker before does not notice
						if i := any(); !i.noNVR.Load() {
							h.goTo(i, true)
							h.push(at)
						}
					case 6:
						h.trickle(rng.IntN(15))
					case 7:
						h.hangUpAll()
					case 8:
						i := any()
						i.noNVR.Store(rng.IntN(2) == 0)
						i.noStore.Store(rng.IntN(3) == 0)
					case 9:
						time.Sleep(time.Duration(rng.IntN(90)) * time.Second)
						if rng.IntN(2) == 0 {
							r.reconcile()
						}
						h.learn()
					case 10: // its process ends, drained or not, and there is another
						i := any()
						old := i.rig
						if h.at != i && rng.IntN(2) == 0 {
							ctx, cancel := context.WithTimeout(r.t.Context(), 100*time.Second)
							i.w.Drain(ctx)
							cancel()
						}
						i.rig = old.restart(rng.IntN(2) == 0, time.Duration(rng.IntN(40))*time.Second, i.lines)
						if h.at == i {
							i.noNVR.Store(false)
							h.connect(i.rig)
							h.push(at)
						}
					}
					for _, i := range workers {
						i.says()
					}
				}
				for _, i := range workers {
					i.noNVR.Store(false)
					i.noStore.Store(false)
					i.says()
				}
				last := any()
				h.goTo(last, true)
				h.push(len(cs))
				h.trickle(len(cs))
				h.finish(last.rig)
				h.hangUpAll()
				for _, i := range workers {
					i.says()
				}
				r.reconcile()
				time.Sleep(15 * time.Minute)
				for _, i := range workers {
					i.shutdown()
				}
				time.Sleep(15 * time.Minute)
				r.settled(want)
				r.store.same(r.t, want)
			})
		})
	}
}

// TestARevokedStreamThatMoved: each worker knows only how far it came itself. The
// one that the stream has left must not store that as a recording: the other one
// has more of it.
func TestARevokedStreamThatMoved(t *testing.T) {
	cs := tape(t, 1, 1, 19, 300)
	inBubble(t, func(r *rig) {
		b := r.another()
		defer b.shutdown()
		h := newHub(r, cs)
		h.connect(r)
		h.push(17)
		h.a.hangUp() // and the replay goes to the other one
		h.a = nil
		r.w.Moved("ch", "wss://b")
		h.connect(b)
		h.push(19)
		r.w.Revoke([]vms.SID{"sid_1"})
		synctest.Wait()
		b.w.Revoke([]vms.SID{"sid_1"})
		time.Sleep(10 * time.Minute)
		want := alone(t, cs)
		r.store.same(t, want)
		r.settled(want)
		h.a.hangUp()
	})
}
