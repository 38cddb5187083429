// Package session is the agent's WebSocket at the NVR: it challenges a hub,
// has its proof checked before anything is upgraded, and then carries the
// session protocol of pkg/wire for a stream or for the hub's control line.
//
// Nothing of a refused handshake outlives its answer. Nothing that a Handler
// started outlives Shutdown.
package session

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// NVR is what a session needs of the rules; *nvr.NVR is one.
type NVR interface {
	Nonce() string
	CheckHandshake(ctx context.Context, h nvr.Handshake) (nvr.Session, error)

	HubConnected(s nvr.Session, boot string, link nvr.HubLink)
	HubGone(s nvr.Session, link nvr.HubLink)
	HubReported(ctx context.Context, s nvr.Session, r *wire.Reported)
	CommandReplied(r *wire.CommandReply, hub vms.HubID)

	Assign(ctx context.Context, s nvr.Session, hello *wire.SessionHello, link nvr.StreamLink) (*wire.Assign, error)
	Detach(s nvr.Session, link nvr.StreamLink)
	Holding(ctx context.Context, s nvr.Session, m *wire.Holding) (*wire.Durable, error)
	Gaps(ctx context.Context, s nvr.Session, m *wire.Gaps) (*wire.Committed, error)
	State(ctx context.Context, s nvr.Session, m *wire.StreamState) error
	WantWorker(ctx context.Context, s nvr.Session, m *wire.WantWorker, link nvr.StreamLink) (*wire.Assign, error)
}

var _ NVR = (*nvr.NVR)(nil)

// Config is what a Handler needs. Only NVR has no default.
type Config struct {
	NVR   NVR
	Clock func() time.Time // what time answers say: time.Now
	Log   *slog.Logger     // slog.Default

	PingEvery   time.Duration // 5 s
	Silence     time.Duration // nothing heard for so long: dead. 15 s
	HelloWithin time.Duration // 10 s
	ProbeWithin time.Duration // a control line answers a ping, or is replaced: 3 s

	// ClientIP says who asks, for the limit per address; by default the other
	// end of the TCP connection. Behind a proxy it must read what that one adds.
	ClientIP func(*http.Request) string
}

// How many handshakes are answered. A hub with a hundred cameras that reboots
// makes two requests for each at once; an address may be a router with several
// hubs behind it.
const (
	addressRate, addressBurst = 20, 400
	hubRate, hubBurst         = 5, 200
	// What time it is, a hub asks when it wakes up, until it has an answer.
	timeRate, timeBurst = 2, 60
)

// Handler serves GET /session/v1. Make it with New.
type Handler struct {
	Config
	addresses *limiters
	hubs      *limiters
	times     *limiters

	mu       sync.Mutex
	closed   bool
	conns    map[*conn]struct{}
	controls map[vms.HubID]*conn
	streams  map[vms.SID]*conn // the newest of each session
	wg       sync.WaitGroup    // one per connection
}

// New returns a Handler.
func New(c Config) *Handler {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.ClientIP == nil {
		c.ClientIP = remoteIP
	}
	for _, d := range []struct {
		d   *time.Duration
		def time.Duration
	}{{&c.PingEvery, 5 * time.Second}, {&c.Silence, 15 * time.Second}, {&c.HelloWithin, 10 * time.Second}, {&c.ProbeWithin, 3 * time.Second}} {
		if *d.d == 0 {
			*d.d = d.def
		}
	}
	return &Handler{
		Config:    c,
		addresses: newLimiters(addressRate, addressBurst),
		hubs:      newLimiters(hubRate, hubBurst),
		times:     newLimiters(timeRate, timeBurst),
		conns:     make(map[*conn]struct{}),
		controls:  make(map[vms.HubID]*conn),
		streams:   make(map[vms.SID]*conn),
	}
}

