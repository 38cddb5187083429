// Package api is the REST API of the cloud: JSON over HTTP, described by
// /openapi.json and readable at /docs.
//
// What callers may rely on:
//   - every answer of 400 and above is problem+json (RFC 9457), also for a
//     path or method that does not exist and when something breaks inside;
//   - a field that is not known is refused, not ignored;
//   - times are RFC 3339 in UTC with milliseconds, ranges are half open;
//   - lists come in pages of at most 1000, with an opaque cursor, except that of workers;
//   - the password of a camera goes in and never comes out, not even in the
//     message that says what is wrong with a request.
//
// The listener bounds what comes before a handler: ReadHeaderTimeout 10 s,
// IdleTimeout 2 min, MaxHeaderBytes 32 KiB, and no WriteTimeout, because an
// event stream lasts for hours. Bodies have 64 KiB and 5 s to arrive.
package api

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/zipato/vms/cloud/auth"
	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// maxBody bounds a request's body; the largest useful one is some kilobytes.
	maxBody = 64 << 10
	// bodyTimeout is much for 64 KiB on any line that carries video.
	bodyTimeout = 5 * time.Second
	// requestTimeout bounds the work for one request, except an event stream and
	// what says so itself.
	requestTimeout = 30 * time.Second
	// maxWait is how long a start or stop may wait for the hub.
	maxWait = 30 * time.Second
)

// NVR is what the API needs of the rules. Their errors wrap the kinds of
// pkg/vms with a sentence for people, or are nobody's business.
type NVR interface {
	CreateHub(ctx context.Context, acct vms.AccountID, name string) (h nvr.Hub, code string, expires time.Time, err error)
	Enroll(ctx context.Context, code string, pub ed25519.PublicKey, name string) (nvr.Enrolment, error)
	Hubs(ctx context.Context, acct vms.AccountID, cursor string, limit int) ([]nvr.Hub, string, error)
	Hub(ctx context.Context, acct vms.AccountID, id vms.HubID) (nvr.Hub, error)
	UpdateHub(ctx context.Context, acct vms.AccountID, id vms.HubID, p nvr.HubPatch) (nvr.Hub, error)
	RevokeHub(ctx context.Context, acct vms.AccountID, id vms.HubID) error
	// Command waits for the hub, at most as long as the kind is worth when wait is zero.
	Command(ctx context.Context, acct vms.AccountID, id vms.HubID, c wire.Command, wait time.Duration) (wire.CommandReply, error)

	CreateChannel(ctx context.Context, acct vms.AccountID, spec nvr.ChannelSpec) (nvr.Channel, error)
	Channels(ctx context.Context, acct vms.AccountID, cursor string, limit int) ([]nvr.Channel, string, error)
	Channel(ctx context.Context, acct vms.AccountID, id vms.ChannelID) (nvr.Channel, error)
	UpdateChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, p nvr.ChannelPatch) (nvr.Channel, error)
	DeleteChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID) error

	StreamToken(ctx context.Context, acct vms.AccountID, id vms.ChannelID) (nvr.StreamToken, error)
	StartChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, o nvr.StartOptions) (nvr.StartResult, error)
	StopChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, o nvr.StartOptions) (nvr.StartResult, error)

	Recordings(ctx context.Context, acct vms.AccountID, id vms.ChannelID, q nvr.RecordingQuery) (nvr.Page, error)
	// Live is nvr.ErrStarting while the stream is on its way.
	Live(ctx context.Context, acct vms.AccountID, id vms.ChannelID, start bool) (nvr.LiveURLs, error)
	Workers() []nvr.WorkerStatus
	WorkersWanted() int
	DrainWorker(ctx context.Context, id vms.WorkerID) error
	// Subscribe ends with ctx, and early when the subscriber is too slow.
	Subscribe(ctx context.Context, acct vms.AccountID) <-chan nvr.Event
}

var _ NVR = (*nvr.NVR)(nil)

// Config is what New needs. NVR and Auth have no default.
type Config struct {
	NVR  NVR
	Auth *auth.Auth
	Log  *slog.Logger
	// Version stands in the OpenAPI document.
	Version string
	// PublicURL is the server that the OpenAPI document names; empty: the one
	// that served it.
	PublicURL string
	// Now is time.Now unless a test says otherwise.
	Now func() time.Time
}

// New returns the handler for /api/, /openapi.json and /docs. Everything else
// it answers with a 404.
func New(c Config) http.Handler { return newServer(c, nil).handler() }

// server is one API.
type server struct {
	Config
	mux  *http.ServeMux
	huma huma.API

	logins, enrols, codes *limiter
	// streams has a place for each event stream that is open.
	streams chan struct{}
	// heartbeat is how often an event stream says that it is there.
	heartbeat time.Duration
	// bodyTimeout is how long a body may take to arrive.
	bodyTimeout time.Duration
}

// newServer makes an API; tests tune it before its operations are added.
func newServer(c Config, tune func(*server)) *server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	mux := http.NewServeMux()
	s := &server{
		Config: c, mux: mux, huma: newHuma(mux, c),
		// A person makes a typing error or two; a program has no business here.
		logins:      newLimiter(10, 6*time.Second, c.Now),
		enrols:      newLimiter(10, 6*time.Second, c.Now),
		codes:       newLimiter(30, 2*time.Second, c.Now),
		streams:     make(chan struct{}, maxStreams),
		heartbeat:   heartbeat,
		bodyTimeout: bodyTimeout,
	}
	if tune != nil {
		tune(s)
	}
	s.huma.UseMiddleware(s.exchange, s.authenticate, s.deadline)
	s.addChannels()
	s.addStreams()
	s.addRecordings()
	s.addHubs()
	s.addCommands()
	s.addEvents()
	s.addWorkers()
	s.addLogin()
	s.addDocs()
	return s
}

// handler is what stands around every operation, the outermost first.
func (s *server) handler() http.Handler {
	return s.recover(headers(s.Auth.Guard(s.route(s.mux))))
}
