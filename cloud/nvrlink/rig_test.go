package nvrlink

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

var (
	testKey    = bytes.Repeat([]byte{7}, MinKey)
	testWorker = vms.WorkerInfo{
		ID: "w1", Instance: "run_1", PushURL: "ws://w1/push/v1", LiveURL: "ws://w1/live/v1", Zone: "north", Version: "1.2.3",
		Capacity: vms.WorkerCapacity{Streams: 100, BytesPerSecond: 1e8},
	}
	testPublic = []ed25519.PublicKey{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)}
)

func testKeys() []ed25519.PublicKey { return testPublic }

// patience is how long a test waits for what should happen at once.
const patience = 20 * time.Second

// rules is an NVR that writes down what it is told.
type rules struct {
	mu    sync.Mutex
	ups   []vms.WorkerInfo
	downs []nvr.WorkerLink
	links []nvr.WorkerLink
	loads []vms.WorkerLoad
	said  []any // events with "started" or "ended" in Cause's place, recordings, viewers

	// upErr refuses workers. onAsk is called with every question, and its error
	// returned; it may be nil.
	upErr error
	onAsk func(ctx context.Context, what any) error

	recordings []vms.Recording
	ranges     []vms.ChunkRange
}

type (
	startedEvent   struct{ vms.StreamEvent }
	endedEvent     struct{ vms.StreamEvent }
	partsQuestion  struct{ epochs int }
	wholesQuestion struct{ r vms.ChunkRange }
	limitQuestion  struct{ limit int }
	viewersNotice  struct{ n int }
)

func (r *rules) hear(ctx context.Context, what any) error {
	r.mu.Lock()
	ask := r.onAsk
	r.mu.Unlock()
	if ask != nil {
		if err := ask(ctx, what); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, what)
	return nil
}

func (r *rules) StreamStarted(ctx context.Context, e vms.StreamEvent) error {
	return r.hear(ctx, startedEvent{e})
}

func (r *rules) StreamEnded(ctx context.Context, e vms.StreamEvent) error {
	return r.hear(ctx, endedEvent{e})
}

func (r *rules) RecordingUploaded(ctx context.Context, rec vms.Recording) error {
	return r.hear(ctx, rec)
}

func (r *rules) Parts(ctx context.Context, _ vms.ChannelID, epochs []vms.Epoch) ([]vms.Recording, error) {
	return r.recordings, r.hear(ctx, partsQuestion{len(epochs)})
}

func (r *rules) Wholes(ctx context.Context, _ vms.ChannelID, c vms.ChunkRange) ([]vms.ChunkRange, error) {
	return r.ranges, r.hear(ctx, wholesQuestion{c})
}

func (r *rules) AbandonedParts(ctx context.Context, limit int) ([]vms.Recording, error) {
	return r.recordings, r.hear(ctx, limitQuestion{limit})
}

func (r *rules) Viewers(ctx context.Context, _ vms.ChannelID, n int) error {
	return r.hear(ctx, viewersNotice{n})
}

func (r *rules) WorkerUp(w vms.WorkerInfo, link nvr.WorkerLink) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.upErr != nil {
		return r.upErr
	}
	r.ups, r.links = append(r.ups, w), append(r.links, link)
	return nil
}

func (r *rules) WorkerAlive(_ vms.WorkerID, _ vms.Instance, l vms.WorkerLoad) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loads = append(r.loads, l)
}

func (r *rules) WorkerDown(_ vms.WorkerID, _ vms.Instance, link nvr.WorkerLink) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.downs = append(r.downs, link)
}

// set changes the rules.
func (r *rules) set(f func(*rules)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

// get reads something of them.
func get[T any](r *rules, f func(*rules) T) T {
	r.mu.Lock()
	defer r.mu.Unlock()
	return f(r)
}

func (r *rules) nUps() int   { return get(r, func(r *rules) int { return len(r.ups) }) }
func (r *rules) nDowns() int { return get(r, func(r *rules) int { return len(r.downs) }) }
func (r *rules) nSaid() int  { return get(r, func(r *rules) int { return len(r.said) }) }
func (r *rules) link() nvr.WorkerLink {
	return get(r, func(r *rules) nvr.WorkerLink { return r.links[len(r.links)-1] })
}

// server is an NVR that can be started again at its address.
type server struct {
	t       *testing.T
	url     string
	addr    string
	log     *logs
	current atomic.Pointer[Handler]
	rules   *rules
}

func startServer(t *testing.T, change func(*HandlerConfig)) *server {
	t.Helper()
	vmstest.NoLeaks(t)
	s := &server{t: t, log: new(logs)}
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.current.Load().ServeHTTP(w, r) }))
	s.addr = hs.Listener.Addr().String()
	s.url = "ws://" + s.addr + Path
	s.restart(change)
	t.Cleanup(func() { s.shutdown(); hs.Close() })
	return s
}

