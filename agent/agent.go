// Package agent is the program that runs on a hub: it pulls cameras and pushes
// them to workers, as the cloud and the LAN ask. New and Run are all that main
// and tests need.
package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/agent/clocktls"
	"github.com/zipato/vms/agent/control"
	"github.com/zipato/vms/agent/hubclock"
	"github.com/zipato/vms/agent/identity"
	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/agent/reconcile"
	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/agent/state"
	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/seal"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// maxStreams bounds the cameras of one hub.
	maxStreams = 32
	// keepEnded is how long a stream that ended by itself stays in the list, so
	// that its reason can be read.
	keepEnded = time.Hour
	// stateName is the file of the hub's small state in Config.Dir.
	stateName = "state.db"
	// LeastFlash is the least budget of flash that is of use, bytes.
	LeastFlash = 16 << 20
	// flushTime is how long a stopping agent may write to flash what is in RAM.
	flushTime = 3 * time.Second
)

// Config is what an agent needs. Dir has no default.
type Config struct {
	// Dir holds the hub's identity, made by Enroll, and its small state. One
	// agent at a time uses it.
	Dir string
	// Listen is the address of the local API; empty: none. Listener, when set, is used instead.
	Listen   string
	Listener net.Listener
	// Names are further names under which browsers reach the local API.
	Names []string

	// RAM bounds the chunks of all streams together, bytes. 0: AutoRAM.
	RAM int64
	// Flash bounds what is put on flash when that is not enough, bytes: 0 is 512
	// MiB, less than 0 none; what an earlier run has put there is brought all the
	// same. It is in Spool, by default the folder spool in Dir.
	Flash int64
	Spool string
	// FlashShare is how much of the free space may be used at most: 0.5.
	FlashShare float64
	// RefuseNew drops what is new when the flash is full; else the oldest goes.
	RefuseNew bool
	// Endurance is what the flash chip can take in its life, bytes; 0: 1000 times
	// the size of the file system. It is for an estimate, and bounds nothing.
	Endurance int64
	// Drain is how long Run goes on sending when it is told to end, before what
	// is left goes to flash: 2 s, without flash 10 s.
	Drain time.Duration

	// NewestFirst brings the backlog newest recording first.
	NewestFirst bool
	// BackfillShare is the share of the measured uplink for the backlog: 0.75.
	BackfillShare float64
	// UplinkLimit is a schedule (uplink.ParseSchedule) of bits per second for the
	// whole hub, in the hub's time zone; empty: no limit.
	UplinkLimit string

	// CA are files with certificate authorities, in PEM, that are trusted beside
	// the system's and the compiled ones.
	CA []string
	// SNTP is the host or host:port of a time server to ask beside the NVR; empty: none.
	SNTP string
	// Insecure allows an MQTT broker without TLS off the loopback.
	Insecure bool

	Version string
	// Built is when the program was built: a time that has certainly passed.
	Built   time.Time
	Log     *slog.Logger
	Metrics *obs.Registry
}

// Agent is one run of the program. Make it with New, and call Run once.
type Agent struct {
	cfg      Config
	id       *identity.Identity
	unlock   func()
	verifier *token.Verifier
	roots    *x509.CertPool
	tls      *tls.Config
	client   *http.Client // of sessions and lanes
	clock    *hubclock.Clock
	state    *state.State
	store    *spool.Store
	governor *uplink.Governor
	figures  *figures
	boot     string
	name     string
	started  time.Time

	reconciler *reconcile.Reconciler
	line       *uplink.Session
	mqtt       *control.Client
	commands   *commands
	reports    reports

	// chip is what the flash can take in its life, bytes; flashBroken why it is not used.
	chip        int64
	flashBroken string
	examining   sync.Mutex // held by the doctor: a second one would double the load

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before and after
	working context.Context // of commands: ends as soon as the agent is told to end
	wg      sync.WaitGroup
	entries map[vms.ChannelID]*entry
	known   map[string]string // camera host -> what camera.Source remembered

	keepMu sync.Mutex                     // taken before mu
	kept   map[vms.ChannelID]state.Stream // what state has

	controlMu  sync.Mutex
	controlUp  bool
	controlErr error
	parked     string    // why this agent does nothing, empty: it does its work
	asked      time.Time // when the NVR was asked the time last
}

