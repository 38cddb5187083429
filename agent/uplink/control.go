package uplink

import "time"

const (
	// target is how long bytes may wait in the uplink's queue because of backfill
	// (LEDBAT, RFC 6817, has the same).
	target = 100 * time.Millisecond
	// lagLimit is how far live may lag before backfill gives way, lagFor for how
	// long: a chunk that was appended this moment is no lag.
	lagLimit = 300 * time.Millisecond
	lagFor   = 250 * time.Millisecond
	// hopeless is a lag that backfill is not the cause of: the uplink is slower
	// than the camera.
	hopeless = 3 * time.Second

	startRate   = 16 << 10  // bytes/s at which an unknown uplink is tried first,
	restartRate = 256 << 10 // and at most one that was known before
	leastRate   = 512       // bytes/s that backfill gets whatever happens
	// stepTime is how long a rate is held before the next is tried.
	stepTime = 200 * time.Millisecond
	// headroom keeps live and backfill together below what the uplink carries, so
	// that its queue drains.
	headroom = 0.95
	// firstProbe and lastProbe bound the time between two looks for more.
	firstProbe = 2 * time.Second
	lastProbe  = 16 * time.Second
	// restart: after so long a pause the uplink may be another one.
	restart = 5 * time.Second
)

// phase is what the control does now.
type phase int

const (
	growing  phase = iota // raises the rate until the uplink is full
	draining              // lets the queue run empty
	holding               // keeps to the share of what was measured
)

// view is what is known of the uplink at one moment.
type view struct {
	seen      bool          // pings are answered: delay and delivered are known
	blind     bool          // a live lane's answer is overdue
	delay     time.Duration // in the queue
	rtt       time.Duration
	delivered float64 // bytes/s that arrived, as the pings saw it
	lagging   bool    // live waits
	starved   bool    // live does not fit, with or without backfill
}

func (v view) congested() bool { return v.delay > target || v.lagging }

// clear: the queue is as good as empty.
func (v view) clear() bool { return v.delay < target/2 && !v.lagging }

// control finds out how much the uplink carries. It raises backfill's rate
// quickly until bytes begin to queue or no more get through, takes what was
// delivered then for the capacity, lets the queue drain, and keeps to its share,
// looking for more now and then. It belongs to the governor, under its mutex.
type control struct {
	share float64

	phase    phase
	capacity float64 // bytes/s, 0 while unknown
	rate     float64 // bytes/s that backfill may send while growing
	factor   float64 // of the next step
	best     float64 // the most that was delivered in this phase
	starved  bool
	since    time.Time // when the phase began
	flat     int       // steps in a row that brought no more

	sentThen int64 // governor's sent when the queue began to drain, or a second ago

	stepAt time.Time
	sentAt int64         // governor's sent then
	moved  int64         // bytes of backfill in this step
	paced  time.Duration // that backfill waited for its rate in this step

	probeAt    time.Time
	probeEvery time.Duration
}

// begin starts over: after a pause nobody knows what the uplink carries.
func (c *control) begin(now time.Time) {
	c.probeEvery = firstProbe
	c.grow(now, max(startRate, min(c.capacity/8, restartRate)), 2)
}

func (c *control) enter(p phase, now time.Time) {
	c.phase, c.since, c.best, c.flat = p, now, 0, 0
	c.stepAt, c.moved, c.paced = now, 0, 0
}

func (c *control) grow(now time.Time, rate, factor float64) {
	c.enter(growing, now)
	c.rate, c.factor = rate, factor
}

func (c *control) hold(now time.Time, capacity float64) {
	// More was found: there may be more still.
	if capacity > 1.1*c.capacity {
		c.probeEvery = firstProbe
	} else {
		c.probeEvery = min(2*c.probeEvery, lastProbe)
	}
	c.capacity = max(capacity, leastRate)
	c.enter(holding, now)
	c.probeAt = now.Add(c.probeEvery)
}

// limits returns the rates of now, bytes/s: what backfill may send; what live
// and backfill may send together before backfill waits (0: no limit); and what
// backfill may send in any case.
func (c *control) limits() (own, total, floor float64) {
	floor = c.capacity / 64
	if c.starved { // there is no live to spoil, only previews
		floor = c.capacity / 5
	}
	floor = max(floor, leastRate)
	switch c.phase {
	case growing:
		return c.rate, 0, floor
	case draining:
		return 0, 0, floor
	}
	return c.share * c.capacity, headroom * c.capacity, floor
}

