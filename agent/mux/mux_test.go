package mux

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
)

func TestRecordingsBeginAtTheFirstKeyframeAfterPhase(t *testing.T) {
	s := time.Second
	for _, tt := range []struct {
		recording, phase time.Duration
		gop              int // pictures
		want             []time.Duration
	}{
		{10 * s, 0, 25, []time.Duration{0, 10 * s, 20 * s, 30 * s}},
		{10 * s, 4 * s, 25, []time.Duration{0, 4 * s, 14 * s, 24 * s, 34 * s}},
		{10 * s, 4*s + time.Millisecond, 50, []time.Duration{0, 6 * s, 16 * s, 26 * s, 36 * s}},
		{10 * s, 0, 100, []time.Duration{0, 12 * s, 20 * s, 32 * s}},
		{10 * s, 5 * s, 300, []time.Duration{0, 12 * s, 24 * s, 36 * s}},
		{3 * s, 0, 250, []time.Duration{0, 10 * s, 20 * s, 30 * s}},
		{10 * s, 39 * s, 25, []time.Duration{0, 9 * s, 19 * s, 29 * s, 39 * s}},
	} {
		t.Run(fmt.Sprintf("%v+%v gop %d", tt.recording, tt.phase, tt.gop), func(t *testing.T) {
			r := newRig(t, Config{Recording: tt.recording, Phase: tt.phase})
			r.open(plain, nil)
			r.film(0, 1000, tt.gop)
			r.m.Flush()
			r.check()
			r.allMuxed(0)
			if at, _ := r.firsts(); !slices.Equal(at, tt.want) {
				t.Errorf("recordings begin at %v, want %v", at, tt.want)
			}
		})
	}
}

// TestPhasesHoldWheneverAStreamBegins: the memory and upload peaks of a hub's
// streams stay apart also when a camera comes back at any moment, and when its
// clock is off by 400 ppm for an hour.
func TestPhasesHoldWheneverAStreamBegins(t *testing.T) {
	const recording, gop = 10 * time.Second, time.Second
	for _, phase := range []time.Duration{0, 2500 * time.Millisecond, 7500 * time.Millisecond} {
		for _, begin := range []time.Duration{0, 1700 * time.Millisecond, 9999 * time.Millisecond} {
			r := newRig(t, Config{Recording: recording, Phase: phase})
			r.open(plain, nil)
			for i := range int(time.Hour / gop) {
				at := time.Duration(i) * gop
				r.picture(at, t0.Add(begin+at+at/2500), true)
			}
			r.m.Flush()
			firsts := 0
			for i := range r.chunks {
				c := &r.chunks[i]
				if !c.Flags.Has(vms.FlagFirst) {
					continue
				}
				if firsts++; firsts == 1 {
					continue // a span begins when the camera comes
				}
				if past := time.Duration(c.Start.UnixNano()-int64(phase)) % recording; past > gop+gop/20 {
					t.Fatalf("phase %v, begun at %v: recording %d begins %v after it, want at most a GOP and what is slewed", phase, begin, firsts, past)
				}
			}
			if want := int(time.Hour / recording); firsts < want || firsts > want+2 {
				t.Errorf("phase %v, begun at %v: %d recordings in an hour", phase, begin, firsts)
			}
		}
	}
}

