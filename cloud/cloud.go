// Package cloud is the cloud as a program: it chooses the parts, embedded ones
// where no service is named, and wires them. New opens everything that can fail,
// Run works until it is told to stop.
package cloud

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/cloud/api"
	"github.com/zipato/vms/cloud/auth"
	"github.com/zipato/vms/cloud/bucketevents"
	"github.com/zipato/vms/cloud/bucketevents/inproc"
	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/cloud/hubctl"
	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/cloud/session"
	"github.com/zipato/vms/cloud/store"
	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// demoAccount owns everything until accounts can be made.
	demoAccount = vms.AccountID("acct_demo")
	// bucket is the embedded store's, and that of another one unless it is named.
	bucket = "vms-recordings"
	// localWorker is the worker of an all-in-one.
	localWorker = vms.WorkerID("worker_local")
	// chunkMS is the media time of a chunk, milliseconds.
	chunkMS = 200
)

// Config is what a cloud needs; the zero value of every field but Data is ready.
type Config struct {
	// Data is the directory that keeps everything.
	Data string
	// Listen, S3Listen and MQTTListen are addresses; 127.0.0.1:8080, :9000 and :1883.
	Listen, S3Listen, MQTTListen string
	// PublicURL, S3PublicURL and MQTTPublicURL are what hubs and browsers reach,
	// when that is not the address that is listened on.
	PublicURL, S3PublicURL, MQTTPublicURL string
	// S3 is an object store elsewhere. Without a URL the embedded one is started.
	S3 S3Config
	// MQTT is a broker elsewhere. Without a URL the embedded one is started.
	MQTT MQTTConfig
	// MQTTCert and MQTTKey are files of PEM: with them the embedded broker speaks
	// TLS. They are read again when they change.
	MQTTCert, MQTTKey string
	// Insecure allows to listen off the loopback, and to talk to an object store
	// or broker off it, without TLS.
	Insecure bool
	// WorkerDir is where open recordings are kept, best on tmpfs; below Data by default.
	WorkerDir   string
	WorkerBytes int64

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

// Cloud is one process in all roles. Make it with New, and call Run once.
type Cloud struct {
	cfg       Config
	log       *slog.Logger
	data      *embed.Data
	store     *store.Store
	s3        *embed.S3 // nil with a store elsewhere
	objects   objstore.Store
	closeS3   func()
	mqtt      *embed.MQTT // nil with a broker elsewhere
	hubctl    *hubctl.Client
	mqttKey   []byte
	brokerURL string // what hubs are told
	events    *inproc.Queue
	nvr       *nvr.NVR
	worker    *worker.Worker
	session   *session.Handler
	auth      *auth.Auth
	listener  net.Listener
	handler   http.Handler
	metrics   *obs.Registry
	list      chan struct{} // the bucket should be listed
}

// New opens the data directory and every part. What it opened it closes again
// when it returns an error.
func New(ctx context.Context, cfg Config) (*Cloud, error) {
	cfg.Listen = cmp.Or(cfg.Listen, "127.0.0.1:8080")
	cfg.S3Listen = cmp.Or(cfg.S3Listen, "127.0.0.1:9000")
	cfg.MQTTListen = cmp.Or(cfg.MQTTListen, mqttListen)
	cfg.Version = cmp.Or(cfg.Version, "dev")
	cfg.WorkerBytes = cmp.Or(cfg.WorkerBytes, 512<<20)
	cfg.Recording = cmp.Or(cfg.Recording, 30*time.Second)
	if cfg.ReconcileEvery == 0 && cfg.S3.URL != "" {
		cfg.ReconcileEvery = time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := cfg.checkExposure(); err != nil {
		return nil, err
	}
	for _, path := range []*string{&cfg.WorkerDir, &cfg.MQTTCert, &cfg.MQTTKey} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path) // the embedded store will change the working directory
		if err != nil {
			return nil, err
		}
		*path = abs
	}
	c := &Cloud{cfg: cfg, log: cfg.Log, closeS3: func() {}, metrics: obs.NewRegistry(), list: make(chan struct{}, 1)}
	if err := c.open(ctx); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// open opens the parts, each with what the ones before it offer.
func (c *Cloud) open(ctx context.Context) (err error) {
	if c.data, err = embed.OpenData(c.cfg.Data); err != nil {
		return err
	}
	if c.listener, err = net.Listen("tcp", c.cfg.Listen); err != nil {
		return fmt.Errorf("%w (another program has the address; set VMS_LISTEN to another one)", err)
	}
	if c.store, err = store.OpenSQLite(ctx, c.data.Path("vms.db")); err != nil {
		return err
	}
	if err := c.openObjects(ctx); err != nil {
		return err
	}
	signer, err := c.openRules()
	if err != nil {
		return err
	}
	if err := c.openBroker(ctx); err != nil {
		return err
	}
	if err := c.openAuth(); err != nil {
		return err
	}
	if err := c.openWorker(signer.Verifier()); err != nil {
		return err
	}
	c.handler = c.routes(api.New(api.Config{NVR: c.nvr, Auth: c.auth, Log: c.log, Version: c.cfg.Version, PublicURL: c.cfg.PublicURL}))
	return nil
}

// checkExposure refuses to carry passwords and footage in the clear over a network.
func (c *Config) checkExposure() error {
	for _, l := range []struct{ addr, public, variable string }{
		{c.Listen, c.PublicURL, "VMS_PUBLIC_URL"}, {c.S3Listen, c.S3PublicURL, "VMS_S3_PUBLIC_URL"},
	} {
		if u, err := url.Parse(l.public); l.public != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("%w: %s %q, want http:// or https://", vms.ErrInvalid, l.variable, l.public)
		}
		if l.variable == "VMS_S3_PUBLIC_URL" && c.S3.URL != "" {
			continue // nothing listens there
		}
		host, _, err := net.SplitHostPort(l.addr)
		if err != nil {
			return fmt.Errorf("%w: address %q: %v", vms.ErrInvalid, l.addr, err)
		}
		if loopback(host) || c.Insecure {
			continue
		}
		if u, err := url.Parse(l.public); err != nil || u.Scheme != "https" {
			return fmt.Errorf("%w: %s is not on the loopback: put a TLS proxy in front of it and name its https URL in %s, or pass -insecure", vms.ErrInvalid, l.addr, l.variable)
		}
	}
	if err := c.checkBroker(); err != nil {
		return err
	}
	if c.S3.URL == "" {
		return nil
	}
	u, err := url.Parse(c.S3.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%w: VMS_S3_URL: want http:// or https:// and a host", vms.ErrInvalid)
	case u.Scheme == "http" && !loopback(u.Hostname()) && !c.Insecure:
		return fmt.Errorf("%w: VMS_S3_URL: %s is not on the loopback: use https, or pass -insecure", vms.ErrInvalid, u.Host)
	case c.S3.AccessKey == "" || c.S3.SecretKey == "":
		return fmt.Errorf("%w: the object store at %s needs VMS_S3_ACCESS_KEY and VMS_S3_SECRET_KEY", vms.ErrInvalid, u.Host)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
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

// openObjects makes the client of the object store, which need not answer yet.
func (c *Cloud) openObjects(ctx context.Context) error {
	c.events = inproc.New(inproc.Options{Log: c.log, OnOverflow: c.reconcileSoon})
	cfg := s3.Config{
		Endpoint: c.cfg.S3.URL, Region: c.cfg.S3.Region, Bucket: cmp.Or(c.cfg.S3.Bucket, bucket),
		AccessKey: c.cfg.S3.AccessKey, SecretKey: c.cfg.S3.SecretKey,
	}
	if cfg.Endpoint == "" {
		var err error
		if cfg, err = c.startS3(ctx); err != nil {
			return err
		}
	}
	cfg.PublicURL = c.cfg.S3PublicURL
	client, err := s3.New(cfg)
	if err != nil {
		return err
	}
	c.closeS3 = client.Close
	c.objects = client
	if c.cfg.WrapObjects != nil {
		c.objects = c.cfg.WrapObjects(client)
	}
	return nil
}

// startS3 starts the embedded store, and says how to get in.
func (c *Cloud) startS3(ctx context.Context) (s3.Config, error) {
	key, err := c.data.SecretText("s3-access-key", 10)
	if err != nil {
		return s3.Config{}, err
	}
	secret, err := c.data.SecretText("s3-secret-key", 20)
	if err != nil {
		return s3.Config{}, err
	}
	c.s3, err = embed.StartS3(ctx, embed.S3Config{
		Dir: c.data.Path("s3"), Addr: c.cfg.S3Listen, AccessKey: key, SecretKey: secret, Bucket: bucket,
		AllowOrigins: c.origins(), Log: c.log,
		OnCreated: func(key string) { c.events.Publish(bucketevents.Event{Bucket: bucket, Key: key}) },
	})
	if err != nil {
		return s3.Config{}, err
	}
	return s3.Config{Endpoint: c.s3.URL(), Bucket: bucket, AccessKey: key, SecretKey: secret}, nil
}

// reconcileSoon lists the bucket because events were dropped.
func (c *Cloud) reconcileSoon() {
	c.log.Warn("object events were dropped; the bucket will be listed")
	select {
	case c.list <- struct{}{}:
	default: // it will be already
	}
}

// reconcileLoop lists the bucket whenever events were dropped, beside the NVR's own turns.
func (c *Cloud) reconcileLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.list:
			if err := c.nvr.Reconcile(ctx); err != nil && ctx.Err() == nil {
				c.log.Error("cannot list the bucket; its next turn will", "err", err)
			}
		}
	}
}

