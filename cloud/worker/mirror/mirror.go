// Package mirror publishes live streams by RTSP to a server that takes them,
// such as MediaMTX, from which others get RTSP, SRT, RTMP, WebRTC or HLS. It
// stands beside the recording, never in its path: whoever publishes is not kept
// waiting, a server that is away or slow costs bounded memory and whole GOPs,
// and nothing but the mirror notices.
package mirror

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"

	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

// Placeholder stands in a URL template where the channel's id goes.
const Placeholder = "{channel}"

// Defaults of a Config whose fields are zero.
const (
	// DefaultMaxQueue is some seconds of a picture in 4K, DefaultMaxTotal what a
	// worker with a gigabyte of memory can do without.
	DefaultMaxQueue = 8 << 20
	DefaultMaxTotal = 64 << 20
	// DefaultIdle is longer than any camera takes for one chunk, and as long as
	// MediaMTX waits for a publisher's next packet (readTimeout, 10 s).
	DefaultIdle = 10 * time.Second
)

// Config says where streams are published to.
type Config struct {
	// URL is rtsp://[user:password@]host[:port]/path with Placeholder in the path
	// or the query; rtsps is RTSP in TLS. Credentials are not logged.
	URL string
	// TLS is for rtsps; nil: the server's certificate is checked by the system's roots.
	TLS *tls.Config
	Log *slog.Logger
	// Metrics is where the mirror's figures are registered; nil: nowhere.
	Metrics *obs.Registry

	// MaxQueue bounds the bytes that wait for one stream's session, and MaxTotal
	// those of all streams. A single chunk may be larger than MaxQueue. Beyond
	// that a session has about 600 KiB, most of it in the kernel.
	MaxQueue, MaxTotal int64
	// Idle: a session is closed when nothing was published for so long.
	Idle time.Duration
	// Retry spaces the attempts to publish one stream, and Min of it its sessions
	// as well. Zero: 1 s to 30 s, which a session that held for 30 s starts over.
	Retry retry.Backoff
}

// Mirror publishes streams. New makes it. A nil *Mirror mirrors nothing.
type Mirror struct {
	cfg     Config
	server  string   // host and port, for logs
	secrets []string // what may not be logged

	queued   atomic.Int64 // bytes that wait, of all streams
	sessions *obs.Gauge
	sent     *obs.Counter // chunks
	dropped  *obs.Counter
	bytes    *obs.Counter
	failures *obs.Counter

	mu      sync.Mutex
	running bool
	streams map[vms.ChannelID]*stream
	fresh   []*stream // known, not started
	wake    chan struct{}
}

// New checks cfg. vms.ErrInvalid: the URL is none that a stream can be published
// to; the error does not repeat it.
func New(cfg Config) (*Mirror, error) {
	cfg.MaxQueue = cmp.Or(cfg.MaxQueue, DefaultMaxQueue)
	cfg.MaxTotal = cmp.Or(cfg.MaxTotal, DefaultMaxTotal)
	cfg.Idle = cmp.Or(cfg.Idle, DefaultIdle)
	cfg.Retry.Min = cmp.Or(cfg.Retry.Min, time.Second)
	cfg.Retry.Max = cmp.Or(cfg.Retry.Max, 30*time.Second)
	cfg.Retry.Steady = cmp.Or(cfg.Retry.Steady, 30*time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = obs.NewRegistry()
	}
	u, err := parse(cfg.URL)
	if err != nil {
		return nil, err
	}
	m := &Mirror{cfg: cfg, server: u.Host, wake: make(chan struct{}, 1)}
	if pass, ok := u.User.Password(); ok && pass != "" {
		m.secrets = append(m.secrets, pass, url.QueryEscape(pass), url.PathEscape(pass))
	}
	if u.RawQuery != "" { // some servers take credentials there
		m.secrets = append(m.secrets, strings.Split(u.RawQuery, Placeholder)...)
	}
	chunks := cfg.Metrics.CounterVec("vms_worker_mirror_chunks_total", "Chunks for the mirror: sent, or dropped because its server was away or too slow, or before a keyframe.", "result")
	m.sent, m.dropped = chunks.With("sent"), chunks.With("dropped")
	m.bytes = cfg.Metrics.Counter("vms_worker_mirror_sent_bytes_total", "Bytes of the chunks that were sent to the mirror.")
	m.failures = cfg.Metrics.Counter("vms_worker_mirror_failures_total", "Sessions with the mirror that could not be opened, or broke.")
	m.sessions = cfg.Metrics.Gauge("vms_worker_mirror_sessions", "Streams that are being published to the mirror.")
	cfg.Metrics.GaugeFunc("vms_worker_mirror_queue_bytes", "Bytes that wait to be sent to the mirror.", func() float64 { return float64(m.queued.Load()) })
	return m, nil
}

