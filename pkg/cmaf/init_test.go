package cmaf_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
)

func isInvalid(err error) bool { return errors.Is(err, cmaf.ErrInvalid) }

func first[A, B any](a A, _ B) A { return a }

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// Parameter sets as encoders write them: x264 (High, 1280x720, level 3.1),
// x265 (Main, 320x180, and Main 4:2:2 10).
var (
	h264SPS = unhex("6764001facb402802dd808800000030080000019078c1950")
	h264PPS = unhex("68ee0fcb")
	h265VPS = unhex("40010c01ffff01600000030090000003000003003c959409")
	h265SPS = unhex("42010101600000030090000003000003003ca00a080c1f3e595952930bc05a0200000300020000030032" + "10")
	h265PPS = unhex("4401c073c189")
	rextSPS = unhex("4201010408000003009d0800000300003cb00a080c1f1ad965654a4c2f016808000003000800000300c840")
)

func h264() cmaf.VideoParams { return cmaf.VideoParams{Codec: "h264", SPS: h264SPS, PPS: h264PPS} }

func TestTimescale(t *testing.T) {
	for rate, want := range map[int]uint32{
		-1: 90000, 0: 90000, 8000: 360000, 11025: 4410000, 16000: 720000, 22050: 4410000, 24000: 360000, 32000: 1440000,
		44100: 4410000, 48000: 720000, 96000: 1440000, 90000: 90000,
		48001: 90000, 1 << 30: 90000, // no codec's: exactness is given up, not the recording
	} {
		got := cmaf.Timescale(&cmaf.AudioParams{SampleRate: rate})
		if got != want {
			t.Errorf("Timescale(%d) = %d, want %d", rate, got, want)
		}
		if rate >= 8000 && rate <= 96000 && rate != 48001 && (got%90000 != 0 || got%uint32(rate) != 0) {
			t.Errorf("Timescale(%d) = %d is no multiple of both clocks", rate, got)
		}
	}
	if got := cmaf.Timescale(nil); got != 90000 {
		t.Errorf("Timescale without sound = %d", got)
	}
}

func TestBuildInit(t *testing.T) {
	seg, tracks, err := cmaf.BuildInit(720000, h264(), aac())
	if err != nil {
		t.Fatal(err)
	}
	want := []vms.Track{
		{ID: 1, Kind: "video", Codec: "avc1.64001f", Timescale: 720000, Width: 1280, Height: 720},
		{ID: 2, Kind: "audio", Codec: "mp4a.40.2", Timescale: 720000, SampleRate: 48000, Channels: 2},
	}
	if !slices.Equal(tracks, want) {
		t.Errorf("tracks %+v, want %+v", tracks, want)
	}
	if m := cmaf.MIME(tracks); m != `video/mp4; codecs="avc1.64001f,mp4a.40.2"` {
		t.Errorf("MIME = %s", m)
	}
	again, _, _ := cmaf.BuildInit(720000, h264(), aac())
	if !bytes.Equal(seg, again) {
		t.Error("the same parameters gave another init")
	}
}

func TestVideoParamsEqual(t *testing.T) {
	base := cmaf.VideoParams{Codec: "h265", VPS: []byte{1}, SPS: []byte{2}, PPS: []byte{3}, Width: 4, Height: 5}
	same := base
	same.SPS = bytes.Clone(base.SPS)
	if !base.Equal(same) {
		t.Error("equal parameters are not Equal")
	}
	for name, edit := range map[string]func(*cmaf.VideoParams){
		"codec": func(v *cmaf.VideoParams) { v.Codec = "h264" }, "VPS": func(v *cmaf.VideoParams) { v.VPS = nil },
		"SPS": func(v *cmaf.VideoParams) { v.SPS = nil }, "PPS": func(v *cmaf.VideoParams) { v.PPS = nil },
		"width": func(v *cmaf.VideoParams) { v.Width++ }, "height": func(v *cmaf.VideoParams) { v.Height++ },
	} {
		other := base
		edit(&other)
		if base.Equal(other) || other.Equal(base) {
			t.Errorf("another %s is Equal", name)
		}
	}
}

