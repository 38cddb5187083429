package cmaf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrInvalid is wrapped by every error of a parser: the bytes are no fragment
// of the kind that this system takes.
var ErrInvalid = errors.New("invalid fragment")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Limits of what ParseFragment takes from an outsider.
const (
	maxRuns    = 8
	maxSamples = 100_000
)

// RunInfo is what a parsed fragment says of one run.
type RunInfo struct {
	Track   int
	Base    uint64 // decode time of the first sample, ticks
	Samples int
	// Duration is the sum of the samples' durations, ticks.
	Duration uint64
	// MinPTS and MaxPTS are the least presentation time and the greatest
	// presentation end of the samples, ticks; they may lie outside [Base, Base+Duration).
	MinPTS, MaxPTS int64
	// Sync: the first sample is a sync sample.
	Sync bool
	// Bytes is the sum of the sample sizes.
	Bytes int64
	// tfdt is the offset of baseMediaDecodeTime in the moof, and its width.
	tfdt, tfdtWidth int
	// trun is the offset of the run's version and flags in the moof; def is what
	// the tfhd says of samples of which the run does not.
	trun int
	def  sampleDefaults
}

// sampleDefaults are fields of a tfhd (ISO/IEC 14496-12, 8.8.7).
type sampleDefaults struct{ duration, size, flags uint32 }

// Fragment is a parsed moof + mdat.
type Fragment struct {
	MoofLen int
	Runs    []RunInfo
}

// Run returns the run of a track, or nil.
func (f *Fragment) Run(track int) *RunInfo {
	for i := range f.Runs {
		if f.Runs[i].Track == track {
			return &f.Runs[i]
		}
	}
	return nil
}

// ParseFragment reads one moof followed by one mdat, and checks that every
// sample lies inside the mdat. Anything else in payload is an error.
func ParseFragment(payload []byte) (Fragment, error) {
	name, moof, rest, err := nextBox(payload)
	if err != nil {
		return Fragment{}, err
	}
	if name != "moof" {
		return Fragment{}, invalid("begins with %q, want moof", name)
	}
	f := Fragment{MoofLen: len(payload) - len(rest)}
	name, mdat, rest, err := nextBox(rest)
	if err != nil {
		return Fragment{}, err
	}
	if name != "mdat" || len(rest) != 0 {
		return Fragment{}, invalid("%q and %d more bytes after the moof, want one mdat", name, len(rest))
	}
	mdatStart := f.MoofLen + 8
	for body := moof; len(body) > 0; {
		at := f.MoofLen - len(body) // moof's box header is 8 bytes, and body ends where moof ends
		name, in, next, err := nextBox(body)
		if err != nil {
			return Fragment{}, err
		}
		if name == "traf" {
			if len(f.Runs) == maxRuns {
				return Fragment{}, invalid("more than %d traf boxes", maxRuns)
			}
			r, err := parseTraf(in, at+8, mdatStart, len(mdat))
			if err != nil {
				return Fragment{}, err
			}
			if f.Run(r.Track) != nil {
				return Fragment{}, invalid("two traf boxes for track %d", r.Track)
			}
			f.Runs = append(f.Runs, r)
		}
		body = next
	}
	if len(f.Runs) == 0 {
		return Fragment{}, invalid("no traf box")
	}
	return f, nil
}

// CheckInit reports whether segment is one ftyp and one moov box, as far as
// their frames go.
func CheckInit(segment []byte) error {
	for _, want := range []string{"ftyp", "moov"} {
		name, _, rest, err := nextBox(segment)
		if err != nil {
			return err
		}
		if name != want {
			return invalid("init segment with %q, want %s", name, want)
		}
		segment = rest
	}
	if len(segment) > 0 {
		return invalid("%d bytes after the moov", len(segment))
	}
	return nil
}

// nextBox splits one box with a 32-bit size off b.
func nextBox(b []byte) (name string, body, rest []byte, err error) {
	if len(b) < 8 {
		return "", nil, nil, invalid("%d bytes where a box should be", len(b))
	}
	size := int64(binary.BigEndian.Uint32(b))
	if size < 8 || size > int64(len(b)) {
		return "", nil, nil, invalid("box %q of %d bytes in %d", b[4:8], size, len(b))
	}
	return boxName(b[4:8]), b[8:size], b[size:], nil
}

