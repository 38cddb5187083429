// Package stream is one running stream: it owns the camera, the muxer, the
// lane to the worker and the session with the NVR, and all their goroutines.
package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/agent/camera"
	"github.com/zipato/vms/agent/hubclock"
	"github.com/zipato/vms/agent/mux"
	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// tick is how often waits of the muxer are looked at.
	tick = 50 * time.Millisecond
	// report is how often the NVR hears what is held and what is missing.
	report = 5 * time.Second
	// askTime is how often the NVR is asked what time it is.
	askTime = time.Minute
	// offlineGap is how long a camera may be away before its absence is a gap
	// while it lasts.
	offlineGap = 10 * time.Second
	// startUp is how long a camera may take to its first picture before that is a gap.
	startUp = 2 * time.Second
)

// Config is what a stream needs; all fields but Known and Remember must be set.
type Config struct {
	ID      vms.StreamID
	Channel vms.ChannelID
	SID     vms.SID
	Token   string // may be empty when the sid is the hub's already
	NVRURL  string
	Camera  vms.Camera
	// Known and Remember are camera.Source's.
	Known    string
	Remember func(string)

	Spool      *spool.Spool
	Clock      *hubclock.Clock
	Credential uplink.Credential
	Agent      string // name and version
	Boot       string
	Phase      time.Duration
	// Drain is how long a stopped stream goes on sending what it holds.
	Drain time.Duration
	Log   *slog.Logger
	// OnState is told of every change.
	OnState func(Status)
}

// Status is how a stream is.
type Status struct {
	State   string // a wire.State word
	Problem string
}

// Stream is one run. Make it with New, and call Run once.
type Stream struct {
	cfg      Config
	assigned *uplink.Assigned
	session  *uplink.Session
	lane     *uplink.Lane
	source   *camera.Source

	mu      sync.Mutex // guards the muxer and what follows
	mux     *mux.Mux
	epoch   vms.Epoch
	lastSeq uint64
	lastEnd time.Time // UTC of the end of the newest chunk, or the start of the stream
	lastAt  time.Time // when it came, on the system's clock,
	lastUTC time.Time // and what that was in UTC then: the hub's clock may be set later
	away    *vms.Gap  // the camera's absence, while it lasts
	ended   bool      // the end after lastSeq was said

	first chan struct{} // the first chunk is there

	tellMu   sync.Mutex // taken before stateMu; orders what is told of the state
	stateMu  sync.Mutex
	camState camera.State
	laneErr  error
	laneUp   bool
	sessErr  error
	sessUp   bool
	status   Status

	asked map[int64]time.Time // time queries under way, under stateMu
}

// New returns a stream that has not begun.
func New(cfg Config) *Stream {
	s := &Stream{
		cfg: cfg, epoch: vms.NewEpoch(), assigned: uplink.NewAssigned(),
		first:  make(chan struct{}, 1),
		status: Status{State: wire.StateStarting}, asked: make(map[int64]time.Time),
	}
	s.mux = mux.New(mux.Config{
		Epoch: s.epoch, NewEpoch: vms.NewEpoch, Phase: cfg.Phase,
		OnInit: cfg.Spool.PutInit, OnChunk: s.chunk,
	})
	s.source = &camera.Source{
		Camera: cfg.Camera, Sink: (*sink)(s), Log: cfg.Log, Known: cfg.Known, Remember: cfg.Remember,
		OnState: func(st camera.State) { s.change(func() { s.camState = st }) },
	}
	s.session = &uplink.Session{
		URL: cfg.NVRURL, SID: cfg.SID, Token: cfg.Token, Credential: cfg.Credential, Log: cfg.Log,
		Hello: s.hello, OnMessage: s.message, OnState: s.sessionState,
	}
	s.lane = &uplink.Lane{
		Kind: vms.LaneLive, Agent: cfg.Agent, Source: source{cfg.Spool}, Assigned: s.assigned, Log: cfg.Log,
		WantWorker: func(m wire.WantWorker) { s.send(&m) },
		OnState:    func(err error) { s.change(func() { s.laneUp, s.laneErr = err == nil, err }) },
		OnWatched: func(on bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.mux.SetWatched(on)
		},
	}
	return s
}

