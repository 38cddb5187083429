package cmaf_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/flac"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4/seekablebuffer"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mp4/codecs"

	"github.com/zipato/vms/pkg/cmaf"
)

// within says how many bytes of a container's body stand before its boxes.
var within = map[string]int{
	"moov": 0, "trak": 0, "mdia": 0, "minf": 0, "dinf": 0, "stbl": 0, "mvex": 0, "dref": 8, "stsd": 8,
	"avc1": 78, "hvc1": 78, "mp4v": 78, "mp4a": 28, "fLaC": 28,
}

// leaves lists every box of b by its path, and calls what stands before the
// boxes of a container its body. Boxes that occur again are numbered.
func leaves(b []byte) (map[string][]byte, []string, error) {
	out, order := map[string][]byte{}, []string(nil)
	var walk func(path string, b []byte) error
	walk = func(path string, b []byte) error {
		for len(b) > 0 {
			if len(b) < 8 || int64(binary.BigEndian.Uint32(b)) > int64(len(b)) || binary.BigEndian.Uint32(b) < 8 {
				return fmt.Errorf("%s: %d bytes where a box should be: % x", path, len(b), b[:min(len(b), 16)])
			}
			size, name := binary.BigEndian.Uint32(b), string(b[4:8])
			body := b[8:size]
			b = b[size:]
			p := path + "/" + name
			for i := 2; out[p] != nil; i++ {
				p = fmt.Sprintf("%s/%s%d", path, name, i)
			}
			order = append(order, p)
			head, container := within[name]
			if !container {
				out[p] = append([]byte{}, body...)
				continue
			}
			if len(body) < head {
				return fmt.Errorf("%s: %d bytes", p, len(body))
			}
			out[p] = append([]byte{}, body[:head]...)
			if err := walk(p, body[head:]); err != nil {
				return err
			}
		}
		return nil
	}
	return out, order, walk("", b)
}

