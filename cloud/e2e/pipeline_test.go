// Package e2e holds the tests that run agent and cloud together.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/agent/mux"
	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// muxed is what the agent's muxer makes of a clip.
type muxed struct {
	inits  map[uint32]vms.Init
	chunks []vms.Chunk
	stats  mux.Stats
}

// muxClip feeds the access units of a clip to a Mux as a camera would: in the
// order of their decode times, at the pace of their clock.
func muxClip(t *testing.T, path string, cfg mux.Config) muxed {
	t.Helper()
	clip, err := camtest.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	out := muxed{inits: map[uint32]vms.Init{}}
	cfg.OnInit = func(i vms.Init) { out.inits[i.ID] = i }
	cfg.OnChunk = func(c vms.Chunk) { out.chunks = append(out.chunks, c) }
	m := mux.New(cfg)
	var sound *mux.Sound
	rate := int64(1)
	if c := clip.AudioConfig; c != nil {
		config, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		sound = &mux.Sound{Codec: "aac", Config: config, SampleRate: c.SampleRate, Channels: int(c.ChannelConfig)}
		rate = int64(c.SampleRate)
	}
	if err := m.Open(cmaf.VideoParams{Codec: clip.Codec}, sound); err != nil {
		t.Fatal(err)
	}
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	next := 0
	for _, v := range clip.Video {
		at := time.Duration(v.DTS) * time.Second / 90000
		for ; next < len(clip.Audio) && time.Duration(clip.Audio[next].PTS)*time.Second/time.Duration(rate) <= at; next++ {
			m.Audio(clip.Audio[next].PTS, t0.Add(at), clip.Audio[next].AU)
		}
		m.Video(v.PTS, t0.Add(at), false, time.Time{}, v.AU)
	}
	for _, a := range clip.Audio[next:] {
		m.Audio(a.PTS, t0.Add(time.Duration(a.PTS)*time.Second/time.Duration(rate)), a.AU)
	}
	m.Flush()
	out.stats = m.Stats()
	return out
}

// record cuts chunks into recordings as a worker does, and returns their files.
func record(t *testing.T, in muxed) []string {
	t.Helper()
	dir := t.TempDir()
	var s segment.Segmenter
	var w *segment.Writer
	var files []string
	finish := func() {
		if w == nil {
			return
		}
		f, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		body, err := os.ReadFile(f.Path)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, fmt.Sprintf("%d.mp4", len(files)))
		if err := os.WriteFile(path, append(f.Head, body...), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s %s %s media %v bytes %d", f.Key, f.Start.Format(time.StampMicro), f.End.Format(time.StampMicro), f.Media, f.Bytes)
		files = append(files, path)
	}
	for i := range in.chunks {
		c := &in.chunks[i]
		var err error
		switch v := s.Next(c); v {
		case segment.Begin:
			finish()
			w, err = segment.Create(dir, "ch", in.inits[c.Init], c)
		case segment.Append:
			err = w.Append(c)
		default:
			t.Fatalf("chunk %d: verdict %d", c.Seq, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	finish()
	return files
}

// hashes returns ffmpeg's MD5 of each packet of one stream of a file, without
// parameter sets and delimiters, which MP4 keeps elsewhere.
func hashes(t testing.TB, path, stream, codec string) []string {
	t.Helper()
	args := []string{"-v", "error", "-i", path, "-map", "0:" + stream, "-c", "copy"}
	switch {
	case stream == "a":
		args = append(args, "-bsf:a", "aac_adtstoasc")
	case codec == "h264":
		args = append(args, "-bsf:v", "h264_mp4toannexb,filter_units=remove_types=7-9")
	default:
		args = append(args, "-bsf:v", "hevc_mp4toannexb,filter_units=remove_types=32-35")
	}
	out, err := exec.Command("ffmpeg", append(args, "-f", "framemd5", "-")...).CombinedOutput()
	if err != nil {
		t.Fatalf("ffmpeg %s: %v\n%s", path, err, out)
	}
	var hs []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Split(strings.TrimSpace(line), ","); !strings.HasPrefix(line, "#") && len(f) >= 6 {
			hs = append(hs, strings.TrimSpace(f[5]))
		}
	}
	return hs
}

func TestMuxAndSegmentAreFrameExact(t *testing.T) {
	for name, spec := range map[string]vmstest.ClipSpec{
		"h264":          {Audio: "aac", Duration: 20 * time.Second},
		"h264 B-frames": {Audio: "aac", Duration: 20 * time.Second, BFrames: 3},
		"h264 open GOP": {Audio: "aac", Duration: 20 * time.Second, BFrames: 3, OpenGOP: true},
		"h265":          {Codec: "h265", Audio: "aac", Duration: 20 * time.Second, BFrames: 2},
		"h265 open GOP": {Codec: "h265", Duration: 20 * time.Second, BFrames: 2, OpenGOP: true},
		"1 fps":         {FPS: 1, GOP: 2, Duration: 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clip := vmstest.MakeClip(t, spec)
			in := muxClip(t, clip, mux.Config{Epoch: 1, Recording: 6 * time.Second, Phase: time.Second})
			files := record(t, in)
			if len(files) < 4 {
				t.Fatalf("%d recordings, want at least 4", len(files))
			}
			codec := spec.Codec
			if codec == "" {
				codec = "h264"
			}
			streams := []string{"v"}
			if spec.Audio != "" {
				streams = append(streams, "a")
			}
			for _, st := range streams {
				want := hashes(t, clip, st, codec)
				var got []string
				for _, f := range files {
					got = append(got, hashes(t, f, st, codec)...)
				}
				if len(want) == 0 || strings.Join(got, "\n") != strings.Join(want, "\n") {
					t.Errorf("stream %s: %d packets recorded of %d", st, len(got), len(want))
				}
			}
			for i, c := range in.chunks {
				if i > 0 && !c.Start.Equal(in.chunks[i-1].End) {
					t.Errorf("chunk %d starts at %v, the one before ends at %v", c.Seq, c.Start, in.chunks[i-1].End)
				}
			}
			t.Logf("%d chunks, %+v", len(in.chunks), in.stats)
		})
	}
}
