package worker

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/zipato/vms/cloud/worker/ingest"
	"github.com/zipato/vms/cloud/worker/live"
	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// stream is what this worker instance knows of one channel. It outlives
// connections: a lane that comes back goes on where it stopped. Recordings
// belong to it, not to a lane.
type stream struct {
	w    *Worker
	ch   vms.ChannelID
	live *live.Stream

	mu        sync.Mutex
	seg       segment.Segmenter
	durable   vms.ChunkSet
	recs      map[*segment.Open]*recording // on tmpfs
	inits     map[initKey]*vms.Init
	lanes     map[vms.Lane]*laneState
	uploads   map[*sending]bool // not durable yet, or not registered
	surveyed  vms.Generation    // that the NVR was asked for parts at
	aside     map[string]bool   // keys of parts that nothing can be made of here
	fetching  *fetch
	fetchNext time.Time              // when parts are looked for again by ourselves
	ahead     map[nextChunk]question // what the NVR is asked about
	asking    bool                   // it is being asked
	adopted   time.Time              // when recordings of it were found on tmpfs
	elsewhere bool                   // the NVR says that the live lane is at another worker
	forgotten bool
}

type initKey struct {
	epoch vms.Epoch
	id    uint32
}

// recording is an open recording that is on tmpfs.
type recording struct {
	open   *segment.Open
	w      *segment.Writer
	sid    vms.SID   // of the session that brought its last chunk
	opened time.Time // here
	grown  time.Time
	marks  []mark // when its chunks came

	parted uint64    // the last chunk that registered parts hold, 0: none does
	part   *sending  // the part under way
	partAt time.Time // when the last part was begun
	parts  int
	// pressed: the agent runs out of room, and it was too early for a part.
	pressed bool
	// unwanted: the NVR does not take parts of it.
	unwanted bool

	// gen is the newest generation when it was begun here, 0 when it was brought
	// back: another worker may have closed it since, or begun with a rest of it.
	gen vms.Generation
	// found: another process began it, and the NVR was not asked yet what of it is
	// stored.
	found bool
	// asked: the NVR was, about what of it is stored.
	asked bool
	audit audit
}

// sending is an object on its way into the store.
type sending struct {
	since  time.Time
	oldest time.Time          // when its oldest chunk came that is in no part; zero: there is none
	cancel context.CancelFunc // of a part
}

// laneState is one lane across its connections.
type laneState struct {
	pos  segment.Lane
	gen  vms.Generation
	conn *lane // the connection that has it, or nil

	event   vms.StreamEvent // of the newest connection
	started bool            // the NVR was told so
	endWhy  string
	lost    time.Time // when the last connection went; zero while there is one
}

// errForgotten: the stream was dropped; there may be another of the channel.
var errForgotten = errors.New("the stream was forgotten")

const (
	// slow is when an upload counts as held up by the store even if it has not failed.
	slow = 15 * time.Second
	// stalled is when an open recording that does not grow is stored as parts:
	// the lane that will continue it may be hours behind.
	stalled = time.Minute
)

func newStream(w *Worker, ch vms.ChannelID) *stream {
	return &stream{
		w: w, ch: ch, live: w.live.Stream(ch),
		recs:  make(map[*segment.Open]*recording),
		inits: make(map[initKey]*vms.Init), lanes: make(map[vms.Lane]*laneState),
		uploads: make(map[*sending]bool), aside: make(map[string]bool),
	}
}

// newest is the highest generation seen.
func (s *stream) newest() vms.Generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generation()
}

