// Package vmstest makes what tests need and what is not the thing tested: a
// logger that writes to the test, a check for goroutines left behind, and short
// clips made by ffmpeg. The peers live below it: camtest is a camera, chaos a
// link that breaks.
package vmstest

import (
	"io"
	"log/slog"
	"sync"
	"testing"
)

// Log returns a logger that writes to t, each line beside the test it belongs
// to. What a straggler logs after the end of the test is dropped instead of
// failing it: NoLeaks is the check for stragglers.
func Log(t testing.TB) *slog.Logger {
	w := &logWriter{w: t.Output()}
	t.Cleanup(w.close)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type logWriter struct {
	mu sync.Mutex
	w  io.Writer // nil after the test
}

func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w == nil {
		return len(p), nil
	}
	return l.w.Write(p)
}

func (l *logWriter) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w = nil
}
