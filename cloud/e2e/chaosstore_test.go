package e2e

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zipato/vms/agent/mux"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// clipStart is when a clip that muxClip plays was captured.
var clipStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// bookOf books a clip as if a camera had sent it then.
func bookOf(t *testing.T, path string, gop int) *ledger {
	t.Helper()
	clip, err := camtest.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	book := newLedger()
	for i, v := range clip.Video {
		at := clipStart.Add(time.Duration(v.DTS) * time.Second / camtest.VideoRate)
		book.add(camtest.Sent{Video: true, Key: i%gop == 0, Number: uint64(i), At: at, AU: v.AU})
	}
	for i, u := range clip.Audio {
		at := clipStart.Add(time.Duration(u.PTS) * time.Second / time.Duration(clip.AudioConfig.SampleRate))
		book.add(camtest.Sent{Number: uint64(i), At: at, AU: [][]byte{u.AU}})
	}
	return book
}

// timelineOf shows the objects of a store as the API would.
func timelineOf(t *testing.T, store *memory) timeline {
	t.Helper()
	dir := t.TempDir()
	srv := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(srv.Close)
	store.mu.Lock()
	defer store.mu.Unlock()
	var tl timeline
	for key, data := range store.objects {
		r := store.infos[key]
		if r.Provisional() {
			continue // a whole recording has taken its place
		}
		name := strconv.Itoa(len(tl.Recordings)) + ".mp4"
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		tl.Recordings = append(tl.Recordings, recording{ID: key, Start: r.Start, End: r.End, Bytes: int64(len(data)), URL: srv.URL + "/" + name})
	}
	return tl
}

// chaosDeadStore: two workers stand before a store that is dead. Changing the
// worker would not help, and trying it again and again would be a storm: the
// hub stays where it is, and waits.
func chaosDeadStore(t *testing.T) *audit {
	const gop = 25
	// Without sound: that of a long clip has access units that are alike.
	clip := vmstest.MakeClip(t, vmstest.ClipSpec{GOP: gop, Duration: span(5*time.Minute, 16*time.Second)})
	in := muxClip(t, clip, mux.Config{Epoch: 7, Recording: 4 * time.Second})
	store := newMemory()
	store.failWith(vms.ErrUnavailable)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	a, linkA := newWorker(t, "a", store)
	b, linkB := newWorker(t, "b", store)
	wg.Go(func() { _ = a.Run(ctx) }) // with uploads that it had to leave
	wg.Go(func() { _ = b.Run(ctx) })

	h, hub := newHub(t, in)
	var moves atomic.Int64
	h.wanted = func() { // as the NVR does
		if n := moves.Add(1); n%2 == 1 {
			h.assign("b", linkB, vms.Generation(n+1))
		} else {
			h.assign("a", linkA, vms.Generation(n+1))
		}
	}
	h.assign("a", linkA, 1)
	h.run(ctx, t, &wg, hub)
	begin := time.Now()
	for _, c := range in.chunks { // at the pace of the camera
		select {
		case <-time.After(time.Until(begin.Add(c.End.Sub(clipStart)))):
		case <-ctx.Done():
		}
		h.spool.Append(c)
	}
	last := in.chunks[len(in.chunks)-1]
	h.spool.End(last.Epoch, last.Seq, "stopped")
	if n := h.spool.Stats().Chunks; n != len(in.chunks) {
		t.Errorf("the hub holds %d of %d chunks while nothing is stored", n, len(in.chunks))
	}
	dials := linkA.Accepted() + linkB.Accepted()
	if _, refused := store.state(); refused == 0 || dials > 2 || moves.Load() > 0 {
		t.Errorf("%d uploads refused, %d dials, %d other workers asked for; want some, one for each lane at most, none", refused, dials, moves.Load())
	}
	store.failWith(nil)
	h.delivered(t, 2*time.Minute)
	return bookOf(t, clip, gop).settle(t, timelineOf(t, store), nil)
}