// ServeHTTP answers a handshake, and serves the session if it was let in.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s, err := h.admit(r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	c := newConn(h, s)
	if err := h.enter(r.Context(), c); err != nil {
		h.refuse(w, r, err)
		return
	}
	defer h.leave(c)
	ws, err := websocket.Accept(tap{w, c.ctx}, r, &websocket.AcceptOptions{
		Subprotocols: []string{wire.SessionProtocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		h.Log.Warn("session not upgraded", "hub", s.Hub, "err", err) // Accept has answered
		return
	}
	c.serve(ws)
}

// admit checks all that can be known before the upgrade.
func (h *Handler) admit(r *http.Request) (nvr.Session, error) {
	var none nvr.Session
	if !h.addresses.allow(h.ClientIP(r), h.Clock()) {
		return none, busy("Too many handshakes from this address.")
	}
	switch {
	case r.Method != http.MethodGet || !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", "websocket"):
		return none, &problem.Problem{Type: problem.TypeInvalid, Title: "Upgrade required", Status: http.StatusUpgradeRequired, Detail: "This address speaks WebSocket only."}
	case !hasToken(r.Header, "Sec-WebSocket-Protocol", wire.SessionProtocol):
		return none, &problem.Problem{Type: problem.TypeInvalid, Title: "Wrong subprotocol", Status: http.StatusBadRequest, Detail: "The subprotocol spoken here is " + wire.SessionProtocol + "."}
	case r.Header.Get("Origin") != "": // agents are no browsers, and no page may act as one
		return none, &problem.Problem{Type: problem.TypeForbidden, Title: "Forbidden", Status: http.StatusForbidden, Detail: "Browsers have no business here."}
	}
	sid := vms.SID(r.URL.Query().Get("sid"))
	if sid != "" && !vms.ValidID(sid) {
		return none, &nvr.Refusal{Problem: wire.ProblemSIDUnknown, Kind: vms.ErrNotFound, Detail: "No such session."}
	}
	proof, ok, err := wire.ParseProof(r.Header)
	if !ok {
		return none, &nvr.Refusal{Problem: wire.ProblemNonce, Kind: vms.ErrUnauthorized, Detail: "Prove that you have the hub's key, with the nonce of this answer."}
	}
	if err != nil {
		return none, &nvr.Refusal{Problem: wire.ProblemProof, Kind: vms.ErrUnauthorized, Detail: "The Authorization header is not well formed."}
	}
	s, err := h.NVR.CheckHandshake(r.Context(), nvr.Handshake{Proof: proof, Host: r.Host, SID: sid, Token: r.Header.Get(wire.TokenHeader)})
	if err != nil {
		return none, err
	}
	if !h.hubs.allow(string(s.Hub), h.Clock()) { // only now: the name is proven
		return none, busy("Too many sessions are opened by this hub.")
	}
	return s, nil
}

// enter makes room for a connection. A second control line of a hub gets in
// only when the first does not answer a ping: two agents with one identity
// would take the streams from each other.
func (h *Handler) enter(ctx context.Context, c *conn) error {
	for {
		h.mu.Lock()
		if h.closed {
			h.mu.Unlock()
			return busy("The NVR is shutting down.")
		}
		old := h.controls[c.s.Hub]
		if c.s.SID != "" || old == nil {
			if c.s.SID == "" {
				h.controls[c.s.Hub] = c
			}
			h.conns[c] = struct{}{}
			h.wg.Add(1)
			h.mu.Unlock()
			return nil
		}
		h.mu.Unlock()
		if old.answers(ctx, h.ProbeWithin) {
			return &problem.Problem{Type: wire.ProblemRival, Title: "Conflict", Status: http.StatusConflict, RetryAfter: 5 * time.Second,
				Detail: "Another agent is connected with the identity of this hub."}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		h.Log.Info("control line does not answer, replaced", "hub", c.s.Hub)
		old.kill()
		select {
		case <-old.gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// rivalled makes c the connection of its stream's session, unless another agent
// speaks for the hub: one of another boot, on the control line or on this very
// session, that answers a ping. What does not answer was left behind by an agent
// that has been started again since, and is cut off.
//
// Nothing of the other agent's stream is touched before that is known.
func (h *Handler) rivalled(ctx context.Context, c *conn) bool {
	h.mu.Lock()
	others := []*conn{h.controls[c.s.Hub], h.streams[c.s.SID]}
	h.mu.Unlock()
	var rival atomic.Bool
	var wg sync.WaitGroup
	for _, o := range others {
		if o != nil {
			wg.Go(func() {
				if h.rivals(ctx, o, c) {
					rival.Store(true)
				}
			})
		}
	}
	wg.Wait()
	if rival.Load() {
		h.Log.Warn("a second agent uses the identity of a hub, refused", "hub", c.s.Hub, "channel", c.s.Channel, "boot", c.boot)
		return true
	}
	h.mu.Lock()
	h.streams[c.s.SID] = c
	h.mu.Unlock()
	return false
}

// rivals reports whether o belongs to another agent than c, and answers.
func (h *Handler) rivals(ctx context.Context, o, c *conn) bool {
	t := time.NewTimer(h.ProbeWithin)
	defer t.Stop()
	select {
	case <-o.greeted:
	case <-o.gone:
		return false
	case <-t.C:
		return false // it has not said who it is
	case <-ctx.Done():
		return false
	}
	if o.boot == c.boot || o.boot == "" || c.boot == "" {
		return false
	}
	if o.answers(ctx, h.ProbeWithin) {
		return true
	}
	if ctx.Err() == nil {
		h.Log.Info("connection of an earlier agent does not answer, cut off", "hub", o.s.Hub, "sid", o.s.SID)
		o.kill()
	}
	return false
}

func (h *Handler) leave(c *conn) {
	h.mu.Lock()
	delete(h.conns, c)
	if h.streams[c.s.SID] == c {
		delete(h.streams, c.s.SID)
	}
	if h.controls[c.s.Hub] == c {
		delete(h.controls, c.s.Hub)
	}
	h.mu.Unlock()
	c.kill()
	close(c.gone)
	h.wg.Done()
}

// Shutdown refuses new sessions and closes those that are there, politely
// until ctx ends and then at once. It returns when all are gone.
func (h *Handler) Shutdown(ctx context.Context) error {
	h.mu.Lock()
	h.closed = true
	for c := range h.conns {
		c.stop(websocket.StatusGoingAway, "the NVR is shutting down")
	}
	h.mu.Unlock()
	done := make(chan struct{})
	go func() { h.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	h.mu.Lock()
	for c := range h.conns {
		c.kill()
	}
	h.mu.Unlock()
	<-done
	return ctx.Err()
}

// refuse answers a handshake that is not let in.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var ref *nvr.Refusal
	if !errors.As(err, &ref) {
		if p := (*problem.Problem)(nil); !errors.As(err, &p) && r.Context().Err() == nil {
			// The store or whatever failed us: the agent is to come back.
			h.Log.Error("handshake failed", "err", err)
			err = busy("The NVR cannot answer at this moment.")
		}
		problem.Respond(w, h.Log, err)
		return
	}
	a, ok := answers[ref.Problem]
	if !ok {
		a = answer{http.StatusForbidden, "Forbidden"}
	}
	p := &problem.Problem{Type: ref.Problem, Title: a.title, Status: a.status, Detail: ref.Detail}
	switch a.status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", wire.Challenge(h.NVR.Nonce()))
	case http.StatusServiceUnavailable:
		p.RetryAfter = 2 * time.Second
	}
	if ref.Problem != wire.ProblemNonce { // the first half of every handshake
		h.Log.Info("handshake refused", "problem", ref.Problem, "remote", h.ClientIP(r))
	}
	problem.Write(w, p)
}

type answer struct {
	status int
	title  string
}

var answers = map[string]answer{
	wire.ProblemNonce:        {http.StatusUnauthorized, "Proof required"},
	wire.ProblemProof:        {http.StatusUnauthorized, "Wrong proof"},
	wire.ProblemTokenInvalid: {http.StatusUnauthorized, "Token not valid"},
	wire.ProblemTokenExpired: {http.StatusUnauthorized, "Token expired"},
	wire.ProblemHubUnknown:   {http.StatusForbidden, "Unknown hub"},
	wire.ProblemHubMismatch:  {http.StatusForbidden, "Another hub's session"},
	wire.ProblemSIDUnknown:   {http.StatusNotFound, "Unknown session"},
	wire.ProblemRevoked:      {http.StatusGone, "Revoked"},
	wire.ProblemNoWorker:     {http.StatusServiceUnavailable, "No worker"},
}

func busy(detail string) error {
	return &problem.Problem{Type: wire.ProblemBusy, Title: "Busy", Status: http.StatusServiceUnavailable, Detail: detail, RetryAfter: 2 * time.Second}
}

// hasToken reports whether a comma-separated header names token, in any case.
func hasToken(h http.Header, name, token string) bool {
	return slices.ContainsFunc(h.Values(name), func(v string) bool {
		return slices.ContainsFunc(strings.Split(v, ","), func(s string) bool { return strings.EqualFold(strings.TrimSpace(s), token) })
	})
}

func remoteIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
