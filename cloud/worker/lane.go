package worker

import (
	"cmp"
	"errors"
	"time"

	"github.com/zipato/vms/cloud/worker/ingest"
	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// lane is one connection of a stream. It implements ingest.Lane.
type lane struct {
	s    *stream
	kind vms.Lane
	conn *ingest.Conn

	// Under stream.mu: what became durable and was not acknowledged here yet,
	// and, once the connection lost the lane, why: it answers whatever comes.
	news []vms.ChunkRange
	gone error
}

var _ ingest.Lane = (*lane)(nil)

// refuseFenced is returned to a connection that lost its lane to a newer one.
func refuseFenced() *ingest.Refusal {
	return ingest.Refuse(wire.ClassReassign, wire.CodeFenced, "a newer connection took this lane")
}

// refuseTmpfs ends a connection whose chunks could not be kept.
func refuseTmpfs() *ingest.Refusal {
	return ingest.Refuse(wire.ClassRetry, wire.CodeInternal, "the worker cannot keep its temporary files")
}

// Have implements ingest.Lane.
func (l *lane) Have() []vms.ChunkRange {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.s.have.Ranges()
}

// Init implements ingest.Lane.
func (l *lane) Init(i vms.Init) error {
	if err := segment.CheckInit(&i); err != nil {
		return ingest.Refuse(wire.ClassRetry, wire.CodeMalformed, "init %s:%d: %v", i.Epoch, i.ID, err)
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.gone != nil {
		return l.gone
	}
	if len(l.s.inits) > 64 {
		clear(l.s.inits) // the agent says an init again before it is needed, on each connection
	}
	l.s.inits[initKey{i.Epoch, i.ID}] = &i
	return nil
}

// Chunk implements ingest.Lane.
func (l *lane) Chunk(c vms.Chunk) error {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.gone != nil {
		return l.gone
	}
	init := s.inits[initKey{c.Epoch, c.Init}]
	if init == nil {
		return ingest.Refuse(wire.ClassRetry, wire.CodeNoInit, "chunk %s:%d needs init %d, which was not sent", c.Epoch, c.Seq, c.Init)
	}
	if c.Flags.Has(vms.FlagPreview) {
		if l.kind != vms.LaneLive {
			return ingest.Refuse(wire.ClassRetry, wire.CodeMalformed, "chunk %s:%d: only the live lane carries previews", c.Epoch, c.Seq)
		}
	} else {
		if taken, err := l.record(init, &c); err != nil || !taken {
			return err
		}
	}
	s.lanes[l.kind].endWhy = ""
	if l.kind == vms.LaneLive {
		s.live.Publish(init, &c)
	}
	return nil
}

// record puts a chunk where the agent's stamps say, and reports whether it was new.
func (l *lane) record(init *vms.Init, c *vms.Chunk) (taken bool, err error) {
	s := l.s
	if s.have.Has(c.Epoch, c.Seq) {
		return false, nil
	}
	st := s.lanes[l.kind]
	if r, ok := st.seg.Missing(c); ok && s.have.Covers(r) {
		if err := s.hole(st, r); err != nil { // nothing is missing: it came before
			return false, err
		}
	}
	switch v := st.seg.Next(c); v {
	case segment.Duplicate:
		return false, nil // it was declared missing, and comes too late for its place
	case segment.OutOfSequence:
		return false, ingest.Refuse(wire.ClassRetry, wire.CodeSequence, "chunk %s:%d does not follow %s, and no gap message explains it", c.Epoch, c.Seq, st.seg.Position())
	case segment.Undecodable:
		return false, ingest.RefuseChunk(c, wire.CodeSequence, "chunk %s:%d needs a keyframe that was never taken", c.Epoch, c.Seq)
	case segment.Begin:
		if err := s.finish(st); err != nil {
			return false, err
		}
		open, err := segment.Create(s.w.cfg.Dir, s.ch, *init, c)
		if err != nil {
			return false, l.writeFailed(st, c, err)
		}
		st.open, st.opened = open, time.Now()
	case segment.Append:
		if err := st.open.Append(c); err != nil {
			return false, l.writeFailed(st, c, err)
		}
	}
	s.have.Add(vms.ChunkRange{Epoch: c.Epoch, First: c.Seq, Last: c.Seq})
	s.w.used.Add(int64(len(c.Payload)))
	return true, nil
}

// writeFailed answers a chunk that could not be written. One that is no
// fragment is refused for ever. When tmpfs fails, the open recording is given
// up: the agent sends it again from its first chunk.
func (l *lane) writeFailed(st *laneState, c *vms.Chunk, err error) error {
	s := l.s
	refusal := ingest.RefuseChunk(c, wire.CodeMalformed, "chunk %s:%d: %v", c.Epoch, c.Seq, err)
	if !errors.Is(err, cmaf.ErrInvalid) {
		s.w.cfg.Log.Error("cannot write to the worker's directory; the agent will send again", "channel", s.ch, "err", err)
		refusal = refuseTmpfs()
	}
	s.discardOpen(st)
	st.seg = segment.Segmenter{}
	return refusal
}

// hole takes it that r will not come on this lane.
func (s *stream) hole(st *laneState, r vms.ChunkRange) error {
	if !st.seg.Hole(r) {
		return nil
	}
	return s.finish(st)
}

// Gap implements ingest.Lane.
func (l *lane) Gap(m *wire.GapMessage) error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.gone != nil {
		return l.gone
	}
	st, r := l.s.lanes[l.kind], m.Chunks
	if before, ok := st.seg.MissingBefore(r.Epoch, r.First); ok && l.s.have.Covers(before) {
		r.First = before.First
	}
	return l.s.hole(st, r)
}

// Pressure implements ingest.Lane. Making parts durable before a recording is
// complete is not done here yet: the agent keeps within its budget by itself.
func (l *lane) Pressure(m *wire.Pressure) error {
	l.s.w.cfg.Log.Warn("the agent's buffer is nearly full", "channel", l.s.ch, "held", m.Held, "budget", m.Budget)
	return nil
}

// End implements ingest.Lane.
func (l *lane) End(m *wire.End) error {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.gone != nil {
		return l.gone
	}
	st := s.lanes[l.kind]
	if e := st.seg.Epoch(); e != 0 && e != m.Epoch {
		return nil // said again, of an epoch before this one
	}
	st.endWhy = cmp.Or(m.Cause, "ended")
	if l.kind == vms.LaneLive {
		s.live.Offline(st.endWhy)
	}
	if st.seg.End() {
		return s.finish(st)
	}
	return nil
}

// Watched implements ingest.Lane.
func (l *lane) Watched() bool { return l.s.live.Watched() }

// Status implements ingest.Lane.
func (l *lane) Status() (durable []vms.ChunkRange, hold wire.Hold) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	durable, l.news = l.news, nil
	if len(s.uploads) > 0 && s.w.uploader.Failing() {
		hold = wire.HoldStore
	}
	for _, since := range s.uploads {
		if time.Since(since) >= slow {
			hold = wire.HoldStore
		}
	}
	return durable, hold
}

// Detach implements ingest.Lane.
func (l *lane) Detach(error) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.gone == nil {
		l.gone = refuseFenced()
	}
	if st := s.lanes[l.kind]; st.conn == l {
		st.conn = nil
		st.lost = time.Now()
	}
}
