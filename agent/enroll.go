package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"github.com/zipato/vms/agent/identity"
	"github.com/zipato/vms/pkg/vms"
)

// Enroll makes this hub known to the cloud at url, once: it makes a key pair in
// dir and spends the enrolment code.
func Enroll(ctx context.Context, url, code, name, dir string) (vms.HubID, error) {
	id, err := identity.Enroll(ctx, http.DefaultClient, url, code, name, dir)
	if err != nil {
		return "", err
	}
	return id.Hub, nil
}

// lock keeps a second agent off the same directory: two agents with one
// identity would fence each other for ever.
func lock(dir string) (unlock func(), err error) {
	name := filepath.Join(dir, "lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, syscall.EROFS) { // worn out flash: cameras can be recorded all the same
		f, err = os.Open(name)
	}
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		return nil, fmt.Errorf("another agent runs on %s; stop it, or give this one another -data", dir)
	}
	return func() { f.Close() }, nil
}