// TestPicturesWithBFrames: decode times are the presentation times in order, so
// the time of a chunk is the time it shows, also with reordering.
func TestPicturesWithBFrames(t *testing.T) {
	// GOPs of 60 pictures, decoded in the order I, then P B B and a last P P.
	order := func(i int) int {
		gop, i := i/60*60, i%60
		if i == 0 || i > 57 {
			return gop + i
		}
		return gop + (i-1)/3*3 + []int{3, 1, 2}[(i-1)%3]
	}
	for name, reorder := range map[string]int{"told": 1, "told too much": 3, "learnt": -1} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{Recording: 4 * time.Second})
			r.open(cmaf.VideoParams{Codec: "h264", SPS: spsOf(20, reorder), PPS: pps}, nil)
			for i := range 601 {
				pts := time.Duration(order(i)) * 40 * time.Millisecond
				r.picture(pts, t0.Add(time.Duration(i)*40*time.Millisecond), i%60 == 0)
			}
			r.m.Flush()
			r.check()
			r.allMuxed(0)
			var total uint64
			for _, c := range r.chunks {
				f, _ := cmaf.ParseFragment(c.Payload)
				total += f.Run(cmaf.VideoTrack).Duration
			}
			if want := uint64(601 * 3600); total != want {
				t.Errorf("durations add up to %d ticks, want %d", total, want)
			}
			for _, c := range r.chunks {
				f, _ := cmaf.ParseFragment(c.Payload)
				if v := f.Run(cmaf.VideoTrack); c.Flags.Has(vms.FlagFirst) && v.MinPTS != int64(v.Base) {
					t.Errorf("chunk %d: the recording begins at %d, its first picture is shown at %d", c.Seq, v.Base, v.MinPTS)
				}
			}
		})
	}
}

// TestUTCOverADay: a camera whose clock is off, and a network that delays.
func TestUTCOverADay(t *testing.T) {
	for _, ppm := range []float64{-500, 50, 500} {
		t.Run(fmt.Sprintf("%+g ppm", ppm), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, 2))
			r := newRig(t, Config{Recording: 30 * time.Second, Chunk: 2 * time.Second})
			r.open(plain, nil)
			step := 2 * time.Second // between pictures: a day is quick
			var at time.Duration
			for i := range 43_200 {
				at = time.Duration(i) * step
				passed := time.Duration(float64(at) * (1 + ppm*1e-6))
				jitter := time.Duration(rnd.ExpFloat64() * float64(20*time.Millisecond))
				r.picture(at, t0.Add(passed+jitter), i%10 == 0)
				if i%300 != 299 || len(r.chunks) == 0 {
					continue
				}
				c := &r.chunks[len(r.chunks)-1]
				f, _ := cmaf.ParseFragment(c.Payload)
				v := f.Run(cmaf.VideoTrack)
				shown := toDuration(int64(v.Base)-10*90000, 90000) // what the camera calls its start
				want := t0.Add(time.Duration(float64(shown) * (1 + ppm*1e-6)))
				if d := c.Start.Sub(want); d.Abs() > 100*time.Millisecond {
					t.Fatalf("after %v UTC is off by %v", at, d)
				}
			}
			r.m.Flush()
			if o := r.check(); o.spans != 1 {
				t.Errorf("%d spans, want one", o.spans)
			}
			for _, c := range r.chunks {
				f, _ := cmaf.ParseFragment(c.Payload)
				media := toDuration(int64(f.Run(cmaf.VideoTrack).Duration), 90000)
				if d := (c.End.Sub(c.Start) - media).Abs(); d > media/2000+2*time.Microsecond {
					t.Fatalf("chunk %d: UTC and media time differ by %v in %v, more than 500 ppm", c.Seq, d, media)
				}
			}
		})
	}
}

// TestBurstAtConnect: a camera that sends its last seconds at once must not
// push UTC ahead by them.
func TestBurstAtConnect(t *testing.T) {
	r := newRig(t, Config{})
	r.open(plain, nil)
	connect := t0
	for i := range 500 {
		at := time.Duration(i) * 40 * time.Millisecond
		arrival := connect.Add(time.Duration(i) * time.Millisecond) // 4 s of pictures in 100 ms
		if i >= 100 {
			arrival = connect.Add(at - 4*time.Second + 100*time.Millisecond)
		}
		r.picture(at, arrival, i%50 == 0)
	}
	r.m.Flush()
	if o := r.check(); o.spans != 1 {
		t.Errorf("%d spans, want one", o.spans)
	}
	r.allMuxed(0)
	if d := r.chunks[0].Start.Sub(connect.Add(-4 * time.Second)); d.Abs() > 200*time.Millisecond {
		t.Errorf("the first picture of the burst is stamped %v off", d)
	}
}

