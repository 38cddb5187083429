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
	srv := httptest.NewServer(mux)
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := (&client{base: srv.URL, token: "t"}).waitStreaming(ctx, "ch_1"); err != nil || !started() {
		t.Errorf("waitStreaming = %v after %d starts", err, asked.Load())
	}
}
