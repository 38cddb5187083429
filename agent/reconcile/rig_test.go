package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	_ "time/tzdata" // as in the agent's program

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// flash is a Documents in memory that outlives reconcilers.
type flash struct {
	mu   sync.Mutex
	docs map[string][]byte
	puts int
	bad  bool // refuses to be written to

	refused int // since the last reboot
}

func (f *flash) refusals() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refused
}

func (f *flash) Document(name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.Clone(f.docs[name]), nil
}

func (f *flash) PutDocument(name string, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bad {
		f.refused++
		return errors.New("the flash is worn out")
	}
	if bytes.Equal(f.docs[name], data) {
		return nil
	}
	f.puts++
	f.docs[name] = bytes.Clone(data)
	return nil
}

func (f *flash) fail(bad bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bad = bad
}

// runner is a Runner whose streams are entries in a map.
type runner struct {
	t *testing.T

	mu      sync.Mutex
	runs    map[vms.ChannelID]Target
	ended   map[vms.ChannelID]State // what became of streams that ended by themselves
	failing map[vms.ChannelID]error
	slow    time.Duration // that operations take
	refuse  bool          // the NVR refuses what was started, at once
	busy    map[vms.ChannelID]bool
	starts  []Target
	good    int // starts that succeeded
	stops   int
	onStart func(Target)        // before a start
	onStop  func(vms.ChannelID) // before a stop
}

func newRunner(t *testing.T) *runner {
	return &runner{
		t: t, runs: make(map[vms.ChannelID]Target), ended: make(map[vms.ChannelID]State), failing: make(map[vms.ChannelID]error),
		busy: make(map[vms.ChannelID]bool), onStart: func(Target) {}, onStop: func(vms.ChannelID) {},
	}
}

// begin proves that there is one operation at a time.
func (r *runner) begin(ch vms.ChannelID) {
	r.mu.Lock()
	if r.busy[ch] {
		r.t.Errorf("two operations on %s at the same time", ch)
	}
	r.busy[ch] = true
	slow := r.slow
	r.mu.Unlock()
	time.Sleep(slow)
	r.mu.Lock()
	r.busy[ch] = false
}

func (r *runner) Start(t Target) error {
	r.onStart(t)
	r.begin(t.Channel)
	defer r.mu.Unlock()
	if old, ok := r.runs[t.Channel]; ok && old.same(t) {
		r.t.Errorf("%s was torn apart to start what ran already", t.Channel)
	}
	r.starts = append(r.starts, t)
	if err := r.failing[t.Channel]; err != nil {
		return err
	}
	r.good++
	r.runs[t.Channel] = t
	delete(r.ended, t.Channel)
	if r.refuse {
		delete(r.runs, t.Channel)
		r.ended[t.Channel] = State{Stream: wire.StateRefused, Problem: "The token expired."}
	}
	return nil
}

func (r *runner) Stop(ch vms.ChannelID) error {
	r.onStop(ch)
	r.begin(ch)
	defer r.mu.Unlock()
	r.stops++
	delete(r.runs, ch)
	delete(r.ended, ch)
	return nil
}

func (r *runner) State(ch vms.ChannelID) State {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.runs[ch]; ok {
		return State{Running: true, Recording: t.Mode != wire.ModeEvent, Stream: wire.StateStreaming}
	}
	return r.ended[ch]
}

// end has a stream end by itself.
func (r *runner) end(ch vms.ChannelID, st State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.runs[ch]; ok {
		delete(r.runs, ch)
		r.ended[ch] = st
	}
}

func (r *runner) fail(ch vms.ChannelID, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing[ch] = err
}

func (r *runner) running() map[vms.ChannelID]Target {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.runs)
}

func (r *runner) started() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.starts)
}

// hub is a Reconciler that runs, and what is around it.
type hub struct {
	*Reconciler
	t      *testing.T
	flash  *flash
	runner *runner
	stop   func()

	mu      sync.Mutex
	reports []Report
	ahead   time.Duration // of the hub's clock
	unsure  bool
}

// newHub returns one in a bubble, that is not running.
func newHub(t *testing.T) *hub {
	return &hub{t: t, flash: &flash{docs: make(map[string][]byte)}, runner: newRunner(t), stop: func() {}}
}