// TestFirstChunkIsSoon: a camera that is joined in the middle of a GOP is
// watched from its first picture on, not from its first keyframe: the first
// chunk is there when half a second has passed and it is whole.
func TestFirstChunkIsSoon(t *testing.T) {
	for first := range 12 { // pictures before the keyframe; a GOP is 12 of 40 ms
		r := newRig(t, Config{})
		r.open(plain, nil)
		var soon time.Duration
		for i := 12 - first; soon == 0 && i < 100; i++ {
			since := time.Duration(i-12+first) * 40 * time.Millisecond
			r.picture(time.Duration(i)*40*time.Millisecond, t0.Add(since), i%12 == 0)
			if len(r.chunks) > 0 {
				soon = since
			}
		}
		key := time.Duration(first) * 40 * time.Millisecond
		if want := max(settle+20*time.Millisecond, key+240*time.Millisecond); soon == 0 || soon > want {
			t.Errorf("keyframe after %v: the first chunk comes after %v, want %v", key, soon, want)
		}
		// A camera that sends nothing up to the keyframe is watched as long.
		r = newRig(t, Config{})
		r.open(plain, nil)
		r.m.Tick(t0)
		soon = 0
		for i := 0; soon == 0 && i < 100; i++ {
			at := time.Duration(i) * 40 * time.Millisecond
			r.picture(at, t0.Add(key+at), i%12 == 0)
			if len(r.chunks) > 0 {
				soon = key + at
			}
		}
		if want := max(settle+20*time.Millisecond, key+240*time.Millisecond); soon == 0 || soon > want {
			t.Errorf("first picture after %v: the first chunk comes after %v, want %v", key, soon, want)
		}
	}
}

// TestBurstAfterAStall: the camera shows pictures as they are due, or none, and
// stalls; when its last seconds come at once, settle has passed since it was
// opened, but the end of the burst counts all the same.
func TestBurstAfterAStall(t *testing.T) {
	for name, test := range map[string]struct {
		before int           // pictures before the burst
		key    int           // the first keyframe
		stall  time.Duration // before the burst
	}{
		"nothing before it":     {0, 0, time.Second},
		"a picture before it":   {1, 1, time.Second},
		"pictures before it":    {8, 10, 400 * time.Millisecond},
		"the keyframe":          {1, 0, 400 * time.Millisecond},
		"the keyframe and more": {4, 2, 350 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{})
			r.open(plain, nil)
			r.m.Tick(t0)
			at := func(i int) time.Duration { return time.Duration(i) * 40 * time.Millisecond }
			burst := at(test.before) + test.stall
			zero := burst + 100*time.Millisecond - at(test.before+100) // when picture 0 was due
			for i := range 400 {
				arrival := at(i)
				if i >= test.before {
					// 4 s of pictures in 100 ms, then as they are due
					arrival = max(burst+time.Duration(i-test.before)*time.Millisecond, zero+at(i))
				}
				r.picture(at(i), t0.Add(arrival), i%50 == test.key)
			}
			r.m.Flush()
			r.check()
			if d := r.chunks[0].Start.Sub(t0.Add(zero + at(test.key))); d.Abs() > 200*time.Millisecond {
				t.Errorf("the first picture of the burst is stamped %v off", d)
			}
		})
	}
}

