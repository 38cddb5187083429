package camera_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/agent/camera"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

// patience is how long a test waits for what must come; only a failing test
// waits so long.
const patience = 20 * time.Second

type frame struct {
	pts          int64
	ntp, arrival time.Time
	nalus        [][]byte
}

// session is what a sink got between Open and Lost.
type session struct {
	video        camera.VideoFormat
	audio        *camera.AudioFormat
	frames       []frame
	sound        []frame
	lost         error
	ended        bool
	afterTheFact int // calls after Lost
}

// recorder is a Sink that keeps everything.
type recorder struct {
	mu       sync.Mutex
	sessions []*session
	states   []camera.State
	changed  chan struct{} // closed and replaced at every change
}

func newRecorder() *recorder { return &recorder{changed: make(chan struct{})} }

func (r *recorder) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *recorder) last() *session { return r.sessions[len(r.sessions)-1] }

func (r *recorder) Open(v camera.VideoFormat, a *camera.AudioFormat) {
	r.change(func() { r.sessions = append(r.sessions, &session{video: v, audio: a}) })
}

func (r *recorder) Video(pts int64, ntp, arrival time.Time, au [][]byte) {
	r.change(func() {
		s := r.last()
		if s.ended {
			s.afterTheFact++
		}
		s.frames = append(s.frames, frame{pts, ntp, arrival, au})
	})
}

func (r *recorder) Audio(pts int64, ntp, arrival time.Time, au []byte) {
	r.change(func() {
		s := r.last()
		if s.ended {
			s.afterTheFact++
		}
		s.sound = append(s.sound, frame{pts, ntp, arrival, [][]byte{au}})
	})
}

func (r *recorder) Lost(err error) {
	r.change(func() { r.last().lost, r.last().ended = err, true })
}

func (r *recorder) state(s camera.State) {
	r.change(func() { r.states = append(r.states, s) })
}

// until waits until ok, asked under the lock after each change, says true.
func (r *recorder) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		done, changed := ok(), r.changed
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("%s did not come; states %+v, %d sessions", what, r.states, len(r.sessions))
		}
	}
}

// stateIs waits for the state and returns its sentence.
func (r *recorder) stateIs(t *testing.T, state string) (problem string) {
	t.Helper()
	r.until(t, "state "+state, func() bool {
		if n := len(r.states); n > 0 && r.states[n-1].State == state {
			problem = r.states[n-1].Problem
			return true
		}
		return false
	})
	return problem
}

// streams waits until session n (from 1) has so many frames.
func (r *recorder) streams(t *testing.T, n, frames int) {
	t.Helper()
	r.until(t, "stream", func() bool {
		return len(r.sessions) >= n && len(r.sessions[n-1].frames) >= frames
	})
}

// pulled is a Source that runs.
type pulled struct {
	*recorder
	src  *camera.Source
	logs *syncBuffer
	stop func() // ends Run and wants nil from it; may be called twice
}

// pull runs a Source with short waits, until the test is over.
func pull(t *testing.T, c vms.Camera, options ...func(*camera.Source)) *pulled {
	t.Helper()
	p := &pulled{recorder: newRecorder(), logs: new(syncBuffer)}
	log := slog.New(slog.NewMultiHandler(
		vmstest.Log(t).Handler(),
		slog.NewTextHandler(p.logs, &slog.HandlerOptions{Level: slog.LevelDebug}),
	))
	p.src = &camera.Source{
		Camera: c, Sink: p.recorder, Log: log, OnState: p.state,
		Backoff:     retry.Backoff{Min: 10 * time.Millisecond, Max: 50 * time.Millisecond},
		AuthBackoff: retry.Backoff{Min: 10 * time.Millisecond, Max: 50 * time.Millisecond},
	}
	for _, o := range options {
		o(p.src)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.src.Run(ctx) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v after shutdown, want nil", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for i, s := range p.sessions {
			if !s.ended || s.afterTheFact > 0 {
				t.Errorf("session %d: ended = %v, %d calls after its end", i, s.ended, s.afterTheFact)
			}
		}
	})
	t.Cleanup(p.stop)
	return p
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) contains(s string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Contains(b.b.String(), s)
}

func (b *syncBuffer) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.b.String(), s)
}
