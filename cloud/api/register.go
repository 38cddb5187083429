package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/zipato/vms/cloud/auth"
	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

// Security schemes of the document.
const (
	schemeBearer  = "bearer"
	schemeSession = "session"
)

// anyone marks an operation that needs no credentials.
var anyone = []map[string][]string{}

func newHuma(mux *http.ServeMux, c Config) huma.API {
	doc := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title:   "VMS",
			Version: c.Version,
			Description: "Channels, recordings and live picture of the video system. " +
				"Video itself never passes through this API: recordings are read from object storage by presigned URLs, live picture from a worker.\n\n" +
				"Errors are problem details (RFC 9457). Times are RFC 3339 in UTC with milliseconds; ranges are half open. " +
				"Lists come in pages: pass `next_cursor` as `cursor` to go on; it is absent on the last page. " +
				"Bodies are JSON of at most 64 KiB, and fields that are not known are refused.",
		},
		Components: &huma.Components{
			Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
			SecuritySchemes: map[string]*huma.SecurityScheme{
				schemeBearer: {
					Type: "http", Scheme: "bearer",
					Description: "The account's token, for programs: the content of the file `admin-token` in the data directory.",
				},
				schemeSession: {
					Type: "apiKey", In: "cookie", Name: auth.CookieName,
					Description: "A browser's session, from `POST /api/v1/login`. It ends 12 hours after its last use.",
				},
			},
		},
		Security: []map[string][]string{{schemeBearer: {}}, {schemeSession: {}}},
		Tags: []*huma.Tag{
			{Name: tagChannels, Description: "A channel is a camera's registration: the unit of authorization and storage."},
			{Name: tagStreams, Description: "Starting and stopping what a channel's hub sends, and watching it live."},
			{Name: tagRecordings, Description: "The timeline: every second is recorded, pending on the hub, or a gap with a cause."},
			{Name: tagHubs, Description: "A hub is a device that runs the agent beside the cameras."},
			{Name: tagWorkers, Description: "What receives the streams: for the operator."},
			{Name: tagEvents, Description: "What happens, as it happens."},
			{Name: tagLogin, Description: "Sessions for browsers."},
		},
	}
	if c.PublicURL != "" {
		doc.Servers = []*huma.Server{{URL: c.PublicURL}}
	}
	return humago.New(mux, huma.Config{
		OpenAPI:       doc,
		Formats:       map[string]huma.Format{"application/json": strictJSON, "json": strictJSON},
		DefaultFormat: "application/json",
	})
}

// The tags, in the order of the document.
const (
	tagChannels   = "channels"
	tagStreams    = "streams"
	tagRecordings = "recordings"
	tagHubs       = "hubs"
	tagWorkers    = "workers"
	tagEvents     = "events"
	tagLogin      = "login"
)

// register adds an operation. What h returns as an error becomes a problem; an
// error of no known kind is logged, since nobody else sees it whole.
func register[I, O any](s *server, op huma.Operation, h func(context.Context, *I) (*O, error)) {
	if op.Security == nil {
		op.Security = s.huma.OpenAPI().Security
	}
	if len(op.Security) > 0 {
		op.Errors = append(op.Errors, http.StatusUnauthorized)
	}
	// One more than allowed, because huma refuses a body that is exactly as long as the limit.
	op.MaxBodyBytes = maxBody + 1
	op.BodyReadTimeout = s.bodyTimeout
	op.RejectUnknownQueryParameters = true
	op.Errors = append(op.Errors, http.StatusForbidden, http.StatusInternalServerError)
	huma.Register(s.huma, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		if err == nil {
			return out, nil
		}
		var field *nvr.FieldError
		if errors.As(err, &field) {
			return nil, invalid(location(field.Field), field.Problem)
		}
		p := problemOf(err)
		if p.Status == http.StatusInternalServerError && ctx.Err() == nil {
			s.Log.Error("request failed", "operation", op.OperationID, "err", err)
		}
		return nil, p
	})
}

