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

func TestClipSpecRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, s := range []ClipSpec{{Codec: "mjpeg"}, {Audio: "opus"}} {
		if _, err := s.withDefaults().args(); err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("%+v: err = %v", s, err)
		}
	}
}
