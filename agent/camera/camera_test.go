package camera_test

import (
	"bytes"
	"errors"
	"image"
	"image/jpeg"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/agent/camera"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

// sameNALUs compares access units byte by byte.
func sameNALUs(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }

func TestSourceDeliversEveryFrameAsItWas(t *testing.T) {
	for name, spec := range map[string]vmstest.ClipSpec{
		"h264 with B-frames":  {BFrames: 2, Audio: "aac"},
		"h265 with open GOPs": {Codec: "h265", BFrames: 2, OpenGOP: true, Audio: "aac"},
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			media := camtest.Clip(t, spec)
			cam := camtest.Start(t, camtest.Options{Source: media, Speed: 8, Username: "u", Password: "p"})
			p := pull(t, cam.Camera())
			p.until(t, "whole clip", func() bool {
				return len(p.sessions) == 1 && len(p.sessions[0].frames) == len(media.Video) && len(p.sessions[0].sound) == len(media.Audio)
			})
			p.stop()

			s := p.sessions[0]
			if s.lost != nil {
				t.Errorf("Lost(%v) at shutdown, want nil", s.lost)
			}
			if s.video.Codec != media.Codec || !bytes.Equal(s.video.SPS, media.SPS) || !bytes.Equal(s.video.PPS, media.PPS) || !bytes.Equal(s.video.VPS, media.VPS) {
				t.Errorf("video format is %+v", s.video)
			}
			if s.audio == nil || s.audio.Codec != "aac" || s.audio.SampleRate != 48000 || s.audio.Channels != 1 || len(s.audio.Config) < 2 {
				t.Fatalf("audio format is %+v", s.audio)
			}
			// The camera's reports came first, so picture and sound are aligned
			// to the tick, and every frame has the camera's time.
			zero := s.frames[0].pts - media.Video[0].PTS
			utc := s.frames[0].ntp.Add(-time.Duration(media.Video[0].PTS) * time.Second / 90000)
			for i, f := range s.frames {
				want := media.Video[i]
				if f.pts-zero != want.PTS || !sameNALUs(f.nalus, want.AU) {
					t.Fatalf("picture %d: pts %d, want %d; same bytes: %v", i, f.pts-zero, want.PTS, sameNALUs(f.nalus, want.AU))
				}
				at := utc.Add(time.Duration(want.PTS) * time.Second / 90000)
				if d := f.ntp.Sub(at); d.Abs() > time.Millisecond {
					t.Fatalf("picture %d: camera's time is off by %v", i, d)
				}
			}
			for i, f := range s.sound {
				want := media.Audio[i]
				// 48 kHz against 90 kHz: one tick of the coarser clock at most.
				if d := f.pts - want.PTS - zero*48000/90000; d < -1 || d > 1 {
					t.Fatalf("sound %d is %d samples off the picture", i, d)
				}
				if f.pts-s.sound[0].pts != want.PTS-media.Audio[0].PTS || !bytes.Equal(f.nalus[0], want.AU) {
					t.Fatalf("sound %d: pts %d, want %d", i, f.pts-s.sound[0].pts, want.PTS-media.Audio[0].PTS)
				}
			}
			stats := p.src.Stats()
			want := camera.Stats{Sessions: 1, VideoFrames: int64(len(media.Video)), AudioFrames: int64(len(media.Audio))}
			if stats != want {
				t.Errorf("stats are %+v, want %+v", stats, want)
			}
		})
	}
}

