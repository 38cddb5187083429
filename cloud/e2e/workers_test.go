package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/agent/mux"
	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/chaos"
	"github.com/zipato/vms/pkg/wire"
)

// memory is an object store that keeps everything; it only has to remember.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
	infos   map[string]vms.Recording
	fail    error // what Put returns, while it is set
	refused int
}

func newMemory() *memory {
	return &memory{objects: map[string][]byte{}, infos: map[string]vms.Recording{}}
}

func (m *memory) Put(_ context.Context, r vms.Recording, body io.ReadSeeker) error {
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.fail != nil:
		m.refused++
		return m.fail
	case m.objects[r.Key] != nil:
		return fmt.Errorf("key %s is taken: %w", r.Key, vms.ErrConflict)
	}
	m.objects[r.Key], m.infos[r.Key] = data, r
	return nil
}

func (m *memory) Stat(_ context.Context, key string) (vms.Recording, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.infos[key]
	if !ok {
		return r, vms.ErrNotFound
	}
	return r, nil
}

func (m *memory) Get(_ context.Context, key string) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	data, ok := m.objects[key]
	if !ok {
		return nil, vms.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (m *memory) state() (objects, refused int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.objects), m.refused
}

func (m *memory) failWith(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// silentNVR hears everything and says nothing.
type silentNVR struct{}

func (silentNVR) StreamStarted(context.Context, vms.StreamEvent) error   { return nil }
func (silentNVR) StreamEnded(context.Context, vms.StreamEvent) error     { return nil }
func (silentNVR) RecordingUploaded(context.Context, vms.Recording) error { return nil }
func (silentNVR) Parts(context.Context, vms.ChannelID, []vms.Epoch) ([]vms.Recording, error) {
	return nil, nil
}
func (silentNVR) Wholes(context.Context, vms.ChannelID, vms.ChunkRange) ([]vms.ChunkRange, error) {
	return nil, nil
}
func (silentNVR) AbandonedParts(context.Context, int) ([]vms.Recording, error) { return nil, nil }
func (silentNVR) Viewers(context.Context, vms.ChannelID, int) error            { return nil }

// newWorker starts a worker that takes one stream, and returns its push URL's
// host by way of a link.
func newWorker(t *testing.T, id vms.WorkerID, store *memory) (*worker.Worker, *chaos.Proxy) {
	t.Helper()
	w, err := worker.New(worker.Config{
		ID: id, Dir: t.TempDir(), Store: store, NVR: silentNVR{}, Log: vmstest.Log(t),
		CheckPush: func(s string) (token.Push, error) {
			generation, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				return token.Push{}, vms.ErrUnauthorized
			}
			return token.Push{Worker: id, Channel: "ch", SID: "sid", Hub: "hub", Generation: vms.Generation(generation)}, nil
		},
		CheckView: func(string) (token.View, error) { return token.View{}, vms.ErrUnauthorized },
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(w.PushHandler())
	t.Cleanup(srv.Close)
	return w, chaos.New(t, strings.TrimPrefix(srv.URL, "http://"))
}

// hubSide is the uplink of one stream: a spool and its two lanes.
type hubSide struct {
	spool    *spool.Spool
	assigned *uplink.Assigned
	wanted   func() // the hub asks for another worker
}

// assign sends the lanes to a worker. The ticket is the generation.
func (h *hubSide) assign(id vms.WorkerID, link *chaos.Proxy, g vms.Generation) {
	h.assigned.Put(&wire.Assign{
		SID: "sid", Channel: "ch", Generation: g, Worker: id, WorkerURL: "ws://" + link.Addr(),
		Ticket: strconv.FormatUint(uint64(g), 10),
	})
}

// run runs the lanes until ctx ends.
func (h *hubSide) run(ctx context.Context, t *testing.T, wg *sync.WaitGroup, store *spool.Store) {
	wg.Go(func() {
		if err := store.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for _, kind := range []vms.Lane{vms.LaneLive, vms.LaneBackfill} {
		lane := &uplink.Lane{
			Kind: kind, Agent: "test", Source: laneSource{h.spool}, Assigned: h.assigned, Log: vmstest.Log(t).With("lane", kind),
			WantWorker: func(wire.WantWorker) { h.wanted() }, OnState: func(error) {}, OnWatched: func(bool) {},
		}
		wg.Go(func() {
			if err := lane.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// newHub opens a spool in RAM, with a stream's inits in it.
func newHub(t *testing.T, in muxed) (*hubSide, *spool.Store) {
	t.Helper()
	store, err := spool.Open(spool.Config{RAM: 1 << 30, Log: vmstest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	h := &hubSide{spool: store.Spool("ch"), assigned: uplink.NewAssigned(), wanted: func() {}}
	for _, i := range in.inits {
		h.spool.PutInit(i)
	}
	return h, store
}

// delivered waits until all that was appended is durable.
func (h *hubSide) delivered(t *testing.T, within time.Duration) {
	t.Helper()
	deadline := time.After(within)
	for {
		changed := h.spool.Changed()
		n := h.spool.Stats().Chunks
		if n == 0 {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%d chunks are not durable after %v", n, within)
		}
	}
}

// pushed runs chunks through the agent's lanes, a proxy and a worker, until all
// of them are durable. disturb may do what it likes with the link meanwhile.
func pushed(t *testing.T, in muxed, store *memory, disturb func(sp *spool.Spool, link *chaos.Proxy)) {
	t.Helper()
	w, link := newWorker(t, "w", store)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	h, hub := newHub(t, in)
	for _, c := range in.chunks {
		h.spool.Append(c)
	}
	last := in.chunks[len(in.chunks)-1]
	h.spool.End(last.Epoch, last.Seq, "stopped")
	h.assign("w", link, 1)
	h.run(ctx, t, &wg, hub)
	if disturb != nil {
		disturb(h.spool, link)
	}
	h.delivered(t, time.Minute)
}

// laneSource and laneCursor are the spool as a lane sees it.
type laneSource struct{ *spool.Spool }

func (s laneSource) Live(worker vms.Instance, have []vms.ChunkRange) uplink.Cursor {
	return laneCursor{s.Spool.Live(worker, have)}
}

func (s laneSource) Backfill(worker vms.Instance, have []vms.ChunkRange, newestFirst bool) uplink.Cursor {
	return laneCursor{s.Spool.Backfill(worker, have, newestFirst)}
}

type laneCursor struct{ *spool.Cursor }

func (c laneCursor) HandOver(worker vms.Instance, have []vms.ChunkRange) uplink.Cursor {
	return laneCursor{c.Cursor.HandOver(worker, have)}
}

// TestTwoWorkersMakeTheSameObjects: the same chunks through two workers, one of
// them over a link that is cut again and again, give byte-identical objects
// under the same keys.
func TestTwoWorkersMakeTheSameObjects(t *testing.T) {
	t.Parallel()
	for name, spec := range exactClips {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := muxClip(t, vmstest.MakeClip(t, spec), mux.Config{Epoch: 7, Recording: 4 * time.Second, Phase: 2 * time.Second})
			calm, cut := newMemory(), newMemory()
			pushed(t, in, calm, nil)
			pushed(t, in, cut, func(_ *spool.Spool, link *chaos.Proxy) {
				link.SetRate(400_000)
				for i := range 5 {
					want := link.Up() + int64(30_000*(i+1))
					for limit := time.Now().Add(10 * time.Second); link.Up() < want && time.Now().Before(limit); {
						time.Sleep(5 * time.Millisecond) // until so many bytes went through
					}
					link.CutOnce()
				}
				link.SetRate(0)
			})
			if len(calm.objects) < 4 {
				t.Fatalf("%d recordings, want at least 4", len(calm.objects))
			}
			a, b := slices.Sorted(maps.Keys(calm.objects)), slices.Sorted(maps.Keys(cut.objects))
			if !slices.Equal(a, b) {
				t.Fatalf("keys differ:\n%v\n%v", a, b)
			}
			for _, k := range a {
				if !bytes.Equal(calm.objects[k], cut.objects[k]) {
					t.Errorf("object %s differs", k)
				}
			}
		})
	}
}

// TestStoreAwayHoldsChunks: while the store refuses, nothing is freed on the
// hub; when it is back, everything is stored once.
func TestStoreAwayHoldsChunks(t *testing.T) {
	t.Parallel()
	in := muxClip(t, vmstest.MakeClip(t, exactClips["h264"]), mux.Config{Epoch: 7, Recording: 4 * time.Second})
	store := newMemory()
	store.failWith(vms.ErrUnavailable)
	pushed(t, in, store, func(sp *spool.Spool, _ *chaos.Proxy) {
		limit := time.Now().Add(20 * time.Second)
		for {
			if _, refused := store.state(); refused >= 8 || time.Now().After(limit) {
				break
			}
			time.Sleep(10 * time.Millisecond) // until the worker has tried and tried again
		}
		if n := sp.Stats().Chunks; n != len(in.chunks) {
			t.Errorf("the hub holds %d of %d chunks while nothing is stored", n, len(in.chunks))
		}
		store.failWith(nil)
	})
	objects, refused := store.state()
	if refused == 0 || objects < 5 {
		t.Errorf("%d puts refused, %d objects in the end; want some, and at least 5", refused, objects)
	}
}
