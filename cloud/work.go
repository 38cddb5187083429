package cloud

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// localWorker is the worker of an all-in-one, unless it is named.
	localWorker = vms.WorkerID("worker_local")
	// workerIDFile, in the worker's directory, is the id of a worker alone that is
	// not named: with that directory it is the same worker.
	workerIDFile = "worker-id"
	// keysWithin is how long a lane or a viewer waits for the keys of tickets, which
	// come with the first link to the NVR, before it is sent away.
	keysWithin = 2 * time.Second
)

func (c *Config) checkWorker() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{vms.ErrInvalid}, a...)...)
	}
	switch {
	case c.WorkerID != "" && !vms.ValidID(c.WorkerID):
		return bad("VMS_WORKER_ID %q, want 1 to 64 of a-z, 0-9, - and _", c.WorkerID)
	case c.Zone != "" && !vms.ValidID(c.Zone):
		return bad("VMS_ZONE %q, want 1 to 64 of a-z, 0-9, - and _", c.Zone)
	case c.Capacity.Streams < 0 || c.Capacity.BytesPerSecond < 0:
		return bad("-max-streams and -max-mbit cannot be negative; 0 is no limit")
	case c.DrainFor < 0:
		return bad("-drain-for cannot be negative")
	}
	switch c.Uploader {
	case "", UploaderS3, UploaderRclone:
	default:
		return bad("uploader %q, want %s or %s", c.Uploader, UploaderS3, UploaderRclone)
	}
	if c.Roles.Has(RoleNVR) {
		return nil
	}
	host, _, err := net.SplitHostPort(c.Listen)
	ip, _ := netip.ParseAddr(host)
	switch {
	case c.WorkerDir == "":
		return bad("a worker alone needs a directory for unfinished recordings, best on tmpfs: -worker-dir (VMS_WORKER_DIR)")
	case err == nil && c.PublicURL == "" && (host == "" || ip.IsUnspecified()):
		return bad("a worker at %s, which is every address of this machine, must say in VMS_PUBLIC_URL which of them hubs reach", c.Listen)
	}
	return nil
}

// workerID is who the worker of this process is.
func (c *Cloud) workerID() (vms.WorkerID, error) {
	switch {
	case c.cfg.WorkerID != "":
		return c.cfg.WorkerID, nil
	case c.cfg.Roles.Has(RoleNVR):
		return localWorker, nil
	}
	id, err := keptWorkerID(c.workerDir())
	if err != nil {
		return "", fmt.Errorf("id of the worker (which -worker-id may name instead): %w", err)
	}
	return id, nil
}

