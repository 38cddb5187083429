package agent

import (
	"fmt"
	"net"
	"net/url"
	"strings"

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

// cameraAddress names the place that a camera's password goes to.
func cameraAddress(c vms.Camera) (string, error) {
	all, err := camera.Resolve(c)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(all[0].String())
	if err != nil {
		return "", fmt.Errorf("%w: camera: no address", vms.ErrInvalid)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"rtsp": "554", "rtsps": "322"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port), nil
}
