//go:build unix

package chaos

import "syscall"

// On the loopback the kernel lends each connection megabytes, which would be a
// queue of many seconds in front of a slow link. With segments and a window as
// on Ethernet it does not.
const (
	segment = 1460
	window  = 32 << 10
)

// plainSocket makes a socket one of a small network. It sets what is announced
// when a connection opens.
func plainSocket(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		if err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, segment); err == nil {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, window)
		}
	}); cerr != nil {
		return cerr
	}
	return err
}
