package rclone

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/zipato/vms/cloud/objstore"
)

// stage is a directory of copies. It is this process's own, and locked, so that
// another one can tell what a process left that was killed.
type stage struct {
	dir  string
	lock *os.File
}

// stages are the directories of processes, below the one that was configured.
const stages, lockName = "rclone-*", "lock"

// newStage makes a stage below dir, and removes those of the dead.
func newStage(dir string) (*stage, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	old, err := filepath.Glob(filepath.Join(dir, stages))
	if err != nil {
		return nil, err
	}
	for _, d := range old {
		if lock, err := takeLock(d); err == nil {
			err = errors.Join(os.RemoveAll(d), lock.Close())
			if err != nil {
				return nil, err
			}
		}
	}
	s := &stage{}
	if s.dir, err = os.MkdirTemp(dir, stages); err != nil {
		return nil, err
	}
	if s.lock, err = takeLock(s.dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	return s, nil
}

// takeLock fails while the process lives whose stage it is.
func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (s *stage) close() error { return errors.Join(os.RemoveAll(s.dir), s.lock.Close()) }

// copy writes the body of in to a file with a name, and verifies it: rclone
// does not know what it should be. remove takes it away.
func (s *stage) copy(ctx context.Context, name string, in objstore.PutInput) (file string, remove func(), err error) {
	dir, err := os.MkdirTemp(s.dir, "put-")
	if err != nil {
		return "", nil, err
	}
	clean := func() { _ = os.RemoveAll(dir) } // else the next start removes it
	defer func() {
		if err != nil {
			clean()
		}
	}()
	file = filepath.Join(dir, name)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := in.Body.Seek(0, io.SeekStart); err != nil {
		return "", nil, fmt.Errorf("rewind body: %w", err)
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(readContext{ctx, in.Body}, in.Size))
	switch {
	case err != nil:
		return "", nil, fmt.Errorf("copy body: %w", err)
	case n < in.Size:
		return "", nil, fmt.Errorf("body of %d bytes, want %d: %w", n, in.Size, objstore.ErrChecksum)
	case [sha256.Size]byte(h.Sum(nil)) != in.SHA256:
		return "", nil, fmt.Errorf("the body is another one: %w", objstore.ErrChecksum)
	}
	return file, clean, nil
}

// readContext ends a copy when nobody waits for it any more.
type readContext struct {
	ctx context.Context
	r   io.Reader
}

func (r readContext) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
