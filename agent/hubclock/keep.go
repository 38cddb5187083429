package hubclock

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// document is the name under which the clock is kept.
	document = "clock"
	// mostBoots are kept: what is on flash of older ones is placed by estimate.
	mostBoots = 16
	// rtcPoll is how often the battery-backed clock is read to see its second
	// begin; rtcSet is what it may differ by from what it was before somebody
	// must have set it.
	rtcPoll = 10 * time.Millisecond
	rtcSet  = 3 * time.Second
)

// Documents keeps small documents by name. PutDocument returns when it is on
// flash; Document returns nil when there is none of that name.
type Documents interface {
	Document(name string) ([]byte, error)
	PutDocument(name string, data []byte) error
}

// kept is the document. Durations are nanoseconds.
type kept struct {
	// Passed is a time that had certainly passed when this was written.
	Passed  time.Time `json:"passed"`
	Boots   boots     `json:"boots"` // oldest first
	Rate    float64   `json:"rate"`  // of UTC against the crystal, less 1
	RateErr float64   `json:"rate_error,omitempty"`
}

// rate is what is known of the crystal.
func (k *kept) rate() rate {
	if k.RateErr <= 0 || k.RateErr > mostRate || k.Rate < -mostRate || k.Rate > mostRate {
		return rate{}
	}
	return rate{value: k.Rate, err: k.RateErr}
}

// boot is one boot of the machine, as of the newest writing in it.
type boot struct {
	ID     string    `json:"id"`
	Zero   time.Time `json:"zero"`          // see Origin
	Passed time.Time `json:"passed"`        // certainly, when it began
	RTC    time.Time `json:"rtc,omitzero"`  // what the battery-backed clock showed at Zero; zero: there is none, or it was set
	SetRTC bool      `json:"set,omitempty"` // it was set
	// Since the boot, when this was written; and the UTC that was shown then.
	Up       time.Duration `json:"up"`
	UTC      time.Time     `json:"utc"`
	PassedAt time.Time     `json:"passed_at"`
	// Known: somebody has told the time in this boot; Error bounds UTC.
	Known  bool          `json:"known"`
	Error  time.Duration `json:"error,omitempty"`
	Source string        `json:"source,omitempty"`
	// Drift bounds how fast provisional time may have gone wrong.
	Drift float64 `json:"drift"`
	// How far what was provisional moved when the time was learnt, when that was
	// by it, and to within what it was.
	Shift       time.Duration `json:"shift,omitempty"`
	LearntAt    time.Time     `json:"learnt_at,omitzero"`
	LearntError time.Duration `json:"learnt_error,omitempty"`
}

func (b *boot) learnt() bool { return !b.LearntAt.IsZero() }

// boots are some in a row, oldest first.
type boots []boot

// ended is when the newest was heard of last, by its own time unless that came
// from the system's clock and nobody confirmed it; zero when there is none.
func (bs boots) ended() time.Time {
	n := len(bs)
	if n == 0 {
		return time.Time{}
	}
	if b := &bs[n-1]; b.Known || b.Source == SourceNone {
		return later(b.UTC, b.PassedAt)
	}
	return bs[n-1].PassedAt
}

func (b *boot) origin() Origin { return Origin{Boot: b.ID, Zero: b.Zero} }

// load reads the document. One that cannot be read is none: the NVR will tell.
func (c *Clock) load() (k kept) {
	if c.cfg.Store == nil {
		return k
	}
	data, err := c.cfg.Store.Document(document)
	if err == nil && data != nil {
		if err = json.Unmarshal(data, &k); err != nil {
			k = kept{}
		}
	}
	if err != nil {
		c.cfg.Log.Error("what is known of earlier boots cannot be read", "err", err)
	}
	for i := range k.Boots { // so that nobody divides by zero
		if b := &k.Boots[i]; b.Drift <= 0 {
			b.Drift = worstDrift
		}
	}
	return k
}

// Run keeps on flash what is known, when the time is learnt, every ten minutes
// and at the end, and asks the SNTP server, until ctx ends.
func (c *Clock) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	if c.cfg.SNTP != "" {
		g.Go(func() error { return c.askSNTP(gctx) })
	}
	g.Go(func() error {
		c.readRTC(gctx)
		c.Save()
		t := time.NewTicker(persist)
		defer t.Stop()
		for {
			select {
			case <-gctx.Done():
				c.Save()
				return nil
			case <-c.keep:
			case <-t.C:
				c.checkRTC()
			}
			c.Save()
		}
	})
	return g.Wait()
}

