package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/zipato/vms/cloud/worker/ingest"
	"github.com/zipato/vms/cloud/worker/live"
	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/cloud/worker/upload"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// stream is what this worker instance knows of one channel. It outlives
// connections: a lane that comes back goes on where it stopped.
type stream struct {
	w    *Worker
	ch   vms.ChannelID
	live *live.Stream

	mu      sync.Mutex
	have    vms.ChunkSet // taken over: on tmpfs, being uploaded, or durable
	durable vms.ChunkSet
	inits   map[initKey]*vms.Init
	lanes   map[vms.Lane]*laneState
	event   vms.StreamEvent // of the newest connection
	started bool            // the NVR was told so
	endWhy  string
	lost    time.Time // when the last connection went; zero while there is one
}

type initKey struct {
	epoch vms.Epoch
	id    uint32
}

// laneState is one lane's recording in the making, across its connections.
type laneState struct {
	seg  segment.Segmenter
	open *segment.Writer
	gen  vms.Generation
	conn *lane // the connection that has it, or nil
}

// lane is one connection of a stream. It implements ingest.Lane.
type lane struct {
	s     *stream
	kind  vms.Lane
	conn  *ingest.Conn
	hello *wire.Hello

	// Under stream.mu: what became durable and was not acknowledged here yet.
	news []vms.ChunkRange
	gone bool // fenced or detached: whatever it brings is refused
}

func newStream(w *Worker, ch vms.ChannelID) *stream {
	return &stream{
		w: w, ch: ch, live: w.live.Stream(ch),
		inits: make(map[initKey]*vms.Init), lanes: make(map[vms.Lane]*laneState),
	}
}

// newest is the highest generation seen.
func (s *stream) newest() (g vms.Generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.lanes {
		g = max(g, st.gen)
	}
	return g
}

// attach gives a lane to a connection, and returns the one that had it.
func (s *stream) attach(t token.Push, hello *wire.Hello, c *ingest.Conn) (l *lane, old *ingest.Conn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.lanes[hello.Lane]
	if st == nil {
		st = &laneState{}
		s.lanes[hello.Lane] = st
	}
	if t.Generation < st.gen {
		return nil, nil, ingest.Refuse(wire.ClassRetry, wire.CodeFenced, "a ticket of a newer generation was used")
	}
	st.gen = t.Generation
	if st.conn != nil {
		st.conn.gone = true
		old = st.conn.conn
	}
	l = &lane{s: s, kind: hello.Lane, conn: c, hello: hello}
	st.conn = l
	s.forget(hello.Epochs)
	l.news = s.durable.Ranges()
	s.lost, s.endWhy = time.Time{}, ""
	news := !s.started || s.event.SID != t.SID
	s.event = vms.StreamEvent{
		Channel: s.ch, SID: t.SID, Hub: t.Hub, Generation: t.Generation,
		Worker: s.w.cfg.ID, Instance: s.w.instance, Lane: hello.Lane, At: time.Now().UTC(),
	}
	if n := len(hello.Epochs); n > 0 {
		s.event.Epoch = hello.Epochs[n-1]
	}
	s.started = true
	if e := s.event; news {
		s.w.notices.send(s.ch, func(ctx context.Context) error { return s.w.cfg.NVR.StreamStarted(ctx, e) })
	}
	return l, old, nil
}

// forget drops what is known of epochs that the agent does not hold any more.
// A recording of such an epoch can never be continued: it is as complete as it gets.
func (s *stream) forget(held []vms.Epoch) {
	keep := make(map[vms.Epoch]bool, len(held))
	for _, e := range held {
		keep[e] = true
	}
	for _, st := range s.lanes {
		if st.open != nil && !keep[st.open.Range().Epoch] {
			st.seg.End()
			s.finish(st)
		}
	}
	for _, r := range s.have.Ranges() {
		if !keep[r.Epoch] {
			s.have.Forget(r.Epoch)
			s.durable.Forget(r.Epoch)
		}
	}
	for k := range s.inits {
		if !keep[k.epoch] {
			delete(s.inits, k)
		}
	}
}

// finish closes the lane's open recording and submits it.
func (s *stream) finish(st *laneState) {
	if st.open == nil {
		return
	}
	open := st.open
	st.open = nil
	f, err := open.Finish()
	if err != nil {
		// tmpfs failed us: the agent has the chunks and must send them again.
		s.w.cfg.Log.Error("cannot finish a recording; the agent will send it again", "channel", s.ch, "err", err)
		s.have.Remove(open.Range())
		s.w.used.Add(-open.Bytes())
		return
	}
	s.w.uploader.Submit(s.w.uploadCtx, upload.Job{
		Recording: f.Recording, Head: f.Head, Path: f.Path,
		Done: func(r vms.Recording) { s.uploaded(f.Chunks, open.Bytes(), r) },
	})
}

