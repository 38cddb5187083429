package vmstest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
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

// OnlyFirst as a ClipSpec's GOP: no keyframe after the first picture.
const OnlyFirst = -1

// ClipSpec says what MakeClip and MakeSound make, and what camtest.Clip makes of
// it. Zero fields take the defaults named, so ClipSpec{} is a plain camera
// without sound.
type ClipSpec struct {
	Codec    string        // "h264" (the default), "h265" or "mjpeg"
	BFrames  int           // B-frames between two others, 0 for none
	OpenGOP  bool          // keyframes after the first are no IDR, and pictures lead them
	GOP      int           // frames from keyframe to keyframe, or OnlyFirst; 2 s by default
	FPS      int           // 25 by default
	Duration time.Duration // 8 s by default
	// Size is "WIDTHxHEIGHT", "320x180" by default. Of mjpeg it is "320x176": a
	// size that is no multiple of 16, or larger than 2040, is refused, because
	// RTP carries no other (RFC 2435, section 3.1).
	Size string
	Kbps int // of the picture, about; as the picture needs by default

	// Audio is "aac", "pcma" or "pcmu" (G711 A-law or mu-law), "lpcm", or empty.
	// AAC is always mono of 48 kHz, where an access unit of 1024 samples is a
	// whole number of 90 kHz ticks. A duration that is a multiple of 0.32 s at
	// 25 FPS is a whole number of frames and of access units (and one that is a
	// multiple of 20 ms, of PCM packets): such a clip loops without a drift
	// between picture and sound.
	Audio string
	// Of pcma, pcmu and lpcm.
	SampleRate int // 8000 by default, 16000 for lpcm
	Channels   int // 1 by default
	BitDepth   int // of lpcm: 8, 16 (the default) or 24

	// Quiet are the times in which the camera sends no sound at all, since the
	// clip's beginning and again in each round of a loop. It does not change
	// what MakeClip and MakeSound make.
	Quiet []Span
	// Then is played right behind, in the same RTSP session: another size, GOP
	// or the like. Codec and sound must be of the same kind. MakeClip and
	// MakeSound leave it out: it is a clip of its own.
	Then *ClipSpec
}

// Span is a part of a clip, without its end.
type Span struct{ From, To time.Duration }

// pcm reports whether the sound is PCM, which lies in a file of its own.
func (s ClipSpec) pcm() bool { return s.Audio == "pcma" || s.Audio == "pcmu" || s.Audio == "lpcm" }

func (s ClipSpec) withDefaults() ClipSpec {
	s.Codec = cmp.Or(s.Codec, "h264")
	s.FPS = cmp.Or(s.FPS, 25)
	s.GOP = cmp.Or(s.GOP, 2*s.FPS)
	s.Duration = cmp.Or(s.Duration, 8*time.Second)
	if s.Codec == "mjpeg" {
		s.Size = cmp.Or(s.Size, "320x176")
	}
	s.Size = cmp.Or(s.Size, "320x180")
	s.Channels = cmp.Or(s.Channels, 1)
	if s.Audio == "lpcm" {
		s.SampleRate, s.BitDepth = cmp.Or(s.SampleRate, 16000), cmp.Or(s.BitDepth, 16)
	}
	s.SampleRate = cmp.Or(s.SampleRate, 8000)
	return s
}

func (s ClipSpec) seconds() string { return strconv.FormatFloat(s.Duration.Seconds(), 'f', -1, 64) }

// quietly are the arguments that every run of ffmpeg begins with.
func quietly() []string {
	return []string{"-hide_banner", "-loglevel", "error", "-nostdin", "-y"}
}

// args returns ffmpeg's arguments for the picture (and AAC) but for the output
// file, or an error for a spec that means nothing.
func (s ClipSpec) args() ([]string, error) {
	// The picture carries a clock and a frame counter, burnt in by testsrc2
	// itself: no font is needed.
	args := append(quietly(),
		"-f", "lavfi", "-i", fmt.Sprintf("testsrc2=size=%s:rate=%d:duration=%s", s.Size, s.FPS, s.seconds()))
	switch {
	case s.Audio == "aac" && s.Codec != "mjpeg":
		args = append(args, "-f", "lavfi", "-i", "sine=frequency=440:beep_factor=4:sample_rate=48000:duration="+s.seconds())
	case s.Audio == "aac":
		return nil, errors.New("mjpeg with aac: the picture's file has no room for it, want pcma, pcmu, lpcm or none")
	case s.Audio == "" || s.pcm():
	default:
		return nil, fmt.Errorf("audio %q, want aac, pcma, pcmu, lpcm or none", s.Audio)
	}
	codec, err := s.codecArgs()
	if err != nil {
		return nil, err
	}
	args = append(args, codec...)
	if s.Audio == "aac" {
		args = append(args, "-c:a", "aac", "-b:a", "64k", "-flags:a", "+bitexact")
	}
	args = append(args, "-fflags", "+bitexact")
	if s.Codec == "mjpeg" {
		return append(args, "-f", "mjpeg"), nil
	}
	return append(args, "-muxdelay", "0", "-muxpreload", "0", "-f", "mpegts"), nil
}

