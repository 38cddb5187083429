package nvrlink

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// maxInbox bounds, in bytes, the orders of the NVR that are not obeyed yet.
	maxInbox = 16 << 20
	// againEvery is how often at the most it is said that there still is no link.
	againEvery = 30 * time.Second
	// connectWithin bounds name and TCP: to an NVR that was just moved or cut off
	// packets vanish, and a first one must not be waited for.
	connectWithin = 3 * time.Second
)

// ClientConfig is what a Client needs. URL, Key, Info and Load have no default.
type ClientConfig struct {
	// URL is where the NVR takes workers: ws://HOST/workers/v1, or wss://. The
	// handshake is not bound to the connection: off the loopback it should be wss.
	URL string
	// Key is the cluster's: see CheckKey.
	Key []byte
	// Info presents the worker. Its Instance may come later: see SetInstance.
	Info vms.WorkerInfo
	// Load is asked once a second. It must not block.
	Load func() vms.WorkerLoad

	// OnUp is called each time that the link is up, in a goroutine of its own; ctx
	// ends with the link, and OnUp must return then. The NVR may have been started
	// again and know nothing: OnUp tells once more which lanes are open, in order
	// with what else is told of them.
	OnUp func(ctx context.Context)
	// OnRevoke, OnMoved and OnDrain pass on what the NVR orders, one at a time and in
	// order. They may take their time; questions are answered meanwhile.
	OnRevoke func(sids []vms.SID)
	OnMoved  func(ch vms.ChannelID, liveURL string)
	OnDrain  func()
	// OnKeys gets the keys that verify tickets from now on, before anything else of
	// a link. It must not block, nor ask the NVR.
	OnKeys func(keys []ed25519.PublicKey)

	HTTPClient *http.Client // one that gives up a dead address after 3 s
	Log        *slog.Logger // slog.Default

	// For tests.
	Beat    time.Duration // between heartbeats: 1 s
	Silence time.Duration // nothing heard for so long: dead. 3 s
	MinWait time.Duration // before the next try: 200 ms
	MaxWait time.Duration // 5 s
}

// Client is a worker's end of the line to the NVR. Make it with NewClient and
// call Run. Its other methods may be called from any goroutine; while there is
// no link they fail at once with vms.ErrUnavailable.
type Client struct {
	cfg   ClientConfig
	log   *slog.Logger
	http  *http.Client
	inbox *queue[func()]

	mu   sync.Mutex
	line *line // nil while there is none

	// of Run
	saidKind string
	saidAt   time.Time
}