// TestSourceDeliversEverySampleAsItWas: PCM beside each kind of picture, in
// silence too, and a picture that changes its size in the middle.
func TestSourceDeliversEverySampleAsItWas(t *testing.T) {
	quiet := []vmstest.Span{{To: 500 * time.Millisecond}, {From: time.Second, To: 1500 * time.Millisecond}}
	for name, spec := range map[string]vmstest.ClipSpec{
		"mjpeg with A-law":            {Codec: "mjpeg", FPS: 10, Audio: "pcma"},
		"mu-law, 16 kHz, stereo":      {Audio: "pcmu", SampleRate: 16000, Channels: 2},
		"8 bit":                       {Audio: "lpcm", BitDepth: 8},
		"16 bit, sound at times":      {Audio: "lpcm", Quiet: quiet},
		"24 bit, 48 kHz, stereo":      {Audio: "lpcm", BitDepth: 24, SampleRate: 48000, Channels: 2},
		"AAC at times":                {Audio: "aac", Quiet: quiet},
		"mjpeg that changes its size": {Codec: "mjpeg", FPS: 10, Then: &vmstest.ClipSpec{Codec: "mjpeg", FPS: 10, Size: "640x368", Duration: time.Second}},
		"h264 that changes its size":  {BFrames: 2, Then: &vmstest.ClipSpec{Size: "640x360", Duration: time.Second}},
		"one picture a second":        {FPS: 1, GOP: 4, Audio: "pcma"},
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			spec.Duration = 2 * time.Second
			if spec.FPS == 1 {
				spec.Duration = 8 * time.Second
			}
			media := camtest.Clip(t, spec)
			cam := camtest.Start(t, camtest.Options{Source: media, Speed: 8})
			p := pull(t, cam.Camera())
			p.until(t, "whole clip", func() bool {
				return len(p.sessions) == 1 && len(p.sessions[0].frames) == len(media.Video) && len(p.sessions[0].sound) == len(media.Audio)
			})
			p.stop()
			s := p.sessions[0]
			if s.video.Codec != media.Codec {
				t.Errorf("video format is %+v", s.video)
			}
			want := camera.AudioFormat{Codec: media.AudioCodec, SampleRate: media.SampleRate, Channels: media.Channels, BitDepth: media.BitDepth}
			switch {
			case spec.Audio == "":
				if s.audio != nil {
					t.Errorf("audio format is %+v, want none", s.audio)
				}
			case spec.Audio == "aac":
			case s.audio == nil || !reflect.DeepEqual(*s.audio, want):
				t.Errorf("audio format is %+v, want %+v", s.audio, want)
			}
			zero := s.frames[0].pts - media.Video[0].PTS
			for i, f := range s.frames {
				if want := media.Video[i]; f.pts-zero != want.PTS || media.Codec != "mjpeg" && !sameNALUs(f.nalus, want.AU) {
					t.Fatalf("picture %d: pts %d, want %d; %d NAL units, want %d", i, f.pts-zero, want.PTS, len(f.nalus), len(want.AU))
				}
				if media.Codec == "mjpeg" {
					samePicture(t, f.nalus, media.Video[i].AU[0])
				}
			}
			for i, f := range s.sound {
				want := media.Audio[i]
				if f.pts-s.sound[0].pts != want.PTS-media.Audio[0].PTS || !bytes.Equal(f.nalus[0], want.AU) {
					t.Fatalf("sound %d: pts %d, want %d; %d bytes, want %d", i, f.pts-s.sound[0].pts, want.PTS-media.Audio[0].PTS, len(f.nalus[0]), len(want.AU))
				}
			}
			if stats := p.src.Stats(); stats.DecodeErrors != 0 || stats.PacketsLost != 0 {
				t.Errorf("stats are %+v", stats)
			}
		})
	}
}

