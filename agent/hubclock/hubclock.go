// Package hubclock knows UTC on a hub whose own clock may be wrong: hubs boot
// in 1970. It counts with the monotonic clock and adds an offset learned from
// the NVR; small corrections slew, so that time on the hub never jumps by less
// than it must.
package hubclock

import (
	"sync"
	"time"
)

const (
	// slewRate bounds how fast a correction is worked in (500 ppm: half of what
	// two clocks may differ by while both are slewed).
	slewRate = 500e-6
	// stepAbove: a larger correction is taken at once; slewing it would take
	// more than half an hour.
	stepAbove = time.Second
	// trustRTT: a round trip longer than this says too little about time.
	trustRTT = 5 * time.Second
)

// floor is a time that has certainly passed: a clock that shows less is wrong.
var floor = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// Clock is the hub's UTC. Make it with New. All methods may be called at the same time.
type Clock struct {
	boot time.Time // wall and monotonic reading when the clock was made
	base time.Time // UTC that boot stands for before any correction

	mu      sync.Mutex
	known   bool          // an NVR told the time
	offset  time.Duration // UTC minus base minus elapsed, as of at
	target  time.Duration // where offset is slewed to
	at      time.Duration // elapsed when offset was exact
	bestRTT time.Duration // of the answer that target comes from
	asked   time.Duration // elapsed at that answer
}

// New returns a clock that starts from the system's, or from the floor when
// the system's cannot be right.
func New(now time.Time) *Clock {
	c := &Clock{boot: now, base: now.UTC().Round(0)}
	if c.base.Before(floor) {
		c.base = floor
	}
	return c
}

// UTC converts a time of the system, which must carry a monotonic reading.
// uncertain: no NVR has told the time yet, and the system's is impossible.
func (c *Clock) UTC(t time.Time) (utc time.Time, uncertain bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := t.Sub(c.boot)
	uncertain = !c.known && c.boot.Before(floor)
	return c.base.Add(e + c.offsetAt(e)), uncertain
}

// Known reports whether an NVR has told the time.
func (c *Clock) Known() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known
}

// Now is the UTC of this instant.
func (c *Clock) Now() time.Time {
	utc, _ := c.UTC(time.Now())
	return utc
}

// offsetAt is the offset when e has elapsed.
func (c *Clock) offsetAt(e time.Duration) time.Duration {
	d := c.target - c.offset
	if d == 0 || e <= c.at {
		return c.offset
	}
	limit := time.Duration(float64(e-c.at) * slewRate)
	return c.offset + min(max(d, -limit), limit)
}

// Learn takes the NVR's answer to a question: asked and answered are times of
// the system with monotonic readings, server the UTC in the answer. It reports
// whether the clock made a step.
func (c *Clock) Learn(asked, answered, server time.Time) (stepped bool) {
	rtt := answered.Sub(asked)
	if rtt < 0 || rtt > trustRTT {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := answered.Sub(c.boot)
	// A faster answer is a better one; an old one is worth less by the drift since.
	age := time.Duration(float64(e-c.asked) * slewRate)
	if c.known && rtt/2 > c.bestRTT/2+age {
		return false
	}
	c.bestRTT, c.asked = rtt, e
	target := server.Add(rtt/2).Sub(c.base) - e
	now := c.offsetAt(e)
	c.offset, c.at, c.target = now, e, target
	if d := target - now; !c.known || d > stepAbove || d < -stepAbove {
		c.offset = target
		stepped = d > stepAbove || d < -stepAbove
	}
	c.known = true
	return stepped
}
