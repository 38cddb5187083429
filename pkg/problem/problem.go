// Package problem turns errors into HTTP answers and back: problem+json after
// RFC 9457. What is not one of the kinds of pkg/vms leaves as "internal" and
// stands whole in the log only.
package problem

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// ContentType is the media type of an answer.
const ContentType = "application/problem+json"

// TypePrefix begins the types of this system. They are names, not addresses.
const TypePrefix = "urn:vms:problem:"

// Types that From gives. The handshake has more of its own (pkg/wire).
const (
	TypeNotFound     = TypePrefix + "not-found"
	TypeConflict     = TypePrefix + "conflict"
	TypeUnauthorized = TypePrefix + "unauthorized"
	TypeForbidden    = TypePrefix + "forbidden"
	TypeRevoked      = TypePrefix + "revoked"
	TypeExpired      = TypePrefix + "expired"
	TypeInvalid      = TypePrefix + "invalid"
	TypeUnavailable  = TypePrefix + "unavailable"
	TypeTooLarge     = TypePrefix + "too-large"
	TypeInternal     = TypePrefix + "internal"
)

// Problem is one RFC 9457 object. It is an error too: what a client gets from
// ReadResponse, and what a handler may return when no kind of pkg/vms says it.
type Problem struct {
	// Type is a URI that programs decide by; empty means about:blank.
	Type string
	// Title is the same for all problems of a type.
	Title string
	// Status is the HTTP status.
	Status int
	// Detail is a sentence for people about this occurrence.
	Detail string
	// RetryAfter is a least wait; it travels in the Retry-After header, in whole seconds.
	RetryAfter time.Duration
	// Extra are further members. The standard ones cannot be replaced.
	Extra map[string]any
}

func (p *Problem) Error() string {
	switch {
	case p.Detail != "":
		return p.Detail
	case p.Title != "":
		return p.Title
	}
	return fmt.Sprintf("HTTP status %d", p.Status)
}

// Unwrap returns the kind of pkg/vms, so that errors.Is works on both sides of
// the wire, or nil.
func (p *Problem) Unwrap() error { return kindOf(p.Type, p.Status) }

// MarshalJSON writes the standard members and Extra as one object.
func (p *Problem) MarshalJSON() ([]byte, error) {
	m := make(map[string]any, len(p.Extra)+4)
	maps.Copy(m, p.Extra)
	for _, k := range []string{"type", "title", "status", "detail"} {
		delete(m, k)
	}
	if p.Type != "" {
		m["type"] = p.Type
	}
	if p.Title != "" {
		m["title"] = p.Title
	}
	if p.Status != 0 {
		m["status"] = p.Status
	}
	if p.Detail != "" {
		m["detail"] = p.Detail
	}
	return json.Marshal(m)
}

// UnmarshalJSON reads an object. A standard member of the wrong type is
// ignored, as RFC 9457, section 3.1 asks.
func (p *Problem) UnmarshalJSON(b []byte) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*p = Problem{}
	for k, raw := range m {
		switch k {
		case "type":
			p.Type = lenient[string](raw)
		case "title":
			p.Title = lenient[string](raw)
		case "detail":
			p.Detail = lenient[string](raw)
		case "status":
			p.Status = lenient[int](raw)
		default:
			var v any
			if err := json.Unmarshal(raw, &v); err != nil {
				return err
			}
			if p.Extra == nil {
				p.Extra = make(map[string]any)
			}
			p.Extra[k] = v
		}
	}
	return nil
}

// lenient is the value in raw, or the zero value.
func lenient[T any](raw json.RawMessage) T {
	var v T
	if json.Unmarshal(raw, &v) != nil {
		var zero T
		return zero
	}
	return v
}

// Write sends p. A Status outside 400 to 599 is sent as 500.
func Write(w http.ResponseWriter, p *Problem) {
	out := *p
	if out.Status < 400 || out.Status > 599 {
		out.Status = http.StatusInternalServerError
	}
	body, err := json.Marshal(&out)
	if err != nil { // something in Extra: the answer is more important
		out.Extra = nil
		body, _ = json.Marshal(&out)
	}
	h := w.Header()
	h.Set("Content-Type", ContentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Del("Content-Length") // of the answer that this one replaces
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(p.RetryAfter.Seconds())), 10))
	}
	w.WriteHeader(out.Status)
	_, _ = w.Write(append(bytes.TrimSpace(body), '\n')) // the client has gone: nobody to tell
}

// Respond sends what From makes of err, and logs err when that is the
// system's own fault, since nobody else will see it whole.
func Respond(w http.ResponseWriter, log *slog.Logger, err error) {
	p := From(err)
	if p.Type == TypeInternal {
		log.Error("request failed", "err", err)
	}
	Write(w, p)
}

// From maps err to a problem. A *Problem in the chain is returned as it is.
// The text of a known kind is for people (whoever wraps a kind writes it so);
// the text of any other error stays inside.
func From(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return &Problem{
			Type: TypeTooLarge, Title: "Request too large", Status: http.StatusRequestEntityTooLarge,
			Detail: fmt.Sprintf("The body may have %d bytes.", tooLarge.Limit),
		}
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return &Problem{Type: k.typ, Title: k.title, Status: k.status, Detail: err.Error()}
		}
	}
	return &Problem{
		Type: TypeInternal, Title: "Internal error", Status: http.StatusInternalServerError,
		Detail: "Something went wrong inside the service; its log has the details.",
	}
}

// kinds is in order of finality: an error that is revoked and not authorized
// is revoked.
var kinds = []struct {
	err    error
	typ    string
	title  string
	status int
}{
	{vms.ErrRevoked, TypeRevoked, "Revoked", http.StatusGone},
	{vms.ErrExpired, TypeExpired, "Expired", http.StatusUnauthorized},
	{vms.ErrUnauthorized, TypeUnauthorized, "Not authorized", http.StatusUnauthorized},
	{vms.ErrForbidden, TypeForbidden, "Forbidden", http.StatusForbidden},
	{vms.ErrNotFound, TypeNotFound, "Not found", http.StatusNotFound},
	{vms.ErrConflict, TypeConflict, "Conflict", http.StatusConflict},
	{vms.ErrInvalid, TypeInvalid, "Invalid request", http.StatusBadRequest},
	{vms.ErrUnavailable, TypeUnavailable, "Not available now", http.StatusServiceUnavailable},
}
