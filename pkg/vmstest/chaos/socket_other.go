//go:build !unix

package chaos

import "syscall"

// plainSocket leaves a socket as it is.
func plainSocket(string, string, syscall.RawConn) error { return nil }
