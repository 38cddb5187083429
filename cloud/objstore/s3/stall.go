package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/zipato/vms/cloud/objstore"
)

var errStalled = errors.New("the object store made no progress")

// watchdog ends a request that makes no progress. A deadline for the whole
// request would have to know how fast the link is.
type watchdog struct {
	timer  *time.Timer
	after  time.Duration
	cancel context.CancelCauseFunc
}

// watch derives the context of one request. Unless it is petted at least every
// d, or rests, the context ends with errStalled. stop must be called.
func watch(ctx context.Context, d time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &watchdog{
		timer:  time.AfterFunc(d, func() { cancel(fmt.Errorf("%w for %v", errStalled, d)) }),
		after:  d,
		cancel: cancel,
	}
}

func (w *watchdog) pet()  { w.timer.Reset(w.after) }
func (w *watchdog) rest() { w.timer.Stop() }
func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// putBody is the body of a Put: exactly size bytes, each Read a sign of life,
// for the transport asks for more only when the network took the last. It
// remembers what went wrong on our side of the request.
type putBody struct {
	dog  *watchdog
	size int64

	mu   sync.Mutex    // the transport may still read while PutObject returns
	r    io.ReadSeeker // nil once it is the caller's again
	left int64
	err  error
}

func (b *putBody) Read(p []byte) (int, error) {
	b.dog.pet()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, errors.ErrUnsupported
	}
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case errors.Is(err, io.EOF) && b.left > 0:
		return n, b.fail(fmt.Errorf("body of %d bytes, want %d: %w", b.size-b.left, b.size, objstore.ErrChecksum))
	case err != nil && !errors.Is(err, io.EOF):
		return n, b.fail(fmt.Errorf("read body: %w", err))
	}
	return n, nil
}

// fail ends the request: what is wrong with the body, no retry mends.
func (b *putBody) fail(err error) error {
	b.err = err
	b.dog.cancel(err)
	return err
}

// Seek implements io.Seeker for the one thing that minio-go does with it: to
// begin again.
func (b *putBody) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekStart {
		return 0, fmt.Errorf("seek to %d from %d: %w", offset, whence, errors.ErrUnsupported)
	}
	b.dog.pet()
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.r.Seek(0, io.SeekStart); err != nil {
		return 0, b.fail(fmt.Errorf("rewind body: %w", err))
	}
	b.left = b.size
	return 0, nil
}

// finish gives the reader back to the caller, and says what was wrong with it.
func (b *putBody) finish() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r = nil
	return b.err
}

// getBody watches the store while somebody waits in Read, and only then.
type getBody struct {
	ctx, wctx context.Context
	dog       *watchdog
	body      io.ReadCloser
	key       string
}

func (b *getBody) Read(p []byte) (int, error) {
	b.dog.pet()
	n, err := b.body.Read(p)
	b.dog.rest()
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read object %s: %w", b.key, classify(b.ctx, b.wctx, err))
	}
	return n, err
}

func (b *getBody) Close() error {
	b.dog.stop()
	return b.body.Close()
}
