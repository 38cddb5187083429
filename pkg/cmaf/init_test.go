package cmaf_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mp4/codecs"

	"github.com/zipato/vms/pkg/cmaf"
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

func TestBuildInitIsWhatMediacommonReads(t *testing.T) {
	aac := &cmaf.AudioParams{Config: unhex("1190"), SampleRate: 48000, Channels: 2}
	seg, tracks, err := cmaf.BuildInit(720000, h264(), aac)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmaf.CheckInit(seg); err != nil {
		t.Error(err)
	}
	var init fmp4.Init
	if err := init.Unmarshal(bytes.NewReader(seg)); err != nil {
		t.Fatal(err)
	}
	if len(init.Tracks) != 2 || init.Tracks[0].TimeScale != 720000 || init.Tracks[1].TimeScale != 720000 {
		t.Fatalf("tracks %+v", init.Tracks)
	}
	if c, ok := init.Tracks[0].Codec.(*codecs.H264); !ok || !bytes.Equal(c.SPS, h264SPS) || !bytes.Equal(c.PPS, h264PPS) {
		t.Errorf("codec %+v", init.Tracks[0].Codec)
	}
	if tracks[0].Codec != "avc1.64001f" || tracks[0].Width != 1280 || tracks[0].Height != 720 || tracks[1].Codec != "mp4a.40.2" {
		t.Errorf("tracks %+v", tracks)
	}
	if m := cmaf.MIME(tracks); m != `video/mp4; codecs="avc1.64001f,mp4a.40.2"` {
		t.Errorf("MIME = %s", m)
	}
	again, _, _ := cmaf.BuildInit(720000, h264(), aac)
	if !bytes.Equal(seg, again) {
		t.Error("the same parameters gave another init")
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

func TestBuildInitRefusesBrokenParameterSets(t *testing.T) {
	h265 := func(vps, sps, pps []byte) cmaf.VideoParams {
		return cmaf.VideoParams{Codec: "h265", VPS: vps, SPS: sps, PPS: pps}
	}
	for name, v := range map[string]cmaf.VideoParams{
		"no codec":            {},
		"MJPEG":               {Codec: "mjpeg"},
		"H264 without SPS":    {Codec: "h264", PPS: h264PPS},
		"H264 without PPS":    {Codec: "h264", SPS: h264SPS},
		"H264 PPS for SPS":    {Codec: "h264", SPS: h264PPS, PPS: h264PPS},
		"H264 SPS for PPS":    {Codec: "h264", SPS: h264SPS, PPS: h264SPS},
		"H264 PPS of a byte":  {Codec: "h264", SPS: h264SPS, PPS: h264PPS[:1]},
		"H264 SPS cut":        {Codec: "h264", SPS: h264SPS[:4], PPS: h264PPS},
		"H265 without VPS":    h265(nil, h265SPS, h265PPS),
		"H265 without SPS":    h265(h265VPS, nil, h265PPS),
		"H265 without PPS":    h265(h265VPS, h265SPS, nil),
		"H265 SPS for VPS":    h265(h265SPS, h265SPS, h265PPS),
		"H265 VPS for PPS":    h265(h265VPS, h265SPS, h265VPS),
		"H265 SPS cut":        h265(h265VPS, h265SPS[:9], h265PPS),
		"H264 sets with H265": h265(h264SPS, h264SPS, h264PPS),
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := cmaf.BuildInit(90000, v, nil); err == nil {
				t.Error("BuildInit took it")
			}
		})
	}
	if _, _, err := cmaf.BuildInit(90000, h264(), &cmaf.AudioParams{}); err == nil {
		t.Error("BuildInit took AAC without a configuration")
	}
}

// FuzzBuildInit: parameter sets come from cameras.
func FuzzBuildInit(f *testing.F) {
	f.Add(true, []byte(nil), h264SPS, h264PPS, []byte{0x11, 0x90})
	f.Add(false, h265VPS, h265SPS, h265PPS, []byte{})
	f.Fuzz(func(t *testing.T, avc bool, vps, sps, pps, config []byte) {
		v := cmaf.VideoParams{Codec: "h265", VPS: vps, SPS: sps, PPS: pps}
		if avc {
			v.Codec = "h264"
		}
		var a *cmaf.AudioParams
		if len(config) > 0 {
			a = &cmaf.AudioParams{Config: config, SampleRate: 48000, Channels: 2}
		}
		seg, tracks, err := cmaf.BuildInit(cmaf.Timescale(a), v, a)
		if err != nil {
			return
		}
		if err := cmaf.CheckInit(seg); err != nil {
			t.Fatal(err)
		}
		for _, tr := range tracks {
			if tr.Codec == "" || tr.Width < 0 || tr.Height < 0 {
				t.Fatalf("track %+v", tr)
			}
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
