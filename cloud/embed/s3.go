package embed

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/debuglogger"
	"github.com/versity/versitygw/s3api"
	"github.com/versity/versitygw/s3api/middlewares"
	"github.com/versity/versitygw/s3api/utils"
	"golang.org/x/net/netutil"
)

// S3ListenVariable is the environment variable that names the store's address.
const S3ListenVariable = "VMS_S3_LISTEN"

// s3Region is what clients sign for.
const s3Region = "us-east-1"

// shutdownGrace is how long requests under way may still take when the store
// is closed.
const shutdownGrace = 5 * time.Second

// S3Config says where the embedded object store keeps its objects and who may
// use it.
type S3Config struct {
	// Dir is the store's own directory; it is made if it is not there.
	Dir string
	// Addr is host:port, port 0 for any. The host must be there: what listens
	// on all interfaces should say so. Or give a Listener; then the store owns it.
	Addr     string
	Listener net.Listener
	// AccessKey and SecretKey are the only credentials.
	AccessKey, SecretKey string
	// Bucket is made if it is not there.
	Bucket string
	// AllowOrigins are the origins, such as "http://127.0.0.1:8080", whose pages
	// may read objects by presigned URL.
	AllowOrigins []string
	// OnCreated is called for every object in Bucket that was stored, after it
	// is durable and before the writer hears of it. It must not block.
	OnCreated func(key string)
	Log       *slog.Logger
}

// S3 is a running object store. An object that it acknowledged is on disk.
//
// There can be one per process, and while it lives the working directory of
// the process is a folder of the store: the library that does the work reads
// and writes relative to it. Make paths absolute before.
type S3 struct {
	log      *slog.Logger
	listener net.Listener
	http     *http.Server
	silent   silentConns
	back     *http.Transport // to versitygw
	gateway  *s3api.S3ApiServer
	durable  *durable
	oldDir   string // working directory before
	socket   func() // removes what the internal socket left
	only     bool   // running is ours

	failed chan error // why one of the servers ended; never closed
	served sync.WaitGroup
	once   sync.Once
	err    error // of Close
}

var errGatewayEnded = errors.New("embedded object store ended")

// running is set while a store lives in this process.
var running atomic.Bool

// StartS3 starts the store and returns when it answers. ctx bounds the start
// only; Close ends the store.
func StartS3(ctx context.Context, cfg S3Config) (_ *S3, err error) {
	s := &S3{log: cmp.Or(cfg.Log, slog.Default()), listener: cfg.Listener, failed: make(chan error, 2), socket: func() {}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("embedded object store: %w", err)
	}
	if !running.CompareAndSwap(false, true) {
		return nil, errors.New("embedded object store: one is running in this process already")
	}
	s.only = true
	if s.listener == nil {
		if s.listener, err = listen(cfg.Addr); err != nil {
			return nil, err
		}
	}
	if err := s.openBackend(ctx, cfg); err != nil {
		return nil, fmt.Errorf("embedded object store: %w", err)
	}
	if err := s.startGateway(ctx, cfg); err != nil {
		return nil, fmt.Errorf("embedded object store: %w", err)
	}
	s.startFront(cfg)
	return s, nil
}

func (cfg *S3Config) check() error {
	switch {
	case cfg.Dir == "":
		return errors.New("no directory")
	case cfg.AccessKey == "" || cfg.SecretKey == "":
		return errors.New("no access key or no secret key")
	case cfg.Listener != nil:
	case cfg.Addr == "":
		return fmt.Errorf("no address: set %s", S3ListenVariable)
	default:
		if host, _, err := net.SplitHostPort(cfg.Addr); err != nil || host == "" {
			return fmt.Errorf("%s is %q, want host:port such as 127.0.0.1:9000", S3ListenVariable, cfg.Addr)
		}
	}
	for _, o := range cfg.AllowOrigins {
		if !validOrigin(o) {
			return fmt.Errorf("allowed origin %q, want one such as http://127.0.0.1:8080", o)
		}
	}
	if !utils.IsValidBucketName(cfg.Bucket) {
		return fmt.Errorf("bucket name %q", cfg.Bucket)
	}
	return nil
}

func listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("the object store cannot listen on %s: another program has the port; stop it, or set %s to another address: %w", addr, S3ListenVariable, err)
	}
	if err != nil {
		return nil, fmt.Errorf("the object store cannot listen on %s (%s): %w", addr, S3ListenVariable, err)
	}
	return l, nil
}

// openBackend prepares the directories and the bucket.
func (s *S3) openBackend(ctx context.Context, cfg S3Config) error {
	dir, err := filepath.Abs(cfg.Dir) // before the working directory changes
	if err != nil {
		return err
	}
	objects, meta := filepath.Join(dir, "objects"), filepath.Join(dir, "meta")
	for _, d := range []string{objects, meta} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := errors.Join(syncDir(filepath.Dir(dir)), syncDir(dir)); err != nil {
		return err
	}
	if s.oldDir, err = os.Getwd(); err != nil {
		return err
	}
	created := func(bucket, key string) {
		if bucket == cfg.Bucket && cfg.OnCreated != nil {
			cfg.OnCreated(key)
		}
	}
	if s.durable, err = newDurable(objects, meta, created); err != nil {
		return err
	}
	return s.ensureBucket(ctx, cfg.Bucket, cfg.AccessKey)
}

