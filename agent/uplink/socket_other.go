//go:build !linux

package uplink

import (
	"net"
	"syscall"
)

// tighten and unsent need Linux, which hubs have; elsewhere the kernel buffers
// what it likes.
func tighten(c net.Conn) syscall.RawConn { return rawConn(c) }

func unsent(syscall.RawConn) int { return 0 }
