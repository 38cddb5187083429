package api

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// routes are what the API promises: method, path, a good body, the status of
// success. The document is held to this list, and this list to the document.
var routes = []struct {
	method, path, body string
	status             int
	public             bool // needs no credentials
}{
	{"POST", "/api/v1/channels", `{"name":"x","camera":{"host":"192.0.2.4"}}`, 201, false},
	{"GET", "/api/v1/channels", "", 200, false},
	{"GET", "/api/v1/channels/{id}", "", 200, false},
	{"PATCH", "/api/v1/channels/{id}", `{"name":"y"}`, 200, false},
	{"DELETE", "/api/v1/channels/{id}", "", 204, false},
	{"POST", "/api/v1/channels/{id}/token", "", 201, false},
	{"POST", "/api/v1/channels/{id}/start", `{"timeout_s":60}`, 202, false},
	{"POST", "/api/v1/channels/{id}/stop", `{"wait_s":5}`, 200, false},
	{"GET", "/api/v1/channels/{id}/recordings", "", 200, false},
	{"GET", "/api/v1/channels/{id}/live", "", 200, false},
	{"POST", "/api/v1/hubs", `{"name":"Villa"}`, 201, false},
	{"GET", "/api/v1/hubs", "", 200, false},
	{"GET", "/api/v1/hubs/{id}", "", 200, false},
	{"DELETE", "/api/v1/hubs/{id}", "", 204, false},
	{"POST", "/api/v1/enroll", `{"code":"x","public_key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`, 201, true},
	{"GET", "/api/v1/events", "", 200, false},
	{"POST", "/api/v1/login", `{"token":"` + testToken + `"}`, 200, true},
	{"DELETE", "/api/v1/login", "", 204, true},
	{"GET", "/api/v1/me", "", 200, false},
	{"POST", "/api/v1/login-codes", "", 201, false},
	{"PATCH", "/api/v1/hubs/{id}", `{"time_zone":"Europe/Zagreb","zone":"fra1","limits":{"uplink":"1M"}}`, 200, false},
	{"POST", "/api/v1/hubs/{id}/commands", `{"kind":"doctor"}`, 200, false},
	{"GET", "/api/v1/workers", "", 200, false},
	{"POST", "/api/v1/workers/{id}/drain", "", 202, false},
}

var anyTime = regexp.MustCompile(`"\d{4}-\d\d-\d\dT[^"]*"`)

func TestEveryRoute(t *testing.T) {
	for _, rt := range routes {
		t.Run(rt.method+" "+rt.path, func(t *testing.T) {
			r := newRig(t)
			cookie := r.login()
			path := strings.ReplaceAll(rt.path, "{id}", "ch_1")
			bearer := "Bearer " + testToken

			if !rt.public {
				if a := r.do(rt.method, path, rt.body); wantProblem(t, a, 401).Status == 401 && a.Header.Get("WWW-Authenticate") == "" {
					t.Error("401 without WWW-Authenticate")
				}
				wantProblem(t, r.do(rt.method, path, rt.body, "Authorization", bearer+"x"), 401)
				wantProblem(t, r.do(rt.method, path, rt.body, "Authorization", bearer+"x", "Cookie", cookie), 401)
				wantProblem(t, r.do(rt.method, path, rt.body, "Cookie", "vms_session="+strings.Repeat("A", 43)), 401)
			}
			wantProblem(t, r.do(rt.method, path, rt.body, "Cookie", cookie, "Origin", "https://evil.example"), 403)
			wantProblem(t, r.do(rt.method, path, rt.body, "Cookie", cookie, "Origin", "null"), 403)
			wantProblem(t, r.do(rt.method, path, rt.body, "Authorization", bearer, "Host", "evil.example"), 421)
			wantProblem(t, r.do(rt.method, path, strings.Repeat(" ", maxBody+1), "Authorization", bearer), 413)
			wantProblem(t, r.do("TRACE", path, "", "Authorization", bearer), 405)
			wantProblem(t, r.do(rt.method, path+"?nonsense=1", rt.body, "Authorization", bearer), 422)
			if strings.Contains(rt.path, "{id}") {
				wantProblem(t, r.do(rt.method, strings.ReplaceAll(rt.path, "{id}", "CH%201"), rt.body, "Authorization", bearer), 422)
			}
			if rt.body != "" {
				unknown := strings.Replace(rt.body, "{", `{"nonsense":1,`, 1)
				if p := wantProblem(t, r.do(rt.method, path, unknown, "Authorization", bearer), 422); len(p.Errors) != 1 || p.Errors[0].Location != "body.nonsense" {
					t.Errorf("unknown field: errors %+v", p.Errors)
				}
				wantProblem(t, r.do(rt.method, path, `{"half`, "Authorization", bearer), 400)
				wantProblem(t, r.do(rt.method, path, `{} {}`, "Authorization", bearer), 400)
				wantProblem(t, r.do(rt.method, path, rt.body, "Authorization", bearer, "Content-Type", "text/plain"), 415)
			}
			r.nvr.mu.Lock()
			if len(r.nvr.accts) != 0 {
				t.Errorf("a refused request reached the rules: %v", r.nvr.accts)
			}
			r.nvr.mu.Unlock()
			if rt.path == "/api/v1/events" {
				return // has tests of its own
			}
			a := r.do(rt.method, path, rt.body, "Authorization", bearer, "Origin", r.srv.URL)
			if a.StatusCode != rt.status {
				t.Fatalf("status %d, want %d: %s", a.StatusCode, rt.status, a.body)
			}
			if len(a.body) > 0 && a.Header.Get("Content-Type") != "application/json" {
				t.Errorf("content type %q", a.Header.Get("Content-Type"))
			}
			if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("headers %v", a.Header)
			}
			for _, text := range anyTime.FindAllString(string(a.body), -1) {
				if !regexp.MustCompile(`^"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"$`).MatchString(text) {
					t.Errorf("time %s, want UTC with milliseconds", text)
				}
			}
			for _, acct := range r.nvr.accts {
				if acct != "demo" && !rt.public {
					t.Errorf("called for account %q", acct)
				}
			}
		})
	}
}

