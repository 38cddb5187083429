//go:build unix

package spool

import (
	"os"
	"path/filepath"
	"syscall"
)

// freeBytes is what may still be written to the file system that dir is on, or
// will be on.
func freeBytes(dir string) (int64, error) {
	var fs syscall.Statfs_t
	for {
		err := syscall.Statfs(dir, &fs)
		if err == nil {
			return int64(fs.Bavail) * int64(fs.Bsize), nil //nolint:unconvert // it has 32 bits on some machines
		}
		up := filepath.Dir(dir)
		if !os.IsNotExist(err) || up == dir {
			return 0, err
		}
		dir = up
	}
}
