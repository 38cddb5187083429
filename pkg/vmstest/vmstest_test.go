package vmstest

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// recorder stands in for a test that is expected to fail.
type recorder struct {
	testing.TB
	errors   []string
	cleanups []func()
}

func (r *recorder) Cleanup(f func())                  { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) { r.errors = append(r.errors, format) }
func (r *recorder) Helper()                           {}

func TestNoLeaksFindsAGoroutineLeftBehind(t *testing.T) {
	r := &recorder{TB: t}
	noLeaks(r, 20*time.Millisecond)
	stop := make(chan struct{})
	go func() { <-stop }()
	r.cleanups[0]()
	close(stop)
	if len(r.errors) != 1 {
		t.Errorf("%d leaks reported, want 1", len(r.errors))
	}
}

func TestNoLeaksWaitsForTheLastSteps(t *testing.T) {
	r := &recorder{TB: t}
	NoLeaks(r)
	stop := make(chan struct{})
	go func() { <-stop }()
	time.AfterFunc(20*time.Millisecond, func() { close(stop) })
	r.cleanups[0]()
	if len(r.errors) != 0 {
		t.Errorf("%d leaks reported, want none", len(r.errors))
	}
}

func TestMakeClipMakesWhatItWasAskedFor(t *testing.T) {
	for _, c := range []struct {
		spec    ClipSpec
		bFrames bool
	}{
		{spec: ClipSpec{BFrames: 2, Audio: "aac", Duration: 3200 * time.Millisecond, GOP: 20}, bFrames: true},
		{spec: ClipSpec{Codec: "h265", OpenGOP: true, BFrames: 2, Audio: "aac", Duration: 3200 * time.Millisecond, GOP: 20}, bFrames: true},
		{spec: ClipSpec{Duration: 3200 * time.Millisecond, GOP: 20}},
	} {
		path := MakeClip(t, c.spec)
		if again := MakeClip(t, c.spec); again != path {
			t.Errorf("made twice: %s and %s", path, again)
		}
		var got struct {
			Streams []struct {
				Codec      string `json:"codec_name"`
				BFrames    int    `json:"has_b_frames"`
				SampleRate string `json:"sample_rate"`
			}
		}
		out := FFprobe(t, "-v", "error", "-show_streams", "-of", "json", path)
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		codec := map[string]string{"": "h264", "h265": "hevc"}[c.spec.Codec]
		if s := got.Streams[0]; s.Codec != codec || (s.BFrames > 0) != c.bFrames {
			t.Errorf("%+v: video is %+v", c.spec, s)
		}
		if c.spec.Audio != "" && (len(got.Streams) != 2 || got.Streams[1].SampleRate != "48000") {
			t.Errorf("%+v: audio is missing or not of 48 kHz: %+v", c.spec, got.Streams)
		}
		sums := FrameMD5(t, "v", path)
		if len(sums) != 80 {
			t.Errorf("%+v: %d pictures, want 80", c.spec, len(sums))
		}
		slices.Sort(sums)
		if n := len(slices.Compact(sums)); n != 80 {
			t.Errorf("%+v: %d different pictures, want 80: a doubled frame would go unnoticed", c.spec, n)
		}
	}
}

func TestMakeClipMakesPicturesThatRTPCarries(t *testing.T) {
	spec := ClipSpec{Codec: "mjpeg", Duration: time.Second, FPS: 10}
	path := MakeClip(t, spec)
	sums := FrameMD5(t, "v", path)
	slices.Sort(sums)
	if n := len(slices.Compact(sums)); n != 10 {
		t.Errorf("%d different pictures, want 10", n)
	}
	if out := string(FFprobe(t, "-v", "error", "-show_entries", "stream=codec_name,width,height,pix_fmt", "-of", "csv=p=0", path)); !strings.HasPrefix(out, "mjpeg,320,176,yuvj420p") {
		t.Errorf("video is %s", out)
	}
}

func TestOnlyFirstMeansOneKeyframe(t *testing.T) {
	for _, codec := range []string{"h264", "h265"} {
		path := MakeClip(t, ClipSpec{Codec: codec, FPS: 1, GOP: OnlyFirst, Duration: 90 * time.Second})
		out := string(FFprobe(t, "-v", "error", "-select_streams", "v", "-show_entries", "packet=flags", "-of", "csv=p=0", path))
		if frames, keys := strings.Count(out, "_"), strings.Count(out, "K"); frames < 90 || keys != 1 {
			t.Errorf("%s: %d keyframes, flags are %s", codec, keys, out)
		}
	}
}

func TestMakeSoundMakesEveryKindOfPCM(t *testing.T) {
	for _, c := range []struct {
		spec ClipSpec
		want string
	}{
		{ClipSpec{Audio: "pcma"}, "pcm_alaw,8000,1"},
		{ClipSpec{Audio: "pcmu", SampleRate: 16000}, "pcm_mulaw,16000,1"},
		{ClipSpec{Audio: "lpcm"}, "pcm_s16le,16000,1"},
		{ClipSpec{Audio: "lpcm", BitDepth: 8, SampleRate: 8000}, "pcm_u8,8000,1"},
		{ClipSpec{Audio: "lpcm", BitDepth: 24, SampleRate: 48000, Channels: 2}, "pcm_s24le,48000,2"},
	} {
		path := MakeSound(t, c.spec)
		if out := strings.TrimSpace(string(FFprobe(t, "-v", "error", "-show_entries", "stream=codec_name,sample_rate,channels", "-of", "csv=p=0", path))); out != c.want {
			t.Errorf("%+v: sound is %s, want %s", c.spec, out, c.want)
		}
		// A packet of 20 ms that is doubled or missing must be noticed.
		pcm := FFmpeg(t, "-v", "error", "-nostdin", "-i", path, "-f", "s32le", "-")
		seen := map[string]bool{}
		n := 0
		for p := range slices.Chunk(pcm, len(pcm)/400) {
			seen[string(p)] = true
			n++
		}
		if n != 400 || len(seen) != n {
			t.Errorf("%+v: %d of %d packets differ", c.spec, len(seen), n)
		}
	}
}

func TestClipSpecRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, s := range []ClipSpec{
		{Codec: "vp9"}, {Audio: "opus"}, {Codec: "mjpeg", Audio: "aac"},
		{Codec: "mjpeg", Size: "320x180"}, {Codec: "mjpeg", Size: "2560x1440"},
	} {
		if _, err := s.withDefaults().args(); err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("%+v: err = %v", s, err)
		}
	}
	for _, s := range []ClipSpec{{}, {Audio: "aac"}, {Audio: "lpcm", BitDepth: 20}, {Audio: "pcma", Channels: 3}} {
		if _, err := s.withDefaults().soundArgs(); err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("sound of %+v: err = %v", s, err)
		}
	}
}