// parse checks a URL template.
func parse(template string) (*url.URL, error) {
	invalid := func(what string) error {
		return fmt.Errorf("the mirror's URL %s; it is of the form rtsp://host:8554/%s: %w", what, Placeholder, vms.ErrInvalid)
	}
	u, err := url.Parse(template)
	if err != nil {
		return nil, invalid("cannot be read") // err holds all of it
	}
	user, pass := "", ""
	if u.User != nil {
		user = u.User.Username()
		pass, _ = u.User.Password()
	}
	switch {
	case u.Scheme != "rtsp" && u.Scheme != "rtsps":
		return nil, invalid("is not one of rtsp or rtsps")
	case u.Hostname() == "":
		return nil, invalid("names no host")
	case u.Fragment != "" || u.Opaque != "":
		return nil, invalid("has a fragment")
	case strings.Contains(u.Host+user+pass, Placeholder):
		return nil, invalid("has " + Placeholder + " in its host or credentials")
	case !strings.Contains(u.Path+"?"+u.RawQuery, Placeholder):
		return nil, invalid("lacks " + Placeholder + ", so that streams would take each other's place")
	}
	if _, err := address(template, "ch"); err != nil {
		return nil, invalid("cannot be read")
	}
	return u, nil
}

// address is where a channel is published; ids need no escaping (vms.ValidID).
func address(template string, ch vms.ChannelID) (*base.URL, error) {
	return base.ParseURL(strings.ReplaceAll(template, Placeholder, string(ch)))
}

// hide is what may be logged of err.
func (m *Mirror) hide(err error) string {
	s := obs.HideUserinfo(err.Error())
	for _, secret := range m.secrets {
		if secret != "" {
			s = strings.ReplaceAll(s, secret, "[hidden]")
		}
	}
	return s
}

// Run publishes until ctx ends; then it closes the sessions and returns nil. It
// is called once. Nothing is taken before it runs, and nothing after.
func (m *Mirror) Run(ctx context.Context) error {
	m.mu.Lock()
	m.running, m.streams = true, make(map[vms.ChannelID]*stream)
	m.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			m.mu.Lock()
			m.running, m.streams, m.fresh = false, nil, nil
			m.mu.Unlock()
			return nil
		case <-m.wake:
		}
		m.mu.Lock()
		fresh := m.fresh
		m.fresh = nil
		m.mu.Unlock()
		for _, s := range fresh {
			wg.Go(func() { s.run(ctx) })
		}
	}
}

// Publish shows c, which init decodes, to the mirror. It never blocks. The
// payload is copied, init is kept: nobody may write to it. What was published
// before, and is sent again to be stored, is left out.
func (m *Mirror) Publish(ch vms.ChannelID, init *vms.Init, c *vms.Chunk) {
	if m == nil {
		return
	}
	if s := m.stream(ch); s != nil {
		s.publish(init, c)
	}
}

// stream returns the stream of a channel, made if need be; nil: Run does not run.
func (m *Mirror) stream(ch vms.ChannelID) *stream {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running {
		return nil
	}
	s := m.streams[ch]
	if s == nil {
		s = newStream(m, ch)
		m.streams[ch] = s
		m.fresh = append(m.fresh, s)
		signal(m.wake)
	}
	return s
}

// known returns the stream of a channel, or nil.
func (m *Mirror) known(ch vms.ChannelID, forget bool) *stream {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.streams[ch]
	if forget {
		delete(m.streams, ch)
	}
	return s
}

// Offline says that nothing comes for now: what waits is sent, then the session
// is closed. The next keyframe opens another.
func (m *Mirror) Offline(ch vms.ChannelID, cause string) {
	if s := m.known(ch, false); s != nil {
		s.offline(cause)
	}
}

// Forget closes a channel's session at once and keeps nothing of it.
func (m *Mirror) Forget(ch vms.ChannelID) {
	if s := m.known(ch, true); s != nil {
		s.forget()
	}
}

// reserve takes n bytes of what may wait in all, or none.
func (m *Mirror) reserve(n int64) bool {
	if m.queued.Add(n) <= m.cfg.MaxTotal {
		return true
	}
	m.queued.Add(-n)
	return false
}

func signal(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}
