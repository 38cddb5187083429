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
	if err := r.m.Open(cmaf.VideoParams{Codec: "mjpeg"}, nil); err == nil {
		t.Error("MJPEG is taken")
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

// TestHubLearnsTheTime: what was stamped before is marked, and from the next
// keyframe on it is right.
func TestHubLearnsTheTime(t *testing.T) {
	r := newRig(t, Config{Recording: 10 * time.Second})
	r.open(plain, nil)
	floor := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for i := range 500 {
		at := time.Duration(i) * 40 * time.Millisecond
		now := t0.Add(at)
		if r.unsure = i < 120; r.unsure {
			now = floor.Add(at)
		}
		r.picture(at, now, i%50 == 0)
	}
	r.m.Flush()
	if o := r.check(); o.spans != 2 {
		t.Errorf("%d spans, want 2", o.spans)
	}
	r.allMuxed(0)
	for _, c := range r.chunks {
		right := !c.Start.Before(t0)
		if c.Flags.Has(vms.FlagTimeUncertain) == right {
			t.Errorf("chunk %d at %v: flags %b", c.Seq, c.Start, c.Flags)
		}
		if right && c.Recording == 0 && c.Flags.Has(vms.FlagFirst) && (c.Start.Sub(t0)-6*time.Second).Abs() > 50*time.Millisecond {
			t.Errorf("the span after the time was learnt begins at %v", c.Start.Sub(t0))
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