// NewClient returns a Client, or vms.ErrInvalid.
func NewClient(cfg ClientConfig) (*Client, error) {
	if u, err := url.Parse(cfg.URL); err != nil || u.Host == "" || u.Scheme != "ws" && u.Scheme != "wss" {
		return nil, fmt.Errorf("%w: NVR URL %q, want ws:// or wss://, a host, and the path %s", vms.ErrInvalid, cfg.URL, Path)
	}
	if err := CheckKey(cfg.Key); err != nil {
		return nil, err
	}
	if !vms.ValidID(cfg.Info.ID) || cfg.Load == nil {
		return nil, fmt.Errorf("%w: a link to the NVR needs a worker's id and load", vms.ErrInvalid)
	}
	if cfg.OnUp == nil {
		cfg.OnUp = func(context.Context) {}
	}
	if cfg.OnRevoke == nil {
		cfg.OnRevoke = func([]vms.SID) {}
	}
	if cfg.OnMoved == nil {
		cfg.OnMoved = func(vms.ChannelID, string) {}
	}
	if cfg.OnDrain == nil {
		cfg.OnDrain = func() {}
	}
	if cfg.OnKeys == nil {
		cfg.OnKeys = func([]ed25519.PublicKey) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	setDefault(&cfg.Beat, beat)
	setDefault(&cfg.Silence, nvrSilence)
	setDefault(&cfg.MinWait, 200*time.Millisecond)
	setDefault(&cfg.MaxWait, 5*time.Second)
	c := &Client{cfg: cfg, log: cfg.Log, http: cfg.HTTPClient, inbox: newQueue[func()](maxInbox)}
	if c.http == nil {
		c.http = &http.Client{Transport: &http.Transport{
			Proxy:             http.ProxyFromEnvironment,
			DialContext:       (&net.Dialer{Timeout: connectWithin, KeepAlive: 15 * time.Second}).DialContext,
			DisableKeepAlives: true, // of refused handshakes
		}}
	}
	return c, nil
}

// SetInstance names the run of the worker, before Run: the worker that names it
// needs a Client first.
func (c *Client) SetInstance(i vms.Instance) { c.cfg.Info.Instance = i }

// Up reports whether there is a link.
func (c *Client) Up() bool { return c.current() != nil }

func (c *Client) current() *line {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.line
}

func (c *Client) setLine(l *line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.line = l
}

// Run keeps the link up until ctx ends (nil). What the worker still has to tell
// goes over it: end ctx when the worker is done. Without an instance it returns
// vms.ErrInvalid at once. Call it once.
func (c *Client) Run(ctx context.Context) error {
	if !vms.ValidID(c.cfg.Info.Instance) {
		return fmt.Errorf("%w: a link to the NVR needs the worker's instance", vms.ErrInvalid)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.obey(ctx) })
	b := retry.Backoff{Min: c.cfg.MinWait, Max: c.cfg.MaxWait, Steady: 2 * c.cfg.MaxWait}
	for {
		held, err := c.runOnce(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait := b.Next(held)
		c.complain(err, wait)
		if !retry.Sleep(ctx, wait) {
			return nil
		}
	}
}

// obey passes the NVR's orders on, until ctx ends.
func (c *Client) obey(ctx context.Context) {
	for ctx.Err() == nil {
		if order, ok := c.inbox.pop(); ok {
			order()
			continue
		}
		select {
		case <-c.inbox.ready:
		case <-ctx.Done():
		}
	}
}

// errWrongKey: the other end does not have our key.
var errWrongKey = errors.New("the NVR has another cluster key than this worker: start both with the same cluster key file (-cluster-key-file, VMS_CLUSTER_KEY_FILE)")

// errRefused is the answer of an NVR that does not want this worker.
type errRefused struct{ *told }

func (e errRefused) Error() string {
	s := "the NVR does not take this worker: " + e.detail
	if errors.Is(e.kind, vms.ErrConflict) {
		s += "; give each worker an id of its own (-worker-id)"
	}
	return s
}

// complain says why there is no link: once, and again from time to time. What
// only people can change is an error.
func (c *Client) complain(err error, wait time.Duration) {
	level, kind := slog.LevelWarn, "link"
	var no errRefused
	switch {
	case errors.Is(err, errWrongKey):
		level, kind = slog.LevelError, "key"
	case errors.As(err, &no) && !errors.Is(err, vms.ErrUnavailable):
		level, kind = slog.LevelError, "refused"
	}
	if kind == c.saidKind && time.Since(c.saidAt) < againEvery {
		level = slog.LevelDebug
	} else {
		c.saidKind, c.saidAt = kind, time.Now()
	}
	c.log.Log(context.Background(), level, "no link to the NVR, will try again", "nvr", c.host(), "err", err, "wait", wait)
}

func (c *Client) host() string {
	u, err := url.Parse(c.cfg.URL)
	if err != nil {
		return ""
	}
	return u.Host
}

// runOnce lives as long as one link, and so does all that it starts. held is for
// how long there was one.
func (c *Client) runOnce(ctx context.Context) (held time.Duration, err error) {
	ws, kill, w, err := c.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer ws.CloseNow()
	start := time.Now()
	c.log.Info("link to the NVR is up", "nvr", c.host())
	c.saidKind = ""
	if off := time.Since(w.ServerTime); off.Abs() > farClock {
		c.log.Warn("the clocks of worker and NVR differ; tickets may be refused", "worker_is_ahead", off.Round(time.Millisecond))
	}
	c.cfg.OnKeys(toKeys(w.Keys))

	l := newLine()
	c.setLine(l)
	// Being told to stop ends the writer, after the last words; the writer ends the rest.
	g, gctx := errgroup.WithContext(context.WithoutCancel(ctx))
	var readErr error
	g.Go(func() error { readErr = c.read(gctx, ws, l); return readErr })
	g.Go(func() error { return c.write(ctx, gctx, ws, l, kill) })
	g.Go(func() error { c.cfg.OnUp(gctx); return nil })
	<-gctx.Done()
	c.setLine(nil)
	close(l.down)
	held = time.Since(start)
	if err = g.Wait(); !errors.Is(readErr, context.Canceled) {
		err = readErr // the reader knows best: a writer only finds the socket closed
	}
	return held, err
}

// dial connects and shakes hands. kill closes the socket at once.
func (c *Client) dial(ctx context.Context) (ws *websocket.Conn, kill func(), w *welcome, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	var socket net.Conn
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { socket = i.Conn }})
	ws, resp, err := websocket.Dial(traced, c.cfg.URL, &websocket.DialOptions{
		HTTPClient: c.http, Subprotocols: []string{Protocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		if resp != nil && resp.StatusCode >= 400 {
			err = problem.ReadResponse(resp)
		}
		return nil, nil, nil, err
	}
	kill = func() {
		if socket != nil {
			socket.Close()
		}
	}
	if ws.Subprotocol() != Protocol {
		ws.CloseNow()
		return nil, nil, nil, fmt.Errorf("the server at %s does not speak %s", c.host(), Protocol)
	}
	if w, err = c.shakeHands(ctx, ws, kill); err != nil {
		ws.CloseNow()
		if websocket.CloseStatus(err) == statusWrongKey {
			err = errWrongKey
		}
		return nil, nil, nil, err
	}
	return ws, kill, w, nil
}

// shakeHands checks that the NVR has the key before it proves that we have.
func (c *Client) shakeHands(ctx context.Context, ws *websocket.Conn, kill func()) (*welcome, error) {
	ws.SetReadLimit(maxMessage)
	nonce := newNonce()
	first, err := encode(newHello(c.cfg.Info, nonce))
	if err != nil {
		return nil, err
	}
	if err := ws.Write(ctx, websocket.MessageText, first); err != nil {
		return nil, err
	}
	m, _, err := receive(ctx, ws, firstOfNVR)
	if err != nil {
		return nil, err
	}
	ch := m.(*challenge) // the table holds no others
	if !equal(ch.Proof, prove(c.cfg.Key, byNVR, nonce, ch.Nonce, first)) {
		t := time.AfterFunc(goodbye, kill)
		defer t.Stop()
		_ = ws.Close(statusWrongKey, reasonWrongKey) // so that the NVR says it, too
		return nil, errWrongKey
	}
	if err := send(ctx, ws, &proof{prove(c.cfg.Key, byWorker, nonce, ch.Nonce, first)}); err != nil {
		return nil, err
	}
	if m, _, err = receive(ctx, ws, secondOfNVR); err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *refused:
		return nil, errRefused{errorOf(m.Problem, clip(m.Detail))}
	case *welcome:
		return m, nil
	}
	return nil, fmt.Errorf("%w: %s", errMalformed, m.kind())
}

