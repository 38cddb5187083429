package mux

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

// still is a JPEG of one shade.
func still(t testing.TB, width, height int, shade byte) []byte {
	t.Helper()
	img := image.NewGray(image.Rect(0, 0, width, height))
	for i := range img.Pix {
		img.Pix[i] = shade ^ byte(i*i)
	}
	img.SetGray(0, 0, color.Gray{shade})
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// slides feeds MJPEG of 25 a second and returns it, one behind the other.
func (r *rig) slides(from, to, width, height int) (fed []byte) {
	for i := from; i < to; i++ {
		at := time.Duration(i) * 40 * time.Millisecond
		p := still(r.t, width, height, byte(i))
		fed = append(fed, p...)
		r.frames++
		r.m.Video(int64(i)*3600, t0.Add(at), false, time.Time{}, [][]byte{p})
	}
	return fed
}

// picturesOf returns the bytes of all pictures in the chunks.
func (r *rig) picturesOf() (out []byte) {
	for i := range r.chunks {
		c := &r.chunks[i]
		f, _ := cmaf.ParseFragment(c.Payload)
		from := int64(c.MoofLen) + 8
		out = append(out, c.Payload[from:from+f.Run(cmaf.VideoTrack).Bytes]...)
	}
	return out
}

func TestMJPEG(t *testing.T) {
	r := newRig(t, Config{Recording: 3 * time.Second, Phase: 1130 * time.Millisecond})
	r.open(cmaf.VideoParams{Codec: "mjpeg"}, nil)
	fed := r.slides(0, 1000, 64, 48)
	r.m.Flush()
	o := r.check()
	if o.spans != 1 || o.pictures != 1000 || !bytes.Equal(r.picturesOf(), fed) {
		t.Errorf("%+v of 1000 pictures", o)
	}
	if n := len(r.chunks); n != 200 {
		t.Errorf("%d chunks for 40 s, want one for each 200 ms", n)
	}
	at, dependent := r.firsts()
	for i := 1; i < len(at); i++ {
		due := time.Duration(i-1)*3*time.Second + 1130*time.Millisecond
		if late := at[i] - due; late < 0 || late > 200*time.Millisecond || dependent[i] {
			t.Errorf("recording %d begins at %v, dependent %v; due at %v", i, at[i], dependent[i], due)
		}
	}
	if len(at) != 14 {
		t.Errorf("%d recordings in 40 s, want 14", len(at))
	}
	if tr := r.inits[initName(1, 1)].Tracks[0]; tr.Codec != "mp4v.6C" || tr.Width != 64 || tr.Height != 48 {
		t.Errorf("track %+v", tr)
	}
	got := strings.TrimSpace(string(vmstest.FFprobe(t, "-v", "error", "-count_frames", "-select_streams", "v",
		"-show_entries", "stream=codec_name,width,height,nb_read_frames", "-of", "csv=p=0", r.mp4())))
	if got != "mjpeg,64,48,1000" {
		t.Errorf("ffprobe: %s, want mjpeg of 64 x 48 with 1000 frames", got)
	}
}

// TestMJPEGChangesItsSize: the picture of another size begins a recording with
// an init of its own; nothing is lost.
func TestMJPEGChangesItsSize(t *testing.T) {
	r := newRig(t, Config{})
	r.open(cmaf.VideoParams{Codec: "mjpeg"}, nil)
	fed := r.slides(0, 53, 64, 48)
	fed = append(fed, r.slides(53, 54, 32, 32)...)
	fed = append(fed, r.slides(54, 100, 64, 48)...)
	r.m.Flush()
	o := r.check()
	at, _ := r.firsts()
	want := []time.Duration{0, 53 * 40 * time.Millisecond, 54 * 40 * time.Millisecond}
	if !bytes.Equal(r.picturesOf(), fed) || !slices.Equal(at, want) || o.spans != 3 {
		t.Errorf("%+v; recordings begin at %v, want %v", o, at, want)
	}
	if tr := r.inits[initName(1, 2)].Tracks[0]; tr.Width != 32 || tr.Height != 32 {
		t.Errorf("track %+v, want 32 x 32", tr)
	}
}

// TestWhatIsNoJPEGIsCounted, and changes nothing.
func TestWhatIsNoJPEGIsCounted(t *testing.T) {
	good := still(t, 64, 48, 1)
	sof := bytes.Index(good, []byte{0xff, 0xc0})
	flat := bytes.Clone(good)
	copy(flat[sof+5:], []byte{0, 0})
	bad := map[string][][]byte{
		"nothing":     {},
		"empty":       {{}},
		"two":         {good, good},
		"text":        {[]byte("HTTP/1.1 503 busy")},
		"cut short":   {good[:sof+6]},
		"no scan":     {good[:bytes.Index(good, []byte{0xff, 0xda})]},
		"no height":   {flat},
		"only SOI":    {good[:2]},
		"EOI at once": {{0xff, 0xd8, 0xff, 0xd9, 0, 0, 0, 0}},
		"long ago":    {{0xff, 0xd8, 0xff, 0xe0, 0, 0, 0xff, 0xda, 0, 4, 1, 2}},
	}
	r := newRig(t, Config{})
	r.open(cmaf.VideoParams{Codec: "mjpeg"}, nil)
	fed := r.slides(0, 10, 64, 48)
	for _, au := range bad {
		r.m.Video(10*3600, t0.Add(400*time.Millisecond), false, time.Time{}, au)
	}
	fed = append(fed, r.slides(10, 20, 64, 48)...)
	r.m.Flush()
	if o := r.check(); o.spans != 1 || !bytes.Equal(r.picturesOf(), fed) {
		t.Errorf("%+v", o)
	}
	if n := r.m.Stats().Unreadable; n != uint64(len(bad)) {
		t.Errorf("%d unreadable pictures, want %d", n, len(bad))
	}
	// Bytes between the segments of a JPEG are allowed.
	padded := slices.Concat(good[:sof], []byte{0xff, 0xff}, good[sof:])
	if w, h := jpegSize(padded); w != 64 || h != 48 {
		t.Errorf("size %d x %d behind fill bytes, want 64 x 48", w, h)
	}
}

func FuzzJPEGSize(f *testing.F) {
	f.Add(still(f, 16, 8, 1))
	f.Add([]byte{0xff, 0xd8, 0xff, 0xff, 0xc2, 0, 11, 8, 0, 1, 0, 1, 1, 1, 0x11, 0, 0xff, 0xda, 0, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		w, h := jpegSize(b)
		if w < 0 || h < 0 || w > 65535 || h > 65535 {
			t.Errorf("%d x %d", w, h)
		}
		// The standard library reads no JPEG whose size we do not find.
		if c, err := jpeg.DecodeConfig(bytes.NewReader(b)); err == nil && w > 0 && h > 0 && (c.Width != w || c.Height != h) {
			t.Errorf("%d x %d, want %d x %d", w, h, c.Width, c.Height)
		}
	})
}

// TestOnlyKeyframes: of H264 too, they are chunked by time and size, and sound is
// waited for where a recording ends, not at each of them.
func TestOnlyKeyframes(t *testing.T) {
	for _, sound := range []*Sound{nil, pcmu} {
		r := newRig(t, Config{Recording: 5 * time.Second})
		v := newVoice(r, pcmu)
		r.open(plain, sound)
		var waited []time.Duration // for each chunk, from its end to when it came
		now := t0
		inner := r.m.cfg.OnChunk
		r.m.cfg.OnChunk = func(c vms.Chunk) {
			inner(c)
			waited = append(waited, now.Sub(c.End))
		}
		for i := range 500 {
			at := time.Duration(i) * 40 * time.Millisecond
			now = t0.Add(at)
			r.picture(at, now, true)
			if lag := 350 * time.Millisecond; at > lag {
				for v.at(v.next+160) <= at-lag {
					v.packet(160, 0, now)
				}
			}
		}
		r.m.Flush()
		o := r.check()
		r.allMuxed(0)
		if n := len(r.chunks); n != 100 || o.recordings != 4 {
			t.Errorf("%d chunks in %d recordings, want 100 in 4", n, o.recordings)
		}
		long := 0
		for i := range r.chunks {
			if c := &r.chunks[i]; !c.Flags.Has(vms.FlagKey) {
				t.Errorf("chunk %d is no keyframe's", c.Seq)
			}
			if i > 10 && waited[i] > 200*time.Millisecond {
				long++
			}
		}
		if sound != nil && (!slices.Equal(all(r.hear(0)), v.fed) || long == 0 || long > 12) {
			t.Errorf("%d chunks came late, want those that end a recording and what is behind them", long)
		}
	}
}

// TestKeyframeBehindAKeyframe: a GOP begins a chunk also where the one before it
// was one picture long only at times.
func TestKeyframeBehindAKeyframe(t *testing.T) {
	r := newRig(t, Config{Chunk: time.Second})
	r.open(plain, nil)
	keys := "KKPPKPKKKKKKPPPP"
	for i := range 10 * len(keys) {
		at := time.Duration(i) * 40 * time.Millisecond
		r.picture(at, t0.Add(at), keys[i%len(keys)] == 'K')
	}
	r.m.Flush()
	r.check()
	r.allMuxed(0)
	var got []int
	for i := range r.chunks[:4] {
		f, _ := cmaf.ParseFragment(r.chunks[i].Payload)
		got = append(got, f.Run(cmaf.VideoTrack).Samples)
	}
	if want := []int{4, 2, 10, 4}; !slices.Equal(got, want) {
		t.Errorf("chunks of %d pictures, want %d", got, want)
	}
}

// TestMuxAsksForKeyframes: once a minute without one, whatever the clock does.
func TestMuxAsksForKeyframes(t *testing.T) {
	const s = time.Second
	for name, tt := range map[string]struct {
		keys []time.Duration // when they come
		set  time.Duration   // by how much the hub's clock is set after 100 s
		want []time.Duration
	}{
		"none":                    {nil, 0, []time.Duration{60 * s, 120 * s, 180 * s, 240 * s}},
		"one":                     {[]time.Duration{0}, 0, []time.Duration{60 * s, 120 * s, 180 * s, 240 * s}},
		"every 59 s":              {[]time.Duration{0, 59 * s, 118 * s, 177 * s, 236 * s}, 0, nil},
		"the camera does as told": {[]time.Duration{0, 61 * s, 122 * s, 183 * s}, 0, []time.Duration{60 * s, 121 * s, 182 * s, 243 * s}},
		"the clock is set back":   {[]time.Duration{0}, -time.Hour, []time.Duration{60 * s, 160 * s, 220 * s}},
		"the clock is set ahead":  {[]time.Duration{0}, time.Hour, []time.Duration{60 * s, 100 * s, 160 * s, 220 * s}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{})
			if r.m.WantsKeyframe(t0) {
				t.Error("asks no camera for a keyframe")
			}
			r.open(plain, nil)
			if r.m.WantsKeyframe(t0.Add(time.Hour)) {
				t.Error("asks a camera that has sent nothing")
			}
			var got []time.Duration
			for at := time.Duration(0); at < 280*s; at += 500 * time.Millisecond {
				now := t0.Add(at)
				if at >= 100*s {
					now = now.Add(tt.set)
				}
				r.picture(at, now, slices.Contains(tt.keys, at))
				r.m.Tick(now)
				if r.m.WantsKeyframe(now) {
					got = append(got, at)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("asks after %v, want %v", got, tt.want)
			}
			// What is not muxed is counted alike.
			peek, err := NewPeek(plain)
			if err != nil {
				t.Fatal(err)
			}
			got = nil
			for at := time.Duration(0); at < 280*s; at += 500 * time.Millisecond {
				now := t0.Add(at)
				if at >= 100*s {
					now = now.Add(tt.set)
				}
				nalu := []byte{0x41, 1}
				if slices.Contains(tt.keys, at) {
					nalu[0] = 0x65
				}
				peek.Video(now, [][]byte{nalu})
				if peek.WantsKeyframe(now) {
					got = append(got, at)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("asks after %v where nothing is muxed, want %v", got, tt.want)
			}
			r.m.Flush()
			if r.m.WantsKeyframe(t0.Add(24 * time.Hour)) {
				t.Error("asks a camera that is gone")
			}
			r.check()
		})
	}
}

// TestCameraWithoutKeyframes: it is asked after 60 s; one that does not obey is
// recorded all the same, in recordings that depend on the ones before, with its
// sound; and a keyframe at last begins one that stands alone.
func TestCameraWithoutKeyframes(t *testing.T) {
	r := newRig(t, Config{})
	v := newVoice(r, &Sound{Codec: "pcmu", SampleRate: 1000, Channels: 1}) // a slow one is fast to test
	r.open(plain, v.s)
	var asked []time.Duration
	key := 0
	for i := range 5 * 330 {
		at := time.Duration(i) * 200 * time.Millisecond
		r.picture(at, t0.Add(at), i == key)
		for v.at(v.next+20) <= at-300*time.Millisecond { // it lags
			v.packet(20, 0, t0.Add(at))
		}
		r.m.Tick(t0.Add(at))
		if r.m.WantsKeyframe(t0.Add(at)) {
			asked = append(asked, at)
			if len(asked) == 5 {
				key = i + 5
			}
		}
	}
	r.m.Flush()
	o := r.check()
	r.allMuxed(0)
	at, dependent := r.firsts()
	s := time.Second
	if want := []time.Duration{0, 120 * s, 240 * s, 301 * s}; !slices.Equal(at, want) || fmt.Sprint(dependent) != "[false true true false]" {
		t.Errorf("recordings begin at %v, dependent %v; want %v", at, dependent, want)
	}
	if want := []time.Duration{60 * s, 120 * s, 180 * s, 240 * s, 300 * s}; !slices.Equal(asked, want) {
		t.Errorf("the camera was asked after %v, want %v", asked, want)
	}
	if heard := all(r.hear(0)); o.spans != 1 || !slices.Equal(heard, v.fed) {
		t.Errorf("%d spans; %d samples, want %d", o.spans, len(heard), len(v.fed))
	}
	// What depends begins where the one before it ends, in media time and in UTC
	// (which check looks at), and has no picture that a decoder could begin with.
	for i := range r.chunks {
		if c := &r.chunks[i]; c.Flags.Has(vms.FlagDependent) && (c.Flags.Has(vms.FlagKey) || !c.Flags.Has(vms.FlagFirst)) {
			t.Errorf("chunk %d: flags %b", c.Seq, c.Flags)
		}
	}
}

// TestDependentRecordingKeepsItsSound, also where a chunk is shorter than a frame
// of the sound, which lags.
func TestDependentRecordingKeepsItsSound(t *testing.T) {
	for lag := 100 * time.Millisecond; lag < 180*time.Millisecond; lag += 45 * time.Millisecond {
		r := newRig(t, Config{})
		r.size = 4 << 20
		v := newVoice(r, pcmu)
		r.open(plain, pcmu)
		for i := range 20 {
			at := time.Duration(i) * 40 * time.Millisecond
			r.picture(at, t0.Add(at), i == 0)
			for v.at(v.next+80) <= at-lag {
				v.packet(80, 0, t0.Add(at))
			}
			r.m.Tick(t0.Add(at))
		}
		r.m.Flush()
		r.check()
		if _, dependent := r.firsts(); len(dependent) < 2 {
			t.Fatalf("%d recordings, want one that depends on the first", len(dependent))
		}
		if heard := all(r.hear(0)); !slices.Equal(heard, v.fed) || r.m.Stats().SoundDropped > 0 {
			t.Errorf("sound that lags %v: %d samples, want %d", lag, len(heard), len(v.fed))
		}
	}
}
