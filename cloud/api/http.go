package api

import (
	"errors"
	"net/http"
	"runtime/debug"

	"github.com/zipato/vms/pkg/problem"
)

// headers are those of every answer.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}

// route answers for paths and methods that mux does not know, and for bodies
// that say of themselves that they are too large.
func (s *server) route(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern == "" {
			// mux would answer in plain text: let it, and take the status.
			var said verdict
			h.ServeHTTP(&said, r)
			if said.status == http.StatusMethodNotAllowed {
				w.Header().Set("Allow", said.Header().Get("Allow"))
				(&Problem{
					Type: typeNotAllowed, Title: "Method not allowed", Status: said.status,
					Detail: "This path knows " + said.Header().Get("Allow") + ".",
				}).send(w)
				return
			}
			(&Problem{
				Type: problem.TypeNotFound, Title: "Not found", Status: http.StatusNotFound,
				Detail: "There is nothing at this path; /docs lists what there is.",
			}).send(w)
			return
		}
		if r.ContentLength > maxBody {
			w.Header().Set("Connection", "close") // reading it to its end is what the limit is there to avoid
			problemOf(&http.MaxBytesError{Limit: maxBody}).send(w)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// verdict is a ResponseWriter that keeps the status and throws the body away.
type verdict struct {
	header http.Header
	status int
}

func (v *verdict) Header() http.Header {
	if v.header == nil {
		v.header = make(http.Header)
	}
	return v.header
}

func (v *verdict) Write(b []byte) (int, error) { return len(b), nil }

func (v *verdict) WriteHeader(status int) { v.status = status }

// recover turns a panic into a 500 without detail, or, when the answer has
// begun, into a connection that breaks off, so that nobody takes half for all.
func (s *server) recover(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := &beginning{ResponseWriter: w}
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if err, _ := v.(error); !errors.Is(err, http.ErrAbortHandler) && r.Context().Err() == nil {
				s.Log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "err", v, "stack", string(debug.Stack()))
			}
			if began.is {
				panic(http.ErrAbortHandler)
			}
			(&Problem{
				Type: problem.TypeInternal, Title: "Internal error", Status: http.StatusInternalServerError,
				Detail: "Something went wrong inside the service; its log has the details.",
			}).send(w)
		}()
		next.ServeHTTP(began, r)
	})
}

// beginning knows whether an answer has begun.
type beginning struct {
	http.ResponseWriter
	is bool
}

func (b *beginning) WriteHeader(status int) {
	b.is = true
	b.ResponseWriter.WriteHeader(status)
}

func (b *beginning) Write(p []byte) (int, error) {
	b.is = true
	return b.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (b *beginning) Unwrap() http.ResponseWriter { return b.ResponseWriter }
