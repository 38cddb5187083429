package cmaf

import (
	"encoding/binary"
	"fmt"
)

// Subsegment is what one reference of a segment index covers: one fragment, or a
// run of them.
type Subsegment struct {
	Bytes    int64
	Duration uint64 // ticks
	// Sync: the first sample is a sync sample (stream access point type 1 or 2).
	Sync bool
}

// SidxLen is the length of a segment index with n references.
func SidxLen(n int) int { return 8 + 4 + 8 + 16 + 4 + 12*n }

// BuildSidx returns a segment index (ISO/IEC 14496-12, 8.16.3), version 1,
// for a file in which the first fragment follows it at once. earliest is the
// presentation time of the track's first sample, ticks.
func BuildSidx(track int, timescale uint32, earliest uint64, subs []Subsegment) ([]byte, error) {
	if len(subs) == 0 || len(subs) > 0xffff {
		return nil, fmt.Errorf("build sidx: %d references, want 1 to 65535", len(subs))
	}
	be := binary.BigEndian
	n := SidxLen(len(subs))
	b := appendBox(make([]byte, 0, n), n, "sidx")
	b = be.AppendUint32(b, 1<<24)
	b = be.AppendUint32(b, uint32(track))
	b = be.AppendUint32(b, timescale)
	b = be.AppendUint64(b, earliest)
	b = be.AppendUint64(b, 0) // first offset
	b = be.AppendUint16(b, 0)
	b = be.AppendUint16(b, uint16(len(subs)))
	for _, s := range subs {
		if s.Bytes <= 0 || s.Bytes >= 1<<31 || s.Duration >= 1<<32 {
			return nil, fmt.Errorf("build sidx: a reference of %d bytes and %d ticks does not fit", s.Bytes, s.Duration)
		}
		b = be.AppendUint32(b, uint32(s.Bytes)) // reference type 0: media
		b = be.AppendUint32(b, uint32(s.Duration))
		sap := uint32(0)
		if s.Sync {
			// Type 2 holds for closed GOPs with reordering and for plain ones alike.
			sap = 1<<31 | 2<<28
		}
		b = be.AppendUint32(b, sap)
	}
	return b, nil
}
