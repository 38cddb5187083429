// Package web serves the web app at /: the page with the channels, the live
// picture and the recordings. It is built by Vite from src into dist/app and
// embedded; without Node the Go build still works, and a stub page says how to
// build the app.
package web

import (
	"bytes"
	"embed"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

//go:embed all:dist stub/index.html
var embedded embed.FS

// Options name the foreign origins that the page may reach. Everything else
// is refused by its Content-Security-Policy. A URL stands for its origin; one
// that has none (no scheme, no host) is logged and left out.
type Options struct {
	// MediaOrigins are where presigned URLs point to, such as
	// "http://127.0.0.1:9000": recordings are played and downloaded from there.
	MediaOrigins []string
	// ConnectOrigins are where live WebSockets go when not to the page's own
	// host, such as "wss://worker.example.com".
	ConnectOrigins []string
	// LiveAnywhere lets live WebSockets go to any host: workers that join while a
	// page stands open are not in its policy, and its stream may move to one.
	LiveAnywhere bool
}

// Handler serves the app: its files, and its index page for every address that
// the app itself understands. All else is 404, so that a wrong path never looks
// like an answer.
func Handler(o Options) http.Handler {
	return newHandler(embedded, o)
}

func newHandler(tree fs.FS, o Options) *handler {
	h := &handler{
		files: load(tree),
		media: origins(o.MediaOrigins),
		live:  origins(o.ConnectOrigins),
	}
	if o.LiveAnywhere {
		// Plain ones too: to a page that came over TLS browsers forbid them themselves.
		h.live = []string{"ws:", "wss:"}
	}
	return h
}

// hostForm is host[:port] as far as the policy may repeat it: nothing in it
// ends a directive.
var hostForm = regexp.MustCompile(`^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)

type handler struct {
	files map[string]file // by URL path; some 60 kB in all
	media []string
	live  []string
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Content-Security-Policy", h.policy(r.Host))
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("X-Frame-Options", "DENY") // for browsers that do not know frame-ancestors
	head.Set("Cross-Origin-Opener-Policy", "same-origin")
	head.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")

	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		head.Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	name := r.URL.Path
	if isRoute(name) {
		name = "/index.html"
	}
	f, ok := h.files[name]
	if !ok {
		head.Set("Cache-Control", "no-store")
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	head.Set("Content-Type", f.mime)
	head.Set("ETag", f.etag)
	head.Set("Cache-Control", f.cache)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.data))
}

// isRoute reports whether the app, not a file, stands behind a path. The app
// reads the rest of it (src/ui/home.tsx).
func isRoute(p string) bool {
	if p == "/" {
		return true
	}
	id, ok := strings.CutPrefix(p, "/channels/")
	return ok && id != "" && !strings.Contains(id, "/")
}

// policy allows the page its own origin and what Options name. Not every
// browser counts WebSockets as 'self', so the page's host is named for them.
func (h *handler) policy(host string) string {
	connect := []string{"'self'"}
	if hostForm.MatchString(host) {
		connect = append(connect, "ws://"+host, "wss://"+host)
	}
	connect = append(connect, h.live...)
	connect = append(connect, h.media...) // downloads
	media := append([]string{"'self'", "blob:"}, h.media...)
	return strings.Join([]string{
		"default-src 'none'",
		"script-src 'self'",
		"style-src 'self'",
		"img-src 'self'",
		"connect-src " + strings.Join(connect, " "),
		"media-src " + strings.Join(media, " "),
		"base-uri 'none'",
		"form-action 'none'",
		"frame-ancestors 'none'",
	}, "; ")
}

// origins reduces URLs to what a policy may name.
func origins(urls []string) []string {
	var out []string
	for i, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil || !schemes[u.Scheme] || !hostForm.MatchString(u.Host) {
			// Not the URL itself: who mistypes one may have put a password in it.
			slog.Warn("not an origin, left out of the page's policy", "number", i+1)
			continue
		}
		out = append(out, u.Scheme+"://"+u.Host)
	}
	return out
}

var schemes = map[string]bool{"http": true, "https": true, "ws": true, "wss": true}
