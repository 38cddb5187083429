package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/auth"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vmstest"
)

const testToken = "vms_0123456789012345678901234567890123456789012"

// rig is an API on a listener of its own.
type rig struct {
	t   *testing.T
	nvr *fakeNVR
	api *server
	srv *httptest.Server
	// rt is a client without cookies, redirects and habits.
	rt  http.RoundTripper
	log *lockedBuffer
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return newTunedRig(t, nil)
}

func newTunedRig(t *testing.T, tune func(*server)) *rig {
	t.Helper()
	vmstest.NoLeaks(t)
	log := &lockedBuffer{}
	a, err := auth.New(auth.Config{Account: "demo", Token: testToken, Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	f := newFakeNVR()
	s := newServer(Config{
		NVR: f, Auth: a, Version: "1.2.3", Log: slog.New(slog.NewTextHandler(log, nil)),
		Now: func() time.Time { return at },
	}, tune)
	srv := httptest.NewServer(s.handler())
	t.Cleanup(srv.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &rig{t, f, s, srv, transport, log}
}

// answer is a response whose body has been read.
type answer struct {
	*http.Response
	body []byte
}

func (a answer) decode(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
}

// do sends a request; header is name, value, name, value.
func (r *rig) do(method, path, body string, header ...string) answer {
	r.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, r.srv.URL+path, reader)
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := r.rt.RoundTrip(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{resp, b}
}

// call is do with the bearer token.
func (r *rig) call(method, path, body string) answer {
	r.t.Helper()
	return r.do(method, path, body, "Authorization", "Bearer "+testToken)
}

// login returns the session cookie of a new session, as a Cookie header.
func (r *rig) login() string {
	r.t.Helper()
	code, _ := r.api.Auth.NewLoginCode()
	a := r.do("POST", "/api/v1/login", `{"code":"`+code+`"}`)
	if a.StatusCode != http.StatusOK {
		r.t.Fatalf("login: %d %s", a.StatusCode, a.body)
	}
	c := a.Cookies()[0]
	return c.Name + "=" + c.Value
}

// wantProblem checks that a is problem+json of that status.
func wantProblem(t *testing.T, a answer, status int) Problem {
	t.Helper()
	var p Problem
	if a.StatusCode != status {
		t.Errorf("status %d, want %d: %s", a.StatusCode, status, a.body)
	}
	if ct := a.Header.Get("Content-Type"); ct != problem.ContentType {
		t.Errorf("content type %q: %s", ct, a.body)
	}
	if a.Request != nil && a.Request.Method == http.MethodHead {
		return p
	}
	a.decode(t, &p)
	if p.Status != status || !strings.HasPrefix(p.Type, problem.TypePrefix) || p.Title == "" || p.Detail == "" {
		t.Errorf("problem %s, want status, type, title and detail", a.body)
	}
	return p
}

// lockedBuffer is a log that the server writes and a test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