// codecArgs are those for the picture's encoder.
func (s ClipSpec) codecArgs() ([]string, error) {
	openGOP := 0
	if s.OpenGOP {
		openGOP = 1
	}
	gop := s.GOP
	if gop < 0 {
		gop = int(s.Duration.Seconds()*float64(s.FPS)) + 1
	}
	// Keyframes where GOP says and nowhere else; B-frames as many as asked.
	// A fixed number of threads, because the encoders' output depends on it.
	params := fmt.Sprintf("keyint=%d:min-keyint=%d:scenecut=0:bframes=%d:b-adapt=0:open-gop=%d", gop, gop, s.BFrames, openGOP)
	quality := []string{"-crf", "32"}
	if s.Kbps > 0 {
		rate := strconv.Itoa(s.Kbps) + "k"
		quality = []string{"-b:v", rate, "-maxrate", rate, "-bufsize", rate}
	}
	var args []string
	switch s.Codec {
	case "h264":
		args = append(args, "-c:v", "libx264", "-x264-params", params)
	case "h265":
		args = append(args, "-c:v", "libx265", "-x265-params", params+":pools=1:frame-threads=1:log-level=error")
	case "mjpeg":
		return s.jpegArgs()
	default:
		return nil, fmt.Errorf("codec %q, want h264, h265 or mjpeg", s.Codec)
	}
	args = append(append(args, "-preset", "ultrafast"), quality...)
	return append(args, "-pix_fmt", "yuv420p", "-threads", "2", "-flags:v", "+bitexact"), nil
}

// jpegArgs make pictures that RTP can carry: baseline, with the Huffman tables
// of the standard, of whole blocks. More than one thread would mean restart
// markers.
func (s ClipSpec) jpegArgs() ([]string, error) {
	var w, h int
	if n, err := fmt.Sscanf(s.Size, "%dx%d", &w, &h); n != 2 || err != nil || w%16 != 0 || h%16 != 0 || w > 2040 || h > 2040 {
		return nil, fmt.Errorf("size %q of mjpeg, want multiples of 16 up to 2032", s.Size)
	}
	args := []string{"-c:v", "mjpeg", "-huffman", "default"}
	if s.Kbps > 0 {
		args = append(args, "-b:v", strconv.Itoa(s.Kbps)+"k")
	} else {
		args = append(args, "-q:v", "6")
	}
	return append(args, "-pix_fmt", "yuvj420p", "-threads", "1", "-flags:v", "+bitexact"), nil
}

// soundArgs returns ffmpeg's arguments for PCM but for the output file.
func (s ClipSpec) soundArgs() ([]string, error) {
	codec, ok := map[string]string{
		"pcma": "pcm_alaw", "pcmu": "pcm_mulaw",
		"lpcm 8": "pcm_u8", "lpcm 16": "pcm_s16le", "lpcm 24": "pcm_s24le",
	}[s.Audio+depth(s)]
	if !ok || s.Channels < 1 || s.Channels > 2 {
		return nil, fmt.Errorf("audio %q of %d bits and %d channels, want pcma, pcmu or lpcm of 8, 16 or 24 bits, and 1 or 2 channels",
			s.Audio, s.BitDepth, s.Channels)
	}
	// A tone that rises through the whole clip, so that no two packets are
	// alike, and a little noise, so that every bit of a sample is in use.
	tone := func(from, step int) string {
		return fmt.Sprintf("0.5*sin(2*PI*(%d+%d*t)*t)+0.05*(random(%d)-0.5)", from, step, from)
	}
	exprs, layout := tone(300, 25), "mono"
	if s.Channels == 2 {
		exprs, layout = exprs+"|"+tone(500, 35), "stereo"
	}
	return append(quietly(),
		"-f", "lavfi", "-i", fmt.Sprintf("aevalsrc=exprs='%s':channel_layout=%s:sample_rate=%d:duration=%s", exprs, layout, s.SampleRate, s.seconds()),
		"-c:a", codec, "-flags:a", "+bitexact", "-fflags", "+bitexact", "-f", "wav"), nil
}

func depth(s ClipSpec) string {
	if s.Audio == "lpcm" {
		return fmt.Sprintf(" %d", s.BitDepth)
	}
	return ""
}

// clipLocks keeps two tests of one binary from making the same clip at once.
var clipLocks sync.Map // file name -> *sync.Mutex

// MakeClip returns the path of a file with the picture, and AAC, as spec says,
// made by ffmpeg: MPEG-TS, or for mjpeg one JPEG file behind the other (what
// FrameMD5 reads too). Clips are kept in the user's cache directory under a name
// that is a hash of the command, so each is made once; nobody may write to the
// file.
func MakeClip(t testing.TB, spec ClipSpec) string {
	t.Helper()
	spec = spec.withDefaults()
	args, err := spec.args()
	if err != nil {
		t.Fatalf("clip: %v", err)
	}
	if spec.Codec == "mjpeg" {
		return makeFile(t, ".mjpeg", args)
	}
	return makeFile(t, ".ts", args)
}

// MakeSound returns the path of a WAV file with the PCM sound of spec, kept as
// clips are: G711 and LPCM exactly as the camera sends it, but for the order of
// bytes, so that ffmpeg's decoder is a second opinion on every sample.
func MakeSound(t testing.TB, spec ClipSpec) string {
	t.Helper()
	args, err := spec.withDefaults().soundArgs()
	if err != nil {
		t.Fatalf("sound: %v", err)
	}
	return makeFile(t, ".wav", args)
}

// makeFile runs ffmpeg unless what it would make is there.
func makeFile(t testing.TB, suffix string, args []string) string {
	t.Helper()
	dir := clipDir(t)
	sum := sha256.Sum256([]byte(strings.Join(args, "\x00")))
	name := filepath.Join(dir, fmt.Sprintf("%x%s", sum[:8], suffix))
	lock, _ := clipLocks.LoadOrStore(name, new(sync.Mutex))
	lock.(*sync.Mutex).Lock()
	defer lock.(*sync.Mutex).Unlock()
	if _, err := os.Stat(name); err == nil {
		return name
	}
	// Another test binary may be at it too: each writes its own file, the
	// rename is atomic, and all of them are the same.
	tmp, err := os.CreateTemp(dir, "new-*"+suffix)
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
