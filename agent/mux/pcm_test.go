package mux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/g711"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/flactest"
)

var pcmu = &Sound{Codec: "pcmu", SampleRate: 8000, Channels: 1}

// voice is a camera's PCM, and what of it was fed.
type voice struct {
	*rig
	s    *Sound
	rnd  *rand.Rand
	next int64   // number of the next sample
	fed  []int32 // values as FLAC has them, interleaved
}

func newVoice(r *rig, s *Sound) *voice { return &voice{rig: r, s: s, rnd: rand.New(rand.NewPCG(1, 2))} }

// wire makes n samples, and says what they mean.
func (v *voice) wire(n int) (data []byte, values []int32) {
	size := 1
	if v.s.Codec == "lpcm" {
		size = v.s.BitDepth / 8
	}
	data = make([]byte, n*v.s.Channels*size)
	for i := range data {
		data[i] = byte(v.rnd.Uint32())
	}
	var wide []byte
	switch v.s.Codec {
	case "pcma":
		var law g711.Alaw
		law.Unmarshal(data)
		wide = law
	case "pcmu":
		var law g711.Mulaw
		law.Unmarshal(data)
		wide = law
	case "lpcm":
		for i := 0; i < len(data); i += size {
			switch size {
			case 1:
				values = append(values, (int32(data[i])-128)*256)
			case 2:
				values = append(values, int32(int16(binary.BigEndian.Uint16(data[i:]))))
			case 3:
				values = append(values, int32(uint32(data[i])<<24|uint32(data[i+1])<<16|uint32(data[i+2])<<8)>>8)
			}
		}
	}
	for i := 0; i < len(wide); i += 2 {
		values = append(values, int32(int16(binary.BigEndian.Uint16(wide[i:]))))
	}
	return data, values
}

// packet feeds the next n samples, with a timestamp that is off by so many samples.
func (v *voice) packet(n int, off int64, arrival time.Time) {
	data, values := v.wire(n)
	v.fed = append(v.fed, values...)
	v.m.Audio(v.next+off, arrival, data)
	v.next += int64(n)
}

// at is when sample n was captured.
func (v *voice) at(n int64) time.Duration {
	return time.Duration(n) * time.Second / time.Duration(v.s.SampleRate)
}

// talk feeds pictures of 25 a second with a keyframe every second and the sound
// beside them in packets of 20 ms, as soon as it was captured.
func (v *voice) talk(from, to time.Duration) {
	n := v.s.SampleRate / 50
	for i := int(from / (40 * time.Millisecond)); i < int(to/(40*time.Millisecond)); i++ {
		at := time.Duration(i) * 40 * time.Millisecond
		for v.at(v.next+int64(n)) <= at {
			v.packet(n, 0, t0.Add(at))
		}
		v.picture(at, t0.Add(at), i%25 == 0)
		v.m.Tick(t0.Add(at))
	}
}

// stretch is sound without a hole.
type stretch struct {
	at  int64 // its first sample, ticks after what Mux made of time 0
	pcm []int32
}

// hear decodes the sound in the chunks. next is the number of the first frame's
// first sample; less than 0: some may be missing.
func (r *rig) hear(next int64) (out []stretch) {
	r.t.Helper()
	var d *flactest.Decoder
	end := int64(-1)
	for i := range r.chunks {
		c := &r.chunks[i]
		f, err := cmaf.ParseFragment(c.Payload)
		if err != nil {
			r.t.Fatal(err)
		}
		a := f.Run(cmaf.AudioTrack)
		if a == nil {
			continue
		}
		init := r.inits[initName(c.Epoch, c.Init)]
		at := bytes.Index(init.Segment, []byte("dfLa")) // and version, the header of the block, its 34 bytes
		if len(init.Tracks) != 2 || init.Tracks[1].Codec != "flac" || at < 0 {
			r.t.Fatalf("chunk %d: sound in a track of %+v", c.Seq, init.Tracks)
		}
		if d == nil {
			if d, err = flactest.New(init.Segment[at+12 : at+46]); err != nil {
				r.t.Fatal(err)
			}
			d.Next = next
		}
		from := int64(c.MoofLen) + 8 + f.Run(cmaf.VideoTrack).Bytes
		pcm, err := d.Frames(c.Payload[from : from+a.Bytes])
		if err != nil {
			r.t.Fatalf("chunk %d: %v", c.Seq, err)
		}
		ts, off := int64(init.Tracks[1].Timescale), int64(0)
		if ts%int64(d.Rate) != 0 {
			off = int64(a.Samples) // each is rounded
		}
		if want := int64(len(pcm)/d.Channels) * ts / int64(d.Rate); int64(a.Duration) < want-off || int64(a.Duration) > want+off {
			r.t.Errorf("chunk %d: %d samples last %d ticks, want %d", c.Seq, len(pcm)/d.Channels, a.Duration, want)
		}
		begin := int64(a.Base) - 10*ts // what unjump adds
		if begin != end {
			out = append(out, stretch{at: begin})
		}
		last := &out[len(out)-1]
		last.pcm = append(last.pcm, pcm...)
		end = begin + int64(a.Duration)
	}
	return out
}

