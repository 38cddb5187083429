package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
)

// film is a recording to be played, and what is in it.
type film struct {
	recording
	kind   cameraKind
	name   string
	width  int
	height int
	// pictures and sounds count samples; leads are the pictures at its begin that
	// refer to the recording before.
	pictures, sounds, leads int
	begin, end              time.Duration // of the first picture shown, and of the last sample
	sound                   bool          // there is a track for it
}

// TestPlayers: a recording of every kind of camera plays, from its presigned URL
// and to its end, in ffprobe, ffmpeg and GStreamer, and those of H264 in Chromium.
func TestPlayers(t *testing.T) {
	t.Parallel()
	const length = 4 * time.Second
	s := newStack(t, length)
	var sources []*source
	for _, k := range cameraKinds {
		src := startSource(t, k, k.name)
		src.ch = s.addChannel(src.name, src.cam.URL())
		sources = append(sources, src)
	}
	s.record(sources, 14*time.Second) // past a change in the middle of a clip

	var browser []film
	var late time.Duration
	for _, src := range sources {
		t.Run(src.name, func(t *testing.T) {
			films := chooseFilms(t, src.kind, s.settled(src.ch))
			for _, f := range films {
				if d := f.ffprobe(t); d > time.Millisecond {
					t.Logf("ffprobe, %s: the picture comes %v late", f.name, d)
					late = max(late, d)
				}
				f.ffmpeg(t)
				f.gstreamer(t)
			}
			for _, f := range films {
				// Chromium's software decoder takes a picture whose reference is
				// missing for an error, and so ends where any other player leaves it
				// out: an open GOP plays from its recording's begin only where no
				// picture leads it.
				if src.media.Codec == "h264" && f.leads == 0 {
					browser = append(browser, f)
				}
			}
		})
	}
	fmt.Printf("figure players_picture_late_ms %d ms\n", late.Milliseconds())
	t.Run("chromium", func(t *testing.T) { chromium(t, browser) })
}

// chooseFilms returns the recordings of a channel that differ in kind from those
// before: by codecs, size or what they begin with.
func chooseFilms(t *testing.T, k cameraKind, tl timeline) []film {
	t.Helper()
	seen := map[string]bool{}
	var films []film
	for i, r := range tl.Recordings {
		f := readFilm(t, r)
		f.kind, f.name = k, fmt.Sprintf("%s, recording %d (%s, %dx%d)", k.name, i, r.Codecs, f.width, f.height)
		id := fmt.Sprint(f.codecs(), f.width, f.height, f.leads > 0, f.sounds > 0)
		if seen[id] || i == 0 && len(tl.Recordings) > 2 && !k.changes() { // the first may be short
			continue
		}
		seen[id] = true
		films = append(films, f)
	}
	if len(films) == 0 {
		t.Fatalf("%d recordings, none to play", len(tl.Recordings))
	}
	return films
}

// changes reports whether the recordings of one camera differ in kind.
func (k cameraKind) changes() bool { return k.spec.Then != nil || len(k.spec.Quiet) > 0 || k.leads }

