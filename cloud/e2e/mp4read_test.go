package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A reader of recordings that shares no code with what writes them: it knows
// fragmented MP4 (ISO/IEC 14496-12) as far as the proofs of this package need.

// mp4File is a recording.
type mp4File struct {
	tracks  []*mp4Track
	samples []mp4Sample // in the order of the file
}

// mp4Track is one trak box.
type mp4Track struct {
	id    uint32
	kind  string // "v" or "a", as ffmpeg names streams
	entry string // type of the sample entry
	rate  int64  // ticks per second
	sets  [][]byte

	width, height int // pixels, as the sample entry says
}

// mp4Sample is one sample of a fragment.
type mp4Sample struct {
	track    *mp4Track
	pts      time.Duration
	duration time.Duration
	ticks    int64 // of duration
	sync     bool
	data     []byte
}

// track returns the track of a kind, or nil.
func (f *mp4File) track(kind string) *mp4Track {
	for _, t := range f.tracks {
		if t.kind == kind {
			return t
		}
	}
	return nil
}

var errMP4 = errors.New("damaged MP4")

// boxes hands each box in b to visit: at is where it begins in b.
func boxes(b []byte, visit func(at int, name string, body []byte) error) error {
	for at := 0; at < len(b); {
		if len(b)-at < 8 {
			return fmt.Errorf("%w: %d bytes behind the last box", errMP4, len(b)-at)
		}
		n := int(binary.BigEndian.Uint32(b[at:]))
		if n < 8 || n > len(b)-at {
			return fmt.Errorf("%w: box %q of %d bytes, %d are left", errMP4, b[at+4:at+8], n, len(b)-at)
		}
		if err := visit(at, string(b[at+4:at+8]), b[at+8:at+n]); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// readMP4 reads a whole recording.
func readMP4(data []byte) (f *mp4File, err error) {
	defer func() { // the tests' own recordings: what is too short is a fault, not an attack
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errMP4, r)
		}
	}()
	f = new(mp4File)
	return f, boxes(data, func(at int, name string, body []byte) error {
		switch name {
		case "moov":
			return boxes(body, func(_ int, name string, body []byte) error {
				if name != "trak" {
					return nil
				}
				t := new(mp4Track)
				f.tracks = append(f.tracks, t)
				return t.read(body)
			})
		case "moof":
			return boxes(body, func(_ int, name string, body []byte) error {
				if name != "traf" {
					return nil
				}
				return f.readRun(body, data, at)
			})
		}
		return nil
	})
}

// read takes what matters from a trak box and the boxes in it.
func (t *mp4Track) read(trak []byte) error {
	return boxes(trak, func(_ int, name string, body []byte) error {
		switch name {
		case "tkhd":
			t.id = binary.BigEndian.Uint32(body[12+8*int(body[0]):]) // version 1 has two times of 64 bits
		case "mdhd":
			t.rate = int64(binary.BigEndian.Uint32(body[12+8*int(body[0]):]))
		case "hdlr":
			t.kind = map[string]string{"vide": "v", "soun": "a"}[string(body[8:12])]
		case "mdia", "minf", "stbl":
			return t.read(body)
		case "stsd":
			return boxes(body[8:], func(_ int, name string, body []byte) error {
				t.entry = name
				if t.kind == "v" {
					t.width, t.height = int(binary.BigEndian.Uint16(body[24:])), int(binary.BigEndian.Uint16(body[26:]))
					return boxes(body[78:], t.readSets) // VisualSampleEntry
				}
				return nil
			})
		}
		return nil
	})
}

// readSets takes the parameter sets from a decoder configuration
// (ISO/IEC 14496-15, 5.3.3 and 8.3.3).
func (t *mp4Track) readSets(_ int, name string, body []byte) error {
	take := func(n int) { // n NAL units behind 16-bit lengths
		for range n {
			l := int(binary.BigEndian.Uint16(body))
			t.sets = append(t.sets, body[2:2+l])
			body = body[2+l:]
		}
	}
	switch name {
	case "avcC":
		body = body[5:]
		for _, mask := range []byte{0x1f, 0xff} { // SPS, then PPS
			n := int(body[0] & mask)
			body = body[1:]
			take(n)
		}
	case "hvcC":
		arrays := int(body[22])
		body = body[23:]
		for range arrays {
			n := int(binary.BigEndian.Uint16(body[1:]))
			body = body[3:]
			take(n)
		}
	}
	return nil
}

