package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/zipato/vms/agent/clocktls"
	"github.com/zipato/vms/agent/doctor"
	"github.com/zipato/vms/agent/hubclock"
	"github.com/zipato/vms/agent/identity"
	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/agent/state"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// askDoctor is how long a running agent may take for its report; it promises
// half a minute.
const askDoctor = 35 * time.Second

// Ask asks the agent that runs on cfg.Dir how it is.
func Ask(ctx context.Context, cfg Config) (*lan.Overview, error) {
	id, err := identity.Load(cfg.Dir)
	if err != nil {
		return nil, err
	}
	o, err := lan.Client{Address: cfg.Listen, Key: id.LANKey}.Overview(ctx)
	if errors.Is(err, lan.ErrNotThere) {
		release, runs, lockErr := unlessRunning(cfg.Dir)
		if lockErr == nil && !runs {
			release()
			return nil, fmt.Errorf("no agent runs on %s; start it, or ask \"vms-agent doctor\" what is wrong", cfg.Dir)
		}
		return nil, fmt.Errorf("%w; if the agent listens elsewhere, give this command the same -listen", err)
	}
	return o, err
}

// Doctor looks whether the hub of cfg.Dir can do its work, within half a minute.
// An agent that runs there looks itself, because it has the connections; else all
// of it is tried here. An error means that nothing could be looked at.
func Doctor(ctx context.Context, cfg Config) (*doctor.Report, error) {
	cfg.fill()
	id, err := identity.Load(cfg.Dir)
	if err != nil {
		return nil, err
	}
	docs, running, err := keptDocuments(cfg.Dir)
	if err != nil {
		return nil, err
	}
	var more []doctor.Finding
	if running {
		ask, cancel := context.WithTimeout(ctx, askDoctor)
		defer cancel()
		var r doctor.Report
		err := lan.Client{Address: cfg.Listen, Key: id.LANKey}.Doctor(ask, &r)
		if err == nil {
			return &r, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		more = append(more, doctor.Finding{
			Check: "agent", State: doctor.Problem, Finding: fmt.Sprintf("An agent runs on %s, but cannot be asked: %v.", cfg.Dir, err),
			Remedy: "Give this command the same settings as the agent (listen); if they are, restart the agent. Its MQTT connection and its cameras are not looked at.",
		})
	}
	roots, err := clocktls.Roots(cfg.CA...)
	if err != nil {
		return nil, err
	}
	d := cfg.examined(id)
	d.Roots, d.More = roots, more
	d.Clock = hubclock.New(hubclock.Config{Store: docs, Built: cfg.Built})
	if running {
		return doctor.Run(ctx, d), nil
	}
	if d.Broker, err = keptBroker(docs, id.Hub); err == nil {
		d.Cameras, err = doctor.Cameras(docs, id.Key)
	}
	if err != nil {
		d.More = append(d.More, doctor.Finding{
			Check: "agent", State: doctor.Problem, Finding: fmt.Sprintf("What the hub has kept cannot be read: %v.", err),
			Remedy: "Start the agent: the cloud tells it again; what was started on the LAN has to be started again there.",
		})
	}
	return doctor.Run(ctx, d), nil
}

// Doctor implements lan.Agent, and is the command of the cloud.
func (a *Agent) Doctor(ctx context.Context) (json.RawMessage, error) {
	if !a.examining.TryLock() {
		return nil, fmt.Errorf("%w: the doctor is looking already", vms.ErrUnavailable)
	}
	defer a.examining.Unlock()
	d := a.cfg.examined(a.id)
	d.Clock, d.Roots, d.RAMUsed, d.Broker = a.clock, a.roots, a.store.Stats().RAM, a.broker()
	if a.flashBroken != "" {
		d.More = append(d.More, doctor.Finding{
			Check: "agent", State: doctor.Problem, Finding: fmt.Sprintf("The agent could not use the flash when it started: %s.", a.flashBroken),
			Remedy: "Do what is said of the flash, if anything, and restart the agent; until then footage is kept in memory only.",
		})
	}
	d.Running = &doctor.Running{}
	d.Running.MQTTUp, d.Running.MQTT = a.mqtt.Connected()
	a.controlMu.Lock()
	d.Running.ControlUp, d.Running.Control = a.controlUp, a.controlErr
	a.controlMu.Unlock()
	streams := make(map[vms.ChannelID]*doctor.Stream)
	for _, s := range a.Streams() {
		if s.Origin != originSpool && !s.Delivering && s.State != wire.StateStopped {
			streams[s.Channel] = &doctor.Stream{State: s.State, Problem: s.Problem}
		}
	}
	var err error
	if d.Cameras, err = doctor.Cameras(a.state, a.id.Key); err != nil {
		a.cfg.Log.Error("the doctor cannot read which cameras there are", "err", err)
	}
	for i := range d.Cameras {
		d.Cameras[i].Stream = streams[d.Cameras[i].Channel]
	}
	return json.Marshal(doctor.Run(ctx, d))
}

// examined is what there is to look at that the settings and the machine tell.
func (cfg *Config) examined(id *identity.Identity) doctor.Config {
	root := os.DirFS("/")
	d := doctor.Config{
		Hub: id.Hub, Version: cfg.Version, Root: root, Built: cfg.Built, NVRURL: id.NVRURL, Insecure: cfg.Insecure,
		Dir: cfg.Dir, Spool: cfg.Spool, Flash: cfg.Flash > 0, FlashShare: cfg.FlashShare, LeastFlash: LeastFlash, RAM: cfg.RAM,
	}
	total, available := machineMemory(root)
	groupTotal, groupFree := groupMemory(root)
	if total = min(total, groupTotal); total < math.MaxInt64 {
		d.Total, d.Available = total, min(available, groupFree)
	}
	return d
}

// fill sets what was left out.
func (cfg *Config) fill() {
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
}

// keptFacts are documents as they were found. Nothing is put.
type keptFacts map[string][]byte

// Document implements doctor.Documents.
func (k keptFacts) Document(name string) ([]byte, error) { return k[name], nil }

// PutDocument implements hubclock.Documents.
func (keptFacts) PutDocument(string, []byte) error { return nil }

// keptDocuments reads what the hub keeps, unless an agent runs, whose it is.
func keptDocuments(dir string) (docs keptFacts, running bool, err error) {
	release, running, err := unlessRunning(dir)
	if err != nil || running {
		return nil, running, err
	}
	defer release()
	docs = make(keptFacts)
	name := filepath.Join(dir, stateName)
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return docs, false, nil // it has not run yet
	}
	s, err := state.Open(name)
	if err != nil {
		return nil, false, err
	}
	for _, doc := range []string{"desired", "local", "clock", docBroker} {
		if docs[doc], err = s.Document(doc); err != nil {
			return nil, false, errors.Join(err, s.Close())
		}
	}
	return docs, false, s.Close()
}

// unlessRunning keeps agents from starting on dir until release is called, unless one
// runs already. It makes no file: it would be that of whoever asks.
func unlessRunning(dir string) (release func(), running bool, err error) {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, false, nil // none has run yet
	}
	if err != nil {
		return nil, false, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, true, nil
		}
		return nil, false, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, false, nil
}
