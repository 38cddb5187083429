package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
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