// origins are the pages that may read recordings.
func (c *Cloud) origins() []string {
	_, port, err := net.SplitHostPort(c.listener.Addr().String())
	out := []string{c.URL()}
	if err == nil {
		out = append(out, "http://localhost:"+port, "http://127.0.0.1:"+port)
	}
	return out
}

// openRules makes the NVR, and returns what signs its tokens and tickets.
func (c *Cloud) openRules() (*token.Signer, error) {
	seed, err := c.data.Secret("signing-key", ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	secret, err := c.data.Secret("secret-key", 32)
	if err != nil {
		return nil, err
	}
	signer, err := token.NewSigner(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		return nil, err
	}
	nvrURL, err := c.wsURL("/session/v1")
	if err != nil {
		return nil, err
	}
	c.nvr, err = nvr.New(nvr.Config{
		Store: c.store, Objects: objects{c.objects}, Tokens: signer, SecretKey: secret, NVRURL: nvrURL, Log: c.log,
		ReconcileEvery: c.cfg.ReconcileEvery, UnreachableAfter: c.cfg.UnreachableAfter,
		Revoked:    func(sids []vms.SID) { c.worker.Revoke(sids) },
		HubRevoked: c.disconnect, Broker: c.broker,
		Retention: nvr.Retention{Age: c.cfg.RetentionAge, Bytes: c.cfg.RetentionBytes},
		Segment:   wire.SegmentOptions{RecordingMS: c.cfg.Recording.Milliseconds(), ChunkMS: chunkMS},
	})
	if err != nil {
		return nil, err
	}
	c.session = session.New(session.Config{NVR: c.nvr, Log: c.log})
	return signer, nil
}

// openAuth makes the account's token and sessions.
func (c *Cloud) openAuth() error {
	tok, err := auth.LoadToken(c.data.Path("admin-token"))
	if err != nil {
		return err
	}
	c.auth, err = auth.New(auth.Config{
		Account: demoAccount, Token: tok, SessionsFile: c.data.Path("web-sessions.json"),
		Listen: c.listener.Addr().String(), PublicURL: c.cfg.PublicURL, Log: c.log,
	})
	return err
}

// openWorker makes the worker of this process, and the NVR acquainted with it.
func (c *Cloud) openWorker(v *token.Verifier) error {
	var err error
	c.worker, err = worker.New(worker.Config{
		ID: localWorker, Dir: cmp.Or(c.cfg.WorkerDir, c.data.Path("worker")), DirBytes: c.cfg.WorkerBytes, Store: uploads{c.objects}, NVR: c.nvr,
		CheckPush: func(t string) (token.Push, error) { return v.VerifyPush(t, localWorker, time.Now()) },
		CheckView: func(t string) (token.View, error) { return v.VerifyView(t, localWorker, time.Now()) },
		Log:       c.log, Metrics: c.metrics,
	})
	if err != nil {
		return err
	}
	push, err := c.wsURL("/push/v1")
	if err != nil {
		return err
	}
	live, err := c.wsURL("/live/v1/mse")
	if err != nil {
		return err
	}
	c.nvr.RegisterWorker(vms.WorkerInfo{ID: localWorker, Instance: c.worker.Instance(), PushURL: push, LiveURL: live})
	return nil
}

// Run serves until ctx ends. Then, in order: lanes and sessions are sent away,
// uploads under way finish, hubs are told no more, requests end, broker and
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
	if c.s3 != nil {
		g.Go(func() error { return c.s3.Run(gctx) })
	}
	if c.mqtt != nil {
		g.Go(func() error { return c.mqtt.Run(gctx) })
	}
	hubs, leaveHubs := context.WithCancel(gctx)
	defer leaveHubs()
	left := make(chan struct{})
	g.Go(func() error {
		defer close(left)
		return c.hubctl.Run(hubs)
	})
	g.Go(func() error { return c.nvr.Run(gctx) })
	g.Go(func() error { return c.reconcileLoop(gctx) })
	g.Go(func() error {
		return c.events.Run(gctx, func(ctx context.Context, e bucketevents.Event) error { return c.nvr.ObjectCreated(ctx, e.Key) })
	})
	g.Go(func() error {
		work, done := context.WithCancel(ctx)
		defer done()
		context.AfterFunc(gctx, done)
		err := c.worker.Run(work) // returns when told to stop, and its uploads are through
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		err = errors.Join(err, c.session.Shutdown(end))
		leaveHubs()
		<-left // with a word of farewell to the broker, which ends now
		stop() // ends event streams and viewers, which Shutdown would wait for
		if srv.Shutdown(end) != nil {
			err = errors.Join(err, srv.Close())
		}
		return err
	})
	return g.Wait()
}

// close closes what New opened, in reverse.
func (c *Cloud) close() error {
	var errs []error
	add := func(err error) {
		if !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) { // Run closes some of it too
			errs = append(errs, err)
		}
	}
	c.closeS3()
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
