package cmaf

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"

	"github.com/zipato/vms/pkg/vms"
)

// videoEntry returns the track of v, its timescale yet to be set, and its
// sample entry.
func videoEntry(v VideoParams) (vms.Track, []byte, error) {
	t := vms.Track{ID: VideoTrack, Kind: "video"}
	name, config, err := "", []byte(nil), error(nil)
	switch v.Codec {
	case "h264":
		name = "avc1"
		config, err = avcC(&t, v)
	case "h265":
		name = "hvc1"
		config, err = hvcC(&t, v)
	case "mjpeg":
		name, config = "mp4v", esds(objectJPEG, streamVisual, nil)
		t.Codec, t.Width, t.Height = fmt.Sprintf("mp4v.%02X", objectJPEG), v.Width, v.Height
	default:
		err = fmt.Errorf("video codec %q cannot be recorded; use H264, H265 or MJPEG", v.Codec)
	}
	if err != nil {
		return t, nil, err
	}
	if t.Width < 1 || t.Height < 1 || t.Width > math.MaxUint16 || t.Height > math.MaxUint16 {
		return t, nil, fmt.Errorf("picture of %d x %d pixels", t.Width, t.Height)
	}
	return t, visualEntry(name, t.Width, t.Height, config), nil
}

// checkSets reports a parameter set that does not fit the 16 bits of its length.
func checkSets(sets ...[]byte) error {
	for _, s := range sets {
		if len(s) > math.MaxUint16 {
			return fmt.Errorf("parameter set of %d bytes", len(s))
		}
	}
	return nil
}

// avcC is the AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1). It
// sets t's codec and size.
func avcC(t *vms.Track, v VideoParams) ([]byte, error) {
	var sps h264.SPS
	if err := sps.Unmarshal(v.SPS); err != nil {
		return nil, fmt.Errorf("H264 SPS: %w", err)
	}
	if len(v.PPS) < 2 || v.PPS[0]&0x1f != byte(h264.NALUTypePPS) {
		return nil, fmt.Errorf("H264 PPS is missing")
	}
	if err := checkSets(v.SPS, v.PPS); err != nil {
		return nil, fmt.Errorf("H264: %w", err)
	}
	t.Codec = "avc1." + hex.EncodeToString(v.SPS[1:4])
	t.Width, t.Height = sps.Width(), sps.Height()
	b := append([]byte{1}, v.SPS[1:4]...) // version; profile, constraints and level
	b = append(b, 0xff, 0xe1)             // lengths of four bytes; one SPS
	b = append(b, sized(v.SPS)...)
	b = append(b, 1)
	b = append(b, sized(v.PPS)...)
	switch sps.ProfileIdc {
	case 66, 77, 88: // Baseline, Main and Extended end here
		return box("avcC", b), nil
	case 100, 110, 122, 244, 44, 83, 86, 118, 128, 134, 135, 138, 139: // their SPS says it (ITU-T H.264, 7.3.2.1.1)
	default:
		sps.ChromaFormatIdc = 1 // what an SPS means that says nothing (7.4.2.1.1)
	}
	if sps.ChromaFormatIdc > 3 || sps.BitDepthLumaMinus8 > 6 || sps.BitDepthChromaMinus8 > 6 {
		return nil, fmt.Errorf("H264 SPS: impossible chroma format or bit depth")
	}
	return box("avcC", append(b,
		0xfc|byte(sps.ChromaFormatIdc), 0xf8|byte(sps.BitDepthLumaMinus8), 0xf8|byte(sps.BitDepthChromaMinus8),
		0, // no SPS extensions
	)), nil
}

// hvcC is the HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, 8.3.3.1). It
// sets t's codec and size.
func hvcC(t *vms.Track, v VideoParams) ([]byte, error) {
	var sps h265.SPS
	if err := sps.Unmarshal(v.SPS); err != nil {
		return nil, fmt.Errorf("H265 SPS: %w", err)
	}
	if !isH265(v.VPS, h265.NALUType_VPS_NUT) || !isH265(v.PPS, h265.NALUType_PPS_NUT) {
		return nil, fmt.Errorf("H265 VPS or PPS is missing")
	}
	if err := checkSets(v.VPS, v.SPS, v.PPS); err != nil {
		return nil, fmt.Errorf("H265: %w", err)
	}
	// The profile, tier and level of the whole stream are twelve bytes that begin
	// 3 bytes into the SPS (ITU-T H.265, 7.3.2.2 and 7.3.3).
	plain := h264.EmulationPreventionRemove(v.SPS)
	if len(plain) < 15 {
		return nil, fmt.Errorf("H265 SPS: cut short")
	}
	if sps.BitDepthLumaMinus8 > 7 || sps.BitDepthChromaMinus8 > 7 { // three bits here; no profile goes beyond
		return nil, fmt.Errorf("H265 SPS: impossible bit depth")
	}
	t.Codec = hevcCodec(plain[8:14], &sps)
	t.Width, t.Height = sps.Width(), sps.Height()
	nested := byte(0)
	if sps.TemporalIDNestingFlag {
		nested = 1
	}
	b := append([]byte{1}, plain[3:15]...)
	b = append(b,
		0xf0, 0, // min_spatial_segmentation_idc, and
		0xfc, // parallelismType: not said
		0xfc|byte(sps.ChromaFormatIdc), 0xf8|byte(sps.BitDepthLumaMinus8), 0xf8|byte(sps.BitDepthChromaMinus8),
		0, 0, // average frame rate: not said
		(sps.MaxSubLayersMinus1+1)<<3|nested<<2|3, // temporal layers; lengths of four bytes
		3,
	)
	for _, set := range [][]byte{v.VPS, v.SPS, v.PPS} {
		// hvc1 wants arrays that are complete: whoever reads the sample entry has
		// what he needs before the first sample.
		b = append(b, 0x80|set[0]>>1&0x3f, 0, 1)
		b = append(b, sized(set)...)
	}
	return box("hvcC", b), nil
}

// isH265 reports whether nal is a NAL unit of type t with a payload.
func isH265(nal []byte, t h265.NALUType) bool {
	return len(nal) > 2 && nal[0]>>1&0x3f == byte(t)
}

// hevcCodec is the codecs parameter of ISO/IEC 14496-15, annex E.3; constraints
// are the six bytes of constraint flags.
func hevcCodec(constraints []byte, sps *h265.SPS) string {
	p := sps.ProfileTierLevel
	var compat uint32
	for i, on := range p.GeneralProfileCompatibilityFlag {
		if on {
			compat |= 1 << i // the string wants the flags in reverse bit order
		}
	}
	tier := "L"
	if p.GeneralTierFlag != 0 {
		tier = "H"
	}
	space := []string{"", "A", "B", "C"}[p.GeneralProfileSpace&3]
	name := fmt.Sprintf("hvc1.%s%d.%X.%s%d", space, p.GeneralProfileIdc, compat, tier, p.GeneralLevelIdc)
	for _, b := range bytes.TrimRight(constraints, "\x00") {
		name += fmt.Sprintf(".%02X", b)
	}
	return name
}
