package agent

import (
	"maps"
	"net/url"

	"github.com/zipato/vms/agent/camera"
	"github.com/zipato/vms/pkg/vms"
)

// checkCamera reports, as vms.ErrInvalid, an address that no retry can make good.
func checkCamera(c vms.Camera) error {
	_, err := camera.Resolve(c)
	return err
}

// cameraHost names a camera without its credentials.
func cameraHost(c vms.Camera) string {
	if c.URL == "" {
		return c.Host
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return "invalid"
	}
	return u.Host
}

// sameCamera reports whether a stream of one is a stream of the other.
func sameCamera(a, b vms.Camera) bool {
	return a.URL == b.URL && a.Host == b.Host && a.Port == b.Port && a.Username == b.Username &&
		a.Password == b.Password && maps.Equal(a.Templates, b.Templates)
}