// TestTimestampJumps: the camera's clock is set; no picture is lost, and media
// time goes on as the arrivals say.
func TestTimestampJumps(t *testing.T) {
	for name, by := range map[string]time.Duration{
		"forward": time.Hour, "back": -time.Hour, "forward a little": 12 * time.Second, "back a little": -3 * time.Second, "far": 1 << 50,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{Recording: 10 * time.Second})
			r.open(plain, aac)
			a := 0
			for i := range 1500 {
				at := time.Duration(i) * 40 * time.Millisecond
				pts, off := at, 0
				if i >= 700 {
					pts, off = at+by, int(by/aacFrame)
				}
				r.picture(pts, t0.Add(at), i%50 == 0)
				for ; time.Duration(a)*aacFrame <= at; a++ {
					if time.Duration(a)*aacFrame < 28*time.Second {
						r.sound(a, t0.Add(at))
					} else {
						r.sound(a+off, t0.Add(at))
					}
				}
			}
			r.m.Flush()
			o := r.check()
			r.allMuxed(0)
			if o.samples+int(r.m.Stats().SoundDropped) != a || r.m.Stats().SoundDropped > 10 {
				t.Errorf("%d sound samples muxed and %d dropped of %d", o.samples, r.m.Stats().SoundDropped, a)
			}
			last := r.chunks[len(r.chunks)-1]
			if d := last.End.Sub(t0.Add(60 * time.Second)); d.Abs() > time.Second {
				t.Errorf("the end is stamped %v off", d)
			}
		})
	}
}

// TestOpenAgainAfterLoss: another session has times of its own.
func TestOpenAgainAfterLoss(t *testing.T) {
	r := newRig(t, Config{Recording: 10 * time.Second})
	for session := range 3 {
		r.open(plain, nil)
		begin := t0.Add(time.Duration(session) * time.Minute)
		r.m.Video(0, begin, false, time.Time{}, [][]byte{{0x41, 1, 2, 3}}) // the camera is joined in the middle of a GOP
		for i := range 300 {
			at := time.Duration(i) * 40 * time.Millisecond
			r.picture(at, begin.Add(at), i%50 == 0)
		}
	}
	r.m.Flush()
	o := r.check()
	r.allMuxed(0)
	if o.spans != 3 || r.m.Stats().BeforeKey != 3 {
		t.Errorf("%d spans and %d pictures before a keyframe, want 3 and 3", o.spans, r.m.Stats().BeforeKey)
	}
	for i, c := range r.chunks {
		if c.Flags.Has(vms.FlagFirst) && c.Recording == 0 && i > 0 {
			if gap := c.Start.Sub(r.chunks[i-1].End); (gap - 48*time.Second).Abs() > 100*time.Millisecond {
				t.Errorf("the gap before chunk %d is %v, want 48s", c.Seq, gap)
			}
		}
	}
}

func TestOpenRefusesWhatCannotBeRecorded(t *testing.T) {
	r := newRig(t, Config{})
	r.open(plain, nil)
	r.film(0, 20, 10)
	if err := r.m.Open(cmaf.VideoParams{Codec: "vp8"}, nil); err == nil {
		t.Error("VP8 is taken")
	}
	n := len(r.chunks)
	r.film(20, 60, 10)
	r.m.Flush()
	if len(r.chunks) != n {
		t.Error("pictures of a codec that was refused are muxed under the parameters of the session before")
	}
}

