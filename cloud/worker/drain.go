package worker

import (
	"context"
	"time"

	"github.com/zipato/vms/cloud/worker/segment"
)

// drainLook is how often Drain looks whether all is done.
const drainLook = 100 * time.Millisecond

// Drain takes no new streams from now on, and returns when no lane is left, what
// they brought is in the store and the NVR knows of it; or when ctx or Run ends.
// Who has the streams moved is the NVR: Load says that the worker drains. What an
// agent that was moved brings to its next worker once more is not waited for, and
// what one that is gone has left is stored as parts. It may be called again, and
// side by side.
func (w *Worker) Drain(ctx context.Context) {
	if !w.draining.Swap(true) {
		w.cfg.Log.Info("draining: no new streams are taken", "streams", w.load.running.Load(), "lanes", w.ingest.Conns())
	}
	t := time.NewTicker(drainLook)
	defer t.Stop()
	for !w.rests() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		case <-w.work.Done():
			return
		}
	}
}

// rests reports whether nothing is left to do for any stream.
func (w *Worker) rests() bool {
	if w.ingest.Conns() > 0 || w.load.running.Load() > 0 {
		return false
	}
	for _, s := range w.all() {
		if !s.rests() {
			return false
		}
	}
	return w.uploader.Waiting() == 0 && w.notices.told()
}

// rests reports whether nothing of the stream waits to be stored.
func (s *stream) rests() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for o, r := range s.recs {
		if !r.stored() && !r.unwanted && (!s.elsewhere || s.seg.State(o) == segment.Complete) {
			return false
		}
	}
	return len(s.uploads) == 0
}
