package retry

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// longest and shortest are the two ends of the jitter.
func longest(n int64) int64 { return n - 1 }
func shortest(int64) int64  { return 0 }

func TestCeilingDoublesUpToMax(t *testing.T) {
	b := Backoff{Min: time.Second, Max: 10 * time.Second, uniform: longest}
	for i, want := range []time.Duration{2, 4, 8, 10, 10, 10} {
		if got := b.Next(0); got != want*time.Second {
			t.Errorf("wait %d is at most %s, want %s", i, got, want*time.Second)
		}
	}
}

func TestWaitIsNeverBelowMin(t *testing.T) {
	b := Backoff{Min: time.Second, Max: 10 * time.Second, uniform: shortest}
	for i := range 6 {
		if got := b.Next(0); got != time.Second {
			t.Errorf("wait %d is at least %s, want 1s", i, got)
		}
	}
}

func TestWaitsAreSpread(t *testing.T) {
	var low, high int
	for range 1000 {
		b := Backoff{Min: time.Second, Max: time.Minute}
		b.Next(0)
		switch d := b.Next(0); { // uniform over 1 s to 4 s
		case d < time.Second || d > 4*time.Second:
			t.Fatalf("wait %s lies outside 1s to 4s", d)
		case d < 2*time.Second:
			low++
		case d > 3*time.Second:
			high++
		}
	}
	// A third each; 200 of 1000 is 9 standard deviations away.
	if low < 200 || high < 200 {
		t.Errorf("%d of 1000 waits below 2s and %d above 3s, want about 333 each", low, high)
	}
}

func TestResetMustBeEarned(t *testing.T) {
	b := Backoff{Min: time.Second, Max: time.Minute, Steady: 30 * time.Second, uniform: longest}
	b.Next(0)
	b.Next(0)
	if got := b.Next(29 * time.Second); got != 8*time.Second {
		t.Errorf("after a link that held 29s of 30s: at most %s, want 8s", got)
	}
	if got := b.Next(30 * time.Second); got != 2*time.Second {
		t.Errorf("after a link that held: at most %s, want 2s again", got)
	}
}

func TestOddSettingsWork(t *testing.T) {
	for _, tt := range []struct {
		name   string
		b      Backoff
		lo, hi time.Duration
	}{
		{"zero value", Backoff{}, DefaultMin, DefaultMax},
		{"max below default min", Backoff{Max: time.Millisecond}, time.Millisecond, time.Millisecond},
		{"max below min", Backoff{Min: 5 * time.Second, Max: time.Second}, 5 * time.Second, 5 * time.Second},
		{"largest duration", Backoff{Min: 1, Max: math.MaxInt64}, 1, math.MaxInt64},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 100 {
				if d := tt.b.Next(0); d < tt.lo || d > tt.hi {
					t.Fatalf("wait %s, want %s to %s", d, tt.lo, tt.hi)
				}
			}
			tt.b.uniform = longest
			if d := tt.b.Next(0); d != tt.hi {
				t.Errorf("ceiling is %s, want %s", d, tt.hi)
			}
		})
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if !Sleep(ctx, 40*time.Second) || time.Since(start) != 40*time.Second {
			t.Errorf("slept %s, want all of 40s", time.Since(start))
		}
		if Sleep(ctx, time.Hour) || time.Since(start) != time.Minute {
			t.Errorf("woke after %s, want when ctx ends after 1m", time.Since(start))
		}
		if Sleep(ctx, 0) {
			t.Error("Sleep reports true under a context that has ended")
		}
		if !Sleep(t.Context(), 0) {
			t.Error("Sleep of no time reports false")
		}
	})
}