func TestUnknownPathAndMethod(t *testing.T) {
	r := newRig(t)
	wantProblem(t, r.call("GET", "/api/v1/nonsense", ""), 404)
	wantProblem(t, r.call("GET", "/", ""), 404)
	wantProblem(t, r.call("GET", "/api/v1/channels/ch_1/nonsense", ""), 404)
	wantProblem(t, r.call("GET", "/schemas/Channel", ""), 404)
	a := r.call("PUT", "/api/v1/channels/ch_1", "{}")
	wantProblem(t, a, 405)
	if allow := a.Header.Get("Allow"); allow != "DELETE, GET, HEAD, PATCH" {
		t.Errorf("Allow = %q", allow)
	}
}

func TestRouteListIsTheDocument(t *testing.T) {
	r := newRig(t)
	var promised, documented []string
	for _, rt := range routes {
		promised = append(promised, rt.method+" "+rt.path)
		op := operation(r.api.huma.OpenAPI(), rt.method, rt.path)
		if op == nil {
			continue
		}
		if rt.public != (len(op.Security) == 0) {
			t.Errorf("%s %s: security %v", rt.method, rt.path, op.Security)
		}
	}
	for path, item := range r.api.huma.OpenAPI().Paths {
		for method := range operations(item) {
			documented = append(documented, method+" "+path)
		}
	}
	slices.Sort(promised)
	slices.Sort(documented)
	if !slices.Equal(promised, documented) {
		t.Errorf("served   %q\npromised %q", documented, promised)
	}
}

func TestBodyOfUnknownLengthIsBounded(t *testing.T) {
	r := newRig(t)
	for _, tc := range []struct{ size, status int }{{maxBody, 201}, {maxBody + 1, 413}, {10 * maxBody, 413}} {
		body := `{"name":"Villa"}`
		body += strings.Repeat(" ", tc.size-len(body))
		req, err := http.NewRequestWithContext(t.Context(), "POST", r.srv.URL+"/api/v1/hubs", struct{ *strings.Reader }{strings.NewReader(body)})
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = -1 // chunked: nothing says beforehand how long it is
		req.Header.Set("Authorization", "Bearer "+testToken)
		req.Header.Set("Content-Type", "application/json")
		resp, err := r.rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tc.status {
			t.Errorf("%d bytes: status %d, want %d", tc.size, resp.StatusCode, tc.status)
		}
	}
}

func TestBodyThatDoesNotComeTimesOut(t *testing.T) {
	r := newTunedRig(t, func(s *server) { s.bodyTimeout = 50 * time.Millisecond })
	conn, err := net.Dial("tcp", r.srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "POST /api/v1/hubs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\n{", testToken)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	wantProblem(t, answer{resp, body}, http.StatusRequestTimeout)
}
