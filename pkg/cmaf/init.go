// Package cmaf builds and reads the two things that travel as media: init
// segments (ftyp + moov) and fragments (moof + mdat), after ISO/IEC 14496-12
// and the chunk of ISO/IEC 23000-19 (CMAF). Init segments are mediacommon's;
// fragments are written here, in one allocation, because a hub writes several
// a second for each camera and their bytes must never depend on a library's version.
package cmaf

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/bits"
	"strings"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4/seekablebuffer"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mp4/codecs"

	"github.com/zipato/vms/pkg/vms"
)

// The track ids of everything this package builds.
const (
	VideoTrack = 1
	AudioTrack = 2
)

// VideoClock is the RTP clock of video (RFC 6184, RFC 7798), in Hz.
const VideoClock = 90000

// VideoParams are the parameter sets that a decoder needs, without start codes.
type VideoParams struct {
	Codec         string // "h264" or "h265"
	VPS, SPS, PPS []byte // VPS for h265 only
}

// Equal reports whether both make the same init segment.
func (v VideoParams) Equal(o VideoParams) bool {
	return v.Codec == o.Codec && bytes.Equal(v.VPS, o.VPS) && bytes.Equal(v.SPS, o.SPS) && bytes.Equal(v.PPS, o.PPS)
}

// AudioParams describe AAC.
type AudioParams struct {
	// Config is the AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1).
	Config     []byte
	SampleRate int
	Channels   int
}

// Timescale returns the ticks per second in which both tracks count: the least
// common multiple of the video clock and the sample rate. One clock for all
// tracks is what lets a recording be moved to start at zero by subtracting one
// number, without rounding any track.
func Timescale(a *AudioParams) uint32 {
	if a == nil || a.SampleRate <= 0 {
		return VideoClock
	}
	x, y := uint64(VideoClock), uint64(a.SampleRate)
	for y != 0 {
		x, y = y, x%y
	}
	hi, l := bits.Mul64(VideoClock/x, uint64(a.SampleRate))
	if hi != 0 || l > 50_000_000 { // a sample rate that no codec has
		return VideoClock
	}
	return uint32(l)
}

// BuildInit returns the init segment of a picture and, unless a is nil, its
// sound. All tracks count in ts ticks per second.
func BuildInit(ts uint32, v VideoParams, a *AudioParams) (segment []byte, tracks []vms.Track, err error) {
	vt := vms.Track{ID: VideoTrack, Kind: "video", Timescale: ts}
	var codec codecs.Codec
	switch v.Codec {
	case "h264":
		var sps h264.SPS
		if err := sps.Unmarshal(v.SPS); err != nil {
			return nil, nil, fmt.Errorf("H264 SPS: %w", err)
		}
		if len(v.PPS) < 2 || v.PPS[0]&0x1f != byte(h264.NALUTypePPS) {
			return nil, nil, fmt.Errorf("H264 PPS is missing")
		}
		vt.Codec = "avc1." + hex.EncodeToString(v.SPS[1:4])
		vt.Width, vt.Height = sps.Width(), sps.Height()
		codec = &codecs.H264{SPS: v.SPS, PPS: v.PPS}
	case "h265":
		var sps h265.SPS
		if err := sps.Unmarshal(v.SPS); err != nil {
			return nil, nil, fmt.Errorf("H265 SPS: %w", err)
		}
		if !isH265(v.VPS, h265.NALUType_VPS_NUT) || !isH265(v.PPS, h265.NALUType_PPS_NUT) {
			return nil, nil, fmt.Errorf("H265 VPS or PPS is missing")
		}
		vt.Codec = hevcCodec(v.SPS, &sps)
		vt.Width, vt.Height = sps.Width(), sps.Height()
		codec = &codecs.H265{VPS: v.VPS, SPS: v.SPS, PPS: v.PPS}
	default:
		return nil, nil, fmt.Errorf("video codec %q cannot be recorded; use H264 or H265", v.Codec)
	}
	init := fmp4.Init{Tracks: []*fmp4.InitTrack{{ID: VideoTrack, TimeScale: ts, Codec: codec}}}
	tracks = []vms.Track{vt}
	if a != nil {
		var conf mpeg4audio.AudioSpecificConfig
		if err := conf.Unmarshal(a.Config); err != nil {
			return nil, nil, fmt.Errorf("AAC configuration: %w", err)
		}
		init.Tracks = append(init.Tracks, &fmp4.InitTrack{ID: AudioTrack, TimeScale: ts, Codec: &codecs.MPEG4Audio{Config: conf}})
		tracks = append(tracks, vms.Track{
			ID: AudioTrack, Kind: "audio", Timescale: ts,
			Codec:      fmt.Sprintf("mp4a.40.%d", conf.Type),
			SampleRate: a.SampleRate, Channels: a.Channels,
		})
	}
	var buf seekablebuffer.Buffer
	if err := init.Marshal(&buf); err != nil {
		return nil, nil, fmt.Errorf("build init segment: %w", err)
	}
	return buf.Bytes(), tracks, nil
}

// isH265 reports whether nal is a NAL unit of type t with a payload.
func isH265(nal []byte, t h265.NALUType) bool {
	return len(nal) > 2 && nal[0]>>1&0x3f == byte(t)
}

// hevcCodec is the codecs parameter of ISO/IEC 14496-15, annex E.3.
func hevcCodec(nal []byte, sps *h265.SPS) string {
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
	// The six bytes of constraint flags, without the zeros at their end; they
	// begin 8 bytes into the SPS (7.3.2.2 and 7.3.3 of H.265).
	flags := h264.EmulationPreventionRemove(nal)
	if len(flags) < 14 {
		return name
	}
	flags = bytes.TrimRight(flags[8:14], "\x00")
	for _, b := range flags {
		name += fmt.Sprintf(".%02X", b)
	}
	return name
}

// Codecs joins the codecs of tracks as a MIME type wants them.
func Codecs(tracks []vms.Track) string {
	names := make([]string, len(tracks))
	for i, t := range tracks {
		names[i] = t.Codec
	}
	return strings.Join(names, ",")
}

// MIME returns the type for MediaSource.addSourceBuffer.
func MIME(tracks []vms.Track) string { return fmt.Sprintf("video/mp4; codecs=%q", Codecs(tracks)) }
