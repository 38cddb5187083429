// Package stream is one running stream: it owns the camera, the muxer, the
// lanes to the worker and the session with the NVR, and all their goroutines.
package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/agent/camera"
	"github.com/zipato/vms/agent/hubclock"
	"github.com/zipato/vms/agent/mux"
	"github.com/zipato/vms/agent/preroll"
	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// tickEvery is how often waits of the muxer are looked at.
	tickEvery = 50 * time.Millisecond
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

// Config is what a stream needs; all fields but Token, Known, Remember, Mode,
// After, Pressure and OnRecording must be set.
type Config struct {
	ID      vms.StreamID
	Channel vms.ChannelID
	SID     vms.SID
	Token   string // may be empty when the sid is the hub's already
	NVRURL  string
	// Deliver: there is no camera. The stream brings what the spool holds, and ends.
	Deliver bool
	Camera  vms.Camera
	// Known and Remember are camera.Source's.
	Known    string
	Remember func(string)
	// Mode: in wire.ModeEvent the camera is pulled, and recorded when Event says
	// so: PreRoll before it, at most a minute, and PostRoll after it, at most ten.
	// In all others it is recorded from Run to Stop.
	Mode              wire.Mode
	PreRoll, PostRoll time.Duration // PostRoll 0: DefaultPostRoll

	Spool *spool.Spool
	// After is closed when the stream that had the spool before has left it: it
	// is captured at once, sent after that.
	After      <-chan struct{}
	Clock      *hubclock.Clock
	Credential uplink.Credential
	// Client dials the NVR and the workers; nil: uplink's own.
	Client *http.Client
	Agent  string // name and version
	Boot   string
	// Phase is where recordings begin, as a share of their length.
	Phase float64
	// Governor paces the lanes of all streams of the hub.
	Governor *uplink.Governor
	// NewestFirst is the order in which the backlog is brought.
	NewestFirst bool
	// Pressure is how full the hub's RAM is, and whether workers should know.
	Pressure func() (wire.Pressure, bool)
	Log      *slog.Logger
	// OnState is told of every change.
	OnState func(Status)
	// OnRecording is told, in mode event, when Recording became another; nil:
	// nobody asks.
	OnRecording func()
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
	lanes    []*uplink.Lane
	source   *camera.Source
	// askKeyframe is the source's; it must not block.
	askKeyframe func()

	stop    context.CancelFunc // ends the camera
	stopped context.Context    // ends when Stop was called
	camDone chan struct{}      // closed when the camera is released

	mu      sync.Mutex // guards the muxer and what follows
	mux     *mux.Mux
	epoch   vms.Epoch // zero while nothing is captured
	lastSeq uint64
	lastEnd time.Time     // UTC of the end of the newest chunk, or the start of the stream
	lastAt  time.Time     // when it came, on the system's clock,
	lastUTC time.Time     // and what that was in UTC then: the hub's clock may be set later
	away    *vms.Gap      // the camera's absence, while it lasts
	absent  time.Duration // all absences that are over
	timed   bool          // what is captured is stamped with known time; see settle
	known   time.Time     // since when that is seen, on the system's clock
	placed  bool          // and nothing is left of before
	ended   bool          // the end after lastSeq was said
	over    bool          // no camera is pulled (any more)
	gate    *gate         // in mode event, before the muxer
	// replaying: the muxer is fed what came before the event.
	replaying bool

	restart   chan struct{} // Restart was called
	draining  atomic.Int32  // calls of Drain
	first     chan struct{} // the first chunk is there
	committed chan struct{} // the NVR has committed gaps

	tellMu     sync.Mutex // taken before stateMu; orders what is told of the state
	stateMu    sync.Mutex
	camState   camera.State
	delivering bool // the camera is released; what is held is brought
	laneErr    error
	laneUp     bool
	sessErr    error
	sessUp     bool
	status     Status
	received   time.Time // end of the newest chunk that a worker has

	asked map[int64]time.Time // time queries under way, under stateMu
}

