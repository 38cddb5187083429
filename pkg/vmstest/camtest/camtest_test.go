package camtest_test

import (
	"bytes"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
	"github.com/pion/rtp"

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
		"mjpeg":                  {vmstest.ClipSpec{Codec: "mjpeg", FPS: 10, Duration: 4 * time.Second}, 8},
		"h264 for a slow client": {vmstest.ClipSpec{Size: "1920x1080", Duration: 2 * time.Second}, 1e6},
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			clip := vmstest.MakeClip(t, c.spec)
			cam := camtest.Start(t, camtest.Options{
				Source: camtest.Clip(t, c.spec), HangUp: true, Speed: c.speed, Username: "admin", Password: "it's 100% secret/@:",
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

// TestFFmpegHearsTheSoundSampleBySample: PCM arrives as it lies in the file that
// ffmpeg made, decoded by ffmpeg both times.
func TestFFmpegHearsTheSoundSampleBySample(t *testing.T) {
	for name, spec := range map[string]vmstest.ClipSpec{
		"A-law":                  {Audio: "pcma"},
		"mu-law, 16 kHz, stereo": {Audio: "pcmu", SampleRate: 16000, Channels: 2},
		"8 bit":                  {Audio: "lpcm", BitDepth: 8},
		"16 bit":                 {Audio: "lpcm"},
		"24 bit, stereo, beside mjpeg": {
			Codec: "mjpeg", FPS: 10, Audio: "lpcm", BitDepth: 24, SampleRate: 48000, Channels: 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			spec.Duration = 2 * time.Second
			cam := camtest.Start(t, camtest.Options{Source: camtest.Clip(t, spec), HangUp: true, Speed: 4})
			if spec.Audio == "lpcm" && spec.BitDepth == 8 {
				// ffmpeg does not know L8 in RTP: the packets themselves are compared.
				heard := bytes.Join(sentSound(cam, t), nil)
				want := vmstest.FFmpeg(t, "-v", "error", "-nostdin", "-i", vmstest.MakeSound(t, spec), "-f", "u8", "-")
				if !bytes.Equal(heard, want) {
					t.Errorf("%d bytes sent, want %d equal ones", len(heard), len(want))
				}
				return
			}
			decode := func(input string, options ...string) []byte {
				args := append([]string{"-v", "error", "-nostdin"}, options...)
				return vmstest.FFmpeg(t, append(args, "-i", input, "-map", "0:a", "-f", "s32le", "-")...)
			}
			got, want := decode(cam.URL(), "-rtsp_transport", "tcp"), decode(vmstest.MakeSound(t, spec))
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes of samples heard, want %d equal ones", len(got), len(want))
			}
		})
	}
}

// sentSound returns the payloads of the sound that a client of cam gets.
func sentSound(cam *camtest.Camera, t *testing.T) [][]byte {
	var payloads [][]byte
	client, desc := open(t, cam)
	for _, m := range desc.Medias {
		if m.Type == description.MediaTypeAudio {
			client.OnPacketRTP(m, m.Formats[0], func(pkt *rtp.Packet) { payloads = append(payloads, pkt.Payload) })
		}
	}
	if _, err := client.Play(nil); err != nil {
		t.Fatal(err)
	}
	_ = client.Wait() // the camera hangs up
	return payloads
}

// open sets up all that cam offers.
func open(t *testing.T, cam *camtest.Camera) (*gortsplib.Client, *description.Session) {
	t.Helper()
	u, err := base.ParseURL(cam.URL())
	if err != nil {
		t.Fatal(err)
	}
	tcp := gortsplib.ProtocolTCP
	c := &gortsplib.Client{Scheme: u.Scheme, Host: u.Host, Protocol: &tcp}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	desc, _, err := c.Describe(u)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetupAll(desc.BaseURL, desc.Medias); err != nil {
		t.Fatal(err)
	}
	return c, desc
}

// TestPauseLosesNothingAndPlayBeginsWithAKeyframe: what the camera says it sent
// is what the client has, the first picture after PAUSE and PLAY is the clip's
// first one, and so it is after Keyframe.
func TestPauseLosesNothingAndPlayBeginsWithAKeyframe(t *testing.T) {
	vmstest.NoLeaks(t)
	var s seen
	media := camtest.Clip(t, vmstest.ClipSpec{Audio: "pcma", GOP: vmstest.OnlyFirst, BFrames: 2})
	cam := camtest.Start(t, camtest.Options{Source: media, Speed: 4, JumpOnPlay: true, OnSent: s.add})
	client, desc := open(t, cam)
	var mu sync.Mutex
	var stamps []uint32
	client.OnPacketRTP(desc.Medias[0], desc.Medias[0].Formats[0], func(pkt *rtp.Packet) {
		mu.Lock()
		defer mu.Unlock()
		if pkt.Marker {
			stamps = append(stamps, pkt.Timestamp)
		}
	})
	play := func() {
		if _, err := client.Play(nil); err != nil {
			t.Fatal(err)
		}
	}
	pictures := func() (all []camtest.Sent) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, u := range s.sent {
			if u.Video {
				all = append(all, u)
			}
		}
		return all
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what, "did not come")
			}
		}
	}
	play()
	until("pictures", func() bool { return len(pictures()) > 20 })
	if _, err := client.Pause(); err != nil {
		t.Fatal(err)
	}
	before := pictures()
	mu.Lock()
	received := slices.Clone(stamps)
	mu.Unlock()
	if len(received) != len(before) || cam.Pauses() != 1 {
		t.Errorf("%d pictures received, %d sent until PAUSE was answered; %d pauses", len(received), len(before), cam.Pauses())
	}
	play()
	until("a picture", func() bool { return len(pictures()) > len(before)+5 })
	after := pictures()[len(before):]
	isFirst := func(u camtest.Sent) bool { return slices.EqualFunc(u.AU, media.Video[0].AU, bytes.Equal) }
	// Up to two B-frames are shown before a picture that was sent already.
	key := slices.IndexFunc(after, isFirst)
	if key < 0 || key > 2 || after[0].Number != before[len(before)-1].Number+1 {
		t.Errorf("picture %d after PLAY is the first keyframe, picture %d follows %d", key, after[0].Number, before[len(before)-1].Number)
	}
	cam.Keyframe()
	until("a third keyframe", func() bool {
		keys := 0
		for _, u := range pictures() {
			if isFirst(u) {
				keys++
			}
		}
		return keys == 3
	})
	mu.Lock()
	defer mu.Unlock()
	if d := stamps[len(received)] - received[len(received)-1]; d < 1<<24 {
		t.Errorf("timestamps went on by %d after PLAY, want a jump", d)
	}
	// Each picture is shown once and 40 ms after another, over the third keyframe too.
	shown := slices.Sorted(slices.Values(stamps[len(received):]))
	for i := 3; i < len(shown)-3; i++ {
		if d := shown[i] - shown[i-1]; d != 3600 {
			t.Errorf("picture %d is shown %d ticks after another, want 3600", i, d)
		}
	}
}

