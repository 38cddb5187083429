package cloud

import (
	"fmt"
	"net"
	"net/url"

	"github.com/zipato/vms/cloud/nvrlink"
	"github.com/zipato/vms/pkg/vms"
)

// check refuses settings that cannot work, and those that would carry passwords
// and footage in the clear over a network.
func (c *Config) check() error {
	checks := []func() error{c.Roles.check, c.checkListener, c.checkNVRURL}
	if c.Roles.Has(RoleWorker) {
		checks = append(checks, c.checkWorker)
	}
	checks = append(checks, c.checkObjects)
	if c.Roles.Has(RoleNVR) {
		checks = append(checks, c.checkS3Listener, c.checkBroker)
	}
	for _, f := range checks {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) checkListener() error {
	return c.checkExposure(c.Listen, c.PublicURL, "VMS_PUBLIC_URL")
}

func (c *Config) checkS3Listener() error {
	if c.S3.URL != "" {
		return checkHTTP(c.S3PublicURL, "VMS_S3_PUBLIC_URL") // nothing listens there
	}
	return c.checkExposure(c.S3Listen, c.S3PublicURL, "VMS_S3_PUBLIC_URL")
}

// checkExposure wants TLS before a listener off the loopback.
func (c *Config) checkExposure(addr, public, variable string) error {
	if err := checkHTTP(public, variable); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%w: address %q: %v", vms.ErrInvalid, addr, err)
	}
	if loopback(host) || c.Insecure {
		return nil
	}
	if u, err := url.Parse(public); err != nil || u.Scheme != "https" {
		return fmt.Errorf("%w: %s is not on the loopback: put a TLS proxy in front of it and name its https URL in %s, or pass -insecure", vms.ErrInvalid, addr, variable)
	}
	return nil
}

// checkHTTP checks a public URL, if there is one.
func checkHTTP(public, variable string) error {
	if u, err := url.Parse(public); public != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("%w: %s %q, want http:// or https://", vms.ErrInvalid, variable, public)
	}
	return nil
}

// checkObjects checks the object store elsewhere, if there is one.
func (c *Config) checkObjects() error {
	if c.S3.URL == "" {
		if c.Roles.Has(RoleNVR) {
			return nil
		}
		return fmt.Errorf("%w: a worker alone puts recordings into the object store of its NVR: name that in -s3-url (VMS_S3_URL); the embedded one of an NVR listens where its -s3-listen says", vms.ErrInvalid)
	}
	u, err := url.Parse(c.S3.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%w: VMS_S3_URL: want http:// or https:// and a host", vms.ErrInvalid)
	case u.Scheme == "http" && !loopback(u.Hostname()) && !c.Insecure:
		return fmt.Errorf("%w: VMS_S3_URL: %s is not on the loopback: use https, or pass -insecure", vms.ErrInvalid, u.Host)
	}
	if !c.Roles.Has(RoleNVR) && loopback(u.Hostname()) {
		if err := c.findStoreKeys(); err != nil {
			return err
		}
	}
	if c.S3.AccessKey != "" && c.S3.SecretKey != "" {
		return nil
	}
	remedy := ""
	if !c.Roles.Has(RoleNVR) {
		remedy = fmt.Sprintf("; those of an NVR's embedded store are in the files %s and %s of its data directory", storeAccessKey, storeSecretKey)
	}
	return fmt.Errorf("%w: the object store at %s needs VMS_S3_ACCESS_KEY and VMS_S3_SECRET_KEY%s", vms.ErrInvalid, u.Host, remedy)
}

// checkNVRURL checks where a worker alone finds its NVR. What comes over that
// line is not bound to the connection, so off the loopback it is TLS.
func (c *Config) checkNVRURL() error {
	switch {
	case c.Roles.Has(RoleNVR) && c.NVRURL != "":
		return fmt.Errorf("%w: -nvr-url (VMS_NVR_URL) is for a worker alone, and this process is the NVR itself: leave it out, or pass -roles worker", vms.ErrInvalid)
	case c.Roles.Has(RoleNVR):
		return nil
	case c.NVRURL == "":
		return fmt.Errorf("%w: a worker alone needs its NVR: -nvr-url ws://HOST%s (VMS_NVR_URL)", vms.ErrInvalid, nvrlink.Path)
	}
	u, err := url.Parse(c.NVRURL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "ws" && u.Scheme != "wss" || u.Path != nvrlink.Path || u.User != nil || u.RawQuery != "":
		return fmt.Errorf("%w: VMS_NVR_URL: want ws:// or wss://, a host, and the path %s", vms.ErrInvalid, nvrlink.Path)
	case loopback(u.Hostname()):
		return nil
	case u.Scheme == "ws" && !c.Insecure:
		return fmt.Errorf("%w: VMS_NVR_URL: %s is not on the loopback: use wss, or pass -insecure", vms.ErrInvalid, u.Host)
	}
	// The NVR tells hubs elsewhere where this worker is.
	if host, _, err := net.SplitHostPort(c.Listen); c.PublicURL == "" && err == nil && loopback(host) {
		return fmt.Errorf("%w: hubs of the NVR at %s cannot reach a worker at %s: listen where they can (-listen), and say in VMS_PUBLIC_URL what they reach", vms.ErrInvalid, u.Host, c.Listen)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
