package camera

import (
	"errors"
	"fmt"

	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph264"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph265"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtpmpeg4audio"
	"github.com/pion/rtp"
)

// Limits on one access unit; H264 and H265 need less at any level cameras have.
const (
	maxUnitBytes = 8 << 20
	maxUnitNALUs = 256
)

// assembler puts NAL units together to access units. An access unit ends with
// the packet that is marked, or where the timestamp changes: some cameras never
// mark, and the marked packet may be lost, which must not make one picture of two.
type assembler struct {
	// nalus is the codec's depacketizer.
	nalus func(*rtp.Packet) ([][]byte, error)
	// out gets each access unit with its RTP timestamp.
	out func(ts uint32, au [][]byte)

	au   [][]byte
	ts   uint32
	size int
}

// push takes the next packet. An error means that this packet, or the NAL unit
// that it ends, is lost; what else there is of the access unit is passed on.
func (a *assembler) push(pkt *rtp.Packet) error {
	if len(a.au) > 0 && pkt.Timestamp != a.ts {
		a.flush()
	}
	// A marked packet makes the depacketizer give out the NAL units of that
	// packet instead of collecting a picture by rules of its own.
	marked := pkt.Marker
	pkt.Marker = true
	nalus, err := a.nalus(pkt)
	if err == nil {
		err = a.add(nalus, pkt.Timestamp)
	}
	if marked && !incomplete(err) {
		a.flush()
	}
	if expected(err) {
		return nil
	}
	return err
}

func (a *assembler) add(nalus [][]byte, ts uint32) error {
	a.ts = ts
	for _, n := range nalus {
		a.size += len(n)
	}
	if a.size > maxUnitBytes || len(a.au)+len(nalus) > maxUnitNALUs {
		err := fmt.Errorf("access unit of more than %d bytes or %d NAL units", maxUnitBytes, maxUnitNALUs)
		a.au, a.size = nil, 0
		return err
	}
	a.au = append(a.au, nalus...)
	return nil
}

func (a *assembler) flush() {
	if len(a.au) == 0 {
		return
	}
	au := a.au
	a.au, a.size = nil, 0 // a new slice each time: the sink owns the old one
	a.out(a.ts, au)
}

// reset forgets an access unit that is not complete, and reports whether there
// was one.
func (a *assembler) reset() bool {
	cut := len(a.au) > 0
	a.au, a.size = nil, 0
	return cut
}

// incomplete: the NAL unit goes on in the next packet.
func incomplete(err error) bool {
	return errors.Is(err, rtph264.ErrMorePacketsNeeded) || errors.Is(err, rtph265.ErrMorePacketsNeeded) ||
		errors.Is(err, rtpmpeg4audio.ErrMorePacketsNeeded)
}

// expected errors are none: the NAL unit is incomplete, or we joined in its middle.
func expected(err error) bool {
	return err == nil || incomplete(err) ||
		errors.Is(err, rtph264.ErrNonStartingPacketAndNoPrevious) ||
		errors.Is(err, rtph265.ErrNonStartingPacketAndNoPrevious)
}
