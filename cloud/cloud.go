// Package cloud is the cloud as a program: it chooses the parts that its roles
// need, embedded ones where no service is named, and wires them. New opens
// everything that can fail, Run works until it is told to stop.
package cloud

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/cloud/auth"
	"github.com/zipato/vms/cloud/bucketevents"
	"github.com/zipato/vms/cloud/bucketevents/inproc"
	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/cloud/hubctl"
	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvrlink"
	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/rclone"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/cloud/session"
	"github.com/zipato/vms/cloud/store"
	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/vms"
)

// Config is what a cloud needs. Of an all-in-one the zero value of every field but
// Data is ready; a worker alone also needs NVRURL, S3 and WorkerDir.
type Config struct {
	// Roles are what this process does: AllRoles.
	Roles Roles
	// Data is the directory that keeps everything. A worker alone keeps nothing;
	// it looks there for the keys of an NVR on the same machine.
	Data string
	// Listen, S3Listen and MQTTListen are addresses; 127.0.0.1:8080, :9000 and :1883.
	Listen, S3Listen, MQTTListen string
	// PublicURL, S3PublicURL and MQTTPublicURL are what hubs and browsers reach,
	// when that is not the address that is listened on.
	PublicURL, S3PublicURL, MQTTPublicURL string
	// S3 is an object store elsewhere. Without a URL the embedded one is started.
	S3 S3Config
	// Uploader is what puts recordings there: UploaderS3, which is the default, or
	// UploaderRclone.
	Uploader string
	// RcloneProgram is the program of UploaderRclone: a path, or a name in PATH,
	// rclone. RcloneRemote is where it copies to, "name:bucket" of its own
	// configuration, which must be the bucket of the object store; by default it
	// is told how to get in there.
	RcloneProgram, RcloneRemote string
	// MQTT is a broker elsewhere. Without a URL the embedded one is started.
	MQTT MQTTConfig
	// MQTTCert and MQTTKey are files of PEM: with them the embedded broker speaks
	// TLS. They are read again when they change.
	MQTTCert, MQTTKey string
	// Insecure allows to listen off the loopback, and to talk to an object store
	// or broker off it, without TLS.
	Insecure bool

	// NVRURL is where the NVR of a worker alone takes workers, such as
	// wss://vms.example/workers/v1.
	NVRURL string
	// ClusterKeyFile holds what NVR and workers prove to each other that they have:
	// 64 or more hexadecimal digits. By default it is cluster-key in Data, which the
	// NVR makes.
	ClusterKeyFile string
	// WorkerID names the worker; by default that of an all-in-one is worker_local,
	// and one alone has an id that WorkerDir remembers. Zone is where it is, empty:
	// nowhere in particular.
	WorkerID vms.WorkerID
	Zone     string
	// Capacity is how much the worker takes.
	Capacity vms.WorkerCapacity
	// WorkerDir is where open recordings are kept, best on tmpfs; below Data by default.
	WorkerDir   string
	WorkerBytes int64
	// Mirror is where the live streams are published to by RTSP as well, such as
	// rtsp://127.0.0.1:8554/{channel}; empty: nowhere. It may have a user and password.
	Mirror string
	// DrainFor is how long a worker that is told to end waits at most until its
	// streams are at other workers: 100 s.
	DrainFor time.Duration

	// RetentionAge and RetentionBytes are how long and how much is kept; zero
	// is without end.
	RetentionAge   time.Duration
	RetentionBytes int64
	// Recording is the length of a recording: 30 s.
	Recording time.Duration
	// ReconcileEvery is how often the bucket is listed for what no notice told
	// of: every hour, with a store elsewhere, whose events do not come here,
	// every minute.
	ReconcileEvery time.Duration
	// UnreachableAfter is for how long what a silent hub holds is pending: 24 h.
	UnreachableAfter time.Duration

	// WrapObjects, in tests, stands between everybody and the object store.
	WrapObjects func(objstore.Store) objstore.Store

	Version string
	Log     *slog.Logger
}

// S3Config says where an object store elsewhere is and how to get in. Its bucket
// must be there, and let the origins of our pages read.
type S3Config struct {
	URL    string // http:// or https://
	Region string // us-east-1
	Bucket string // vms-recordings
	// AccessKey and SecretKey have no default.
	AccessKey, SecretKey string
}

