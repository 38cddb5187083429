package hubclock

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// answer asks an NVR whose clock shows server when half of rtt has passed.
func answer(c *Clock, rtt time.Duration, server func() time.Time) (stepped bool) {
	asked := time.Now()
	time.Sleep(rtt / 2)
	t := server()
	time.Sleep(rtt - rtt/2)
	return c.Learn(asked, time.Now(), t)
}

func near(t *testing.T, what string, got, want time.Time, by time.Duration) {
	t.Helper()
	if d := got.Sub(want); d.Abs() > by {
		t.Errorf("%s: %v, %v off", what, got, d)
	}
}

// nvr is a clock that is ahead of the bubble's by so much.
func nvr(ahead time.Duration) func() time.Time {
	return func() time.Time { return time.Now().Add(ahead) }
}

// TestBootIn1970: synctest's clock begins in 2000, which is as impossible.
func TestBootIn1970(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boot := time.Now()
		c := New(boot)
		time.Sleep(10 * time.Second)
		utc, uncertain := c.UTC(time.Now())
		near(t, "before the time is known", utc, floor.Add(10*time.Second), 0)
		if !uncertain || c.Known() {
			t.Error("a clock that cannot be right is called certain")
		}
		ahead := 27 * 365 * 24 * time.Hour
		if !answer(c, 100*time.Millisecond, nvr(ahead)) {
			t.Error("the way from the floor to now is no step")
		}
		utc, uncertain = c.UTC(time.Now())
		near(t, "now", utc, time.Now().Add(ahead), 0)
		if uncertain || !c.Known() {
			t.Error("a clock that the NVR has set is called uncertain")
		}
		// What was before is told by the same monotonic clock.
		utc, _ = c.UTC(boot)
		near(t, "the boot", utc, boot.Add(ahead), 0)
	})
}

func TestSlewAndStep(t *testing.T) {
	for _, tt := range []struct {
		off  time.Duration
		step bool
	}{
		{900 * time.Millisecond, false}, {-900 * time.Millisecond, false}, {1500 * time.Millisecond, true}, {-time.Hour, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			base := 30 * 365 * 24 * time.Hour
			c := New(time.Now().Add(base)) // a clock that may be right
			// As in New, times carry the monotonic reading of the same clock.
			now := func() time.Time { return time.Now().Add(base) }
			c.Learn(now(), now(), now())
			time.Sleep(time.Hour)
			before, _ := c.UTC(now())
			if got := c.Learn(now(), now(), now().Add(tt.off)); got != tt.step {
				t.Errorf("%v off: step %v", tt.off, got)
			}
			if tt.step {
				after, _ := c.UTC(now())
				near(t, "after the step", after, now().Add(tt.off), 0)
				return
			}
			last := before
			for range 100 {
				time.Sleep(10 * time.Second)
				utc, _ := c.UTC(now())
				d := utc.Sub(last)
				if d < 0 || (d-10*time.Second).Abs() > 5*time.Millisecond {
					t.Fatalf("%v off: UTC went by %v in 10 s, more than 500 ppm from it", tt.off, d)
				}
				last = utc
			}
			time.Sleep(15 * time.Minute)
			utc, _ := c.UTC(now())
			near(t, "after half an hour", utc, now().Add(tt.off), 0)
		})
	}
}

// TestSlowAnswersSayLess: a bad measurement does not spoil a good one, until
// the drift since then may be larger than its error.
func TestSlowAnswersSayLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(time.Now())
		ahead := 30 * 365 * 24 * time.Hour
		answer(c, 20*time.Millisecond, nvr(ahead))
		skewed := func() time.Time { return time.Now().Add(ahead + 400*time.Millisecond) }
		answer(c, time.Second, skewed)
		time.Sleep(10 * time.Minute)
		near(t, "after a slow answer", c.Now(), time.Now().Add(ahead), time.Millisecond)
		time.Sleep(20 * time.Minute)
		answer(c, time.Second, skewed)
		time.Sleep(20 * time.Minute)
		near(t, "when it was all there was for long", c.Now(), time.Now().Add(ahead+400*time.Millisecond), time.Millisecond)
		if c.Learn(time.Now(), time.Now().Add(trustRTT+1), time.Now()) || c.Learn(time.Now(), time.Now().Add(-1), time.Now()) {
			t.Error("an answer that came too late, or before the question, moves the clock")
		}
		near(t, "after nonsense", c.Now(), time.Now().Add(ahead+400*time.Millisecond), time.Millisecond)
	})
}

// TestUTCNeverGoesBackBetweenSteps with an NVR that is asked every minute over
// a network of any delay, for a day.
func TestUTCNeverGoesBackBetweenSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(1, 1))
		c := New(time.Now())
		ahead := 30 * 365 * 24 * time.Hour
		answer(c, 50*time.Millisecond, nvr(ahead))
		last := c.Now()
		for range 24 * 60 {
			out, back := time.Duration(rnd.IntN(300))*time.Millisecond, time.Duration(rnd.IntN(300))*time.Millisecond
			asked := time.Now()
			time.Sleep(out)
			server := time.Now().Add(ahead)
			time.Sleep(back)
			if c.Learn(asked, time.Now(), server) {
				t.Error("a step")
			}
			for range 60 {
				time.Sleep(time.Second)
				now := c.Now()
				if now.Before(last) {
					t.Fatalf("UTC went back from %v to %v", last, now)
				}
				last = now
			}
			near(t, "UTC", last, time.Now().Add(ahead), 200*time.Millisecond)
		}
	})
}
