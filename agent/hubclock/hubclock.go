// Package hubclock knows UTC on a hub whose own clock may be wrong: hubs boot
// in 1970. It counts with the monotonic clock and adds an offset learned from
// the NVR, or from an SNTP server; small corrections slew, so that time on the
// hub never jumps by less than it must, and the crystal's own rate is measured
// and taken out, so that an hour without the NVR costs little. Steps of the
// system's clock do not matter.
//
// Until somebody has told the time, UTC is provisional: it runs evenly from a
// guess that is not below what has certainly passed. What was stamped with it
// gets its UTC by one addition when the time is learnt (Place), in this run or,
// since boots are kept on flash with how their time was learnt, in a later one.
package hubclock

import (
	"cmp"
	"log/slog"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// slewRate bounds how fast a correction is worked in. With a crystal's rate
	// (mostRate) taken out beside it, UTC is never moved by more than 1000 ppm.
	slewRate = 500e-6
	mostRate = 500e-6
	// stepAbove: a larger correction is taken at once; slewing it would take
	// more than half an hour.
	stepAbove = time.Second
	// trustRTT: a round trip longer than this says too little about time; of a
	// clock that knows nothing, firstRTT: its error bound tells.
	trustRTT = 5 * time.Second
	firstRTT = 30 * time.Second

	// worstDrift is what a crystal may be off by while its rate is not known,
	// knownDrift when it was measured to within goodRate: temperature changes it.
	worstDrift, knownDrift = 500e-6, 100e-6
	goodRate               = 50e-6
	// leastError is what no measurement gets below: cloud clocks differ as well.
	leastError = time.Millisecond

	// Certain is the error up to which a time counts as known: what was captured
	// before the time was learnt, and may be off by more, keeps its mark.
	Certain = time.Second

	// persist is how often what is known is put on flash.
	persist = 10 * time.Minute
	// plausible is how far ahead of what has passed a system's clock may be at
	// most: real-time clocks whose battery is empty show any year.
	plausible = 20 * 365 * 24 * time.Hour
)

// built is the floor of a build that does not say when it was made.
var built = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// The sources of time, as in wire.ReportedClock.
const (
	SourceNVR  = "nvr"
	SourceSNTP = "sntp"
	SourceRTC  = "rtc"  // nobody told; the system's clock is plausible
	SourceNone = "none" // nobody told
)

// Config is what a clock needs. The zero value is of use: nothing is kept, and
// the rest is the machine's own.
type Config struct {
	// Store keeps the document "clock"; nil: nothing outlives the process.
	Store Documents
	// Built is when the program was built: a time that has certainly passed.
	Built time.Time
	// SNTP is the host or host:port of a server that Run asks too; empty: none.
	SNTP string
	Log  *slog.Logger // nil: nothing is logged

	// What the machine knows; tests replace them. Boot returns the kernel's boot
	// id and how long ago that was, counting on while the machine sleeps; an
	// empty id: it does not tell, and each run is a boot of its own. Wall is the
	// system's clock. RTC is the battery-backed one, read to the second; false:
	// there is none. Now is time.Now, with a monotonic reading.
	Boot func() (id string, up time.Duration)
	Wall func() time.Time
	RTC  func() (time.Time, bool)
	Now  func() time.Time
}

// Clock is the hub's UTC. Make it with New; Run keeps it on flash. All methods
// may be called at the same time.
type Clock struct {
	cfg    Config
	start  time.Time     // wall and monotonic reading when the clock was made
	up     time.Duration // since the boot, at start
	passed time.Time     // had certainly passed at start
	saying string        // the source while nobody has told the time
	keep   chan struct{} // rings when there is something to keep

	mu      sync.Mutex
	boots   boots // the last one is this
	known   bool  // somebody told the time
	trusted bool  // the NVR did, in this boot
	source  string
	// Of the time at, elapsed since start: est is UTC as well as it is known, to
	// within err; what is shown lags behind it by lag, which is slewed away.
	at       time.Duration
	est      time.Time
	err, lag time.Duration
	rate     rate
	onLearn  []func(time.Duration)
}

