package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// reserve is what is never granted of the file system's free bytes: journals,
	// and the last page of each file, are not counted one by one.
	reserve = 4 << 20
	// leastFiles is how many files the file system must still take; each
	// recording is two.
	leastFiles = 256
	// roomy is how long there must have been room before a full directory is one
	// no more: around the limit the alarm would come and go.
	roomy = 10 * time.Second
)

// directory is where unfinished recordings are: how much is in it, and how much
// it can take. While it is open, no other process can open it.
type directory struct {
	path  string
	limit int64 // of used, by configuration
	log   *slog.Logger
	lock  *os.File
	used  atomic.Int64 // bytes of recordings
	// most is what used may become: limit, or less when the file system is full.
	most atomic.Int64
	full atomic.Bool

	mu sync.Mutex
	// free returns the free bytes and files of the file system.
	free   func(path string) (bytes, files int64, err error)
	since  time.Time // there has been room for a largest chunk; zero while there is none
	failed bool      // the last question
}

// openDirectory makes the directory and locks it.
func openDirectory(path string, limit int64, log *slog.Logger) (*directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("worker directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock worker directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: another process uses the worker directory %s; stop it, or give each worker one of its own (VMS_WORKER_DIR)", vms.ErrConflict, path)
		}
		return nil, fmt.Errorf("lock worker directory %s: %w", path, err)
	}
	d := &directory{path: path, limit: limit, log: log, free: freeSpace, lock: lock}
	d.most.Store(limit)
	return d, nil
}

// close lets another process have it.
func (d *directory) close() error { return d.lock.Close() }

// room is how many bytes may still be written.
func (d *directory) room() int64 { return d.most.Load() - d.used.Load() }

// measure looks at the file system, where others may write too, and says so when
// there is no room for a chunk of the largest size, and when there is again.
func (d *directory) measure(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	bytes, files, err := d.free(d.path)
	switch {
	case err != nil:
		if !d.failed {
			d.log.Warn("cannot see how full the worker's directory is; the configured limit alone counts", "dir", d.path, "err", err)
		}
		d.most.Store(d.limit)
	case files < leastFiles:
		d.most.Store(min(d.limit, d.used.Load()))
	default:
		d.most.Store(min(d.limit, d.used.Load()+bytes-reserve))
	}
	d.failed = err != nil
	switch room := d.room(); {
	case room < maxChunk:
		d.since = time.Time{}
		if !d.full.Swap(true) {
			d.log.Error("ALARM: no room for unfinished recordings: the agents get no credit until there is",
				"dir", d.path, "bytes", d.used.Load(), "limit", d.limit, "free", bytes, "free_files", files)
		}
	case d.since.IsZero():
		d.since = now
	case now.Sub(d.since) >= roomy && d.full.Swap(false):
		d.log.Warn("room for unfinished recordings again", "dir", d.path, "bytes", d.used.Load(), "limit", d.limit, "free", bytes)
	}
}

// writeFailed notes that the file system took no more: until measure knows
// better, there is no room.
func (d *directory) writeFailed(err error) {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		d.most.Store(min(d.most.Load(), d.used.Load()))
	}
}

// freeSpace is what the file system of path still takes.
func freeSpace(path string) (bytes, files int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("free bytes of %s: %w", path, err)
	}
	files = math.MaxInt64 // some file systems have no such limit, and say 0 of 0
	if st.Files > 0 {
		files = int64(min(uint64(st.Ffree), math.MaxInt64)) //nolint:gosec,unconvert // the types differ between systems
	}
	return int64(st.Bavail) * int64(st.Bsize), files, nil //nolint:gosec,unconvert // the types differ between systems
}
