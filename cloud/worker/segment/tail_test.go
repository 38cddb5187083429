package segment_test

import (
	"bytes"
	"testing"

	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/wire"
)

// TestTailIsWhatAViewerNeeds: the chunks since the newest keyframe, as they came.
func TestTailIsWhatAViewerNeeds(t *testing.T) {
	init, cs := clip(t, 1<<40+123) // a keyframe every five chunks
	stamped(cs)
	w, err := segment.Create(t.TempDir(), "ch_1", init, &cs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Discard(); err != nil {
			t.Error(err)
		}
	}()
	for i := range cs {
		if i > 0 {
			if err := w.Append(&cs[i]); err != nil {
				t.Fatal(err)
			}
		}
		from, size := i/5*5, int64(0)
		for _, c := range cs[from : i+1] {
			size += int64(len(c.Payload))
		}
		got, err := w.Tail(size)
		if err != nil || len(got) != i+1-from {
			t.Fatalf("behind chunk %d: %d chunks, %v, want %d", i+1, len(got), err, i+1-from)
		}
		for k := range got {
			if !bytes.Equal(wire.EncodeChunk(&got[k]), wire.EncodeChunk(&cs[from+k])) {
				t.Fatalf("chunk %d is not what it was", got[k].Seq)
			}
		}
		if got, err := w.Tail(size - 1); len(got) > 0 || err != nil {
			t.Fatalf("behind chunk %d: %d chunks, %v in less than they need", i+1, len(got), err)
		}
	}
	if w.Init().ID != init.ID {
		t.Errorf("init %d, want %d", w.Init().ID, init.ID)
	}
}
