package mux

import (
	"slices"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
)

// frame is one picture on its way into a chunk. Times are in ticks.
type frame struct {
	pts, dts int64
	key      bool
	params   cmaf.VideoParams // in force at a keyframe
	nalus    [][]byte
	raw      []byte // of MJPEG, instead
	size     int
	camera   time.Time
	now      time.Time
}

// building is a chunk that is being put together, or waits for sound.
type building struct {
	start, end int64
	key        bool
	intra      bool // all its pictures are keyframes, and so is the one that follows
	params     cmaf.VideoParams
	spanDue    bool // its keyframe is to begin a span
	beginsSpan bool
	endsGOP    bool // a keyframe follows
	last       bool // nothing follows: take all sound
	video      []cmaf.Sample
	bytes      int
	camera     time.Time
	firstNow   time.Time // arrival of its first picture
	closed     time.Time // arrival of the picture after it
}

// shift moves the arrivals.
func (c *building) shift(by time.Duration) {
	shift(&c.firstNow, by)
	shift(&c.closed, by)
}

type soundSample struct {
	pts, dur int64 // dur 0: the next sample has not come yet
	data     []byte
}

// known is up to where the sample is known to last.
func (s *soundSample) known() int64 { return s.pts + s.dur }

// reorder gives pictures their decode times: the presentation times of the
// stream in ascending order. In a stream that reorders by at most depth
// pictures the n-th smallest time is known when n and depth more pictures have
// come. A B-frame may so be shown before its decode time: offsets are signed.
type reorder struct {
	depth  int
	queue  []*frame // decode order
	times  []int64  // of queue, ascending
	recent []int64  // the last presentation times, to learn depth from
	last   int64
	began  bool
}

// learn raises depth when f shows that the stream reorders more than assumed:
// a stream whose SPS is silent about it is taken for one without B-frames until
// the first of them comes. Presentation times are right from the first picture
// on; only decode times become even from then on.
func (r *reorder) learn(f *frame, known bool) {
	if known {
		return
	}
	later := 0
	for _, p := range r.recent {
		if p > f.pts {
			later++
		}
	}
	r.depth = max(r.depth, min(later, maxReorder))
	r.recent = append(r.recent, f.pts)
	if len(r.recent) > maxReorder {
		r.recent = r.recent[1:]
	}
}

func (r *reorder) push(f *frame) {
	r.queue = append(r.queue, f)
	i, _ := slices.BinarySearch(r.times, f.pts)
	r.times = slices.Insert(r.times, i, f.pts)
}

func (r *reorder) ready() bool   { return len(r.queue) > r.depth }
func (r *reorder) pending() bool { return len(r.queue) > 0 }

func (r *reorder) pop() *frame {
	f := r.queue[0]
	r.queue = r.queue[1:]
	f.dts = r.times[0]
	r.times = r.times[1:]
	if r.began && f.dts <= r.last {
		f.dts = r.last + 1 // two pictures of one time, or depth was just learned
	}
	if !r.began && f.dts < 0 {
		f.dts = 0
	}
	r.began, r.last = true, f.dts
	return f
}

// unjump keeps a track's clock going over jumps of the camera's timestamps:
// the frame after a jump is placed where its arrival says.
type unjump struct {
	back    time.Duration // going back further is a jump
	offset  int64
	last    int64
	lastNow time.Time
}

func (u *unjump) place(t int64, now time.Time, ts uint32) int64 {
	if u.lastNow.IsZero() {
		// Decode times are unsigned: leave room below for sound that begins
		// before the picture, and for tracks that are not quite in step.
		u.offset = int64(ts) * 10
		if t < -u.offset/2 {
			u.offset -= t
		}
	}
	p := t + u.offset
	if !u.lastNow.IsZero() {
		d := toDuration(p-u.last, ts)
		passed := now.Sub(u.lastNow)
		if d < -u.back || d > jump && (d-passed > jump/2 || passed-d > jump/2) || d > longestPause {
			p = u.last + max(fromDuration(min(passed, longestPause), ts), 1)
			u.offset = p - t
		}
	}
	u.last, u.lastNow = max(u.last, p), now
	return p
}

// toDuration converts ticks without overflow: 64-bit nanoseconds hold 292 years.
func toDuration(t int64, ts uint32) time.Duration {
	s, r := t/int64(ts), t%int64(ts)
	return time.Duration(s)*time.Second + time.Duration(r)*time.Second/time.Duration(ts)
}

func fromDuration(d time.Duration, ts uint32) int64 {
	return int64(d/time.Second)*int64(ts) + int64(d%time.Second)*int64(ts)/int64(time.Second)
}