// boxName is string(b), without an allocation for what every fragment is made of:
// a worker reads some of each chunk.
func boxName(b []byte) string {
	switch string(b) {
	case "moof":
		return "moof"
	case "mfhd":
		return "mfhd"
	case "traf":
		return "traf"
	case "tfhd":
		return "tfhd"
	case "tfdt":
		return "tfdt"
	case "trun":
		return "trun"
	case "mdat":
		return "mdat"
	}
	return string(b)
}

var errTraf = invalid("a traf needs one tfhd, one tfdt and one trun, in this order")

// parseTraf reads the body of a traf that begins at offset at of the fragment.
func parseTraf(body []byte, at, mdatStart, mdatLen int) (RunInfo, error) {
	var r RunInfo
	var haveTrack, haveBase, haveRun bool
	for len(body) > 0 {
		name, in, next, err := nextBox(body)
		if err != nil {
			return r, err
		}
		c := cursor{b: in}
		switch name {
		case "tfhd":
			if haveTrack {
				return r, errTraf
			}
			haveTrack = true
			flags := c.u32() & 0xffffff
			id := c.u32()
			if id == 0 || id > math.MaxInt32 {
				return r, invalid("track id %d", id)
			}
			r.Track = int(id)
			if flags&0x000001 != 0 {
				return r, invalid("tfhd has a base data offset")
			}
			if flags&0x000002 != 0 {
				c.u32()
			}
			if flags&0x000008 != 0 {
				r.def.duration = c.u32()
			}
			if flags&0x000010 != 0 {
				r.def.size = c.u32()
			}
			if flags&tfhdDefaultFlags != 0 {
				r.def.flags = c.u32()
			}
		case "tfdt":
			if !haveTrack || haveBase {
				return r, errTraf
			}
			haveBase = true
			r.tfdt = at + 8 + 4
			switch version := c.u32() >> 24; version {
			case 0:
				r.Base, r.tfdtWidth = uint64(c.u32()), 4
			case 1:
				r.Base, r.tfdtWidth = c.u64(), 8
			default:
				return r, invalid("tfdt of version %d", version)
			}
		case "trun":
			if haveRun || !haveBase {
				return r, errTraf
			}
			haveRun = true
			r.trun = at + 8
			if err := r.parseTrun(&c, mdatStart, mdatLen); err != nil {
				return r, err
			}
		}
		if c.short {
			return r, invalid("%s is cut short", name)
		}
		at += len(body) - len(next)
		body = next
	}
	if !haveRun {
		return r, invalid("traf without trun")
	}
	return r, nil
}

func (r *RunInfo) parseTrun(c *cursor, mdatStart, mdatLen int) error {
	t := openTrun(c, r.def, mdatStart)
	if t.n == 0 || t.n > maxSamples {
		return invalid("trun of %d samples, want 1 to %d", t.n, maxSamples)
	}
	if r.Base > math.MaxInt64/2 {
		return invalid("decode time %d is out of range", r.Base)
	}
	r.Samples = int(t.n)
	dts := int64(r.Base)
	r.MinPTS, r.MaxPTS = math.MaxInt64, math.MinInt64
	for i := range t.n {
		s := t.next(c, i)
		if c.short {
			return invalid("trun is cut short")
		}
		if i == 0 {
			r.Sync = s.sync()
		}
		pts := dts + int64(s.cts)
		r.MinPTS = min(r.MinPTS, pts)
		r.MaxPTS = max(r.MaxPTS, pts+int64(s.duration))
		dts += int64(s.duration)
		r.Bytes += int64(s.size)
	}
	r.Duration = uint64(dts) - r.Base
	if t.offset < int64(mdatStart) || t.offset+r.Bytes > int64(mdatStart+mdatLen) {
		return invalid("samples of track %d lie outside the mdat", r.Track)
	}
	return nil
}