// New returns a clock that goes on where an earlier run in the same boot of the
// machine was; else it starts, provisionally, from the system's, or when that
// cannot be right from what has passed for certain.
func New(cfg Config) *Clock {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Boot == nil {
		cfg.Boot = kernelBoot
	}
	if cfg.RTC == nil {
		cfg.RTC = kernelRTC
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Wall == nil {
		cfg.Wall = time.Now
	}
	if cfg.Built.IsZero() {
		cfg.Built = built
	}
	c := &Clock{cfg: cfg, start: cfg.Now(), keep: make(chan struct{}, 1), saying: SourceNone}
	id, up := cfg.Boot()
	c.up = up
	doc := c.load()
	c.boots, c.rate = doc.Boots, doc.rate()
	c.passed = later(cfg.Built, doc.Passed)
	if id == "" {
		id = vms.NewID[string]("run")
	}
	if n := len(c.boots); n > 0 && c.boots[n-1].ID == id && up >= c.boots[n-1].Up {
		c.goOn(&c.boots[n-1])
		return c
	}
	if wall := cfg.Wall().UTC().Round(0); !wall.Before(c.passed) && wall.Before(c.passed.Add(plausible)) {
		c.est, c.saying = wall, SourceRTC
	} else {
		// What was recorded since it was kept lies before what is recorded now.
		c.est = later(cfg.Built, c.boots.ended().Add(persist))
	}
	c.est = c.est.Truncate(time.Microsecond)
	c.boots = append(c.boots, boot{ID: id, Zero: c.est.Add(-up).Truncate(time.Microsecond), Passed: c.passed, Drift: c.rate.bound()})
	return c
}

// goOn takes over from an earlier run in this boot.
func (c *Clock) goOn(b *boot) {
	d := c.up - b.Up
	c.passed = later(c.passed, b.PassedAt.Add(d))
	c.est = b.UTC.Add(d + c.rate.of(d))
	c.known, c.source, c.trusted = b.Known, b.Source, b.Source == SourceNVR
	c.err = b.Error + c.rate.drift(d)
	if !b.Known && b.Source == SourceRTC {
		c.saying = SourceRTC
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// UTC converts a time of the system, which must carry a monotonic reading.
// uncertain: nobody has told the time yet, it is provisional.
func (c *Clock) UTC(t time.Time) (utc time.Time, uncertain bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown(t.Sub(c.start)), !c.known
}

// shown is the UTC when e has elapsed.
func (c *Clock) shown(e time.Duration) time.Time {
	return c.estimate(e).Add(-c.remaining(e))
}

// estimate is UTC as well as it is known.
func (c *Clock) estimate(e time.Duration) time.Time {
	d := e - c.at
	return c.est.Add(d + c.rate.of(d))
}

// remaining is what of the newest correction is not worked in yet.
func (c *Clock) remaining(e time.Duration) time.Duration {
	if e <= c.at || c.lag == 0 {
		return c.lag
	}
	done := time.Duration(float64(e-c.at) * slewRate)
	if c.lag > 0 {
		return max(0, c.lag-done)
	}
	return min(0, c.lag+done)
}

// Known reports whether somebody has told the time.
func (c *Clock) Known() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known
}

// Now is the UTC of this instant.
func (c *Clock) Now() time.Time {
	utc, _ := c.UTC(c.cfg.Now())
	return utc
}

// Read is Now with what it is worth.
func (c *Clock) Read() (utc time.Time, certain bool) {
	utc, uncertain := c.UTC(c.cfg.Now())
	return utc, !uncertain
}

// Passed is a time that has certainly passed, also while nobody has told what
// time it is.
func (c *Clock) Passed() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passedAt(c.cfg.Now().Sub(c.start))
}

func (c *Clock) passedAt(e time.Duration) time.Time {
	if c.known {
		return c.shown(e).Add(-c.errorAt(e)).UTC()
	}
	return c.passed.Add(e)
}

// Built is a time that had certainly passed when the program was built.
func (c *Clock) Built() time.Time { return c.cfg.Built }

// ErrorBound is the most that UTC may be off by now. It grows while nobody tells
// the time: by 500 ppm, or by 100 when the crystal's rate was measured. known is
// false, and the bound says nothing, when nobody has told it yet.
func (c *Clock) ErrorBound() (bound time.Duration, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.errorAt(c.cfg.Now().Sub(c.start)), c.known
}

func (c *Clock) errorAt(e time.Duration) time.Duration {
	return c.err + c.rate.drift(e-c.at) + c.remaining(e).Abs()
}

// Source says who told the time last: a Source word.
func (c *Clock) Source() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sourceNow()
}