// Status returns how the stream is.
func (s *Stream) Status() Status {
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	return s.status
}

// SID names the session that the stream was started with.
func (s *Stream) SID() vms.SID { return s.cfg.SID }

// Epoch names the sequence numbers that are being written.
func (s *Stream) Epoch() vms.Epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// chunk takes what was muxed. s.mu is held.
func (s *Stream) chunk(c vms.Chunk) {
	if c.Epoch != s.epoch {
		s.end("clock_set_back")
		s.epoch = c.Epoch
	}
	s.explainAbsence(c.Start)
	s.lastSeq, s.ended = c.Seq, false
	s.capturedUntil(c.End)
	s.cfg.Spool.Append(c)
	if c.Seq == 1 {
		select {
		case s.first <- struct{}{}:
		default: // the report is on its way
		}
	}
}

// Captured returns the UTC up to which chunks were made.
func (s *Stream) Captured() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastSeq == 0 {
		return time.Time{}
	}
	return s.lastEnd
}

// Camera returns the camera's counters; Mux the muxer's.
func (s *Stream) Camera() camera.Stats { return s.source.Stats() }

// Mux returns the muxer's counters.
func (s *Stream) Mux() mux.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mux.Stats()
}

// Run runs the stream until ctx ends, then sends what is held, for as long as
// Config.Drain, and returns nil. An error means that going on is of no use:
// the NVR refuses the session, or the camera's address is none.
func (s *Stream) Run(ctx context.Context) error {
	s.mu.Lock()
	s.capturedUntil(s.cfg.Clock.Now())
	s.mu.Unlock()
	// The camera stops first; the rest goes on until all is sent.
	rest, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	cam, stopCam := context.WithCancel(ctx)
	defer stopCam()
	g, gctx := errgroup.WithContext(rest)
	g.Go(func() error { return s.session.Run(gctx) })
	g.Go(func() error { return s.lane.Run(gctx) })
	g.Go(func() error { return s.report(gctx) })
	g.Go(func() error { return s.ticks(gctx) })
	g.Go(func() error {
		defer stop()
		err := s.source.Run(either(cam, gctx))
		if err != nil {
			return fmt.Errorf("camera: %w", err)
		}
		s.endAll("stopped")
		s.drain(gctx)
		if gctx.Err() == nil { // the session is still there to say so
			s.set(func() Status { return Status{State: wire.StateStopped} })
		}
		return nil
	})
	err := g.Wait()
	var refused uplink.Refused
	s.set(func() Status {
		switch {
		case err == nil:
			return Status{State: wire.StateStopped}
		case errors.As(err, &refused):
			return Status{State: wire.StateRefused, Problem: sentence(refused.Problem)}
		case errors.Is(err, vms.ErrInvalid):
			return Status{State: wire.StateBadCamera, Problem: err.Error()}
		}
		return Status{State: wire.StateRefused, Problem: err.Error()}
	})
	return err
}

// sentence says to people why the NVR refused, and what to do.
func sentence(p *problem.Problem) string {
	text := p.Detail
	if text == "" {
		text = p.Title
	}
	if p.Type == wire.ProblemTokenInvalid || p.Type == wire.ProblemTokenExpired {
		return "The NVR refuses the token: " + text + " Ask the API for a new token and start the stream with it."
	}
	return "The NVR refuses this stream: " + text
}

// either returns a context that ends with the first of two.
func either(a, b context.Context) context.Context {
	ctx, cancel := context.WithCancel(a)
	context.AfterFunc(b, cancel)
	return ctx
}