// New returns a stream that has not begun.
func New(cfg Config) *Stream {
	cfg.PostRoll = cmp.Or(cfg.PostRoll, DefaultPostRoll)
	s := &Stream{
		cfg: cfg, assigned: uplink.NewAssigned(),
		camDone: make(chan struct{}), restart: make(chan struct{}, 1), first: make(chan struct{}, 1), committed: make(chan struct{}, 1),
		status: Status{State: wire.StateStarting}, asked: make(map[int64]time.Time),
	}
	s.timed = cfg.Clock.Known()
	s.stopped, s.stop = context.WithCancel(context.Background())
	if cfg.Deliver {
		s.stop()
		s.over, s.delivering, s.status.State = true, true, wire.StateStopped
		close(s.camDone)
	} else {
		s.epoch = vms.NewEpoch()
	}
	s.mux = mux.New(mux.Config{
		Epoch: s.epoch, NewEpoch: vms.NewEpoch, Phase: s.phase(mux.DefaultRecording),
		OnInit: cfg.Spool.PutInit, OnChunk: s.chunk,
	})
	if cfg.Mode == wire.ModeEvent && !cfg.Deliver {
		s.gate = &gate{ring: preroll.New[mux.Sound](min(cfg.PreRoll, maxPreRoll), cfg.Spool.Reserve)}
	}
	s.source = &camera.Source{
		Camera: cfg.Camera, Sink: (*sink)(s), Log: cfg.Log, Known: cfg.Known, Remember: s.remember,
		OnState: func(st camera.State) { s.change(func() { s.camState = st }) },
	}
	s.askKeyframe = s.source.AskKeyframe
	s.session = &uplink.Session{
		URL: cfg.NVRURL, SID: cfg.SID, Token: cfg.Token, Credential: cfg.Credential, Log: cfg.Log, Client: cfg.Client,
		Hello: s.hello, OnMessage: s.message, OnState: s.sessionState,
	}
	// What the hub only brings is no live picture.
	if !cfg.Deliver {
		s.lanes = append(s.lanes, s.newLane(vms.LaneLive))
	}
	s.lanes = append(s.lanes, s.newLane(vms.LaneBackfill))
	return s
}

// phase is where recordings of a length begin.
func (s *Stream) phase(recording time.Duration) time.Duration {
	return time.Duration(s.cfg.Phase * float64(recording))
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
	if !s.replaying {
		s.explainAbsence(c.Start)
	}
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
	return s.cfg.Spool.Stats().CapturedUntil
}

// Received returns the UTC up to which workers have chunks.
func (s *Stream) Received() time.Time {
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	return s.received
}

// Delivering reports whether the camera is released.
func (s *Stream) Delivering() bool {
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	return s.delivering
}

// Absent returns for how long, in all, the camera brought nothing.
func (s *Stream) Absent() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.absent
	if s.away != nil {
		d += s.away.Duration()
	}
	return d
}

// LaneUp reports whether a worker takes what the stream sends.
func (s *Stream) LaneUp() bool {
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	return s.laneUp
}

// Camera returns the camera's counters; Mux the muxer's.
func (s *Stream) Camera() camera.Stats { return s.source.Stats() }

// Mux returns the muxer's counters.
func (s *Stream) Mux() mux.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mux.Stats()
}

// Stop releases the camera. Run goes on until what is held was brought.
func (s *Stream) Stop() { s.stop() }

// Released is closed when nothing is pulled from the camera any more and the
// last of it is in the spool.
func (s *Stream) Released() <-chan struct{} { return s.camDone }

// Run runs the stream until Stop, then until all that is held is durable and
// all gaps are committed, and returns nil; so it does when ctx ends, at once.
// What is held then stays in the spool. An error means that going on is of no
// use: the NVR or the worker refuses the session, or the camera's address is none.
func (s *Stream) Run(ctx context.Context) error {
	s.mu.Lock()
	now, _ := s.utc(time.Now())
	s.capturedUntil(now)
	s.mu.Unlock()
	rest, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer s.stop()
	g, gctx := errgroup.WithContext(rest)
	g.Go(func() error { return s.afterwards(gctx, s.session.Run) })
	for _, l := range s.lanes {
		g.Go(func() error { return s.afterwards(gctx, l.Run) })
	}
	g.Go(func() error { return s.report(gctx) })
	g.Go(func() error { return s.ticks(gctx) })
	g.Go(func() error {
		defer stop()
		if err := s.pull(either(ctx, gctx)); err != nil {
			return err
		}
		s.delivered(either(ctx, gctx))
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

// afterwards runs what uses the spool's cursors and the channel's session, when
// the stream before this one has left them.
func (s *Stream) afterwards(ctx context.Context, run func(context.Context) error) error {
	if s.cfg.After != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-s.cfg.After:
		}
	}
	return run(ctx)
}

// pull runs the camera until Stop or until ctx ends, and says that it ended.
func (s *Stream) pull(ctx context.Context) error {
	if s.cfg.Deliver {
		return nil
	}
	defer close(s.camDone)
	err := s.run(either(s.stopped, ctx))
	s.endAll("stopped")
	s.leave()
	if s.stopped.Err() != nil { // else another stream goes on in its place
		s.change(func() { s.delivering = true })
	}
	s.sendGaps()
	if err != nil {
		return fmt.Errorf("camera: %w", err)
	}
	return nil
}

// run runs the camera until ctx ends, anew after each Restart.
func (s *Stream) run(ctx context.Context) error {
	for {
		once, cancel := context.WithCancel(ctx)
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			select {
			case <-once.Done():
			case <-s.restart:
				cancel()
			}
		}()
		err := s.source.Run(once)
		cancel()
		<-watched
		if err != nil || ctx.Err() != nil {
			return err
		}
		s.cfg.Log.Info("the camera is left and pulled anew")
		s.endAll("restarted")
		s.change(func() { s.camState = camera.State{} })
	}
}

