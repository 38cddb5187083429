package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/zipato/vms/agent/clocktls"
	"github.com/zipato/vms/agent/hubclock"
	"github.com/zipato/vms/agent/identity"
	"github.com/zipato/vms/pkg/vms"
)

// Enroll makes this hub known to the cloud at url, once: it makes a key pair in
// dir and spends the enrolment code. ca are files with certificate authorities to
// trust beside the system's (Config.CA).
//
// A hub that has just been unpacked often does not know what time it is, and
// without the time no certificate is good: the cloud is asked first.
func Enroll(ctx context.Context, url, code, name, dir string, ca ...string) (vms.HubID, error) {
	roots, err := clocktls.Roots(ca...)
	if err != nil {
		return "", err
	}
	clock := hubclock.New(hubclock.Config{})
	if strings.HasPrefix(url, "https:") {
		// A cloud that does not tell it is verified at the system's time.
		if t, err := clocktls.Probe(ctx, url, roots, clock.Passed()); err == nil {
			clock.Learn(t.Asked, t.Answered, t.Server)
		}
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: clocktls.Config(roots, clock.Read)}}
	defer client.CloseIdleConnections()
	id, err := identity.Enroll(ctx, client, url, code, name, dir)
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
