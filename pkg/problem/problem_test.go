package problem

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// TestKindsSurviveTheWire sends each kind through a real server and client.
func TestKindsSurviveTheWire(t *testing.T) {
	for _, tt := range []struct {
		kind   error
		status int
	}{
		{vms.ErrNotFound, 404},
		{vms.ErrConflict, 409},
		{vms.ErrUnauthorized, 401},
		{vms.ErrForbidden, 403},
		{vms.ErrRevoked, 410},
		{vms.ErrExpired, 401},
		{vms.ErrInvalid, 400},
		{vms.ErrUnavailable, 503},
	} {
		t.Run(tt.kind.Error(), func(t *testing.T) {
			sent := fmt.Errorf("channel ch_1: %w", tt.kind)
			resp := serve(t, func(w http.ResponseWriter, _ *http.Request) { Write(w, From(sent)) })
			if resp.StatusCode != tt.status {
				t.Errorf("status %d, want %d", resp.StatusCode, tt.status)
			}
			got := ReadResponse(resp)
			if !errors.Is(got, tt.kind) {
				t.Errorf("client got %v, want a %v", got, tt.kind)
			}
			if got.Error() != sent.Error() {
				t.Errorf("client reads %q, want %q", got, sent)
			}
			for _, k := range kinds {
				if !errors.Is(tt.kind, k.err) && errors.Is(got, k.err) {
					t.Errorf("client got a %v as well", k.err)
				}
			}
		})
	}
}

func TestUnknownErrorsStayInside(t *testing.T) {
	var log bytes.Buffer
	resp := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		Respond(w, slog.New(slog.NewTextHandler(&log, nil)), errors.New("dial 10.1.2.3: secret"))
	})
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 500 || !strings.Contains(string(body), TypeInternal) {
		t.Errorf("answer %d %s, want 500 %s", resp.StatusCode, body, TypeInternal)
	}
	if strings.Contains(string(body), "secret") {
		t.Errorf("the error is outside: %s", body)
	}
	if !strings.Contains(log.String(), "dial 10.1.2.3: secret") {
		t.Errorf("the error is not whole in the log: %s", log.String())
	}
}

func TestKnownKindsAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	Respond(httptest.NewRecorder(), slog.New(slog.NewTextHandler(&log, nil)), vms.ErrNotFound)
	if log.Len() != 0 {
		t.Errorf("returned and logged: %s", log.String())
	}
}

func TestWrite(t *testing.T) {
	rec := httptest.NewRecorder()
	Write(rec, &Problem{
		Type: "urn:vms:problem:busy", Title: "Busy", Status: 503, Detail: "Come back.",
		RetryAfter: 1500 * time.Millisecond,
		Extra:      map[string]any{"worker": "w1", "status": 200},
	})
	if got := rec.Header().Get("Content-Type"); got != ContentType {
		t.Errorf("Content-Type %q, want %q", got, ContentType)
	}
	if got := rec.Header().Get("Retry-After"); got != "2" {
		t.Errorf("Retry-After %q, want 2: rounded up", got)
	}
	want := `{"detail":"Come back.","status":503,"title":"Busy","type":"urn:vms:problem:busy","worker":"w1"}` + "\n"
	if got := rec.Body.String(); got != want {
		t.Errorf("body %s, want %s", got, want)
	}
}

func TestWriteAlwaysAnswers(t *testing.T) {
	for name, p := range map[string]*Problem{
		"no status":          {},
		"a status of no use": {Status: 200},
		"extra without JSON": {Status: 500, Extra: map[string]any{"f": func() {}}},
	} {
		rec := httptest.NewRecorder()
		Write(rec, p)
		if rec.Code != 500 || !json.Valid(rec.Body.Bytes()) {
			t.Errorf("%s: answer %d %q, want 500 and JSON", name, rec.Code, rec.Body)
		}
	}
}

func TestFromKeepsAProblem(t *testing.T) {
	p := &Problem{Type: "urn:vms:problem:nonce", Status: 401}
	if got := From(fmt.Errorf("handshake: %w", p)); got != p {
		t.Errorf("From = %v, want the problem in the chain", got)
	}
}