// drain waits until nothing is held, at most Config.Drain.
func (s *Stream) drain(ctx context.Context) {
	limit := time.NewTimer(s.cfg.Drain)
	defer limit.Stop()
	for {
		changed := s.cfg.Spool.Changed()
		if s.cfg.Spool.Stats().Chunks == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-limit.C:
			return
		case <-changed:
		}
	}
}

// ticks lets the muxer's waits run out, and the camera's absence grow.
func (s *Stream) ticks(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			utc, _ := s.cfg.Clock.UTC(now)
			s.mu.Lock()
			s.mux.Tick(utc)
			s.mu.Unlock()
		}
	}
}

// report tells the NVR, over and over, what is held and what is missing.
func (s *Stream) report(ctx context.Context) error {
	t := time.NewTicker(report)
	defer t.Stop()
	s.askTime()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-s.first: // somebody may be waiting for it
		}
		if time.Since(last) >= askTime {
			last = time.Now()
			s.askTime()
		}
		s.growAbsence()
		s.sendGaps()
		st := s.cfg.Spool.Stats()
		s.send(&wire.Holding{Ranges: s.cfg.Spool.Holding(), RAM: st.Bytes})
	}
}

func (s *Stream) sendGaps() {
	for {
		gaps := s.cfg.Spool.Gaps(wire.MaxGaps)
		if len(gaps) == 0 {
			return
		}
		if !s.send(&wire.Gaps{Gaps: gaps}) {
			s.cfg.Spool.Resend()
			return
		}
	}
}

// send queues a message for the NVR and reports whether there is a session.
func (s *Stream) send(m wire.SessionMessage) bool { return s.session.Send(m) == nil }

// endAll flushes the muxer and says that nothing follows for now.
func (s *Stream) endAll(cause string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mux.Flush()
	s.end(cause)
}

// end says that nothing follows the newest chunk for now. s.mu is held.
func (s *Stream) end(cause string) {
	if s.lastSeq > 0 && !s.ended {
		s.ended = true
		s.cfg.Spool.End(s.epoch, s.lastSeq, cause)
	}
}

// clockStep is how far the hub's clock has to be set for that to be noticed here.
const clockStep = 5 * time.Second

// absentSince is the end of the newest chunk by the hub's clock as it is now:
// when that was corrected since, the correction is no absence. s.mu is held.
func (s *Stream) absentSince() time.Time {
	now, _ := s.cfg.Clock.UTC(s.lastAt)
	if by := now.Sub(s.lastUTC); by.Abs() > clockStep {
		return s.lastEnd.Add(by)
	}
	return s.lastEnd
}

// capturedUntil notes the end of the newest chunk. s.mu is held.
func (s *Stream) capturedUntil(end time.Time) {
	s.lastEnd, s.lastAt = end, time.Now()
	s.lastUTC, _ = s.cfg.Clock.UTC(s.lastAt)
}

// growAbsence declares a camera's absence while it lasts.
func (s *Stream) growAbsence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Clock.Now()
	since := s.absentSince()
	if now.Sub(since) < offlineGap {
		return
	}
	if s.away == nil {
		s.away = &vms.Gap{ID: vms.NewID[vms.GapID]("gap"), Cause: vms.CauseCameraOffline}
	}
	s.away.Start, s.away.End = since, now
	s.cfg.Spool.Declare(*s.away)
}

// explainAbsence closes the gap before a chunk that begins at start. s.mu is held.
func (s *Stream) explainAbsence(start time.Time) {
	since := s.absentSince()
	d := start.Sub(since)
	if s.away == nil && (d < time.Millisecond || s.lastSeq == 0 && d < startUp) {
		return
	}
	g := s.away
	s.away = nil
	if g == nil {
		g = &vms.Gap{ID: vms.NewID[vms.GapID]("gap"), Cause: vms.CauseCameraOffline}
	}
	g.Start, g.End = since, start
	if g.End.After(g.Start) {
		s.cfg.Spool.Declare(*g)
	}
}
