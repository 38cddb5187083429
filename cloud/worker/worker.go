// Package worker is the role that receives streams, cuts recordings, uploads
// them and shows the live picture. It keeps nothing that the agent could not
// send again: what a worker holds when it dies is on the hubs still.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zipato/vms/cloud/worker/ingest"
	"github.com/zipato/vms/cloud/worker/live"
	"github.com/zipato/vms/cloud/worker/upload"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// maxChunk is the largest binary message: the least that the protocol allows, and a header.
const maxChunk = wire.MinMaxChunk + wire.ChunkHeaderLen

// leastDir holds the largest recording that an agent makes, 64 MiB, with room
// for the chunks of the largest size that credit is granted for.
const leastDir = 64<<20 + 2*maxChunk

// NVR is whom a worker tells. Every notice is repeated until it returns nil.
type NVR interface {
	StreamStarted(ctx context.Context, e vms.StreamEvent) error
	StreamEnded(ctx context.Context, e vms.StreamEvent) error
	RecordingUploaded(ctx context.Context, r vms.Recording) error
}

// Config is what a worker needs. ID, Dir, Store, NVR and the two checks have no default.
type Config struct {
	ID vms.WorkerID
	// Dir is where open recordings are written; it should be on tmpfs. What is
	// in it at the start is deleted: the agents hold it still.
	Dir string
	// DirBytes bounds what is kept in Dir; near it credit stops. 512 MiB.
	DirBytes int64
	Store    upload.Store
	NVR      NVR
	// CheckPush and CheckView verify tickets.
	CheckPush func(ticket string) (token.Push, error)
	CheckView func(ticket string) (token.View, error)
	// Uploads is how many objects are put at once: 8.
	Uploads int
	// Grace is how long a stream without a connection counts as running: 30 s.
	Grace time.Duration
	// Forget is how long a silent hub may come back and go on with its
	// recording; then it is stored as far as it came: 10 min.
	Forget  time.Duration
	Log     *slog.Logger
	Metrics *obs.Registry
}

// maxRevoked bounds the revoked sessions that are remembered.
const maxRevoked = 100_000

// Worker is one run of the role. Make it with New, mount PushHandler and
// LiveHandler, and call Run.
type Worker struct {
	cfg       Config
	instance  vms.Instance
	ingest    ingest.Server
	live      live.Server
	uploader  upload.Uploader
	used      atomic.Int64 // bytes in Dir
	notices   notices
	uploadCtx context.Context // of uploads and notices; ends with Run
	stop      context.CancelFunc

	mu      sync.Mutex
	streams map[vms.ChannelID]*stream
	revoked map[vms.SID]bool
}

// New prepares Dir and returns a worker.
func New(cfg Config) (*Worker, error) {
	if !vms.ValidID(cfg.ID) || cfg.Dir == "" || cfg.Store == nil || cfg.NVR == nil || cfg.CheckPush == nil || cfg.CheckView == nil {
		return nil, fmt.Errorf("%w: a worker needs an id, a directory, a store, an NVR and ticket checks", vms.ErrInvalid)
	}
	setDefault(&cfg.DirBytes, 512<<20)
	setDefault(&cfg.Uploads, 8)
	setDefault(&cfg.Grace, 30*time.Second)
	setDefault(&cfg.Forget, 10*time.Minute)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Metrics == nil {
		cfg.Metrics = obs.NewRegistry()
	}
	if cfg.DirBytes < leastDir {
		return nil, fmt.Errorf("%w: %d bytes for unfinished recordings; even one stream needs %d", vms.ErrInvalid, cfg.DirBytes, int64(leastDir))
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("worker directory: %w", err)
	}
	old, err := filepath.Glob(filepath.Join(cfg.Dir, "*.body"))
	if err != nil {
		return nil, fmt.Errorf("worker directory: %w", err)
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return nil, fmt.Errorf("worker directory: %w", err)
		}
	}
	w := &Worker{cfg: cfg, instance: vms.NewID[vms.Instance]("run"), streams: make(map[vms.ChannelID]*stream), revoked: make(map[vms.SID]bool)}
	w.uploader = upload.Uploader{Store: cfg.Store, Slots: cfg.Uploads, Log: cfg.Log}
	w.live = live.Server{Log: cfg.Log, Check: func(t string) (vms.ChannelID, error) {
		v, err := cfg.CheckView(t)
		return v.Channel, err
	}}
	w.ingest = ingest.Server{
		Instance: w.instance, Check: cfg.CheckPush, Revoked: w.isRevoked, Fenced: w.fenced, Streams: (*streams)(w),
		Holds: func(ch vms.ChannelID) bool { return w.known(ch) != nil },
		Room:  w.room, MaxChunk: maxChunk, MaxConns: 2000, Log: cfg.Log,
	}
	w.notices.log = cfg.Log
	w.uploadCtx, w.stop = context.WithCancel(context.Background())
	w.register(cfg.Metrics)
	return w, nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (w *Worker) register(m *obs.Registry) {
	m.GaugeFunc("vms_worker_tmpfs_bytes", "Bytes of recordings that are not durable yet.", func() float64 { return float64(w.used.Load()) })
	m.GaugeFunc("vms_worker_lanes", "Connections of agents.", func() float64 { return float64(w.ingest.Conns()) })
	m.GaugeFunc("vms_worker_viewers", "Viewers of live pictures.", func() float64 { return float64(w.live.Viewers()) })
	m.GaugeFunc("vms_worker_uploads_waiting", "Recordings that are finished and not durable.", func() float64 { return float64(w.uploader.Waiting()) })
	m.CounterFunc("vms_worker_upload_retries_total", "Uploads that failed and were tried again.", func() float64 { return float64(w.uploader.Retries()) })
}

