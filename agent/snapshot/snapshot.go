// Package snapshot takes one JPEG from a camera over HTTP and puts it where it
// is wanted.
package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// Template is the name of the camera's template that Take uses.
	Template = "snapshot"
	// MaxBytes is how large a picture may be: one of 12 megapixels has some 6 MB.
	MaxBytes = 8 << 20
	// takeTime is how long a camera may take in all; some encode the picture only
	// when they are asked for it.
	takeTime = 15 * time.Second
	// maxRedirects is how often the camera may name another path.
	maxRedirects = 3
	// maxTries is how often the camera is asked for one picture: without a
	// password, with it, and once more when its nonce was stale.
	maxTries = 3
	// maxRefusal is how much of a page that refuses is read, so that the
	// connection can be used again.
	maxRefusal = 64 << 10
)

// Take asks the camera for a picture at its template "snapshot", a URL with http
// or https in which {host}, {port}, {username} and {password} are filled in. A
// camera without a port of its own has that of the scheme. The password goes to
// the camera's host and nowhere else, by Digest or Basic, as the camera asks.
//
// Errors are sentences for people without anything secret: vms.ErrInvalid when
// the template is missing or none, vms.ErrForbidden when the camera refuses the
// password, vms.ErrUnavailable for all else.
func Take(ctx context.Context, cam vms.Camera) ([]byte, error) {
	t, err := aim(cam)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", vms.ErrInvalid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, takeTime)
	defer cancel()
	transport := &http.Transport{
		// No proxy: the camera is near, and its password is nobody else's.
		DialContext:            (&net.Dialer{}).DialContext,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	picture, err := t.take(ctx, client)
	if err != nil {
		return nil, t.explain(ctx, err)
	}
	return picture, nil
}

// target is where a picture is to be had.
type target struct {
	url                *url.URL // without userinfo
	username, password string
}

// aim reads the template. Its errors do not repeat it: it may hold a password.
func aim(cam vms.Camera) (*target, error) {
	template := cam.Templates[Template]
	if template == "" {
		return nil, errors.New("the camera has no template named snapshot; set it to where the camera shows a still picture, such as http://{host}/snapshot.jpg")
	}
	host, port, err := address(&cam)
	if err != nil {
		return nil, err
	}
	for _, s := range []string{template, host, cam.Username, cam.Password} {
		if len(s) > 2000 || strings.ContainsFunc(s, unicode.IsControl) {
			return nil, errors.New("the camera's template snapshot, host, username or password is too long or holds a control character")
		}
	}
	if port == 0 {
		port = 80
		if strings.HasPrefix(strings.ToLower(template), "https:") {
			port = 443
		}
	}
	u, err := url.Parse(fill(template, &cam, host, port))
	switch {
	case err != nil:
		return nil, errors.New("the camera's template snapshot makes no valid URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("the camera's template snapshot does not begin with http:// or https://")
	case !strings.EqualFold(u.Hostname(), strings.Trim(host, "[]")):
		// Else a template could carry the password to a host of its choice.
		return nil, errors.New("the camera's template snapshot names another host than the camera's")
	}
	t := &target{url: u, username: cam.Username, password: cam.Password}
	if u.User != nil {
		t.username = u.User.Username()
		t.password, _ = u.User.Password()
		u.User = nil
	}
	u.Fragment = ""
	return t, nil
}

// address returns the camera's host, IPv6 in brackets, and the port that was
// given with it or 0. What only a URL is given of has its name and password from
// there, but its port is that of RTSP.
func address(cam *vms.Camera) (host string, port int, err error) {
	if cam.Host == "" {
		u, err := url.Parse(cam.URL)
		if err != nil || u.Hostname() == "" {
			return "", 0, errors.New("the camera has neither a host nor a URL that names one")
		}
		if cam.Username == "" && u.User != nil {
			cam.Username = u.User.Username()
			cam.Password, _ = u.User.Password()
		}
		return bracket(u.Hostname()), cam.Port, nil
	}
	host, port = cam.Host, cam.Port
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil {
		if name, p, err := net.SplitHostPort(host); err == nil {
			host = name
			if n, err := strconv.ParseUint(p, 10, 16); err == nil && port == 0 {
				port = int(n)
			}
		}
	}
	if host == "" || strings.ContainsAny(host, "/@?#\\ {}") {
		return "", 0, errors.New("the camera's host is neither a name nor an IP address")
	}
	return bracket(host), port, nil
}

func bracket(host string) string {
	if host = strings.Trim(host, "[]"); strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

func fill(template string, cam *vms.Camera, host string, port int) string {
	s := strings.NewReplacer(
		"{username}", escape(cam.Username), "{password}", escape(cam.Password),
		"{host}", host, "{port}", strconv.Itoa(port),
	).Replace(template)
	return strings.Replace(s, "://:@", "://", 1) // a camera without a password needs no empty one
}

// escape percent-encodes everything that could mean something anywhere in a URL.
func escape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// refusal is an answer that brings no picture.
type refusal struct{ status int }

func (e *refusal) Error() string { return fmt.Sprintf("HTTP status %d", e.status) }

// errNoJPEG is a picture that is none.
var errNoJPEG = errors.New("what came is no JPEG")

// errElsewhere is a redirect that is not followed.
var errElsewhere = errors.New("it redirects to another host, or in a circle")

// take asks until there is a picture, or a reason why there is none.
func (t *target) take(ctx context.Context, client *http.Client) ([]byte, error) {
	u, auth := t.url, ""
	tries := 0
	for redirects := 0; ; {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
		if err != nil {
			return nil, err
		}
		req.Header.Set("User-Agent", "vms-agent")
		req.Header.Set("Accept", "image/jpeg, */*;q=0.1")
		if auth != "" {
			req.Header.Set("Authorization", auth)
		}
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		tries++
		switch {
		case res.StatusCode == http.StatusOK:
			return picture(res)
		case res.StatusCode == http.StatusUnauthorized && tries < maxTries:
			c, ok := strongest(res.Header.Values("WWW-Authenticate"))
			discard(res)
			if !ok || t.username == "" && t.password == "" || auth != "" && !c.stale {
				return nil, &refusal{res.StatusCode}
			}
			auth = c.answer(t.username, t.password, req.Method, u.RequestURI())
		case res.StatusCode/100 == 3 && res.Header.Get("Location") != "":
			next, err := u.Parse(res.Header.Get("Location"))
			discard(res)
			if redirects++; err != nil || redirects > maxRedirects || !follows(u, next) {
				return nil, errElsewhere
			}
			next.User, next.Fragment = nil, ""
			u, auth, tries = next, "", 0 // what was answered names the path before
		default:
			discard(res)
			return nil, &refusal{res.StatusCode}
		}
	}
}

// follows reports whether a redirect may be followed: to the same host, and not
// from what is encrypted to what is not.
func follows(from, to *url.URL) bool {
	return strings.EqualFold(from.Hostname(), to.Hostname()) &&
		(to.Scheme == "https" || to.Scheme == "http" && from.Scheme == "http")
}

func picture(res *http.Response) ([]byte, error) {
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, MaxBytes+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > MaxBytes:
		return nil, fmt.Errorf("the picture is larger than %d MiB", MaxBytes>>20)
	case !IsJPEG(data):
		return nil, errNoJPEG
	}
	return data, nil
}

// IsJPEG reports whether data begins as a JPEG does: start of image, then a marker.
func IsJPEG(data []byte) bool {
	return len(data) > 3 && bytes.HasPrefix(data, []byte{0xff, 0xd8, 0xff})
}

// discard reads the rest of a page, so that its connection can be used again.
func discard(res *http.Response) {
	_, _ = io.CopyN(io.Discard, res.Body, maxRefusal) // else another connection does
	res.Body.Close()
}

// explain says in words for people, and without a URL, what went wrong.
func (t *target) explain(ctx context.Context, err error) error {
	var r *refusal
	if errors.As(err, &r) {
		switch r.status {
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%w: the camera at %s refuses the name and password for a picture (%w)", vms.ErrForbidden, t.url.Host, err)
		case http.StatusNotFound:
			return fmt.Errorf("%w: the camera at %s has no picture where its template snapshot says (%w)", vms.ErrUnavailable, t.url.Host, err)
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: the camera at %s sent no picture in time", vms.ErrUnavailable, t.url.Host)
	}
	return fmt.Errorf("%w: no picture from the camera at %s: %w", vms.ErrUnavailable, t.url.Host, bare(err))
}

// bare takes the URL out of an error of net/http: it may hold what is secret.
func bare(err error) error {
	if e := (*url.Error)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}
