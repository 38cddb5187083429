// Package agent is the program that runs on a hub: it pulls cameras and pushes
// them to workers, as the cloud and the LAN ask. New and Run are all that main
// and tests need.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/agent/hubclock"
	"github.com/zipato/vms/agent/identity"
	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/agent/stream"
	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// maxStreams bounds the streams of one hub.
	maxStreams = 32
	// keepEnded is how long a stream that ended by itself stays in the list, so
	// that its reason can be read.
	keepEnded = time.Hour
)

// Config is what an agent needs. Dir has no default.
type Config struct {
	// Dir holds the hub's identity, made by Enroll. One agent at a time uses it.
	Dir string
	// Listen is the address of the local API; empty: none. Listener, when set, is used instead.
	Listen   string
	Listener net.Listener
	// Names are further names under which browsers reach the local API.
	Names []string
	// RAM bounds the chunks of all streams together, bytes. 64 MiB.
	RAM int64
	// Drain is how long a stopped stream goes on sending what it holds: 10 s.
	Drain   time.Duration
	Version string
	Log     *slog.Logger
	Metrics *obs.Registry
}

// Agent is one run of the program. Make it with New, and call Run once.
type Agent struct {
	cfg      Config
	id       *identity.Identity
	unlock   func()
	verifier *token.Verifier
	clock    *hubclock.Clock
	budget   *spool.Budget
	boot     string
	name     string
	started  time.Time

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before and after
	wg      sync.WaitGroup
	entries map[vms.ChannelID]*entry
	spools  map[vms.ChannelID]*spool.Spool
	known   map[string]string // camera host -> what camera.Source remembered
	count   int               // streams ever started: spreads their phases
	control *uplink.Session

	controlMu  sync.Mutex
	controlUp  bool
	controlErr error
	asked      time.Time // when the NVR was asked the time last
}

// entry is one channel's stream.
type entry struct {
	id      vms.StreamID
	stream  *stream.Stream
	camera  vms.Camera
	channel vms.ChannelID
	local   bool // started on the LAN, with a token
	stop    context.CancelFunc
	done    chan struct{}
	// stopping: somebody asked it to end; under Agent.mu.
	stopping bool
	ended    time.Time // under Agent.mu; zero while it runs
	since    time.Time
}

// New checks the configuration and returns an agent.
func New(cfg Config) (*Agent, error) {
	id, err := identity.Load(cfg.Dir)
	if err != nil {
		return nil, err
	}
	v, err := token.NewVerifier(id.TokenKeys)
	if err != nil {
		return nil, fmt.Errorf("keys of the cloud: %w", err)
	}
	unlock, err := lock(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cfg.RAM = cmp.Or(cfg.RAM, 64<<20)
	cfg.Drain = cmp.Or(cfg.Drain, 10*time.Second)
	cfg.Version = cmp.Or(cfg.Version, "dev")
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Metrics == nil {
		cfg.Metrics = obs.NewRegistry()
	}
	now := time.Now()
	a := &Agent{
		cfg: cfg, id: id, unlock: unlock, verifier: v, clock: hubclock.New(now), budget: spool.NewBudget(cfg.RAM),
		boot: vms.NewID[string]("boot"), name: "vms-agent/" + cfg.Version, started: now,
		entries: make(map[vms.ChannelID]*entry), spools: make(map[vms.ChannelID]*spool.Spool), known: make(map[string]string),
	}
	a.control = a.newControl()
	cfg.Metrics.GaugeFunc("vms_agent_spool_bytes", "Bytes of chunks that are not durable yet.", func() float64 { return float64(a.budget.Used()) })
	cfg.Metrics.GaugeFunc("vms_agent_spool_limit_bytes", "The most that may be held.", func() float64 { return float64(a.budget.Limit()) })
	cfg.Metrics.GaugeFunc("vms_agent_streams", "Streams that run.", func() float64 { return float64(len(a.Streams())) })
	return a, nil
}

// Hub names this hub.
func (a *Agent) Hub() vms.HubID { return a.id.Hub }

// Run runs the agent until ctx ends; then each stream gets Config.Drain to send
// what it holds. An error means that it could not start.
func (a *Agent) Run(ctx context.Context) error {
	defer a.unlock()
	l := a.cfg.Listener
	if l == nil && a.cfg.Listen != "" {
		var err error
		if l, err = net.Listen("tcp", a.cfg.Listen); err != nil {
			return fmt.Errorf("local API: %w (another agent may be running; set VMS_AGENT_LISTEN to another address)", err)
		}
	}
	a.mu.Lock()
	a.ctx = ctx
	a.mu.Unlock()
	// The control line goes after the streams: it brings their last states.
	rest, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(rest)
	g.Go(func() error { return a.runControl(gctx) })
	g.Go(func() error { return a.keepTime(gctx) })
	if l != nil {
		srv := &http.Server{
			Handler: a.handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
			ErrorLog: slog.NewLogLogger(a.cfg.Log.Handler(), slog.LevelDebug),
		}
		g.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("local API: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			<-gctx.Done()
			end, cancel := context.WithTimeout(context.WithoutCancel(gctx), 2*time.Second)
			defer cancel()
			if srv.Shutdown(end) != nil {
				return srv.Close()
			}
			return nil
		})
		a.cfg.Log.Info("local API", "address", l.Addr().String())
	}
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-gctx.Done():
		}
		a.stopAll()
		stop()
		return nil
	})
	return g.Wait()
}

