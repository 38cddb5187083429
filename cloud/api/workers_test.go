package api

import (
	"fmt"
	"testing"

	"github.com/zipato/vms/pkg/vms"
)

// TestWorkersSayAllOfThemselves: no field of the rules is left out or mixed up.
func TestWorkersSayAllOfThemselves(t *testing.T) {
	r := newRig(t)
	var list map[string]any
	r.call("GET", "/api/v1/workers", "").decode(t, &list)
	want := "map[wanted:3 workers:[map[assigned:1 capacity:map[bytes_per_second:1e+06 streams:40] id:ch_1 instance:run_1 " +
		"live_url:ws://w1/live/v1/mse load:map[bytes_per_second:5 lag_ms:8 lanes:3 overloaded:true streams:2 tmpfs_bytes:6 tmpfs_limit_bytes:7 uploads_waiting:9 viewers:4] " +
		"push_url:ws://w1/push/v1 seen_at:2026-11-22T11:00:00.123Z since:2026-11-22T11:00:00.123Z state:up version:1.4 zone:fra1]]]"
	if got := fmt.Sprint(list); got != want {
		t.Errorf("workers\n%s\nwant\n%s", got, want)
	}
}

func TestDrainWorker(t *testing.T) {
	r := newRig(t)
	var w map[string]any
	a := r.call("POST", "/api/v1/workers/ch_1/drain", "")
	a.decode(t, &w)
	if a.StatusCode != 202 || w["state"] != "draining" || fmt.Sprint(r.nvr.drained) != "[ch_1]" {
		t.Errorf("drain: %d %v, drained %v", a.StatusCode, w, r.nvr.drained)
	}
	r.nvr.fail(fmt.Errorf("worker x: %w", vms.ErrNotFound))
	wantProblem(t, r.call("POST", "/api/v1/workers/x/drain", ""), 404)
}