// TestPauseWaitsForWhatIsOnItsWay: a client that lags behind when it pauses gets
// all that the camera says it sent, before the answer.
func TestPauseWaitsForWhatIsOnItsWay(t *testing.T) {
	vmstest.NoLeaks(t)
	var s seen
	read := make(chan struct{})
	cam := camtest.Start(t, camtest.Options{
		Loop: true, Speed: 1e6, OnSent: s.add, // at once more than sockets and queue hold
		Source: camtest.Clip(t, vmstest.ClipSpec{Size: "1280x720", Duration: 2 * time.Second}),
		OnRequest: func(method, _ string) {
			if method == "PAUSE" {
				close(read)
			}
		},
	})
	client, desc := open(t, cam)
	received := 0
	client.OnPacketRTP(desc.Medias[0], desc.Medias[0].Formats[0], func(pkt *rtp.Packet) {
		<-read
		if pkt.Marker {
			received++
		}
	})
	if _, err := client.Play(nil); err != nil {
		t.Fatal(err)
	}
	sent := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.sent)
	}
	// It stands still where the client holds it up.
	for last := -1; sent() == 0 || sent() != last; time.Sleep(50 * time.Millisecond) {
		last = sent()
	}
	if _, err := client.Pause(); err != nil {
		t.Fatal(err)
	}
	if n := sent(); n != received {
		t.Errorf("%d pictures received, %d sent", received, n)
	}
}

func TestPauseThatIsNotGranted(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t, camtest.Options{Loop: true, NoPause: true})
	client, _ := open(t, cam)
	if _, err := client.Play(nil); err != nil {
		t.Fatal(err)
	}
	var bad liberrors.ErrClientBadStatusCode
	if _, err := client.Pause(); !errors.As(err, &bad) || bad.Code != base.StatusNotImplemented {
		t.Errorf("Pause = %v", err)
	}
	if cam.Pauses() != 0 {
		t.Errorf("%d pauses", cam.Pauses())
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

// TestClipOneBehindTheOther: neither picture nor sound shows the seam, and the
// quiet stretches are where they shall be.
func TestClipOneBehindTheOther(t *testing.T) {
	second := vmstest.ClipSpec{Size: "640x360", Audio: "pcmu", Duration: 2 * time.Second}
	spec := vmstest.ClipSpec{
		BFrames: 2, Audio: "pcmu", Duration: 4 * time.Second,
		Quiet: []vmstest.Span{{To: time.Second}, {From: 2 * time.Second, To: 3 * time.Second}},
		Then:  &second,
	}
	m := camtest.Clip(t, spec)
	shown := map[int64]bool{}
	for i, v := range m.Video {
		if shown[v.PTS] {
			t.Fatalf("picture %d is shown at %d, as is another", i, v.PTS)
		}
		shown[v.PTS] = true
	}
	for i := range int64(150) {
		if at := m.Video[0].PTS + i*3600; !shown[at] {
			t.Errorf("no picture at %d", at)
		}
	}
	if len(m.Video) != 150 || len(m.Audio) != 200 {
		t.Errorf("%d pictures and %d packets of sound, want 150 and 200", len(m.Video), len(m.Audio))
	}
	// 1 s to 2 s, 3 s to 6 s at 8 kHz.
	for i, a := range m.Audio {
		want := int64(8000 + i*160)
		if i >= 50 {
			want += 8000
		}
		if a.PTS != want || a.Samples != 160 || len(a.AU) != 160 {
			t.Fatalf("packet %d is at %d, %d samples, %d bytes; want %d", i, a.PTS, a.Samples, len(a.AU), want)
		}
	}
	if one := camtest.Clip(t, second); !slices.EqualFunc(m.Video[100].AU, one.Video[0].AU, bytes.Equal) || bytes.Equal(m.SPS, one.SPS) {
		t.Error("the second clip does not begin after 100 pictures with a size of its own")
	}
}

func TestCameraRefusesToStampJPEG(t *testing.T) {
	m := camtest.Clip(t, vmstest.ClipSpec{Codec: "mjpeg", FPS: 10, Duration: time.Second})
	if _, err := camtest.New(camtest.Options{Source: m, Stamp: true}); err == nil {
		t.Error("no error")
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