// restart puts an NVR in place that knows nothing. The one before is shut down.
func (s *server) restart(change func(*HandlerConfig)) {
	s.t.Helper()
	r := &rules{}
	cfg := HandlerConfig{Key: testKey, NVR: r, Keys: testKeys, Log: s.log.logger(s.t), Silence: patience}
	if change != nil {
		change(&cfg)
	}
	old := s.current.Swap(NewHandler(cfg))
	if old != nil {
		s.shut(old)
	}
	s.rules = r
}

func (s *server) shutdown() { s.shut(s.current.Load()) }

func (s *server) shut(h *Handler) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.Shutdown(ctx); err != nil {
		s.t.Errorf("Shutdown = %v", err)
	}
}

// client is a running Client.
type client struct {
	*Client
	log  *logs
	stop func() // and waits
}

func startClient(t *testing.T, url string, change func(*ClientConfig)) *client {
	t.Helper()
	c := &client{log: new(logs)}
	cfg := ClientConfig{
		URL: url, Key: testKey, Info: testWorker, Load: func() vms.WorkerLoad { return vms.WorkerLoad{} }, Log: c.log.logger(t),
		Beat: 20 * time.Millisecond, Silence: patience, MinWait: 5 * time.Millisecond, MaxWait: 50 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if c.Client, err = NewClient(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	t.Cleanup(c.stop)
	return c
}

// logs keeps what was logged.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewMultiHandler(vmstest.Log(t).Handler(), slog.NewTextHandler(l, nil)))
}

// lines returns those that contain all of the words.
func (l *logs) lines(words ...string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			out = append(out, line)
		}
	}
	return out
}

// until waits for something to become true.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// raw is a worker that says what the test says.
type raw struct {
	t   *testing.T
	ctx context.Context
	ws  *websocket.Conn
}

func dialRaw(t *testing.T, url string) *raw {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	ws, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{Subprotocols: []string{Protocol}})
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(maxMessage)
	t.Cleanup(func() { ws.CloseNow() })
	return &raw{t, ctx, ws}
}

// enterRaw has its hands shaken.
func enterRaw(t *testing.T, url string, key []byte) *raw {
	t.Helper()
	r := dialRaw(t, url)
	nonce := newNonce()
	first := r.say(newHello(testWorker, nonce))
	ch := r.hear(firstOfNVR).(*challenge)
	r.say(&proof{prove(key, byWorker, nonce, ch.Nonce, first)})
	return r
}

func (r *raw) say(m message) []byte {
	r.t.Helper()
	data, err := encode(m)
	if err != nil {
		r.t.Fatal(err)
	}
	r.write(string(data))
	return data
}

// write sends text. That the other side has closed is for who reads to find out.
func (r *raw) write(text string) {
	r.t.Helper()
	if err := r.ws.Write(r.ctx, websocket.MessageText, []byte(text)); err != nil {
		r.t.Log(err)
	}
}

func (r *raw) hear(types table) message {
	r.t.Helper()
	m, _, err := receive(r.ctx, r.ws, types)
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// closed reads until the connection is closed, and returns with which code; -1:
// without one.
func (r *raw) closed() websocket.StatusCode {
	r.t.Helper()
	for {
		if _, _, err := r.ws.Read(r.ctx); err != nil {
			if r.ctx.Err() != nil {
				r.t.Fatal("nobody closes the connection")
			}
			return websocket.CloseStatus(err)
		}
	}
}

// isKind reports whether err is of a kind, and of that alone.
func isKind(err, kind error) bool {
	for _, p := range problems {
		if errors.Is(err, p.kind) != errors.Is(kind, p.kind) {
			return false
		}
	}
	return err != nil
}