// Instance names this run.
func (w *Worker) Instance() vms.Instance { return w.instance }

// PushHandler takes lanes, LiveHandler viewers.
func (w *Worker) PushHandler() http.Handler { return &w.ingest }
func (w *Worker) LiveHandler() http.Handler { return &w.live }

// Run does the background work until ctx ends. Then lanes are sent to another
// worker, and uploads under way get a short time to finish: what is left over
// the agents send again. Call it once.
func (w *Worker) Run(ctx context.Context) error {
	defer w.stop()
	w.notices.start(w.uploadCtx)
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for ctx.Err() == nil {
		select {
		case now := <-t.C:
			w.sweep(now)
		case <-ctx.Done():
		}
	}
	for _, s := range w.all() {
		s.finishAbandoned(time.Now(), w.cfg.Grace)
	}
	w.ingest.Shutdown(ingest.Refuse(wire.ClassReassign, wire.CodeDraining, "this worker is going away"))
	for _, s := range w.all() {
		s.drained()
	}
	done := make(chan struct{})
	go func() {
		w.uploader.Wait()
		close(done)
	}()
	patience := time.NewTimer(10 * time.Second)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		w.cfg.Log.Warn("uploads left for the agents to send again", "recordings", w.uploader.Waiting())
	}
	w.notices.drain(2 * time.Second)
	w.stop()
	<-done
	w.notices.wait()
	for _, s := range w.all() {
		s.discard()
	}
	return nil
}

// room is how many bytes Dir may still take.
func (w *Worker) room() int64 { return w.cfg.DirBytes - w.used.Load() }

// all lists the streams. No method of a stream is called with w.mu held: one
// that waits for its disk must not stop the others.
func (w *Worker) all() []*stream {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.streams))
}

// known returns the stream of a channel, or nil.
func (w *Worker) known(ch vms.ChannelID) *stream {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.streams[ch]
}

// stream returns the stream of a channel, which it makes when it is new.
func (w *Worker) stream(ch vms.ChannelID) *stream {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.streams[ch]
	if s == nil {
		s = newStream(w, ch)
		w.streams[ch] = s
	}
	return s
}

// forget drops s, which is not used any more.
func (w *Worker) forget(s *stream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.streams[s.ch] == s {
		delete(w.streams, s.ch)
	}
}

// sweep ends streams whose agents are gone, forgets old ones, and makes room
// when there would be none for ever.
func (w *Worker) sweep(now time.Time) {
	for _, s := range w.all() {
		if s.idle(now, w.cfg.Grace, w.cfg.Forget) {
			w.forget(s)
		}
	}
	w.unblock()
}

