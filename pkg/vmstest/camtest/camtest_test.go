package camtest_test

import (
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"

	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// ffmpeg is the second opinion: what it decodes from the camera is what it
// decodes from the clip, every picture and every sound frame.
func TestFFmpegSeesTheClipFrameByFrame(t *testing.T) {
	for name, c := range map[string]struct {
		spec  vmstest.ClipSpec
		speed float64
	}{
		"h264 with B-frames":  {vmstest.ClipSpec{BFrames: 2, Audio: "aac"}, 8},
		"h265 with open GOPs": {vmstest.ClipSpec{Codec: "h265", BFrames: 2, OpenGOP: true, Audio: "aac"}, 8},
		// All at once: faster than the client takes it, which must cost nothing.
		"h264 for a slow client": {vmstest.ClipSpec{Size: "1920x1080", Duration: 2 * time.Second}, 1e6},
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			clip := vmstest.MakeClip(t, c.spec)
			media, err := camtest.Load(clip)
			if err != nil {
				t.Fatal(err)
			}
			cam := camtest.Start(t, camtest.Options{
				Source: media, HangUp: true, Speed: c.speed, Username: "admin", Password: "it's 100% secret/@:",
			})
			kinds := []string{"v"}
			if c.spec.Audio != "" {
				kinds = append(kinds, "a")
			}
			for _, kind := range kinds {
				want := vmstest.FrameMD5(t, kind, clip)
				got := vmstest.FrameMD5(t, kind, cam.URL(), "-rtsp_transport", "tcp")
				if !slices.Equal(got, want) {
					t.Errorf("%s: got %d frames, want %d equal ones", kind, len(got), len(want))
				}
			}
			if cam.Plays() != len(kinds) || cam.Refused() != 0 {
				t.Errorf("plays = %d, refused = %d", cam.Plays(), cam.Refused())
			}
		})
	}
}

func TestLoadReadsTheWholeClip(t *testing.T) {
	m := camtest.Clip(t, vmstest.ClipSpec{BFrames: 2, Audio: "aac"})
	if len(m.Video) != 200 || len(m.Audio) < 375 || m.SPS == nil || m.PPS == nil || m.AudioConfig.SampleRate != 48000 {
		t.Errorf("%d pictures, %d audio units, SPS %x, PPS %x", len(m.Video), len(m.Audio), m.SPS, m.PPS)
	}
	for i, v := range m.Video {
		if v.DTS != int64(i)*3600 || v.PTS < v.DTS {
			t.Fatalf("picture %d: DTS %d, PTS %d", i, v.DTS, v.PTS)
		}
	}
}

func TestLoadRefusesWhatIsNoClip(t *testing.T) {
	if _, err := camtest.Read(strings.NewReader("no transport stream")); err == nil {
		t.Error("no error")
	}
}

func describe(t *testing.T, rawURL string) error {
	t.Helper()
	u, err := base.ParseURL(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	c := &gortsplib.Client{Scheme: u.Scheme, Host: u.Host}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _, err = c.Describe(u)
	return err
}

func TestPasswordIsAskedFor(t *testing.T) {
	for name, auth := range map[string]camtest.Auth{
		"digest": camtest.Digest, "digest sha-256": camtest.DigestSHA256, "basic": camtest.Basic,
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			cam := camtest.Start(t, camtest.Options{Username: "u", Password: "right", Auth: auth})
			if err := describe(t, cam.URL()); err != nil {
				t.Errorf("right password: %v", err)
			}
			u, _ := url.Parse(cam.URL())
			u.User = url.UserPassword("u", "wrong")
			if err := describe(t, u.String()); err == nil || cam.Refused() != 1 {
				t.Errorf("wrong password: err = %v, refused = %d", err, cam.Refused())
			}
			u.User = nil
			if err := describe(t, u.String()); err == nil || cam.Refused() != 1 {
				t.Errorf("no password: err = %v, refused = %d", err, cam.Refused())
			}
			if err := describe(t, cam.URL()+"/other"); err == nil {
				t.Error("a path that does not exist is served")
			}
		})
	}
}

func TestPowerOffRefusesAndPowerOnKeepsTheAddress(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t)
	addr := cam.Addr()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := describe(t, cam.URL()); err != nil {
		t.Fatal(err)
	}
	cam.PowerOff()
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("connection after power off: %v", err)
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("connected to a camera without power")
	}
	if err := cam.PowerOn(); err != nil {
		t.Fatal(err)
	}
	if cam.Addr() != addr {
		t.Errorf("address is %s, was %s", cam.Addr(), addr)
	}
	if err := describe(t, cam.URL()); err != nil {
		t.Errorf("after power on: %v", err)
	}
}