// location says where in the request a field of the rules stands.
func location(field string) string {
	switch field {
	case "from", "to", "cursor", "limit":
		return "query." + field
	}
	return "body." + field
}

// exchangeKey and callerKey are keys of a request's context.
type (
	exchangeKey struct{}
	callerKey   struct{}
)

type exchange struct {
	w http.ResponseWriter
	r *http.Request
}

// exchange hands the plain request to the few operations that need it.
func (s *server) exchange(ctx huma.Context, next func(huma.Context)) {
	r, w := humago.Unwrap(ctx)
	next(huma.WithValue(ctx, exchangeKey{}, exchange{w, r}))
}

func exchangeOf(ctx context.Context) exchange { return ctx.Value(exchangeKey{}).(exchange) }

// authenticate lets nobody past an operation that has a security requirement.
func (s *server) authenticate(ctx huma.Context, next func(huma.Context)) {
	if len(ctx.Operation().Security) == 0 {
		next(ctx)
		return
	}
	x := exchangeOf(ctx.Context())
	caller, err := s.Auth.Authenticate(x.w, x.r)
	if err != nil {
		x.w.Header().Set("WWW-Authenticate", `Bearer realm="vms"`)
		problemOf(err).send(x.w)
		return
	}
	next(huma.WithValue(ctx, callerKey{}, caller))
}

func callerOf(ctx context.Context) auth.Caller { return ctx.Value(callerKey{}).(auth.Caller) }

// account is whose request ctx is.
func account(ctx context.Context) vms.AccountID { return callerOf(ctx).Account }

// deadline bounds the work, except where an operation streams.
func (s *server) deadline(ctx huma.Context, next func(huma.Context)) {
	if ctx.Operation().Metadata[streaming] != nil {
		next(ctx)
		return
	}
	within := requestTimeout
	if d, ok := ctx.Operation().Metadata[patience].(time.Duration); ok {
		within += d
	}
	c, cancel := context.WithTimeout(ctx.Context(), within)
	defer cancel()
	next(huma.WithContext(ctx, c))
}

// streaming marks an operation whose answer has no end of its own; patience says
// for how long another one may wait for a hub beside its work, a time.Duration.
const (
	streaming = "streaming"
	patience  = "patience"
)

// limited returns a middleware that bounds the calls of one client.
func limited(l *limiter) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		wait, ok := l.allow(ctx.RemoteAddr())
		if ok {
			next(ctx)
			return
		}
		(&Problem{
			Type: typeRateLimited, Title: "Too many requests", Status: http.StatusTooManyRequests,
			Detail: "Too many tries from this address; the Retry-After header says when the next one is taken.", retryAfter: wait,
		}).send(exchangeOf(ctx.Context()).w)
	}
}

// strictJSON is JSON in which no object has a member twice: the second would
// be decoded where the first was validated, or the other way round.
var strictJSON = huma.Format{
	Marshal: huma.DefaultJSONFormat.Marshal,
	Unmarshal: func(b []byte, v any) error {
		if err := json.Unmarshal(b, v); err != nil {
			return errors.New("the body is not valid JSON")
		}
		d := json.NewDecoder(bytes.NewReader(b))
		return noTwins(d)
	},
}

// noTwins reads one value of valid JSON.
func noTwins(d *json.Decoder) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	seen := make(map[string]bool)
	for d.More() {
		if delim == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			name, _ := t.(string)
			if seen[name] {
				return fmt.Errorf("the body has the member %.40q twice", name)
			}
			seen[name] = true
		}
		if err := noTwins(d); err != nil {
			return err
		}
	}
	_, err = d.Token() // the closing bracket
	return err
}

// withExample is a JSON body of which the document shows v.
func withExample(v any) *huma.RequestBody {
	return &huma.RequestBody{Content: map[string]*huma.MediaType{"application/json": {Example: v}}}
}

// ListQuery is what every list takes. It is exported because huma does not see
// the fields of an embedded type that is not.
type ListQuery struct {
	Cursor string `query:"cursor" maxLength:"400" doc:"Where to go on: next_cursor of the page before."`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"How many to return at most."`
}
