package ingest

import (
	"math/bits"
	"sync"
)

// Messages are read into buffers that are lent out and come back: a chunk has
// been written to tmpfs by the time that the next one is read, and what nobody
// keeps need not be garbage. Sizes are 4 KiB, 6, 8, 12, … up to 1 MiB, so that at
// most a third of a buffer is idle. What is larger is a rare keyframe, made to
// measure and left to the collector.
const (
	leastShift = 11 // the first class is 2<<11 bytes
	classes    = 17
)

// buffer is what a message is read into. Its length is the class's.
type buffer struct {
	b     []byte
	class int // -1: not lent again
}

// buffers lends buffers. The zero value is ready.
type buffers struct{ pools [classes]sync.Pool }

// classOf is the least class with room for n bytes, or -1.
func classOf(n int) int {
	if n <= 2<<leastShift {
		return 0
	}
	k := bits.Len(uint(n - 1)) // 1<<(k-1) < n <= 1<<k
	class := 2 * (k - 1 - leastShift)
	if n <= 3<<(k-2) {
		class--
	}
	if class >= classes {
		return -1
	}
	return class
}

// size is how many bytes the buffers of a class have.
func size(class int) int { return (2 + class&1) << (leastShift + class>>1) }

// get lends a buffer of at least n bytes. What is in it is of others.
func (p *buffers) get(n int) *buffer {
	class := classOf(n)
	if class < 0 {
		return &buffer{b: make([]byte, n), class: class}
	}
	if b, ok := p.pools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, size(class)), class: class}
}

// put takes a buffer back that nobody reads any more.
func (p *buffers) put(b *buffer) {
	if b.class >= 0 {
		p.pools[b.class].Put(b)
	}
}