// Restart leaves the camera and pulls it anew, as if the stream had just been
// started. What is missing meanwhile is declared.
func (s *Stream) Restart() {
	select {
	case s.restart <- struct{}{}:
	default: // it is about to
	}
}

// remember is called from the camera's Run.
func (s *Stream) remember(template string) {
	s.source.Known = template // for the next one
	if s.cfg.Remember != nil {
		s.cfg.Remember(template)
	}
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

// delivered waits until nothing is held and no gap waits for the NVR, or until
// ctx ends.
func (s *Stream) delivered(ctx context.Context) {
	for {
		changed := s.cfg.Spool.Changed()
		if st := s.cfg.Spool.Stats(); st.Chunks == 0 && st.Gaps == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-s.committed:
		}
	}
}

// ticks lets the muxer's waits run out.
func (s *Stream) ticks(ctx context.Context) error {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			s.tick(now)
		}
	}
}

// tick looks at what waits: sound for pictures, an event for its end, and the
// camera for being asked for a keyframe.
func (s *Stream) tick(now time.Time) {
	s.mu.Lock()
	s.settle()
	utc, _ := s.utc(now)
	s.mux.Tick(utc)
	over := s.tickGate(now)
	ask := s.wantsKeyframe(now, utc)
	s.mu.Unlock()
	if over {
		s.recordingChanged()
	}
	if ask {
		s.cfg.Log.Info("no keyframe for a minute; the camera is asked for one")
		s.askKeyframe()
	}
}

// wantsKeyframe reports whether it is time to ask the camera for a keyframe: in
// mode event also while nothing is recorded, because only what begins with one
// can be kept. s.mu is held.
func (s *Stream) wantsKeyframe(now, utc time.Time) bool {
	if s.gate == nil {
		return s.mux.WantsKeyframe(utc)
	}
	return s.gate.peek != nil && s.gate.peek.WantsKeyframe(now)
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
		s.send(&wire.Holding{Ranges: s.cfg.Spool.Holding(), RAM: st.RAM, Flash: st.Flash})
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
	now, _ := s.utc(s.lastAt)
	if by := now.Sub(s.lastUTC); by.Abs() > clockStep {
		return s.lastEnd.Add(by)
	}
	return s.lastEnd
}

// capturedUntil notes the end of the newest chunk, or of what was seen and not
// recorded. s.mu is held.
func (s *Stream) capturedUntil(end time.Time) {
	s.lastEnd, s.lastAt = end, time.Now()
	s.lastUTC, _ = s.utc(s.lastAt)
}

// growAbsence declares a camera's absence while it lasts.
func (s *Stream) growAbsence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.grow(offlineGap)
}

// leave ends the absence of a camera that is not waited for any longer.
func (s *Stream) leave() {
	s.stateMu.Lock()
	here := s.camState.State == wire.StateStreaming
	s.stateMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	least := startUp
	if here { // the rest of a picture is no absence
		least = offlineGap
	}
	s.grow(least)
	s.closeGate()
	s.over = true
}

// grow declares the camera's absence if it is as long as least, or was declared
// before. s.mu is held.
func (s *Stream) grow(least time.Duration) {
	now, _ := s.utc(time.Now())
	since := s.absentSince()
	if now.Sub(since) < least {
		return
	}
	if s.away == nil {
		s.away = &vms.Gap{ID: vms.NewID[vms.GapID]("gap"), Cause: vms.CauseCameraOffline}
	}
	s.away.Start, s.away.End = since, now
	s.declare(*s.away)
}

// explainAbsence closes the gap before a chunk that begins at start. s.mu is held.
func (s *Stream) explainAbsence(start time.Time) {
	since, cause := s.absentSince(), s.unseen()
	d := start.Sub(since)
	if s.away == nil && (d < time.Millisecond || s.lastSeq == 0 && d < startUp && cause == vms.CauseCameraOffline) {
		return
	}
	g := s.away
	s.away = nil
	if g == nil {
		g = &vms.Gap{ID: vms.NewID[vms.GapID]("gap"), Cause: cause}
	}
	g.Start, g.End = since, start
	if g.End.After(g.Start) {
		if g.Cause == vms.CauseCameraOffline {
			s.absent += g.Duration()
		}
		s.declare(*g)
	}
}