// New checks the configuration, opens what the hub keeps and returns an agent.
func New(cfg Config) (*Agent, error) {
	if _, err := uplink.ParseSchedule(cfg.UplinkLimit, time.Local); err != nil {
		return nil, fmt.Errorf("uplink limit: %w", err)
	}
	roots, err := clocktls.Roots(cfg.CA...)
	if err != nil {
		return nil, err
	}
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
	cfg.fill()
	if cfg.Metrics == nil {
		cfg.Metrics = obs.NewRegistry()
	}
	a := &Agent{
		cfg: cfg, id: id, unlock: unlock, verifier: v, roots: roots,
		boot: vms.NewID[string]("boot"), name: "vms-agent/" + cfg.Version, started: time.Now(),
		entries: make(map[vms.ChannelID]*entry), known: make(map[string]string),
		reports: reports{ring: make(chan struct{}, 1)},
	}
	if err := a.open(); err != nil {
		unlock()
		return nil, err
	}
	a.tls = clocktls.Config(roots, a.clock.Read)
	a.client = uplink.NewClient(a.tls)
	a.governor = uplink.NewGovernor(uplink.GovernorConfig{Share: cfg.BackfillShare})
	a.setLimits(wire.HubLimits{}, nil)
	a.line = a.newLine()
	a.mqtt = a.newMQTT()
	a.commands = a.newCommands()
	a.reconciler = reconcile.New(reconcile.Config{
		Hub: id.Hub, Now: a.passed, Store: a.state, Address: cameraAddress, Runner: runner{a}, Log: cfg.Log,
		Open:     func(context string, sealed []byte) ([]byte, error) { return seal.Open(id.Key, context, sealed) },
		OnLimits: a.setLimits, OnReport: a.setReport,
	})
	a.clock.OnLearn(func(time.Duration) { a.reconciler.Kick() })
	a.figures = a.newFigures(cfg.Metrics)
	return a, nil
}

// passed is the hub's UTC. While nobody has told the time it is one that has
// certainly passed, not a guess.
func (a *Agent) passed() (now time.Time, certain bool) {
	now, certain = a.clock.Read()
	if !certain {
		now = a.clock.Passed()
	}
	return now, certain
}

// setLimits has the uplink limited as the owner of the hub says in the cloud, or
// else as the agent was started with. zone is the hub's; nil: the system's.
func (a *Agent) setLimits(l wire.HubLimits, zone *time.Location) {
	if zone == nil {
		zone = time.Local
	}
	s, err := uplink.ParseSchedule(cmp.Or(l.Uplink, a.cfg.UplinkLimit), zone)
	if err != nil {
		a.cfg.Log.Error("the cloud's limit of the uplink cannot be read; the agent's own holds", "limit", l.Uplink, "err", err)
		if s, err = uplink.ParseSchedule(a.cfg.UplinkLimit, zone); err != nil {
			return // New has checked it
		}
	}
	a.governor.SetSchedule(s)
}

// open opens the hub's small state and the spool.
func (a *Agent) open() (err error) {
	cfg := a.cfg
	if a.state, err = state.Open(filepath.Join(cfg.Dir, stateName)); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	a.clock = hubclock.New(hubclock.Config{Store: a.state, Built: cfg.Built, SNTP: cfg.SNTP, Log: cfg.Log})
	sc := spool.Config{
		RAM: cfg.RAM, Dir: cfg.Spool, Flash: cfg.Flash, FreeShare: cfg.FlashShare, Log: cfg.Log,
		Facts: a.state, Documents: a.state, Origin: spool.Origin(a.clock.Origin()),
	}
	if cfg.RefuseNew {
		sc.Policy = spool.RefuseNew
	}
	// A budget of few files would be given up in large pieces.
	sc.FileBytes = min(max(cfg.Flash/8, 2<<20), 32<<20)
	a.kept, err = a.state.Streams()
	if err != nil {
		return errors.Join(fmt.Errorf("state: %w", err), a.state.Close())
	}
	a.store, err = spool.Open(sc)
	if err != nil && sc.Dir != "" {
		// Worn out flash is no reason not to record.
		cfg.Log.Error("the flash cannot be used; footage is kept in RAM only", "err", err)
		a.flashBroken = err.Error()
		sc.Dir = ""
		a.store, err = spool.Open(sc)
	}
	if err != nil {
		return errors.Join(err, a.state.Close())
	}
	a.chip = cfg.Endurance
	if a.chip == 0 && cfg.Flash > 0 {
		a.chip = chipLife(cfg.Spool)
	}
	return nil
}

