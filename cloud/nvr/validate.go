package nvr

import (
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/zipato/vms/pkg/vms"
)

// Bounds on what an account may write. Cameras know user names and passwords
// of up to 64 bytes; URLs longer than 2,000 bytes no camera answers to.
const (
	maxName     = 100 // characters
	maxURL      = 2000
	maxHost     = 253
	maxUsername = 128
	maxPassword = 128
)

func validName(field, name string) error {
	switch {
	case strings.TrimSpace(name) == "":
		return fieldError(field, "must not be empty")
	case !utf8.ValidString(name) || utf8.RuneCountInString(name) > maxName:
		return fieldError(field, "must be at most %d characters", maxName)
	case strings.ContainsFunc(name, unicode.IsControl):
		return fieldError(field, "must not contain control characters")
	}
	return nil
}

// cleanCamera checks what an account gave, and moves credentials out of the
// URL into their fields.
func cleanCamera(c vms.Camera) (vms.Camera, error) {
	var err error
	switch {
	case c.URL == "" && c.Host == "":
		return c, fieldError("camera", "needs a url or a host")
	case c.URL != "" && c.Host != "":
		return c, fieldError("camera.host", "must be empty when camera.url is given")
	case c.URL != "" && c.Port != 0:
		return c, fieldError("camera.port", "belongs into camera.url when that is given")
	case c.URL != "":
		if c, err = cleanURL(c); err != nil {
			return c, err
		}
	default:
		if err := validHost(c.Host); err != nil {
			return c, err
		}
	}
	switch {
	case c.Port < 0 || c.Port > 65535:
		return c, fieldError("camera.port", "must be 1 to 65535")
	case len(c.Username) > maxUsername || strings.ContainsFunc(c.Username, unicode.IsControl):
		return c, fieldError("camera.username", "must be at most %d bytes without control characters", maxUsername)
	case len(c.Password) > maxPassword || strings.ContainsFunc(c.Password, unicode.IsControl):
		return c, fieldError("camera.password", "must be at most %d bytes without control characters", maxPassword)
	}
	for _, k := range slices.Sorted(maps.Keys(c.Templates)) {
		if err := validTemplate(k, c.Templates[k]); err != nil {
			return c, err
		}
	}
	return c, nil
}

func cleanURL(c vms.Camera) (vms.Camera, error) {
	const field = "camera.url"
	if len(c.URL) > maxURL {
		return c, fieldError(field, "must be at most %d bytes", maxURL)
	}
	u, err := url.Parse(c.URL)
	if err != nil { // its text may hold the password
		return c, fieldError(field, "is not a URL")
	}
	switch {
	case u.Scheme != "rtsp" && u.Scheme != "rtsps":
		return c, fieldError(field, "must begin with rtsp:// or rtsps://")
	case u.Hostname() == "" || u.Opaque != "":
		return c, fieldError(field, "has no host")
	case u.Fragment != "":
		return c, fieldError(field, "must not have a fragment")
	}
	if u.User != nil {
		name := u.User.Username()
		if c.Username != "" && c.Username != name {
			return c, fieldError("camera.username", "differs from the one in camera.url")
		}
		c.Username = name
		if p, ok := u.User.Password(); ok {
			if c.Password != "" && c.Password != p {
				return c, fieldError("camera.password", "differs from the one in camera.url")
			}
			c.Password = p
		}
		u.User = nil
		c.URL = u.String()
	}
	return c, nil
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?$`)

func validHost(h string) error {
	if len(h) > maxHost || (net.ParseIP(h) == nil && !hostName.MatchString(h)) {
		return fieldError("camera.host", "must be an IP address or a host name, without a port")
	}
	return nil
}

var templateKeys = []string{"high", "mid", "low", "mjpeg", "snapshot"}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// validTemplate wants a URL of the camera itself: credentials that are filled
// in must not go to another host, and must not be written out in clear.
func validTemplate(key, t string) error {
	field := "camera.templates." + key
	if !slices.Contains(templateKeys, key) {
		return fieldError("camera.templates", "has the key %.40q; known are %s", key, strings.Join(templateKeys, ", "))
	}
	if len(t) == 0 || len(t) > maxURL {
		return fieldError(field, "must be 1 to %d bytes", maxURL)
	}
	for _, p := range placeholder.FindAllString(t, -1) {
		switch p {
		case "{username}", "{password}", "{host}", "{port}":
		default:
			return fieldError(field, "has %.40q; known are {username}, {password}, {host} and {port}", p)
		}
	}
	// The port must be a number for the parser; none of the others matters to it.
	filled := strings.NewReplacer("{username}", "USER", "{password}", "PASSWORD", "{host}", "camera.invalid", "{port}", "554").Replace(t)
	u, err := url.Parse(filled)
	if err != nil {
		return fieldError(field, "is not a URL")
	}
	schemes := []string{"rtsp", "rtsps"}
	if key == "mjpeg" || key == "snapshot" {
		schemes = append(schemes, "http", "https")
	}
	if !slices.Contains(schemes, u.Scheme) {
		return fieldError(field, "must begin with %s://", strings.Join(schemes, ":// or "))
	}
	if u.Hostname() != "camera.invalid" {
		return fieldError(field, "must have {host} for its host")
	}
	if u.User != nil {
		p, ok := u.User.Password()
		if u.User.Username() != "USER" || (ok && p != "PASSWORD") {
			return fieldError(field, "must have {username} and {password} in place of the real ones")
		}
	}
	return nil
}
