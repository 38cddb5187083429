package stream

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

// TestCameraIsAskedForKeyframes: once a minute without one, in mode event whether
// something happens or not, but not while the camera is away.
func TestCameraIsAskedForKeyframes(t *testing.T) {
	clip := camtest.Clip(t, vmstest.ClipSpec{GOP: int(gopTime / frameTime), Duration: 4800 * time.Millisecond, Kbps: 400})
	for _, mode := range []wire.Mode{wire.ModeContinuous, wire.ModeEvent} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, sp, store := newStreamOf(t, 64<<20, func(c *Config) { c.Mode, c.PreRoll, c.PostRoll = mode, testPre, 90*time.Second })
				m := &film{t: t, s: s, sp: sp, store: store, clip: clip}
				learn(s, 30*365*24*time.Hour)
				began := time.Now()
				var asked []time.Duration
				s.askKeyframe = func() { asked = append(asked, time.Since(began).Round(time.Second)) }
				m.open()
				still := func(d time.Duration) { // pictures of which none is a keyframe
					for range int(d / frameTime) {
						time.Sleep(frameTime)
						(*sink)(s).Video(int64(m.sent)*3600, time.Time{}, time.Now(), clip.Video[1].AU)
						m.sent++
						m.tick()
					}
				}
				m.roll(10 * time.Second) // the last keyframe comes after 9.6 s
				still(70 * time.Second)
				m.event()
				still(100 * time.Second) // the event is over after 90 s, or a GOP more
				m.lose()
				m.wait(100 * time.Second)
				want := []time.Duration{70 * time.Second, 130 * time.Second}
				if !slices.Equal(asked, want) {
					t.Errorf("the camera is asked after %v, want %v", asked, want)
				}
				s.leave()
			})
		})
	}
}
