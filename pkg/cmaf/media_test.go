package cmaf_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mp4/codecs"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vmstest"
)

// TestInitOfRealMedia: for every kind of picture and sound, ffmpeg encodes and
// writes a file, and we write the same samples again behind our own init
// segment. The decoder configuration is then ffmpeg's, byte for byte; both files
// decode to the same frames; and ffprobe and GStreamer name the codecs.
func TestInitOfRealMedia(t *testing.T) {
	x264 := func(profile, pixels string) []string {
		return []string{"-c:v", "libx264", "-preset", "veryfast", "-x264-params", "threads=1", "-profile:v", profile, "-pix_fmt", pixels}
	}
	x265 := func(params, pixels string) []string {
		params = "log-level=error:info=0:pools=1:frame-threads=1" + params
		return []string{"-c:v", "libx265", "-preset", "ultrafast", "-tag:v", "hvc1", "-x265-params", params, "-pix_fmt", pixels}
	}
	jpeg := func(pixels string) []string { return []string{"-c:v", "mjpeg", "-pix_fmt", pixels} }
	aac, flac := []string{"-c:a", "aac"}, []string{"-c:a", "flac"}
	for name, tt := range map[string]struct {
		args   []string
		rate   string // of the sound
		config string // the box that configures the decoder of the picture
		codecs string
	}{
		"h264 baseline":     {x264("baseline", "yuv420p"), "", "avcC", "avc1.42c00a"},
		"h264 main, aac":    {append(x264("main", "yuv420p"), aac...), "48000", "avcC", "avc1.4d400a,mp4a.40.2"},
		"h264 high, flac":   {append(x264("high", "yuv420p"), flac...), "8000", "avcC", "avc1.64000a,flac"},
		"h264 high 4:2:2":   {x264("high422", "yuv422p10le"), "", "avcC", "avc1.7a000a"},
		"h264 high 4:4:4":   {x264("high444", "yuv444p"), "", "avcC", "avc1.f4000a"},
		"h264 monochrome":   {x264("high", "gray"), "", "avcC", "avc1.64000a"},
		"h265 main, flac":   {append(x265("", "yuv420p"), flac...), "48000", "hvcC", "hvc1.1.6.L30.90,flac"},
		"h265 main 10":      {x265("", "yuv420p10le"), "", "hvcC", "hvc1.2.4.L30.90"},
		"h265 4:2:2":        {x265("", "yuv422p10le"), "", "hvcC", "hvc1.4.10.L30.9D.08"},
		"h265 sub-layers":   {x265(":temporal-layers=1", "yuv420p"), "", "hvcC", "hvc1.1.6.L30.90"},
		"mjpeg, flac, 96k":  {append(jpeg("yuvj420p"), flac...), "96000", "esds", "mp4v.6C,flac"},
		"mjpeg without any": {jpeg("yuvj422p"), "", "esds", "mp4v.6C"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			theirs, ours := filepath.Join(dir, "theirs.mp4"), filepath.Join(dir, "ours.mp4")
			args := []string{"-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-f", "lavfi", "-i", "testsrc2=size=144x100:rate=5:duration=2"}
			if tt.rate != "" {
				args = append(args, "-f", "lavfi", "-i", "sine=frequency=440:duration=2:sample_rate="+tt.rate)
			}
			args = append(append(args, tt.args...), "-threads", "1", "-strict", "-2", "-video_track_timescale", "90000", "-movflags", "empty_moov+default_base_moof+frag_keyframe", theirs)
			vmstest.FFmpeg(t, args...)
			file, err := os.ReadFile(theirs)
			if err != nil {
				t.Fatal(err)
			}
			init, frags := split(t, file)
			v, a := readInit(t, init)
			checkReadBack(t, init, v, a) // ReadInit and mediacommon agree on ffmpeg's
			seg, tracks, err := cmaf.BuildInit(cmaf.Timescale(a), v, a)
			if err != nil {
				t.Fatal(err)
			}
			if got := cmaf.Codecs(tracks); got != tt.codecs {
				t.Errorf("codecs %s, want %s", got, tt.codecs)
			}
			if tracks[0].Width != 144 || tracks[0].Height != 100 {
				t.Errorf("%d x %d pixels, want 144 x 100", tracks[0].Width, tracks[0].Height)
			}
			for _, box := range []string{tt.config, "dfLa"} {
				if box == "esds" || box == "dfLa" && !strings.HasSuffix(tt.codecs, "flac") {
					continue // has bit rates; is not there
				}
				if got, want := find(t, seg, box), find(t, init, box); !bytes.Equal(got, want) {
					t.Errorf("%s\n%x, ffmpeg's\n%x", box, got, want)
				}
			}
			if err := os.WriteFile(ours, append(seg, again(t, frags, cmaf.Timescale(a), init)...), 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range tracks {
				want, got := frames(t, theirs, i), frames(t, ours, i)
				if len(want) < 5 || strings.Join(got, "\n") != strings.Join(want, "\n") {
					t.Errorf("track %d: %d frames decode to something else than the %d of ffmpeg's file", i, len(got), len(want))
				}
			}
			checkProbe(t, ours, theirs)
			checkGStreamer(t, ours)
		})
	}
}

// split parts an init segment from what follows it. The index behind the last
// fragment is left out.
func split(t *testing.T, file []byte) (init, frags []byte) {
	t.Helper()
	at := bytes.Index(file, []byte("moof")) - 4
	end := bytes.LastIndex(file, []byte("mfra")) - 4
	if at < 0 || end < at {
		t.Fatal("no fragments")
	}
	return file[:at], file[at:end]
}

