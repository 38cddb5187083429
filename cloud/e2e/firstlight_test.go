package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
)

// TestFirstLight is the first minute of a new user: one command, the page in a
// real browser, recordings of thirty seconds that play from object storage.
func TestFirstLight(t *testing.T) {
	// Not beside the other tests: its figures are those of an idle machine.
	if _, err := os.Stat("../web/dist/app/index.html"); err != nil {
		t.Fatal("the web app is not built: run `make web` first")
	}
	data := t.TempDir()
	env := []string{
		"VMS_DATA=" + data, "VMS_LISTEN=" + freePort(t), "VMS_S3_LISTEN=" + freePort(t), "VMS_MQTT_LISTEN=" + freePort(t),
		"VMS_AGENT_LISTEN=" + freePort(t), "VMS_DEMO_CAMERA_LISTEN=" + freePort(t), "CAMERA=",
	}
	began := time.Now()
	run := startProgram(t, "vms-run", env)
	link := run.line("ready ", 60*time.Second)
	fmt.Printf("figure ready_ms %d ms\n", time.Since(began).Milliseconds())
	base, _, _ := strings.Cut(link, "/?login=")
	token, err := os.ReadFile(filepath.Join(data, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(data, "admin-token")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("admin-token: %v, %v; want mode 0600", st.Mode(), err)
	}
	s := &stack{t: t, url: base, token: strings.TrimSpace(string(token))}

	t.Run("a second one on the same directory is refused", func(t *testing.T) {
		cmd := exec.Command(filepath.Join(bin, "vms-run"))
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "another process uses "+data) {
			t.Errorf("ended with %v and said:\n%s", err, out)
		}
	})

	t.Run("the page shows live and a recording", func(t *testing.T) {
		shots := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, "node", "browser/run.mjs", link, shots).CombinedOutput()
		fmt.Printf("%s", out) // each thing seen, and the figures
		if err != nil {
			t.Errorf("browser: %v", err)
		}
		for _, name := range []string{"live.png", "playback.png"} {
			if st, err := os.Stat(filepath.Join(shots, name)); err != nil || st.Size() < 10_000 {
				t.Errorf("screenshot %s: %v", name, err)
			}
		}
	})

	var list struct {
		Channels []struct {
			ID string `json:"id"`
		} `json:"channels"`
	}
	s.call("GET", "/channels", nil, &list)
	var tl timeline
	s.eventually(75*time.Second-time.Since(began)+5*time.Second, "two recordings, 75 s after the start", func() bool {
		s.call("GET", "/channels/"+list.Channels[0].ID+"/recordings", nil, &tl)
		return len(tl.Recordings) >= 2
	})
	for i, r := range tl.Recordings {
		path := filepath.Join(t.TempDir(), "r.mp4")
		download(t, r, path)
		wantRange(t, r)
		var probe struct {
			Format struct {
				Start    string `json:"start_time"`
				Duration string `json:"duration"`
			} `json:"format"`
			Streams []struct {
				Codec string `json:"codec_name"`
			} `json:"streams"`
		}
		out := vmstest.FFprobe(t, "-v", "error", "-show_entries", "format=start_time,duration:stream=codec_name", "-of", "json", path)
		if err := json.Unmarshal(out, &probe); err != nil {
			t.Fatal(err)
		}
		d, err := time.ParseDuration(probe.Format.Duration + "s")
		if err != nil || d > 32*time.Second || d < 28*time.Second && i > 0 {
			t.Errorf("recording %d lasts %s, want 28 to 32 s", i, probe.Format.Duration)
		}
		if probe.Format.Start != "0.000000" || len(probe.Streams) != 2 || probe.Streams[0].Codec != "h264" || probe.Streams[1].Codec != "aac" {
			t.Errorf("recording %d: %s, want H264 and AAC from 0", i, out)
		}
	}
}

// wantRange reads a hundred bytes out of the middle of a recording.
func wantRange(t *testing.T, r recording) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=100-199")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusPartialContent || len(b) != 100 {
		t.Errorf("range request: status %d, %d bytes, %v; want 206 and 100", resp.StatusCode, len(b), err)
	}
}
