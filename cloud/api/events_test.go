package api

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

// follow opens an event stream and returns its lines; stop hangs up.
func (r *rig) follow(header ...string) (lines <-chan string, stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", r.srv.URL+"/api/v1/events", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.rt.RoundTrip(req)
	if err != nil {
		r.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		r.t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	out := make(chan string)
	go func() {
		defer close(out)
		defer resp.Body.Close()
		for s := bufio.NewScanner(resp.Body); s.Scan(); {
			select {
			case out <- s.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	r.t.Cleanup(cancel)
	return out, cancel
}

func next(t *testing.T, lines <-chan string) (string, bool) {
	t.Helper()
	select {
	case l, ok := <-lines:
		return l, ok
	case <-time.After(10 * time.Second):
		t.Fatal("no line in 10 s")
		return "", false
	}
}

// wantLines reads lines and skips comments.
func wantLines(t *testing.T, lines <-chan string, want ...string) {
	t.Helper()
	for _, w := range want {
		if got, ok := next(t, lines); !ok || got != w {
			t.Fatalf("line %q, %v, want %q", got, ok, w)
		}
	}
}

const bearerHeader = "Bearer " + testToken

func TestEventsAreDelivered(t *testing.T) {
	r := newRig(t)
	lines, stop := r.follow("Authorization", bearerHeader, "Last-Event-ID", "7")
	wantLines(t, lines, "retry: 3000", "")
	r.nvr.events <- nvr.Event{Type: nvr.EventHubOnline, Account: "demo", At: at, Hub: "hub_1"}
	wantLines(t, lines, "event: hub_online", `data: {"type":"hub_online","at":"2026-11-22T11:00:00.123Z","hub_id":"hub_1"}`, "")
	r.nvr.events <- nvr.Event{
		Type: nvr.EventRecording, At: at, Channel: "ch_1",
		Rec: &vms.Recording{Start: at, End: at.Add(30 * time.Second), Media: 30 * time.Second, Bytes: 7},
	}
	wantLines(t, lines, "event: recording",
		`data: {"type":"recording","at":"2026-11-22T11:00:00.123Z","channel_id":"ch_1","recording":{"start":"2026-11-22T11:00:00.123Z","end":"2026-11-22T11:00:30.123Z","media_ms":30000,"bytes":7}}`, "")
	stop()
	select {
	case <-r.nvr.unsubscribed: // the stream ended with the request
	case <-time.After(10 * time.Second):
		t.Fatal("the subscription outlives the request")
	}
}

func TestEventStreamEndsWithTheSubscription(t *testing.T) {
	r := newRig(t)
	lines, _ := r.follow("Authorization", bearerHeader)
	wantLines(t, lines, "retry: 3000", "")
	close(r.nvr.events)
	if l, ok := next(t, lines); ok {
		t.Errorf("line %q after the end", l)
	}
}

func TestEventStreamBeatsAndEndsWithTheSession(t *testing.T) {
	r := newTunedRig(t, func(s *server) { s.heartbeat = 10 * time.Millisecond })
	cookie := r.login()
	lines, _ := r.follow("Cookie", cookie)
	wantLines(t, lines, "retry: 3000", "", ": still here", "", ": still here", "")
	if a := r.do("DELETE", "/api/v1/login", "", "Cookie", cookie); a.StatusCode != 204 {
		t.Fatal(a.StatusCode)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		l, ok := next(t, lines)
		if !ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the stream outlives the session")
		}
		if l != "" && !strings.HasPrefix(l, ":") {
			t.Fatalf("line %q", l)
		}
	}
}

func TestEventStreamsAreBounded(t *testing.T) {
	r := newTunedRig(t, func(s *server) { s.streams = make(chan struct{}, 1) })
	lines, stop := r.follow("Authorization", bearerHeader)
	wantLines(t, lines, "retry: 3000", "")
	a := r.call("GET", "/api/v1/events", "")
	wantProblem(t, a, 503)
	if a.Header.Get("Retry-After") != "60" {
		t.Errorf("Retry-After = %q", a.Header.Get("Retry-After"))
	}
	stop()
	<-r.nvr.unsubscribed
	r.nvr.unsubscribed = make(chan struct{})
	r.api.streams <- struct{}{} // the place is free again, in time
	<-r.api.streams
	lines, _ = r.follow("Authorization", bearerHeader)
	wantLines(t, lines, "retry: 3000", "")
}

func TestHeadOfEventsEnds(t *testing.T) {
	r := newRig(t)
	if a := r.do("HEAD", "/api/v1/events", "", "Authorization", bearerHeader); a.StatusCode != 200 {
		t.Errorf("%d", a.StatusCode)
	}
}