func boxes(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	out, _, err := leaves(b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// find returns the box of this name, which the segment has once.
func find(t testing.TB, segment []byte, name string) []byte {
	t.Helper()
	var found []byte
	for path, body := range boxes(t, segment) {
		if filepath.Base(path) == name {
			if found != nil {
				t.Fatalf("more than one %s", name)
			}
			found = body
		}
	}
	if found == nil {
		t.Fatalf("no %s", name)
	}
	return found
}

func buildInit(t testing.TB, v cmaf.VideoParams, a *cmaf.AudioParams) []byte {
	t.Helper()
	seg, _, err := cmaf.BuildInit(cmaf.Timescale(a), v, a)
	if err != nil {
		t.Fatal(err)
	}
	return seg
}

func h265(sps []byte) cmaf.VideoParams {
	return cmaf.VideoParams{Codec: "h265", VPS: h265VPS, SPS: sps, PPS: h265PPS}
}

func mjpeg() cmaf.VideoParams { return cmaf.VideoParams{Codec: "mjpeg", Width: 640, Height: 480} }

func aac() *cmaf.AudioParams {
	return &cmaf.AudioParams{Config: unhex("1190"), SampleRate: 48000, Channels: 2}
}

// streamInfo is a STREAMINFO as an encoder knows it before the first sample.
func streamInfo(rate, channels, bits int) []byte {
	b, _ := flac.StreamInfo{
		MinBlockSize: 512, MaxBlockSize: 512, SampleRate: uint32(rate), ChannelCount: uint8(channels), BitDepth: uint8(bits),
	}.Marshal()
	return b
}

func flacOf(rate, channels, bits int) *cmaf.AudioParams {
	return &cmaf.AudioParams{Codec: "flac", Config: streamInfo(rate, channels, bits), SampleRate: rate, Channels: channels}
}

// TestInitGolden: an init segment is one name for one sequence of bytes inside an
// epoch, also across a change of the agent. Nothing here may change by accident.
func TestInitGolden(t *testing.T) {
	for name, seg := range map[string][]byte{
		"init-h264-aac":   buildInit(t, h264(), aac()),
		"init-h265":       buildInit(t, h265(h265SPS), nil),
		"init-mjpeg-flac": buildInit(t, mjpeg(), flacOf(8000, 1, 16)),
	} {
		want, err := os.ReadFile(filepath.Join("testdata", "golden", name+".hex"))
		if err != nil {
			t.Error(err)
		}
		if s := wrap(hex.EncodeToString(seg)); s != string(want) {
			t.Errorf("%s: BuildInit gives\n%swant\n%s", name, s, want)
		}
	}
}

// TestInitSaysWhatMediacommonSays: the same boxes in the same order as another
// implementation writes, byte for byte but where ours knows better.
func TestInitSaysWhatMediacommonSays(t *testing.T) {
	cut := func(b []byte, r [2]int) []byte {
		return slices.Concat(b[:min(r[0], len(b))], b[min(r[1], len(b)):])
	}
	// What is left out of the comparison, by offset in the body, and why.
	differs := map[string][2]int{
		"ftyp": {0, 100},  // the brands of fragments with default-base-is-moof, not of HLS
		"mvhd": {96, 100}, // the next track id; theirs says that there is no room
		"tkhd": {34, 36},  // alternate group: no other sound could stand in for ours
		"esds": {0, 1000}, // theirs invents bit rates; see TestEsdsIsWhole
		"hvcC": {0, 1000}, // theirs takes the constraint flags from the wrong place; see TestInitOfRealMedia
		"avcC": {0, 1000}, // theirs has no high profile fields; see there
	}
	conf := mpeg4audio.AudioSpecificConfig{Type: 2, SampleRate: 48000, ChannelConfig: 2}
	var info flac.StreamInfo
	if err := info.Unmarshal(streamInfo(8000, 1, 16)); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		v      cmaf.VideoParams
		a      *cmaf.AudioParams
		theirs []codecs.Codec
	}{
		"h264":       {h264(), nil, []codecs.Codec{&codecs.H264{SPS: h264SPS, PPS: h264PPS}}},
		"h264 aac":   {h264(), aac(), []codecs.Codec{&codecs.H264{SPS: h264SPS, PPS: h264PPS}, &codecs.MPEG4Audio{Config: conf}}},
		"h264 flac":  {h264(), flacOf(8000, 1, 16), []codecs.Codec{&codecs.H264{SPS: h264SPS, PPS: h264PPS}, &codecs.FLAC{StreamInfo: &info}}},
		"h265":       {h265(h265SPS), nil, []codecs.Codec{&codecs.H265{VPS: h265VPS, SPS: h265SPS, PPS: h265PPS}}},
		"mjpeg flac": {mjpeg(), flacOf(8000, 1, 16), []codecs.Codec{&codecs.MJPEG{Width: 640, Height: 480}, &codecs.FLAC{StreamInfo: &info}}},
	} {
		t.Run(name, func(t *testing.T) {
			var init fmp4.Init
			for i, c := range tt.theirs {
				init.Tracks = append(init.Tracks, &fmp4.InitTrack{ID: i + 1, TimeScale: cmaf.Timescale(tt.a), Codec: c})
			}
			var buf seekablebuffer.Buffer
			if err := init.Marshal(&buf); err != nil {
				t.Fatal(err)
			}
			theirs, order, err := leaves(buf.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			ours, got, err := leaves(buildInit(t, tt.v, tt.a))
			if err != nil {
				t.Fatal(err)
			}
			// btrt would be a bit rate that nobody measured.
			order = slices.DeleteFunc(order, func(p string) bool { return filepath.Base(p) == "btrt" })
			if !slices.Equal(got, order) {
				t.Fatalf("boxes\n%v, mediacommon's\n%v", got, order)
			}
			for _, path := range order {
				a, b := ours[path], theirs[path]
				if r, ok := differs[filepath.Base(path)]; ok {
					a, b = cut(a, r), cut(b, r)
				}
				if !bytes.Equal(a, b) {
					t.Errorf("%s\n% x, mediacommon's\n% x", path, a, b)
				}
			}
		})
	}
}

// TestInitReadsBack: mediacommon reads every kind and finds what was put in.
func TestInitReadsBack(t *testing.T) {
	for name, v := range map[string]cmaf.VideoParams{"h264": h264(), "h265": h265(h265SPS), "rext": h265(rextSPS), "mjpeg": mjpeg()} {
		for sound, a := range map[string]*cmaf.AudioParams{
			"none": nil, "aac": aac(), "flac": flacOf(8000, 1, 16), "flac at 96 kHz": flacOf(96000, 8, 24),
		} {
			seg, tracks, err := cmaf.BuildInit(cmaf.Timescale(a), v, a)
			if err != nil {
				t.Fatal(err)
			}
			if err := cmaf.CheckInit(seg); err != nil {
				t.Error(err)
			}
			var init fmp4.Init
			if err := init.Unmarshal(bytes.NewReader(seg)); err != nil {
				t.Fatalf("%s, %s: %v", name, sound, err)
			}
			if len(init.Tracks) != len(tracks) {
				t.Fatalf("%s, %s: %d tracks, want %d", name, sound, len(init.Tracks), len(tracks))
			}
			for i, tr := range init.Tracks {
				if tr.ID != tracks[i].ID || tr.TimeScale != cmaf.Timescale(a) || tracks[i].Timescale != tr.TimeScale {
					t.Errorf("%s, %s: track %+v, said %+v", name, sound, tr, tracks[i])
				}
				if !same(tr.Codec, v, a) {
					t.Errorf("%s, %s: codec %+v", name, sound, tr.Codec)
				}
			}
		}
	}
}

// same reports whether c, as mediacommon read it, is what v or a said.
func same(c codecs.Codec, v cmaf.VideoParams, a *cmaf.AudioParams) bool {
	switch c := c.(type) {
	case *codecs.H264:
		return v.Codec == "h264" && bytes.Equal(c.SPS, v.SPS) && bytes.Equal(c.PPS, v.PPS)
	case *codecs.H265:
		return v.Codec == "h265" && bytes.Equal(c.VPS, v.VPS) && bytes.Equal(c.SPS, v.SPS) && bytes.Equal(c.PPS, v.PPS)
	case *codecs.MJPEG:
		return v.Codec == "mjpeg" && c.Width == v.Width && c.Height == v.Height
	case *codecs.MPEG4Audio:
		var conf mpeg4audio.AudioSpecificConfig
		return a.Codec != "flac" && conf.Unmarshal(a.Config) == nil && c.Config == conf
	case *codecs.FLAC:
		b, err := c.StreamInfo.Marshal()
		return a.Codec == "flac" && err == nil && bytes.Equal(b, a.Config)
	}
	return false
}

// TestAvcCEnds: profiles beyond Main say chroma format and bit depths once more,
// those of which the SPS does not say it too.
func TestAvcCEnds(t *testing.T) {
	for _, tt := range []struct {
		sps  []byte
		tail string // behind the PPS
	}{
		{setOf("6742001f", 0, 0, 2, 1, "0", 19, 19, "1100"), ""},
		{setOf("674d001f", 0, 0, 2, 1, "0", 19, 19, "1100"), ""},
		{setOf("6758001f", 0, 0, 2, 1, "0", 19, 19, "1100"), ""},
		{setOf("6740001f", 0, 0, 2, 1, "0", 19, 19, "1100"), "fdf8f800"}, // no profile of H.264
		{avcSPS(1, 0, 0, 0), "fdf8f800"},
		{avcSPS(2, 2, 6, 0), "fefafe00"},
	} {
		want := slices.Concat([]byte{1}, tt.sps[1:4], []byte{0xff, 0xe1, 0, byte(len(tt.sps))}, tt.sps, []byte{1, 0, byte(len(h264PPS))}, h264PPS, unhex(tt.tail))
		if got := find(t, buildInit(t, cmaf.VideoParams{Codec: "h264", SPS: tt.sps, PPS: h264PPS}, nil), "avcC"); !bytes.Equal(got, want) {
			t.Errorf("avcC\n%x, want\n%x", got, want)
		}
	}
}

// TestEsdsIsWhole: descriptors nest exactly; the configuration is the camera's
// own bytes, also those that mediacommon would not write again.
func TestEsdsIsWhole(t *testing.T) {
	config := unhex("119056e500") // AAC-LC, and a hint at SBR that old decoders skip
	seg := buildInit(t, h264(), &cmaf.AudioParams{Codec: "aac", Config: config, SampleRate: 48000, Channels: 2})
	want := unhex("00000000" + "03808080" + "25" + "000000" + "04808080" + "17" + "4015" + "000000" + "00000000" + "00000000" +
		"05808080" + "05" + "119056e500" + "06808080" + "01" + "02")
	if got := find(t, seg, "esds"); !bytes.Equal(got, want) {
		t.Errorf("esds\n%x, want\n%x", got, want)
	}
	want = unhex("00000000" + "03808080" + "1b" + "000000" + "04808080" + "0d" + "6c11" + "000000" + "00000000" + "00000000" + "06808080" + "01" + "02")
	if got := find(t, buildInit(t, mjpeg(), nil), "esds"); !bytes.Equal(got, want) {
		t.Errorf("esds\n%x, want\n%x", got, want)
	}
}

func TestSampleEntriesSayTheFormat(t *testing.T) {
	be := binary.BigEndian
	for _, tt := range []struct {
		a                    *cmaf.AudioParams
		entry, codec         string
		channels, bits, rate int // as the sample entry says them
	}{
		{aac(), "mp4a", "mp4a.40.2", 2, 16, 48000},
		{&cmaf.AudioParams{Config: unhex("11b8"), SampleRate: 48000, Channels: 8}, "mp4a", "mp4a.40.2", 8, 16, 48000},
		{&cmaf.AudioParams{Config: unhex("1180"), SampleRate: 48000, Channels: 3}, "mp4a", "mp4a.40.2", 3, 16, 48000}, // listed elsewhere
		{&cmaf.AudioParams{Config: unhex("2b098800"), SampleRate: 48000, Channels: 1}, "mp4a", "mp4a.40.5", 1, 16, 24000},
		{&cmaf.AudioParams{Config: unhex("eb098800"), SampleRate: 48000, Channels: 2}, "mp4a", "mp4a.40.29", 1, 16, 24000},
		{flacOf(8000, 1, 16), "fLaC", "flac", 1, 16, 8000},
		{flacOf(44100, 2, 24), "fLaC", "flac", 2, 24, 44100},
		{flacOf(96000, 8, 8), "fLaC", "flac", 8, 8, 48000},
		{flacOf(192000, 1, 32), "fLaC", "flac", 1, 32, 48000},
		{flacOf(65537, 1, 4), "fLaC", "flac", 1, 4, 65535},
	} {
		seg, tracks, err := cmaf.BuildInit(90000, h264(), tt.a)
		if err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		e := find(t, seg, tt.entry)
		if c, b, r := int(be.Uint16(e[16:])), int(be.Uint16(e[18:])), int(be.Uint32(e[24:])); c != tt.channels || b != tt.bits || r != tt.rate<<16 {
			t.Errorf("%s %s: %d channels of %d bits at %d Hz, want %d, %d, %d", tt.entry, tt.codec, c, b, r>>16, tt.channels, tt.bits, tt.rate)
		}
		tr := tracks[1]
		if tr.Codec != tt.codec || tr.SampleRate != tt.a.SampleRate || tr.Channels != tt.a.Channels || tr.Kind != "audio" || tr.ID != cmaf.AudioTrack {
			t.Errorf("track %+v, want codec %s", tr, tt.codec)
		}
	}
	_, tracks, err := cmaf.BuildInit(90000, mjpeg(), nil)
	if err != nil || tracks[0].Codec != "mp4v.6C" || tracks[0].Width != 640 || tracks[0].Height != 480 {
		t.Errorf("MJPEG: track %+v, %v", tracks, err)
	}
}