// unblock gives up open recordings, the youngest first, when they alone fill
// Dir: no stream gets credit then, so none of them would ever be complete. The
// agents hold them, and the oldest is never given up, so that something moves.
func (w *Worker) unblock() {
	for w.room() < maxChunk && w.uploader.Waiting() == 0 {
		var youngest *stream
		var since time.Time
		open := 0
		for _, s := range w.all() {
			n, t := s.openSince()
			if open += n; n > 0 && !t.Before(since) {
				youngest, since = s, t
			}
		}
		if open < 2 {
			return
		}
		w.cfg.Log.Error("ALARM: unfinished recordings fill the worker's directory; one stream has to start its recording over",
			"channel", youngest.ch, "bytes", w.used.Load(), "limit", w.cfg.DirBytes)
		r := ingest.Refuse(wire.ClassReassign, wire.CodeInternal, "this worker has no room")
		r.RetryAfterMS = 2000
		youngest.startOver(r)
	}
}

// fenced reports whether a newer generation than t's was seen on either lane.
func (w *Worker) fenced(t token.Push) bool {
	s := w.known(t.Channel)
	return s != nil && s.newest() > t.Generation
}

// Revoke cuts the streams of sessions off, now and for good. What was taken
// over until now is stored: it was authorized when it came.
func (w *Worker) Revoke(sids []vms.SID) {
	w.mu.Lock()
	if len(w.revoked)+len(sids) > maxRevoked {
		clear(w.revoked) // their tickets have long expired; only resume tickets could come back
	}
	for _, sid := range sids {
		w.revoked[sid] = true
	}
	w.mu.Unlock()
	for _, s := range w.all() {
		s.revoke(sids)
	}
}

func (w *Worker) isRevoked(t token.Push) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revoked[t.SID]
}

// streams is the Worker as ingest sees it.
type streams Worker

// Attach opens a lane of the ticket's channel.
func (ss *streams) Attach(t token.Push, hello *wire.Hello, c *ingest.Conn) (ingest.Lane, error) {
	w := (*Worker)(ss)
	for {
		s := w.stream(t.Channel)
		l, old, err := s.attach(t, hello, c)
		if err == nil && w.isRevoked(t) { // in this moment
			s.revoke([]vms.SID{t.SID})
		}
		if errors.Is(err, errForgotten) { // in this moment
			w.forget(s)
			continue
		}
		if old != nil {
			old.Close(refuseFenced())
		}
		if err != nil {
			return nil, err
		}
		return l, nil
	}
}

// notices repeats what the NVR must be told until it has been, in order per channel.
type notices struct {
	log *slog.Logger

	mu     sync.Mutex
	ctx    context.Context
	queues map[vms.ChannelID][]func(context.Context) error
	wg     sync.WaitGroup
}

func (n *notices) start(ctx context.Context) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ctx = ctx
	for ch := range n.queues {
		n.wg.Go(func() { n.run(ctx, ch) })
	}
}

func (n *notices) send(ch vms.ChannelID, f func(context.Context) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.queues == nil {
		n.queues = make(map[vms.ChannelID][]func(context.Context) error)
	}
	q, running := n.queues[ch]
	n.queues[ch] = append(q, f)
	if !running && n.ctx != nil {
		ctx := n.ctx
		n.wg.Go(func() { n.run(ctx, ch) })
	}
}

func (n *notices) run(ctx context.Context, ch vms.ChannelID) {
	b := retry.Backoff{Min: 200 * time.Millisecond, Max: 10 * time.Second}
	for {
		n.mu.Lock()
		q := n.queues[ch]
		if len(q) == 0 {
			delete(n.queues, ch)
			n.mu.Unlock()
			return
		}
		n.mu.Unlock()
		err := q[0](ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !errors.Is(err, vms.ErrNotFound) && !errors.Is(err, vms.ErrInvalid):
			wait := b.Next(0)
			n.log.Warn("cannot tell the NVR, will try again", "channel", ch, "err", err, "wait", wait)
			if !retry.Sleep(ctx, wait) {
				return
			}
			continue
		case err != nil:
			n.log.Error("the NVR will not hear a notice", "channel", ch, "err", err)
		}
		b = retry.Backoff{Min: b.Min, Max: b.Max}
		n.mu.Lock()
		n.queues[ch] = n.queues[ch][1:]
		n.mu.Unlock()
	}
}

// drain waits until everything has been told, at most so long.
func (n *notices) drain(d time.Duration) {
	done := make(chan struct{})
	go func() {
		n.wg.Wait()
		close(done)
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

func (n *notices) wait() { n.wg.Wait() }