func (c *Clock) sourceNow() string {
	if !c.known {
		return c.saying
	}
	return cmp.Or(c.source, SourceNone)
}

// Reported is the clock as a hub reports it.
func (c *Clock) Reported() *wire.ReportedClock {
	bound, known := c.ErrorBound()
	r := &wire.ReportedClock{ErrorMS: -1, Source: c.Source()}
	if known {
		r.ErrorMS = int64((bound + time.Millisecond - 1) / time.Millisecond)
	}
	return r
}

// OnLearn has f called, on the goroutine of whoever tells the time, when that
// makes UTC jump: by how much. The first time is when the time becomes known,
// however small the jump: only what was provisional moves with that one.
func (c *Clock) OnLearn(f func(jump time.Duration)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onLearn = append(c.onLearn, f)
}

// Learn takes the NVR's answer to a question: asked and answered are times of
// the system with monotonic readings, server the UTC in the answer. It reports
// whether the clock made a step of more than a second.
func (c *Clock) Learn(asked, answered, server time.Time) (stepped bool) {
	return c.learn(asked, answered, server, SourceNVR)
}

// LearnSNTP is Learn for the answer of an SNTP server, which anybody on the way
// can forge: it tells the time only to a clock that the NVR has not told it, and
// none that has passed; to others, what lies in their error bound.
func (c *Clock) LearnSNTP(asked, answered, server time.Time) (stepped bool) {
	return c.learn(asked, answered, server, SourceSNTP)
}

func (c *Clock) learn(asked, answered, server time.Time, source string) bool {
	rtt := answered.Sub(asked)
	server = server.UTC().Round(0)
	c.mu.Lock()
	most := trustRTT
	if !c.known {
		most = firstRTT
	}
	e := answered.Sub(c.start)
	early := source == SourceSNTP && !c.trusted && server.Before(c.passed)
	if rtt < 0 || rtt > most || e < c.at || early {
		c.mu.Unlock()
		return false
	}
	first := !c.known
	told, half := server.Add(rtt/2), max(rtt/2, leastError)
	shown := c.shown(e)
	est, bound := told, half
	if !first {
		var agrees bool
		est, bound, agrees = meet(c.estimate(e), c.err+c.rate.drift(e-c.at), told, half)
		if !agrees && source == SourceSNTP && c.trusted {
			c.mu.Unlock()
			c.cfg.Log.Warn("an SNTP server contradicts the NVR; it is not believed", "by", told.Sub(shown))
			return false
		}
		if !agrees {
			// The clock of who tells was set, or drift was worse than any crystal's.
			est, bound = told, half
			c.rate.forget()
		}
	}
	jump := est.Sub(shown)
	step := jump.Abs() > stepAbove
	if step {
		c.rate.forget()
	}
	c.rate.learn(e, told.Sub(c.start.Round(0))-e, half)
	c.at, c.est, c.err, c.lag = e, est, bound, jump
	if first || step {
		c.lag = 0
	}
	c.known, c.source, c.trusted = true, source, c.trusted || source == SourceNVR
	var tell []func(time.Duration)
	if first {
		b := &c.boots[len(c.boots)-1]
		b.Shift = jump.Truncate(time.Microsecond)
		b.LearntAt, b.LearntError = shown, bound
		// What was provisional moves by whole microseconds, and what follows with it.
		c.est = shown.Add(b.Shift)
	}
	if first || step {
		tell = append(tell, c.onLearn...)
		c.ring()
	}
	c.mu.Unlock()
	for _, f := range tell {
		f(jump)
	}
	return step
}

// meet is where two statements about one instant agree, and to within what.
func meet(a time.Time, errA time.Duration, b time.Time, errB time.Duration) (t time.Time, err time.Duration, ok bool) {
	d := b.Sub(a)
	lo, hi := max(-errA, d-errB), min(errA, d+errB)
	if lo > hi {
		return b, errB, false
	}
	return a.Add(lo + (hi-lo)/2), max((hi-lo)/2, leastError), true
}

// ring has Run keep what is known.
func (c *Clock) ring() {
	select {
	case c.keep <- struct{}{}:
	default: // it is about to
	}
}