// read takes the NVR's messages until the link or the protocol breaks.
func (c *Client) read(ctx context.Context, ws *websocket.Conn, l *line) error {
	for {
		rctx, cancel := context.WithTimeout(ctx, c.cfg.Silence)
		data, err := receiveText(rctx, ws)
		silent := errors.Is(rctx.Err(), context.DeadlineExceeded) // ctx has no deadline
		cancel()
		switch {
		case err != nil && silent:
			return fmt.Errorf("the NVR said nothing for %s", c.cfg.Silence)
		case err != nil:
			return err
		}
		if err := c.take(l, data); err != nil {
			return err
		}
	}
}

// take does what one message asks for. It does not wait.
func (c *Client) take(l *line, data []byte) error {
	m, _, err := decode(data, ofNVR)
	if err != nil {
		return err
	}
	var order func()
	switch m := m.(type) {
	case *answer:
		return l.answered(m)
	case *keys:
		c.cfg.OnKeys(toKeys(m.Keys))
		return nil
	case *revoke:
		order = func() { c.cfg.OnRevoke(m.SIDs) }
	case *moved:
		order = func() { c.cfg.OnMoved(m.Channel, m.LiveURL) }
	case *drain:
		order = c.cfg.OnDrain
	default:
		return nil // heard
	}
	if !c.inbox.push(order, len(data)) {
		return errors.New("the worker does not keep up with what the NVR orders")
	}
	return nil
}