// Values of Config.Uploader: our own client, and the rclone program.
const (
	UploaderS3     = "s3"
	UploaderRclone = "rclone"
)

// Cloud is one process in some roles, or all. Make it with New, and call Run once.
type Cloud struct {
	cfg      Config
	log      *slog.Logger
	listener net.Listener
	handler  http.Handler
	metrics  *obs.Registry
	client   *s3.Store // of the object store, wherever it is
	objects  objstore.Store

	clusterKey []byte
	tickets    *tickets

	// Of the API and the NVR, else nil.
	data      *embed.Data
	store     *store.Store
	s3        *embed.S3 // nil with a store elsewhere
	events    *inproc.Queue
	list      chan struct{} // the bucket should be listed
	nvr       *nvr.NVR
	session   *session.Handler
	workers   *nvrlink.Handler
	fleet     *fleet
	auth      *auth.Auth
	mqtt      *embed.MQTT // nil with a broker elsewhere
	hubctl    *hubctl.Client
	mqttKey   []byte
	brokerURL string // what hubs are told

	// Of the worker, else nil.
	worker   *worker.Worker
	info     vms.WorkerInfo
	link     *nvrlink.Client // nil in an all-in-one
	uploads  objstore.Store  // what recordings are put with: objects, unless it is rclone
	rclone   *rclone.Store   // nil unless recordings are put with it
	draining atomic.Bool
	told     signal // the NVR was told that it is
	ordered  signal // the NVR wants it
}

// signal is something that happens once.
type signal struct {
	once sync.Once
	ch   chan struct{}
}

func newSignal() signal { return signal{ch: make(chan struct{})} }

func (s *signal) set() { s.once.Do(func() { close(s.ch) }) }

// New opens the data directory and every part. What it opened it closes again
// when it returns an error.
func New(ctx context.Context, cfg Config) (*Cloud, error) {
	cfg.Roles = cmp.Or(cfg.Roles, AllRoles)
	cfg.Listen = cmp.Or(cfg.Listen, "127.0.0.1:8080")
	cfg.S3Listen = cmp.Or(cfg.S3Listen, "127.0.0.1:9000")
	cfg.MQTTListen = cmp.Or(cfg.MQTTListen, mqttListen)
	cfg.Version = cmp.Or(cfg.Version, "dev")
	cfg.WorkerBytes = cmp.Or(cfg.WorkerBytes, 512<<20)
	cfg.DrainFor = cmp.Or(cfg.DrainFor, drainFor)
	cfg.Recording = cmp.Or(cfg.Recording, 30*time.Second)
	if cfg.ReconcileEvery == 0 && cfg.S3.URL != "" {
		cfg.ReconcileEvery = time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	for _, path := range []*string{&cfg.ClusterKeyFile, &cfg.WorkerDir, &cfg.MQTTCert, &cfg.MQTTKey} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path) // the embedded store will change the working directory
		if err != nil {
			return nil, err
		}
		*path = abs
	}
	if strings.ContainsRune(cfg.RcloneProgram, filepath.Separator) { // else it is looked for in PATH
		abs, err := filepath.Abs(cfg.RcloneProgram)
		if err != nil {
			return nil, err
		}
		cfg.RcloneProgram = abs
	}
	c := &Cloud{
		cfg: cfg, log: cfg.Log, metrics: obs.NewRegistry(), list: make(chan struct{}, 1),
		tickets: newTickets(), told: newSignal(), ordered: newSignal(),
	}
	if err := c.open(ctx); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// open opens the parts, each with what the ones before it offer.
func (c *Cloud) open(ctx context.Context) (err error) {
	if c.cfg.Roles.Has(RoleNVR) {
		if c.data, err = embed.OpenData(c.cfg.Data); err != nil {
			return err
		}
	}
	if err := c.openClusterKey(); err != nil {
		return err
	}
	if c.listener, err = net.Listen("tcp", c.cfg.Listen); err != nil {
		return fmt.Errorf("%w (another program has the address; set VMS_LISTEN to another one)", err)
	}
	if c.cfg.Roles.Has(RoleNVR) {
		if c.store, err = store.OpenSQLite(ctx, c.data.Path("vms.db")); err != nil {
			return err
		}
	}
	if err := c.openObjects(ctx); err != nil {
		return err
	}
	if c.cfg.Roles.Has(RoleNVR) {
		if err := c.openRules(); err != nil {
			return err
		}
		if err := c.openBroker(ctx); err != nil {
			return err
		}
		if err := c.openAuth(); err != nil {
			return err
		}
	}
	if c.cfg.Roles.Has(RoleWorker) {
		if err := c.openWorker(ctx); err != nil {
			return err
		}
	}
	c.handler, err = c.routes()
	return err
}

