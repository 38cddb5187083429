package flac

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/flactest"
)

// encode makes frames of the sizes given, the last one again and again.
func encode(t testing.TB, e *Encoder, pcm []int32, sizes ...int) []byte {
	t.Helper()
	var out []byte
	for len(pcm) > 0 {
		n := min(sizes[0]*e.channels, len(pcm))
		was := len(out)
		out = e.Frame(out, pcm[:n])
		if most := (n*e.bits+7)/8 + 24 + 3*e.channels; len(out)-was > most {
			t.Errorf("a frame of %d values takes %d bytes, want at most %d", n, len(out)-was, most)
		}
		if pcm = pcm[n:]; len(sizes) > 1 {
			sizes = sizes[1:]
		}
	}
	return out
}

func decoderOf(t testing.TB, e *Encoder) *flactest.Decoder {
	t.Helper()
	d, err := flactest.New(e.StreamInfo())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// sounds are samples of one channel of so many bits.
var sounds = map[string]func(bits int, i int, rnd *rand.Rand) int32{
	"silence":     func(int, int, *rand.Rand) int32 { return 0 },
	"one value":   func(bits, _ int, _ *rand.Rand) int32 { return -1 << (bits - 1) },
	"least noise": func(_, _ int, rnd *rand.Rand) int32 { return int32(rnd.IntN(3) - 1) },
	"white noise": func(bits, _ int, rnd *rand.Rand) int32 { return int32(rnd.Uint32()) >> (32 - bits) },
	"tone": func(bits, i int, _ *rand.Rand) int32 {
		return int32(math.Sin(float64(i)/17) * float64(int32(1)<<(bits-1)-1))
	},
	"ramp": func(bits, i int, _ *rand.Rand) int32 { return int32(i) << 12 << (32 - bits) >> (32 - bits) },
	"edges": func(bits, i int, _ *rand.Rand) int32 {
		return []int32{-1 << (bits - 1), 1<<(bits-1) - 1}[i&1]
	},
	"wasted": func(bits, _ int, rnd *rand.Rand) int32 { return int32(rnd.Uint32()) >> (32 - bits) &^ 0x3f },
	"word then silence": func(bits, i int, rnd *rand.Rand) int32 {
		if i/100%5 > 0 {
			return int32(rnd.IntN(4))
		}
		return int32(rnd.Uint32()) >> (33 - bits)
	},
	"cubic": func(bits, i int, _ *rand.Rand) int32 {
		x := float64(i%256-128) / 128
		return int32(x * x * x * float64(int32(1)<<(bits-1)-1))
	},
}

func make1(kind string, bits, n, channels int) []int32 {
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	pcm := make([]int32, n*channels)
	for i := range pcm {
		pcm[i] = sounds[kind](bits, i/channels+i%channels*1000, rnd)
	}
	return pcm
}

func TestFramesAreExact(t *testing.T) {
	seen := map[string]int{}
	for kind := range sounds {
		for _, bits := range []int{8, 13, 16, 24} {
			for _, tt := range []struct{ rate, channels int }{{8000, 1}, {11025, 2}, {44100, 1}, {48000, 8}, {192000, 1}, {250010, 1}, {1, 1}} {
				e, err := NewEncoder(tt.rate, tt.channels, bits)
				if err != nil {
					t.Fatal(err)
				}
				d := decoderOf(t, e)
				d.Kinds = seen
				b := e.Block()
				n := min(5*b/2, 10_000/tt.channels)
				pcm := make1(kind, bits, max(n, b), tt.channels)
				got, err := d.Frames(encode(t, e, pcm, 16, 1, min(300, b), 5, b-1, 64, b))
				if err != nil || !slices.Equal(got, pcm) {
					t.Errorf("%s of %d bits at %d Hz, %d channels: %v", kind, bits, tt.rate, tt.channels, err)
				}
			}
		}
	}
	for _, kind := range []string{"constant", "verbatim", "fixed 0", "fixed 1", "fixed 2", "fixed 3", "fixed 4", "wasted bits", "partitions", "wide parameters"} {
		if seen[kind] == 0 {
			t.Errorf("no %s in all of it: nothing tests them", kind)
		}
	}
}

// TestLongStreams: the number of a sample takes up to seven bytes, and starts
// over when those are not enough.
func TestLongStreams(t *testing.T) {
	for _, at := range []uint64{0, 0x7f, 0x80, 0x7ff, 0x800, 0xffff, 0x10000, 0x1fffff, 0x200000, 0x3ffffff, 0x4000000, 0x7fffffff, 0x80000000, 1<<36 - 1, 1 << 36, 1<<40 + 5} {
		e, _ := NewEncoder(8000, 1, 16)
		e.next = at
		d := decoderOf(t, e)
		d.Next = int64(at & (1<<36 - 1))
		if _, err := d.Frames(encode(t, e, make1("tone", 16, 512, 1), 512)); err != nil {
			t.Errorf("at sample %d: %v", at, err)
		}
	}
}

func TestBlocksAreOf64Milliseconds(t *testing.T) {
	for rate, want := range map[int]int{1: 64, 4000: 256, 8000: 512, 11025: 512, 16000: 1024, 32000: 2048, 44100: 2048, 48000: 2048, 96000: 4096} {
		e, err := NewEncoder(rate, 1, 16)
		if err != nil || e.Block() != want {
			t.Errorf("%d Hz: %v, blocks of %d, want %d", rate, err, e.Block(), want)
		}
	}
}

func TestNewEncoderRefusesWhatFLACHasNot(t *testing.T) {
	for _, bad := range [][3]int{{0, 1, 16}, {-8000, 1, 16}, {655_351, 1, 16}, {8000, 0, 16}, {8000, 9, 16}, {8000, 1, 7}, {8000, 1, 25}} {
		if _, err := NewEncoder(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%d Hz, %d channels, %d bits are taken", bad[0], bad[1], bad[2])
		}
	}
}

// TestFramesAllocateNothing, and hold no more than PCM: a hub has many to make.
func TestFramesAllocateNothing(t *testing.T) {
	e, _ := NewEncoder(48000, 2, 24)
	for kind := range sounds {
		pcm := make1(kind, 24, e.Block(), 2)
		dst := make([]byte, 0, len(pcm)*3+24+6)
		if n := testing.AllocsPerRun(5, func() { e.Frame(dst, pcm) }); n > 0 {
			t.Errorf("%s: %v allocations a frame", kind, n)
		}
	}
}

// file is a FLAC file.
func file(e *Encoder, frames []byte) []byte {
	return slices.Concat([]byte("fLaC\x80\x00\x00\x22"), e.StreamInfo(), frames)
}

// TestOthersDecodeIt: ffmpeg's decoder, which browsers have too, finds every
// sample, also behind short frames.
func TestOthersDecodeIt(t *testing.T) {
	if _, err := exec.LookPath("ffmpeg"); err != nil {
		t.Skip("ffmpeg is not installed: nobody else decodes what is encoded")
	}
	for _, tt := range []struct{ rate, channels, bits int }{{8000, 1, 16}, {16000, 2, 16}, {48000, 2, 24}, {44100, 6, 16}, {96001, 1, 16}} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			t.Parallel()
			e, err := NewEncoder(tt.rate, tt.channels, tt.bits)
			if err != nil {
				t.Fatal(err)
			}
			var pcm []int32
			for _, kind := range []string{"silence", "tone", "white noise", "word then silence", "wasted", "edges", "cubic", "one value", "least noise"} {
				pcm = append(pcm, make1(kind, tt.bits, 3*e.Block()+100, tt.channels)...)
			}
			b := e.Block()
			name := filepath.Join(t.TempDir(), "x.flac")
			if err := os.WriteFile(name, file(e, encode(t, e, pcm, b, b, 100, b, b-1, 16, 257, b)), 0o600); err != nil {
				t.Fatal(err)
			}
			format, want := "s16le", []byte(nil)
			for _, v := range pcm {
				if tt.bits == 16 {
					want = binary.LittleEndian.AppendUint16(want, uint16(v))
				} else {
					format = "s24le"
					want = append(want, byte(v), byte(v>>8), byte(v>>16))
				}
			}
			got := vmstest.FFmpeg(t, "-v", "warning", "-xerror", "-i", name, "-f", format, "-")
			if !bytes.Equal(got, want) {
				t.Errorf("ffmpeg decodes %d bytes, want %d", len(got), len(want))
			}
			if words := vmstest.FFprobe(t, "-v", "warning", "-show_entries", "stream=codec_name,sample_rate,channels,bits_per_raw_sample", "-of", "csv=p=0", name); strings.TrimSpace(string(words)) != fmt.Sprintf("flac,%d,%d,%d", tt.rate, tt.channels, tt.bits) {
				t.Errorf("ffprobe: %s", words)
			}
		})
	}
}

