package web

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
)

var (
	built = fstest.MapFS{
		"dist/app/index.html":           {Data: []byte("<title>app</title>")},
		"dist/app/favicon.svg":          {Data: []byte("<svg/>")},
		"dist/app/assets/index-a1b2.js": {Data: []byte("import 1")},
		"dist/app/assets/index-c3.css":  {Data: []byte("a{}")},
		"stub/index.html":               {Data: []byte("npm run build")},
	}
	unbuilt = fstest.MapFS{
		"dist/.gitkeep":   {},
		"stub/index.html": {Data: []byte("npm run build")},
	}
)

func get(t *testing.T, h http.Handler, method, path string, header ...string) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	res := w.Result()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func TestAppIsServedWithItsTypes(t *testing.T) {
	h := newHandler(built, Options{})
	const forever, ask = "public, max-age=31536000, immutable", "no-cache"
	for _, c := range []struct {
		path   string
		status int
		kind   string
		cache  string
	}{
		{"/", 200, "text/html; charset=utf-8", ask},
		{"/?login=abc", 200, "text/html; charset=utf-8", ask},
		{"/index.html", 200, "text/html; charset=utf-8", ask},
		{"/channels/ch_1", 200, "text/html; charset=utf-8", ask},
		{"/favicon.svg", 200, "image/svg+xml", ask},
		{"/assets/index-a1b2.js", 200, "text/javascript; charset=utf-8", forever},
		{"/assets/index-c3.css", 200, "text/css; charset=utf-8", forever},
		{"/assets/index-old.js", 404, "text/plain; charset=utf-8", "no-store"},
		{"/assets/", 404, "text/plain; charset=utf-8", "no-store"},
		{"/channels/", 404, "text/plain; charset=utf-8", "no-store"},
		{"/channels/a/b", 404, "text/plain; charset=utf-8", "no-store"},
		{"/api/v1/nothing", 404, "text/plain; charset=utf-8", "no-store"},
		{"/../web.go", 404, "text/plain; charset=utf-8", "no-store"},
		{"/stub/index.html", 404, "text/plain; charset=utf-8", "no-store"},
	} {
		res, body := get(t, h, "GET", c.path)
		if res.StatusCode != c.status || res.Header.Get("Content-Type") != c.kind || res.Header.Get("Cache-Control") != c.cache {
			t.Errorf("GET %s = %d %q %q, want %d %q %q", c.path, res.StatusCode,
				res.Header.Get("Content-Type"), res.Header.Get("Cache-Control"), c.status, c.kind, c.cache)
		}
		if c.status == 200 && c.kind == types[".html"] && body != "<title>app</title>" {
			t.Errorf("GET %s: body %q is not the index page", c.path, body)
		}
		if res.Header.Get("X-Content-Type-Options") != "nosniff" || res.Header.Get("Referrer-Policy") == "" {
			t.Errorf("GET %s: security headers are missing", c.path)
		}
	}
}

func TestUnchangedFileIsNotSentAgain(t *testing.T) {
	h := newHandler(built, Options{})
	res, _ := get(t, h, "GET", "/")
	tag := res.Header.Get("ETag")
	if tag == "" {
		t.Fatal("no ETag")
	}
	if res, body := get(t, h, "GET", "/", "If-None-Match", tag); res.StatusCode != 304 || body != "" {
		t.Errorf("same ETag = %d %q, want 304", res.StatusCode, body)
	}
	if res, _ := get(t, h, "GET", "/", "If-None-Match", `"old"`); res.StatusCode != 200 {
		t.Errorf("other ETag = %d, want 200", res.StatusCode)
	}
}

func TestOnlyReading(t *testing.T) {
	h := newHandler(built, Options{})
	if res, body := get(t, h, "HEAD", "/"); res.StatusCode != 200 || body != "" {
		t.Errorf("HEAD = %d %q", res.StatusCode, body)
	}
	if res, _ := get(t, h, "POST", "/"); res.StatusCode != 405 || res.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST = %d, Allow %q", res.StatusCode, res.Header.Get("Allow"))
	}
}

func TestPolicyAllowsWhatIsNamedAndNoMore(t *testing.T) {
	h := newHandler(built, Options{
		MediaOrigins: []string{
			"http://127.0.0.1:9000", "https://s3.example.com/bucket/",
			"s3.example.com", "javascript:alert(1)", "http://a;script-src *", "http://", "http://u:p@",
		},
		ConnectOrigins: []string{"wss://worker.example.com"},
	})
	policy := directives(t, h, "http://vms.test:8080/")
	for name, want := range map[string]string{
		"default-src":     "'none'",
		"script-src":      "'self'",
		"style-src":       "'self'",
		"frame-ancestors": "'none'",
		"media-src":       "'self' blob: http://127.0.0.1:9000 https://s3.example.com",
		"connect-src": "'self' ws://vms.test:8080 wss://vms.test:8080 wss://worker.example.com" +
			" http://127.0.0.1:9000 https://s3.example.com",
	} {
		if policy[name] != want {
			t.Errorf("%s = %q, want %q", name, policy[name], want)
		}
	}
}

func TestLiveAnywhereIsForWebSocketsOnly(t *testing.T) {
	h := newHandler(built, Options{LiveAnywhere: true, MediaOrigins: []string{"https://s3.example.com"}})
	policy := directives(t, h, "http://vms.test/")
	if got, want := policy["connect-src"], "'self' ws://vms.test wss://vms.test ws: wss: https://s3.example.com"; got != want {
		t.Errorf("connect-src = %q, want %q", got, want)
	}
	if got, want := policy["script-src"], "'self'"; got != want {
		t.Errorf("script-src = %q, want %q", got, want)
	}
}

func TestHostHeaderCannotWritePolicy(t *testing.T) {
	h := newHandler(built, Options{})
	r := httptest.NewRequest("GET", "/", nil)
	for _, host := range []string{"", "a; script-src *", "a b", "*", "a:99999999", "a\tb"} {
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if p := w.Header().Get("Content-Security-Policy"); !strings.Contains(p, "connect-src 'self';") {
			t.Errorf("Host %q: %s", host, p)
		}
	}
}

func directives(t *testing.T, h http.Handler, url string) map[string]string {
	t.Helper()
	res, _ := get(t, h, "GET", url)
	out := map[string]string{}
	for d := range strings.SplitSeq(res.Header.Get("Content-Security-Policy"), "; ") {
		name, value, _ := strings.Cut(d, " ")
		out[name] = value
	}
	return out
}

func TestWithoutTheAppAStubTellsHowToBuildIt(t *testing.T) {
	h := newHandler(unbuilt, Options{})
	for _, path := range []string{"/", "/channels/ch_1"} {
		if res, body := get(t, h, "GET", path); res.StatusCode != 200 || !strings.Contains(body, "npm run build") {
			t.Errorf("GET %s = %d %q", path, res.StatusCode, body)
		}
	}
	if res, _ := get(t, h, "GET", "/favicon.svg"); res.StatusCode != 404 {
		t.Errorf("GET /favicon.svg = %d, want 404", res.StatusCode)
	}
}

func TestEmbeddedTreeAnswers(t *testing.T) {
	res, body := get(t, Handler(Options{}), "GET", "/")
	if res.StatusCode != 200 || !strings.Contains(body, "<html") {
		t.Errorf("GET / = %d %q", res.StatusCode, body)
	}
	if strings.Contains(body, "<style") || strings.Contains(body, "style=") {
		t.Error("the page has inline styles, which its policy refuses")
	}
}
