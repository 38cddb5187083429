package camera_test

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zipato/vms/agent/camera"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// closed is a port where nobody listens.
const closed = 1

// without says where ONVIF is, and shortens the wait for a keyframe that does
// not come.
func without(port int) func(*camera.Source) {
	return func(s *camera.Source) { s.ONVIFPort, s.Timeout = port, time.Second }
}

// neverKey is a camera whose only keyframe is the first.
func neverKey(t *testing.T, o camtest.Options) (*camtest.Camera, *camtest.Media) {
	t.Helper()
	o.Source = camtest.Clip(t, vmstest.ClipSpec{Audio: "aac", GOP: vmstest.OnlyFirst, BFrames: 2, Duration: 32 * time.Second})
	return camtest.Start(t, o), o.Source
}

// keys counts the keyframes in the newest session.
func (p *pulled) keys(m *camtest.Media) (n int) {
	if len(p.sessions) == 0 {
		return 0
	}
	for _, f := range p.last().frames {
		if sameNALUs(f.nalus, m.Video[0].AU) {
			n++
		}
	}
	return n
}

func TestKeyframeIsAskedForByONVIF(t *testing.T) {
	vmstest.NoLeaks(t)
	var cam *camtest.Camera
	var asked []string
	var mu sync.Mutex
	onvif := &onvifCamera{
		username: "ad<min", password: "geh&im", clock: -3 * 365 * 24 * time.Hour,
		// Behind a router the camera tells an address that is not ours, with a port
		// that leads nowhere.
		media: "http://192.0.2.1:1/onvif/Media?a=1&b=2", profiles: []string{"main", "sub & more", "broken"},
		synchronize: func(profile string) bool {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, profile)
			cam.Keyframe()
			return profile != "broken"
		},
	}
	cam, media := neverKey(t, camtest.Options{Username: "ad<min", Password: "geh&im"})
	p := pull(t, cam.Camera(), without(onvif.start(t)))
	p.streams(t, 1, 5)
	p.src.AskKeyframe()
	p.until(t, "a second keyframe", func() bool { return p.keys(media) >= 2 })
	p.until(t, "the last profile", func() bool { return len(onvif.operations()) == 6 })
	p.stop()
	want := []string{"GetSystemDateAndTime", "GetServices", "GetProfiles",
		"SetSynchronizationPoint", "SetSynchronizationPoint", "SetSynchronizationPoint"}
	if got := onvif.operations(); !slices.Equal(got, want) {
		t.Errorf("operations %v, want %v", got, want)
	}
	if want := []string{"main", "sub & more", "broken"}; !slices.Equal(asked, want) {
		t.Errorf("profiles %q, want %q", asked, want)
	}
	if cam.Pauses() != 0 || len(p.sessions) != 1 || len(onvif.strange) > 0 {
		t.Errorf("%d pauses, %d sessions, requests hold %v", cam.Pauses(), len(p.sessions), onvif.strange)
	}
}

// TestKeyframeIsAskedForByPauseAndPlay: the sink sees one session, whose times go
// on as if nothing had been, also when the camera's begin anew.
func TestKeyframeIsAskedForByPauseAndPlay(t *testing.T) {
	for name, jump := range map[string]bool{"timestamps go on": false, "timestamps begin anew": true} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			cam, media := neverKey(t, camtest.Options{JumpOnPlay: jump, Username: "u", Password: "p"})
			p := pull(t, cam.Camera(), without(closed))
			p.streams(t, 1, 5)
			for want := 2; want <= 3; want++ {
				p.src.AskKeyframe()
				p.until(t, "another keyframe", func() bool { return p.keys(media) >= want })
				n := 0
				p.until(t, "what comes behind", func() bool {
					if n == 0 {
						n = len(p.last().frames) + 10
					}
					return len(p.last().frames) >= n
				})
			}
			p.stop()
			if len(p.sessions) != 1 || cam.Pauses() != 2 {
				t.Fatalf("%d sessions, %d pauses", len(p.sessions), cam.Pauses())
			}
			s := p.sessions[0]
			for kind, track := range map[string]struct {
				frames []frame
				rate   time.Duration
			}{"picture": {s.frames, 90000}, "sound": {s.sound, 48000}} {
				for i, f := range track.frames {
					at := time.Duration(f.pts-track.frames[0].pts) * time.Second / track.rate
					if d := at - f.arrival.Sub(track.frames[0].arrival); d.Abs() > time.Second {
						t.Fatalf("%s %d came %v off its time", kind, i, d)
					}
				}
			}
			// Picture and sound are as far apart as at the beginning, or nearly.
			last, sound := s.frames[len(s.frames)-1], s.sound[len(s.sound)-1]
			apart := time.Duration(last.pts)*time.Second/90000 - time.Duration(sound.pts)*time.Second/48000 - last.arrival.Sub(sound.arrival)
			if apart.Abs() > 500*time.Millisecond {
				t.Errorf("picture and sound are %v apart", apart)
			}
		})
	}
}

