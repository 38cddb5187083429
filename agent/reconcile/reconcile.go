// Package reconcile makes a hub do what is wanted of it: of the desired document
// of the cloud and of requests on the LAN it makes streams that are started and
// stopped, again after every reboot, with or without the cloud.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Target is one stream as it is to run.
type Target struct {
	Channel vms.ChannelID
	SID     vms.SID
	NVRURL  string
	Token   string // of a request on the LAN; empty: the session is the hub's already
	Camera  vms.Camera
	Origin  string // wire.OriginCloud or wire.OriginLAN
	Mode    wire.Mode
	// PreRoll and PostRoll belong to mode event.
	PreRoll, PostRoll time.Duration
}

// State is how a stream is.
type State struct {
	Running   bool   // its camera is pulled, or tried
	Recording bool   // what is pulled is recorded
	Stream    string // a wire.State word, also after it has ended by itself
	Problem   string // a sentence
}

// Runner runs streams. For one channel, Start and Stop are called one after the
// other.
type Runner interface {
	// Start runs t in the place of what runs for its channel. It may take as long
	// as a camera takes to be released, and does not wait for a picture.
	Start(t Target) error
	// Stop releases the camera of a channel and returns; what is held is brought
	// meanwhile. No stream is no error.
	Stop(vms.ChannelID) error
	// State returns at once.
	State(vms.ChannelID) State
}

// Documents keeps documents on flash (agent/state).
type Documents interface {
	// Document returns nil when there is none.
	Document(name string) ([]byte, error)
	// PutDocument has put data on flash when it returns nil.
	PutDocument(name string, data []byte) error
}

// Report is what the hub does of what is wanted.
type Report struct {
	Revision int64 // of the desired document; 0: none yet
	State    wire.SyncState
	Problem  string // why a document was refused
	Streams  []wire.ReportedItem
}

// Config is what a Reconciler needs; all fields must be set.
type Config struct {
	// Hub is this hub: documents for others are refused.
	Hub vms.HubID
	// Now is the hub's UTC. While it is not certain, it is a time that has passed.
	Now   func() (now time.Time, certain bool)
	Store Documents
	// Open opens what is sealed to the hub's key (pkg/seal).
	Open func(context string, sealed []byte) ([]byte, error)
	// Address names the place that a camera's password goes to, such as
	// "rtsp://192.0.2.7:554", or returns vms.ErrInvalid.
	Address func(vms.Camera) (string, error)
	Runner  Runner
	// OnLimits is told of the limits of the document that counts and of the hub's
	// time zone (nil: nobody said it): in New, when one is kept, and with each new one.
	OnLimits func(wire.HubLimits, *time.Location)
	// OnReport is told of every change, in order, by one goroutine.
	OnReport func(Report)
	Log      *slog.Logger
}

const (
	// Failed starts are tried again, with jitter, after retryMin to retryMax; what
	// the NVR refuses, after refusedMin to refusedMax: the camera would be pulled
	// for nothing each time, and a new document asks at once.
	retryMin   = time.Second
	retryMax   = time.Minute
	refusedMin = 30 * time.Second
	refusedMax = 5 * time.Minute
	// steady is how long a stream must have run to be tried again quickly.
	steady = time.Minute
)

// Reconciler converges. Make it with New, and call Run once; the other methods
// may be called at the same time, also before Run.
type Reconciler struct {
	cfg  Config
	ring chan struct{} // something may have changed
	over chan struct{} // closed when Run has ended

	storeMu sync.Mutex // taken before mu; orders what is put on flash

	mu      sync.Mutex
	doc     *document // nil: none yet
	refused string    // why the document that came last was
	idle    string    // why nothing is to run; empty: what is wanted
	locals  map[vms.ChannelID]*request
	settle  map[vms.ChannelID][]chan struct{} // closed when the channel is as wanted, or cannot be

	// Of Run.
	items    map[vms.ChannelID]*item
	finished chan result
	waiting  map[vms.ChannelID][]chan struct{} // from settle
	seen     int64                             // the revision of the last pass
	last     Report
	told     bool
}

// item is what Run knows of a channel.
type item struct {
	runs   *Target // what the runner was told to run last
	since  time.Time
	busy   *Target  // a start of it is under way,
	asked  *request // for this one on the LAN
	ending bool     // a stop is

	failed  *Target // what could not be started, or ended by itself
	refused bool    // by the NVR
	problem string
	again   time.Time // when it is tried again
	backoff retry.Backoff
	slow    retry.Backoff // of what is refused
}

// result of an operation.
type result struct {
	ch  vms.ChannelID
	err error
}

