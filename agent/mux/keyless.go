package mux

import "time"

// keyWait is how long a camera may go without a keyframe before it is asked for one.
const keyWait = time.Minute

// keyless counts the time without a keyframe. The zero value waits for a picture.
type keyless struct {
	since time.Time // of the newest keyframe, the first picture, or what was wanted last
}

// saw takes the arrival of a picture.
func (k *keyless) saw(key bool, now time.Time) {
	if key || k.since.IsZero() {
		k.since = now
	}
}

// wants reports, once for every keyWait, that there was no keyframe.
func (k *keyless) wants(now time.Time) bool {
	if k.since.IsZero() || within(now, k.since, keyWait) {
		return false
	}
	wants := !now.Before(k.since) // else the clock was set back: count from here
	k.since = now
	return wants
}