// step looks at what happened; sent is what all sockets have taken so far.
func (c *control) step(now time.Time, v view, sent int64) {
	c.starved = v.starved
	c.best = max(c.best, v.delivered)
	passed := now.Sub(c.stepAt)
	over := passed >= max(stepTime, v.rtt*3/2)
	var through, own, paced float64 // in this step: bytes/s of all, of backfill; how much of it was waited for the rate
	if over {
		through, own = float64(sent-c.sentAt)/passed.Seconds(), float64(c.moved)/passed.Seconds()
		paced = c.paced.Seconds() / passed.Seconds()
		c.stepAt, c.sentAt, c.moved, c.paced = now, sent, 0, 0
	}
	switch c.phase {
	case growing:
		switch {
		case v.congested():
			c.enter(draining, now)
			c.best, c.sentThen = v.delivered, sent
			if c.capacity == 0 {
				c.capacity = max(v.delivered, c.rate/2)
			}
		case !over || v.blind: // no news is not good news
		case paced > 0.3 && own > c.rate/2:
			c.flat = 0
			c.rate *= c.factor
			c.factor = min(c.factor*1.2, 2)
		default:
			// More is allowed than comes through, or than there is.
			if c.flat++; c.flat == 3 {
				c.hold(now, max(c.best, through))
			}
		}
	case draining:
		switch {
		case v.clear() && c.best > 0:
			c.hold(now, c.best)
		case v.clear():
			c.hold(now, c.capacity)
		case now.Sub(c.since) >= time.Second:
			// It does not drain: the uplink carries less than was thought, or others
			// use it. What was delivered meanwhile is what there is.
			if c.best == 0 {
				c.best = float64(sent-c.sentThen) / now.Sub(c.since).Seconds()
			}
			c.capacity = max(c.capacity/2, c.best, leastRate)
			c.enter(draining, now)
			c.sentThen = sent
		}
	case holding:
		switch {
		case v.congested():
			c.enter(draining, now)
			c.best, c.sentThen = max(v.delivered, 0.7*c.capacity), sent
		case over && paced > 0.3 && !v.blind && now.After(c.probeAt):
			c.grow(now, max(own, c.share*c.capacity)*1.25, 1.25)
		}
	}
}

// sight is what the pings and the cursor of one connection tell.
type sight struct {
	out   time.Time // when the ping went that is not answered yet; zero: none
	last  [2]time.Duration
	pongs int
	at    time.Time // of the last answer
	base  [6]least  // a ring of minutes' thirds: two minutes
	marks []mark

	lagSince   time.Time // since when the lag is above lagLimit; zero: it is not
	lagAt      time.Time // when that was said last
	hopelessAt time.Time // when live did not fit, last
}

// least is the shortest round trip of one slot of time.
type least struct {
	slot int64
	rtt  time.Duration
}

const slotTime = 20 * time.Second

// mark: so many bytes had been sent when the ping went whose answer came at at.
type mark struct {
	sent int64
	at   time.Time
}

const (
	// fresh is how long an answer tells something about now.
	fresh = time.Second
	// shortestSpan lies at least between two marks that a rate is taken from;
	// older than longestSpan no mark needs to be.
	shortestSpan = 250 * time.Millisecond
	longestSpan  = time.Second
	// deafAfter is how long a connection without any answer counts as one that
	// may still bring one.
	deafAfter = 5 * time.Second
)

func (s *sight) pong(now time.Time, sent int64, rtt time.Duration) {
	s.last[s.pongs%2] = rtt
	s.pongs++
	s.at = now
	slot := now.UnixNano() / int64(slotTime)
	b := &s.base[slot%int64(len(s.base))]
	if b.slot != slot || rtt < b.rtt {
		*b = least{slot, rtt}
	}
	s.marks = append(s.marks, mark{sent, now})
	for len(s.marks) > 2 && now.Sub(s.marks[1].at) > longestSpan {
		s.marks = s.marks[1:]
	}
}

// delay is how much longer than the shortest round trip of the last minutes the
// present one takes: the shorter of the last two, or the one under way when that
// is longer already.
func (s *sight) delay(now time.Time) (delay, rtt time.Duration, ok bool) {
	if s.pongs == 0 || now.Sub(s.at) > fresh && s.out.IsZero() {
		return 0, 0, false
	}
	rtt = s.last[0]
	if s.pongs > 1 {
		rtt = min(rtt, s.last[1])
	}
	if !s.out.IsZero() {
		rtt = max(rtt, now.Sub(s.out))
	}
	slot := now.UnixNano() / int64(slotTime)
	base := rtt
	for _, b := range s.base {
		if b.rtt > 0 && slot-b.slot < int64(len(s.base)) {
			base = min(base, b.rtt)
		}
	}
	return rtt - base, rtt, true
}

// silent: an answer is overdue, or none came for a while; but not of a
// connection that never answers.
func (s *sight) silent(now time.Time) bool {
	if s.pongs == 0 {
		return !s.out.IsZero() && now.Sub(s.out) < deafAfter
	}
	return now.Sub(s.at) > 3*stepTime
}

// delivered is the rate at which bytes arrived, as far as answers tell; 0: unknown.
func (s *sight) delivered(now time.Time) float64 {
	n := len(s.marks)
	if n < 2 || now.Sub(s.at) > fresh {
		return 0
	}
	b := s.marks[n-1]
	for i := n - 2; i >= 0; i-- { // the youngest that is old enough
		if span := b.at.Sub(s.marks[i].at); span >= shortestSpan {
			return float64(b.sent-s.marks[i].sent) / span.Seconds()
		}
	}
	return 0
}

func (s *sight) behind(now time.Time, lag time.Duration, preview bool) {
	s.lagAt = now
	switch {
	case lag <= lagLimit:
		s.lagSince = time.Time{}
	case s.lagSince.IsZero():
		s.lagSince = now
	}
	if preview || lag > hopeless {
		s.hopelessAt = now
	}
}

func (s *sight) lagging(now time.Time) bool {
	return !s.lagSince.IsZero() && now.Sub(s.lagSince) >= lagFor && now.Sub(s.lagAt) < fresh
}

func (s *sight) starved(now time.Time) bool {
	return !s.hopelessAt.IsZero() && now.Sub(s.hopelessAt) < hopeless
}