// trun is the head of a trun box (ISO/IEC 14496-12, 8.8.8).
type trun struct {
	flags, n uint32
	offset   int64 // of the first sample's bytes in the fragment
	def      sampleDefaults
	first    uint32 // flags of the first sample
}

// trunSample is one sample of a run, as it is written.
type trunSample struct {
	duration, size, flags uint32
	cts                   int32
}

func (s trunSample) sync() bool { return s.flags&0x00010000 == 0 }

// openTrun reads the head of a trun; without an offset the samples begin where
// the mdat's body does.
func openTrun(c *cursor, def sampleDefaults, mdatStart int) trun {
	t := trun{flags: c.u32() & 0xffffff, n: c.u32(), offset: int64(mdatStart), def: def, first: def.flags}
	if t.flags&trunDataOffset != 0 {
		t.offset = int64(int32(c.u32()))
	}
	if t.flags&trunFirstSampleFlags != 0 {
		t.first = c.u32()
	}
	return t
}

// next reads the sample of number i.
func (t *trun) next(c *cursor, i uint32) trunSample {
	s := trunSample{duration: t.def.duration, size: t.def.size, flags: t.def.flags}
	if i == 0 {
		s.flags = t.first
	}
	if t.flags&trunDuration != 0 {
		s.duration = c.u32()
	}
	if t.flags&trunSize != 0 {
		s.size = c.u32()
	}
	if t.flags&trunFlags != 0 {
		s.flags = c.u32()
	}
	if t.flags&trunCTS != 0 {
		s.cts = int32(c.u32())
	}
	return s
}

// cursor reads big-endian numbers and remembers whether the bytes were enough.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) u32() uint32 {
	if len(c.b) < 4 {
		c.short = true
		return 0
	}
	v := binary.BigEndian.Uint32(c.b)
	c.b = c.b[4:]
	return v
}

func (c *cursor) u64() uint64 { return uint64(c.u32())<<32 | uint64(c.u32()) }

// Rebase writes the moof of f, whose bytes begin payload, into dst with zero
// subtracted from the decode time of every run. The payload is not touched:
// others read it. An error means that a run begins before zero.
func (f *Fragment) Rebase(dst, payload []byte, zero uint64) ([]byte, error) {
	n := len(dst)
	dst = append(dst, payload[:f.MoofLen]...)
	for _, r := range f.Runs {
		if r.Base < zero {
			return dst[:n], invalid("track %d begins %d ticks before the recording does", r.Track, zero-r.Base)
		}
		if r.tfdtWidth == 8 {
			binary.BigEndian.PutUint64(dst[n+r.tfdt:], r.Base-zero)
		} else {
			binary.BigEndian.PutUint32(dst[n+r.tfdt:], uint32(r.Base-zero))
		}
	}
	return dst, nil
}

// Unbase undoes Rebase: it writes the moof of f, whose bytes begin payload,
// into dst with zero added to the decode time of every run. An error means that
// a time would not fit where it stands.
func (f *Fragment) Unbase(dst, payload []byte, zero uint64) ([]byte, error) {
	n := len(dst)
	dst = append(dst, payload[:f.MoofLen]...)
	for _, r := range f.Runs {
		base := r.Base + zero
		switch {
		case base < zero, r.tfdtWidth == 4 && base > math.MaxUint32:
			return dst[:n], invalid("decode time %d of track %d moved by %d does not fit", r.Base, r.Track, zero)
		case r.tfdtWidth == 8:
			binary.BigEndian.PutUint64(dst[n+r.tfdt:], base)
		default:
			binary.BigEndian.PutUint32(dst[n+r.tfdt:], uint32(base))
		}
	}
	return dst, nil
}

// Zero is the earliest time that the fragment's runs need: the least decode
// time and the least presentation time over all tracks.
func (f *Fragment) Zero() uint64 {
	z := uint64(math.MaxUint64)
	for _, r := range f.Runs {
		z = min(z, r.Base)
		if r.MinPTS >= 0 {
			z = min(z, uint64(r.MinPTS))
		}
	}
	return z
}
