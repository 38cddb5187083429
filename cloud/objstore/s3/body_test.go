package s3

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"
)

// TestOnlyTheLatestAttemptReads: the transport may still read for a request
// that was answered too early, while the next one is on its way.
func TestOnlyTheLatestAttemptReads(t *testing.T) {
	ctx, dog := watch(t.Context(), time.Minute)
	defer dog.stop()
	_, b := send(ctx, dog, bytes.NewReader([]byte("0123456789")), 2, 6)
	first, err := b.begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(first, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	second, err := b.begin()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := first.Read(make([]byte, 3)); n != 0 || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("the first attempt read %d bytes, %v", n, err)
	}
	if got, err := io.ReadAll(second); string(got) != "234567" || err != nil {
		t.Errorf("the second attempt read %q, %v", got, err)
	}
	if err := b.finish(); err != nil {
		t.Errorf("finish = %v", err)
	}
	if n, err := second.Read(make([]byte, 3)); n != 0 || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("after the end %d bytes were read, %v", n, err)
	}
	if _, err := b.begin(); err == nil {
		t.Error("an attempt began after the end")
	}
}
