package worker

import (
	"context"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// audit is what is known of a complete recording before it is stored as such.
//
// While its hub was elsewhere, another worker may have stored a recording that
// has some of the same chunks: the hub had lost those before them, or behind
// them. Two recordings that overlap must not come of it. What is here is stored
// as a part then, and a janitor makes a recording of what the other one lacks.
type audit struct {
	asking bool
	next   time.Time // not asked again before
	done   bool
	shared bool // a whole recording has some of it, and other chunks
}

// suspect reports whether r has to be audited.
func (s *stream) suspect(r *recording) bool {
	return !r.audit.done && s.generation() > r.gen && (r.gen == 0 || !s.seg.Seen(r.open))
}

// complete stores r, of which nothing will follow, once that is known to be right.
func (s *stream) complete(r *recording) error {
	switch {
	case r.audit.shared && r.stored():
		s.leave(r)
		return nil
	case r.audit.shared && !r.unwanted:
		return nil // it becomes a part, see idle
	case !s.suspect(r):
		return s.finish(r)
	case r.audit.asking || time.Now().Before(r.audit.next) || s.w.work.Err() != nil:
		return nil
	}
	r.audit.asking = true
	c := r.open.Chunks
	s.w.jobs.Go(func() {
		ctx, cancel := context.WithTimeout(s.w.work, restoreWait)
		defer cancel()
		wholes, err := s.w.cfg.NVR.Wholes(ctx, s.ch, c)
		s.mu.Lock()
		defer s.mu.Unlock()
		r.audit.asking = false
		if s.recs[r.open] != r {
			return
		}
		if err != nil {
			r.audit.next = time.Now().Add(lookPause)
			if s.w.work.Err() == nil {
				s.w.cfg.Log.Warn("cannot ask the NVR whether a recording is stored already, will try again", "channel", s.ch, "chunks", c.String(), "err", err)
			}
			return
		}
		s.audited(r, c, wholes)
		_ = s.settle() // it was logged
	})
	return nil
}

// audited takes the NVR's answer about the chunks c of r.
func (s *stream) audited(r *recording, c vms.ChunkRange, wholes []vms.ChunkRange) {
	r.audit.done = true
	var all vms.ChunkSet
	for _, x := range wholes {
		all.Add(x)
		r.audit.shared = r.audit.shared || !c.Contains(x)
	}
	switch {
	case all.Covers(c) && r.open.Chunks == c:
		s.w.cfg.Log.Info("another worker has stored the recording", "channel", s.ch, "chunks", c.String())
		s.acknowledge(c)
		s.leave(r)
	case r.audit.shared:
		s.w.cfg.Log.Warn("another worker has stored some of the recording: it stays in parts", "channel", s.ch, "chunks", c.String())
	}
}

// leave takes r from tmpfs, all of which is durable.
func (s *stream) leave(r *recording) {
	s.drop(r)
	s.seg.Close(r.open)
	s.w.used.Add(-r.w.Bytes())
	if err := r.w.Discard(); err != nil {
		s.w.cfg.Log.Error("cannot discard a recording that is stored", "channel", s.ch, "err", err)
	}
}