func TestSetsInBand(t *testing.T) {
	t.Run("only there", func(t *testing.T) {
		r := newRig(t, Config{})
		r.open(cmaf.VideoParams{Codec: "h264"}, nil)
		r.picture(0, t0, true) // nothing can decode it
		for i := 1; i < 100; i++ {
			at := time.Duration(i) * 40 * time.Millisecond
			if i%10 == 0 {
				r.picture(at, t0.Add(at), true, spsOf(20, 0), pps)
			} else {
				r.picture(at, t0.Add(at), false)
			}
		}
		r.m.Flush()
		r.check()
		r.allMuxed(10)
		if len(r.inits) != 1 {
			t.Errorf("%d inits, want 1", len(r.inits))
		}
	})
	t.Run("changed", func(t *testing.T) {
		r := newRig(t, Config{})
		r.open(plain, nil)
		for i := range 200 {
			at := time.Duration(i) * 40 * time.Millisecond
			if i == 100 {
				r.picture(at, t0.Add(at), true, spsOf(40, 0), pps)
			} else {
				r.picture(at, t0.Add(at), i%50 == 0)
			}
		}
		r.m.Flush()
		o := r.check()
		r.allMuxed(0)
		if o.spans != 2 || len(r.inits) != 2 {
			t.Fatalf("%d spans and %d inits, want 2 and 2", o.spans, len(r.inits))
		}
		if a, b := r.inits[initName(1, 1)].Tracks[0].Width, r.inits[initName(1, 2)].Tracks[0].Width; a != 320 || b != 640 {
			t.Errorf("pictures of %d and %d, want 320 and 640", a, b)
		}
	})
	for _, tooLong := range []int{65_500, 70_000} {
		t.Run(fmt.Sprint("unusable ", tooLong), func(t *testing.T) {
			// What cannot be sent as an init would stop the lane for ever.
			r := newRig(t, Config{})
			r.open(plain, nil)
			for i := range 200 {
				at := time.Duration(i) * 40 * time.Millisecond
				switch i {
				case 50:
					r.picture(at, t0.Add(at), true, spsOf(20, 0), append(slices.Clone(pps), make([]byte, tooLong)...))
				case 100:
					r.picture(at, t0.Add(at), true, []byte{0x67, 1, 2}, pps)
				case 150:
					r.picture(at, t0.Add(at), true, spsOf(20, 0), pps)
				default:
					r.picture(at, t0.Add(at), false)
					if i == 0 {
						r.picture(at, t0.Add(at), true)
					}
				}
			}
			r.m.Flush()
			if o := r.check(); o.pictures+int(r.m.Stats().BeforeKey) != r.frames || o.spans != 2 {
				t.Errorf("%d pictures in %d spans, %d counted as lost, of %d", o.pictures, o.spans, r.m.Stats().BeforeKey, r.frames)
			}
		})
	}
}

func TestCutWithoutKeyframe(t *testing.T) {
	t.Run("after 120 s", func(t *testing.T) {
		r := newRig(t, Config{})
		r.open(plain, nil)
		r.film(0, 25*300, 25*280)
		r.m.Flush()
		r.check()
		at, dependent := r.firsts()
		s := time.Second
		if !slices.Equal(at, []time.Duration{0, 120 * s, 240 * s, 280 * s}) || !slices.Equal(dependent, []bool{false, true, true, false}) {
			t.Errorf("recordings begin at %v, dependent %v", at, dependent)
		}
	})
	t.Run("after 64 MiB", func(t *testing.T) {
		r := newRig(t, Config{})
		r.size = 1 << 20
		r.open(plain, nil)
		r.film(0, 70, 1000)
		r.m.Flush()
		r.check()
		if _, dependent := r.firsts(); !slices.Equal(dependent, []bool{false, true}) {
			t.Errorf("recordings: dependent %v, want one cut", dependent)
		}
	})
}

func TestSameInputSameBytes(t *testing.T) {
	run := func() *rig {
		r := newRig(t, Config{Recording: 5 * time.Second, Phase: time.Second})
		r.open(plain, aac)
		for i := range 500 {
			at := time.Duration(i) * 40 * time.Millisecond
			r.picture(at, t0.Add(at), i%25 == 0)
			r.sound(2*i, t0.Add(at))
			r.sound(2*i+1, t0.Add(at))
			r.m.Tick(t0.Add(at))
		}
		r.m.Flush()
		r.check()
		return r
	}
	if a, b := run(), run(); digest(a.chunks) != digest(b.chunks) {
		t.Error("the same input gave other bytes")
	}
}

// TestFlushLosesNothing: whatever waits, for a decode time, a duration or the
// sound, comes out.
func TestFlushLosesNothing(t *testing.T) {
	for n := 1; n < 60; n++ {
		r := newRig(t, Config{})
		r.open(cmaf.VideoParams{Codec: "h264", SPS: spsOf(20, 2), PPS: pps}, aac)
		for i := range n {
			at := time.Duration(i) * 40 * time.Millisecond
			r.picture(at, t0.Add(at), i%20 == 0)
			r.sound(i, t0.Add(at))
		}
		r.m.Flush()
		if o := r.check(); o.samples != n {
			t.Errorf("%d sound samples of %d", o.samples, n)
		}
		r.allMuxed(0)
	}
}

