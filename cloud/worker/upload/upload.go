// Package upload puts finished recordings into the object store and does not
// give up: a recording leaves tmpfs only when the store has verified its
// checksum. One object that fails never holds up the others.
package upload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
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
	Stat(ctx context.Context, key string) (vms.Recording, error)
}

// Job is one recording: Head, then the bytes of the file at Path.
type Job struct {
	Recording vms.Recording
	Head      []byte
	Path      string
	// Done is called once the recording is durable, under the key it got.
	Done func(vms.Recording)
}

// Uploader runs jobs. Fill in the fields, then Submit at will; Close waits.
type Uploader struct {
	Store Store
	// Slots is how many requests are under way at once.
	Slots int
	Log   *slog.Logger

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
	defer func() {
		if failed {
			u.failing.Add(-1)
		}
	}()
	for {
		r, err := u.try(ctx, j)
		if err == nil {
			if err := os.Remove(j.Path); err != nil {
				u.Log.Error("cannot remove an uploaded recording from tmpfs", "path", j.Path, "err", err)
			}
			j.Done(r)
			return
		}
		if ctx.Err() != nil {
			return
		}
		if !failed {
			failed = true
			u.failing.Add(1)
		}
		u.retries.Add(1)
		wait := b.Next(0)
		u.Log.Warn("upload failed, will try again", "channel", j.Recording.Channel, "key", j.Recording.Key, "err", err, "wait", wait)
		if !retry.Sleep(ctx, wait) {
			return
		}
	}
}

// try holds a slot while it talks to the store.
func (u *Uploader) try(ctx context.Context, j Job) (vms.Recording, error) {
	select {
	case u.slots <- struct{}{}:
		defer func() { <-u.slots }()
	case <-ctx.Done():
		return vms.Recording{}, ctx.Err()
	}
	f, err := os.Open(j.Path)
	if err != nil {
		return vms.Recording{}, err
	}
	defer f.Close()
	r := j.Recording
	err = u.Store.Put(ctx, r, newBody(j.Head, f, r.Bytes))
	if !errors.Is(err, vms.ErrConflict) {
		return r, err
	}
	have, err := u.Store.Stat(ctx, r.Key)
	if err != nil {
		return r, fmt.Errorf("look at the object that holds the key: %w", err)
	}
	if have.SHA256 == r.SHA256 && have.Bytes == r.Bytes || have.Chunks.Contains(r.Chunks) {
		return have, nil // another worker, or an earlier try of ours, made it durable
	}
	// Two different recordings want one key: no code should be able to do this. Keep both.
	u.Log.Error("ALARM: another recording has this key; storing beside it", "channel", r.Channel, "key", r.Key,
		"chunks", r.Chunks.String(), "there", have.Chunks.String())
	r.Key = fmt.Sprintf("%s.%s-%d.mp4", strings.TrimSuffix(r.Key, ".mp4"), r.Chunks.Epoch, r.Chunks.First)
	err = u.Store.Put(ctx, r, newBody(j.Head, f, r.Bytes))
	if errors.Is(err, vms.ErrConflict) {
		err = nil // stored beside it by an earlier try
	}
	return r, err
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
