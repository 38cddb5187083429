package worker

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/zipato/vms/cloud/worker/segment"
)

// recover goes on with what another process has left in Dir. Recordings that it
// had complete are stored, the others are open again: agents learn from welcome
// that their chunks are here. Whether they are the only ones who have them is
// asked before anything is stored, see audit. Of sessions and generations nothing
// is known any more: agents come with new tickets.
func (w *Worker) recover() error {
	begun := time.Now()
	found, dropped, err := segment.Recover(w.cfg.Dir)
	if err != nil {
		return fmt.Errorf("worker directory: %w", err)
	}
	for _, err := range dropped {
		w.cfg.Log.Warn("cannot use all that is in the worker's directory; the agent has it still", "err", err)
	}
	// Where two files have the same chunks, the complete one, then the longer one
	// counts.
	complete := func(f segment.Found) int {
		if f.Complete {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(found, func(a, b segment.Found) int {
		return cmp.Or(cmp.Compare(complete(a), complete(b)), -cmp.Compare(a.Bytes(), b.Bytes()))
	})
	n := 0
	for _, f := range found {
		if w.stream(f.Channel()).adopt(f, begun) {
			n++
			w.dir.used.Add(f.Bytes())
		} else if err := f.Discard(); err != nil {
			return fmt.Errorf("worker directory: %w", err)
		}
	}
	if n > 0 {
		w.cfg.Log.Info("recordings found in the worker's directory", "recordings", n, "bytes", w.dir.used.Load(), "took", time.Since(begun))
	}
	return nil
}

// adopt makes a recording that was found one of the stream's, unless there is
// one that has some of its chunks.
func (s *stream) adopt(f segment.Found, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := f.Range()
	for o := range s.recs {
		if o.Chunks.Epoch == c.Epoch && o.Chunks.First <= c.Last && c.First <= o.Chunks.Last {
			s.w.cfg.Log.Info("chunks were found twice in the worker's directory", "channel", s.ch, "chunks", c.String(), "also", o.Chunks.String())
			return false
		}
	}
	o := s.seg.Found(c, f.Recording(), f.Init().ID, f.Complete)
	s.recs[o] = &recording{open: o, w: f.Writer, opened: now, grown: now, found: true}
	s.adopted = now
	return true
}

// untouched reports whether r was found and will be stored, or left, without
// anything that comes: nobody knows whether its agent will.
func (s *stream) untouched(r *recording) bool {
	return r.found && (!r.grown.After(s.adopted) || s.seg.State(r.open) == segment.Complete)
}
