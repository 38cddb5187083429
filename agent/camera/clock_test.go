package camera

import (
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/ntp"
	"github.com/pion/rtcp"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func reportAt(wall time.Time, rtp uint32) *rtcp.SenderReport {
	return &rtcp.SenderReport{NTPTime: ntp.Encode(wall), RTPTime: rtp}
}

func TestClockUnwrapsInBothDirections(t *testing.T) {
	c := &trackClock{rate: 90000}
	// A B-frame goes back, across the wrap of 32 bits.
	for i, step := range []struct {
		rtp uint32
		pts int64
	}{{1<<32 - 3600, 0}, {7200, 10800}, {0, 3600}, {3600, 7200}, {1<<32 - 1, 3599}} {
		if got, _ := c.frame(step.rtp, t0, nil); got != step.pts {
			t.Errorf("frame %d: pts %d, want %d", i, got, step.pts)
		}
	}
}

func TestClockAlignsByReports(t *testing.T) {
	v := &trackClock{rate: 90000}
	a := &trackClock{rate: 44100}
	v.report(reportAt(t0, 1000))
	a.report(reportAt(t0.Add(100*time.Millisecond), 5000))
	v.frame(1000, t0, a) // shown at t0
	// The sound for t0 + 1 s comes two seconds late; that changes nothing.
	pts, utc := a.frame(5000+44100*9/10, t0.Add(3*time.Second), v)
	if pts != 44100 || utc.Sub(t0.Add(time.Second)).Abs() > time.Microsecond {
		t.Errorf("pts %d at %v, want 44100 at 1 s", pts, utc)
	}
	// Sound from before the first picture has a negative time.
	a = &trackClock{rate: 44100}
	a.report(reportAt(t0, 0))
	if pts, _ := a.frame(uint32(1<<32-441), t0, v); pts != -441 {
		t.Errorf("pts %d, want -441", pts)
	}
}

func TestClockDoesNotBelieveTracksWithDifferentClocks(t *testing.T) {
	v := &trackClock{rate: 90000}
	a := &trackClock{rate: 8000}
	v.report(reportAt(t0, 0))
	a.report(reportAt(t0.AddDate(-5, 0, 0), 0)) // never set
	v.frame(0, t0, a)
	if pts, _ := a.frame(0, t0.Add(250*time.Millisecond), v); pts != 2000 {
		t.Errorf("pts %d, want 2000: by arrival", pts)
	}
}

func TestClockIgnoresAReportWithoutWallClock(t *testing.T) {
	c := &trackClock{rate: 90000}
	c.report(&rtcp.SenderReport{RTPTime: 77})
	if _, utc := c.frame(77, t0, nil); !utc.IsZero() {
		t.Errorf("camera's time is %v, want none", utc)
	}
}

func TestTicksKeepPrecisionForYears(t *testing.T) {
	const tenYears = 10 * 366 * 24 * time.Hour
	for _, rate := range []int64{8000, 44100, 48000, 90000} {
		for _, d := range []time.Duration{0, tenYears, -tenYears, tenYears + time.Second/2, -time.Second / 2} {
			if got := toDuration(fromDuration(d, rate), rate); (got - d).Abs() > time.Second/time.Duration(rate) {
				t.Errorf("%v at %d Hz becomes %v", d, rate, got)
			}
		}
	}
}

// TestClockGoesOnAfterAPause: a camera that goes on where it stopped is believed
// to the tick, one that begins anew is placed by arrival, and its old report is
// not applied to the new timestamps.
func TestClockGoesOnAfterAPause(t *testing.T) {
	v := &trackClock{rate: 90000}
	v.report(reportAt(t0, 1000))
	v.frame(1000, t0, nil)
	v.resume()
	if pts, utc := v.frame(1000+9000, t0.Add(300*time.Millisecond), nil); pts != 9000 || utc.Sub(t0.Add(100*time.Millisecond)).Abs() > time.Microsecond {
		t.Errorf("pts %d at %v, want 9000 at 100 ms", pts, utc)
	}
	v.resume()
	pts, utc := v.frame(3_000_000_000, t0.Add(400*time.Millisecond), nil)
	if pts != 18000 || !utc.IsZero() {
		t.Errorf("pts %d at %v, want 18000 at no time", pts, utc)
	}
	v.report(reportAt(t0.Add(time.Hour), 3_000_000_000))
	if pts, utc := v.frame(3_000_009_000, t0.Add(time.Minute), nil); pts != 27000 || utc.Sub(t0.Add(time.Hour)).Abs() > time.Second {
		t.Errorf("pts %d at %v, want 27000 after an hour", pts, utc)
	}
	// A report of the new timestamps may come before the first frame.
	v.resume()
	v.report(reportAt(t0.Add(2*time.Hour), 70))
	if _, utc := v.frame(70, t0.Add(time.Minute+time.Second), nil); utc.Sub(t0.Add(2*time.Hour)).Abs() > time.Microsecond {
		t.Errorf("at %v, want 2 h", utc)
	}
	// A track that has not begun has nothing to go on from.
	a := &trackClock{rate: 8000}
	a.resume()
	if pts, _ := a.frame(5, t0.Add(time.Minute+2*time.Second), v); pts != toTicks(v, a)+8000 {
		t.Errorf("sound begins at %d", pts)
	}
}

func toTicks(of, in *trackClock) int64 { return fromDuration(toDuration(of.pts, of.rate), in.rate) }
