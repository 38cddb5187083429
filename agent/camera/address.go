package camera

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/bluenviron/gortsplib/v5/pkg/base"

	"github.com/zipato/vms/pkg/vms"
)

// Limits on what a caller may name.
const (
	maxURL        = 2000
	maxHost       = 253 // RFC 1035, section 2.3.4
	maxCredential = 255
	defaultPort   = 554
)

// commonPaths are tried in this order when only the host is known. Most cameras
// have one of them; the list is short because each wrong one costs a request.
var commonPaths = []string{
	"/Streaming/Channels/101",              // Hikvision and many relabelled
	"/cam/realmonitor?channel=1&subtype=0", // Dahua, Amcrest
	"/axis-media/media.amp",                // Axis
	"/h264Preview_01_main",                 // Reolink
	"/stream1",                             // TP-Link
	"/live/ch00_0",                         // many with Ingenic and Anyka chips
	"/live/ch0",                            // the same, older
	"/onvif1",                              // V380, Yoosee
	"/profile1/media.smp",                  // Hanwha
	"/videoMain",                           // Foscam
	"/11",                                  // many with HiSilicon chips
	"/media/video1",                        // Sony, Uniview
	"/live",
	"/",
}

// Address is one URL that may be the camera's. It holds credentials and does
// not print them.
type Address struct {
	// Template is the address with {host} and {port}, set for the common paths
	// only: what is worth remembering and has nothing secret in it.
	Template string

	url *base.URL
	// secrets are the forms in which the password may turn up in an error.
	secrets []string
}

// Host returns the camera's host name or IP address.
func (a Address) Host() string { return a.url.Hostname() }

// String returns the address without credentials. Path and query are left out:
// some cameras want the password there.
func (a Address) String() string { return a.url.Scheme + "://" + a.url.Host }

// Resolve returns the addresses under which c may be found, in the order in
// which to try them: its URL, if one is given; else its template "high"; else a
// short list of paths that cameras commonly have. Errors are vms.ErrInvalid.
func Resolve(c vms.Camera) ([]Address, error) {
	if err := validate(c); err != nil {
		return nil, fmt.Errorf("camera: %w: %w", vms.ErrInvalid, err)
	}
	if c.URL != "" {
		a, err := newAddress(c.URL, c)
		if err != nil {
			return nil, fmt.Errorf("camera url: %w: %w", vms.ErrInvalid, err)
		}
		return []Address{a}, nil
	}
	host, port := splitHost(c.Host, c.Port)
	if t := c.Templates["high"]; t != "" {
		a, err := newAddress(fill(t, c, host, port), c)
		if err == nil && !strings.EqualFold(a.Host(), strings.Trim(host, "[]")) {
			// Else a template could carry the password to a host of its choice.
			err = errors.New("names another host than the camera's")
		}
		if err != nil {
			return nil, fmt.Errorf("camera template high: %w: %w", vms.ErrInvalid, err)
		}
		return []Address{a}, nil
	}
	var all []Address
	for _, path := range commonPaths {
		t := "rtsp://{host}:{port}" + path
		a, err := newAddress(fill(t, c, host, port), c)
		if err != nil {
			return nil, fmt.Errorf("camera host: %w: %w", vms.ErrInvalid, err)
		}
		a.Template = t
		all = append(all, a)
	}
	return all, nil
}

// validate checks what url.Parse does not.
func validate(c vms.Camera) error {
	if c.URL == "" && c.Host == "" {
		return errors.New("neither url nor host is given")
	}
	for _, f := range []struct {
		name, value string
		most        int
	}{
		{"url", c.URL, maxURL},
		{"host", c.Host, maxHost + len(":65535")},
		{"username", c.Username, maxCredential},
		{"password", c.Password, maxCredential},
		{"template high", c.Templates["high"], maxURL},
	} {
		if len(f.value) > f.most {
			return fmt.Errorf("%s is longer than %d bytes", f.name, f.most)
		}
		// A line break could smuggle a header into a request.
		if strings.ContainsFunc(f.value, unicode.IsControl) {
			return fmt.Errorf("%s contains a control character", f.name)
		}
	}
	if c.Port < 0 || c.Port > 65535 {
		return fmt.Errorf("port %d is none", c.Port)
	}
	if c.URL == "" {
		return validateHost(c.Host)
	}
	return nil
}

func validateHost(h string) error {
	if strings.ContainsAny(h, "/@?#\\ {}") {
		return errors.New("host is neither a name nor an IP address")
	}
	return nil
}

// splitHost takes "host", "host:port" and IPv6 addresses with or without
// brackets apart. A port of its own in the camera's fields wins.
func splitHost(h string, port int) (string, int) {
	if addr, err := netip.ParseAddr(strings.Trim(h, "[]")); err == nil {
		if addr.Is6() {
			h = "[" + strings.Trim(h, "[]") + "]"
		}
	} else if name, p, err := net.SplitHostPort(h); err == nil {
		if n, err := strconv.ParseUint(p, 10, 16); err == nil {
			h = name
			if strings.Contains(name, ":") {
				h = "[" + name + "]"
			}
			if port == 0 {
				port = int(n)
			}
		}
	}
	if port == 0 {
		port = defaultPort
	}
	return h, port
}

func fill(template string, c vms.Camera, host string, port int) string {
	s := strings.NewReplacer(
		"{username}", escape(c.Username),
		"{password}", escape(c.Password),
		"{host}", host,
		"{port}", strconv.Itoa(port),
	).Replace(template)
	// A camera without a password needs no empty one.
	return strings.Replace(s, "://:@", "://", 1)
}

// escape percent-encodes everything that could mean something anywhere in a URL.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// newAddress parses an RTSP URL. Its errors do not repeat the URL: it holds a
// password.
func newAddress(raw string, c vms.Camera) (Address, error) {
	u, err := base.ParseURL(raw)
	switch {
	case !strings.HasPrefix(raw, "rtsp://") && !strings.HasPrefix(raw, "rtsps://"):
		return Address{}, errors.New("does not begin with rtsp:// or rtsps://")
	case err != nil:
		return Address{}, errors.New("is not a valid URL; special characters in a password must be percent-encoded")
	case u.Hostname() == "" || len(u.Hostname()) > maxHost:
		return Address{}, errors.New("has no host")
	}
	if u.User == nil && c.Username != "" {
		u.User = url.UserPassword(c.Username, c.Password)
	}
	a := Address{url: u}
	password := c.Password
	if u.User != nil {
		password, _ = u.User.Password()
	}
	for _, p := range []string{password, c.Password} {
		if p != "" {
			a.secrets = append(a.secrets, p, escape(p), url.PathEscape(p), url.QueryEscape(p))
		}
	}
	return a, nil
}

var userinfo = regexp.MustCompile(`://[^/\s]*@`)

// redact returns err with a text that holds neither userinfo nor password.
func (a Address) redact(err error) error {
	text := userinfo.ReplaceAllString(err.Error(), "://")
	for _, s := range a.secrets {
		text = strings.ReplaceAll(text, s, "***")
	}
	return &redacted{text, err}
}

type redacted struct {
	text string
	err  error
}

func (r *redacted) Error() string { return r.text }
func (r *redacted) Unwrap() error { return r.err }