func readFilm(t *testing.T, r recording) film {
	t.Helper()
	resp, err := http.Get(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	mp4, err := readMP4(data)
	if err != nil {
		t.Fatalf("recording %s: %v", r.ID, err)
	}
	f := film{recording: r, sound: mp4.track("a") != nil, begin: math.MaxInt64}
	key := time.Duration(math.MinInt64) // when the first picture is shown
	for _, sm := range mp4.samples {
		f.end = max(f.end, sm.pts+sm.duration)
		if sm.track.kind == "a" {
			f.sounds++
			continue
		}
		f.width, f.height = sm.track.width, sm.track.height
		f.begin = min(f.begin, sm.pts)
		f.pictures++
		if key == math.MinInt64 {
			key = sm.pts
		}
		if sm.pts < key {
			f.leads++
		}
	}
	return f
}

// codecs returns what ffprobe calls the codecs of the film.
func (f *film) codecs() []string {
	video := map[string]string{"": "h264", "h264": "h264", "h265": "hevc", "mjpeg": "mjpeg"}[f.kind.spec.Codec]
	switch {
	case !f.sound:
		return []string{video}
	case f.kind.spec.Audio == "aac":
		return []string{video, "aac"}
	default:
		return []string{video, "flac"}
	}
}

// ffprobe checks what a player learns of the file before it plays. It returns how
// much later than it should ffmpeg shows the picture: without an edit list it
// takes the time by which pictures are reordered for a delay, as Chromium and
// GStreamer do, and the sound does not wait.
func (f *film) ffprobe(t *testing.T) (late time.Duration) {
	t.Helper()
	var probe struct {
		Format struct {
			Duration string `json:"duration"`
		} `json:"format"`
		Streams []struct {
			Codec   string `json:"codec_name"`
			Start   string `json:"start_time"`
			Width   int    `json:"width"`
			Height  int    `json:"height"`
			Packets string `json:"nb_read_packets"`
		} `json:"streams"`
	}
	out := vmstest.FFprobe(t, "-v", "error", "-count_packets", "-show_entries",
		"format=duration:stream=codec_name,start_time,width,height,nb_read_packets", "-of", "json", f.URL)
	if err := json.Unmarshal(out, &probe); err != nil {
		t.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(probe.Format.Duration, 64)
	tolerance := 0.1
	if f.leads > 0 {
		tolerance = 0.3 // ffprobe adds the time by which pictures are reordered
	}
	if want := float64(f.MediaMS) / 1000; err != nil || math.Abs(seconds-want) > tolerance {
		t.Errorf("ffprobe, %s: %q s long, the API says %v", f.name, probe.Format.Duration, want)
	}
	want := f.codecs()
	if len(probe.Streams) != len(want) {
		t.Fatalf("ffprobe, %s: %s, want streams of %v", f.name, out, want)
	}
	for i, st := range probe.Streams {
		packets := f.pictures
		if i > 0 {
			packets = f.sounds
		} else if st.Width != f.width || st.Height != f.height {
			t.Errorf("ffprobe, %s: %dx%d", f.name, st.Width, st.Height)
		}
		if n, _ := strconv.Atoi(st.Packets); st.Codec != want[i] || n != packets { // nothing is said of none
			t.Errorf("ffprobe, %s: stream %d is %s packets of %s, want %d of %s", f.name, i, st.Packets, st.Codec, packets, want[i])
		}
	}
	start, err := time.ParseDuration(probe.Streams[0].Start + "s")
	if err != nil {
		t.Errorf("ffprobe, %s: the picture starts at %q", f.name, probe.Streams[0].Start)
	}
	if f.leads > 0 {
		return 0 // it counts from the keyframe
	}
	return start - f.begin
}

// ffmpeg decodes everything, and takes any complaint as an error.
func (f *film) ffmpeg(t *testing.T) {
	t.Helper()
	args := []string{"-v", "error", "-nostdin"}
	if f.leads == 0 {
		args = append(args, "-xerror")
	}
	args = append(args, "-i", f.URL, "-map", "0", "-fps_mode", "passthrough", "-f", "framecrc", "-")
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "ffmpeg", args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil || errs.Len() > 0 && f.leads == 0 {
		t.Errorf("ffmpeg, %s: %v\n%s", f.name, err, errs.Bytes())
		return
	}
	var pictures, sounds int
	for line := range strings.Lines(out.String()) {
		switch stream, _, _ := strings.Cut(line, ","); stream {
		case "0":
			pictures++
		case "1":
			sounds++
		}
	}
	f.wantPictures(t, "ffmpeg", pictures)
	if f.sounds > 0 && sounds == 0 {
		t.Errorf("ffmpeg, %s: no sound", f.name)
	}
}

// gstreamer plays the recording as fast as it can. It prints a line for each
// picture: when it is shown, and the sum of its pixels.
func (f *film) gstreamer(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	line := "-q souphttpsrc location=" + f.URL + " ! decodebin name=d" +
		" d. ! queue ! videoconvert ! checksumsink hash=md5 sync=false"
	if f.sounds > 0 {
		line += " d. ! queue ! audioconvert ! fakesink sync=false"
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "gst-launch-1.0", strings.Fields(line)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil || errs.Len() > 0 { // an error, or a branch for which there is no stream
		t.Errorf("gst-launch-1.0, %s: %v\n%s", f.name, err, errs.Bytes())
		return
	}
	f.wantPictures(t, "GStreamer", bytes.Count(out.Bytes(), []byte("\n")))
}

// wantPictures: each picture is shown, but those that refer to the recording
// before: a player may leave them out.
func (f *film) wantPictures(t *testing.T, player string, n int) {
	t.Helper()
	if n < f.pictures-f.leads || n > f.pictures {
		t.Errorf("%s, %s: %d pictures, want %d, of which %d may be missing", player, f.name, n, f.pictures, f.leads)
	}
}

// chromium plays all of them in a real browser.
func chromium(t *testing.T, films []film) {
	t.Helper()
	type item struct {
		Name     string  `json:"name"`
		URL      string  `json:"url"`
		Seconds  float64 `json:"seconds"`
		Pictures int     `json:"pictures"`
		Width    int     `json:"width"`
		Height   int     `json:"height"`
		Sound    bool    `json:"sound"`
		// Seek lists parts of the length that are sought behind the end.
		Seek []float64 `json:"seek"`
	}
	var list []item
	for _, f := range films {
		seek := []float64{0.5, 0.25, 0.9, 0}
		if f.kind.leads {
			seek = []float64{0}
		}
		list = append(list, item{f.name, f.URL, f.end.Seconds(), f.pictures, f.width, f.height, f.sounds > 0, seek})
	}
	in, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "browser/play.mjs")
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if n := bytes.Count(out, []byte("ok chromium plays ")); err != nil || n != len(films) || n == 0 {
		t.Errorf("chromium: %v, %d of %d recordings played", err, n, len(films))
	}
}
