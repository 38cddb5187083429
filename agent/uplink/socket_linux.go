package uplink

import (
	"net"
	"syscall"
	"unsafe"
)

const (
	// tcpNotsentLowat and siocOutqNSD are TCP_NOTSENT_LOWAT (linux/tcp.h) and
	// SIOCOUTQNSD (linux/sockios.h), which package syscall does not name. They
	// are the same on all architectures.
	tcpNotsentLowat = 25
	siocOutqNSD     = 0x894b
	// unsentLimit is how many bytes the kernel takes before it has to send some.
	// Without it a slow uplink hides minutes of video in the socket, where it can
	// neither give way to live nor be skipped.
	unsentLimit = 16 << 10
)

// tighten keeps the kernel from buffering more than it can use. Where that
// fails, as on pipes, there is nothing to tighten.
func tighten(c net.Conn) syscall.RawConn {
	raw := rawConn(c)
	if raw != nil {
		_ = raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, unsentLimit)
		})
	}
	return raw
}

// unsent returns how many bytes wait in the kernel for their first sending.
func unsent(raw syscall.RawConn) (n int) {
	if raw == nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		var v int32
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, siocOutqNSD, uintptr(unsafe.Pointer(&v))); errno == 0 {
			n = int(v)
		}
	})
	return n
}
