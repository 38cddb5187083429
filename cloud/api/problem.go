package api

import (
	"context"
	"errors"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
)

// Problem is the body of every answer of 400 and above (RFC 9457).
type Problem struct {
	Type   string       `json:"type" example:"urn:vms:problem:not-found" doc:"What kind of problem this is; programs decide by it."`
	Title  string       `json:"title" example:"Not found" doc:"The same for all problems of a type."`
	Status int          `json:"status" minimum:"400" maximum:"599" example:"404" doc:"The HTTP status."`
	Detail string       `json:"detail,omitempty" example:"channel ch_x2v9: not found" doc:"A sentence for people about this occurrence."`
	Errors []FieldError `json:"errors,omitempty" doc:"The fields that are wrong, when the request itself is."`

	retryAfter time.Duration
}

// FieldError is one field of a request that is wrong. What was sent is not
// repeated: it may be a password.
type FieldError struct {
	Location string `json:"location,omitempty" example:"body.camera.port" doc:"Where: path, query, header or body, then the field."`
	Message  string `json:"message" example:"expected number <= 65535" doc:"What is wrong with it."`
}

// The problems that only HTTP has; the others are those of pkg/problem.
const (
	typeNotAllowed  = problem.TypePrefix + "method-not-allowed"
	typeMediaType   = problem.TypePrefix + "unsupported-media-type"
	typeRateLimited = problem.TypePrefix + "rate-limited"
	typeTimeout     = problem.TypePrefix + "timeout"
	// typeStarting is an "unavailable" that soon ends.
	typeStarting = problem.TypePrefix + "starting"
)

// Error makes a Problem what a huma handler returns.
func (p *Problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (*Problem) ContentType(string) string { return problem.ContentType }

// GetHeaders implements huma.HeadersError.
func (p *Problem) GetHeaders() http.Header {
	if p.retryAfter <= 0 {
		return nil
	}
	return http.Header{"Retry-After": {strconv.Itoa(int(math.Ceil(p.retryAfter.Seconds())))}}
}

// huma has one error type and two habits for the whole program. This package
// is its only home, so they are set here, before any API is made.
func init() {
	huma.NewError = newError
	// {"NAME": …} beside {"name": …} would be decoded without being validated.
	huma.ValidateStrictCasing = true
	// Lists in answers are never null.
	huma.DefaultArrayNullable = false
}

// newError makes the problems that huma itself finds: a body that does not
// parse, a field that breaks its schema. It keeps what huma would echo, the
// values that were sent, out of the answer.
func newError(status int, msg string, errs ...error) huma.StatusError {
	p := &Problem{Status: status, Detail: msg, Title: http.StatusText(status)}
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		p.Type, p.Title = problem.TypeInvalid, "Invalid request"
	case http.StatusRequestEntityTooLarge:
		p.Type, p.Title = problem.TypeTooLarge, "Request too large"
		p.Detail = "The body may have " + strconv.Itoa(maxBody) + " bytes."
	case http.StatusUnsupportedMediaType:
		p.Type, p.Detail, errs = typeMediaType, "The body must be application/json.", nil
	case http.StatusRequestTimeout:
		p.Type = typeTimeout
	default:
		p.Type = problem.TypeInternal
	}
	for _, err := range errs {
		f := FieldError{Message: "invalid"}
		var d huma.ErrorDetailer
		if errors.As(err, &d) {
			e := d.ErrorDetail()
			f = FieldError{Location: e.Location, Message: e.Message}
		} else if err != nil {
			f.Message = err.Error()
		}
		if !slices.Contains(p.Errors, f) && len(p.Errors) < 20 {
			p.Errors = append(p.Errors, f)
		}
	}
	return p
}

// invalid is a 422 that names a field.
func invalid(location, message string) error {
	return newError(http.StatusUnprocessableEntity, "validation failed", &huma.ErrorDetail{Location: location, Message: message})
}

// problemOf is the answer to err: the kinds of pkg/vms with their sentence,
// everything else "internal".
func problemOf(err error) *Problem {
	var own *Problem
	if errors.As(err, &own) {
		return own
	}
	p := problem.From(err)
	out := &Problem{Type: p.Type, Title: p.Title, Status: p.Status, Detail: p.Detail, retryAfter: p.RetryAfter}
	switch {
	case errors.Is(err, context.DeadlineExceeded) && p.Status >= http.StatusInternalServerError:
		out.Type, out.Title, out.Status = typeTimeout, "Timed out", http.StatusGatewayTimeout
		if p.Type == problem.TypeInternal {
			out.Detail = "What the request waited for did not answer in time."
		}
	case errors.Is(err, vms.ErrInvalid) && p.Status == http.StatusBadRequest:
		out.Status = http.StatusUnprocessableEntity // it parsed; what it says is wrong
	}
	return out
}

// send writes a problem where huma is not involved.
func (p *Problem) send(w http.ResponseWriter) {
	problem.Write(w, &problem.Problem{Type: p.Type, Title: p.Title, Status: p.Status, Detail: p.Detail, RetryAfter: p.retryAfter})
}