// readRun takes the samples of a traf box; its moof box begins at moof in data.
func (f *mp4File) readRun(traf, data []byte, moof int) error {
	const ( // of tfhd and trun: which fields there are
		tfhdBase, tfhdDescription, tfhdDuration, tfhdSize, tfhdFlags                   = 0x1, 0x2, 0x8, 0x10, 0x20
		trunOffset, trunFirstFlags, trunDuration, trunSize, trunFlags, trunComposition = 0x1, 0x4, 0x100, 0x200, 0x400, 0x800

		notSync = 0x10000 // in the flags of a sample
	)
	var t *mp4Track
	var duration, size, flags uint32
	var dts int64
	return boxes(traf, func(_ int, name string, body []byte) error {
		u32 := func() (v uint32) {
			v, body = binary.BigEndian.Uint32(body), body[4:]
			return v
		}
		if name != "tfhd" && name != "tfdt" && name != "trun" {
			return nil
		}
		head := u32()
		version, has := head>>24, head&0xffffff
		switch name {
		case "tfhd":
			id := u32()
			i := slices.IndexFunc(f.tracks, func(t *mp4Track) bool { return t.id == id })
			if i < 0 || has&tfhdBase != 0 {
				return fmt.Errorf("%w: fragment of track %d, flags %x", errMP4, id, has)
			}
			t = f.tracks[i]
			if has&tfhdDescription != 0 {
				u32()
			}
			if has&tfhdDuration != 0 {
				duration = u32()
			}
			if has&tfhdSize != 0 {
				size = u32()
			}
			if has&tfhdFlags != 0 {
				flags = u32()
			}
		case "tfdt":
			dts = int64(u32())
			if version == 1 {
				dts = dts<<32 | int64(u32())
			}
		case "trun":
			n := u32()
			if has&trunOffset == 0 {
				return fmt.Errorf("%w: a run that does not say where its samples are", errMP4)
			}
			at := moof + int(int32(u32()))
			firstFlags := flags
			if has&trunFirstFlags != 0 {
				firstFlags = u32()
			}
			for i := range n {
				d, s, fl, offset := duration, size, flags, int64(0)
				if i == 0 {
					fl = firstFlags
				}
				if has&trunDuration != 0 {
					d = u32()
				}
				if has&trunSize != 0 {
					s = u32()
				}
				if has&trunFlags != 0 {
					fl = u32()
				}
				if has&trunComposition != 0 {
					offset = int64(int32(u32()))
					if version == 0 {
						offset = int64(uint32(offset))
					}
				}
				f.samples = append(f.samples, mp4Sample{
					track: t, pts: inTime(dts+offset, t.rate), duration: inTime(int64(d), t.rate), ticks: int64(d),
					sync: fl&notSync == 0, data: data[at : at+int(s)],
				})
				at += int(s)
				dts += int64(d)
			}
		}
		return nil
	})
}

// inTime converts ticks without overflow.
func inTime(n, rate int64) time.Duration {
	return time.Duration(n/rate)*time.Second + time.Duration(n%rate)*time.Second/time.Duration(rate)
}

// nalUnits splits a sample of H264 or H265 by its four-byte lengths.
func nalUnits(sample []byte) ([][]byte, error) {
	var out [][]byte
	for len(sample) > 0 {
		if len(sample) < 4 || int64(binary.BigEndian.Uint32(sample)) > int64(len(sample)-4) {
			return nil, fmt.Errorf("%w: NAL unit beyond its sample", errMP4)
		}
		n := 4 + int(binary.BigEndian.Uint32(sample))
		out = append(out, sample[4:n])
		sample = sample[n:]
	}
	return out, nil
}
