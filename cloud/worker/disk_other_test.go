//go:build !linux

package worker_test

import "testing"

func tinyDisk(t *testing.T, _ int) string {
	t.Skip("needs a small tmpfs")
	return ""
}
