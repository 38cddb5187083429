package embed

import "sync"

// copyBuffers are what objects pass through on their way in and out.
var copyBuffers = &bufferPool{}

type bufferPool struct{ pool sync.Pool }

// copyBuffer is a few system calls for a recording of some megabytes, and not
// much memory for maxConns requests at once.
const copyBuffer = 64 << 10

func (b *bufferPool) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, copyBuffer)
}

func (b *bufferPool) Put(p []byte) { b.pool.Put(&p) }
