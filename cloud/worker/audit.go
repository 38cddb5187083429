package worker

import (
	"context"
	"time"

	"github.com/zipato/vms/cloud/worker/segment"
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
	// away: its agent has lost it, and may have gone on with it elsewhere.
	away bool
	// shared: a whole recording has some of it, and other chunks, or will.
	shared bool
}

// suspect reports whether r has to be audited.
func (s *stream) suspect(r *recording) bool {
	return !r.audit.done && (r.gen == 0 || r.audit.away || s.generation() > r.gen && !s.seg.Seen(r.open))
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
	}
	s.ask(r)
	return nil
}

// ask begins to ask the NVR what is stored of r, if it is not being asked.
func (s *stream) ask(r *recording) {
	if r.audit.asking || time.Now().Before(r.audit.next) || s.w.work.Err() != nil {
		return
	}
	r.audit.asking = true
	c, found, away := r.open.Chunks, r.found, r.audit.away
	s.w.jobs.Go(func() {
		ctx, cancel := context.WithTimeout(s.w.work, restoreWait)
		defer cancel()
		wholes, err := s.w.cfg.NVR.Wholes(ctx, s.ch, c)
		var rows []vms.Recording
		if err == nil && (found || away) {
			rows, err = s.w.rows(ctx, s.ch, []vms.Epoch{c.Epoch})
		}
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
		r.asked = true
		if found || away {
			r.found = false
			r.partsOf(rows)
		}
		if found && !away {
			s.merge(c.Epoch, rows)
		}
		s.audited(r, c, wholes)
		_ = s.settle() // it was logged
	})
}

// partsOf notes how far r is in the store as parts.
func (r *recording) partsOf(rows []vms.Recording) {
	var set vms.ChunkSet
	for _, p := range rows {
		if p.Number == r.open.Recording {
			set.Add(p.Chunks)
		}
	}
	for _, x := range set.Ranges() {
		if x.Epoch == r.open.Chunks.Epoch && x.First <= r.open.Chunks.First {
			r.parted = max(r.parted, min(x.Last, r.open.Chunks.Last))
		}
	}
	if r.parted < r.open.Chunks.First {
		r.parted = 0
	}
}

// audited takes the NVR's answer about the chunks c of r.
func (s *stream) audited(r *recording, c vms.ChunkRange, wholes []vms.ChunkRange) {
	// What still grows is asked about again when it is complete.
	r.audit.done = s.seg.State(r.open) == segment.Complete
	var all vms.ChunkSet
	for _, x := range wholes {
		all.Add(x)
		r.audit.shared = r.audit.shared || !c.Contains(x)
	}
	if r.audit.away && len(wholes) == 0 {
		// Who has some of it has not closed that, and may have more. What it does
		// with it is the same: without the agent, it makes parts of it.
		r.audit.shared = true
	}
	r.audit.done = r.audit.done || r.audit.shared
	switch {
	case all.Covers(c) && r.open.Chunks == c:
		s.w.cfg.Log.Info("another worker has stored the recording", "channel", s.ch, "chunks", c.String())
		s.acknowledge(c)
		s.leave(r)
	case r.audit.shared:
		s.w.cfg.Log.Warn("another worker has, or may have, more of the recording: it stays in parts", "channel", s.ch, "chunks", c.String())
	}
}

// leave takes r from tmpfs, all of which is durable.
func (s *stream) leave(r *recording) {
	s.drop(r)
	s.seg.Close(r.open)
	s.w.dir.used.Add(-r.w.Bytes())
	if err := r.w.Discard(); err != nil {
		s.w.cfg.Log.Error("cannot discard a recording that is stored", "channel", s.ch, "err", err)
	}
}