// samePicture compares what a decoder makes of two JPEG files, pixel by pixel:
// RTP does not carry the files' headers.
func samePicture(t *testing.T, au [][]byte, want []byte) {
	t.Helper()
	if len(au) != 1 {
		t.Fatalf("%d files in one access unit", len(au))
	}
	a, err := jpeg.Decode(bytes.NewReader(au[0]))
	if err != nil {
		t.Fatal(err)
	}
	b, err := jpeg.Decode(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	x, y := a.(*image.YCbCr), b.(*image.YCbCr)
	if x.Rect != y.Rect || x.SubsampleRatio != y.SubsampleRatio ||
		!bytes.Equal(x.Y, y.Y) || !bytes.Equal(x.Cb, y.Cb) || !bytes.Equal(x.Cr, y.Cr) {
		t.Fatalf("a picture of %v, want another of %v", a.Bounds(), b.Bounds())
	}
}

func TestSourceSurvivesPowerCut(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t)
	p := pull(t, cam.Camera())
	p.streams(t, 1, 3)
	cam.PowerOff() // every socket dies, no TEARDOWN
	if s := p.stateIs(t, wire.StateNoCamera); !strings.Contains(s, "127.0.0.1") {
		t.Errorf("sentence does not name the camera: %q", s)
	}
	if err := cam.PowerOn(); err != nil { // same address, new session, its clock starts anew
		t.Fatal(err)
	}
	p.streams(t, 2, 3) // and the picture is back by itself
	p.stateIs(t, wire.StateStreaming)
	p.stop()
	if p.sessions[0].lost == nil {
		t.Error("the first session was lost without an error")
	}
	if n := p.src.Stats().Sessions; n != 2 {
		t.Errorf("%d sessions counted, want 2", n)
	}
}

func TestSourceLeavesACameraThatHangs(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t)
	p := pull(t, cam.Camera(), func(s *camera.Source) { s.Timeout = 300 * time.Millisecond })
	p.streams(t, 1, 3)
	cam.Freeze() // connections stay, requests are answered, no frame comes
	if s := p.stateIs(t, wire.StateNoCamera); !strings.Contains(s, "sen") {
		t.Errorf("sentence is %q", s)
	}
	p.until(t, "a session that stays dark", func() bool { return len(p.sessions) >= 2 && p.sessions[1].ended })
	cam.Thaw()
	p.until(t, "picture", func() bool { return len(p.last().frames) > 0 })
	p.stateIs(t, wire.StateStreaming)
}

func TestSourceStopsInTheMiddleOfARequest(t *testing.T) {
	vmstest.NoLeaks(t)
	asked := make(chan struct{}, 10)
	cam := camtest.Start(t, camtest.Options{DescribeDelay: time.Hour, OnRequest: func(method, _ string) {
		if method == "DESCRIBE" {
			asked <- struct{}{}
		}
	}})
	p := pull(t, cam.Camera())
	<-asked
	begin := time.Now()
	p.stop()
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("shutdown took %v", d)
	}
}

func TestWrongPasswordIsSaidAndTriedSlowly(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t, camtest.Options{Username: "admin", Password: "right"})
	u, _ := url.Parse(cam.URL())
	u.User = url.UserPassword("admin", "s3cret-wrong")
	p := pull(t, vms.Camera{URL: u.String()}, func(s *camera.Source) {
		s.AuthBackoff.Min, s.AuthBackoff.Max = time.Hour, time.Hour
	})
	sentence := p.stateIs(t, wire.StateAuthFailed)
	if !strings.Contains(sentence, "127.0.0.1") || !strings.Contains(sentence, "password") {
		t.Errorf("sentence is %q", sentence)
	}
	p.stop()
	if n := cam.Refused(); n != 1 {
		t.Errorf("the wrong password was tried %d times, want once", n)
	}
	for _, s := range []string{"s3cret", "admin:"} {
		if p.logs.contains(s) || strings.Contains(sentence, s) {
			t.Errorf("%q is in the log or the sentence", s)
		}
	}
}

func TestMissingPasswordIsAskedFor(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t, camtest.Options{Username: "admin", Password: "right"})
	p := pull(t, vms.Camera{URL: "rtsp://" + cam.Addr() + "/stream"})
	if s := p.stateIs(t, wire.StateAuthFailed); !strings.Contains(s, "asks for") {
		t.Errorf("sentence is %q", s)
	}
}

