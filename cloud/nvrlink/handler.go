package nvrlink

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// maxWaiting bounds the connections that have proven nothing yet. One more, and
	// the oldest is closed: whoever has the key is let in within a round trip, and
	// cannot be kept out by those who only hold a place.
	maxWaiting = 256
	// complainEvery is how often at the most it is said that somebody had a wrong
	// key: anybody can connect.
	complainEvery = 10 * time.Second
)

// HandlerConfig is what a Handler needs. Key, NVR and Keys have no default.
type HandlerConfig struct {
	// Key is the cluster's: see CheckKey.
	Key []byte
	NVR Rules
	// Keys verify the tickets that the NVR signs. Workers hear of a change with
	// their next heartbeat, within a second or so.
	Keys func() []ed25519.PublicKey
	Log  *slog.Logger // slog.Default

	// For tests.
	Silence         time.Duration // nothing heard for so long, or a write that takes so long: dead. 5 s
	HandshakeWithin time.Duration // 5 s
	AnswerWithin    time.Duration // the work on one question: 30 s
}

// Handler serves GET /workers/v1. Make it with NewHandler.
type Handler struct {
	cfg HandlerConfig
	log *slog.Logger
	bad error // the key is none: nobody is let in

	mu         sync.Mutex
	closed     bool
	links      map[*link]struct{}
	waiting    []*link                // those of links that have proven nothing yet, oldest first
	newest     map[vms.WorkerID]*link // of those that were let in
	complained time.Time
	wg         sync.WaitGroup // one per connection
}

// NewHandler returns a Handler. With a key that is none (CheckKey) it says so
// and lets nobody in.
func NewHandler(cfg HandlerConfig) *Handler {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	setDefault(&cfg.Silence, workerSilence)
	setDefault(&cfg.HandshakeWithin, handshakeWithin)
	setDefault(&cfg.AnswerWithin, answerWithin)
	h := &Handler{cfg: cfg, log: cfg.Log, bad: CheckKey(cfg.Key), links: make(map[*link]struct{}), newest: make(map[vms.WorkerID]*link)}
	if h.bad != nil {
		h.log.Error("no worker will be let in", "err", h.bad)
	}
	return h
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

// ServeHTTP answers a worker that connects, and serves its link.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h.admit(r); err != nil {
		problem.Write(w, err)
		return
	}
	l := newLink(h, r.RemoteAddr)
	if !h.enter(l) {
		problem.Write(w, busy("The NVR is shutting down."))
		return
	}
	defer h.leave(l)
	ws, err := websocket.Accept(tap{w, l.ctx}, r, &websocket.AcceptOptions{
		Subprotocols: []string{Protocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		h.log.Warn("worker's connection not upgraded", "remote", r.RemoteAddr, "err", err) // Accept has answered
		return
	}
	l.serve(ws)
}

// admit checks what can be known before the upgrade.
func (h *Handler) admit(r *http.Request) *problem.Problem {
	switch {
	case h.bad != nil:
		return busy("This NVR has no cluster key.")
	case r.Method != http.MethodGet || !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", "websocket"):
		return &problem.Problem{Type: problem.TypeInvalid, Title: "Upgrade required", Status: http.StatusUpgradeRequired, Detail: "This address speaks WebSocket only."}
	case !hasToken(r.Header, "Sec-WebSocket-Protocol", Protocol):
		return &problem.Problem{Type: problem.TypeInvalid, Title: "Wrong subprotocol", Status: http.StatusBadRequest, Detail: "The subprotocol spoken here is " + Protocol + "."}
	case r.Header.Get("Origin") != "": // workers are no browsers
		return &problem.Problem{Type: problem.TypeForbidden, Title: "Forbidden", Status: http.StatusForbidden, Detail: "Browsers have no business here."}
	}
	return nil
}

func busy(detail string) *problem.Problem {
	return &problem.Problem{Type: wire.ProblemBusy, Title: "Busy", Status: http.StatusServiceUnavailable, Detail: detail, RetryAfter: 2 * time.Second}
}

// hasToken reports whether a comma-separated header names token, in any case.
func hasToken(h http.Header, name, token string) bool {
	return slices.ContainsFunc(h.Values(name), func(v string) bool {
		return slices.ContainsFunc(strings.Split(v, ","), func(s string) bool { return strings.EqualFold(strings.TrimSpace(s), token) })
	})
}

// tap closes the socket of an upgraded connection when the link is killed.
// websocket.Conn waits up to 5 s for a peer to answer its close, whatever the
// context says.
type tap struct {
	http.ResponseWriter
	killed context.Context
}

// Hijack implements http.Hijacker.
func (t tap) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err == nil {
		context.AfterFunc(t.killed, func() { _ = nc.Close() }) // mostly closed already
	}
	return nc, rw, err
}

// enter makes room for a connection, unless the Handler is closed.
func (h *Handler) enter(l *link) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	if len(h.waiting) >= maxWaiting {
		h.waiting[0].kill()
		h.waiting = slices.Delete(h.waiting, 0, 1)
	}
	h.waiting = append(h.waiting, l)
	h.links[l] = struct{}{}
	h.wg.Add(1)
	return true
}

// proven notes that l has the key.
func (h *Handler) proven(l *link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unwait(l)
}

func (h *Handler) unwait(l *link) {
	if i := slices.Index(h.waiting, l); i >= 0 {
		h.waiting = slices.Delete(h.waiting, i, i+1)
	}
}

// succeed makes l the newest link of its worker, and returns what is closed when
// nothing that the one before it asked for is under way any more.
func (h *Handler) succeed(l *link) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.newest[l.info.ID]
	h.newest[l.info.ID] = l
	if old == nil {
		done := make(chan struct{})
		close(done)
		return done
	}
	return old.idle
}

func (h *Handler) leave(l *link) {
	l.kill()
	close(l.idle)
	h.mu.Lock()
	h.unwait(l)
	delete(h.links, l)
	if h.newest[l.info.ID] == l {
		delete(h.newest, l.info.ID)
	}
	h.mu.Unlock()
	h.wg.Done()
}

// wrongKey says, not too often, that somebody has another cluster key.
func (h *Handler) wrongKey(id vms.WorkerID, remote string) {
	h.mu.Lock()
	quiet := time.Since(h.complained) < complainEvery
	if !quiet {
		h.complained = time.Now()
	}
	h.mu.Unlock()
	if !quiet {
		h.log.Error("what calls itself a worker has another cluster key than this NVR, and is not let in; if it is ours, start both with the same cluster key file (-cluster-key-file, VMS_CLUSTER_KEY_FILE)",
			"worker", id, "remote", remote)
	}
}

// Shutdown refuses new links and closes those that are there, politely until
// ctx ends and then at once. It returns when all are gone.
func (h *Handler) Shutdown(ctx context.Context) error {
	h.mu.Lock()
	h.closed = true
	for l := range h.links {
		l.stop(websocket.StatusGoingAway, "the NVR is shutting down")
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
	for l := range h.links {
		l.kill()
	}
	h.mu.Unlock()
	<-done
	return ctx.Err()
}
