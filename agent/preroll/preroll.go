// Package preroll keeps the last seconds of a stream that is not recorded, so
// that a recording can begin before the event that asks for it: whole GOPs as
// they came from the camera, in memory that is counted.
package preroll

import (
	"time"

	"github.com/zipato/vms/pkg/cmaf"
)

// Unit is one access unit and what the muxer has to be told about it.
type Unit struct {
	Audio bool
	PTS   int64
	// Camera is its time by the camera's clock, or zero; Arrival when it came,
	// with a monotonic reading: what UTC that was is asked when it is recorded.
	Camera, Arrival time.Time
	// Data are the NAL units of a picture, or the one frame of sound.
	Data [][]byte
}

// cost is what a unit takes of memory, bytes: what it holds and what holds it.
func (u *Unit) cost() int64 {
	n := int64(96)
	for _, d := range u.Data {
		n += int64(len(d)) + 24
	}
	return n
}

// GOP is a keyframe and all that came up to the next one. S is what a session's
// sound is described with: the ring only hands it on.
type GOP[S any] struct {
	// Session counts the sessions of the camera: times of different ones have
	// nothing to do with each other.
	Session int
	Video   cmaf.VideoParams // in force at the keyframe
	Audio   *S               // nil: the session has no sound
	Units   []Unit

	bytes  int64
	newest time.Time // arrival of the last unit
}

// Ring holds the newest GOPs of one stream. Make it with New. It is not safe for
// concurrent use, and starts nothing.
type Ring[S any] struct {
	length  time.Duration
	reserve func(n int64) bool

	session int
	open    bool // a session is
	audio   *S
	growing bool // the newest GOP takes what comes
	gops    []*GOP[S]
	short   bool // something was given up for want of memory since the last Take
}

// New returns an empty ring that holds at least length, as far as there is
// memory. reserve is asked for n bytes before they are kept, and told of bytes
// that are free again by n < 0. When it says no, the oldest GOPs give way, then
// the newest: what has lost its keyframe is of no use.
func New[S any](length time.Duration, reserve func(n int64) bool) *Ring[S] {
	return &Ring[S]{length: length, reserve: reserve}
}

// Open begins a session of the camera. What is held of the one before stays
// until it is too old.
func (r *Ring[S]) Open(a *S) {
	r.session++
	r.open, r.audio, r.growing = true, a, false
}

// Lost ends the session.
func (r *Ring[S]) Lost() { r.open, r.growing = false, false }

// Session is the number of the session that is open; 0 when none is.
func (r *Ring[S]) Session() int {
	if !r.open {
		return 0
	}
	return r.session
}

// Key takes a picture at which a decoder can begin; p is in force there.
func (r *Ring[S]) Key(u Unit, p cmaf.VideoParams) {
	r.gops = append(r.gops, &GOP[S]{Session: r.session, Video: p, Audio: r.audio})
	r.growing = true
	r.put(u)
	r.Trim(u.Arrival)
}

// Add takes any other picture, or sound. What comes before a keyframe is of no use.
func (r *Ring[S]) Add(u Unit) {
	if r.growing {
		r.put(u)
	}
}

func (r *Ring[S]) put(u Unit) {
	n := u.cost()
	for !r.reserve(n) {
		r.short = true
		if r.drop(); !r.growing {
			return
		}
	}
	g := r.gops[len(r.gops)-1]
	g.Units = append(g.Units, u)
	g.bytes += n
	g.newest = u.Arrival
}

// drop gives up the oldest GOP.
func (r *Ring[S]) drop() {
	r.reserve(-r.gops[0].bytes)
	r.gops[0] = nil
	if r.gops = r.gops[1:]; len(r.gops) == 0 {
		r.growing = false
	}
}

// Trim gives up what is older than the ring is long. A camera that sends says
// how late it is by itself, one that does not needs to be looked after.
func (r *Ring[S]) Trim(now time.Time) { r.trim(now.Add(-r.length)) }

// trim drops the GOPs that were over before a time.
func (r *Ring[S]) trim(to time.Time) {
	for len(r.gops) > 0 && r.gops[0].newest.Before(to) && (len(r.gops) > 1 || !r.growing) {
		r.drop()
	}
}

// Take hands out the GOPs that reach into the time from on, oldest first, and
// forgets all; the memory of each is given back when feed has returned. What
// follows up to the next keyframe is not kept: it belongs to the last of them.
// short reports whether there may have been more with more memory.
func (r *Ring[S]) Take(from time.Time, feed func(*GOP[S])) (short bool) {
	r.trim(from)
	r.growing = false
	for len(r.gops) > 0 {
		feed(r.gops[0])
		r.drop()
	}
	short, r.short = r.short, false
	return short
}

// Clear forgets all.
func (r *Ring[S]) Clear() {
	for len(r.gops) > 0 {
		r.drop()
	}
}

// Bytes is what is held.
func (r *Ring[S]) Bytes() (n int64) {
	for _, g := range r.gops {
		n += g.bytes
	}
	return n
}
