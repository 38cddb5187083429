package embed

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxConns bounds the connections, and with them the requests, the open
	// files and the threads in file system calls.
	maxConns = 256
	// readStall and writeStall end a connection whose other side sends or takes
	// nothing. A browser takes nothing while its video is paused, and asks for
	// the rest when it goes on; hence the difference.
	readStall  = 30 * time.Second
	writeStall = 2 * time.Minute
	// maxHeader is a little more than versitygw's own limit, so that its answer
	// explains it.
	maxHeader = 16 << 10
)

// front stands between the network and versitygw, which has neither timeouts
// nor a way to hand it a listener: it bounds what an outsider may hold, answers
// CORS for the configured origins, and passes the rest on unchanged, for
// signatures cover method, path, query, host and headers.
type front struct {
	origins []string
	next    http.Handler
}

func newFront(origins []string, transport http.RoundTripper, log *slog.Logger) *front {
	return &front{origins: origins, next: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "versitygw" // the transport dials one place only
			r.Out.Host = r.In.Host
			r.Out.URL.RawQuery = r.In.URL.RawQuery // the bytes that were signed
		},
		Transport:  transport,
		BufferPool: copyBuffers,
		ErrorLog:   slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ModifyResponse: func(r *http.Response) error {
			maps.DeleteFunc(r.Header, func(k string, _ []string) bool { return strings.HasPrefix(k, "Access-Control-") }) // ours to say
			if r.StatusCode >= http.StatusInternalServerError {
				log.Warn("object store failed a request", "method", r.Request.Method, "path", r.Request.URL.Path, "status", r.StatusCode)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil { // else the client went away, or we shut down
				log.Warn("object store did not answer", "method", r.Method, "path", r.URL.Path, "err", err)
			}
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, "<Error><Code>ServiceUnavailable</Code><Message>Please try again.</Message></Error>")
		},
	}}
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Objects are served as the type they were stored with, never guessed.
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if f.cors(w, r) {
		return
	}
	rc := http.NewResponseController(w)
	rc.SetWriteDeadline(time.Now().Add(writeStall))
	if r.Body != http.NoBody {
		r.Body = &stallReader{ReadCloser: r.Body, rc: rc}
	}
	f.next.ServeHTTP(&stallWriter{ResponseWriter: w, rc: rc}, r)
}

// cors lets pages of the configured origins read objects by presigned URL, and
// reports whether the request was a preflight, which it has answered. Refusals
// carry the headers too, so that a page can tell an expired URL from an outage.
func (f *front) cors(w http.ResponseWriter, r *http.Request) (done bool) {
	h := w.Header()
	h.Add("Vary", "Origin")
	preflight := r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != ""
	origin := r.Header.Get("Origin")
	if origin != "" && slices.Contains(f.origins, origin) {
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Expose-Headers", "Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag, Last-Modified")
		if preflight {
			h.Set("Access-Control-Allow-Methods", "GET, HEAD")
			h.Set("Access-Control-Allow-Headers", "Range, If-Match, If-None-Match, If-Modified-Since, If-Range")
			h.Set("Access-Control-Max-Age", "600")
		}
	}
	if preflight {
		w.WriteHeader(http.StatusNoContent)
	}
	return preflight
}

// stallReader ends a request whose sender went silent.
type stallReader struct {
	io.ReadCloser
	rc *http.ResponseController
}

func (r *stallReader) Read(p []byte) (int, error) {
	r.rc.SetReadDeadline(time.Now().Add(readStall))
	n, err := r.ReadCloser.Read(p)
	if err != nil {
		r.rc.SetReadDeadline(time.Time{}) // the server waits for the next request on its own terms
	}
	return n, err
}

// stallWriter ends a response whose receiver takes nothing.
type stallWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
}

func (w *stallWriter) Write(p []byte) (int, error) {
	w.rc.SetWriteDeadline(time.Now().Add(writeStall))
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController find the connection.
func (w *stallWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// silentConns are connections on which nothing was ever asked, such as browsers
// keep in store. http.Server.Shutdown would wait 5 s for their first request.
type silentConns struct {
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func (s *silentConns) track(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(s.conns, c)
	case s.closed:
		c.Close()
	default:
		if s.conns == nil {
			s.conns = make(map[net.Conn]struct{})
		}
		s.conns[c] = struct{}{}
	}
}

func (s *silentConns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
}

// dialOnly returns a transport that knows one way only.
func dialOnly(network, address string) *http.Transport {
	var d net.Dialer
	return &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, network, address) },
		DisableCompression:  true,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     30 * time.Second,
	}
}

// validOrigin reports whether s is an origin as browsers send it.
func validOrigin(s string) bool {
	scheme, host, ok := strings.Cut(s, "://")
	return ok && (scheme == "http" || scheme == "https") && host != "" && !strings.ContainsAny(host, "/?#@* ") && strings.ToLower(s) == s
}