// close ends what New opened.
func (a *Agent) close() {
	if err := errors.Join(a.store.Close(), a.state.Close()); err != nil {
		a.cfg.Log.Error("cannot close what the hub keeps", "err", err)
	}
	a.unlock()
}

// Hub names this hub.
func (a *Agent) Hub() vms.HubID { return a.id.Hub }

// Run runs the agent until ctx ends; then the cameras are released, the streams
// get Config.Drain to send what they hold, and the rest goes to flash. An error
// means that it could not start.
func (a *Agent) Run(ctx context.Context) error {
	defer a.close()
	l := a.cfg.Listener
	if l == nil && a.cfg.Listen != "" {
		var err error
		if l, err = net.Listen("tcp", a.cfg.Listen); err != nil {
			return fmt.Errorf("local API: %w (another agent may be running; set VMS_AGENT_LISTEN to another address)", err)
		}
	}
	// working ends at once, and with it all that the cloud can ask for; rest when
	// the streams have ended: the control line brings their last states.
	rest, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(rest)
	working, endWork := context.WithCancel(gctx)
	defer endWork()
	context.AfterFunc(ctx, endWork)
	a.mu.Lock()
	a.ctx, a.working = context.WithoutCancel(ctx), working
	a.mu.Unlock()
	a.deliverRest()
	g.Go(func() error { return a.store.Run(gctx) })
	g.Go(func() error { return a.runControl(gctx) })
	g.Go(func() error { return a.mqtt.Run(working) })
	g.Go(func() error { return a.clock.Run(gctx) })
	g.Go(func() error { return a.prober().Run(working) })
	g.Go(func() error { return a.keepTime(gctx) })
	g.Go(func() error { return a.runReports(working) })
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
		a.reconciler.Run(working)
		ended := a.stopAll()
		stop()
		<-ended
		return nil
	})
	return g.Wait()
}

// prober asks the NVR for the time as long as nobody has told it: without the
// time no certificate is good, and without a certificate no session.
func (a *Agent) prober() *clocktls.Prober {
	return &clocktls.Prober{
		URL: a.id.NVRURL, Roots: a.roots, Passed: a.clock.Passed, Known: a.clock.Known, Learn: a.clock.Learn, Log: a.cfg.Log,
	}
}

// stopAll releases the cameras, lets the streams send what goes quickly, and
// saves the rest on flash. The streams' connections may take some seconds more
// to close where the other side does not answer: ended is closed after that.
func (a *Agent) stopAll() (ended <-chan struct{}) {
	a.mu.Lock()
	a.ctx = nil
	all := make([]*entry, 0, len(a.entries))
	for _, e := range a.entries {
		e.stream.Stop()
		all = append(all, e)
	}
	a.mu.Unlock()
	a.drain(all, a.cfg.Drain)
	for _, e := range all {
		e.kill()
	}
	for _, e := range all {
		<-e.stream.Released() // the last of it is in the spool
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	if err := a.store.Flush(ctx); err != nil {
		a.cfg.Log.Error("footage that was only in RAM is lost", "err", err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		a.wg.Wait()
	}()
	soon := time.NewTimer(time.Second)
	defer soon.Stop()
	select {
	case <-closed:
	case <-soon.C:
	}
	return closed
}

// drain waits until the streams have brought what they hold, at most so long;
// less when no worker takes anything.
func (a *Agent) drain(all []*entry, most time.Duration) {
	limit := time.NewTimer(most)
	defer limit.Stop()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for _, e := range all {
		for up := true; up; {
			select {
			case <-limit.C:
				return
			case <-e.done:
				up = false
			case <-look.C:
				select {
				case <-e.stream.Released():
					up = e.stream.LaneUp()
				default:
				}
			}
		}
	}
}

// handler is the local API with the routes for whoever looks after the hub.
func (a *Agent) handler() http.Handler {
	return lan.Handler(lan.Config{Agent: a, Key: a.id.LANKey, Names: a.cfg.Names, Metrics: a.figures, Log: a.cfg.Log})
}