func TestHubClockSetBack(t *testing.T) {
	for name, setBack := range map[string]int{"new epoch": 40, "before the first chunk": 5, "same epoch": 41} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Recording: 10 * time.Second}
			renew := setBack == 40
			if renew {
				cfg.NewEpoch = func() vms.Epoch { return 2 }
			}
			r := newRig(t, cfg)
			r.open(plain, aac) // a track of which nothing comes
			for i := range 25 * 60 {
				at := time.Duration(i) * 40 * time.Millisecond
				now := t0.Add(at)
				if i > setBack {
					now = now.Add(-time.Hour)
				}
				r.picture(at, now, i%50 == 0)
				r.m.Tick(now)
				if i == 100 && len(r.chunks) < 10 {
					t.Fatal("everything waits for the hour to pass")
				}
			}
			r.m.Flush()
			o := r.check()
			r.allMuxed(0)
			last := r.chunks[len(r.chunks)-1]
			off := last.End.Sub(t0.Add(time.Minute - time.Hour))
			if renew && (off.Abs() > 100*time.Millisecond || o.spans != 2) {
				t.Errorf("UTC is %v off at the end, in %d spans", off, o.spans)
			}
			if !renew && o.spans != 1 {
				t.Errorf("%d spans: a new one cannot bring UTC back", o.spans)
			}
		})
	}
}