func TestFromTooLarge(t *testing.T) {
	r := http.MaxBytesReader(httptest.NewRecorder(), io.NopCloser(strings.NewReader("too long")), 3)
	_, err := io.ReadAll(r)
	if p := From(err); p.Status != 413 {
		t.Errorf("From(%v) has status %d, want 413", err, p.Status)
	}
}

// TestReadResponseOfStrangers: the body of another server decides little.
func TestReadResponseOfStrangers(t *testing.T) {
	const ours = ContentType + "; charset=utf-8"
	for _, tt := range []struct {
		name, ctype, body string
		status            int
		want              error // nil: of no kind
	}{
		{"success", ours, `{}`, 204, nil},
		{"a captive portal's 410", "text/html", "<h1>Gone</h1>", 410, vms.ErrUnavailable},
		{"our 410", ours, `{"type":"urn:vms:problem:revoked","status":410}`, 410, vms.ErrRevoked},
		{"our 401 with a type of the handshake", ours, `{"type":"urn:vms:problem:token-expired"}`, 401, vms.ErrExpired},
		{"a gateway", "text/plain", "upstream", 502, vms.ErrUnavailable},
		{"not JSON", ours, `{"type":`, 404, vms.ErrNotFound},
		{"an array", ours, `[]`, 404, vms.ErrNotFound},
		{"members of wrong types", ours, `{"type":7,"title":[],"status":"x","detail":{}}`, 409, vms.ErrConflict},
		{"larger than allowed", ours, `{"type":"urn:vms:problem:revoked","x":"` + strings.Repeat("a", maxBody) + `"}`, 500, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := ReadResponse(&http.Response{
				StatusCode: tt.status,
				Header:     http.Header{"Content-Type": {tt.ctype}},
				Body:       io.NopCloser(strings.NewReader(tt.body)),
			})
			if tt.status < 400 {
				if err != nil {
					t.Fatalf("ReadResponse = %v, want nil", err)
				}
				return
			}
			if err == nil || err.Error() == "" {
				t.Fatalf("ReadResponse = %v, want an error with a sentence", err)
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("ReadResponse = %#v, want a %v", err, tt.want)
			}
			if tt.want == nil && errors.Unwrap(err) != nil {
				t.Errorf("ReadResponse is a %v, want no kind", errors.Unwrap(err))
			}
		})
	}
}

func TestReadResponseIsBounded(t *testing.T) {
	endless := &countingReader{}
	err := ReadResponse(&http.Response{StatusCode: 500, Header: http.Header{"Content-Type": {ContentType}}, Body: io.NopCloser(endless)})
	if err == nil {
		t.Error("ReadResponse = nil, want an error")
	}
	if endless.n > 2*maxBody {
		t.Errorf("read %d bytes of an endless body, want about %d", endless.n, maxBody)
	}
	err = ReadResponse(&http.Response{
		StatusCode: 500,
		Header:     http.Header{"Content-Type": {ContentType}, "Retry-After": {"99999999"}},
		Body:       io.NopCloser(strings.NewReader(`{"detail":"` + strings.Repeat("é", 3000) + `"}`)),
	})
	var p *Problem
	if !errors.As(err, &p) || len(p.Detail) > maxText || p.RetryAfter != maxRetryAfter {
		t.Errorf("detail of %d bytes and a wait of %s got through", len(p.Detail), p.RetryAfter)
	}
}

func TestTypeOf(t *testing.T) {
	if got := TypeOf(fmt.Errorf("dial: %w", &Problem{Type: "urn:x"})); got != "urn:x" {
		t.Errorf("TypeOf = %q, want urn:x", got)
	}
	if got := TypeOf(io.EOF); got != "" {
		t.Errorf("TypeOf(EOF) = %q, want nothing", got)
	}
}

func serve(t *testing.T, h http.HandlerFunc) *http.Response {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

type countingReader struct{ n int }

func (r *countingReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	r.n += len(p)
	return len(p), nil
}