func (s *stream) generation() (g vms.Generation) {
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
		st = &laneState{pos: segment.Lane{Backfill: hello.Lane == vms.LaneBackfill}}
		s.lanes[hello.Lane] = st
	}
	if t.Generation < st.gen {
		return nil, nil, ingest.Refuse(wire.ClassReassign, wire.CodeFenced, "a ticket of a newer generation was used")
	}
	before := s.generation()
	st.gen = t.Generation
	if st.conn != nil {
		st.conn.gone = refuseFenced()
		old = st.conn.conn
	}
	l = &lane{s: s, kind: hello.Lane, conn: c, sid: t.SID, epochs: hello.Epochs}
	st.conn = l
	st.pos.Connected()
	s.forget(s.held(hello), t.Generation > before+1)
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
	if !s.runs() {
		s.w.load.running.Add(1)
	}
	st.started = true
	if e := st.event; news {
		var done func(error)
		if e.Lane == vms.LaneLive { // else it may be about to leave, as we were told
			s.back()
			done = func(error) { s.arrived(e.Generation) }
		}
		s.w.notices.started(s.w.cfg.NVR, e, done)
	}
	return l, old, nil
}

// arrived notes that the NVR knows that the live lane is here: what it said before
// of where that is was said of another time.
func (s *stream) arrived(g vms.Generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.lanes[vms.LaneLive]; st.gen == g && st.conn != nil {
		s.back()
	}
}

// runs reports whether a lane is up, for all that the NVR was told.
func (s *stream) runs() bool {
	for _, st := range s.lanes {
		if st.started {
			return true
		}
	}
	return false
}

// held lists the epochs that the agent holds or writes: by its hello, and those
// that other connections are at. One may have begun after the hello was said;
// and what was let go in the meantime may be on its way still.
func (s *stream) held(hello *wire.Hello) []vms.Epoch {
	epochs := slices.Clone(hello.Epochs)
	for kind, st := range s.lanes {
		if kind != hello.Lane && st.conn != nil {
			epochs = append(epochs, st.conn.used...)
		}
	}
	return epochs
}

// forget drops what is known of epochs that the agent does not hold any more.
// A recording of such an epoch can never be continued: it is as complete as it gets.
// away: the agent may have been elsewhere, so that another worker has more of it.
// It is left to the janitor then, who comes when each has stored its parts.
func (s *stream) forget(held []vms.Epoch, away bool) {
	for _, o := range s.seg.Keep(held) {
		switch r := s.recs[o]; {
		case !away:
		case r != nil:
			r.audit.away = true
		case !o.Busy:
			s.seg.Close(o)
		}
	}
	_ = s.settle() // it was logged, and nobody can send it again
	for _, r := range s.durable.Ranges() {
		if !slices.Contains(held, r.Epoch) {
			s.durable.Forget(r.Epoch)
		}
	}
	for k := range s.inits {
		if !slices.Contains(held, k.epoch) {
			delete(s.inits, k)
		}
	}
}

// settle finishes what is complete, and looks for the parts of what is not
// here. An error is the refusal to the agent when tmpfs has failed.
func (s *stream) settle() (err error) {
	for _, o := range s.seg.Open() {
		r := s.recs[o]
		switch s.seg.State(o) {
		case segment.Complete:
			if r != nil {
				err = errors.Join(err, s.complete(r))
				continue
			}
			s.look(o.Chunks.Epoch, o.Chunks.Last)
		case segment.Continued:
			s.look(o.Chunks.Epoch, o.Chunks.Last+1)
		}
	}
	return err
}

// maxRecent bounds what is read from tmpfs for a viewer, bytes.
const maxRecent = 8 << 20

// recent returns what the live lane recorded since the newest keyframe of its
// open recording, from tmpfs, as it came. s.mu is held.
func (s *stream) recent() (*vms.Init, []vms.Chunk) {
	st := s.lanes[vms.LaneLive]
	if st == nil {
		return nil, nil
	}
	r := s.recs[s.seg.At(&st.pos)]
	if r == nil {
		return nil, nil
	}
	cs, err := r.w.Tail(maxRecent)
	if err != nil {
		s.w.cfg.Log.Warn("cannot read an open recording for a viewer", "channel", s.ch, "err", err)
		return nil, nil
	}
	return r.w.Init(), cs
}

// drop takes r from the open recordings. Its part, if one is under way, is not
// needed any more.
func (s *stream) drop(r *recording) {
	delete(s.recs, r.open)
	if r.part != nil {
		r.part.cancel()
		delete(s.uploads, r.part)
		r.part = nil
	}
}