// stopAll ends every stream and waits.
func (a *Agent) stopAll() {
	a.mu.Lock()
	a.ctx = nil
	for _, e := range a.entries {
		e.stop()
	}
	a.mu.Unlock()
	a.wg.Wait()
}

// handler is the local API with the routes for whoever looks after the hub.
func (a *Agent) handler() http.Handler {
	return lan.Handler(lan.Config{
		Agent: a, Key: a.id.LANKey, Names: a.cfg.Names, Metrics: a.cfg.Metrics, Log: a.cfg.Log,
	})
}

// request is a stream that somebody wants.
type request struct {
	channel vms.ChannelID
	sid     vms.SID
	nvrURL  string
	token   string
	camera  vms.Camera
	local   bool
}

// start begins a stream, or replaces the one of the same channel.
func (a *Agent) start(r request) (*entry, error) {
	if !a.id.SameOrigin(r.nvrURL) {
		return nil, fmt.Errorf("%w: the token is for another NVR than the one this hub is enrolled with", vms.ErrForbidden)
	}
	if err := checkCamera(r.camera); err != nil {
		return nil, err
	}
	a.mu.Lock()
	old := a.entries[r.channel]
	if old != nil && r.local && !old.local && old.ended.IsZero() {
		a.mu.Unlock()
		return nil, fmt.Errorf("%w: the cloud runs the stream of this channel; stop it there first", vms.ErrConflict)
	}
	if old == nil && a.running() >= maxStreams {
		a.mu.Unlock()
		return nil, fmt.Errorf("%w: this hub runs %d streams already", vms.ErrUnavailable, maxStreams)
	}
	a.mu.Unlock()
	if old != nil {
		// One pull per camera and one writer per spool: the old one ends first.
		old.stop()
		<-old.done
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx == nil {
		return nil, fmt.Errorf("%w: the agent is stopping", vms.ErrUnavailable)
	}
	if e := a.entries[r.channel]; e != nil && e != old && e.ended.IsZero() {
		return nil, fmt.Errorf("%w: the stream of this channel was just started by somebody else", vms.ErrConflict)
	}
	sp := a.spools[r.channel]
	if sp == nil {
		sp = a.budget.NewSpool()
		a.spools[r.channel] = sp
	}
	ctx, stop := context.WithCancel(a.ctx)
	e := &entry{
		id: vms.NewID[vms.StreamID]("str"), channel: r.channel, camera: r.camera, local: r.local,
		stop: stop, done: make(chan struct{}), since: a.clock.Now(),
	}
	log := a.cfg.Log.With("channel", r.channel)
	where := cameraHost(r.camera)
	e.stream = stream.New(stream.Config{
		ID: e.id, Channel: r.channel, SID: r.sid, Token: r.token, NVRURL: r.nvrURL, Camera: r.camera,
		Known: a.known[where], Remember: func(t string) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.known[where] = t
		},
		Spool: sp, Clock: a.clock, Credential: a.credential(), Agent: a.name, Boot: a.boot,
		Phase: phase(a.count), Drain: a.cfg.Drain, Log: log, OnState: func(stream.Status) {},
	})
	a.count++
	a.entries[r.channel] = e
	a.wg.Go(func() {
		defer close(e.done)
		defer stop()
		if err := e.stream.Run(ctx); err != nil {
			log.Warn("stream ended", "err", err)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		e.ended = time.Now()
	})
	return e, nil
}

// runs returns the stream of a channel if it runs under sid from cam, else nil.
func (a *Agent) runs(ch vms.ChannelID, sid vms.SID, cam vms.Camera) *entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.entries[ch]
	if e == nil || !e.ended.IsZero() || a.ctx == nil || e.stopping || e.stream.SID() != sid || !sameCamera(e.camera, cam) {
		return nil
	}
	return e
}

