package camtest

import (
	"testing"
	"time"
)

// A clip of 25 pictures a second whose length is no whole number of audio
// access units, and whose sound is a little short.
func oddClip() *Media {
	m := &Media{Codec: "h264", AudioCodec: "aac", SampleRate: 44100, period: 25 * 3600}
	for i := range int64(25) {
		m.Video = append(m.Video, VideoUnit{DTS: i * 3600, PTS: i*3600 + 7200})
	}
	for i := range int64(42) { // 43.07 would fill it
		m.Audio = append(m.Audio, AudioUnit{PTS: 500 + i*samplesPerAU, Samples: samplesPerAU})
	}
	m.setSound(m.Audio)
	return m
}

func TestLoopHasNoSeamAndNoDrift(t *testing.T) {
	var video, audio int64
	var last time.Duration
	for u := range oddClip().units(true, nil) {
		if u.at < last {
			t.Fatalf("sent at %v after %v", u.at, last)
		}
		last = u.at
		if u.video {
			if want := video*3600 + 7200; u.pts != want {
				t.Fatalf("picture %d at %d, want %d", video, u.pts, want)
			}
			video++
		} else {
			if want := 500 + audio*samplesPerAU; u.pts != want {
				t.Fatalf("audio unit %d at %d, want %d", audio, u.pts, want)
			}
			audio++
		}
		if u.at > time.Hour {
			break
		}
	}
	// After an hour, as much sound as picture.
	if d := ticks(500+audio*samplesPerAU, 44100) - ticks(video*3600, VideoRate); d.Abs() > 100*time.Millisecond {
		t.Errorf("sound is off by %v after an hour", d)
	}
}

func TestOnceSendsEachUnitOnce(t *testing.T) {
	var video, audio int
	for u := range oddClip().units(false, nil) {
		if u.video {
			video++
		} else {
			audio++
		}
	}
	if video != 25 || audio != 42 {
		t.Errorf("%d pictures and %d audio units, want 25 and 42", video, audio)
	}
}