// readInit is what mediacommon reads in an init segment.
func readInit(t *testing.T, segment []byte) (cmaf.VideoParams, *cmaf.AudioParams) {
	t.Helper()
	var init fmp4.Init
	if err := init.Unmarshal(bytes.NewReader(segment)); err != nil {
		t.Fatal(err)
	}
	var v cmaf.VideoParams
	var a *cmaf.AudioParams
	for _, tr := range init.Tracks {
		switch c := tr.Codec.(type) {
		case *codecs.H264:
			v = cmaf.VideoParams{Codec: "h264", SPS: c.SPS, PPS: c.PPS}
		case *codecs.H265:
			v = cmaf.VideoParams{Codec: "h265", VPS: c.VPS, SPS: c.SPS, PPS: c.PPS}
		case *codecs.MJPEG:
			v = cmaf.VideoParams{Codec: "mjpeg", Width: c.Width, Height: c.Height}
		case *codecs.MPEG4Audio:
			config, err := c.Config.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			a = &cmaf.AudioParams{Codec: "aac", Config: config, SampleRate: c.Config.SampleRate, Channels: int(c.Config.ChannelConfig)}
		case *codecs.FLAC:
			config, err := c.StreamInfo.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			a = &cmaf.AudioParams{Codec: "flac", Config: config, SampleRate: int(c.StreamInfo.SampleRate), Channels: int(c.StreamInfo.ChannelCount)}
		}
	}
	return v, a
}

// again writes the samples of frags as our fragments, in ts ticks per second.
func again(t *testing.T, frags []byte, ts uint32, segment []byte) []byte {
	t.Helper()
	var init fmp4.Init
	var parts fmp4.Parts
	if err := init.Unmarshal(bytes.NewReader(segment)); err != nil {
		t.Fatal(err)
	}
	if err := parts.Unmarshal(frags); err != nil {
		t.Fatal(err)
	}
	scale := map[int]uint64{}
	for _, tr := range init.Tracks {
		scale[tr.ID] = uint64(ts / tr.TimeScale)
		if scale[tr.ID]*uint64(tr.TimeScale) != uint64(ts) {
			t.Fatalf("%d ticks per second are no multiple of %d", ts, tr.TimeScale)
		}
	}
	var out []byte
	for i, p := range parts {
		var runs []cmaf.Run
		for _, tr := range p.Tracks {
			r := cmaf.Run{Track: tr.ID, Base: tr.BaseTime * scale[tr.ID]}
			for _, s := range tr.Samples {
				r.Samples = append(r.Samples, cmaf.Sample{
					Duration: s.Duration * uint32(scale[tr.ID]), CTS: s.PTSOffset * int32(scale[tr.ID]), Sync: !s.IsNonSyncSample, Raw: s.Payload,
				})
			}
			runs = append(runs, r)
		}
		b, _, err := cmaf.BuildFragment(uint32(i+1), runs)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

// frames is the checksum of every decoded frame of a stream.
func frames(t *testing.T, path string, stream int) []string {
	t.Helper()
	var sums []string
	out := vmstest.FFmpeg(t, "-hide_banner", "-loglevel", "error", "-xerror", "-i", path, "-map", "0:"+string(rune('0'+stream)), "-f", "framemd5", "-")
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "#") {
			sums = append(sums, line[strings.LastIndex(line, ",")+1:])
		}
	}
	return sums
}

// checkProbe compares what ffprobe says of both files.
func checkProbe(t *testing.T, ours, theirs string) {
	t.Helper()
	type stream struct {
		Name     string `json:"codec_name"`
		Tag      string `json:"codec_tag_string"`
		Profile  string
		Width    int
		Height   int
		Pixels   string `json:"pix_fmt"`
		Rate     string `json:"sample_rate"`
		Channels int
		Format   string `json:"sample_fmt"`
	}
	probe := func(path string) (p struct{ Streams []stream }) {
		if err := json.Unmarshal(vmstest.FFprobe(t, "-v", "error", "-show_streams", "-of", "json", path), &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	a, b := probe(ours), probe(theirs)
	if len(a.Streams) != len(b.Streams) {
		t.Fatalf("%d streams, want %d", len(a.Streams), len(b.Streams))
	}
	for i := range a.Streams {
		if a.Streams[i] != b.Streams[i] {
			t.Errorf("ffprobe says\n%+v of ours,\n%+v of ffmpeg's", a.Streams[i], b.Streams[i])
		}
	}
}

// checkGStreamer plays a file to its end, where GStreamer is installed.
func checkGStreamer(t *testing.T, path string) {
	t.Helper()
	gst, err := exec.LookPath("gst-launch-1.0")
	if err != nil {
		t.Log("gst-launch-1.0 is not installed: not played by GStreamer")
		return
	}
	pipeline := "filesrc location=" + path + " ! qtdemux name=d d.video_0 ! queue ! decodebin ! fakesink sync=false"
	if boxes, err := os.ReadFile(path); err == nil && bytes.Contains(boxes, []byte("SoundHandler")) {
		pipeline += " d.audio_0 ! queue ! decodebin ! fakesink sync=false"
	}
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), gst, strings.Fields(pipeline)...).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("Got EOS")) {
		t.Errorf("GStreamer: %v\n%s", err, out)
	}
}