// boot starts a reconciler on what is on flash; the one before has ended.
func (h *hub) boot() {
	h.Reconciler = New(Config{
		Hub: "hub_1", Now: h.now, Store: h.flash, Open: unseal, Address: address, Runner: h.runner, Log: vmstest.Log(h.t),
		OnLimits: func(wire.HubLimits, *time.Location) {},
		OnReport: func(r Report) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.reports = append(h.reports, r)
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.Run(ctx)
	}()
	h.stop = func() {
		cancel()
		<-done
	}
}

// reboot ends everything, and begins anew.
func (h *hub) reboot() {
	h.stop()
	h.runner.mu.Lock()
	clear(h.runner.runs)
	clear(h.runner.ended)
	h.runner.mu.Unlock()
	h.boot()
}

func (h *hub) now() (time.Time, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Add(h.ahead).UTC(), !h.unsure
}

func (h *hub) setClock(ahead time.Duration, certain bool) {
	h.mu.Lock()
	h.ahead, h.unsure = ahead, !certain
	h.mu.Unlock()
	h.Kick()
}

func (h *hub) report() Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.reports) == 0 {
		return Report{}
	}
	return h.reports[len(h.reports)-1]
}

// item returns what was reported last of a channel.
func (h *hub) item(ch vms.ChannelID) wire.ReportedItem {
	for _, s := range h.report().Streams {
		if s.Channel == ch {
			return s
		}
	}
	return wire.ReportedItem{}
}

// desire hands a document over that must be accepted.
func (h *hub) desire(rev int64, streams ...wire.DesiredStream) {
	h.t.Helper()
	if err := h.Desired(desired(rev, streams...)); err != nil {
		h.t.Fatalf("revision %d: %v", rev, err)
	}
}

func desired(rev int64, streams ...wire.DesiredStream) *wire.Desired {
	return &wire.Desired{Hub: "hub_1", Revision: rev, Issued: time.Now().UTC(), TimeZone: "Europe/Zagreb", Streams: streams}
}

// want is a stream that is wanted, in a mode.
func want(ch vms.ChannelID, mode wire.Mode, edit ...func(*wire.DesiredStream)) wire.DesiredStream {
	s := wire.DesiredStream{Channel: ch, SID: vms.SID("sid_" + string(ch)), NVRURL: "ws://nvr/", Mode: mode, Active: true, Camera: seal(ch, storedCamera)}
	for _, f := range edit {
		f(&s)
	}
	return s
}

func off(s *wire.DesiredStream) { s.Active = false }

var storedCamera = vms.Camera{Host: "192.0.2.7", Username: "admin", Password: "pa55"}

// seal is what unseal opens, with something random in it.
func seal(ch vms.ChannelID, c vms.Camera) []byte {
	data, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return fmt.Appendf(nil, "camera/%s|%s|%s", ch, vms.NewID[string]("salt"), data)
}

func unseal(context string, sealed []byte) ([]byte, error) {
	parts := bytes.SplitN(sealed, []byte("|"), 3)
	if len(parts) != 3 || string(parts[0]) != context {
		return nil, errors.New("sealed to another key")
	}
	return parts[2], nil
}

// address is strict about hosts only.
func address(c vms.Camera) (string, error) {
	switch {
	case c.URL != "" && bytes.HasPrefix([]byte(c.URL), []byte("rtsp://")):
		_, rest, _ := bytes.Cut([]byte(c.URL), []byte("://"))
		host, _, _ := bytes.Cut(rest, []byte("/"))
		if _, after, ok := bytes.Cut(host, []byte("@")); ok {
			host = after
		}
		if !bytes.Contains(host, []byte(":")) {
			host = append(bytes.Clone(host), ":554"...)
		}
		return "rtsp://" + string(host), nil
	case c.URL == "" && c.Host != "":
		port := c.Port
		if port == 0 {
			port = 554
		}
		return fmt.Sprintf("rtsp://%s:%d", c.Host, port), nil
	}
	return "", fmt.Errorf("%w: no address", vms.ErrInvalid)
}

func local(ch vms.ChannelID, cam vms.Camera) Local {
	return Local{Channel: ch, SID: vms.SID("sid_lan_" + string(ch)), NVRURL: "ws://nvr/", Token: "token", Camera: cam}
}
