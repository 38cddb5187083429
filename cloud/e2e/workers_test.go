package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"slices"
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

// pushed runs chunks through the agent's lane, a proxy and a worker, until all
// of them are durable. disturb may do what it likes with the link meanwhile.
func pushed(t *testing.T, in muxed, store *memory, disturb func(sp *spool.Spool, link *chaos.Proxy)) {
	t.Helper()
	ticket := token.Push{Worker: "w", Channel: "ch", SID: "sid", Hub: "hub", Generation: 1}
	w, err := worker.New(worker.Config{
		ID: "w", Dir: t.TempDir(), Store: store, NVR: silentNVR{}, Log: vmstest.Log(t),
		CheckPush: func(s string) (token.Push, error) {
			if s != "ticket" {
				return token.Push{}, vms.ErrUnauthorized
			}
			return ticket, nil
		},
		CheckView: func(string) (token.View, error) { return token.View{}, vms.ErrUnauthorized },
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(w.PushHandler())
	defer srv.Close()
	link := chaos.New(t, strings.TrimPrefix(srv.URL, "http://"))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})

	sp := spool.NewBudget(1 << 30).NewSpool()
	for _, i := range in.inits {
		sp.PutInit(i)
	}
	for _, c := range in.chunks {
		sp.Append(c)
	}
	last := in.chunks[len(in.chunks)-1]
	sp.End(last.Epoch, last.Seq, "stopped")
	assigned := uplink.NewAssigned()
	assigned.Put(&wire.Assign{SID: "sid", Channel: "ch", Generation: 1, Worker: "w", WorkerURL: "ws://" + link.Addr(), Ticket: "ticket"})
	lane := &uplink.Lane{
		Kind: vms.LaneLive, Agent: "test", Source: laneSource{sp}, Assigned: assigned, Log: vmstest.Log(t),
		WantWorker: func(wire.WantWorker) {}, OnState: func(error) {}, OnWatched: func(bool) {},
	}
	wg.Go(func() {
		if err := lane.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	if disturb != nil {
		disturb(sp, link)
	}
	deadline := time.After(60 * time.Second)
	for sp.Stats().Chunks > 0 {
		changed := sp.Changed()
		if sp.Stats().Chunks == 0 {
			break
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%d of %d chunks are not durable after a minute", sp.Stats().Chunks, len(in.chunks))
		}
	}
}

// laneSource is the spool as a lane sees it.
type laneSource struct{ *spool.Spool }

func (s laneSource) Cursor(have []vms.ChunkRange) uplink.Cursor { return s.NewCursor(have) }

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