func TestAPasswordThatWorkedIsNotGivenUpAtOnce(t *testing.T) {
	vmstest.NoLeaks(t)
	media := camtest.Clip(t, vmstest.ClipSpec{})
	cam := camtest.Start(t, camtest.Options{Source: media, Loop: true, Username: "u", Password: "p"})
	p := pull(t, cam.Camera(), func(s *camera.Source) {
		s.AuthBackoff.Min, s.AuthBackoff.Max = time.Hour, time.Hour
	})
	p.streams(t, 1, 1)
	addr := cam.Addr()
	cam.Close()
	other := camtest.Start(t, camtest.Options{Source: media, Addr: addr, Username: "u", Password: "changed"})
	p.stateIs(t, wire.StateAuthFailed)
	deadline := time.Now().Add(patience)
	for other.Refused() < 2 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	p.stop()
	if n := other.Refused(); n != 2 {
		t.Errorf("the password was tried %d times, want twice", n)
	}
}

func TestEveryLoginCamerasUse(t *testing.T) {
	for name, auth := range map[string]camtest.Auth{
		"digest": camtest.Digest, "digest sha-256": camtest.DigestSHA256, "basic": camtest.Basic,
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			password := "p@ss/w:rd?#%"
			if auth == camtest.Basic {
				password = "p@ss/w.rd?#%" // the test's server, not our side, takes no colon in Basic
			}
			var mu sync.Mutex
			var urls []string
			cam := camtest.Start(t, camtest.Options{
				Username: "ad min", Password: password, Auth: auth, Loop: true,
				OnRequest: func(_, u string) { mu.Lock(); defer mu.Unlock(); urls = append(urls, u) },
			})
			host, port, _ := net.SplitHostPort(cam.Addr())
			p := pull(t, vms.Camera{
				Host: host + ":" + port, Username: "ad min", Password: password,
				Templates: map[string]string{"high": "rtsp://{username}:{password}@{host}:{port}/stream"},
			})
			p.streams(t, 1, 1)
			p.stop()
			mu.Lock()
			defer mu.Unlock()
			for _, u := range urls {
				if strings.Contains(u, "@") || strings.Contains(u, "ss") {
					t.Errorf("credentials in the URL of a request: %s", u)
				}
			}
			if len(urls) < 4 {
				t.Errorf("%d requests seen", len(urls))
			}
		})
	}
}

func TestNoVideoTrackIsSaid(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t, camtest.Options{NoVideo: true})
	p := pull(t, cam.Camera())
	s := p.stateIs(t, wire.StateBadCamera)
	if !strings.Contains(s, "AAC") || !strings.Contains(s, "127.0.0.1") {
		t.Errorf("sentence does not name what was offered: %q", s)
	}
	p.stop()
	if len(p.sessions) != 0 {
		t.Error("the sink was told of a session without video")
	}
}

func TestReconnectWithoutVideoIsAFailure(t *testing.T) {
	vmstest.NoLeaks(t)
	media := camtest.Clip(t, vmstest.ClipSpec{Audio: "aac"})
	cam := camtest.Start(t, camtest.Options{Source: media, Loop: true})
	p := pull(t, cam.Camera())
	p.streams(t, 1, 1)
	addr := cam.Addr()
	cam.PowerOff()
	deaf := camtest.Start(t, camtest.Options{Source: media, Addr: addr, NoVideo: true})
	p.stateIs(t, wire.StateBadCamera)
	deaf.Close()
	if err := cam.PowerOn(); err != nil {
		t.Fatal(err)
	}
	p.streams(t, 2, 1)
}

func TestUnreachableCameraIsSaid(t *testing.T) {
	vmstest.NoLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	p := pull(t, vms.Camera{URL: "rtsp://" + addr + "/x"})
	if s := p.stateIs(t, wire.StateNoCamera); !strings.Contains(s, "refuses the connection") {
		t.Errorf("sentence is %q", s)
	}
}

