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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zipato/vms/cloud/worker/ingest"
	"github.com/zipato/vms/cloud/worker/live"
	"github.com/zipato/vms/cloud/worker/mirror"
	"github.com/zipato/vms/cloud/worker/upload"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// maxChunk is the largest binary message: the least that the protocol allows, and a header.
const maxChunk = wire.MinMaxChunk + wire.ChunkHeaderLen

// leastDir holds the largest recording that an agent makes, 64 MiB, with room
// for the chunks of the largest size that credit is granted for.
const leastDir = 64<<20 + 2*maxChunk

// NVR is whom a worker tells. Every notice is repeated until it returns nil,
// except where it says so.
type NVR interface {
	StreamStarted(ctx context.Context, e vms.StreamEvent) error
	StreamEnded(ctx context.Context, e vms.StreamEvent) error
	// RecordingUploaded takes parts too (vms.Recording.Provisional): when it
	// returns nil for one, Parts names it until a whole has taken its place.
	RecordingUploaded(ctx context.Context, r vms.Recording) error
	// Parts lists the parts of some epochs of a channel that no whole recording
	// has superseded, by epoch and first chunk.
	Parts(ctx context.Context, ch vms.ChannelID, epochs []vms.Epoch) ([]vms.Recording, error)
	// Wholes lists the chunk ranges of the whole recordings of a channel that
	// have something of r, by first chunk.
	Wholes(ctx context.Context, ch vms.ChannelID, r vms.ChunkRange) ([]vms.ChunkRange, error)
	// AbandonedParts lists, at most limit, parts that no hub will continue.
	AbandonedParts(ctx context.Context, limit int) ([]vms.Recording, error)
	// Viewers says how many look on at a channel here. It is said when it changes
	// and again every Config.Viewers while it is not 0; it is not repeated when it fails.
	Viewers(ctx context.Context, ch vms.ChannelID, viewers int) error
}

// Config is what a worker needs. ID, Dir, Store, NVR and the two checks have no default.
type Config struct {
	ID vms.WorkerID
	// Dir is where unfinished recordings are written; it should be on tmpfs, and
	// is this worker's alone. What another process of it left there is finished.
	Dir string
	// DirBytes bounds what is kept in Dir; near it, or when the file system is
	// nearly full, credit stops. 512 MiB.
	DirBytes int64
	Store    upload.Store
	NVR      NVR
	// CheckPush and CheckView verify tickets.
	CheckPush func(ticket string) (token.Push, error)
	CheckView func(ticket string) (token.View, error)
	// Uploads is how many objects are put at once: 8.
	Uploads int
	// Grace is how long a stream without a connection counts as running: 30 s.
	// Then what came of its recordings is stored as parts.
	Grace time.Duration
	// Forget is how long a silent hub finds its recordings open here: 10 min.
	// After that, as at another worker, they are continued from their parts.
	Forget time.Duration
	// Janitor is about how often abandoned parts are looked for: 10 min.
	Janitor time.Duration
	// Viewers is how often the NVR hears that somebody looks on still: 10 s.
	Viewers time.Duration
	// Capacity is how much the worker takes; zero: no limit of its own. At that, or
	// with Dir nearly full, new channels are refused; those that are here never.
	Capacity vms.WorkerCapacity
	// Mirror is where the live streams are published to by RTSP, as
	// mirror.Config.URL; empty: nowhere.
	Mirror  string
	Log     *slog.Logger
	Metrics *obs.Registry
}