// discard gives r up. What of it is in the store as parts stays durable; the
// agent has the rest.
func (s *stream) discard(r *recording) {
	s.drop(r)
	s.seg.Park(r.open, r.parted)
	s.w.dir.used.Add(-r.w.Bytes())
	if err := r.w.Discard(); err != nil {
		s.w.cfg.Log.Error("cannot discard an open recording", "channel", s.ch, "err", err)
	}
}

// finish closes a recording that is complete and submits it. When tmpfs fails,
// the refusal that it returns makes the agent come back and send it again.
func (s *stream) finish(r *recording) error {
	s.drop(r)
	f, err := r.w.Finish()
	if err != nil {
		s.w.cfg.Log.Error("cannot finish a recording; the agent will send it again", "channel", s.ch, "chunks", r.open.Chunks.String(), "err", err)
		s.seg.Park(r.open, r.parted)
		s.w.dir.used.Add(-r.w.Bytes())
		s.sendAway(refuseTmpfs())
		return refuseTmpfs()
	}
	s.seg.Close(r.open)
	u := &sending{since: time.Now(), oldest: r.oldest()}
	s.uploads[u] = true
	j := job(f)
	j.Done = func(v vms.Recording) { s.uploaded(u, f, v) }
	j.Lost = func(err error) { s.lost(u, r, f, err) }
	s.w.uploader.Submit(s.w.uploadCtx, j)
	return nil
}

// uploaded makes chunks durable, and tells the agent and the NVR.
func (s *stream) uploaded(u *sending, f *segment.Finished, v vms.Recording) {
	s.w.clear(f)
	s.w.cfg.Log.Info("recording stored", "channel", s.ch, "key", v.Key, "chunks", v.Chunks.String(), "bytes", v.Bytes)
	s.w.notices.uploaded(s.w.cfg.NVR, s.ch, v, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.uploads, u)
	s.acknowledge(f.Chunks)
}

// clear takes what is left of a finished recording, whose file is removed, from Dir.
func (w *Worker) clear(f *segment.Finished) {
	w.dir.used.Add(f.HeadLen - f.Bytes)
	if f.Journal == "" {
		return
	}
	if err := os.Remove(f.Journal); err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.cfg.Log.Error("cannot remove a recording's journal", "path", f.Journal, "err", err)
	}
}

// acknowledge tells the lanes what became durable.
func (s *stream) acknowledge(c vms.ChunkRange) {
	s.durable.Add(c)
	for _, st := range s.lanes {
		if st.conn != nil {
			st.conn.news = append(st.conn.news, c)
			st.conn.conn.Wake()
		}
	}
}

// lost takes back what was said of a recording whose file is not there any
// more, or not whole: the agent has it and must send it again.
func (s *stream) lost(u *sending, r *recording, f *segment.Finished, err error) {
	s.w.clear(f)
	s.w.cfg.Log.Error("a finished recording was lost before its upload; the agent will send it again", "channel", s.ch, "chunks", f.Chunks.String(), "err", err)
	s.mu.Lock()
	delete(s.uploads, u)
	s.seg.Park(r.open, r.parted)
	s.mu.Unlock()
	s.startOver(refuseTmpfs())
}

// startOver gives up the open recordings.
func (s *stream) startOver(r *ingest.Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.discardAll()
	s.sendAway(r)
}

// sendAway ends all connections, because what they were told is here is not any
// more: when they come back, welcome says what has to be sent again.
func (s *stream) sendAway(r *ingest.Refusal) {
	for _, st := range s.lanes {
		st.pos = segment.Lane{Backfill: st.pos.Backfill}
		if st.conn != nil && st.conn.gone == nil {
			st.conn.gone = r
			st.conn.conn.Close(r)
		}
	}
}

func (s *stream) discardAll() {
	for _, r := range s.recs {
		s.discard(r)
	}
}

// makeRoom parks what has not grown for so long.
func (s *stream) makeRoom(quiet time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.park(quiet)
}

