package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/zipato/vms/cloud/objstore"
)

// putBody is what one request sends: size bytes of the caller's body from base
// on. It remembers what went wrong on our side of the request.
//
// minio-go gets it to know that it can be sent again, and never reads it:
// bodyTripper hands the transport a new attempt for each request instead,
// because the transport may still read the last one when the next has begun.
//
// The transport copies it through 32 KiB of memory. Sending the file itself
// (sendfile) was measured on the loopback with BenchmarkPut: a third more CPU,
// for the other side then reads single pages; larger buffers fall out of the
// cache, and cost more too.
type putBody struct {
	dog        *watchdog
	base, size int64

	mu   sync.Mutex    // the transport may still read while PutObject returns
	r    io.ReadSeeker // nil once it is the caller's again
	turn *attempt      // the only one that may read
	err  error
}

// send returns a body and the context that carries it to bodyTripper.
func send(ctx context.Context, dog *watchdog, r io.ReadSeeker, base, size int64) (context.Context, *putBody) {
	b := &putBody{dog: dog, base: base, size: size, r: r}
	return context.WithValue(ctx, bodyKey{}, b), b
}

// bodyKey finds the putBody in a request's context.
type bodyKey struct{}

// bodyTripper gives each request an attempt of its own.
type bodyTripper struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t bodyTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	b, ok := req.Context().Value(bodyKey{}).(*putBody)
	if !ok || req.Body == nil { // also: an empty body
		return t.RoundTripper.RoundTrip(req)
	}
	a, err := b.begin()
	if err != nil {
		return nil, err
	}
	own := *req // a RoundTripper may not change the request
	own.Body = a
	return t.RoundTripper.RoundTrip(&own)
}

// Read implements io.Reader for the type's sake.
func (b *putBody) Read([]byte) (int, error) { return 0, errors.ErrUnsupported }

// Seek implements io.Seeker for the one thing that minio-go does with it: to
// begin again, which begin does.
func (b *putBody) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekStart {
		return 0, fmt.Errorf("seek to %d from %d: %w", offset, whence, errors.ErrUnsupported)
	}
	return 0, nil
}

// begin makes the body of another request, and takes it away from the last one.
func (b *putBody) begin() (*attempt, error) {
	b.dog.pet()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return nil, errors.ErrUnsupported
	}
	if _, err := b.r.Seek(b.base, io.SeekStart); err != nil {
		return nil, b.fail(fmt.Errorf("rewind body: %w", err))
	}
	b.turn = &attempt{b: b}
	return b.turn, nil
}

// fail ends the request: what is wrong with the body, no retry mends.
func (b *putBody) fail(err error) error {
	b.err = err
	b.dog.cancel(err)
	return err
}

// finish gives the reader back to the caller, and says what was wrong with it.
func (b *putBody) finish() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r, b.turn = nil, nil
	return b.err
}

// attempt is the body of one HTTP request. Each step is a sign of life, for the
// transport asks for more only when the network took the last.
type attempt struct {
	b   *putBody
	pos int64 // bytes sent, under b.mu
}

// Close implements io.Closer: the reader is the caller's.
func (a *attempt) Close() error { return nil }

// Read implements io.Reader.
func (a *attempt) Read(p []byte) (int, error) {
	a.b.dog.pet()
	a.b.mu.Lock()
	defer a.b.mu.Unlock()
	if a.b.turn != a {
		return 0, errors.ErrUnsupported
	}
	left := a.b.size - a.pos
	if left == 0 {
		return 0, io.EOF
	}
	n, err := a.b.r.Read(p[:min(int64(len(p)), left)])
	a.pos += int64(n)
	switch {
	case errors.Is(err, io.EOF) && a.pos < a.b.size:
		return n, a.short()
	case err != nil && !errors.Is(err, io.EOF):
		return n, a.b.fail(fmt.Errorf("read body: %w", err))
	}
	return n, nil
}

func (a *attempt) short() error {
	return a.b.fail(fmt.Errorf("body of %d bytes, want %d: %w", a.b.base+a.pos, a.b.base+a.b.size, objstore.ErrChecksum))
}
