package worker

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/zipato/vms/cloud/worker/ingest"
	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// lane is one connection of a stream. It implements ingest.Lane.
type lane struct {
	s      *stream
	kind   vms.Lane
	conn   *ingest.Conn
	sid    vms.SID
	epochs []vms.Epoch // of the hello

	// Under stream.mu: what became durable and was not acknowledged here yet;
	// the epochs that came last; and, once the connection lost the lane, why: it
	// answers whatever comes.
	news []vms.ChunkRange
	used []vms.Epoch
	gone error
}

// maxUsed bounds the epochs between which a lane goes to and fro.
const maxUsed = 8

// use notes that l brings something of e.
func (l *lane) use(e vms.Epoch) {
	if n := len(l.used); n > 0 && l.used[n-1] == e {
		return
	}
	l.used = append(slices.DeleteFunc(l.used, func(x vms.Epoch) bool { return x == e }), e)
	l.used = l.used[max(0, len(l.used)-maxUsed):]
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

// refuseParts ends a connection whose recording cannot be continued now.
func refuseParts() *ingest.Refusal {
	r := ingest.Refuse(wire.ClassRetry, wire.CodeInternal, "the worker cannot get at the beginning of the recording now")
	r.RetryAfterMS = 2000
	return r
}

// Have implements ingest.Lane.
func (l *lane) Have() []vms.ChunkRange {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return slices.DeleteFunc(l.s.seg.Have(), func(r vms.ChunkRange) bool { return !slices.Contains(l.epochs, r.Epoch) })
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
	l.use(i.Epoch)
	return nil
}

// Chunk implements ingest.Lane.
func (l *lane) Chunk(c *vms.Chunk) (kept bool, err error) {
	f, kept, err := l.take(c, false)
	if f == nil {
		return kept, err // as almost always
	}
	late := time.NewTimer(restoreWait)
	defer late.Stop()
	for asked := false; f != nil; f, kept, err = l.take(c, asked) {
		select {
		case <-f.done:
		case <-late.C:
			return false, refuseParts() // it goes on, and will have been done when the agent is back
		}
		if f.epoch == c.Epoch && f.seq == c.Seq-1 {
			if f.err != nil {
				return false, refuseParts()
			}
			asked = true
		}
	}
	return kept, err
}

// take records a chunk and shows it, and reports whether a viewer keeps it. When
// it cannot be placed before parts were looked for, the fetch to wait for is
// returned.
func (l *lane) take(c *vms.Chunk, asked bool) (f *fetch, kept bool, err error) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.gone != nil {
		return nil, false, l.gone
	}
	init := s.inits[initKey{c.Epoch, c.Init}]
	if init == nil {
		return nil, false, ingest.Refuse(wire.ClassRetry, wire.CodeNoInit, "chunk %s:%d needs init %d, which was not sent", c.Epoch, c.Seq, c.Init)
	}
	l.use(c.Epoch)
	st := s.lanes[l.kind]
	preview := c.Flags.Has(vms.FlagPreview)
	if preview {
		if l.kind != vms.LaneLive {
			return nil, false, ingest.Refuse(wire.ClassRetry, wire.CodeMalformed, "chunk %s:%d: only the live lane carries previews", c.Epoch, c.Seq)
		}
		st.pos.Preview()
	} else {
		f, taken, err := l.record(st, init, c, asked)
		if f != nil || err != nil || !taken {
			return f, false, err
		}
	}
	st.endWhy = ""
	if l.kind != vms.LaneLive {
		return nil, false, nil
	}
	s.w.mirror.Publish(s.ch, init, c)
	return nil, s.live.Publish(init, c, !preview), nil
}