// keptWorkerID is the host's name and something random that dir remembers.
func keptWorkerID(dir string) (vms.WorkerID, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, workerIDFile)
	for range 2 {
		text, err := os.ReadFile(path)
		if err == nil {
			id := vms.WorkerID(strings.TrimSpace(string(text)))
			if !vms.ValidID(id) {
				return "", fmt.Errorf("%s does not hold one; remove it", path)
			}
			return id, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		host, err := os.Hostname()
		if err != nil {
			host = "worker"
		}
		// It appears whole or not at all, and the first one stays.
		tmp := fmt.Sprintf("%s-%d", path, os.Getpid())
		if err := os.WriteFile(tmp, []byte(newWorkerID(host)+"\n"), 0o600); err != nil {
			return "", err
		}
		err = os.Link(tmp, path)
		if err := errors.Join(os.Remove(tmp), err); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s comes and goes", path)
}

// newWorkerID makes an id of a host's name.
func newWorkerID(host string) vms.WorkerID {
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	host = strings.Trim(strings.Map(func(r rune) rune {
		if vms.ValidID(string(r)) {
			return r
		}
		return '-'
	}, host), "-")
	return vms.NewID[vms.WorkerID](cmp.Or(host[:min(len(host), 40)], "worker"))
}

// openWorker makes the worker of this process. In an all-in-one its line to the
// NVR is plain calls, else a WebSocket.
func (c *Cloud) openWorker(ctx context.Context) error {
	info := vms.WorkerInfo{Zone: c.cfg.Zone, Version: c.cfg.Version, Capacity: c.cfg.Capacity}
	var err error
	if info.ID, err = c.workerID(); err != nil {
		return err
	}
	if info.PushURL, err = c.wsURL("/push/v1"); err != nil {
		return err
	}
	if info.LiveURL, err = c.wsURL("/live/v1/mse"); err != nil {
		return err
	}
	cfg := worker.Config{
		ID: info.ID, Dir: c.workerDir(), DirBytes: c.cfg.WorkerBytes, Capacity: c.cfg.Capacity, Store: uploads{c.uploads},
		Mirror:    c.cfg.Mirror,
		CheckPush: func(t string) (token.Push, error) { return c.tickets.verifier().VerifyPush(t, info.ID, time.Now()) },
		CheckView: func(t string) (token.View, error) { return c.tickets.verifier().VerifyView(t, info.ID, time.Now()) },
		Log:       c.log, Metrics: c.metrics,
	}
	if c.nvr != nil {
		cfg.NVR = c.nvr
	} else {
		if err := c.openLink(info); err != nil {
			return err
		}
		cfg.NVR = c.link
	}
	if c.worker, err = worker.New(cfg); err != nil {
		return err
	}
	info.Instance = c.worker.Instance()
	c.info = info
	if c.nvr == nil {
		c.link.SetInstance(info.Instance)
		return nil
	}
	if err := c.nvr.WorkerUp(info, (*localLink)(c)); err != nil {
		return err
	}
	c.worker.Relinked(ctx)
	return nil
}

// work does the worker's part, if this process has it, until it is to end: see
// drained. The line to the NVR goes last: uploads are told over it.
func (c *Cloud) work(ctx, rest context.Context) error {
	if c.worker == nil {
		select {
		case <-ctx.Done():
		case <-rest.Done():
		}
		return nil
	}
	var g errgroup.Group
	line, hangUp := context.WithCancel(rest)
	defer hangUp()
	if c.link != nil {
		g.Go(func() error {
			defer hangUp()
			return c.link.Run(line)
		})
	} else {
		g.Go(func() error { return c.beat(line) })
	}
	run, end := context.WithCancel(rest)
	defer end()
	g.Go(func() error {
		defer hangUp()
		return c.worker.Run(run) // returns when told to stop, and its uploads are through
	})
	c.drained(ctx, line)
	end()
	return g.Wait()
}

// tickets verifies the NVR's tickets, once there are keys.
type tickets struct {
	current atomic.Pointer[token.Verifier]
	there   signal
}

func newTickets() *tickets { return &tickets{there: newSignal()} }

// use takes keys in the place of those before.
func (t *tickets) use(keys []ed25519.PublicKey) error {
	set, err := token.NewJWKS(keys...)
	if err != nil {
		return err
	}
	v, err := token.NewVerifier(set)
	if err != nil {
		return err
	}
	t.current.Store(v)
	t.there.set()
	return nil
}

// verifier is for what has passed gate.
func (t *tickets) verifier() *token.Verifier { return t.current.Load() }

// check says that there are no keys yet.
func (t *tickets) check(context.Context) error {
	if t.verifier() == nil {
		return errors.New("no keys of tickets yet: they come with the first link to the NVR, and no stream is taken before")
	}
	return nil
}

// gate lets nobody in before there are keys: a ticket that cannot be verified is
// not a bad one, which agents would throw away.
func (t *tickets) gate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		late := time.NewTimer(keysWithin)
		defer late.Stop()
		select {
		case <-t.there.ch:
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		case <-late.C:
			problem.Write(w, &problem.Problem{
				Type: wire.ProblemBusy, Status: http.StatusServiceUnavailable, Title: "This worker has just started", RetryAfter: 2 * time.Second,
				Detail: "The NVR did not tell it yet which tickets are good.",
			})
		}
	})
}
