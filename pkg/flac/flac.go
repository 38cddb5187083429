// Package flac encodes PCM without loss (RFC 9639): what cameras send as G711 or
// LPCM, in a form that MP4 and browsers carry.
//
// It knows only what is cheap: the fixed predictors, partitioned Rice codes,
// constant and verbatim subframes, and wasted bits, with which the eight bits of
// G711 do not cost sixteen. Channels are coded one by one. A predictor computed
// for each frame (LPC) would save some 5 % of speech for several times the work.
package flac

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
)

const (
	// maxOrder is that of the highest fixed predictor (RFC 9639, 9.2.5).
	maxOrder = 4
	// Residuals are coded in up to 1<<maxPartitions parts, each of at least
	// leastPartition samples: speech changes its loudness that fast and no faster.
	maxPartitions  = 4
	leastPartition = 32
	// leastBlock is the shortest frame that may stand before another (RFC 9639, 8.2).
	leastBlock = 16
)

// Encoder makes the frames of one stream. It is not safe for concurrent use.
type Encoder struct {
	rate, channels, bits int
	block                int
	next                 uint64   // number of the next sample
	samples              []int32  // of the channel that is being coded
	residual             []uint32 // of its predictor, zigzag
}

// NewEncoder returns an encoder for rate samples a second (at most 655,350) of
// channels (at most 8) with bits (8 to 24) each.
func NewEncoder(rate, channels, bits int) (*Encoder, error) {
	if rate < 1 || rate > 655_350 || channels < 1 || channels > 8 || bits < 8 || bits > 24 {
		return nil, fmt.Errorf("FLAC of %d Hz, %d channels and %d bits; want at most 655350 Hz, 1 to 8 channels and 8 to 24 bits", rate, channels, bits)
	}
	// A power of two, which frame headers have a short code for: 512 at 8 kHz,
	// 2,048 at 48 kHz.
	block := 64
	for block*2 <= rate*64/1000 {
		block *= 2
	}
	return &Encoder{
		rate: rate, channels: channels, bits: bits, block: block,
		samples: make([]int32, block), residual: make([]uint32, block),
	}, nil
}

// Block returns how many samples of each channel a full frame holds: up to 64 ms.
func (e *Encoder) Block() int { return e.block }

// StreamInfo returns the 34 bytes that describe the stream (RFC 9639, 8.2). They
// depend on nothing but what NewEncoder was told: size and hash of what is still
// to come are left open.
func (e *Encoder) StreamInfo() []byte {
	b := make([]byte, 34)
	// Two block sizes that differ announce frames of variable length.
	binary.BigEndian.PutUint16(b, leastBlock)
	binary.BigEndian.PutUint16(b[2:], uint16(e.block))
	// 20 bits of rate, 3 of channels, 5 of bits, 36 of length.
	binary.BigEndian.PutUint64(b[10:], uint64(e.rate)<<44|uint64(e.channels-1)<<41|uint64(e.bits-1)<<36)
	return b
}

// Frame appends to dst one frame with the samples of pcm, which are interleaved
// and fit the encoder's bits, and returns the result. A frame holds up to Block
// samples of each channel, and at least 16 where another follows. It takes no
// more than PCM of that many bits, 24 bytes and 3 for each channel; where dst has
// room for that, nothing is allocated. A pcm of another length panics.
func (e *Encoder) Frame(dst []byte, pcm []int32) []byte {
	n := len(pcm) / e.channels
	if n < 1 || n > e.block || n*e.channels != len(pcm) {
		panic(fmt.Sprintf("flac: frame of %d values for %d channels, want up to %d of each", len(pcm), e.channels, e.block))
	}
	begin := len(dst)
	dst = e.header(dst, n)
	w := writer{b: dst}
	for c := range e.channels {
		x := e.samples[:n]
		for i := range x {
			x[i] = pcm[i*e.channels+c]
		}
		e.subframe(&w, x)
	}
	w.align()
	e.next += uint64(n)
	return binary.BigEndian.AppendUint16(w.b, crc16(w.b[begin:]))
}

// Codes of frame headers (RFC 9639, 9.1.2 and 9.1.4).
// Code 0 says that it stands in the stream's description.
var (
	rateCodes = [...]int{0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000}
	bitCodes  = [...]int{0, 8, 12, 0, 16, 20, 24}
)

func code(codes []int, v int) byte { return byte(max(slices.Index(codes, v), 0)) }