// openSince counts the open recordings, and says when the youngest was begun.
// waiting: there is one that needs no agent any more to be stored.
func (s *stream) openSince() (n int, since time.Time, waiting bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.recs {
		n++
		if r.opened.After(since) {
			since = r.opened
		}
		waiting = waiting || s.untouched(r)
	}
	return n, since, waiting
}

// connected reports whether a lane has a connection.
func (s *stream) connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.lanes {
		if st.conn != nil {
			return true
		}
	}
	return false
}

// idle ends lanes that have had no connection for grace, stores what waits for
// nobody knows how long as parts, and reports whether all about the stream can
// be forgotten.
func (s *stream) idle(now time.Time, grace, forget time.Duration) bool {
	s.mu.Lock()
	since := now.Sub(s.adopted)
	silent, gone := since >= forget, since >= grace
	for _, st := range s.lanes {
		if st.lost.IsZero() {
			silent, gone = false, false
			continue
		}
		// An agent that has left for another worker may not be back; what it has
		// left is on its way into the store there.
		d := now.Sub(st.lost)
		left := s.elsewhere || st.endWhy == causeMoved
		switch {
		case d >= grace || st.endWhy != "":
			s.ended(st, cmp.Or(st.endWhy, "connection_lost"))
		case left:
			s.ended(st, causeMoved)
		}
		gone = gone && (d >= grace || st.endWhy != "" && !left)
		silent = silent && d >= forget
	}
	_ = s.settle() // it was logged
	s.lookAhead(now)
	var parts, pressed []*segment.Open
	done := true
	for o, r := range s.recs {
		if err := r.w.Flush(); err != nil {
			s.w.dir.writeFailed(err) // the next sweep tries again
		}
		if gone || now.Sub(r.grown) >= stalled || r.audit.shared {
			parts = append(parts, o)
		} else if r.pressed {
			pressed = append(pressed, o)
		}
		done = done && (r.stored() || r.unwanted)
	}
	forgotten := silent && done && len(s.uploads) == 0 && s.fetching == nil && !s.asking
	if forgotten {
		for _, st := range s.lanes {
			s.ended(st, cmp.Or(st.endWhy, "connection_lost"))
		}
		s.discardAll()
		s.forgotten = true
	}
	s.mu.Unlock()
	for _, o := range parts {
		s.sendPart(o, all)
	}
	for _, o := range pressed {
		s.sendPart(o, some)
	}
	return forgotten
}

// abandoned stores, as parts, what was left by a hub that is gone: this worker
// goes away too.
func (s *stream) abandoned() {
	if s.connected() {
		return
	}
	s.mu.Lock()
	_ = s.settle() // it was logged
	var open []*segment.Open
	for o := range s.recs {
		open = append(open, o)
	}
	s.mu.Unlock()
	for _, o := range open {
		s.sendPart(o, all)
	}
}

// revoke ends the lanes of revoked sessions. What they brought was authorized,
// and nobody will continue it, unless another worker has more of it already.
func (s *stream) revoke(sids []vms.SID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.recs {
		if slices.Contains(sids, r.sid) && !r.open.Busy && !s.elsewhere {
			_ = s.finish(r) // it was logged
		}
	}
	for _, st := range s.lanes {
		if !slices.Contains(sids, st.event.SID) {
			continue
		}
		st.endWhy = wire.CodeRevoked // it will not come back: no grace
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
	if !s.runs() {
		s.w.load.running.Add(-1)
	}
	e := st.event
	e.At, e.Cause = st.lost.UTC(), cause
	s.w.notices.ended(s.w.cfg.NVR, e)
	if e.Lane == vms.LaneLive {
		s.offline(cause)
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

// close leaves the open recordings to the next process, if the store does not
// have all of them as parts.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.recs {
		if r.stored() {
			s.discard(r)
			continue
		}
		s.drop(r)
		if err := r.w.Keep(); err != nil {
			s.w.cfg.Log.Error("cannot leave an open recording to the next start; the agent will send it again", "channel", s.ch, "err", err)
		}
	}
}