func TestLateJoinAndMissingParameterSets(t *testing.T) {
	vmstest.NoLeaks(t)
	media := camtest.Clip(t, vmstest.ClipSpec{BFrames: 2, Audio: "aac", GOP: 100})
	cam := camtest.Start(t, camtest.Options{Source: media, Shared: true, Loop: true, NoSDPSets: true, Speed: 4})
	first := pull(t, cam.Camera())
	first.streams(t, 1, 20)
	// Somewhere in the GOP; what comes first is whatever the camera sends.
	late := pull(t, cam.Camera())
	late.streams(t, 1, len(media.Video)+20)
	late.until(t, "sound", func() bool { return len(late.sessions[0].sound) > 10 })
	late.stop()
	s := late.sessions[0]
	if s.video.SPS != nil || s.video.PPS != nil {
		t.Errorf("parameter sets from nowhere: %+v", s.video)
	}
	// After the start, all pictures in order: compare against the clip.
	at := slices.IndexFunc(media.Video, func(v camtest.VideoUnit) bool { return sameNALUs(v.AU, s.frames[1].nalus) })
	if at < 0 {
		t.Fatal("the second picture is none of the clip's")
	}
	for i, f := range s.frames[1:] {
		if want := media.Video[(at+i)%len(media.Video)]; !sameNALUs(f.nalus, want.AU) {
			t.Fatalf("picture %d after joining is not the clip's", i)
		}
	}
}

func TestNoSoundAndNoReports(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t, camtest.Options{NoAudio: true, NoReports: true, NoInBandSets: true, Loop: true})
	p := pull(t, cam.Camera())
	p.streams(t, 1, 5)
	p.stop()
	s := p.sessions[0]
	if s.audio != nil || len(s.sound) != 0 {
		t.Error("sound from a camera that has none")
	}
	if s.video.SPS == nil || s.video.PPS == nil {
		t.Error("parameter sets of the SDP are missing")
	}
	for _, f := range s.frames {
		if !f.ntp.IsZero() {
			t.Fatalf("camera's time is %v though it never told", f.ntp)
		}
	}
}

func TestTracksAreAlignedByArrivalWithoutReports(t *testing.T) {
	vmstest.NoLeaks(t)
	media := camtest.Clip(t, vmstest.ClipSpec{Audio: "aac"})
	cam := camtest.Start(t, camtest.Options{Source: media, NoReports: true})
	p := pull(t, cam.Camera())
	p.until(t, "sound", func() bool {
		return len(p.sessions) > 0 && len(p.sessions[0].sound) > 0 && len(p.sessions[0].frames) > 0
	})
	p.stop()
	s := p.sessions[0]
	picture := time.Duration(s.frames[0].pts-media.Video[0].PTS) * time.Second / 90000
	sound := time.Duration(s.sound[0].pts-media.Audio[0].PTS) * time.Second / 48000
	if d := picture - sound; d.Abs() > 500*time.Millisecond {
		t.Errorf("picture and sound are %v apart", d)
	}
}

func TestPacketLossIsCountedAndSurvived(t *testing.T) {
	vmstest.NoLeaks(t)
	media := camtest.Clip(t, vmstest.ClipSpec{Size: "640x360"})
	cam := camtest.Start(t, camtest.Options{Source: media, Loop: true, DropEveryNth: 23, Speed: 4})
	p := pull(t, cam.Camera())
	p.streams(t, 1, 100)
	p.stop()
	stats := p.src.Stats()
	if stats.PacketsLost == 0 || stats.DecodeErrors == 0 {
		t.Errorf("stats are %+v: loss was not noticed", stats)
	}
	// Two pictures never become one: each access unit is a part of one of the clip's.
	for i, f := range p.sessions[0].frames {
		if i > 0 && f.pts == p.sessions[0].frames[i-1].pts {
			t.Fatalf("two access units at %d", f.pts)
		}
		whole := slices.ContainsFunc(media.Video, func(v camtest.VideoUnit) bool {
			for _, n := range f.nalus {
				if !slices.ContainsFunc(v.AU, func(o []byte) bool { return bytes.Equal(n, o) }) {
					return false
				}
			}
			return true
		})
		if !whole {
			t.Fatalf("access unit %d mixes pictures or holds a damaged NAL unit", i)
		}
	}
}