// header appends the header of a frame of n samples (RFC 9639, 9.1).
func (e *Encoder) header(dst []byte, n int) []byte {
	begin := len(dst)
	var size byte
	switch {
	case n >= 256 && n&(n-1) == 0:
		size = byte(bits.TrailingZeros(uint(n))) // 8 for 256 and so on
	case n <= 256:
		size = 6 // in 8 bits
	default:
		size = 7 // in 16 bits
	}
	rate := code(rateCodes[:], e.rate)
	switch {
	case rate > 0:
	case e.rate <= math.MaxUint16:
		rate = 13 // Hz in 16 bits
	case e.rate%10 == 0:
		rate = 14 // tens of Hz
	}
	// 15 bits of sync code, and the one for frames of variable length.
	dst = append(dst, 0xff, 0xf9, size<<4|rate, byte(e.channels-1)<<4|code(bitCodes[:], e.bits)<<1)
	dst = appendNumber(dst, e.next&(1<<36-1))
	switch size {
	case 6:
		dst = append(dst, byte(n-1))
	case 7:
		dst = binary.BigEndian.AppendUint16(dst, uint16(n-1))
	}
	switch rate {
	case 13:
		dst = binary.BigEndian.AppendUint16(dst, uint16(e.rate))
	case 14:
		dst = binary.BigEndian.AppendUint16(dst, uint16(e.rate/10))
	}
	return append(dst, crc8(dst[begin:]))
}

// appendNumber appends a number of up to 36 bits, coded as UTF-8 was before it
// was limited to four bytes (RFC 9639, 9.1.5).
func appendNumber(dst []byte, v uint64) []byte {
	if v < 0x80 {
		return append(dst, byte(v))
	}
	more := 1 // bytes that follow the first, which has 6-more bits of v
	for v>>(6*more+6-more) != 0 {
		more++
	}
	dst = append(dst, byte(0xff<<(7-more))|byte(v>>(6*more)))
	for more--; more >= 0; more-- {
		dst = append(dst, 0x80|byte(v>>(6*more))&0x3f)
	}
	return dst
}

// subframe writes the samples x of one channel, which it overwrites.
func (e *Encoder) subframe(w *writer, x []int32) {
	var all, differ int32
	for _, s := range x {
		all |= s
		differ |= s ^ x[0]
	}
	if differ == 0 {
		w.bits(8, 0) // constant (9.2.3)
		w.bits(e.bits, uint32(x[0]))
		return
	}
	depth, wasted := e.bits, bits.TrailingZeros32(uint32(all))
	if wasted > 0 {
		depth -= wasted
		for i := range x {
			x[i] >>= wasted
		}
	}
	order := bestOrder(x)
	plan, cost := e.predict(x, order)
	if int64(order*depth)+cost >= int64(len(x)*depth) {
		e.begin(w, 1, wasted) // verbatim (9.2.4)
		for _, s := range x {
			w.bits(depth, uint32(s))
		}
		return
	}
	e.begin(w, 8|uint32(order), wasted) // fixed predictor (9.2.5)
	for _, s := range x[:order] {
		w.bits(depth, uint32(s))
	}
	e.rice(w, order, len(x), plan)
}

// begin writes the header of a subframe (9.2.1 and 9.2.2).
func (e *Encoder) begin(w *writer, kind uint32, wasted int) {
	if wasted == 0 {
		w.bits(8, kind<<1)
		return
	}
	w.bits(8, kind<<1|1)
	w.bits(wasted, 1) // one less in zeros, then a one
}

// bestOrder returns the order of the fixed predictor that leaves least of x.
func bestOrder(x []int32) int {
	if len(x) <= maxOrder {
		return 0
	}
	var left [maxOrder + 1]uint64
	var p0, p1, p2, p3 int32 // the differences of each order at the sample before
	for i, d0 := range x {
		d1 := d0 - p0
		d2 := d1 - p1
		d3 := d2 - p2
		d4 := d3 - p3
		p0, p1, p2, p3 = d0, d1, d2, d3
		if i >= maxOrder {
			left[0] += uint64(abs(d0))
			left[1] += uint64(abs(d1))
			left[2] += uint64(abs(d2))
			left[3] += uint64(abs(d3))
			left[4] += uint64(abs(d4))
		}
	}
	best := 0
	for order := range left {
		if left[order] < left[best] {
			best = order
		}
	}
	return best
}

func abs(d int32) uint32 {
	s := d >> 31
	return uint32((d ^ s) - s)
}

// plan says how a residual is coded.
type plan struct {
	partitions int // as a power of two
	wide       int // 1: parameters have five bits, else four
	k          [1 << maxPartitions]uint8
}

