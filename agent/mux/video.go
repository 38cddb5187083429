package mux

import (
	"bytes"
	"fmt"

	codecbits "github.com/bluenviron/mediacommon/v2/pkg/bits"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"

	"github.com/zipato/vms/pkg/cmaf"
)

// maxReorder is the deepest reordering that H264 and H265 allow (16 frames).
const maxReorder = 16

// accessUnit is what inspect finds in the NAL units of one access unit.
type accessUnit struct {
	// nalus are those that go into the sample: parameter sets are in the init
	// segment and delimiters mean nothing in MP4, all else stays as it came. Of
	// MJPEG it is the one picture; none: it is not readable.
	nalus [][]byte
	key   bool
	// changed: the access unit brought parameter sets that differ from the ones in use.
	changed bool
}

// params follows the parameter sets of a stream, from SDP and in band.
type params struct {
	cmaf.VideoParams
	// depth is how many frames may precede another in decoding order and follow
	// it on the screen; known says whether the stream told.
	depth int
	known bool
}

// complete reports whether an init segment can be built.
func (p *params) complete() bool {
	if p.Codec == "mjpeg" {
		return p.Width > 0
	}
	return len(p.SPS) > 0 && len(p.PPS) > 0 && (p.Codec != "h265" || len(p.VPS) > 0)
}

// set replaces one parameter set and reports whether it was another one.
func set(dst *[]byte, nalu []byte) bool {
	if bytes.Equal(*dst, nalu) {
		return false
	}
	*dst = bytes.Clone(nalu)
	return true
}

// sameSet reports whether u replaces the parameter set have: whether both have
// the same id, an Exp-Golomb number that begins at byte at. A camera may use
// several sets beside each other; an init segment holds one of them, and the
// others stay in the samples, where decoders find them as well.
func sameSet(have, u []byte, at int) bool {
	a, okA := setID(have, at)
	b, okB := setID(u, at)
	return a == b || !okA || !okB
}

func setID(set []byte, at int) (id uint32, ok bool) {
	if len(set) <= at {
		return 0, false
	}
	pos := 0
	id, err := codecbits.ReadGolombUnsigned(set[at:], &pos)
	return id, err == nil
}

// inspect sorts the NAL units of an access unit.
func (p *params) inspect(au [][]byte) accessUnit {
	if p.Codec == "mjpeg" {
		return p.inspectJPEG(au)
	}
	out := accessUnit{nalus: make([][]byte, 0, len(au))}
	for _, u := range au {
		if len(u) < 2 {
			continue // an empty NAL unit carries nothing
		}
		if p.Codec == "h265" {
			p.inspect265(&out, u)
		} else {
			p.inspect264(&out, u)
		}
	}
	if out.changed {
		p.readDepth()
	}
	return out
}

func (p *params) inspect264(out *accessUnit, u []byte) {
	switch h264.NALUType(u[0] & 0x1f) {
	case h264.NALUTypeSPS:
		if sameSet(p.SPS, u, 4) { // type, profile, constraints, level
			out.changed = set(&p.SPS, u) || out.changed
			return
		}
	case h264.NALUTypePPS:
		if sameSet(p.PPS, u, 1) {
			out.changed = set(&p.PPS, u) || out.changed
			return
		}
	case h264.NALUTypeAccessUnitDelimiter:
		return
	case h264.NALUTypeIDR:
		out.key = true
	case h264.NALUTypeSEI:
		// An I picture at which a decoder recovers at once is as good as an IDR (open GOP).
		out.key = out.key || recoversAtOnce(u)
	}
	out.nalus = append(out.nalus, u)
}

func (p *params) inspect265(out *accessUnit, u []byte) {
	switch typ := h265.NALUType((u[0] >> 1) & 0x3f); typ {
	case h265.NALUType_VPS_NUT:
		out.changed = set(&p.VPS, u) || out.changed
		return
	case h265.NALUType_SPS_NUT:
		out.changed = set(&p.SPS, u) || out.changed
		return
	case h265.NALUType_PPS_NUT:
		if sameSet(p.PPS, u, 2) {
			out.changed = set(&p.PPS, u) || out.changed
			return
		}
	case h265.NALUType_AUD_NUT:
		return
	default:
		// 16 to 21: BLA, IDR and CRA, the intra random access points (ITU-T H.265, table 7-1).
		if typ >= 16 && typ <= 21 {
			out.key = true
		}
	}
	out.nalus = append(out.nalus, u)
}

// recoversAtOnce reports whether an SEI NAL unit holds a recovery point with
// recovery_frame_cnt 0 (ITU-T H.264, D.1.8).
func recoversAtOnce(u []byte) bool {
	b := u[1:]
	if len(b) > 256 {
		b = b[:256] // recovery points stand in front of long user data
	}
	b = h264.EmulationPreventionRemove(b)
	for len(b) >= 3 {
		typ, size := 0, 0
		for len(b) > 0 && b[0] == 0xff {
			typ, b = typ+255, b[1:]
		}
		if len(b) == 0 {
			return false
		}
		typ, b = typ+int(b[0]), b[1:]
		for len(b) > 0 && b[0] == 0xff {
			size, b = size+255, b[1:]
		}
		if len(b) == 0 {
			return false
		}
		size, b = size+int(b[0]), b[1:]
		if typ == 6 {
			return len(b) > 0 && b[0]&0x80 != 0 // ue(v) of 0 is the single bit 1
		}
		if size > len(b) {
			return false
		}
		b = b[size:]
	}
	return false
}

// readDepth learns the reordering depth from the SPS where it says so.
func (p *params) readDepth() {
	p.depth, p.known = 0, p.Codec == "mjpeg"
	if p.known {
		return
	}
	if p.Codec == "h265" {
		var sps h265.SPS
		if sps.Unmarshal(p.SPS) == nil && len(sps.MaxNumReorderPics) > 0 {
			p.depth, p.known = int(sps.MaxNumReorderPics[len(sps.MaxNumReorderPics)-1]), true
		}
	} else {
		var sps h264.SPS
		if sps.Unmarshal(p.SPS) != nil {
			return
		}
		switch {
		case sps.ProfileIdc == 66 || sps.PicOrderCntType == 2:
			p.known = true // neither baseline nor this order type can reorder
		case sps.VUI != nil && sps.VUI.BitstreamRestriction != nil:
			p.depth, p.known = int(sps.VUI.BitstreamRestriction.MaxNumReorderFrames), true
		}
	}
	p.depth = min(p.depth, maxReorder)
}

// newParams takes the parameter sets of the SDP; any may be missing.
func newParams(v cmaf.VideoParams) (*params, error) {
	if v.Codec != "h264" && v.Codec != "h265" && v.Codec != "mjpeg" {
		return nil, fmt.Errorf("video codec %q cannot be recorded; use H264, H265 or MJPEG", v.Codec)
	}
	p := &params{VideoParams: v}
	p.readDepth()
	return p, nil
}