func TestONVIFThatDoesNotHelpIsNotTheEnd(t *testing.T) {
	var endless atomic.Bool // an answer was read to its end that has none
	t.Cleanup(func() {
		if endless.Load() {
			t.Error("32 MiB were read")
		}
	})
	for name, onvif := range map[string]*onvifCamera{
		"grants and does nothing": {profiles: []string{"a"}, synchronize: func(string) bool { return true }},
		"refuses":                 {profiles: []string{"a"}, synchronize: func(string) bool { return false }},
		"has no profiles":         {},
		"is another web server": {replace: map[string]http.HandlerFunc{
			"GetSystemDateAndTime": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		}},
		"sends us elsewhere": {replace: map[string]http.HandlerFunc{
			"GetServices": func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://192.0.2.1/")
				w.WriteHeader(http.StatusTemporaryRedirect)
			},
		}},
		"answers without end": {replace: map[string]http.HandlerFunc{
			"GetServices": func(w http.ResponseWriter, _ *http.Request) {
				for range 32 << 10 { // 32 MiB, more than fits into the sockets
					if _, err := w.Write(bytes.Repeat([]byte("<a/>"), 256)); err != nil {
						return
					}
				}
				endless.Store(true)
			},
		}},
		"does not answer": {replace: map[string]http.HandlerFunc{
			"GetProfiles": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onvif.media, onvif.username, onvif.password = "http://{host}/onvif/media", "u", "p-w"
			cam, media := neverKey(t, camtest.Options{Username: "u", Password: "p-w"})
			p := pull(t, cam.Camera(), without(onvif.start(t)))
			p.streams(t, 1, 5)
			p.src.AskKeyframe()
			p.until(t, "a second keyframe", func() bool { return p.keys(media) >= 2 })
			p.stop()
			if cam.Pauses() != 1 || len(p.sessions) != 1 {
				t.Errorf("%d pauses, %d sessions", cam.Pauses(), len(p.sessions))
			}
			if ops := onvif.operations(); len(ops) == 0 || slices.ContainsFunc(ops, func(s string) bool { return strings.HasSuffix(s, "!") }) {
				t.Errorf("operations %v", ops)
			}
			if name == "is another web server" && len(onvif.operations()) != 1 {
				t.Errorf("a proof of the password went to a server without ONVIF: %v", onvif.operations())
			}
		})
	}
}

// TestCameraThatRefusesBothIsToldOnce also shows that a wrong password is tried
// once, and PAUSE too: both may do harm.
func TestCameraThatRefusesBothIsToldOnce(t *testing.T) {
	vmstest.NoLeaks(t)
	onvif := &onvifCamera{username: "u", password: "another", media: "http://{host}/m"}
	var mu sync.Mutex
	pauses := 0
	cam, media := neverKey(t, camtest.Options{Username: "u", Password: "s3cret", NoPause: true, OnRequest: func(m, _ string) {
		mu.Lock()
		defer mu.Unlock()
		if m == "PAUSE" {
			pauses++
		}
	}})
	p := pull(t, cam.Camera(), without(onvif.start(t)))
	p.streams(t, 1, 5)
	p.src.AskKeyframe()
	p.until(t, "a line in the log", func() bool { return p.logs.contains("no keyframe though asked") })
	p.src.AskKeyframe()
	frames := 0
	p.until(t, "what comes behind", func() bool {
		if frames == 0 {
			frames = len(p.last().frames) + 10
		}
		return len(p.last().frames) >= frames
	})
	p.stop()
	if n := p.keys(media); n != 1 || len(p.sessions) != 1 {
		t.Errorf("%d keyframes, %d sessions", n, len(p.sessions))
	}
	if want := []string{"GetSystemDateAndTime", "GetServices!"}; !slices.Equal(onvif.operations(), want) || pauses != 1 {
		t.Errorf("operations %v, want %v; %d PAUSE, want 1", onvif.operations(), want, pauses)
	}
	if n := p.logs.count("no keyframe though asked"); n != 1 {
		t.Errorf("told %d times", n)
	}
	if p.logs.contains("s3cret") {
		t.Error("the password is in the log")
	}
}

func TestAskKeyframeNeedsNoSession(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t)
	p := pull(t, cam.Camera(), without(closed))
	for range 100 { // also while there is none, and more often than it can be served
		p.src.AskKeyframe()
	}
	p.streams(t, 1, 5)
	for range 100 {
		p.src.AskKeyframe()
	}
	p.stop()
	p.src.AskKeyframe()
}