// FuzzFrame: whatever the samples are, they come back.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x01\x00\x02\x00\x04"), uint16(8000), uint8(0), uint8(16))
	f.Add(bytes.Repeat([]byte{0xff, 0x7f, 0x00, 0x80}, 300), uint16(44100), uint8(1), uint8(24))
	f.Add(bytes.Repeat([]byte{0, 1, 0, 1, 0x40}, 200), uint16(16000), uint8(2), uint8(8))
	f.Fuzz(func(t *testing.T, data []byte, rate uint16, channels, bits uint8) {
		e, err := NewEncoder(int(rate), int(channels%8)+1, int(bits%17)+8)
		if err != nil || len(data) > 1<<14 {
			return
		}
		pcm := make([]int32, 0, len(data))
		for ; len(data) > 3; data = data[3:] {
			v := int32(data[0])<<24 | int32(data[1])<<16 | int32(data[2])<<8
			pcm = append(pcm, v>>(32-e.bits))
		}
		pcm = pcm[:len(pcm)/e.channels*e.channels]
		b := e.Block()
		got, err := decoderOf(t, e).Frames(encode(t, e, pcm, 1+len(pcm)%b, b))
		if err != nil || !slices.Equal(got, pcm) {
			t.Errorf("%d values of %d channels, %d bits: %v", len(pcm), e.channels, e.bits, err)
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	for _, tt := range []struct {
		name                 string
		rate, channels, bits int
		kind                 string
	}{{"G711", 8000, 1, 16, "word then silence"}, {"L16 stereo", 48000, 2, 16, "tone"}} {
		b.Run(tt.name, func(b *testing.B) {
			e, _ := NewEncoder(tt.rate, tt.channels, tt.bits)
			pcm := make1(tt.kind, tt.bits, e.Block(), tt.channels)
			var dst []byte
			b.ReportAllocs()
			for b.Loop() {
				dst = e.Frame(dst[:0], pcm)
			}
			seconds := float64(b.N) * float64(e.Block()) / float64(tt.rate)
			b.ReportMetric(float64(b.Elapsed().Microseconds())/seconds, "µs/s-of-sound")
			b.ReportMetric(float64(len(dst))/float64(len(pcm)*tt.bits/8), "size/PCM")
		})
	}
}
