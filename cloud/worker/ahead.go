package worker

import (
	"context"
	"time"

	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/vms"
)

// A recording is complete when the next one begins. Where that came to another
// worker, or to the process before this one, nothing that comes says so: one lane
// has brought it and goes on behind it, the other ends before it, and the agent
// has forgotten it. The NVR knows.
const (
	// aheadAfter is how long a recording does not grow before the NVR is asked, and
	// aheadMost how long nobody asks again at the most.
	aheadAfter = 5 * time.Second
	aheadMost  = time.Minute
	// maxAhead bounds the questions of a worker that are under way at once.
	maxAhead = 8
)

// nextChunk is the one behind a recording that does not grow.
type nextChunk struct {
	epoch vms.Epoch
	seq   uint64
}

// question is when the NVR is asked next about a chunk.
type question struct {
	at    time.Time
	pause time.Duration
}

// lookAhead asks the NVR what became of the chunks behind the open recordings
// that do not grow. s.mu is held.
func (s *stream) lookAhead(now time.Time) {
	var quiet map[nextChunk]question
	for _, o := range s.seg.Open() {
		since := now
		if r := s.recs[o]; r != nil {
			since = r.grown
			if now.Sub(since) < aheadAfter {
				continue // as most often
			}
		}
		if o.Busy || s.seg.State(o) != segment.Growing {
			continue
		}
		n := nextChunk{o.Chunks.Epoch, o.Chunks.Last + 1}
		q, ok := s.ahead[n]
		if !ok {
			q = question{at: since.Add(aheadAfter), pause: aheadAfter}
		}
		if !s.asking && !now.Before(q.at) && s.w.work.Err() == nil {
			s.asking = true
			s.w.jobs.Go(func() { s.askAhead(n) })
			q = question{at: now.Add(q.pause), pause: min(2*q.pause, aheadMost)}
		}
		if quiet == nil {
			quiet = make(map[nextChunk]question)
		}
		quiet[n] = q
	}
	s.ahead = quiet
}

// askAhead asks whether a whole recording has chunk n: the one that ends before it is
// complete then. Before it is stored as that, it is audited like one that was
// brought back: who has stored n may have stored some of it, too.
func (s *stream) askAhead(n nextChunk) {
	var wholes []vms.ChunkRange
	err := context.Canceled
	ctx, cancel := context.WithTimeout(s.w.work, restoreWait)
	defer cancel()
	select {
	case s.w.looking <- struct{}{}:
		wholes, err = s.w.cfg.NVR.Wholes(ctx, s.ch, vms.ChunkRange{Epoch: n.epoch, First: n.seq, Last: n.seq})
		<-s.w.looking
	case <-ctx.Done():
	}
	if err != nil && s.w.work.Err() == nil {
		s.w.cfg.Log.Debug("cannot ask the NVR what follows an open recording, will try again", "channel", s.ch, "epoch", n.epoch.String(), "seq", n.seq, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking = false
	for _, x := range wholes {
		if !x.Contains(vms.ChunkRange{Epoch: n.epoch, First: n.seq, Last: n.seq}) {
			continue
		}
		for o, r := range s.recs {
			if o.Chunks.Epoch == n.epoch && o.Chunks.Last+1 == n.seq {
				r.gen = 0
			}
		}
		s.seg.Durable(x)
		if !s.durable.Covers(x) {
			s.acknowledge(x)
		}
		_ = s.settle() // it was logged
	}
}