// URL is where browsers and programs reach the API.
func (c *Cloud) URL() string {
	if c.cfg.PublicURL != "" {
		return c.cfg.PublicURL
	}
	return "http://" + c.listener.Addr().String()
}

// wsURL is the public URL of a WebSocket path.
func (c *Cloud) wsURL(path string) (string, error) {
	u, err := url.Parse(c.URL())
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("%w: VMS_PUBLIC_URL %q, want http:// or https://", vms.ErrInvalid, c.URL())
	}
	switch u.Scheme {
	case "http":
		u.Scheme = "ws"
	case "https":
		u.Scheme = "wss"
	default:
		return "", fmt.Errorf("%w: VMS_PUBLIC_URL %q, want http:// or https://", vms.ErrInvalid, c.URL())
	}
	return u.JoinPath(path).String(), nil
}

// Run serves until ctx ends, or, of a worker alone, until it has no streams any
// more because it was to get rid of them. Then, in order: a worker whose streams
// others can take drains, lanes and sessions are sent away, uploads under way
// finish, the NVR hears the rest, hubs are told no more, requests end, broker and
// store are closed.
func (c *Cloud) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, c.close()) }()
	rest, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(rest)
	srv := &http.Server{
		Handler: c.handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return gctx },
	}
	g.Go(func() error {
		if err := srv.Serve(c.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("HTTP server: %w", err)
		}
		return nil
	})
	leave := func(context.Context) error { return nil }
	if c.nvr != nil {
		leave = c.runRules(g, gctx)
	}
	g.Go(func() error {
		err := c.work(ctx, gctx)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		err = errors.Join(err, leave(end))
		stop() // ends event streams and viewers, which Shutdown would wait for
		if srv.Shutdown(end) != nil {
			err = errors.Join(err, srv.Close())
		}
		return err
	})
	return g.Wait()
}

// runRules starts what API and NVR do in the background, until ctx ends. What it
// returns says goodbye to agents, workers and hubs.
func (c *Cloud) runRules(g *errgroup.Group, ctx context.Context) (leave func(context.Context) error) {
	if c.s3 != nil {
		g.Go(func() error { return c.s3.Run(ctx) })
	}
	if c.mqtt != nil {
		g.Go(func() error { return c.mqtt.Run(ctx) })
	}
	hubs, leaveHubs := context.WithCancel(ctx)
	left := make(chan struct{})
	g.Go(func() error {
		defer close(left)
		defer leaveHubs()
		return c.hubctl.Run(hubs)
	})
	g.Go(func() error { return c.nvr.Run(ctx) })
	g.Go(func() error { return c.reconcileLoop(ctx) })
	g.Go(func() error { return c.abortStale(ctx) })
	g.Go(func() error {
		return c.events.Run(ctx, func(ctx context.Context, e bucketevents.Event) error { return c.nvr.ObjectCreated(ctx, e.Key) })
	})
	return func(end context.Context) error {
		err := errors.Join(c.session.Shutdown(end), c.workers.Shutdown(end))
		leaveHubs()
		<-left // with a word of farewell to the broker, which ends now
		return err
	}
}

// close closes what New opened, in reverse.
func (c *Cloud) close() error {
	var errs []error
	add := func(err error) {
		if !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) { // Run closes some of it too
			errs = append(errs, err)
		}
	}
	if c.rclone != nil {
		add(c.rclone.Close())
	}
	if c.client != nil {
		c.client.Close()
	}
	if c.mqtt != nil {
		add(c.mqtt.Close())
	}
	if c.s3 != nil {
		add(c.s3.Close())
	}
	if c.store != nil {
		add(c.store.Close())
	}
	if c.listener != nil {
		add(c.listener.Close())
	}
	if c.data != nil {
		add(c.data.Close())
	}
	return errors.Join(errs...)
}