// phase spreads the first recording boundary of the n-th stream over half a
// minute, so that the streams of a hub do not upload at the same moment: the
// golden ratio keeps any number of them apart.
func phase(n int) time.Duration {
	const golden = 0.6180339887498949
	f := float64(n) * golden
	return time.Duration((f - float64(int64(f))) * float64(30*time.Second))
}

func (a *Agent) credential() uplink.Credential {
	return uplink.Credential{Hub: a.id.Hub, Key: a.id.Key}
}

// running counts the streams that have not ended. a.mu is held.
func (a *Agent) running() int {
	n := 0
	for ch, e := range a.entries {
		switch {
		case e.ended.IsZero():
			n++
		case time.Since(e.ended) > keepEnded:
			delete(a.entries, ch)
		}
	}
	return n
}

// stopChannel ends the stream of a channel and takes it off the list. It
// returns at once; what the stream holds is sent meanwhile.
func (a *Agent) stopChannel(ch vms.ChannelID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.entries[ch]
	if e == nil {
		return fmt.Errorf("%w: no stream of channel %s", vms.ErrNotFound, ch)
	}
	if a.ctx == nil {
		return nil // everything is being stopped
	}
	e.stop()
	e.stopping = true
	if !e.ended.IsZero() {
		delete(a.entries, ch)
		return nil
	}
	a.wg.Go(func() {
		<-e.done
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.entries[ch] == e {
			delete(a.entries, ch)
		}
	})
	return nil
}

// Start implements lan.Agent: the token says which channel, the caller which camera.
func (a *Agent) Start(tok string, cam vms.Camera) (lan.Stream, error) {
	t, err := a.verifier.VerifyStream(tok, a.clock.Now())
	if err != nil {
		return lan.Stream{}, fmt.Errorf("token: %w", err)
	}
	if t.Hub != "" && t.Hub != a.id.Hub {
		return lan.Stream{}, fmt.Errorf("%w: the token is for another hub", vms.ErrForbidden)
	}
	e := a.runs(t.Channel, t.SID, cam) // a second tap on the same button must not interrupt what it started
	if e == nil {
		e, err = a.start(request{channel: t.Channel, sid: t.SID, nvrURL: t.NVR, token: tok, camera: cam, local: true})
	}
	if err != nil {
		return lan.Stream{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.describe(e), nil
}

// Stop implements lan.Agent.
func (a *Agent) Stop(id vms.StreamID) error {
	a.mu.Lock()
	var ch vms.ChannelID
	declared := false
	for _, e := range a.entries {
		if e.id == id {
			ch, declared = e.channel, !e.local && e.ended.IsZero()
		}
	}
	a.mu.Unlock()
	if declared {
		return fmt.Errorf("%w: the cloud runs this stream; stop it there", vms.ErrForbidden)
	}
	if ch == "" {
		return fmt.Errorf("%w: no stream %s", vms.ErrNotFound, id)
	}
	return a.stopChannel(ch)
}

// Streams implements lan.Agent.
func (a *Agent) Streams() []lan.Stream {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running() // drops old ends
	out := make([]lan.Stream, 0, len(a.entries))
	for _, e := range a.entries {
		out = append(out, a.describe(e))
	}
	slices.SortFunc(out, func(x, y lan.Stream) int { return strings.Compare(string(x.ID), string(y.ID)) })
	return out
}

// describe is what the local API says of a stream. a.mu is held.
func (a *Agent) describe(e *entry) lan.Stream {
	st, cam, m := e.stream.Status(), e.stream.Camera(), e.stream.Mux()
	sp := a.spools[e.channel].Stats()
	origin := "cloud"
	if e.local {
		origin = "lan"
	}
	return lan.Stream{
		ID: e.id, Channel: e.channel, Camera: cameraHost(e.camera), Origin: origin,
		State: st.State, Problem: st.Problem, Since: e.since,
		CapturedUntil: e.stream.Captured(), DurableUntil: sp.DurableUntil,
		HeldBytes: sp.Bytes, HeldChunks: sp.Chunks, DroppedChunks: sp.Dropped,
		Frames: m.Frames, SoundDropped: m.SoundDropped,
		CameraSessions: cam.Sessions, PacketsLost: cam.PacketsLost, DecodeErrors: cam.DecodeErrors,
	}
}

// Status implements lan.Agent.
func (a *Agent) Status() lan.Status {
	utc, uncertain := a.clock.UTC(time.Now())
	control, why := a.controlState()
	return lan.Status{
		Hub: a.id.Hub, Version: a.cfg.Version, Time: utc, TimeUncertain: uncertain,
		Uptime: time.Since(a.started).Seconds(), Control: control, ControlProblem: why,
		HeldBytes: a.budget.Used(), BudgetBytes: a.budget.Limit(), Streams: len(a.Streams()),
	}
}
