package lan

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/zipato/vms/pkg/problem"
)

// guard keeps web pages of others out. A page that rebinds its own name to the
// hub's address still sends its name as Host; a page that posts from its own
// origin sends that as Origin.
func guard(names []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !allowed(hostOnly(r.Host), names) {
			problem.Write(w, &problem.Problem{Type: problem.TypeForbidden, Status: http.StatusForbidden, Title: "Unknown host name",
				Detail: "Call this API by the hub's IP address, by localhost, or by a name that the agent was given."})
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" {
			u, err := url.Parse(origin)
			if err != nil || u.Host != r.Host {
				problem.Write(w, &problem.Problem{Type: problem.TypeForbidden, Status: http.StatusForbidden, Title: "Foreign origin",
					Detail: "This API is not for pages of other origins."})
				return
			}
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

func hostOnly(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return strings.Trim(hostport, "[]")
}

func allowed(host string, names []string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return strings.EqualFold(host, "localhost") || slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, host) })
}
