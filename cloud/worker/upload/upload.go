// Package upload puts finished recordings into the object store and does not
// give up: a recording leaves tmpfs only when the store has verified its
// checksum. One object that fails never holds up the others.
package upload

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

// Store is what an uploader needs of the object store.
type Store interface {
	// Put stores an object that is not there yet. vms.ErrConflict: the key is taken.
	Put(ctx context.Context, r vms.Recording, body io.ReadSeeker) error
	// Stat returns what the object's metadata says, or vms.ErrNotFound.
	// vms.ErrInvalid: the object is no recording.
	Stat(ctx context.Context, key string) (vms.Recording, error)
	// Get opens an object, or returns vms.ErrNotFound. The caller closes it.
	Get(ctx context.Context, key string) (io.ReadCloser, error)
}

// Job is one recording, or a part of one: Head, then the bytes of the file at Path.
type Job struct {
	Recording vms.Recording
	Head      []byte
	Path      string
	// View returns the bytes behind Head, when they are not those of the file as
	// it is. The file is left alone then: it is somebody else's.
	View func(io.ReaderAt) io.ReaderAt
	// Done is called once the recording is durable, under the key it got.
	Done func(vms.Recording)
	// Lost is called instead when the file is not there any more, or is not
	// what was written: no retry can help, only the one who has the bytes still.
	// For a part, also when its key is taken by something else.
	Lost func(error)
}

// remove takes the file away, if it is the job's.
func (j *Job) remove(log *slog.Logger) {
	if j.View != nil {
		return
	}
	if err := os.Remove(j.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("cannot remove a recording from tmpfs", "path", j.Path, "err", err)
	}
}

// Uploader runs jobs. Fill in the fields, then Submit at will; Wait waits.
type Uploader struct {
	Store Store
	// Slots is how many requests are under way at once.
	Slots int
	// Stored, if set, is called for each object that Put took.
	Stored func(vms.Recording)
	Log    *slog.Logger

	once    sync.Once
	slots   chan struct{}
	wg      sync.WaitGroup
	failing atomic.Int64 // jobs whose last try failed
	waiting atomic.Int64 // jobs not done

	retries atomic.Uint64
}

// Failing reports whether some job is waiting for the store to get better.
func (u *Uploader) Failing() bool { return u.failing.Load() > 0 }

// Waiting counts the jobs that are not done; Retries the tries that failed.
func (u *Uploader) Waiting() int64  { return u.waiting.Load() }
func (u *Uploader) Retries() uint64 { return u.retries.Load() }

// Submit begins a job. It returns at once; the job ends when it is durable or
// ctx ends, and then leaves its file for the next start.
func (u *Uploader) Submit(ctx context.Context, j Job) {
	u.once.Do(func() { u.slots = make(chan struct{}, max(u.Slots, 1)) })
	u.waiting.Add(1)
	u.wg.Go(func() {
		defer u.waiting.Add(-1)
		u.run(ctx, j)
	})
}

// Wait returns when no job runs any more.
func (u *Uploader) Wait() { u.wg.Wait() }

func (u *Uploader) run(ctx context.Context, j Job) {
	b := retry.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second}
	failed := false
	done := func() { // before anybody is told: the store is not what holds up this job any more
		if failed {
			u.failing.Add(-1)
		}
	}
	for {
		r, err := u.try(ctx, j)
		switch {
		case err == nil:
			j.remove(u.Log)
			done()
			j.Done(r)
			return
		case ctx.Err() != nil:
			done()
			return
		case errors.Is(err, errLost):
			j.remove(u.Log)
			done()
			j.Lost(err)
			return
		}
		level := slog.LevelDebug // said once: an outage must not fill the log
		if !failed {
			failed, level = true, slog.LevelWarn
			u.failing.Add(1)
		}
		u.retries.Add(1)
		wait := b.Next(0)
		u.Log.Log(ctx, level, "upload failed, will try again until it works", "channel", j.Recording.Channel, "key", j.Recording.Key, "err", err, "wait", wait)
		if !retry.Sleep(ctx, wait) {
			done()
			return
		}
	}
}

// errLost: the file is not what was written, or can never be stored.
var errLost = errors.New("it cannot be stored")

// maxBeside bounds the keys that are tried for a recording whose own is taken.
const maxBeside = 100