// maxRestoring bounds the recordings that are fetched from parts at once: they
// take tmpfs twice for that time.
const maxRestoring = 4

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
	mirror    *mirror.Mirror
	dir       *directory
	notices   notices
	lags      lags
	load      load
	draining  atomic.Bool
	relinked  atomic.Bool     // the NVR is to be told of all viewers
	uploadCtx context.Context // of uploads and notices; ends with Run
	stop      context.CancelFunc
	work      context.Context // of what is not waited for when the worker goes away
	rest      context.CancelFunc
	jobs      sync.WaitGroup // of these
	restoring chan struct{}  // bounds the fetching of parts
	looking   chan struct{}  // bounds looking ahead

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
	setDefault(&cfg.Janitor, 10*time.Minute)
	setDefault(&cfg.Viewers, 10*time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Metrics == nil {
		cfg.Metrics = obs.NewRegistry()
	}
	if cfg.DirBytes < leastDir {
		return nil, fmt.Errorf("%w: %d bytes for unfinished recordings; even one stream needs %d", vms.ErrInvalid, cfg.DirBytes, int64(leastDir))
	}
	var mirrored *mirror.Mirror
	if cfg.Mirror != "" {
		var err error
		if mirrored, err = mirror.New(mirror.Config{URL: cfg.Mirror, Log: cfg.Log, Metrics: cfg.Metrics}); err != nil {
			return nil, err
		}
	}
	dir, err := openDirectory(cfg.Dir, cfg.DirBytes, cfg.Log)
	if err != nil {
		return nil, err
	}
	w := &Worker{cfg: cfg, dir: dir, mirror: mirrored, instance: vms.NewID[vms.Instance]("run"), streams: make(map[vms.ChannelID]*stream), revoked: make(map[vms.SID]bool)}
	w.uploader = upload.Uploader{Store: cfg.Store, Slots: cfg.Uploads, Log: cfg.Log}
	w.restoring, w.looking = make(chan struct{}, maxRestoring), make(chan struct{}, maxAhead)
	w.live = live.Server{Log: cfg.Log, Recent: w.recent, Check: func(t string) (vms.ChannelID, error) {
		v, err := cfg.CheckView(t)
		return v.Channel, err
	}}
	w.ingest = ingest.Server{
		Instance: w.instance, Check: cfg.CheckPush, Revoked: w.isRevoked, Fenced: w.fenced, Streams: (*streams)(w),
		Holds:  func(ch vms.ChannelID) bool { return w.known(ch) != nil },
		Admits: w.admits, Room: w.dir.room, MaxChunk: maxChunk, MaxConns: 2000, Log: cfg.Log,
	}
	if err := w.recover(); err != nil {
		return nil, errors.Join(err, dir.close())
	}
	dir.measure(time.Now())
	w.notices.log = cfg.Log
	w.uploadCtx, w.stop = context.WithCancel(context.Background())
	w.work, w.rest = context.WithCancel(w.uploadCtx)
	w.register(cfg.Metrics)
	return w, nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Instance names this run.
func (w *Worker) Instance() vms.Instance { return w.instance }

// PushHandler takes lanes, LiveHandler viewers.
func (w *Worker) PushHandler() http.Handler { return &w.ingest }
func (w *Worker) LiveHandler() http.Handler { return &w.live }

// Run does the background work until ctx ends. Then lanes are sent to another
// worker, and uploads under way get a short time to finish. What is left over
// stays in Dir for the next process; where there is none, the agents have it.
// Call it once.
func (w *Worker) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, w.dir.close()) }()
	defer w.stop()
	w.notices.start(w.uploadCtx)
	w.jobs.Go(func() { w.janitor(w.work) })
	w.jobs.Go(func() { w.tellViewers(w.work) })
	if w.mirror != nil {
		w.jobs.Go(func() { _ = w.mirror.Run(w.work) }) // nil
	}
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
		s.abandoned()
	}
	w.rest()
	w.ingest.Shutdown(ingest.Refuse(wire.ClassReassign, wire.CodeDraining, "this worker is going away"))
	for _, s := range w.all() {
		s.drained()
	}
	w.jobs.Wait()
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
		w.cfg.Log.Warn("uploads are left for the next start", "recordings", w.uploader.Waiting())
	}
	w.notices.drain(2 * time.Second)
	w.stop()
	<-done
	w.notices.wait()
	for _, s := range w.all() {
		s.close()
	}
	return nil
}

// tmpfsFull reports whether there is an alarm because Dir is full.
func (w *Worker) tmpfsFull() bool { return w.dir.full.Load() }

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
		w.live.Forget(s.ch)
		w.mirror.Forget(s.ch)
	}
}

// sweep ends streams whose agents are gone, forgets old ones, and makes room
// when there would be none for ever.
func (w *Worker) sweep(now time.Time) {
	w.dir.measure(now)
	for _, s := range w.all() {
		if s.idle(now, w.cfg.Grace, w.cfg.Forget) {
			w.forget(s)
		}
	}
	w.weigh(now, w.showLags(now))
	w.unblock()
}

// unblock takes open recordings that are in the store as parts from Dir when
// there is little room. When there is none it gives others up, the youngest first,
// if they alone fill it: no stream gets credit then, so none of them would ever be
// complete. The agents hold them, and the oldest is never given up, so that
// something moves.
func (w *Worker) unblock() {
	if w.dir.room() < maxChunk || w.load.tight.Load() {
		for _, s := range w.all() {
			s.makeRoom(w.cfg.Grace)
		}
	}
	for w.dir.room() < maxChunk && w.uploader.Waiting() == 0 {
		var youngest *stream
		var since time.Time
		open := 0
		for _, s := range w.all() {
			n, t, waiting := s.openSince()
			if waiting {
				return // some of it will be stored without anything that comes
			}
			if open += n; n > 0 && !t.Before(since) {
				youngest, since = s, t
			}
		}
		if open < 2 {
			return
		}
		w.cfg.Log.Error("ALARM: unfinished recordings fill the worker's directory; one stream has to start its recording over",
			"channel", youngest.ch, "bytes", w.dir.used.Load(), "limit", w.dir.most.Load())
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
		if err := s.survey(t, hello.Epochs); err != nil {
			return nil, err
		}
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