func TestCommonPathIsFoundAndRemembered(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t, camtest.Options{Path: "h264Preview_01_main", Username: "u", Password: "geheim", Loop: true})
	host, _, _ := net.SplitHostPort(cam.Addr())
	remembered := make(chan string, 1)
	c := vms.Camera{Host: host, Port: portOf(t, cam), Username: "u", Password: "geheim"}
	p := pull(t, c, func(s *camera.Source) { s.Remember = func(x string) { remembered <- x } })
	p.streams(t, 1, 1)
	known := <-remembered
	if known != "rtsp://{host}:{port}/h264Preview_01_main" {
		t.Errorf("remembered %q", known)
	}
	p.stop()

	var mu sync.Mutex
	var paths []string
	other := camtest.Start(t, camtest.Options{Path: "h264Preview_01_main", Loop: true, OnRequest: func(m, u string) {
		mu.Lock()
		defer mu.Unlock()
		if m == "DESCRIBE" {
			paths = append(paths, u)
		}
	}})
	c.Port = portOf(t, other)
	p = pull(t, c, func(s *camera.Source) { s.Known = known })
	p.streams(t, 1, 1)
	p.stop()
	mu.Lock()
	defer mu.Unlock()
	if len(paths) != 1 {
		t.Errorf("asked for %d paths though the right one was known", len(paths))
	}
}

func portOf(t *testing.T, cam *camtest.Camera) int {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", cam.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return a.Port
}

func TestNoCommonPathFits(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t, camtest.Options{Path: "a/path/of/its/own"})
	p := pull(t, vms.Camera{Host: cam.Addr()})
	if s := p.stateIs(t, wire.StateBadCamera); !strings.Contains(s, "enter its stream address") {
		t.Errorf("sentence is %q", s)
	}
}

func TestWrongPasswordIsNotTriedOnEveryPath(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t, camtest.Options{Username: "u", Password: "right"})
	p := pull(t, vms.Camera{Host: cam.Addr(), Username: "u", Password: "wrong"}, func(s *camera.Source) {
		s.AuthBackoff.Min, s.AuthBackoff.Max = time.Hour, time.Hour
	})
	p.stateIs(t, wire.StateAuthFailed)
	p.stop()
	if n := cam.Refused(); n != 1 {
		t.Errorf("the wrong password was tried %d times, want once", n)
	}
}

func TestPasswordFollowsNoRedirectToAnotherHost(t *testing.T) {
	vmstest.NoLeaks(t)
	trap, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skip("no second loopback address:", err)
	}
	defer trap.Close()
	caught := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := trap.Accept(); err == nil {
			c.Close()
			caught <- struct{}{}
		}
	}()
	cam := camtest.Start(t, camtest.Options{Username: "u", Password: "p", RedirectTo: "rtsp://" + trap.Addr().String() + "/stream"})
	p := pull(t, cam.Camera())
	if s := p.stateIs(t, wire.StateBadCamera); !strings.Contains(s, "another host") {
		t.Errorf("sentence is %q", s)
	}
	p.stop()
	trap.Close()
	<-done
	if len(caught) > 0 {
		t.Error("connected to the other host")
	}
}

func TestRunRefusesWhatIsNoAddress(t *testing.T) {
	src := &camera.Source{Camera: vms.Camera{URL: "http://10.0.0.1/"}, Sink: newRecorder(), Log: vmstest.Log(t)}
	if err := src.Run(t.Context()); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("Run = %v, want vms.ErrInvalid", err)
	}
}
