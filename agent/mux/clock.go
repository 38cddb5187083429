package mux

import "time"

const (
	// maxSlew bounds how fast UTC is moved against media time, so that start,
	// end and media duration of a recording agree within it.
	maxSlew = 500e-6
	// clockWindow is over how long the fastest frame is looked for: it is the
	// one that the network delayed least.
	clockWindow = 10 * time.Second
	// clockStep: when media time and the hub's clock differ by more, a new span
	// is begun instead of slewing for hours; a new epoch when UTC has to go back.
	clockStep = 5 * time.Second
	// settle is for how long at the beginning of a session pictures are looked at,
	// before its first chunk is stamped, to see whether the camera sends its last
	// seconds all at once: their arrival says nothing, and an anchor that is too
	// late could only be slewed back, for hours.
	settle = 500 * time.Millisecond
)

// mediaClock turns ticks into UTC. A span is anchored to the arrival of its
// pictures; from there UTC runs with media time and is slewed towards the hub's
// clock. It never goes back, not even from one span to the next.
type mediaClock struct {
	ts    uint32
	tick  int64     // where at is exact
	at    time.Time // UTC of tick
	last  time.Time // end of the last chunk
	slew  time.Duration
	ready bool
	// stepped: UTC is too far behind the hub's clock; the next keyframe begins a
	// span. ahead: too far before it, and UTC never goes back in an epoch.
	stepped, ahead bool

	// The window: least arrival minus UTC so far, and since when.
	best  time.Duration
	since time.Time
	seen  bool
	// pending holds the anchor before the first chunk: the least of arrival
	// minus media time, as the UTC of tick 0.
	origin     time.Time
	haveOrigin bool
	// left is the most that sessions of the camera which are over were away from
	// the hub's clock at their end.
	left time.Duration
}

// utc is the UTC of a tick under the present anchor.
func (c *mediaClock) utc(t int64) time.Time { return c.at.Add(toDuration(t-c.tick, c.ts)) }

// observe takes the arrival of a picture. While the hub's time is provisional
// nothing steps: all of it will be moved at once (rebase), and what lies side by
// side in it stays so.
func (c *mediaClock) observe(t int64, now time.Time, provisional bool, ts uint32) {
	c.ts = ts
	zero := now.Add(-toDuration(t, ts))
	if !c.haveOrigin || zero.Before(c.origin) {
		c.origin, c.haveOrigin = zero, true
	}
	if !c.ready {
		return
	}
	d := now.Sub(c.utc(t))
	if !c.seen || now.Before(c.since) { // the hub's clock was set back: look anew
		c.seen, c.since, c.best = true, now, d
		return
	}
	c.best = min(c.best, d)
	if now.Sub(c.since) < clockWindow {
		return
	}
	c.slew, c.seen = c.best, false
	if !provisional {
		c.stepped = c.stepped || c.best > clockStep
		c.ahead = c.best < -clockStep
	}
	c.origin = now.Add(-toDuration(t, ts) - (d - c.best))
}

// begin anchors a span that starts at tick t, and reports whether it did: a
// span that begins inside a session without a step of the clock goes on where
// the last one ended.
func (c *mediaClock) begin(t int64, ts uint32) bool {
	if c.ready && !c.stepped {
		return false
	}
	c.ts, c.tick = ts, t
	c.at = c.origin.Add(toDuration(t, ts)).Truncate(time.Microsecond)
	if c.at.Before(c.last) {
		c.at = c.last
	}
	c.last = c.at
	c.slew, c.seen, c.stepped, c.ahead, c.ready = 0, false, false, false, true
	return true
}

// rebase moves all by delta, and by what UTC is away from the hub's clock: as
// long as nothing is named by it, that need not be slewed away. It returns the
// sum, in whole microseconds.
func (c *mediaClock) rebase(delta time.Duration) time.Duration {
	by := (delta + c.slew).Truncate(time.Microsecond)
	shift(&c.at, by)
	shift(&c.last, by)
	shift(&c.origin, delta)
	// A window that was begun measured against what is no more.
	c.slew, c.left, c.seen = 0, 0, false
	return by
}

// shift moves a time that was set.
func shift(t *time.Time, by time.Duration) {
	if !t.IsZero() {
		*t = t.Add(by)
	}
}

// rewind lets the next span begin before the last one ended: in another epoch.
func (c *mediaClock) rewind() { c.ready, c.last = false, time.Time{} }

// forget drops the anchor: the camera's session is over.
func (c *mediaClock) forget() {
	c.left = max(c.left, c.slew.Abs())
	c.ready, c.haveOrigin, c.seen, c.slew, c.stepped, c.ahead = false, false, false, 0, false, false
}

// advance ends a chunk at tick t and returns its UTC start and end.
func (c *mediaClock) advance(t int64) (start, end time.Time) {
	start = c.last
	d := toDuration(t-c.tick, c.ts)
	limit := time.Duration(float64(d) * maxSlew)
	step := min(max(c.slew, -limit), limit)
	c.slew -= step
	end = c.utc(t).Add(step).Truncate(time.Microsecond)
	if end.Before(start) {
		end = start
	}
	// The remainder below a microsecond stays in the anchor, so that rounding does not add up.
	c.at, c.tick, c.last = c.utc(t).Add(step), t, end
	return start, end
}