func all(in []stretch) (pcm []int32) {
	for _, s := range in {
		pcm = append(pcm, s.pcm...)
	}
	return pcm
}

// TestPCMIsExact: every sample of every kind comes out as FLAC, at its time, over
// the boundaries of recordings and to the end of the session.
func TestPCMIsExact(t *testing.T) {
	for _, s := range []*Sound{
		pcmu,
		{Codec: "pcma", SampleRate: 8000, Channels: 1},
		{Codec: "pcma", SampleRate: 16000, Channels: 2},
		{Codec: "pcmu", SampleRate: 11025, Channels: 1},
		{Codec: "lpcm", SampleRate: 8000, Channels: 1, BitDepth: 8},
		{Codec: "lpcm", SampleRate: 16000, Channels: 1, BitDepth: 16},
		{Codec: "lpcm", SampleRate: 44100, Channels: 2, BitDepth: 16},
		{Codec: "lpcm", SampleRate: 16000, Channels: 8, BitDepth: 24},
	} {
		for _, millis := range []int{5, 20, 100} {
			if millis != 20 && s.SampleRate*s.Channels > 16000 {
				continue // it would only take long
			}
			t.Run(fmt.Sprintf("%s %d bits %d Hz %d channels in %d ms", s.Codec, s.BitDepth, s.SampleRate, s.Channels, millis), func(t *testing.T) {
				r := newRig(t, Config{Recording: time.Second})
				v := newVoice(r, s)
				r.open(plain, s)
				for i := range 60 {
					at := time.Duration(i) * 40 * time.Millisecond
					r.picture(at, t0.Add(at), i%25 == 0)
					for n := s.SampleRate * millis / 1000; v.at(v.next+int64(n)) <= at+40*time.Millisecond; {
						v.packet(n, 0, t0.Add(at))
					}
				}
				v.packet(7, 0, t0.Add(2400*time.Millisecond))
				r.m.Flush()
				o := r.check()
				r.allMuxed(0)
				heard := r.hear(0)
				if len(heard) != 1 || heard[0].at != 0 || !slices.Equal(heard[0].pcm, v.fed) {
					t.Errorf("%d stretches of %d values, want one of %d", len(heard), len(all(heard)), len(v.fed))
				}
				if o.recordings != 3 || o.spans != 1 || r.m.Stats().SoundDropped != 0 {
					t.Errorf("%+v, %+v", o, r.m.Stats())
				}
			})
		}
	}
}