// New reads what was wanted when the agent ran last.
func New(cfg Config) *Reconciler {
	r := &Reconciler{
		cfg: cfg, ring: make(chan struct{}, 1), over: make(chan struct{}),
		locals: make(map[vms.ChannelID]*request), settle: make(map[vms.ChannelID][]chan struct{}),
		items: make(map[vms.ChannelID]*item), finished: make(chan result), waiting: make(map[vms.ChannelID][]chan struct{}),
	}
	r.load()
	return r
}

// Kick has everything looked at again: a stream has changed or ended, or the
// clock was set.
func (r *Reconciler) Kick() {
	select {
	case r.ring <- struct{}{}:
	default: // it will be
	}
}

// Suspend has every stream stopped, whoever wants it, until it is called with no
// reason: a hub of which there are two must leave the cameras to the other one.
func (r *Reconciler) Suspend(why string) {
	r.mu.Lock()
	changed := r.idle != why
	r.idle = why
	r.mu.Unlock()
	if changed {
		r.Kick()
	}
}

// Run converges until ctx ends. What runs then goes on running.
func (r *Reconciler) Run(ctx context.Context) {
	defer close(r.over)
	timer := time.NewTimer(0)
	defer timer.Stop()
	busy := 0
	defer func() {
		for ; busy > 0; busy-- {
			<-r.finished
		}
	}()
	for {
		started, wait := r.pass()
		busy += started
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-r.ring:
		case <-timer.C:
		case done := <-r.finished:
			busy--
			r.finish(done)
		}
	}
}

// never is a wait without an end.
const never = 24 * time.Hour

// pass compares what is wanted with what runs, begins what is missing, says how
// it is, and returns when to look again.
func (r *Reconciler) pass() (started int, wait time.Duration) {
	r.mu.Lock()
	doc, problem, idle := r.doc, r.refused, r.idle
	locals := maps.Clone(r.locals)
	for ch, w := range r.settle {
		r.waiting[ch] = append(r.waiting[ch], w...)
	}
	clear(r.settle)
	r.mu.Unlock()

	if rev := doc.revision(); rev != r.seen { // somebody did something about it, perhaps
		r.seen = rev
		for _, it := range r.items {
			it.again = time.Time{}
		}
	}
	utc, certain := r.cfg.Now()
	wishes, wake := decide(doc, locals, r.cfg.Address, utc, certain)
	wait = never
	if !wake.IsZero() {
		wait = until(wake.Sub(utc))
	}
	now := time.Now()
	report := Report{Revision: doc.revision(), State: wire.InSync, Problem: problem}
	for ch := range r.items {
		if _, ok := wishes[ch]; !ok {
			wishes[ch] = wish{origin: wire.OriginCloud, mode: wire.ModeOnDemand, gone: true}
		}
	}
	for _, ch := range channels(wishes) {
		w := wishes[ch]
		if idle != "" && w.target != nil {
			w.target, w.problem = nil, idle
		}
		it := r.items[ch]
		if it == nil {
			it = &item{
				backoff: retry.Backoff{Min: retryMin, Max: retryMax, Steady: steady},
				slow:    retry.Backoff{Min: refusedMin, Max: refusedMax, Steady: steady},
			}
			r.items[ch] = it
		}
		if w.over != nil {
			r.forget(ch, w.over, w.why)
		}
		st := r.step(ch, it, w, now, &started)
		if st == wire.Failed && it.failed != nil {
			wait = min(wait, max(0, it.again.Sub(now)))
		}
		if !w.gone || st != wire.InSync {
			report.Streams = append(report.Streams, r.describe(ch, it, w, st))
		}
		if st != wire.Syncing {
			r.settled(ch)
			if w.gone && it.runs == nil {
				delete(r.items, ch)
			}
		}
	}
	for ch := range r.waiting {
		if r.items[ch] == nil { // nobody knows the channel
			r.settled(ch)
		}
	}
	r.tell(report)
	return started, wait
}

// settled answers who waits for a channel.
func (r *Reconciler) settled(ch vms.ChannelID) {
	for _, c := range r.waiting[ch] {
		close(c)
	}
	delete(r.waiting, ch)
}

// until is how long to wait for an instant of the hub's clock that is d away.
// The clock is slewed, so that long waits are shortened a little, and the rest
// waited for again.
func until(d time.Duration) time.Duration {
	if d > time.Second {
		d -= d / 512
	}
	return min(max(d, 0), never)
}

