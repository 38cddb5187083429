package vmstest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// ClipSpec says what MakeClip makes. Zero fields take the defaults named, so
// ClipSpec{} is a plain camera without sound.
type ClipSpec struct {
	Codec    string        // "h264" (the default) or "h265"
	BFrames  int           // B-frames between two others, 0 for none
	OpenGOP  bool          // keyframes after the first are no IDR, and pictures lead them
	GOP      int           // frames from keyframe to keyframe; 2 s by default
	FPS      int           // 25 by default
	Duration time.Duration // 8 s by default
	Size     string        // "WIDTHxHEIGHT", "320x180" by default
	Kbps     int           // of the picture, about; as the picture needs by default
	// Audio is "aac" or empty. AAC is always 48 kHz, where an access unit of
	// 1024 samples is a whole number of 90 kHz ticks. A duration that is a
	// multiple of 0.32 s at 25 FPS is a whole number of frames and of access
	// units: such a clip loops without a drift between picture and sound.
	Audio string
}

func (s ClipSpec) withDefaults() ClipSpec {
	s.Codec = cmp.Or(s.Codec, "h264")
	s.FPS = cmp.Or(s.FPS, 25)
	s.GOP = cmp.Or(s.GOP, 2*s.FPS)
	s.Duration = cmp.Or(s.Duration, 8*time.Second)
	s.Size = cmp.Or(s.Size, "320x180")
	return s
}

// args returns ffmpeg's arguments but for the output file, or an error for a
// spec that means nothing.
func (s ClipSpec) args() ([]string, error) {
	seconds := strconv.FormatFloat(s.Duration.Seconds(), 'f', -1, 64)
	// The picture carries a clock and a frame counter, burnt in by testsrc2
	// itself: no font is needed.
	args := []string{"-hide_banner", "-loglevel", "error", "-nostdin", "-y",
		"-f", "lavfi", "-i", fmt.Sprintf("testsrc2=size=%s:rate=%d:duration=%s", s.Size, s.FPS, seconds)}
	switch s.Audio {
	case "aac":
		args = append(args, "-f", "lavfi", "-i", "sine=frequency=440:beep_factor=4:sample_rate=48000:duration="+seconds)
	case "":
	default:
		return nil, fmt.Errorf("audio %q, want aac or none", s.Audio)
	}
	openGOP := 0
	if s.OpenGOP {
		openGOP = 1
	}
	// Keyframes where GOP says and nowhere else; B-frames as many as asked.
	// A fixed number of threads, because the encoders' output depends on it.
	params := fmt.Sprintf("keyint=%d:min-keyint=%d:scenecut=0:bframes=%d:b-adapt=0:open-gop=%d", s.GOP, s.GOP, s.BFrames, openGOP)
	switch s.Codec {
	case "h264":
		args = append(args, "-c:v", "libx264", "-x264-params", params)
	case "h265":
		args = append(args, "-c:v", "libx265", "-x265-params", params+":pools=1:frame-threads=1:log-level=error")
	default:
		return nil, fmt.Errorf("codec %q, want h264 or h265", s.Codec)
	}
	quality := []string{"-crf", "32"}
	if s.Kbps > 0 {
		rate := strconv.Itoa(s.Kbps) + "k"
		quality = []string{"-b:v", rate, "-maxrate", rate, "-bufsize", rate}
	}
	args = append(args, "-preset", "ultrafast")
	args = append(append(args, quality...), "-pix_fmt", "yuv420p", "-threads", "2", "-flags:v", "+bitexact")
	if s.Audio != "" {
		args = append(args, "-c:a", "aac", "-b:a", "64k", "-flags:a", "+bitexact")
	}
	return append(args, "-fflags", "+bitexact", "-muxdelay", "0", "-muxpreload", "0", "-f", "mpegts"), nil
}

// clipLocks keeps two tests of one binary from making the same clip at once.
var clipLocks sync.Map // file name -> *sync.Mutex

// MakeClip returns the path of an MPEG-TS file as spec says, made by ffmpeg.
// Clips are kept in the user's cache directory under a name that is a hash of
// the command, so each is made once; nobody may write to the file.
func MakeClip(t testing.TB, spec ClipSpec) string {
	t.Helper()
	args, err := spec.withDefaults().args()
	if err != nil {
		t.Fatalf("clip: %v", err)
	}
	dir := clipDir(t)
	sum := sha256.Sum256([]byte(strings.Join(args, "\x00")))
	name := filepath.Join(dir, fmt.Sprintf("%x.ts", sum[:8]))
	lock, _ := clipLocks.LoadOrStore(name, new(sync.Mutex))
	lock.(*sync.Mutex).Lock()
	defer lock.(*sync.Mutex).Unlock()
	if _, err := os.Stat(name); err == nil {
		return name
	}
	// Another test binary may be at it too: each writes its own file, the
	// rename is atomic, and all of them are the same.
	tmp, err := os.CreateTemp(dir, "new-*.ts")
	if err != nil {
		t.Fatalf("clip: %v", err)
	}
	tmp.Close()
	defer os.Remove(tmp.Name()) // gone already when all went well
	FFmpeg(t, append(args, tmp.Name())...)
	if err := os.Rename(tmp.Name(), name); err != nil {
		t.Fatalf("clip: %v", err)
	}
	return name
}

func clipDir(t testing.TB) string {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	dir := filepath.Join(base, "vms-test-clips")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatalf("clip: %v", err)
	}
	return dir
}

// FFmpeg runs ffmpeg and returns what it wrote to its standard output. It fails
// t with ffmpeg's own words when ffmpeg does.
func FFmpeg(t testing.TB, args ...string) []byte {
	t.Helper()
	return run(t, "ffmpeg", args...)
}

// FFprobe runs ffprobe like FFmpeg runs ffmpeg.
func FFprobe(t testing.TB, args ...string) []byte {
	t.Helper()
	return run(t, "ffprobe", args...)
}

func run(t testing.TB, program string, args ...string) []byte {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, errs.Bytes())
	}
	return out.Bytes()
}

// FrameMD5 decodes what ffmpeg reads from input (a file or URL) and returns one
// hash per picture or, for kind "a", per audio frame: kind is "v" or "a".
// options go before the input. Timestamps are not part of the hashes.
func FrameMD5(t testing.TB, kind, input string, options ...string) []string {
	t.Helper()
	args := append([]string{"-hide_banner", "-loglevel", "error", "-nostdin"}, options...)
	args = append(args, "-i", input, "-map", "0:"+kind+":0")
	if kind == "v" {
		args = append(args, "-fps_mode", "passthrough") // ffmpeg shall neither double nor drop pictures
	}
	return parseFrameMD5(FFmpeg(t, append(args, "-f", "framemd5", "-")...))
}

// parseFrameMD5 takes the last column of ffmpeg's framemd5 format.
func parseFrameMD5(out []byte) []string {
	var sums []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		sums = append(sums, strings.TrimSpace(line[strings.LastIndexByte(line, ',')+1:]))
	}
	return sums
}