func TestHEVCCodecString(t *testing.T) {
	_, tracks, err := cmaf.BuildInit(90000, cmaf.VideoParams{Codec: "h265", VPS: h265VPS, SPS: h265SPS, PPS: h265PPS}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if tracks[0].Codec != "hvc1.1.6.L60.90" {
		t.Errorf("codec %s, want hvc1.1.6.L60.90", tracks[0].Codec)
	}
	_, tracks, err = cmaf.BuildInit(90000, cmaf.VideoParams{Codec: "h265", VPS: h265VPS, SPS: rextSPS, PPS: h265PPS}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if tracks[0].Codec != "hvc1.4.10.L60.9D.08" { // all constraint bytes up to the last that is not zero
		t.Errorf("codec %s, want hvc1.4.10.L60.9D.08", tracks[0].Codec)
	}
	// Level 3.1 of the same stream: only the level byte differs.
	sps := bytes.Clone(h265SPS)
	sps[bytes.IndexByte(sps, 0x3c)] = 0x5d
	_, tracks, err = cmaf.BuildInit(90000, cmaf.VideoParams{Codec: "h265", VPS: h265VPS, SPS: sps, PPS: h265PPS}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if tracks[0].Codec != "hvc1.1.6.L93.90" {
		t.Errorf("codec %s, want hvc1.1.6.L93.90", tracks[0].Codec)
	}
}

// setOf is a parameter set: bytes in hexadecimal, then a flag for each "0" and
// "1", then a stop bit. A number is an Exp-Golomb code (ITU-T H.264, 9.1).
func setOf(head string, fields ...any) []byte {
	s := ""
	for _, f := range fields {
		switch f := f.(type) {
		case string:
			s += f
		case int:
			code := strconv.FormatInt(int64(f)+1, 2)
			s += strings.Repeat("0", len(code)-1) + code
		}
	}
	s += "1"
	b := unhex(head)
	for ; len(s)%8 != 0; s += "0" {
	}
	for i := 0; i < len(s); i += 8 {
		v, err := strconv.ParseUint(s[i:i+8], 2, 8)
		if err != nil {
			panic(err)
		}
		b = append(b, byte(v))
	}
	return b
}

// avcSPS is one of High profile and 320 x 320 pixels, less crop pairs of columns.
func avcSPS(chroma, luma, chromaDepth, crop int) []byte {
	return setOf("6764001f", 0, chroma, luma, chromaDepth, "00", 0, 2, 1, "0", 19, 19, "11", "1", crop, 0, 0, 0, "0")
}

// hevcSPS is one of 320 x 320 pixels.
func hevcSPS(luma, chroma int) []byte {
	return setOf("420101"+"04ffffffffffffffffffff5d", 0, 1, 320, 320, "0", luma, chroma, 0, "1", 0, 0, 0, 0, 0, 0, 0, 0, 0, "0000", 0, "0000")
}

// TestBuildInitTakesCraftedSets: the broken ones below differ from these in one thing.
func TestBuildInitTakesCraftedSets(t *testing.T) {
	for want, v := range map[string]cmaf.VideoParams{
		"avc1.64001f":                           {Codec: "h264", SPS: avcSPS(2, 6, 6, 10), PPS: h264PPS},
		"hvc1.4.FFFFFFFF.L93.FF.FF.FF.FF.FF.FF": {Codec: "h265", VPS: h265VPS, SPS: hevcSPS(7, 7), PPS: h265PPS},
	} {
		seg, tracks, err := cmaf.BuildInit(90000, v, nil)
		if err != nil {
			t.Error(err)
			continue
		}
		if tr := tracks[0]; tr.Codec != want || tr.Height != 320 || tr.Width != 320 && tr.Width != 300 {
			t.Errorf("track %+v, want %s", tr, want)
		}
		checkBuilt(t, seg, tracks, v, nil)
	}
}

func TestBuildInitRefusesPictures(t *testing.T) {
	long := func(set []byte) []byte { return append(bytes.Clone(set), make([]byte, 1<<16)...) }
	sets := func(vps, sps, pps []byte) cmaf.VideoParams {
		return cmaf.VideoParams{Codec: "h265", VPS: vps, SPS: sps, PPS: pps}
	}
	for name, v := range map[string]cmaf.VideoParams{
		"no codec":             {},
		"another codec":        {Codec: "h266", VPS: h265VPS, SPS: h265SPS, PPS: h265PPS},
		"MJPEG without size":   {Codec: "mjpeg"},
		"MJPEG without height": {Codec: "mjpeg", Width: 640},
		"MJPEG without width":  {Codec: "mjpeg", Height: 480},
		"MJPEG negative":       {Codec: "mjpeg", Width: -640, Height: 480},
		"MJPEG too wide":       {Codec: "mjpeg", Width: 1 << 16, Height: 480},
		"MJPEG too high":       {Codec: "mjpeg", Width: 640, Height: 1 << 16},
		"H264 without SPS":     {Codec: "h264", PPS: h264PPS},
		"H264 without PPS":     {Codec: "h264", SPS: h264SPS},
		"H264 PPS for SPS":     {Codec: "h264", SPS: h264PPS, PPS: h264PPS},
		"H264 SPS for PPS":     {Codec: "h264", SPS: h264SPS, PPS: h264SPS},
		"H264 PPS of a byte":   {Codec: "h264", SPS: h264SPS, PPS: h264PPS[:1]},
		"H264 SPS cut":         {Codec: "h264", SPS: h264SPS[:4], PPS: h264PPS},
		"H264 long SPS":        {Codec: "h264", SPS: long(h264SPS), PPS: h264PPS},
		"H264 long PPS":        {Codec: "h264", SPS: h264SPS, PPS: long(h264PPS)},
		"H264 of 16 bits":      {Codec: "h264", SPS: avcSPS(1, 8, 0, 0), PPS: h264PPS},
		"H264 chroma, 15 bits": {Codec: "h264", SPS: avcSPS(1, 0, 7, 0), PPS: h264PPS},
		"H264 chroma format":   {Codec: "h264", SPS: avcSPS(4, 0, 0, 0), PPS: h264PPS},
		"H264 cropped away":    {Codec: "h264", SPS: avcSPS(1, 0, 0, 160), PPS: h264PPS},
		"H264 cropped too far": {Codec: "h264", SPS: avcSPS(1, 0, 0, 161), PPS: h264PPS},
		"H265 of 16 bits":      sets(h265VPS, hevcSPS(8, 0), h265PPS),
		"H265 chroma, 16 bits": sets(h265VPS, hevcSPS(0, 8), h265PPS),
		"H265 without VPS":     sets(nil, h265SPS, h265PPS),
		"H265 without SPS":     sets(h265VPS, nil, h265PPS),
		"H265 without PPS":     sets(h265VPS, h265SPS, nil),
		"H265 SPS for VPS":     sets(h265SPS, h265SPS, h265PPS),
		"H265 VPS for PPS":     sets(h265VPS, h265SPS, h265VPS),
		"H265 SPS cut":         sets(h265VPS, h265SPS[:9], h265PPS),
		"H265 long VPS":        sets(long(h265VPS), h265SPS, h265PPS),
		"H265 long SPS":        sets(h265VPS, long(h265SPS), h265PPS),
		"H265 long PPS":        sets(h265VPS, h265SPS, long(h265PPS)),
		"H264 sets with H265":  sets(h264SPS, h264SPS, h264PPS),
	} {
		t.Run(name, func(t *testing.T) {
			if _, tracks, err := cmaf.BuildInit(90000, v, nil); err == nil {
				t.Errorf("BuildInit took it: %+v", tracks)
			}
		})
	}
	if _, _, err := cmaf.BuildInit(0, h264(), nil); err == nil {
		t.Error("BuildInit took a timescale of zero")
	}
}

func TestBuildInitRefusesSound(t *testing.T) {
	flacWith := func(edit func(*cmaf.AudioParams)) *cmaf.AudioParams {
		a := flacOf(8000, 1, 16)
		edit(a)
		return a
	}
	for name, a := range map[string]*cmaf.AudioParams{
		"AAC without configuration": {},
		"AAC cut":                   {Config: []byte{0x11}},
		"AAC of another type":       {Config: unhex("0990")},
		"AAC without channels":      {Config: unhex("1180"), SampleRate: 48000},
		"AAC of 300 channels":       {Config: unhex("1180"), SampleRate: 48000, Channels: 300},
		"AAC of a kilobyte":         {Config: append(unhex("1190"), make([]byte, 1024)...)},
		"another codec":             {Codec: "opus", Config: unhex("1190"), SampleRate: 48000, Channels: 2},
		"G711":                      {Codec: "pcma", SampleRate: 8000, Channels: 1},
		"FLAC without stream info":  {Codec: "flac", SampleRate: 8000, Channels: 1},
		"FLAC cut":                  flacWith(func(a *cmaf.AudioParams) { a.Config = a.Config[:33] }),
		"FLAC and more":             flacWith(func(a *cmaf.AudioParams) { a.Config = append(a.Config, 0) }),
		"FLAC, another rate":        flacWith(func(a *cmaf.AudioParams) { a.SampleRate = 16000 }),
		"FLAC, other channels":      flacWith(func(a *cmaf.AudioParams) { a.Channels = 2 }),
		"FLAC of 3 bits":            flacOf(8000, 1, 3),
		"FLAC without a rate":       flacOf(0, 1, 16),
		"FLAC, blocks of 15":        flacWith(func(a *cmaf.AudioParams) { copy(a.Config, unhex("000f0200")) }),
		"FLAC, blocks upside down":  flacWith(func(a *cmaf.AudioParams) { copy(a.Config, unhex("020001ff")) }),
	} {
		t.Run(name, func(t *testing.T) {
			if _, tracks, err := cmaf.BuildInit(90000, h264(), a); err == nil {
				t.Errorf("BuildInit took it: %+v", tracks)
			}
		})
	}
}

// checkBuilt fails t unless seg is whole, nests exactly, and is read back by
// another implementation as what was put in.
func checkBuilt(t *testing.T, seg []byte, tracks []vms.Track, v cmaf.VideoParams, a *cmaf.AudioParams) {
	t.Helper()
	if err := cmaf.CheckInit(seg); err != nil {
		t.Fatal(err)
	}
	if _, _, err := leaves(seg); err != nil {
		t.Fatal(err)
	}
	for _, tr := range tracks {
		if tr.Codec == "" || tr.Width < 0 || tr.Height < 0 || max(tr.Width, tr.Height) > 1<<16 {
			t.Fatalf("track %+v", tr)
		}
	}
	var init fmp4.Init
	if err := init.Unmarshal(bytes.NewReader(seg)); err != nil {
		t.Fatalf("mediacommon: %v", err)
	}
	if len(init.Tracks) != len(tracks) {
		t.Fatalf("mediacommon reads %d tracks of %d", len(init.Tracks), len(tracks))
	}
	for i, tr := range init.Tracks {
		if !same(tr.Codec, v, a) {
			t.Fatalf("track %d reads back as %+v", i, tr.Codec)
		}
	}
	checkReadBack(t, seg, v, a)
}

// FuzzBuildInit: parameter sets come from cameras.
func FuzzBuildInit(f *testing.F) {
	f.Add(true, []byte(nil), h264SPS, h264PPS, []byte{0x11, 0x90})
	f.Add(false, h265VPS, h265SPS, h265PPS, []byte{})
	f.Add(false, h265VPS, rextSPS, h265PPS, []byte{})
	f.Fuzz(func(t *testing.T, avc bool, vps, sps, pps, config []byte) {
		v := cmaf.VideoParams{Codec: "h265", VPS: vps, SPS: sps, PPS: pps}
		if avc {
			v.Codec = "h264"
		}
		var a *cmaf.AudioParams
		if len(config) > 0 {
			a = &cmaf.AudioParams{Config: config, SampleRate: 48000, Channels: 2}
		}
		if seg, tracks, err := cmaf.BuildInit(cmaf.Timescale(a), v, a); err == nil {
			checkBuilt(t, seg, tracks, v, a)
		}
	})
}

// FuzzBuildInitSound: so do sizes, rates and configurations of sound.
func FuzzBuildInitSound(f *testing.F) {
	f.Add(640, 480, "flac", streamInfo(8000, 1, 16), 8000, 1)
	f.Add(65535, 1, "flac", streamInfo(96000, 8, 24), 96000, 8)
	f.Add(640, 480, "aac", unhex("119056e500"), 48000, 2)
	f.Add(640, 480, "", unhex("2b098800"), 48000, 1)
	f.Fuzz(func(t *testing.T, width, height int, codec string, config []byte, rate, channels int) {
		v := cmaf.VideoParams{Codec: "mjpeg", Width: width, Height: height}
		a := &cmaf.AudioParams{Codec: codec, Config: config, SampleRate: rate, Channels: channels}
		if seg, tracks, err := cmaf.BuildInit(cmaf.Timescale(a), v, a); err == nil {
			checkBuilt(t, seg, tracks, v, a)
		}
	})
}

func TestCheckInitRefuses(t *testing.T) {
	good, _, err := cmaf.BuildInit(90000, h264(), nil)
	if err != nil {
		t.Fatal(err)
	}
	frag := first(build(t, twoTracks()))
	for name, b := range map[string][]byte{
		"nothing": nil, "cut": good[:len(good)-1], "more": append(bytes.Clone(good), frag...), "a fragment": frag,
		"moov only": good[bytes.Index(good, []byte("moov"))-4:],
	} {
		if err := cmaf.CheckInit(b); !isInvalid(err) {
			t.Errorf("%s: CheckInit = %v", name, err)
		}
	}
}

func TestSidx(t *testing.T) {
	subs := []cmaf.Subsegment{{Bytes: 1000, Duration: 90000, Sync: true}, {Bytes: 1<<31 - 1, Duration: 1<<32 - 1}}
	b, err := cmaf.BuildSidx(1, 90000, 1<<33, subs)
	if err != nil {
		t.Fatal(err)
	}
	want := unhex("00000040" + "73696478" + "01000000" + "00000001" + "00015f90" + "0000000200000000" + "0000000000000000" + "0000" + "0002" +
		"000003e8" + "00015f90" + "a0000000" + "7fffffff" + "ffffffff" + "00000000")
	if !bytes.Equal(b, want) || len(b) != cmaf.SidxLen(2) {
		t.Errorf("sidx\n%x, want\n%x", b, want)
	}
	for name, subs := range map[string][]cmaf.Subsegment{
		"none": nil, "too many": make([]cmaf.Subsegment, 1<<16), "no bytes": {{Duration: 1}},
		"too large": {{Bytes: 1 << 31}}, "too long": {{Bytes: 1, Duration: 1 << 32}},
	} {
		if _, err := cmaf.BuildSidx(1, 90000, 0, subs); err == nil {
			t.Errorf("BuildSidx took %s", name)
		}
	}
}