// TestSoundThatNobodyCanWrite is as good as none.
func TestSoundThatNobodyCanWrite(t *testing.T) {
	for _, s := range []*Sound{
		{Codec: "opus", SampleRate: 48000, Channels: 2},
		{Codec: "lpcm", SampleRate: 48000, Channels: 2, BitDepth: 20},
		{Codec: "lpcm", SampleRate: 48000, Channels: 9, BitDepth: 16},
		{Codec: "pcmu", SampleRate: 1 << 30, Channels: 1},
		{Codec: "pcma", SampleRate: 8000},
	} {
		r := newRig(t, Config{})
		r.open(plain, s)
		r.m.Audio(0, t0, make([]byte, 160))
		r.film(0, 50, 25)
		r.m.Flush()
		r.check()
		r.allMuxed(0)
		if n := len(r.inits[initName(1, 1)].Tracks); n != 1 {
			t.Errorf("%+v: %d tracks", s, n)
		}
	}
	// A packet that ends within a sample holds the whole ones.
	s := &Sound{Codec: "lpcm", SampleRate: 8000, Channels: 2, BitDepth: 16}
	r := newRig(t, Config{})
	r.open(plain, s)
	r.m.Audio(0, t0, make([]byte, 3))
	r.m.Audio(0, t0, make([]byte, 4*160+3))
	r.film(0, 50, 25)
	r.m.Flush()
	if heard := r.hear(0); len(heard) != 1 || len(heard[0].pcm) != 2*160 {
		t.Errorf("%d values, want 320", len(all(heard)))
	}
}

// TestSloppyTimestamps: PCM that is stamped a little off is in one piece.
func TestSloppyTimestamps(t *testing.T) {
	r := newRig(t, Config{Recording: 2 * time.Second})
	v := newVoice(r, pcmu)
	r.open(plain, pcmu)
	for i := range 10_000 / 20 {
		at := time.Duration(i) * 20 * time.Millisecond
		if i%2 == 0 {
			r.picture(at, t0.Add(at), i%50 == 0)
		}
		off := v.rnd.Int64N(281) - 140 // 17.5 ms
		if i == 0 {
			off = 0
		}
		v.packet(160, off, t0.Add(at))
	}
	r.m.Flush()
	r.check()
	if heard := r.hear(0); len(heard) != 1 || heard[0].at != 0 || !slices.Equal(heard[0].pcm, v.fed) {
		t.Errorf("%d stretches of %d samples, want one of %d", len(heard), len(all(heard)), len(v.fed))
	}
}

// TestHolesInPCMStay: what the camera leaves out is neither filled nor closed,
// and what stands around it is whole.
func TestHolesInPCMStay(t *testing.T) {
	for _, hole := range []time.Duration{60 * time.Millisecond, 500 * time.Millisecond, 4 * time.Second} {
		for begin := 2 * time.Second; begin < 2300*time.Millisecond; begin += 60 * time.Millisecond {
			t.Run(fmt.Sprint(begin, " for ", hole), func(t *testing.T) {
				r := newRig(t, Config{Recording: time.Second})
				v := newVoice(r, pcmu)
				r.open(plain, pcmu)
				v.talk(0, begin)
				before := v.next
				v.next += int64(hole / time.Millisecond * 8)
				after := v.next
				v.talk(begin, 8*time.Second)
				r.m.Flush()
				o := r.check()
				r.allMuxed(0)
				heard := r.hear(0)
				if len(heard) != 2 || !slices.Equal(all(heard), v.fed) {
					t.Fatalf("%d stretches of %d samples, want two of %d", len(heard), len(all(heard)), len(v.fed))
				}
				tick := int64(r.m.ts) / 8000
				if len(heard[0].pcm) != int(before) || heard[1].at != after*tick {
					t.Errorf("the hole is from %d to %d, want %d to %d", len(heard[0].pcm), heard[1].at/tick, before, after)
				}
				if o.spans != 1 || o.late > 64*tick*8 {
					t.Errorf("%d spans; sound begins %d ticks before a recording's picture", o.spans, o.late)
				}
			})
		}
	}
}

// TestNoFrameIsTooShort: FLAC has frames of less than 16 samples only at its end,
// and none that are longer than it said.
func TestNoFrameIsTooShort(t *testing.T) {
	for n := 1; n < 1100; n++ {
		r := newRig(t, Config{})
		v := newVoice(r, pcmu)
		r.open(plain, pcmu)
		v.packet(n, 0, t0)
		v.next += 8000
		v.packet(160, 0, t0)
		r.m.flushPCM()
		var frames []int64
		for i := range r.m.soundQ {
			frames = append(frames, r.m.soundQ[i].dur*8000/int64(r.m.ts))
		}
		if slices.Min(frames) < min(int64(n), leastBlock) || slices.Max(frames) > 512 {
			t.Errorf("%d samples before a hole: frames of %d", n, frames)
		}
	}
}

