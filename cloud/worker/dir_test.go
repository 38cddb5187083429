package worker_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// TestAFullFileSystemHoldsAndRecovers: others have taken the room. Nothing is
// lost, the agent is told why it waits, and all goes on by itself.
func TestAFullFileSystemHoldsAndRecovers(t *testing.T) {
	inBubble(t, func(r *rig) {
		var free atomic.Int64
		free.Store(1 << 30)
		r.w.SetFree(free.Load)
		time.Sleep(2 * time.Second)
		cs := tape(r.t, 1, 1, 30, 1<<20)
		want := alone(r.t, cs)
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		if n := a.paced(cs[:12]...); n != 12 {
			r.t.Fatalf("%d chunks were taken", n)
		}
		if _, full := r.w.Use(); full {
			r.t.Error("full with a gigabyte free")
		}
		free.Store(1 << 20)
		time.Sleep(2 * time.Second)
		if _, full := r.w.Use(); !full {
			r.t.Error("not full with a megabyte free")
		}
		time.Sleep(6 * time.Second)
		a.take()
		if a.last.Hold != wire.HoldTmpfs {
			r.t.Errorf("on a full file system: %+v", a.last)
		}
		used, _ := r.w.Use()
		back := time.AfterFunc(2*time.Minute, func() {
			if now, _ := r.w.Use(); now > used {
				r.t.Errorf("%d bytes came into a full file system", now-used)
			}
			free.Store(1 << 30)
		})
		defer back.Stop()
		begun := time.Now()
		if n := a.paced(cs[12:20]...); n != 8 { // within what was granted before
			r.t.Errorf("%d of 8 chunks were taken: %+v", n, a.last)
		}
		if d := time.Since(begun); d < 100*time.Second {
			r.t.Errorf("they were taken within %v", d)
		}
		time.Sleep(15 * time.Second)
		if _, full := r.w.Use(); full {
			r.t.Error("still full")
		}
		a.take()
		if n := a.paced(cs[20:]...); n != 10 {
			r.t.Errorf("no credit although there is room: %+v", a.last)
		}
		a.send(stopped(1, 30))
		a.isDurable(span(1, 1, 30))
		r.store.same(r.t, want)
		a.hangUp()
	})
}

// TestAWriteThatFindsNoRoomLosesNothing: although there seemed to be some.
func TestAWriteThatFindsNoRoomLosesNothing(t *testing.T) {
	dir := tinyDisk(t, 100<<20)
	inBubble(t, func(r *rig) {
		r.w.SetFree(func() int64 { return 1 << 30 })
		time.Sleep(2 * time.Second)
		cs := tape(r.t, 1, 1, 30, 100<<10)
		want := alone(r.t, cs)
		h := newHub(r, cs)
		h.connect(r)
		h.push(14)
		fill := filepath.Join(dir, "fill")
		if err := os.WriteFile(fill, make([]byte, 101<<20), 0o600); err == nil {
			r.t.Fatal("the disk is not full")
		}
		h.push(20)
		if m, _ := h.a.closed(); m.Class != wire.ClassRetry || m.Code != wire.CodeInternal || m.RetryAfterMS == 0 {
			r.t.Errorf("the agent was told %+v", m)
		}
		if n := r.w.Room(); n > 0 {
			r.t.Errorf("room for %d bytes after that", n)
		}
		h.connect(r)
		var have vms.ChunkSet
		for _, x := range h.a.welcome.Have {
			have.Add(x)
		}
		if !have.Covers(span(1, 1, 14)) {
			r.t.Errorf("have %v after a write that failed", have.Ranges())
		}
		if err := os.Remove(fill); err != nil {
			r.t.Fatal(err)
		}
		h.finish(r)
		r.settled(want)
	}, func(c *worker.Config) { c.Dir = dir })
}

// TestRoomIsWhatTheFileSystemHas: however much the configuration allows.
func TestRoomIsWhatTheFileSystemHas(t *testing.T) {
	dir := tinyDisk(t, 100<<20)
	inBubble(t, func(r *rig) {
		before := r.w.Room()
		if before > 100<<20 || before < 90<<20 {
			r.t.Errorf("room for %d bytes on a disk of %d", before, 100<<20)
		}
		fill := filepath.Join(dir, "fill")
		if err := os.WriteFile(fill, make([]byte, 50<<20), 0o600); err != nil {
			r.t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if got := before - r.w.Room(); got < 50<<20 || got > 51<<20 {
			r.t.Errorf("%d bytes less room because of a file of %d", got, 50<<20)
		}
		if err := os.Remove(fill); err != nil {
			r.t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if got := r.w.Room(); got != before {
			r.t.Errorf("room for %d bytes, before there was for %d", got, before)
		}
	}, func(c *worker.Config) { c.Dir = dir })
}

// TestADirectoryTakesSoManyFiles: each recording is two.
func TestADirectoryTakesSoManyFiles(t *testing.T) {
	inBubble(t, func(r *rig) {
		for files, want := range map[int64]bool{10: true, 10_000: false} {
			r.w.SetFiles(files)
			time.Sleep(15 * time.Second)
			if _, full := r.w.Use(); full != want {
				r.t.Errorf("full with room for %d files: %v", files, full)
			}
		}
	})
}

// lines is a log that remembers what was said, from level on.
type lines struct {
	level slog.Level
	mu    sync.Mutex
	said  []string
}

func (l *lines) Enabled(_ context.Context, v slog.Level) bool { return v >= l.level }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler           { return l }
func (l *lines) WithGroup(string) slog.Handler                { return l }
func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = append(l.said, r.Message)
	return nil
}

func (l *lines) count(prefix string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.said {
		if strings.HasPrefix(s, prefix) {
			n++
		}
	}
	return n
}

// TestAFullDirectoryIsSaidOnce: although the room comes and goes.
func TestAFullDirectoryIsSaidOnce(t *testing.T) {
	log := &lines{level: slog.LevelWarn}
	inBubble(t, func(r *rig) {
		var free atomic.Int64
		r.w.SetFree(free.Load)
		for i := range 60 {
			free.Store(int64(i%7) << 20 * 4)
			time.Sleep(time.Second)
		}
		if _, full := r.w.Use(); !full || log.count("ALARM: no room") != 1 || log.count("room for") != 0 {
			r.t.Errorf("full: %v, said %q", full, log.said)
		}
		free.Store(1 << 30)
		time.Sleep(30 * time.Second)
		if _, full := r.w.Use(); full || log.count("ALARM: no room") != 1 || log.count("room for unfinished recordings again") != 1 {
			r.t.Errorf("full: %v, said %q", full, log.said)
		}
	}, func(c *worker.Config) { c.Log = slog.New(log) })
}
