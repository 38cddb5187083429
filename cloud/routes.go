package cloud

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/zipato/vms/cloud/web"
	"github.com/zipato/vms/pkg/obs"
)

// routes puts everything behind one listener. What browsers reach is guarded
// against foreign hosts and origins; hubs bring proofs and tickets instead.
func (c *Cloud) routes(rest http.Handler) http.Handler {
	var health obs.Health
	health.Live("database", func(ctx context.Context) error { return c.store.Ping(ctx) })
	health.Ready("object store", func(ctx context.Context) error {
		for _, err := range c.objects.List(ctx, "recordings/", "") {
			return err
		}
		return nil
	})
	health.Ready("disk", func(context.Context) error { return enough(c.data.Room()) })
	page := web.Handler(web.Options{MediaOrigins: []string{c.mediaURL()}})
	browser := http.NewServeMux()
	browser.Handle("/live/v1/mse", c.worker.LiveHandler())
	browser.Handle("/metrics", c.metrics)
	browser.Handle("/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/api/") || r.URL.Path == "/openapi.json" || r.URL.Path == "/docs" || strings.HasPrefix(r.URL.Path, "/docs/") {
			rest.ServeHTTP(w, r)
			return
		}
		page.ServeHTTP(w, r)
	}))
	mux := http.NewServeMux()
	mux.Handle("GET /session/v1", c.session)
	mux.Handle("GET /time/v1", c.session.TimeHandler())
	mux.Handle("GET /push/v1", c.worker.PushHandler())
	mux.Handle("GET /healthz", health.Healthz())
	mux.Handle("GET /readyz", health.Readyz())
	mux.Handle("/", c.auth.Guard(browser))
	return mux
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
