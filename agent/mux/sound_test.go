package mux

import (
	"fmt"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
)

// play feeds pictures for d with a keyframe every second, and what sound says:
// for each AAC frame, when it arrives, or false when it never does.
func (r *rig) play(d time.Duration, sound func(begins time.Duration) (arrives time.Duration, ok bool)) {
	type queued struct {
		i  int
		at time.Duration
	}
	var q []queued
	for i := 0; time.Duration(i)*aacFrame < d; i++ {
		if at, ok := sound(time.Duration(i) * aacFrame); ok {
			q = append(q, queued{i, at})
		}
	}
	pictures := int(d / (40 * time.Millisecond))
	for ms := time.Duration(0); ms < d+10*time.Second; ms += 10 * time.Millisecond {
		if i := int(ms / (40 * time.Millisecond)); ms%(40*time.Millisecond) == 0 && i < pictures {
			r.picture(ms, t0.Add(ms), i%25 == 0)
		}
		for len(q) > 0 && q[0].at <= ms {
			r.sound(q[0].i, t0.Add(ms))
			q = q[1:]
		}
		r.m.Tick(t0.Add(ms))
	}
	r.over = true
	r.m.Flush()
}

// watchDelays returns the longest time, in play, between the end of a chunk's
// last picture and the chunk.
func (r *rig) watchDelays() *time.Duration {
	var worst time.Duration
	inner := r.m.cfg.OnChunk
	r.m.cfg.OnChunk = func(c vms.Chunk) {
		inner(c)
		f, _ := cmaf.ParseFragment(c.Payload)
		v := f.Run(cmaf.VideoTrack)
		end := toDuration(int64(v.Base+v.Duration)-10*int64(r.m.ts), r.m.ts)
		if now := r.now(); !r.over && c.Seq > 5 {
			worst = max(worst, now.Sub(t0.Add(end)))
		}
	}
	return &worst
}

// now is the arrival of what the mux was told of last.
func (r *rig) now() time.Time {
	if r.m.vJump.lastNow.After(r.m.soundNow) {
		return r.m.vJump.lastNow
	}
	return r.m.soundNow
}

func TestSound(t *testing.T) {
	const d = 20 * time.Second
	never := func(time.Duration) (time.Duration, bool) { return 0, false }
	lag := func(by time.Duration) func(time.Duration) (time.Duration, bool) {
		return func(at time.Duration) (time.Duration, bool) { return at + aacFrame + by, true }
	}
	all := int((d + aacFrame - 1) / aacFrame)
	for _, tt := range []struct {
		name    string
		watched bool
		sound   func(time.Duration) (time.Duration, bool)
		spans   int
		missing int // sound samples that may be lost, of those fed
		wait    time.Duration
	}{
		{"in step", false, lag(0), 1, 0, 50 * time.Millisecond},
		{"ahead", false, lag(-300 * time.Millisecond), 1, 0, 50 * time.Millisecond},
		{"300 ms behind", false, lag(300 * time.Millisecond), 1, 0, 400 * time.Millisecond},
		{"300 ms behind, watched", true, lag(300 * time.Millisecond), 1, 0, 200 * time.Millisecond},
		{"2 s behind", false, lag(2 * time.Second), 2, 150, 600 * time.Millisecond},
		{"none at all", false, never, 1, 0, 50 * time.Millisecond},
		{"late", false, func(at time.Duration) (time.Duration, bool) { return at + aacFrame, at > 7500*time.Millisecond }, 2, 30, 600 * time.Millisecond},
		{"stops", false, func(at time.Duration) (time.Duration, bool) { return at + aacFrame, at < 7500*time.Millisecond }, 2, 0, 600 * time.Millisecond},
		{"stops for a second", false, func(at time.Duration) (time.Duration, bool) {
			return at + aacFrame, at < 7300*time.Millisecond || at > 8400*time.Millisecond
		}, 1, 0, 600 * time.Millisecond},
		{"hangs and catches up", false, func(at time.Duration) (time.Duration, bool) {
			if at > 7300*time.Millisecond && at < 10400*time.Millisecond {
				return 10400 * time.Millisecond, true
			}
			return at + aacFrame, true
		}, 1, 160, 600 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Config{Recording: 3 * time.Second})
			r.open(plain, aac)
			r.m.SetWatched(tt.watched)
			worst := r.watchDelays()
			fed := 0
			r.play(d, func(at time.Duration) (time.Duration, bool) {
				arrives, ok := tt.sound(at)
				if ok {
					fed++
				}
				return arrives, ok
			})
			o := r.check()
			r.allMuxed(0)
			if o.spans != tt.spans || len(r.inits) != tt.spans {
				t.Errorf("%d spans with %d inits, want %d", o.spans, len(r.inits), tt.spans)
			}
			if lost := fed - o.samples; lost > tt.missing || lost != int(r.m.Stats().SoundDropped) {
				t.Errorf("%d of %d sound samples are missing, %d counted; want at most %d", lost, fed, r.m.Stats().SoundDropped, tt.missing)
			}
			if *worst > tt.wait+250*time.Millisecond {
				t.Errorf("a chunk came %v after its end, want at most %v for the sound", *worst, tt.wait)
			}
			if tt.name == "in step" && (o.samples != all || o.late > r.m.soundFrame()) {
				t.Errorf("%d samples of %d; sound begins %d ticks before a recording's picture", o.samples, all, o.late)
			}
			// Nothing is stretched: a sample is as long as it is, but where a few are missing.
			for _, c := range r.chunks {
				f, _ := cmaf.ParseFragment(c.Payload)
				if a := f.Run(cmaf.AudioTrack); a != nil && a.Duration > uint64(a.Samples)*uint64(r.m.soundFrame())*11/10 {
					t.Errorf("chunk %d: %d samples last %d ticks", c.Seq, a.Samples, a.Duration)
				}
			}
		})
	}
}

// TestLateSoundNeverComesBeforeItsRecording: sound hangs for longer than it is
// waited for, at every place against the recordings' boundaries.
func TestLateSoundNeverComesBeforeItsRecording(t *testing.T) {
	for hang := 400 * time.Millisecond; hang < 5*time.Second; hang += 300 * time.Millisecond {
		for begin := 4 * time.Second; begin < 5*time.Second; begin += 230 * time.Millisecond {
			t.Run(fmt.Sprint(begin, hang), func(t *testing.T) {
				r := newRig(t, Config{Recording: time.Second})
				r.open(plain, aac)
				r.play(12*time.Second, func(at time.Duration) (time.Duration, bool) {
					if at > begin && at < begin+hang {
						return begin + hang, true
					}
					return at + aacFrame, true
				})
				r.check()
				r.allMuxed(0)
			})
		}
	}
}

func TestSoundThatIsUnusable(t *testing.T) {
	r := newRig(t, Config{})
	r.open(plain, &Sound{Config: aac.Config})
	r.sound(0, t0)
	r.film(0, 100, 25)
	r.m.Flush()
	r.check()
	r.allMuxed(0)
	// No picture ever comes: the sound does not fill the memory.
	r.open(plain, aac)
	for i := range 5_000 {
		r.sound(i, t0.Add(time.Duration(i)*aacFrame))
	}
	if n := len(r.m.soundQ); n > maxSoundQueue {
		t.Errorf("%d samples wait for a picture", n)
	}
}
