package camera

import (
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/ntp"
	"github.com/pion/rtcp"
)

// maxSkew bounds what a camera's reports may say about the offset of its two
// tracks against their arrival: a camera whose tracks have different clocks is
// aligned by arrival.
const maxSkew = 5 * time.Second

// trackClock turns the RTP timestamps of one track into times of the session.
// It belongs to the goroutine that reads the camera's socket.
type trackClock struct {
	rate int64 // ticks per second

	started bool
	rtp     uint32    // of the newest frame
	pts     int64     // the same, unwrapped and on the session's axis
	arrival time.Time // when it came
	resumed bool      // the camera was paused since, and may have begun anew

	// The newest sender report: at wall it was reportRTP.
	reported  bool
	wall      time.Time
	reportRTP uint32
	old       bool // it came before the pause
}

// maxStep is by how much a camera's clock may differ from ours over a pause,
// before it is taken for one that began anew.
const maxStep = time.Second

// resume says that the camera was paused and plays again. One that begins its
// timestamps anew is placed by the moment of arrival: picture and sound would
// step by different amounts.
func (t *trackClock) resume() { t.resumed, t.old = t.started, t.reported }

// report takes a sender report.
func (t *trackClock) report(sr *rtcp.SenderReport) {
	if sr.NTPTime == 0 {
		return // "no wallclock", RFC 3550, section 6.4.1
	}
	t.reported, t.wall, t.reportRTP, t.old = true, ntp.Decode(sr.NTPTime).UTC(), sr.RTPTime, false
}

// frame places the frame with timestamp ts that came at arrival. other is the
// session's other track, nil if there is none.
func (t *trackClock) frame(ts uint32, arrival time.Time, other *trackClock) (pts int64, utc time.Time) {
	if t.started {
		t.pts += t.step(ts, arrival)
	} else {
		t.pts, t.started = t.start(ts, arrival, other), true
	}
	t.rtp, t.arrival = ts, arrival
	return t.pts, t.utc(ts)
}

// step is how far the frame with timestamp ts is from the one before.
func (t *trackClock) step(ts uint32, arrival time.Time) int64 {
	told := int64(int32(ts - t.rtp)) // also right across the wrap and for B-frames
	if !t.resumed {
		return told
	}
	t.resumed = false
	passed := arrival.Sub(t.arrival)
	if (toDuration(told, t.rate) - passed).Abs() <= maxStep {
		return told
	}
	t.reported = t.reported && !t.old // that report is of the old timestamps
	return max(fromDuration(passed, t.rate), 1)
}

// start places the track's first frame beside the other track.
func (t *trackClock) start(ts uint32, arrival time.Time, other *trackClock) int64 {
	if other == nil || !other.started {
		return 0
	}
	newest := toDuration(other.pts, other.rate)
	at := newest + arrival.Sub(other.arrival)
	if t.reported && other.reported {
		exact := newest + t.utc(ts).Sub(other.utc(other.rtp))
		if d := exact - at; d.Abs() <= maxSkew {
			at = exact
		}
	}
	return fromDuration(at, t.rate)
}

// utc is the camera's wall clock at timestamp ts, zero if it never told.
func (t *trackClock) utc(ts uint32) time.Time {
	if !t.reported {
		return time.Time{}
	}
	return t.wall.Add(toDuration(int64(int32(ts-t.reportRTP)), t.rate))
}

// toDuration and fromDuration split off the whole seconds, so that no stream is
// long enough to overflow.
func toDuration(ticks, rate int64) time.Duration {
	return time.Duration(ticks/rate)*time.Second + time.Duration(ticks%rate)*time.Second/time.Duration(rate)
}

// fromDuration rounds to the nearest tick.
func fromDuration(d time.Duration, rate int64) int64 {
	s, rest := int64(d/time.Second), int64(d%time.Second)
	half := int64(time.Second / 2)
	if rest < 0 {
		half = -half
	}
	return s*rate + (rest*rate+half)/int64(time.Second)
}
