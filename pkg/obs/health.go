package obs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// checkTimeout bounds one check: who asks for health does not wait for long.
const checkTimeout = 5 * time.Second

// CheckFunc says what is wrong, nil for nothing. It must heed ctx and must be
// safe to call from several goroutines.
type CheckFunc func(ctx context.Context) error

// Health is the set of checks behind /healthz and /readyz. The zero value is
// ready to use and healthy.
//
// healthz fails when only a restart helps; readyz also while the process
// cannot do its work for another reason (starting, draining, a store away).
type Health struct {
	mu     sync.Mutex
	checks []check
}

type check struct {
	name string
	live bool
	fn   CheckFunc
}

// Live adds a check to both endpoints.
func (h *Health) Live(name string, fn CheckFunc) { h.add(check{name, true, fn}) }

// Ready adds a check to /readyz.
func (h *Health) Ready(name string, fn CheckFunc) { h.add(check{name, false, fn}) }

func (h *Health) add(c check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks = append(h.checks, c)
}

// Healthz serves 200 {"status":"ok","checks":{...}} or 503 with a reason per failed check.
func (h *Health) Healthz() http.Handler { return h.handler(true) }

// Readyz is Healthz with all checks.
func (h *Health) Readyz() http.Handler { return h.handler(false) }

// report is the body of both endpoints.
type report struct {
	Status string            `json:"status"` // "ok" or "failed"
	Checks map[string]string `json:"checks"` // by name: "ok" or the reason
}

func (h *Health) handler(liveOnly bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		rep := h.run(r.Context(), liveOnly)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if rep.Status != "ok" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(rep) // the prober has gone: nobody to tell
	})
}

// run makes the checks side by side, each under its own timeout.
func (h *Health) run(ctx context.Context, liveOnly bool) report {
	h.mu.Lock()
	checks := append([]check(nil), h.checks...)
	h.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	type result struct {
		index int
		err   error
	}
	results := make(chan result, len(checks)) // buffered: a check that is late blocks nobody
	pending := make(map[int]bool)
	for i, c := range checks {
		if liveOnly && !c.live {
			continue
		}
		pending[i] = true
		go func() { results <- result{i, safely(ctx, c.fn)} }()
	}
	rep := report{Status: "ok", Checks: make(map[string]string, len(pending))}
	record := func(r result) {
		delete(pending, r.index)
		name := checks[r.index].name
		if r.err != nil {
			rep.Status = "failed"
			rep.Checks[name] = HideUserinfo(r.err.Error())
		} else if rep.Checks[name] == "" {
			rep.Checks[name] = "ok"
		}
	}
	for len(pending) > 0 {
		select {
		case r := <-results:
			record(r)
		case <-ctx.Done():
			// A check that ignores ctx is left to end by itself; what others
			// have answered already counts.
			for range len(results) {
				record(<-results)
			}
			for i := range pending {
				record(result{i, errors.New("no answer in time")})
			}
		}
	}
	return rep
}

// safely turns a panic of a check into its failure.
func safely(ctx context.Context, fn CheckFunc) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("check panicked: %v", p)
		}
	}()
	return fn(ctx)
}