// TestPCMThatGoesBack: timestamps that go back lose nothing, and put nothing to
// where it is not.
func TestPCMThatGoesBack(t *testing.T) {
	for _, back := range []time.Duration{30 * time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond, 1500 * time.Millisecond, 5 * time.Second, time.Hour} {
		t.Run(back.String(), func(t *testing.T) {
			r := newRig(t, Config{Recording: time.Second})
			v := newVoice(r, pcmu)
			r.open(plain, pcmu)
			v.talk(0, 3*time.Second)
			off := -int64(back / time.Millisecond * 8)
			for i := 75; i < 200; i++ {
				at := time.Duration(i) * 40 * time.Millisecond
				for v.at(v.next+160) <= at {
					v.packet(160, off, t0.Add(at))
				}
				r.picture(at, t0.Add(at), i%25 == 0)
			}
			r.m.Flush()
			r.check()
			heard := r.hear(0)
			if !slices.Equal(all(heard), v.fed) || len(heard) != 1 || r.m.Stats().SoundDropped != 0 {
				t.Errorf("%d stretches of %d samples, want one of %d", len(heard), len(all(heard)), len(v.fed))
			}
		})
	}
}

// TestMorePCMThanTime: a camera whose timestamps have no room for what it sends
// neither runs away from the picture nor fills the memory.
func TestMorePCMThanTime(t *testing.T) {
	r := newRig(t, Config{Recording: time.Second})
	v := newVoice(r, pcmu)
	r.open(plain, pcmu)
	holes, dropped := 0, uint64(0)
	for i := range 25 * 30 {
		at := time.Duration(i) * 40 * time.Millisecond
		r.picture(at, t0.Add(at), i%25 == 0)
		v.packet(320, 0, t0.Add(at))
		v.packet(320, -320, t0.Add(at))
		v.next -= 320
		if n := r.m.Stats().SoundDropped - dropped; n == 1 {
			holes++ // one of the two
		}
		dropped = r.m.Stats().SoundDropped
	}
	if holes > 40 {
		t.Errorf("something is left out %d times in 30 s, want about once a second", holes)
	}
	r.m.Flush()
	r.check()
	heard := r.hear(-1)
	for _, s := range heard {
		if end := s.at + int64(len(s.pcm))*int64(r.m.ts)/8000; end > int64(r.m.ts)*32 {
			t.Errorf("sound ends %d ticks after the beginning", end)
		}
	}
	if n := len(all(heard)); n < 28*8000 || n > 32*8000 || r.m.Stats().SoundDropped == 0 {
		t.Errorf("%d samples, %d packets dropped", n, r.m.Stats().SoundDropped)
	}
}