// write sends what is queued, and heartbeats, until the link ends (gctx), or
// until stop ends: then it sends what is left and closes.
func (c *Client) write(stop, gctx context.Context, ws *websocket.Conn, l *line, kill func()) error {
	put := func(data []byte) error {
		ctx, cancel := context.WithTimeout(gctx, workerSilence)
		defer cancel()
		return ws.Write(ctx, websocket.MessageText, data)
	}
	pulse := func() error {
		data, err := encode(newAlive(c.cfg.Load()))
		if err != nil {
			return err
		}
		return put(data)
	}
	if err := pulse(); err != nil {
		return err
	}
	t := time.NewTicker(c.cfg.Beat)
	defer t.Stop()
	for {
		var err error
		select {
		case <-gctx.Done():
			return gctx.Err()
		case <-t.C:
			err = pulse()
		case data := <-l.out:
			err = put(data)
		case <-stop.Done():
			late := time.AfterFunc(goodbye, kill)
			defer late.Stop()
			for len(l.out) > 0 {
				if err := put(<-l.out); err != nil {
					return err
				}
			}
			_ = ws.Close(websocket.StatusNormalClosure, "the worker is done") // the NVR may be gone already
			return stop.Err()
		}
		if err != nil {
			return err
		}
	}
}

// StreamStarted tells that a lane is up here.
func (c *Client) StreamStarted(ctx context.Context, e vms.StreamEvent) error {
	if err := c.isOurs(e); err != nil {
		return err
	}
	return c.tell(ctx, &started{event: newEvent(e)})
}

// StreamEnded tells that a lane is down.
func (c *Client) StreamEnded(ctx context.Context, e vms.StreamEvent) error {
	if err := c.isOurs(e); err != nil {
		return err
	}
	return c.tell(ctx, &ended{event: newEvent(e)})
}

// isOurs: a worker speaks for itself only.
func (c *Client) isOurs(e vms.StreamEvent) error {
	if e.Worker != c.cfg.Info.ID || e.Instance != c.cfg.Info.Instance {
		return fmt.Errorf("%w: event of worker %s, instance %s, at worker %s, instance %s", vms.ErrInvalid, e.Worker, e.Instance, c.cfg.Info.ID, c.cfg.Info.Instance)
	}
	return nil
}

// RecordingUploaded tells that an object is stored and verified.
func (c *Client) RecordingUploaded(ctx context.Context, r vms.Recording) error {
	return c.tell(ctx, &uploaded{Recording: fromRecording(r)})
}

// Parts asks for the parts of some epochs of a channel, at most 4,096.
func (c *Client) Parts(ctx context.Context, ch vms.ChannelID, epochs []vms.Epoch) ([]vms.Recording, error) {
	if len(epochs) == 0 {
		return nil, nil
	}
	return c.recordings(ctx, &parts{Channel: ch, Epochs: slices.Clone(epochs)})
}

// Wholes asks which whole recordings of a channel have something of r.
func (c *Client) Wholes(ctx context.Context, ch vms.ChannelID, r vms.ChunkRange) ([]vms.ChunkRange, error) {
	a, err := c.ask(ctx, &wholes{Channel: ch, Chunks: r})
	return a.Ranges, err
}

// AbandonedParts asks for parts that no hub will continue.
func (c *Client) AbandonedParts(ctx context.Context, limit int) ([]vms.Recording, error) {
	return c.recordings(ctx, &abandoned{Limit: max(0, limit)})
}

// Viewers tells how many look on at a channel here.
func (c *Client) Viewers(ctx context.Context, ch vms.ChannelID, n int) error {
	return c.tell(ctx, &viewers{Channel: ch, Viewers: n})
}

func (c *Client) tell(ctx context.Context, q question) error {
	_, err := c.ask(ctx, q)
	return err
}

func (c *Client) recordings(ctx context.Context, q question) ([]vms.Recording, error) {
	a, err := c.ask(ctx, q)
	if err != nil || len(a.Recordings) == 0 {
		return nil, err
	}
	out := make([]vms.Recording, len(a.Recordings))
	for i := range a.Recordings {
		out[i] = a.Recordings[i].recording()
	}
	return out, nil
}

// ask waits for the answer, the link's end, or ctx.
func (c *Client) ask(ctx context.Context, q question) (answer, error) {
	l := c.current()
	if l == nil {
		return answer{}, fmt.Errorf("%w: there is no link to the NVR", vms.ErrUnavailable)
	}
	return l.ask(ctx, q)
}