// ensureBucket makes the bucket, and mends one whose making was interrupted:
// without its owner the library would refuse it for ever. The owner is written
// every time, for the access key may be a new one.
func (s *S3) ensureBucket(ctx context.Context, bucket, owner string) error {
	acl, err := json.Marshal(auth.ACL{Owner: owner})
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(s.durable.objects, bucket)); errors.Is(err, os.ErrNotExist) {
		err := s.durable.CreateBucket(ctx, &awss3.CreateBucketInput{
			Bucket:                    &bucket,
			ObjectOwnership:           types.ObjectOwnershipBucketOwnerEnforced,
			CreateBucketConfiguration: &types.CreateBucketConfiguration{},
		}, acl)
		if err != nil {
			return fmt.Errorf("make bucket %s: %w", bucket, err)
		}
	}
	err = errors.Join(
		s.durable.PutBucketAcl(ctx, bucket, acl),
		s.durable.PutBucketOwnershipControls(ctx, bucket, types.ObjectOwnershipBucketOwnerEnforced),
		s.durable.syncNames(bucket, ""),
	)
	if err != nil {
		return fmt.Errorf("bucket %s: %w", bucket, err)
	}
	return nil
}

// startGateway starts versitygw on a local socket that only front knows.
func (s *S3) startGateway(ctx context.Context, cfg S3Config) error {
	debuglogger.SetLevel(debuglogger.LevelSilent)
	utils.SetBucketNameValidationStrict(true)
	root := auth.Account{Access: cfg.AccessKey, Secret: cfg.SecretKey, Role: auth.RoleAdmin}
	up := make(chan struct{})
	var err error
	s.gateway, err = s3api.New(s.durable,
		middlewares.RootUserConfig{Access: cfg.AccessKey, Secret: cfg.SecretKey},
		s3Region, soleAccount{auth.NewIAMServiceSingle(root), root}, nil, nil, nil, nil,
		s3api.WithQuiet(),
		s3api.WithKeepAlive(),
		s3api.WithDisableACL(),
		s3api.WithConcurrencyLimiter(2*maxConns, 2*maxConns), // front admits half as many
		s3api.WithMpMaxParts(10000),                          // the limit of Amazon S3
		s3api.WithOnListen(func() { close(up) }),
	)
	if err != nil {
		return err
	}
	path, cleanup, err := socketPath()
	if err != nil {
		return err
	}
	s.socket = cleanup
	s.back = dialOnly("unix", path)
	ended := make(chan struct{})
	s.served.Go(func() {
		defer close(ended)
		err := s.gateway.ServeMultiPort([]string{path})
		s.failed <- cmp.Or(err, errGatewayEnded)
	})
	select {
	case <-up:
	case <-ended:
		return <-s.failed
	}
	// "Listening" is said a moment too early: a ShutDown in that moment finds
	// nothing to shut down. An answer, which will be 403, proves that it serves.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://versitygw/", nil)
	if err != nil {
		return err
	}
	resp, err := s.back.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	return resp.Body.Close()
}

// soleAccount knows one account, and refuses others as unknown (403): the
// library's own would call them not found, which a HEAD cannot tell from an
// object that is not there.
type soleAccount struct {
	auth.IAMService
	root auth.Account
}

func (a soleAccount) GetUserAccount(access string) (auth.Account, error) {
	if access != a.root.Access {
		return auth.Account{}, auth.ErrNoSuchUser
	}
	return a.root, nil
}

// socketPath names the internal socket. On Linux it has no file, so that
// nothing is left after kill -9 and no path is too long.
func socketPath() (path string, cleanup func(), err error) {
	if runtime.GOOS == "linux" {
		return "@vms-s3-" + rand.Text(), func() {}, nil
	}
	dir, err := os.MkdirTemp("", "vms-s3-")
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(dir, "s"), func() { os.RemoveAll(dir) }, nil
}

func (s *S3) startFront(cfg S3Config) {
	s.http = &http.Server{
		Handler:           newFront(cfg.AllowOrigins, s.back, s.log),
		ConnState:         s.silent.track,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	limited := netutil.LimitListener(s.listener, maxConns)
	s.served.Go(func() {
		if err := s.http.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
			s.failed <- fmt.Errorf("embedded object store: %w", err)
		}
	})
}

// Addr returns the address the store listens on.
func (s *S3) Addr() net.Addr { return s.listener.Addr() }

// URL returns the address of the store for programs on this machine.
func (s *S3) URL() string {
	a, ok := s.listener.Addr().(*net.TCPAddr)
	if ok && a.IP.IsUnspecified() {
		return fmt.Sprintf("http://127.0.0.1:%d", a.Port)
	}
	return "http://" + s.listener.Addr().String()
}

// Run waits until ctx ends (nil) or the store fails (why), and closes it.
func (s *S3) Run(ctx context.Context) error {
	var err error
	select {
	case <-ctx.Done():
	case err = <-s.failed:
	}
	return errors.Join(err, s.Close())
}

// Close stops the store: no new requests, some seconds for those under way.
// When it returns, nothing of the store touches the disk or the network any
// more and its port is free. Two goroutines of fasthttp stay a while: one that
// tidies idle workers notices within 10 s, and one that formats the date lives
// as long as the process.
func (s *S3) Close() error {
	s.once.Do(func() { s.err = s.shutdown() })
	return s.err
}

func (s *S3) shutdown() error {
	if s.only {
		defer running.Store(false)
	}
	var errs []error
	if s.http != nil {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		defer cancel()
		s.http.SetKeepAlivesEnabled(false)
		s.silent.close()
		if err := s.http.Shutdown(ctx); err != nil { // somebody is still at it
			errs = append(errs, s.http.Close())
		}
	} else if s.listener != nil {
		errs = append(errs, s.listener.Close())
	}
	if s.back != nil {
		s.back.CloseIdleConnections()
		errs = append(errs, s.gateway.ShutDown())
	}
	s.served.Wait()
	s.socket()
	if s.durable != nil {
		s.durable.Shutdown()
	}
	if s.oldDir != "" {
		errs = append(errs, os.Chdir(s.oldDir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close embedded object store: %w", err)
	}
	return nil
}
