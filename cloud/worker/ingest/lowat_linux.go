package ingest

import (
	"net"
	"syscall"
)

// leastLowat is what is worth two system calls, and mostLowat how much may come
// in before anybody is told: at 64 kbit/s that is eight seconds, in which the
// connection looks quiet.
const (
	leastLowat = 8 << 10
	mostLowat  = 64 << 10
)

// lowat lets the kernel collect (SO_RCVLOWAT, socket(7)): of a chunk that comes
// in dozens of segments, one after the other, only the last is of interest, and
// each that wakes us up costs more than to copy it: 50 kB in pieces of 4 KiB, one
// every 5 ms, cost 2.4 instead of 3.8 ms of CPU per MB (64 connections, loopback,
// what the lane does not counted). The end of a connection is told at once. What
// lies beyond a TLS layer cannot be counted this way.
type lowat struct {
	raw   syscall.RawConn
	apply func(fd uintptr) // sets now
	now   int
}

func newLowat(c net.Conn) *lowat {
	l := &lowat{now: 1}
	if t, ok := c.(*net.TCPConn); ok {
		l.raw, _ = t.SyscallConn() // nil: nothing is collected
	}
	l.apply = func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, l.now) }
	return l
}

// want is called before n bytes are read that are certain to come.
func (l *lowat) want(n int) {
	if l.raw == nil {
		return
	}
	if n = min(n, mostLowat); n < leastLowat {
		n = 1
	}
	if n == l.now || n > l.now && l.now >= leastLowat {
		return // what is set is less than what comes: good enough
	}
	l.now = n
	_ = l.raw.Control(l.apply) // it is gone, then: reading will say so
}