// TestHubLearnsTheTime: what was stamped before is marked, and is right when it
// is moved by as much as Rebase says. Nothing else shows that anything happened:
// no hole, no new span, and recordings begin where UTC says, from the next one
// on, never closer than they may and never later.
func TestHubLearnsTheTime(t *testing.T) {
	floor := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	const recording, phase, gop = 10 * time.Second, 3 * time.Second, 40 // pictures of 40 ms
	for name, tt := range map[string]struct {
		learn, lost, found int // numbers of pictures; the camera is away from lost to found
		drift              float64
		sound              bool
	}{
		"in a recording":          {learn: 833},
		"early in a recording":    {learn: 650},
		"at a keyframe":           {learn: 800},
		"after a keyframe":        {learn: 801},
		"before the first chunk":  {learn: 5},
		"before the camera":       {learn: 0},
		"at once":                 {learn: 1},
		"between two sessions":    {learn: 850, lost: 820, found: 1000},
		"after a second session":  {learn: 1203, lost: 820, found: 1000},
		"with sound on the way":   {learn: 801, sound: true},
		"with a camera that runs": {learn: 2403, drift: 500e-6},
		"with one that lags":      {learn: 2403, drift: -500e-6},
	} {
		for _, delta := range []time.Duration{21*24*time.Hour + 12345678*time.Microsecond, -time.Hour, 3 * time.Millisecond} {
			t.Run(fmt.Sprint(name, " by ", delta), func(t *testing.T) {
				r := newRig(t, Config{Recording: recording, Phase: phase})
				var audio *Sound
				if tt.sound {
					audio = aac
				}
				r.open(plain, audio)
				r.unsure = true
				var by time.Duration
				raw, sample := 0, 0
				for i := range 4000 {
					at := time.Duration(i) * 40 * time.Millisecond
					now := floor.Add(at)
					if i == tt.learn {
						by, _ = r.m.Rebase(delta)
						raw, r.unsure = len(r.chunks), false
						if (by - delta).Abs() > 100*time.Millisecond {
							t.Errorf("moved by %v, want about %v", by, delta)
						}
					}
					if !r.unsure {
						now = now.Add(delta)
					}
					r.m.Tick(now)
					if tt.lost < i && i < tt.found {
						if i == tt.lost+1 {
							r.m.Flush()
						}
						continue
					}
					if i == tt.found && i > 0 {
						r.open(plain, audio)
					}
					r.picture(at+time.Duration(float64(at)*tt.drift), now, i%gop == 0)
					for audio != nil && time.Duration(sample)*aacFrame < at-200*time.Millisecond {
						r.sound(sample, now)
						sample++
					}
				}
				r.m.Flush()
				for i := range r.chunks {
					c := &r.chunks[i]
					if c.Flags.Has(vms.FlagTimeUncertain) != (i < raw) {
						t.Fatalf("chunk %d of %d, %d of which came before the time was known: flags %b", c.Seq, len(r.chunks), raw, c.Flags)
					}
					if i < raw {
						c.Start, c.End = c.Start.Add(by), c.End.Add(by)
					}
				}
				o := r.check()
				if want := 1 + min(tt.found, 1); o.spans != want {
					t.Errorf("%d spans, want %d", o.spans, want)
				}
				begins := func(c *vms.Chunk) time.Duration { // since the boundary before
					return time.Duration(c.Start.UnixNano()-int64(phase)) % recording
				}
				var last *vms.Chunk
				since := -1 // recordings that began after the time was known
				learnt := floor.Add(delta + time.Duration(tt.learn)*40*time.Millisecond)
				for i := range r.chunks {
					c := &r.chunks[i]
					seq := time.Duration(i) * 200 * time.Millisecond
					if tt.found == 0 && tt.drift >= 0 && (c.Start.Sub(floor.Add(delta))-seq).Abs() > 150*time.Millisecond && i >= raw {
						t.Fatalf("chunk %d begins %v after the first picture, want %v", c.Seq, c.Start.Sub(floor.Add(delta)), seq)
					}
					if !c.Flags.Has(vms.FlagFirst) {
						continue
					}
					if last != nil && last.Recording < c.Recording {
						d := c.Start.Sub(last.Start)
						if d < recording/16 || d > recording+recording/16+gop*40*time.Millisecond+100*time.Millisecond {
							t.Errorf("recording %d is %v long", last.Recording, d)
						}
						// The first may be due since what was the past is another.
						if since < 0 && i >= raw && tt.drift == 0 && tt.found == 0 {
							due := last.Start.Add(recording / 16)
							due = due.Add(recording - time.Duration(due.UnixNano()-int64(phase))%recording)
							if due.Before(learnt) {
								due = learnt
							}
							if late := c.Start.Sub(due); late < -100*time.Millisecond || late > gop*40*time.Millisecond+100*time.Millisecond {
								t.Errorf("recording %d begins %v after it was due", c.Recording, late)
							}
						}
						if since > 0 && begins(c) > gop*40*time.Millisecond+100*time.Millisecond {
							t.Errorf("recording %d begins %v after where it should", c.Recording, begins(c))
						}
					}
					last = c
					if i >= raw {
						since++
					}
				}
			})
		}
	}
}

// TestRebaseSaysWhatEarlierSessionsMayBeOff: those that ended while UTC was
// behind the hub's clock do not move with the one that goes on.
func TestRebaseSaysWhatEarlierSessionsMayBeOff(t *testing.T) {
	r := newRig(t, Config{})
	r.open(plain, nil)
	r.unsure = true
	const drift = 2000e-6 // of the camera against the hub: four times what is followed
	at := time.Duration(0)
	for range 1000 {
		r.picture(at-time.Duration(float64(at)*drift), t0.Add(at), true)
		at += time.Second
	}
	r.open(plain, nil)
	for range 20 {
		r.picture(at, t0.Add(at), true)
		at += time.Second
	}
	by, doubt := r.m.Rebase(time.Hour)
	if (by-time.Hour).Abs() > 20*time.Millisecond || doubt < 1400*time.Millisecond || doubt > 1600*time.Millisecond {
		t.Errorf("moved by %v, doubt %v, want an hour and 1.5 s", by, doubt)
	}
	if _, doubt = r.m.Rebase(0); doubt != 0 {
		t.Errorf("doubt %v of what was placed", doubt)
	}
}