// record puts a chunk where the agent's stamps say, and reports whether it was new.
func (l *lane) record(st *laneState, init *vms.Init, c *vms.Chunk, asked bool) (f *fetch, taken bool, err error) {
	s := l.s
	v, o := s.seg.Place(&st.pos, c, asked)
	r := s.recs[o]
	switch v {
	case segment.Duplicate:
		s.seg.Take(&st.pos, c, v, nil)
		return nil, false, nil
	case segment.OutOfSequence:
		return nil, false, ingest.Refuse(wire.ClassRetry, wire.CodeSequence, "chunk %s:%d does not follow %s, and no gap message explains it", c.Epoch, c.Seq, st.pos.Position())
	case segment.Undecodable:
		return nil, false, ingest.RefuseChunk(c, wire.CodeSequence, "chunk %s:%d needs a keyframe that was never taken", c.Epoch, c.Seq)
	case segment.Orphan:
		return s.fetch(c.Epoch, c.Seq-1), false, nil
	case segment.Begin, segment.Rest:
		if len(s.recs) >= segment.MaxOpen {
			s.park(0)
		}
		if len(s.recs) >= segment.MaxOpen {
			return nil, false, refuseOpen()
		}
		w, err := segment.Create(s.w.cfg.Dir, s.ch, *init, c)
		if err != nil {
			return nil, false, l.writeFailed(c, err)
		}
		if v == segment.Rest {
			s.w.cfg.Log.Warn("a recording begins in its middle: what comes before is stored and cannot be continued",
				"channel", s.ch, "epoch", c.Epoch.String(), "seq", c.Seq, "recording", c.Recording, "keyframe", c.Flags.Has(vms.FlagKey))
		}
		r = &recording{w: w, opened: time.Now(), gen: s.generation()}
	case segment.Append:
		if err := r.w.Append(c); err != nil {
			return nil, false, l.writeFailed(c, err)
		}
	}
	r.open, r.sid, r.grown = s.seg.Take(&st.pos, c, v, o), l.sid, time.Now()
	r.came(c.Seq, r.grown)
	s.recs[r.open] = r
	s.w.dir.used.Add(int64(len(c.Payload)))
	return nil, true, s.settle()
}

// refuseOpen ends a connection that leaves more recordings open than it may;
// they are stored as parts in a minute.
func refuseOpen() *ingest.Refusal {
	r := ingest.Refuse(wire.ClassRetry, wire.CodeInternal, "%d recordings of the stream are not complete", segment.MaxOpen)
	r.RetryAfterMS = 10_000
	return r
}

// writeFailed answers a chunk that could not be written. One that is no fragment
// is refused for ever, and its GOP with it. When tmpfs fails, the agent has to
// come back with it. Either way nothing was written, and what is open stays.
func (l *lane) writeFailed(c *vms.Chunk, err error) error {
	s := l.s
	if errors.Is(err, cmaf.ErrInvalid) {
		return ingest.RefuseChunk(c, wire.CodeMalformed, "chunk %s:%d: %v", c.Epoch, c.Seq, err)
	}
	s.w.cfg.Log.Error("cannot write to the worker's directory; the agent will send again", "channel", s.ch, "err", err)
	s.w.dir.writeFailed(err)
	r := refuseTmpfs()
	r.RetryAfterMS = 2000
	return r
}

// Gap implements ingest.Lane.
func (l *lane) Gap(m *wire.GapMessage) error {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.gone != nil {
		return l.gone
	}
	s.seg.Hole(&s.lanes[l.kind].pos, m.Chunks, m.Cause == wire.CauseDurable)
	return s.settle()
}

// Pressure implements ingest.Lane.
func (l *lane) Pressure(m *wire.Pressure) error {
	l.s.w.cfg.Log.Info("the agent's buffer is nearly full", "channel", l.s.ch, "held", m.Held, "budget", m.Budget)
	l.s.pressure()
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
	s.seg.End(m.Epoch, m.Seq)
	st := s.lanes[l.kind]
	if e := st.pos.Epoch(); e == 0 || e == m.Epoch && !st.pos.Past(m.Epoch, m.Seq) { // not said again, of a pause before
		st.endWhy = cmp.Or(m.Cause, "ended")
		if l.kind == vms.LaneLive {
			s.offline(st.endWhy)
		}
	}
	return s.settle()
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
	for u := range s.uploads {
		if time.Since(u.since) >= slow {
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