// step takes a channel one step nearer to its wish.
func (r *Reconciler) step(ch vms.ChannelID, it *item, w wish, now time.Time, started *int) wire.SyncState {
	if it.busy != nil || it.ending {
		return wire.Syncing
	}
	if it.runs != nil {
		if st := r.cfg.Runner.State(ch); !st.Running {
			gone := it.runs
			r.ended(it, st, now)
			if w.target != nil && it.failed.same(*w.target) {
				r.cfg.Log.Warn("a stream that is wanted has ended", "channel", ch, "problem", it.problem, "again", it.again.Sub(now))
			}
			if w.local != nil && w.local.SID == gone.SID && st.Stream == wire.StateRefused {
				// Only a new token helps, and it comes with a new request.
				r.forget(ch, w.local, fmt.Errorf("%w: %s", vms.ErrForbidden, st.Problem))
				w.target = nil
			}
		}
	}
	switch {
	case w.target == nil && it.runs == nil:
		it.failed = nil
		w.local.tell(fmt.Errorf("%w: %s", vms.ErrInvalid, w.problem))
	case w.target == nil:
		it.ending = true
		*started++
		go func() { r.finished <- result{ch, r.cfg.Runner.Stop(ch)} }()
		return wire.Syncing
	case it.runs != nil && it.runs.same(*w.target):
		it.failed, it.problem = nil, ""
		w.local.tell(nil)
	case it.failed != nil && it.failed.same(*w.target) && it.asked == w.local && now.Before(it.again):
		return wire.Failed
	default:
		if it.failed != nil && !it.failed.same(*w.target) {
			it.failed = nil
		}
		t := *w.target
		it.busy, it.asked = &t, w.local
		*started++
		go func() { r.finished <- result{ch, r.cfg.Runner.Start(t)} }()
		return wire.Syncing
	}
	if w.problem != "" {
		return wire.Failed
	}
	return wire.InSync
}

// ended notes a stream that ended by itself.
func (r *Reconciler) ended(it *item, st State, now time.Time) {
	gone := it.runs
	it.runs = nil
	if it.failed != nil {
		return // it ended in a start that failed
	}
	it.failed = gone
	it.refused = st.Stream == wire.StateRefused
	it.problem = st.Problem
	if it.problem == "" {
		it.problem = "The stream ended by itself."
	}
	r.later(it, now, now.Sub(it.since))
}

// later puts the next try off; held is how long the stream ran.
func (r *Reconciler) later(it *item, now time.Time, held time.Duration) {
	wait := it.backoff.Next(held)
	if it.refused {
		wait = it.slow.Next(held)
	}
	it.again = now.Add(wait)
}

// finish takes the result of an operation in.
func (r *Reconciler) finish(done result) {
	it := r.items[done.ch]
	now := time.Now()
	switch {
	case it.ending:
		it.ending = false
		if done.err != nil { // it is over, or the agent is
			r.cfg.Log.Error("stream not stopped", "channel", done.ch, "err", done.err)
		}
		it.runs = nil
	case done.err == nil:
		it.runs, it.busy, it.failed, it.since, it.problem = it.busy, nil, nil, now, ""
		it.asked.tell(nil)
	default:
		t := it.busy
		it.failed, it.busy = t, nil
		it.refused = false
		level := slog.LevelWarn
		if it.problem == sentence(done.err) { // it was said
			level = slog.LevelDebug
		}
		it.problem = sentence(done.err)
		r.later(it, now, 0)
		r.cfg.Log.Log(context.Background(), level, "stream not started", "channel", done.ch, "origin", t.Origin, "err", done.err, "again", it.again.Sub(now))
		it.asked.tell(done.err)
	}
}

// describe says how a channel is.
func (r *Reconciler) describe(ch vms.ChannelID, it *item, w wish, state wire.SyncState) wire.ReportedItem {
	out := wire.ReportedItem{Channel: ch, SID: w.sid, Origin: w.origin, Mode: w.mode, State: state, Problem: w.problem}
	st := r.cfg.Runner.State(ch)
	out.Running, out.Recording, out.Stream = st.Running, st.Recording, st.Stream
	if state == wire.Failed && it.failed != nil {
		out.Problem = it.problem
	}
	if out.Problem == "" {
		out.Problem = st.Problem
	}
	return out
}

// tell reports what has changed.
func (r *Reconciler) tell(now Report) {
	for _, s := range now.Streams {
		switch {
		case s.State == wire.Syncing:
			now.State = wire.Syncing
		case s.State == wire.Failed && now.State == wire.InSync:
			now.State = wire.Failed
		}
	}
	if now.Problem != "" {
		now.State = wire.Failed
	}
	same := r.told && now.Revision == r.last.Revision && now.State == r.last.State && now.Problem == r.last.Problem &&
		slices.Equal(now.Streams, r.last.Streams)
	if same {
		return
	}
	r.last, r.told = now, true
	r.cfg.OnReport(now)
}

// sentence is an error for people, of a length that a report may have.
func sentence(err error) string {
	const most = 1000
	s := err.Error()
	return strings.ToValidUTF8(s[:min(len(s), most)], "")
}

// errOver is what callers hear when the agent ends.
var errOver = fmt.Errorf("%w: the agent is stopping", vms.ErrUnavailable)

// ErrOld is returned for a document that is not newer than the one that counts.
var ErrOld = errors.New("not newer than what is known")