// TestRebaseMovesEveryArrival: what waits for sound or for a burst to end goes on
// waiting, and nothing takes the step for a jump of the camera.
func TestRebaseMovesEveryArrival(t *testing.T) {
	r := newRig(t, Config{})
	r.open(plain, aac)
	r.unsure = true
	r.film(0, 8, 25)
	r.sound(0, t0.Add(time.Second))
	m := r.m
	m.closed = append(m.closed, &building{firstNow: t0, closed: t0.Add(time.Second)})
	arrivals := func() (out []time.Time) {
		for _, c := range append(slices.Clone(m.closed), m.cur) {
			if c != nil {
				out = append(out, c.firstNow, c.closed)
			}
		}
		for _, f := range m.reorder.queue {
			out = append(out, f.now)
		}
		return append(out, m.held.now, m.soundNow, m.keyless.since, m.vJump.lastNow, m.aJump.lastNow, m.clock.origin)
	}
	before := arrivals()
	m.Rebase(time.Hour)
	for i, at := range arrivals() {
		if want := before[i].Add(time.Hour); !before[i].IsZero() && !at.Equal(want) || before[i].IsZero() != at.IsZero() {
			t.Errorf("arrival %d: %v, was %v", i, at, before[i])
		}
	}
}

// TestProvisionalTimeTakesNoSteps: a camera and a crystal that are both as far
// off as they may be drift apart for hours before anybody tells the time. What
// was captured stays in one piece, and what comes last is right.
func TestProvisionalTimeTakesNoSteps(t *testing.T) {
	for _, sign := range []float64{1, -1} {
		r := newRig(t, Config{Recording: 10 * time.Minute})
		r.open(plain, nil)
		r.unsure = true
		const pictures, every = 6 * 3600, time.Second
		var by, delta time.Duration
		delta = 21 * 24 * time.Hour
		for i := range pictures {
			at := time.Duration(i) * every
			now := t0.Add(at + time.Duration(float64(at)*500e-6*sign))
			if i == pictures-20 {
				by, _ = r.m.Rebase(delta)
				for k := range r.chunks {
					r.chunks[k].Start, r.chunks[k].End = r.chunks[k].Start.Add(by), r.chunks[k].End.Add(by)
				}
				r.unsure = false
			}
			if !r.unsure {
				now = now.Add(delta)
			}
			r.picture(at-time.Duration(float64(at)*500e-6*sign), now, true)
		}
		r.m.Flush()
		o := r.check()
		last := r.chunks[len(r.chunks)-1]
		end := time.Duration(pictures) * every
		want := t0.Add(delta + end + time.Duration(float64(end)*500e-6*sign))
		if off := last.End.Sub(want); o.spans != 1 || off.Abs() > 200*time.Millisecond {
			t.Errorf("%d spans, %v off at the end, moved by %v", o.spans, off, by)
		}
	}
}

func BenchmarkMux(b *testing.B) {
	r := newRig(b, Config{})
	r.m.cfg.OnChunk = func(vms.Chunk) { r.chunks = append(r.chunks[:0], vms.Chunk{}) }
	chunks := 0
	r.m.cfg.OnChunk = func(vms.Chunk) { chunks++ }
	r.open(plain, aac)
	au := make([][][]byte, 50)
	for i := range au {
		n := make([]byte, 4_000)
		n[0] = 0x41
		if i == 0 {
			n = make([]byte, 60_000)
			n[0] = 0x65
		}
		au[i] = [][]byte{n}
	}
	data := make([]byte, 200)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		now := t0.Add(time.Duration(i) * 40 * time.Millisecond)
		r.m.Video(int64(i)*3600, now, false, time.Time{}, au[i%50])
		r.m.Audio(int64(2*i)*1024*15/16, now, data)
		r.m.Audio(int64(2*i+1)*1024*15/16, now, data)
	}
	b.ReportMetric(float64(b.N)/float64(max(chunks, 1)), "pictures/chunk")
}
