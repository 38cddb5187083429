package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// A stop outlives a restart; without a start `make run` would wait for ever.
func TestWaitStreamingStartsAChannelThatWasStopped(t *testing.T) {
	var asked atomic.Int64
	started := func() bool { return asked.Load() > 1 }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/channels/ch_1", func(w http.ResponseWriter, _ *http.Request) {
		ch := channel{ID: "ch_1", State: "idle"}
		if started() {
			ch.Wanted, ch.Streaming, ch.State = true, true, "streaming"
		}
		_ = json.NewEncoder(w).Encode(ch)
	})
	mux.HandleFunc("POST /api/v1/channels/ch_1/start", func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		if !started() { // the hub is not there yet
			w.WriteHeader(http.StatusConflict)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	var looked atomic.Int64
	mux.HandleFunc("GET /api/v1/channels/ch_1/recordings", func(w http.ResponseWriter, r *http.Request) {
		if looked.Add(1) == 1 || r.URL.Query().Get("from") == "" { // no keyframe yet
			_, _ = w.Write([]byte(`{"recordings":[],"pending":[]}`))
			return
		}
		_, _ = w.Write([]byte(`{"recordings":[],"pending":[{"start":"2026-11-22T10:30:01Z","end":"2026-11-22T10:30:02Z"}]}`))
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := (&client{base: srv.URL, token: "t"}).waitStreaming(ctx, "ch_1"); err != nil || !started() || looked.Load() != 2 {
		t.Errorf("waitStreaming = %v after %d starts and %d looks for footage", err, asked.Load(), looked.Load())
	}
}
