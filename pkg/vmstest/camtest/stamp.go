package camtest

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"
)

// Sent is an access unit as it went to a client.
type Sent struct {
	// Client counts the playbacks since New, from 1.
	Client int64
	Video  bool
	// Key: decoding may start with this picture.
	Key bool
	// Number is the unit's place since the first power on, for picture and sound
	// apart: the same unit for every client of a Live camera, rising with time.
	Number uint64
	// At is when its last packet was handed to the connection.
	At time.Time
	// PTS is when it is to be presented, in media time: one clock for picture and
	// sound, from the clip's first DTS on, continuous over loops.
	PTS time.Duration
	// AU is what was sent: the NAL units, the one JPEG file, or for sound the one
	// access unit or packet.
	// Nobody may write to it.
	AU [][]byte
}

// bootBits leaves room for the units of one run of the camera in a number.
const bootBits = 40

// stampID marks our user data, as a UUID of ITU-T H.264, annex D. It has no zero
// byte, and neither has the number in hexadecimal digits: no emulation
// prevention is needed.
var stampID = []byte("vms-camtest-unit")

const digits = 16

// stampVideo puts number into an SEI NAL unit before the first slice.
func (m *Media) stampVideo(au [][]byte, number uint64) [][]byte {
	var sei []byte
	if m.Codec == "h265" {
		sei = append(sei, byte(h265.NALUType_PREFIX_SEI_NUT)<<1, 1)
	} else {
		sei = append(sei, byte(h264.NALUTypeSEI))
	}
	sei = append(sei, 5, byte(len(stampID)+digits)) // user_data_unregistered
	sei = append(sei, stampID...)
	sei = fmt.Appendf(sei, "%0*x", digits, number)
	sei = append(sei, 0x80) // rbsp_trailing_bits
	out := make([][]byte, 0, len(au)+1)
	for i, nalu := range au {
		if m.slice(nalu) {
			return append(append(out, sei), au[i:]...)
		}
		out = append(out, nalu)
	}
	return out
}

// stampAudio puts number into a data stream element (ISO/IEC 14496-3, 4.4.2.1)
// before the other elements of a raw data block. It is whole bytes long: what
// follows is not moved.
func stampAudio(au []byte, number uint64) []byte {
	out := make([]byte, 0, 2+digits+len(au))
	out = append(out, 0b100_0000_0, digits) // ID_DSE, instance 0, not aligned
	out = fmt.Appendf(out, "%0*x", digits, number)
	return append(out, au...)
}

// Stamps returns the numbers of the pictures in raw media, such as an mdat box.
func Stamps(media []byte) []uint64 {
	var out []uint64
	for {
		i := bytes.Index(media, stampID)
		if i < 0 || len(media) < i+len(stampID)+digits {
			return out
		}
		media = media[i+len(stampID):]
		if n, err := strconv.ParseUint(string(media[:digits]), 16, 64); err == nil {
			out = append(out, n)
		}
	}
}

// slice reports whether nalu holds part of the picture itself.
func (m *Media) slice(nalu []byte) bool {
	if len(nalu) == 0 {
		return false
	}
	if m.Codec == "h265" {
		return nalu[0]>>1&0x3f < 32
	}
	typ := h264.NALUType(nalu[0] & 0x1f)
	return typ >= h264.NALUTypeNonIDR && typ <= h264.NALUTypeIDR
}

// key reports whether decoding may start with au.
func (m *Media) key(au [][]byte) bool {
	if m.Codec == "mjpeg" {
		return true
	}
	for _, nalu := range au {
		if !m.slice(nalu) {
			continue
		}
		if m.Codec == "h265" {
			typ := h265.NALUType(nalu[0] >> 1 & 0x3f)
			return typ >= h265.NALUType_BLA_W_LP && typ <= h265.NALUType_CRA_NUT
		}
		return h264.NALUType(nalu[0]&0x1f) == h264.NALUTypeIDR
	}
	return false
}
