package auth

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/zipato/vms/pkg/problem"
)

// guard knows the names under which this server is reached.
type guard struct {
	hosts map[string]bool // lower case, without port or brackets
	// anyIP: the listener is on all addresses, so any IP address may be ours. An
	// address in Host is never the work of DNS rebinding, which needs a name.
	anyIP bool
	// public is the origin of the public URL, such as https://vms.example.com; empty if there is none.
	public     string
	publicHost string
}

func newGuard(listen, publicURL string, more []string) (guard, error) {
	g := guard{hosts: map[string]bool{"localhost": true, "127.0.0.1": true, "::1": true}}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return guard{}, fmt.Errorf("listen address %q: %w", listen, err)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		g.anyIP = true
	} else {
		g.hosts[strings.ToLower(host)] = true
	}
	if publicURL != "" {
		u, err := url.Parse(publicURL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return guard{}, fmt.Errorf("public URL %q: want http(s)://host", publicURL)
		}
		g.public, g.publicHost = originOf(u.Scheme, u.Host), hostname(u.Host)
		g.hosts[g.publicHost] = true
	}
	for _, h := range more {
		g.hosts[strings.ToLower(strings.Trim(h, "[]"))] = true
	}
	return g, nil
}

// hostname returns the host of a Host header in lower case, without port,
// brackets and the dot of a fully qualified name.
func hostname(hostport string) string {
	h := (&url.URL{Host: hostport}).Hostname()
	return strings.TrimSuffix(strings.ToLower(h), ".")
}

// originOf writes an origin as browsers do, without the default port.
func originOf(scheme, host string) string {
	scheme, host = strings.ToLower(scheme), strings.ToLower(host)
	switch scheme {
	case "http":
		host = strings.TrimSuffix(host, ":80")
	case "https":
		host = strings.TrimSuffix(host, ":443")
	}
	return scheme + "://" + host
}

// ours reports whether the Host header names this server.
func (g *guard) ours(hostport string) bool {
	h := hostname(hostport)
	if g.hosts[h] {
		return true
	}
	if !g.anyIP {
		return false
	}
	_, err := netip.ParseAddr(h)
	return err == nil
}

// secure reports whether the browser that sent r speaks TLS, with us or with
// the proxy in front of us.
func (g *guard) secure(r *http.Request) bool {
	return r.TLS != nil || strings.HasPrefix(g.public, "https://") && hostname(r.Host) == g.publicHost
}

// foreign reports whether a page of another origin sent r. Only browsers send
// Origin; a request without it is a program's, or a plain link.
func (g *guard) foreign(r *http.Request) bool {
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		// Browsers that leave Origin out still say where the request comes from.
		site := r.Header.Get("Sec-Fetch-Site")
		return changes(r) && (site == "cross-site" || site == "same-site")
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	for _, o := range origins {
		u, err := url.Parse(o)
		if err != nil || u.Host == "" { // among them "null", a sandboxed page
			return true
		}
		// The whole origin counts, port too: another service on localhost is the
		// same site for a cookie, but not for us.
		if o := originOf(u.Scheme, u.Host); o != originOf(scheme, r.Host) && o != g.public {
			return true
		}
	}
	return false
}

// changes reports whether r may change something or opens a WebSocket, which
// browsers let any page do and read.
func changes(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return r.Header.Get("Upgrade") != ""
	}
	return true
}

// Guard refuses what a foreign page makes a browser send, before next sees it:
//
//   - 421 when Host is not a name of this server (DNS rebinding);
//   - 403 when Origin is another and the request would change something, opens
//     a WebSocket, or carries a session cookie (CSRF).
//
// Agents and other programs send no Origin and pass. It belongs around all that
// the listener serves.
func (a *Auth) Guard(next http.Handler) http.Handler { return a.guard.before(next) }

// Guard is Auth.Guard for a listener that knows no accounts.
func Guard(listen, publicURL string, next http.Handler) (http.Handler, error) {
	g, err := newGuard(listen, publicURL, nil)
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	return g.before(next), nil
}

func (g *guard) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !g.ours(r.Host):
			problem.Write(w, &problem.Problem{
				Type: typeHost, Title: "Wrong host", Status: http.StatusMisdirectedRequest,
				Detail: "This server does not go by the name in the Host header; its public URL would tell it of another.",
			})
		case g.foreign(r) && (changes(r) || len(r.CookiesNamed(CookieName)) > 0):
			problem.Write(w, &problem.Problem{
				Type: typeOrigin, Title: "Foreign origin", Status: http.StatusForbidden,
				Detail: "A page of another origin may not call this server.",
			})
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// typeHost is the problem of a Host header that is not ours.
const typeHost = problem.TypePrefix + "foreign-host"

// typeOrigin is the problem of a page that is not ours.
const typeOrigin = problem.TypePrefix + "foreign-origin"