// Save puts what is known on flash. Run does, except where a program ends
// without it.
func (c *Clock) Save() {
	if c.cfg.Store == nil {
		return
	}
	c.mu.Lock()
	e := c.cfg.Now().Sub(c.start)
	b := &c.boots[len(c.boots)-1]
	b.Up, b.UTC, b.PassedAt = c.up+e, c.shown(e).UTC(), c.passedAt(e)
	b.Known, b.Error, b.Source = c.known, c.errorAt(e), c.sourceNow()
	if !c.known {
		b.Error = 0
	}
	if n := len(c.boots) - mostBoots; n > 0 {
		c.boots = append(c.boots[:0], c.boots[n:]...)
	}
	k := kept{Passed: b.PassedAt, Boots: c.boots, Rate: c.rate.value, RateErr: c.rate.err}
	data, err := json.Marshal(k)
	c.mu.Unlock()
	if err == nil {
		err = c.cfg.Store.PutDocument(document, data)
	}
	if err != nil {
		c.cfg.Log.Error("the time cannot be kept over a reboot", "err", err)
	}
}

// readRTC sees a second of the battery-backed clock begin.
func (c *Clock) readRTC(ctx context.Context) {
	before, ok := c.cfg.RTC()
	if !ok {
		return
	}
	t := time.NewTicker(rtcPoll)
	defer t.Stop()
	for range int(1200 * time.Millisecond / rtcPoll) {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now, ok := c.cfg.RTC()
		if !ok {
			return
		}
		if now.Equal(before) {
			continue
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.sawRTC(now)
		return
	}
}

// sawRTC notes a second of the battery-backed clock that has just begun.
func (c *Clock) sawRTC(now time.Time) {
	b := &c.boots[len(c.boots)-1]
	zero := c.rtcZero(now)
	switch {
	case b.SetRTC || now.Before(c.passed):
	case b.RTC.IsZero():
		b.RTC = zero
	case zero.Sub(b.RTC).Abs() > rtcSet:
		b.RTC, b.SetRTC = time.Time{}, true
	}
}

// checkRTC notices that somebody has set the battery-backed clock: it does not
// bridge boots then.
func (c *Clock) checkRTC() {
	now, ok := c.cfg.RTC()
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := &c.boots[len(c.boots)-1]; !b.RTC.IsZero() && c.rtcZero(now).Sub(b.RTC).Abs() > rtcSet {
		b.RTC, b.SetRTC = time.Time{}, true
	}
}

// rtcZero is what the battery-backed clock showed at Zero when it shows now.
func (c *Clock) rtcZero(now time.Time) time.Time {
	e := c.up + c.cfg.Now().Sub(c.start)
	return now.Add(-e - c.rate.of(e))
}

// kernelBoot reads the boot's id and age.
func kernelBoot() (id string, up time.Duration) {
	name, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0
	}
	age, err := os.ReadFile("/proc/uptime") // CLOCK_BOOTTIME, to a hundredth of a second
	if err != nil {
		return "", 0
	}
	up, err = parseUptime(string(age))
	if err != nil {
		return "", 0
	}
	return strings.TrimSpace(string(name)), up
}

func parseUptime(s string) (time.Duration, error) {
	word, _, _ := strings.Cut(strings.TrimSpace(s), " ")
	sec, err := strconv.ParseFloat(word, 64)
	if err != nil || !(sec >= 0 && sec < 1e9) {
		return 0, fmt.Errorf("uptime %q", s)
	}
	return time.Duration(sec * float64(time.Second)), nil
}

// kernelRTC reads the battery-backed clock that the kernel knows.
func kernelRTC() (time.Time, bool) {
	data, err := os.ReadFile("/sys/class/rtc/rtc0/since_epoch")
	if err != nil {
		return time.Time{}, false
	}
	sec, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil || sec <= 0 {
		return time.Time{}, false
	}
	return time.Unix(sec, 0).UTC(), true
}
