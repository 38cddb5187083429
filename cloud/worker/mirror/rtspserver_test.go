package mirror_test

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/worker/mirror"
	"github.com/zipato/vms/pkg/vmstest"
)

// gstreamer is an RTSP server that is not ours.
type gstreamer struct {
	t      *testing.T
	port   string
	folder string
	mu     sync.Mutex
	lines  []string
	news   chan struct{}
}

// startGStreamer starts testdata/rtspserver.py.
func startGStreamer(t *testing.T, codec string) *gstreamer {
	t.Helper()
	// Debian's Python is the one that Debian's GStreamer is for.
	const python = "/usr/bin/python3"
	if err := exec.CommandContext(t.Context(), python, "-c", "import gi; gi.require_version('GstRtspServer', '1.0')").Run(); err != nil {
		t.Fatalf("GStreamer's RTSP server is not here; scripts/setup test installs it: %v", err)
	}
	g := &gstreamer{t: t, folder: t.TempDir(), news: make(chan struct{}, 1)}
	cmd := exec.Command(python, filepath.Join("testdata", "rtspserver.py"), codec, g.folder)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the server: %s\n%s", strings.Join(g.all(), ", "), errs.Bytes())
		}
	})
	go func() {
		defer close(read)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			g.mu.Lock()
			g.lines = append(g.lines, sc.Text())
			g.mu.Unlock()
			select {
			case g.news <- struct{}{}:
			default:
			}
		}
	}()
	g.port = strings.TrimPrefix(g.line("port "), "port ")
	return g
}

func (g *gstreamer) all() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.lines)
}

// line waits for a line that begins so.
func (g *gstreamer) line(begin string) string {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 20*time.Second)
	defer cancel()
	for {
		for _, l := range g.all() {
			if strings.HasPrefix(l, begin) {
				return l
			}
		}
		select {
		case <-g.news:
		case <-ctx.Done():
			g.t.Fatalf("the server did not say %q, but %q", begin, g.all())
		}
	}
}

func (g *gstreamer) count(line string) (n int) {
	for _, l := range g.all() {
		if l == line {
			n++
		}
	}
	return n
}

// quiet waits until the server has written nothing for a while.
func (g *gstreamer) quiet() {
	g.t.Helper()
	var size int64
	var since time.Time
	waitFor(g.t, "the server has written all", func() bool {
		var n int64
		for _, name := range []string{"video", "sound"} {
			if fi, err := os.Stat(g.file(name)); err == nil {
				n += fi.Size()
			}
		}
		if n != size {
			size, since = n, time.Now()
		}
		return n > 0 && time.Since(since) > 600*time.Millisecond
	})
}

// file is what the server took of one kind.
func (g *gstreamer) file(name string) string { return filepath.Join(g.folder, name) }

// url is that of a path.
func (g *gstreamer) url(path string) string {
	return "rtsp://mirror:s3cr+t%2Fx@127.0.0.1:" + g.port + path
}

// start makes and runs a mirror, which ends with the test.
func start(t testing.TB, cfg mirror.Config) *mirror.Mirror {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = vmstest.Log(t)
	}
	m, err := mirror.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run = %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
	})
	waitFor(t, "Run", m.Running)
	return m
}

// waitFor polls.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestServerPlaysWhatWasPublished: every picture that a server of others takes
// decodes to what the camera sent, in order, from the first to the last, over a
// restart of the agent that starts its clock anew; and so does what somebody
// pulls from it. A session that is quiet but for its packets is kept alive.
func TestServerPlaysWhatWasPublished(t *testing.T) {
	vmstest.NoLeaks(t)
	for codec, spec := range map[string]vmstest.ClipSpec{
		"h264+aac": {Codec: "h264", GOP: 25, BFrames: 2, Duration: 1920 * time.Millisecond, Audio: "aac"},
		"h265":     {Codec: "h265", GOP: 25, Duration: 1920 * time.Millisecond},
	} {
		t.Run(codec, func(t *testing.T) {
			t.Parallel()
			f := makeFeed(t, spec)
			camera := vmstest.FrameMD5(t, "v", f.clip)
			g := startGStreamer(t, codec)
			m := start(t, mirror.Config{URL: g.url("/in/{channel}")})

			pull := make(chan []string, 1)
			go func() {
				defer close(pull)
				g.line("record /in/cam")
				pull <- vmstest.FrameMD5(t, "v", g.url("/out"), "-rtsp_transport", "tcp", "-t", "1.5")
			}()
			// Two runs, and more where the other takes its time.
			rounds := 0
			for next := f; rounds < 2 || rounds < 10 && len(pull) == 0; rounds++ {
				next.publish(t, m, "cam")
				next = next.later(t, f.length)
			}
			want := slices.Repeat(camera, rounds)
			pulled := <-pull
			g.quiet() // what its jitter buffer holds is lost at the end
			m.Offline("cam", "test")
			g.line("teardown /in/cam")
			g.line("closed")

			if n := g.count("announce /in/cam"); n > 2 || g.count("record /in/cam") != 1 { // once without credentials
				t.Errorf("the server saw %q; want one session", g.all())
			}
			if g.count("expired") > 0 {
				t.Errorf("the server lost patience: %q", g.all())
			}
			got := vmstest.FrameMD5(t, "v", g.file("video"), "-f", map[string]string{"h264": "h264", "h265": "hevc"}[spec.Codec], "-flags", "+output_corrupt")
			if !slices.Equal(got, want) {
				t.Errorf("the server took %d pictures, and they are not the %d of the camera", len(got), len(want))
			}
			if len(pulled) < 25 || !within(pulled, want) {
				t.Errorf("%d pictures were pulled from the server, and they are no run of the camera's %d", len(pulled), len(want))
			}
			if spec.Audio != "" {
				checkSound(t, g, f, rounds)
			}
		})
	}
}

// within reports whether part is a run of whole.
func within(part, whole []string) bool {
	for i := range whole {
		if len(whole)-i >= len(part) && slices.Equal(whole[i:i+len(part)], part) {
			return true
		}
	}
	return false
}

// checkSound compares the sound that the server took with the camera's.
func checkSound(t *testing.T, g *gstreamer, f *feed, rounds int) {
	t.Helper()
	packets := func(input string) []string {
		out := vmstest.FFmpeg(t, "-hide_banner", "-loglevel", "error", "-nostdin", "-i", input, "-map", "0:a:0", "-c", "copy", "-bsf:a", "aac_adtstoasc", "-f", "framemd5", "-")
		var sums []string
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "#") {
				sums = append(sums, strings.TrimSpace(strings.Split(line, ",")[5])) // what follows is not the packet's own
			}
		}
		return sums
	}
	want := slices.Repeat(packets(f.clip), rounds)
	if got := packets(g.file("sound")); len(got) < 150 || !slices.Equal(got, want) {
		t.Errorf("the server took %d frames of sound, and they are not the %d of the camera", len(got), len(want))
	}
}
