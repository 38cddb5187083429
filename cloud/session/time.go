package session

import (
	"fmt"
	"net/http"

	"github.com/zipato/vms/pkg/problem"
)

// TimeHandler serves GET /time/v1: what time it is, in UTC with microseconds, to
// anybody. A hub that woke up in 1970 cannot judge certificates before it knows;
// it takes nothing but the time over a connection that it has not verified yet.
func (h *Handler) TimeHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !h.times.allow(h.ClientIP(r), h.Clock()) {
			problem.Respond(w, h.Log, busy("Too many questions from this address."))
			return
		}
		hd := w.Header()
		hd.Set("Content-Type", "application/json")
		hd.Set("Cache-Control", "no-store")
		hd.Set("X-Content-Type-Options", "nosniff")
		// Whoever asked may have gone.
		_, _ = fmt.Fprintf(w, "{\"server_time\":%q}\n", h.Clock().UTC().Format("2006-01-02T15:04:05.000000Z"))
	})
}
