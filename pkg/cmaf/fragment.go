package cmaf

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Sample is one frame of a track.
type Sample struct {
	// Duration is in ticks of the track's timescale.
	Duration uint32
	// CTS is presentation time minus decode time, in ticks; it may be negative.
	CTS int32
	// Sync: decoding may start here.
	Sync bool
	// NALs, for video, are written each behind its length in four bytes
	// (ISO/IEC 14496-15, 5.3.3.1); Raw, for sound, as it is.
	NALs [][]byte
	Raw  []byte
}

// Size is the number of bytes that the sample occupies in mdat.
func (s *Sample) Size() int {
	n := len(s.Raw)
	for _, u := range s.NALs {
		n += 4 + len(u)
	}
	return n
}

// Run is the samples of one track in one fragment, in decode order and without
// holes in time.
type Run struct {
	Track int
	// Base is the decode time of the first sample, in ticks.
	Base    uint64
	Samples []Sample
}

// Bits of tf_flags and tr_flags (ISO/IEC 14496-12, 8.8.7 and 8.8.8), and of
// the sample flags (8.8.3.1).
const (
	tfhdDefaultFlags     = 0x000020
	tfhdDefaultBaseMoof  = 0x020000
	trunDataOffset       = 0x000001
	trunFirstSampleFlags = 0x000004
	trunDuration         = 0x000100
	trunSize             = 0x000200
	trunFlags            = 0x000400
	trunCTS              = 0x000800

	sampleSync    = 0x02000000 // depends on no other
	sampleNonSync = 0x01010000 // depends on others, is no sync sample
)

const (
	tfhdLen  = 8 + 4 + 4 + 4   // box, version+flags, track, default flags
	tfdtLen  = 8 + 4 + 8       // version 1
	trunLen0 = 8 + 4 + 4 + 4   // box, version+flags, count, data offset
	moofLen0 = 8 + (8 + 4 + 4) // moof, mfhd
	trafLen0 = 8 + tfhdLen + tfdtLen
)

// BuildFragment returns one moof and one mdat box, and the length of the moof.
// Runs without samples are left out. Two calls with equal arguments give equal bytes.
func BuildFragment(sequence uint32, runs []Run) (payload []byte, moofLen int, err error) {
	moofLen = moofLen0
	var data int64
	for i := range runs {
		r := &runs[i]
		if len(r.Samples) == 0 {
			continue
		}
		moofLen += trafLen0 + trunLen0 + len(r.Samples)*sampleEntryLen(r)
		for j := range r.Samples {
			data += int64(r.Samples[j].Size())
		}
	}
	if moofLen == moofLen0 {
		return nil, 0, fmt.Errorf("build fragment: no samples")
	}
	total := int64(moofLen) + 8 + data
	if total > math.MaxInt32 {
		return nil, 0, fmt.Errorf("build fragment: %d bytes do not fit a 32-bit box", total)
	}
	be := binary.BigEndian
	b := make([]byte, 0, total)
	b = appendBox(b, moofLen, "moof")
	b = appendBox(b, 16, "mfhd")
	b = be.AppendUint32(b, 0)
	b = be.AppendUint32(b, sequence)
	offset := moofLen + 8 // of the next run's first byte, from the moof's first
	for i := range runs {
		r := &runs[i]
		if len(r.Samples) == 0 {
			continue
		}
		b = appendRun(b, r, offset)
		for j := range r.Samples {
			offset += r.Samples[j].Size()
		}
	}
	b = appendBox(b, int(data)+8, "mdat")
	for i := range runs {
		for j := range runs[i].Samples {
			s := &runs[i].Samples[j]
			for _, u := range s.NALs {
				b = be.AppendUint32(b, uint32(len(u)))
				b = append(b, u...)
			}
			b = append(b, s.Raw...)
		}
	}
	return b, moofLen, nil
}

// sampleEntryLen: duration and size; video has flags and composition offsets too.
func sampleEntryLen(r *Run) int {
	if r.Track == VideoTrack {
		return 16
	}
	return 8
}

func appendRun(b []byte, r *Run, offset int) []byte {
	be := binary.BigEndian
	trun := trunLen0 + len(r.Samples)*sampleEntryLen(r)
	b = appendBox(b, trafLen0+trun, "traf")
	b = appendBox(b, tfhdLen, "tfhd")
	b = be.AppendUint32(b, tfhdDefaultBaseMoof|tfhdDefaultFlags)
	b = be.AppendUint32(b, uint32(r.Track))
	b = be.AppendUint32(b, sampleSync)
	b = appendBox(b, tfdtLen, "tfdt")
	b = be.AppendUint32(b, 1<<24)
	b = be.AppendUint64(b, r.Base)
	b = appendBox(b, trun, "trun")
	flags := uint32(1<<24 | trunDataOffset | trunDuration | trunSize)
	video := r.Track == VideoTrack
	if video {
		flags |= trunFlags | trunCTS
	}
	b = be.AppendUint32(b, flags)
	b = be.AppendUint32(b, uint32(len(r.Samples)))
	b = be.AppendUint32(b, uint32(offset))
	for i := range r.Samples {
		s := &r.Samples[i]
		b = be.AppendUint32(b, s.Duration)
		b = be.AppendUint32(b, uint32(s.Size()))
		if video {
			f := uint32(sampleNonSync)
			if s.Sync {
				f = sampleSync
			}
			b = be.AppendUint32(b, f)
			b = be.AppendUint32(b, uint32(s.CTS))
		}
	}
	return b
}

func appendBox(b []byte, size int, name string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	return append(b, name...)
}