// predict leaves in e.residual what the predictor of that order does not know of
// x, and returns the cheapest plan and what it costs at most, bits.
func (e *Encoder) predict(x []int32, order int) (best plan, cost int64) {
	res := e.residual[:len(x)]
	for i := order; i < len(x); i++ {
		var d int32
		switch order { // 9.2.5
		case 0:
			d = x[i]
		case 1:
			d = x[i] - x[i-1]
		case 2:
			d = x[i] - 2*x[i-1] + x[i-2]
		case 3:
			d = x[i] - 3*x[i-1] + 3*x[i-2] - x[i-3]
		default:
			d = x[i] - 4*x[i-1] + 6*x[i-2] - 4*x[i-3] + x[i-4]
		}
		res[i] = uint32(d<<1 ^ d>>31) // 9.2.7.2
	}
	p := 0
	for p < maxPartitions && len(x)>>(p+1) >= leastPartition && len(x)&(1<<(p+1)-1) == 0 {
		p++
	}
	var sums [1 << maxPartitions]uint64
	size := len(x) >> p
	for i, v := range res[order:] {
		sums[(i+order)/size] += uint64(v)
	}
	for cost = math.MaxInt64; ; p-- {
		try := plan{partitions: p}
		total := int64(2 + 4)
		for i := range 1 << p {
			n := len(x) >> p
			if i == 0 {
				n -= order
			}
			k, c := parameter(n, sums[i])
			try.k[i] = k
			total += 4 + c
			if k > 14 { // 15 of four bits means something else (9.2.7)
				try.wide = 1
			}
		}
		total += int64(try.wide) << p
		if total < cost {
			best, cost = try, total
		}
		if p == 0 {
			return best, cost
		}
		for i := range 1 << (p - 1) {
			sums[i] = sums[2*i] + sums[2*i+1]
		}
	}
}

// parameter returns the Rice parameter for n values with that sum, and how many
// bits they take at most: the quotients of all never add up to more than the
// quotient of the sum.
func parameter(n int, sum uint64) (k uint8, cost int64) {
	cost = int64(n) + int64(sum)
	for k < 30 {
		c := int64(n)*int64(k+2) + int64(sum>>(k+1))
		if c >= cost {
			break
		}
		k, cost = k+1, c
	}
	return k, cost
}

// rice writes the residual of n samples behind a predictor (9.2.7).
func (e *Encoder) rice(w *writer, order, n int, p plan) {
	w.bits(2, uint32(p.wide))
	w.bits(4, uint32(p.partitions))
	size := n >> p.partitions
	at := order
	for i := range 1 << p.partitions {
		k := p.k[i]
		w.bits(4+p.wide, uint32(k))
		for ; at < (i+1)*size; at++ {
			v := e.residual[at]
			w.unary(v >> k)
			w.bits(int(k), v)
		}
	}
}

// writer appends bits, the highest first.
type writer struct {
	b    []byte
	have uint32 // the lowest n bits are not in b yet; hubs have 32 bits
	n    int    // less than 8
}

// bits writes the lowest n bits of v, n up to 32.
func (w *writer) bits(n int, v uint32) {
	if n > 24 {
		w.bits(n-24, v>>24)
		n = 24
	}
	w.have = w.have<<n | v&(1<<n-1)
	for w.n += n; w.n >= 8; {
		w.n -= 8
		w.b = append(w.b, byte(w.have>>w.n))
	}
}

// unary writes v zeros and a one.
func (w *writer) unary(v uint32) {
	for ; v >= 24; v -= 24 {
		w.bits(24, 0)
	}
	w.bits(int(v)+1, 1)
}

// align fills the last byte with zeros.
func (w *writer) align() {
	if w.n > 0 {
		w.bits(8-w.n, 0)
	}
}

// crc8 is that of frame headers (9.1.8): x^8 + x^2 + x + 1.
func crc8(b []byte) (crc byte) {
	for _, v := range b {
		crc ^= v
		for range 8 {
			crc = crc<<1 ^ crc>>7*0x07
		}
	}
	return crc
}

// crc16 is that of whole frames (9.3): x^16 + x^15 + x^2 + 1.
func crc16(b []byte) (crc uint16) {
	for _, v := range b {
		crc = crc<<8 ^ crc16Table[byte(crc>>8)^v]
	}
	return crc
}

var crc16Table = func() (table [256]uint16) {
	for i := range table {
		crc := uint16(i) << 8
		for range 8 {
			crc = crc<<1 ^ crc>>15*0x8005
		}
		table[i] = crc
	}
	return table
}()
