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
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/agent/hubclock"
	"github.com/zipato/vms/agent/identity"
	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/agent/state"
	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
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
	// MiB, less than 0 none. It is in Spool, by default the folder spool in Dir.
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
	state    *state.State
	store    *spool.Store
	governor *uplink.Governor
	figures  *figures
	boot     string
	name     string
	started  time.Time
	// chip is what the flash can take in its life, bytes; flashBroken why it is not used.
	chip        int64
	flashBroken string

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before and after
	wg      sync.WaitGroup
	entries map[vms.ChannelID]*entry
	known   map[string]string // camera host -> what camera.Source remembered
	control *uplink.Session

	keepMu sync.Mutex                     // taken before mu
	kept   map[vms.ChannelID]state.Stream // what state has

	controlMu  sync.Mutex
	controlUp  bool
	controlErr error
	asked      time.Time // when the NVR was asked the time last
}

// New checks the configuration, opens what the hub keeps and returns an agent.
func New(cfg Config) (*Agent, error) {
	limit, err := uplink.ParseSchedule(cfg.UplinkLimit, time.Local)
	if err != nil {
		return nil, fmt.Errorf("uplink limit: %w", err)
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
	if cfg.RAM == 0 {
		cfg.RAM = AutoRAM(os.DirFS("/"))
	}
	cfg.Flash = cmp.Or(cfg.Flash, 512<<20)
	cfg.Spool = cmp.Or(cfg.Spool, filepath.Join(cfg.Dir, "spool"))
	cfg.FlashShare = cmp.Or(cfg.FlashShare, 0.5)
	cfg.BackfillShare = cmp.Or(cfg.BackfillShare, 0.75)
	if cfg.Flash < 0 { // what was not sent then is lost
		cfg.Drain = cmp.Or(cfg.Drain, 10*time.Second)
	}
	cfg.Drain = cmp.Or(cfg.Drain, 2*time.Second)
	cfg.Version = cmp.Or(cfg.Version, "dev")
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Metrics == nil {
		cfg.Metrics = obs.NewRegistry()
	}
	now := time.Now()
	a := &Agent{
		cfg: cfg, id: id, unlock: unlock, verifier: v, clock: hubclock.New(now),
		boot: vms.NewID[string]("boot"), name: "vms-agent/" + cfg.Version, started: now,
		entries: make(map[vms.ChannelID]*entry), known: make(map[string]string),
	}
	if err := a.open(); err != nil {
		unlock()
		return nil, err
	}
	a.governor = uplink.NewGovernor(uplink.GovernorConfig{Schedule: limit, Share: cfg.BackfillShare})
	a.control = a.newControl()
	a.figures = a.newFigures(cfg.Metrics)
	return a, nil
}

// open opens the hub's small state and the spool.
func (a *Agent) open() (err error) {
	cfg := a.cfg
	if a.state, err = state.Open(filepath.Join(cfg.Dir, stateName)); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	sc := spool.Config{RAM: cfg.RAM, Dir: cfg.Spool, Flash: cfg.Flash, FreeShare: cfg.FlashShare, Facts: a.state, Log: cfg.Log}
	if cfg.RefuseNew {
		sc.Policy = spool.RefuseNew
	}
	// A budget of few files would be given up in large pieces.
	sc.FileBytes = min(max(cfg.Flash/8, 2<<20), 32<<20)
	if cfg.Flash < 0 {
		sc.Dir, sc.Flash = "", 0
	}
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
	a.mu.Lock()
	a.ctx = context.WithoutCancel(ctx)
	a.mu.Unlock()
	a.deliverRest()
	// The control line goes after the streams: it brings their last states.
	rest, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(rest)
	g.Go(func() error { return a.store.Run(gctx) })
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
		ended := a.stopAll()
		stop()
		<-ended
		return nil
	})
	return g.Wait()
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
