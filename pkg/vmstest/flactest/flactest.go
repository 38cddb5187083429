// Package flactest decodes FLAC (RFC 9639) for tests. It is written from the RFC
// alone and strict, and knows only what the project's encoder may use: streams of
// variable blocks, independent channels, constant, verbatim and fixed subframes.
package flactest

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Decoder decodes the frames of one stream.
type Decoder struct {
	Rate, Channels, Bits int
	// Next is the number that the next frame's first sample must have; less than
	// 0: any.
	Next int64
	// Kinds counts what was seen of what RFC 9639 knows.
	Kinds map[string]int

	b   []byte
	pos int // in bits
}

// New returns a decoder for a stream that is described by the 34 bytes of STREAMINFO.
func New(info []byte) (*Decoder, error) {
	if len(info) != 34 {
		return nil, fmt.Errorf("STREAMINFO of %d bytes", len(info))
	}
	if least, most := binary.BigEndian.Uint16(info), binary.BigEndian.Uint16(info[2:]); least < 16 || least >= most {
		return nil, fmt.Errorf("blocks of %d to %d samples, want blocks of variable length", least, most)
	}
	v := binary.BigEndian.Uint64(info[10:])
	return &Decoder{Rate: int(v >> 44), Channels: int(v>>41&7) + 1, Bits: int(v>>36&31) + 1, Kinds: map[string]int{}}, nil
}

var errShort = errors.New("cut short")

func (d *Decoder) u(n int) (v uint64) {
	if d.pos+n > len(d.b)*8 {
		panic(errShort)
	}
	for n > 0 {
		have := 8 - d.pos&7
		take := min(n, have)
		v = v<<take | uint64(d.b[d.pos>>3])>>(have-take)&(1<<take-1)
		d.pos, n = d.pos+take, n-take
	}
	return v
}

func (d *Decoder) i(n int) int32 { return int32(d.u(n)<<(64-n)>>32) >> (32 - min(n, 32)) }

func (d *Decoder) unary() (n uint32) {
	for d.u(1) == 0 {
		n++
	}
	return n
}

func check(ok bool, format string, args ...any) {
	if !ok {
		panic(fmt.Errorf(format, args...))
	}
}

// Frames decodes the frames that b consists of and returns the samples, interleaved.
func (d *Decoder) Frames(b []byte) (pcm []int32, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = r.(error)
		}
	}()
	d.b, d.pos = b, 0
	for d.pos < len(b)*8 {
		pcm = append(pcm, d.frame()...)
	}
	return pcm, nil
}

func (d *Decoder) frame() []int32 {
	begin := d.pos / 8
	check(d.u(15) == 0x7ffc && d.u(1) == 1, "no sync code of a stream of variable blocks")
	size, rate := d.u(4), d.u(4)
	channels, depth := int(d.u(4))+1, d.u(3)
	check(d.u(1) == 0, "reserved bit is set")
	check(channels == d.Channels, "%d channels", channels)
	check(depth == 0 || []int{0, 8, 12, 0, 16, 20, 24}[depth] == d.Bits, "bit depth of code %d", depth)
	more := 0
	for ; d.u(1) == 1; more++ {
	}
	var number uint64
	if more == 0 {
		number = d.u(7)
	} else {
		number = d.u(7 - more)
		for range more - 1 {
			check(d.u(2) == 2, "broken number")
			number = number<<6 | d.u(6)
		}
		// The shortest form that holds it.
		check(number >= 0x80 && (more == 2 || number>>(5*(more-1)+1) > 0), "number %d in %d bytes", number, more)
	}
	check(d.Next < 0 || number == uint64(d.Next), "sample %d, want %d", number, d.Next)
	n := 0
	switch {
	case size == 6:
		n = int(d.u(8)) + 1
	case size == 7:
		n = int(d.u(16)) + 1
	case size >= 8:
		n = 256 << (size - 8)
	}
	var hz int
	switch rate {
	case 13:
		hz = int(d.u(16))
	case 14:
		hz = int(d.u(16)) * 10
	case 0:
		hz = d.Rate
	default:
		hz = []int{0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000}[rate]
	}
	check(n > 0 && hz == d.Rate, "%d samples at %d Hz", n, hz)
	var crc byte
	for _, v := range d.b[begin : d.pos/8] {
		for i := 7; i >= 0; i-- {
			bit := v>>i&1 ^ crc>>7
			crc = crc<<1 ^ bit*7
		}
	}
	check(d.u(8) == uint64(crc), "CRC-8 of the header")
	pcm := make([]int32, n*channels)
	for c := range channels {
		for i, v := range d.subframe(n) {
			pcm[i*channels+c] = v
		}
	}
	for d.pos%8 != 0 {
		check(d.u(1) == 0, "padding is not zero")
	}
	var crc2 uint16
	for _, v := range d.b[begin : d.pos/8] {
		for i := 7; i >= 0; i-- {
			bit := uint16(v>>i&1) ^ crc2>>15
			crc2 = crc2<<1 ^ bit*0x8005
		}
	}
	check(d.u(16) == uint64(crc2), "CRC-16 of the frame")
	if d.Next >= 0 {
		d.Next = (d.Next + int64(n)) & (1<<36 - 1)
	}
	return pcm
}

func (d *Decoder) subframe(n int) []int32 {
	check(d.u(1) == 0, "reserved bit of a subframe is set")
	kind, depth, wasted := d.u(6), d.Bits, 0
	if d.u(1) == 1 {
		wasted = int(d.unary()) + 1
		depth -= wasted
		d.Kinds["wasted bits"]++
	}
	x := make([]int32, n)
	switch {
	case kind == 0:
		d.Kinds["constant"]++
		v := d.i(depth)
		for i := range x {
			x[i] = v
		}
	case kind == 1:
		d.Kinds["verbatim"]++
		for i := range x {
			x[i] = d.i(depth)
		}
	case kind >= 8 && kind <= 12:
		order := int(kind - 8)
		d.Kinds[fmt.Sprint("fixed ", order)]++
		for i := range order {
			x[i] = d.i(depth)
		}
		d.residual(x, order)
	default:
		check(false, "subframe of kind %d", kind)
	}
	for i := range x {
		x[i] <<= wasted
	}
	return x
}

func (d *Decoder) residual(x []int32, order int) {
	coef := [][]int32{{}, {1}, {2, -1}, {3, -3, 1}, {4, -6, 4, -1}}[order]
	width := 4 + int(d.u(2))
	check(width <= 5, "residual method")
	parts := 1 << d.u(4)
	check(len(x)%parts == 0 && len(x)/parts > order, "%d partitions of %d samples", parts, len(x))
	if parts > 1 {
		d.Kinds["partitions"]++
	}
	if width == 5 {
		d.Kinds["wide parameters"]++
	}
	at := order
	for p := range parts {
		k := int(d.u(width))
		check(k != 1<<width-1, "escaped partition")
		for ; at < (p+1)*len(x)/parts; at++ {
			v := d.unary()<<k | uint32(d.u(k))
			x[at] = int32(v>>1) ^ -int32(v&1)
			for j, c := range coef {
				x[at] += c * x[at-1-j]
			}
		}
	}
}
