package hubclock

import "time"

const (
	// Answers are kept one per bucket, for so many: the rate is measured over
	// about two hours, in which temperature changes it little.
	bucketLen  = 2 * time.Minute
	mostBucket = 64
	// wander is what the rate may change by in that time, wanderHour by the hour
	// while it is not measured.
	wander, wanderHour = 5e-6, 10e-6
	// usefulRate: a measurement that is not as good says nothing.
	usefulRate = 250e-6
)

// rate is how much faster UTC runs than the hub's monotonic clock: a crystal is
// off by up to mostRate, always by about the same. The zero value knows nothing.
type rate struct {
	value   float64 // 1e-6 is 1 ppm
	err     float64 // bound of what value may be off by; 0: not measured
	at      time.Duration
	buckets []answer
	begun   time.Duration // the newest bucket
}

// answer is one that told the time: how far UTC is ahead of the hub's count, to
// within half.
type answer struct {
	at, ahead, half time.Duration
}

// of is what d of the hub's count lacks of UTC.
func (r *rate) of(d time.Duration) time.Duration { return time.Duration(float64(d) * r.value) }

// bound is what the rate may be off by at most.
func (r *rate) bound() float64 {
	if r.err > 0 && r.err <= goodRate {
		return knownDrift
	}
	return worstDrift
}

// drift is the error that comes together in d.
func (r *rate) drift(d time.Duration) time.Duration {
	return time.Duration(float64(max(d, 0)) * r.bound())
}

// forget drops the answers, as the clock that gave them was set.
func (r *rate) forget() { r.buckets = nil }

// learn takes an answer and measures anew: the time between two that are good
// and far apart, by both clocks.
func (r *rate) learn(at, ahead, half time.Duration) {
	best, slope := float64(usefulRate), 0.0
	for _, a := range r.buckets {
		dt := float64(at - a.at)
		if at-a.at < bucketLen {
			continue
		}
		if u := float64(half+a.half)/dt + wander; u < best {
			best, slope = u, float64(ahead-a.ahead)/dt
		}
	}
	if best < usefulRate {
		r.take(at, slope, best)
	}
	n := len(r.buckets)
	if n > 0 && at-r.begun < bucketLen {
		if half <= r.buckets[n-1].half {
			r.buckets[n-1] = answer{at, ahead, half}
		}
		return
	}
	if n == mostBucket {
		r.buckets = append(r.buckets[:0], r.buckets[1:]...)
	}
	r.buckets, r.begun = append(r.buckets, answer{at, ahead, half}), at
}

// take brings a measurement together with what was known.
func (r *rate) take(at time.Duration, slope, err float64) {
	had := r.err
	if had == 0 {
		had = mostRate
	} else {
		had = min(mostRate, had+wanderHour*(at-r.at).Hours())
	}
	lo, hi := max(r.value-had, slope-err), min(r.value+had, slope+err)
	if lo > hi {
		lo, hi = slope-err, slope+err // it has changed
	}
	r.value = min(max((lo+hi)/2, -mostRate), mostRate)
	r.err, r.at = max((hi-lo)/2, wander), at
}
