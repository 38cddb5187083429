package cmaf

import (
	"encoding/binary"
	"slices"
)

// Unit is one sample of a fragment, read back: an access unit of a picture, or a
// frame of sound.
type Unit struct {
	Track int
	// DTS and PTS are the times of decoding and presentation, Duration how long
	// it lasts, in ticks of the track's timescale. PTS may lie before zero.
	DTS, PTS int64
	Duration uint32
	// Sync: decoding may start here.
	Sync bool
	// Data is the sample's bytes, which lie in the fragment.
	Data []byte
}

// Units appends the samples of one track to dst, in decode order; none when the
// fragment has none of it. payload is what f was read from. An error means that
// it is not; dst is as it was then.
func (f *Fragment) Units(dst []Unit, payload []byte, track int) ([]Unit, error) {
	r := f.Run(track)
	if r == nil {
		return dst, nil
	}
	n := len(dst)
	// ParseFragment has checked all this, of the same bytes one hopes.
	if f.MoofLen+8 > len(payload) || r.trun > f.MoofLen {
		return dst, invalid("a payload of %d bytes is not the one that was parsed", len(payload))
	}
	c := cursor{b: payload[r.trun:f.MoofLen]}
	t := openTrun(&c, r.def, f.MoofLen+8)
	if int64(t.n) != int64(r.Samples) || t.offset < 0 || t.offset > int64(len(payload)) {
		return dst, invalid("trun of %d samples at %d is not the one that was parsed", t.n, t.offset)
	}
	dst = slices.Grow(dst, r.Samples)
	dts, data := int64(r.Base), payload[t.offset:]
	for i := range t.n {
		s := t.next(&c, i)
		if c.short || uint64(s.size) > uint64(len(data)) {
			return dst[:n], invalid("samples of track %d lie outside the mdat", track)
		}
		dst = append(dst, Unit{
			Track: track, DTS: dts, PTS: dts + int64(s.cts), Duration: s.duration, Sync: s.sync(), Data: data[:s.size:s.size],
		})
		dts, data = dts+int64(s.duration), data[s.size:]
	}
	return dst, nil
}

// NALs appends the NAL units of a picture's sample to dst; they lie in sample.
// Each stands behind its length in four bytes (ISO/IEC 14496-15, 5.3.3.1), empty
// ones are left out. An error means that the lengths do not fit; dst is as it was then.
func NALs(dst [][]byte, sample []byte) ([][]byte, error) {
	n := len(dst)
	for len(sample) > 0 {
		if len(sample) < 4 {
			return dst[:n], invalid("%d bytes where the length of a NAL unit should be", len(sample))
		}
		size := binary.BigEndian.Uint32(sample)
		sample = sample[4:]
		if uint64(size) > uint64(len(sample)) {
			return dst[:n], invalid("NAL unit of %d bytes in %d", size, len(sample))
		}
		if size > 0 {
			dst = append(dst, sample[:size:size])
		}
		sample = sample[size:]
	}
	return dst, nil
}