// uploaded makes chunks durable, and tells the agent and the NVR.
func (s *stream) uploaded(chunks vms.ChunkRange, bytes int64, r vms.Recording) {
	s.w.used.Add(-bytes)
	s.w.cfg.Log.Info("recording stored", "channel", s.ch, "key", r.Key, "chunks", r.Chunks.String(), "bytes", r.Bytes)
	s.w.notices.send(s.ch, func(ctx context.Context) error { return s.w.cfg.NVR.RecordingUploaded(ctx, r) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.durable.Add(chunks)
	for _, st := range s.lanes {
		if st.conn != nil {
			st.conn.news = append(st.conn.news, chunks)
			st.conn.conn.Wake()
		}
	}
}

// idle ends a stream that has had no connection for grace, and reports whether
// all about it can be forgotten.
func (s *stream) idle(now time.Time, grace, forget time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost.IsZero() {
		return false
	}
	gone := now.Sub(s.lost)
	if s.started && (gone >= grace || s.endWhy != "") {
		s.started = false
		e := s.event
		e.At, e.Cause = s.lost.UTC(), s.endWhy
		if e.Cause == "" {
			e.Cause = "connection_lost"
		}
		s.w.notices.send(s.ch, func(ctx context.Context) error { return s.w.cfg.NVR.StreamEnded(ctx, e) })
		s.live.Offline(e.Cause)
	}
	if gone < forget {
		return false
	}
	s.discardOpen()
	return true
}

// discard drops open recordings; the agents hold them.
func (s *stream) discard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.discardOpen()
}

func (s *stream) discardOpen() {
	for _, st := range s.lanes {
		if st.open == nil {
			continue
		}
		s.w.used.Add(-st.open.Bytes())
		if err := st.open.Discard(); err != nil {
			s.w.cfg.Log.Error("cannot discard an open recording", "channel", s.ch, "err", err)
		}
		st.open = nil
	}
}

// errGone is returned to a connection that was fenced.
func errGone() error {
	return ingest.Refuse(wire.ClassRetry, wire.CodeFenced, "a newer connection took this lane")
}

// Have implements ingest.Lane.
func (l *lane) Have() []vms.ChunkRange {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.s.have.Ranges()
}

// Init implements ingest.Lane.
func (l *lane) Init(i vms.Init) error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
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
	if l.gone {
		return errGone()
	}
	init := s.inits[initKey{c.Epoch, c.Init}]
	if init == nil {
		return ingest.Refuse(wire.ClassRetry, wire.CodeNoInit, "chunk %s:%d needs init %d, which was not sent", c.Epoch, c.Seq, c.Init)
	}
	if !c.Flags.Has(vms.FlagPreview) {
		if taken, err := l.record(init, &c); err != nil || !taken {
			return err
		}
	}
	s.endWhy = ""
	if l.kind == vms.LaneLive {
		s.live.Publish(init, &c)
	}
	return nil
}

// record puts a chunk where the agent's stamps say, and reports whether it was new.
func (l *lane) record(init *vms.Init, c *vms.Chunk) (taken bool, err error) {
	s := l.s
	st := s.lanes[l.kind]
	switch v := st.seg.Next(c); v {
	case segment.Duplicate:
		return false, nil
	case segment.OutOfSequence:
		return false, ingest.Refuse(wire.ClassRetry, wire.CodeSequence, "chunk %s:%d does not follow %s, and no gap message explains it", c.Epoch, c.Seq, st.seg.Position())
	case segment.Undecodable:
		return false, ingest.RefuseChunk(c, wire.CodeSequence, "chunk %s:%d needs a keyframe that was never taken", c.Epoch, c.Seq)
	case segment.Begin:
		s.finish(st)
		open, err := segment.Create(s.w.cfg.Dir, vms.ChannelID(safeName(s.ch)), *init, c)
		if err != nil {
			return false, l.writeFailed(st, c, err)
		}
		st.open = open
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
		refusal = ingest.Refuse(wire.ClassRetry, wire.CodeInternal, "the worker cannot write its temporary files")
	}
	if st.open != nil {
		s.have.Remove(st.open.Range())
		s.w.used.Add(-st.open.Bytes())
		if err := st.open.Discard(); err != nil {
			s.w.cfg.Log.Error("cannot discard an open recording", "channel", s.ch, "err", err)
		}
		st.open = nil
	}
	st.seg = segment.Segmenter{}
	return refusal
}

// Gap implements ingest.Lane.
func (l *lane) Gap(m *wire.GapMessage) error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.gone {
		return errGone()
	}
	st := l.s.lanes[l.kind]
	if st.seg.Hole(m.Chunks) {
		l.s.finish(st)
	}
	return nil
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
	if l.gone {
		return errGone()
	}
	st := s.lanes[l.kind]
	if st.seg.End() {
		s.finish(st)
	}
	s.endWhy = m.Cause
	if l.kind == vms.LaneLive {
		s.live.Offline(m.Cause)
	}
	return nil
}

// Watched implements ingest.Lane.
func (l *lane) Watched() bool { return l.s.live.Watched() }

// Status implements ingest.Lane.
func (l *lane) Status() (durable []vms.ChunkRange, hold wire.Hold) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	durable, l.news = l.news, nil
	if l.s.w.uploader.Failing() {
		hold = wire.HoldStore
	}
	return durable, hold
}

// Detach implements ingest.Lane.
func (l *lane) Detach(error) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	l.gone = true
	if st := s.lanes[l.kind]; st.conn == l {
		st.conn = nil
	}
	for _, st := range s.lanes {
		if st.conn != nil {
			return
		}
	}
	s.lost = time.Now()
}