// try holds a slot while it talks to the store.
func (u *Uploader) try(ctx context.Context, j Job) (vms.Recording, error) {
	select {
	case u.slots <- struct{}{}:
		defer func() { <-u.slots }()
	case <-ctx.Done():
		return vms.Recording{}, ctx.Err()
	}
	f, err := os.Open(j.Path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: its file is gone: %w", errLost, err)
	}
	if err != nil {
		return vms.Recording{}, err
	}
	defer f.Close()
	bytes := io.ReaderAt(f)
	if j.View != nil {
		bytes = j.View(f)
	}
	r, err := u.place(ctx, j, bytes)
	if err != nil && ctx.Err() == nil && !errors.Is(err, errLost) {
		if lost := j.verify(bytes); lost != nil {
			err = errors.Join(lost, err)
		}
	}
	return r, err
}

// place puts the recording under its key. When another recording has that, a
// later one by as many microseconds as it takes: a key of the usual form, so
// that it is found and registered like any other.
func (u *Uploader) place(ctx context.Context, j Job, f io.ReaderAt) (vms.Recording, error) {
	r := j.Recording
	for range maxBeside {
		err := u.Store.Put(ctx, r, newBody(j.Head, f, r.Bytes))
		if !errors.Is(err, vms.ErrConflict) {
			if err == nil && u.Stored != nil {
				u.Stored(r)
			}
			return r, err
		}
		have, err := u.Store.Stat(ctx, r.Key)
		switch {
		case errors.Is(err, vms.ErrInvalid): // a stranger's object
		case err != nil:
			return r, fmt.Errorf("look at the object that holds the key: %w", err)
		case have.SHA256 == r.SHA256 && have.Bytes == r.Bytes || have.Chunks.Contains(r.Chunks):
			return have, nil // another worker, or an earlier try of ours, made it durable
		}
		if r.Provisional() { // its key says all about it: there is no other
			return r, fmt.Errorf("%w: a stranger's object has the key %s", errLost, r.Key)
		}
		if r.Chunks.Contains(have.Chunks) {
			// The hub was given up and has come back: the NVR puts the whole recording
			// into the place of what was stored of it.
			u.Log.Info("the whole of a recording is stored beside its beginning", "channel", r.Channel, "key", r.Key, "chunks", r.Chunks.String())
		} else {
			// Two different recordings want one key: no code should be able to do this. Keep both.
			u.Log.Error("ALARM: another recording has this key; storing beside it", "channel", r.Channel, "key", r.Key,
				"chunks", r.Chunks.String(), "there", have.Chunks.String())
		}
		r.Start = r.Start.Add(time.Microsecond)
		if !r.Start.Before(r.End) {
			break
		}
		r.Key = vms.RecordingKey(r.Channel, r.Start, r.Number)
	}
	return r, fmt.Errorf("no key is free for recording %s", j.Recording.Key)
}

// verify reports, as errLost, that head and file are not the recording. A disk
// that cannot be read now may be read later: that is another error, and nil here.
func (j *Job) verify(f io.ReaderAt) error {
	h := sha256.New()
	n, err := io.Copy(h, newBody(j.Head, f, j.Recording.Bytes))
	switch {
	case err != nil:
		return nil //nolint:nilerr // see above
	case n != j.Recording.Bytes:
		return fmt.Errorf("%w: %d bytes of %d", errLost, n, j.Recording.Bytes)
	case [sha256.Size]byte(h.Sum(nil)) != j.Recording.SHA256:
		return fmt.Errorf("%w: its checksum has changed", errLost)
	}
	return nil
}

// body reads head, then the file, and can be rewound for a retry.
type body struct {
	head []byte
	file io.ReaderAt
	size int64
	pos  int64
}

func newBody(head []byte, f io.ReaderAt, size int64) *body {
	return &body{head: head, file: f, size: size}
}

func (b *body) Read(p []byte) (int, error) {
	if b.pos >= b.size {
		return 0, io.EOF
	}
	if b.pos < int64(len(b.head)) {
		n := copy(p, b.head[b.pos:])
		b.pos += int64(n)
		return n, nil
	}
	p = p[:min(int64(len(p)), b.size-b.pos)]
	n, err := b.file.ReadAt(p, b.pos-int64(len(b.head)))
	b.pos += int64(n)
	if err == io.EOF && n > 0 {
		err = nil
	}
	return n, err
}

func (b *body) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.pos
	case io.SeekEnd:
		offset += b.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d", offset)
	}
	b.pos = offset
	return offset, nil
}
