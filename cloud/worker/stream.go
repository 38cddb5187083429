package worker

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/zipato/vms/cloud/worker/ingest"
	"github.com/zipato/vms/cloud/worker/live"
	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/cloud/worker/upload"
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

	mu        sync.Mutex
	have      vms.ChunkSet // taken over: on tmpfs, being uploaded, or durable
	durable   vms.ChunkSet
	inits     map[initKey]*vms.Init
	lanes     map[vms.Lane]*laneState
	uploads   map[*segment.Finished]time.Time // under way, since
	forgotten bool
}

type initKey struct {
	epoch vms.Epoch
	id    uint32
}

// laneState is one lane's recording in the making, across its connections.
type laneState struct {
	seg    segment.Segmenter
	open   *segment.Writer
	opened time.Time
	gen    vms.Generation
	conn   *lane // the connection that has it, or nil

	event   vms.StreamEvent // of the newest connection
	started bool            // the NVR was told so
	endWhy  string
	lost    time.Time // when the last connection went; zero while there is one
}

// errForgotten: the stream was dropped; there may be another of the channel.
var errForgotten = errors.New("the stream was forgotten")

// slow is when an upload counts as held up by the store even if it has not failed.
const slow = 15 * time.Second

func newStream(w *Worker, ch vms.ChannelID) *stream {
	return &stream{
		w: w, ch: ch, live: w.live.Stream(ch),
		inits: make(map[initKey]*vms.Init), lanes: make(map[vms.Lane]*laneState),
		uploads: make(map[*segment.Finished]time.Time),
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
	if s.forgotten {
		return nil, nil, errForgotten
	}
	st := s.lanes[hello.Lane]
	if st == nil {
		st = &laneState{}
		s.lanes[hello.Lane] = st
	}
	if t.Generation < st.gen {
		return nil, nil, ingest.Refuse(wire.ClassReassign, wire.CodeFenced, "a ticket of a newer generation was used")
	}
	st.gen = t.Generation
	if st.conn != nil {
		st.conn.gone = refuseFenced()
		old = st.conn.conn
	}
	l = &lane{s: s, kind: hello.Lane, conn: c}
	st.conn = l
	s.forget(hello.Epochs)
	l.news = s.durable.Ranges()
	st.lost, st.endWhy = time.Time{}, ""
	news := !st.started || st.event.SID != t.SID || st.event.Generation != t.Generation
	st.event = vms.StreamEvent{
		Channel: s.ch, SID: t.SID, Hub: t.Hub, Generation: t.Generation,
		Worker: s.w.cfg.ID, Instance: s.w.instance, Lane: hello.Lane, At: time.Now().UTC(),
	}
	if n := len(hello.Epochs); n > 0 {
		st.event.Epoch = hello.Epochs[n-1]
	}
	st.started = true
	if e := st.event; news {
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
			_ = s.finish(st) // it was logged, and nobody can send it again
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

// finish closes the lane's open recording and submits it. When tmpfs fails,
// the refusal that it returns makes the agent come back and send it again.
func (s *stream) finish(st *laneState) error {
	if st.open == nil {
		return nil
	}
	open := st.open
	st.open = nil
	f, err := open.Finish()
	if err != nil {
		s.w.cfg.Log.Error("cannot finish a recording; the agent will send it again", "channel", s.ch, "chunks", open.Range().String(), "err", err)
		s.have.Remove(open.Range())
		s.w.used.Add(-open.Bytes())
		st.seg = segment.Segmenter{}
		return refuseTmpfs()
	}
	s.uploads[f] = time.Now()
	s.w.uploader.Submit(s.w.uploadCtx, upload.Job{
		Recording: f.Recording, Head: f.Head, Path: f.Path,
		Done: func(r vms.Recording) { s.uploaded(f, open.Bytes(), r) },
		Lost: func(err error) { s.lost(f, open.Bytes(), err) },
	})
	return nil
}

// uploaded makes chunks durable, and tells the agent and the NVR.
func (s *stream) uploaded(f *segment.Finished, bytes int64, r vms.Recording) {
	s.w.used.Add(-bytes)
	s.w.cfg.Log.Info("recording stored", "channel", s.ch, "key", r.Key, "chunks", r.Chunks.String(), "bytes", r.Bytes)
	s.w.notices.send(s.ch, func(ctx context.Context) error { return s.w.cfg.NVR.RecordingUploaded(ctx, r) })
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.uploads, f)
	s.durable.Add(f.Chunks)
	for _, st := range s.lanes {
		if st.conn != nil {
			st.conn.news = append(st.conn.news, f.Chunks)
			st.conn.conn.Wake()
		}
	}
}

// lost takes back what was said of a recording whose file is not there any
// more, or not whole: the agent has it and must send it again.
func (s *stream) lost(f *segment.Finished, bytes int64, err error) {
	s.w.used.Add(-bytes)
	s.w.cfg.Log.Error("a finished recording was lost before its upload; the agent will send it again", "channel", s.ch, "chunks", f.Chunks.String(), "err", err)
	s.mu.Lock()
	delete(s.uploads, f)
	s.have.Remove(f.Chunks)
	s.mu.Unlock()
	s.startOver(refuseTmpfs())
}

// startOver gives up the open recordings and sends the connections away: when
// they come back, welcome says what has to be sent again.
func (s *stream) startOver(r *ingest.Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.lanes {
		s.discardOpen(st)
		st.seg = segment.Segmenter{}
		if st.conn != nil && st.conn.gone == nil {
			st.conn.gone = r
			st.conn.conn.Close(r)
		}
	}
}

// openSince counts the open recordings, and says when the youngest was begun.
func (s *stream) openSince() (n int, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.lanes {
		if st.open != nil {
			n++
			if st.opened.After(since) {
				since = st.opened
			}
		}
	}
	return n, since
}

// idle ends lanes that have had no connection for grace, and reports whether
// all about the stream can be forgotten.
func (s *stream) idle(now time.Time, grace, forget time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	silent := true
	for _, st := range s.lanes {
		if st.lost.IsZero() {
			silent = false
			continue
		}
		gone := now.Sub(st.lost)
		if gone >= grace || st.endWhy != "" {
			s.ended(st, cmp.Or(st.endWhy, "connection_lost"))
		}
		silent = silent && gone >= forget
	}
	if !silent || len(s.uploads) > 0 {
		return false
	}
	// Stolen, burnt or without power for long: what came of the recording is as
	// much as there will be. Should the hub have survived, the whole recording
	// takes this one's place.
	for _, st := range s.lanes {
		st.seg.End()
		_ = s.finish(st) // it was logged
	}
	if len(s.uploads) > 0 {
		return false
	}
	s.forgotten = true
	return true
}

// finishAbandoned stores what was left by hubs that have been silent for grace:
// this worker goes away, and nobody else has it.
func (s *stream) finishAbandoned(now time.Time, grace time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.lanes {
		if !st.lost.IsZero() && now.Sub(st.lost) >= grace {
			st.seg.End()
			_ = s.finish(st) // it was logged
		}
	}
}

// revoke ends the lanes of revoked sessions.
func (s *stream) revoke(sids []vms.SID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.lanes {
		if !slices.Contains(sids, st.event.SID) {
			continue
		}
		st.endWhy = wire.CodeRevoked // it will not come back: no grace
		st.seg.End()
		_ = s.finish(st) // it was logged
		if st.conn != nil && st.conn.gone == nil {
			r := ingest.Refuse(wire.ClassStop, wire.CodeRevoked, "the stream's session was revoked")
			st.conn.gone = r
			st.conn.conn.Close(r)
		}
	}
}

// ended tells the NVR and the viewers that a lane is down, once.
func (s *stream) ended(st *laneState, cause string) {
	if !st.started {
		return
	}
	st.started = false
	e := st.event
	e.At, e.Cause = st.lost.UTC(), cause
	s.w.notices.send(s.ch, func(ctx context.Context) error { return s.w.cfg.NVR.StreamEnded(ctx, e) })
	if e.Lane == vms.LaneLive {
		s.live.Offline(cause)
	}
}

// drained ends every lane because the worker goes away.
func (s *stream) drained() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.lanes {
		s.ended(st, cmp.Or(st.endWhy, wire.CodeDraining))
	}
}

// discard drops open recordings; the agents hold them.
func (s *stream) discard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.lanes {
		s.discardOpen(st)
	}
}

func (s *stream) discardOpen(st *laneState) {
	if st.open == nil {
		return
	}
	s.have.Remove(st.open.Range())
	s.w.used.Add(-st.open.Bytes())
	if err := st.open.Discard(); err != nil {
		s.w.cfg.Log.Error("cannot discard an open recording", "channel", s.ch, "err", err)
	}
	st.open = nil
}
