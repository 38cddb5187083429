package cloud

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/zipato/vms/cloud/api"
	"github.com/zipato/vms/cloud/auth"
	"github.com/zipato/vms/cloud/nvrlink"
	"github.com/zipato/vms/cloud/web"
	"github.com/zipato/vms/pkg/obs"
)

// routes puts everything behind one listener. What browsers reach is guarded
// against foreign hosts and origins; hubs and workers bring proofs and tickets
// instead.
func (c *Cloud) routes() (http.Handler, error) {
	var health obs.Health
	health.Ready("object store", func(ctx context.Context) error {
		for _, err := range c.objects.List(ctx, "recordings/", "") {
			return err
		}
		return nil
	})
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", health.Healthz())
	mux.Handle("GET /readyz", health.Readyz())
	if c.worker != nil {
		mux.Handle("GET /push/v1", c.tickets.gate(c.worker.PushHandler()))
	}
	if c.nvr == nil {
		health.Ready("NVR", c.linked)
		health.Ready("ticket keys", c.tickets.check)
		health.Ready("drain", c.notDraining)
		// The page is the NVR's, of another origin: the ticket alone lets in.
		mux.Handle("GET /live/v1/mse", c.tickets.gate(c.worker.LiveHandler()))
		metrics, err := auth.Guard(c.listener.Addr().String(), c.cfg.PublicURL, c.metrics)
		mux.Handle("GET /metrics", metrics)
		return mux, err
	}
	health.Live("database", func(ctx context.Context) error { return c.store.Ping(ctx) })
	health.Ready("disk", func(context.Context) error { return enough(c.data.Room()) })
	mux.Handle("GET /session/v1", c.session)
	mux.Handle("GET /time/v1", c.session.TimeHandler())
	mux.Handle("GET "+nvrlink.Path, c.workers)
	mux.Handle("/", c.auth.Guard(c.browser()))
	return mux, nil
}

// browser is what browsers reach, and programs.
func (c *Cloud) browser() http.Handler {
	rest := api.New(api.Config{NVR: c.nvr, Auth: c.auth, Log: c.log, Version: c.cfg.Version, PublicURL: c.cfg.PublicURL})
	// The page of an all-in-one that no other worker has joined need not reach any.
	here := web.Handler(web.Options{MediaOrigins: []string{c.mediaURL()}})
	anywhere := web.Handler(web.Options{MediaOrigins: []string{c.mediaURL()}, LiveAnywhere: true})
	mux := http.NewServeMux()
	if c.worker != nil {
		mux.Handle("/live/v1/mse", c.worker.LiveHandler())
	}
	mux.Handle("/metrics", c.fleet.handler(c.metrics))
	mux.Handle("/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/api/") || r.URL.Path == "/openapi.json" || r.URL.Path == "/docs" || strings.HasPrefix(r.URL.Path, "/docs/") {
			rest.ServeHTTP(w, r)
			return
		}
		if c.worker == nil || c.fleet.elsewhere(c.info.ID) {
			anywhere.ServeHTTP(w, r)
			return
		}
		here.ServeHTTP(w, r)
	}))
	return mux
}

// notDraining says that a worker alone is about to end.
func (c *Cloud) notDraining(context.Context) error {
	if c.draining.Load() {
		return errors.New("this worker drains, and ends when its streams are elsewhere")
	}
	return nil
}

// leastRoom is a few recordings of each of some cameras. Below it uploads will
// soon fail, and hubs keep their footage while they can.
const leastRoom = 64 << 20

// enough says that the disk is nearly full, before the footage does.
func enough(room int64, err error) error {
	if err == nil && room < leastRoom {
		err = fmt.Errorf("the data directory's disk is full: %d MB left, want %d; free some, or keep less with -retention-bytes", room>>20, leastRoom>>20)
	}
	return err
}

// mediaURL is where presigned URLs point.
func (c *Cloud) mediaURL() string {
	if u := cmp.Or(c.cfg.S3PublicURL, c.cfg.S3.URL); u != "" {
		return u
	}
	return c.s3.URL()
}