// TestPCMComesAndGoes: what TestSound proves of AAC, where samples wait to become
// a frame.
func TestPCMComesAndGoes(t *testing.T) {
	const d = 20 * time.Second
	lag := func(by time.Duration) func(time.Duration) (time.Duration, bool) {
		return func(at time.Duration) (time.Duration, bool) { return at + by, true }
	}
	for _, tt := range []struct {
		name    string
		watched bool
		sound   func(captured time.Duration) (arrives time.Duration, ok bool)
		spans   int
		missing time.Duration
		wait    time.Duration
	}{
		{"in step", false, lag(0), 1, 0, 90 * time.Millisecond}, // the frame that goes on over the end
		{"in step, watched", true, lag(0), 1, 0, 90 * time.Millisecond},
		{"ahead", false, lag(-300 * time.Millisecond), 1, 0, 60 * time.Millisecond},
		{"300 ms behind", false, lag(300 * time.Millisecond), 1, 0, 440 * time.Millisecond},
		{"300 ms behind, watched", true, lag(300 * time.Millisecond), 1, 0, 200 * time.Millisecond},
		{"2 s behind", false, lag(2 * time.Second), 2, 3 * time.Second, 600 * time.Millisecond},
		{"late", false, func(at time.Duration) (time.Duration, bool) { return at, at > 7500*time.Millisecond }, 2, time.Second, 600 * time.Millisecond},
		{"stops", false, func(at time.Duration) (time.Duration, bool) { return at, at < 7510*time.Millisecond }, 2, 0, 600 * time.Millisecond},
		{"stops for a second", false, func(at time.Duration) (time.Duration, bool) {
			return at, at < 7310*time.Millisecond || at > 8400*time.Millisecond
		}, 1, 0, 600 * time.Millisecond},
		{"comes at times", false, func(at time.Duration) (time.Duration, bool) { return at, at/(500*time.Millisecond)%2 == 0 }, 1, 0, 600 * time.Millisecond},
		{"hangs and catches up", false, func(at time.Duration) (time.Duration, bool) {
			if at > 7300*time.Millisecond && at < 10400*time.Millisecond {
				return 10400 * time.Millisecond, true
			}
			return at, true
		}, 1, 4 * time.Second, 600 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Config{Recording: 3 * time.Second})
			v := newVoice(r, pcmu)
			r.open(plain, pcmu)
			r.m.SetWatched(tt.watched)
			worst := r.watchDelays()
			type packet struct {
				pts     int64
				arrives time.Duration
				data    []byte
			}
			var q []packet
			for v.at(v.next) < d {
				captured := v.at(v.next + 160)
				data, values := v.wire(160)
				if arrives, ok := tt.sound(captured); ok {
					q = append(q, packet{v.next, arrives, data})
					v.fed = append(v.fed, values...)
				}
				v.next += 160
			}
			for ms := time.Duration(0); ms < d+10*time.Second; ms += 10 * time.Millisecond {
				if i := int(ms / (40 * time.Millisecond)); ms%(40*time.Millisecond) == 0 && ms < d {
					r.picture(ms, t0.Add(ms), i%25 == 0)
				}
				for len(q) > 0 && q[0].arrives <= ms {
					r.m.Audio(q[0].pts, t0.Add(ms), q[0].data)
					q = q[1:]
				}
				r.m.Tick(t0.Add(ms))
			}
			r.over = true
			r.m.Flush()
			o := r.check()
			r.allMuxed(0)
			if o.spans != tt.spans || len(r.inits) != tt.spans {
				t.Errorf("%d spans with %d inits, want %d", o.spans, len(r.inits), tt.spans)
			}
			next := int64(0)
			if tt.missing > 0 {
				next = -1
			}
			pcm := all(r.hear(next))
			if lost := len(v.fed) - len(pcm); lost > int(tt.missing.Milliseconds()*8) || (lost > 0) != (r.m.Stats().SoundDropped > 0) {
				t.Errorf("%d of %d samples are missing, %d frames counted; want at most %v", lost, len(v.fed), r.m.Stats().SoundDropped, tt.missing)
			}
			if tt.missing == 0 && !slices.Equal(pcm, v.fed) {
				t.Error("other samples than were sent")
			}
			if *worst > tt.wait {
				t.Errorf("a chunk came %v after its end, want at most %v for the sound", *worst, tt.wait)
			}
			if tt.name == "in step" && o.late > 0 {
				t.Errorf("sound begins %d ticks before a recording's picture", o.late)
			}
		})
	}
}

