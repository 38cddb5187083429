package hubclock

import (
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// rtcDrift is what the battery-backed clock of a hub may be off by, rtcError
	// what reading it costs.
	rtcDrift = 20e-6
	rtcError = 50 * time.Millisecond
)

// Origin names a provisional time: that of a boot of the machine. Times of the
// same origin are right beside each other.
type Origin struct {
	Boot string `json:"boot"`
	// Zero is the provisional UTC that the boot itself stands for.
	Zero time.Time `json:"zero"`
}

// Placement is what becomes of provisional times.
type Placement struct {
	// Shift is to be added to them; whole microseconds.
	Shift time.Duration
	// Sure is where, in provisional times, the result is off by less than Certain;
	// what is elsewhere keeps its mark.
	Sure vms.TimeRange
}

// Origin is that of what is provisional in this boot.
func (c *Clock) Origin() Origin {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boots[len(c.boots)-1].origin()
}

// Place says what becomes of times of an origin. ok is false while nobody has
// told the time, and for a boot in which nobody did and which no clock bridges.
// doubt is how much more than the clock itself the times may be off by.
func (c *Clock) Place(o Origin, doubt time.Duration) (p Placement, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known {
		return p, false
	}
	for i := len(c.boots) - 1; i >= 0; i-- {
		if b := &c.boots[i]; b.ID == o.Boot {
			if p, ok = c.place(b, doubt); ok {
				// A boot that was named twice: the document was lost in between.
				by := b.Zero.Sub(o.Zero).Truncate(time.Microsecond)
				p.Shift += by
				p.Sure.Start, p.Sure.End = p.Sure.Start.Add(-by), p.Sure.End.Add(-by)
			}
			return p, ok
		}
	}
	return p, false
}

// place is Place for a boot that is known.
func (c *Clock) place(b *boot, doubt time.Duration) (p Placement, ok bool) {
	if b.learnt() {
		// The crystal has gone away from UTC since, the farther back the more.
		back := time.Duration(float64(Certain-b.LearntError-doubt) / b.Drift)
		p.Shift = b.Shift
		p.Sure = vms.TimeRange{Start: b.LearntAt.Add(-back), End: b.LearntAt.Add(time.Hour)}
		return p, true
	}
	// The battery-backed clock went on over the reboot, and how far it is off is
	// known now.
	this := &c.boots[len(c.boots)-1]
	if b == this || b.RTC.IsZero() || this.RTC.IsZero() || !this.learnt() {
		return p, false
	}
	began := this.Zero.Add(this.Shift)
	zero := b.RTC.Add(began.Sub(this.RTC))
	apart := began.Sub(zero)
	if apart < 0 || zero.Before(b.Passed.Add(-Certain)) {
		return p, false // somebody has set it in between
	}
	p.Shift = zero.Sub(b.Zero).Truncate(time.Microsecond)
	err := 2*rtcError + this.LearntError + time.Duration(rtcDrift*float64(apart)) + doubt
	on := max(0, time.Duration(float64(Certain-err)/b.Drift))
	p.Sure = vms.TimeRange{Start: b.Zero, End: b.Zero.Add(on)}
	return p, true
}

// Lag is how far what follows both the hub's clock and a camera's may have fallen
// behind the former in a stretch of provisional time: it is followed by as much
// as a crystal may be off, so that is what the other may add.
func (c *Clock) Lag(o Origin, stretch time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	drift := worstDrift
	for i := range c.boots {
		if c.boots[i].ID == o.Boot {
			drift = c.boots[i].Drift
		}
	}
	return time.Duration(drift * float64(stretch))
}

// Began is the UTC of this boot of the machine, as well as it is known: what an
// earlier one has captured lies before it.
func (c *Clock) Began() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown(0).Add(-c.up)
}