// TestSoundChangesItsCodec, which takes another session of the camera: another
// init and another recording.
func TestSoundChangesItsCodec(t *testing.T) {
	r := newRig(t, Config{})
	want := []string{"flac", "mp4a.40.2", "flac", "flac"}
	for i, s := range []*Sound{pcmu, aac, {Codec: "lpcm", SampleRate: 8000, Channels: 1, BitDepth: 16}, {Codec: "lpcm", SampleRate: 16000, Channels: 1, BitDepth: 16}} {
		r.open(plain, s)
		for k := range 50 {
			at := time.Duration(50*i+k) * 40 * time.Millisecond
			r.picture(at, t0.Add(at), k == 0)
			r.m.Audio(int64(k)*int64(s.SampleRate)/25, t0.Add(at), make([]byte, 2*s.SampleRate/25))
		}
	}
	r.m.Flush()
	o := r.check()
	r.allMuxed(0)
	if o.spans != 4 || len(r.inits) != 4 {
		t.Errorf("%d spans with %d inits, want 4 with 4", o.spans, len(r.inits))
	}
	var got []string
	for i := range r.chunks {
		if c := &r.chunks[i]; c.Flags.Has(vms.FlagFirst) {
			got = append(got, r.inits[initName(1, c.Init)].Tracks[1].Codec)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("recordings with sound of %v, want %v", got, want)
	}
}

// TestPCMWithoutPictures does not fill the memory.
func TestPCMWithoutPictures(t *testing.T) {
	s := &Sound{Codec: "lpcm", SampleRate: 48000, Channels: 2, BitDepth: 24}
	r := newRig(t, Config{})
	v := newVoice(r, s)
	r.open(plain, s)
	for range 24 {
		v.packet(48_000, 0, t0.Add(v.at(v.next)))
		if r.m.soundLen > maxSoundBytes || len(r.m.soundQ) > maxSoundQueue {
			t.Fatalf("%d bytes in %d samples wait for a picture", r.m.soundLen, len(r.m.soundQ))
		}
	}
	n := 0
	for i := range r.m.soundQ {
		n += len(r.m.soundQ[i].data)
	}
	if n != r.m.soundLen || r.m.soundQ[len(r.m.soundQ)-1].known() < int64(33*r.m.ts) {
		t.Errorf("%d bytes wait, %d are counted; the newest of them are gone", n, r.m.soundLen)
	}
}

// mp4 is a recording of all chunks as a file.
func (r *rig) mp4() string {
	r.t.Helper()
	file := slices.Clone(r.inits[initName(1, 1)].Segment)
	f, err := cmaf.ParseFragment(r.chunks[0].Payload)
	if err != nil {
		r.t.Fatal(err)
	}
	zero := f.Zero()
	for i := range r.chunks {
		c := &r.chunks[i]
		if f, err = cmaf.ParseFragment(c.Payload); err != nil {
			r.t.Fatal(err)
		}
		if file, err = f.Rebase(file, c.Payload, zero); err != nil {
			r.t.Fatal(err)
		}
		file = append(file, c.Payload[c.MoofLen:]...)
	}
	name := filepath.Join(r.t.TempDir(), "x.mp4")
	if err := os.WriteFile(name, file, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return name
}

// TestOthersHearPCM: ffmpeg finds in the MP4 what the camera sent.
func TestOthersHearPCM(t *testing.T) {
	for _, s := range []*Sound{pcmu, {Codec: "lpcm", SampleRate: 48000, Channels: 2, BitDepth: 24}} {
		r := newRig(t, Config{})
		v := newVoice(r, s)
		r.open(plain, s)
		v.talk(0, 2*time.Second)
		r.m.Flush()
		r.check()
		format, size := "s16le", 2
		if s.BitDepth == 24 {
			format, size = "s24le", 3
		}
		var want []byte
		for _, x := range v.fed {
			want = append(want, []byte{byte(x), byte(x >> 8), byte(x >> 16)}[:size]...)
		}
		if got := vmstest.FFmpeg(t, "-v", "error", "-i", r.mp4(), "-map", "0:a", "-f", format, "-"); !bytes.Equal(got, want) {
			t.Errorf("%s: ffmpeg decodes %d bytes, want %d", s.Codec, len(got), len(want))
		}
	}
}

func BenchmarkPCM(b *testing.B) {
	r := newRig(b, Config{})
	r.m.cfg.OnChunk = func(vms.Chunk) {}
	r.open(plain, pcmu)
	picture := [][]byte{make([]byte, 4000)}
	data, _ := newVoice(r, pcmu).wire(320)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		picture[0][0] = 0x41
		if i%50 == 0 {
			picture[0][0] = 0x65
		}
		now := t0.Add(time.Duration(i) * 40 * time.Millisecond)
		r.m.Video(int64(i)*3600, now, false, time.Time{}, picture)
		r.m.Audio(int64(i)*320, now, data)
	}
}
