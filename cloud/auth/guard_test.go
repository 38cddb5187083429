package auth

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestGuard(t *testing.T) {
	const local = "http://127.0.0.1:8080/"
	for _, tc := range []struct {
		name, method, url string
		header            map[string]string
		edit              func(*Config)
		want              int
	}{
		{name: "program", method: "POST", url: local, want: 200},
		{name: "localhost", method: "GET", url: "http://localhost:8080/", want: 200},
		{name: "localhost, upper case and dot", method: "GET", url: "http://LOCALHOST.:8080/", want: 200},
		{name: "IPv6 loopback", method: "GET", url: "http://[::1]:8080/", want: 200},
		{name: "forwarded port", method: "GET", url: "http://127.0.0.1:18080/", want: 200},
		{name: "foreign host", method: "GET", url: "http://evil.example:8080/", want: 421},
		{name: "host that ends like ours", method: "GET", url: "http://localhost.evil.example/", want: 421},
		{name: "address that is not ours", method: "GET", url: "http://192.0.2.1:8080/", want: 421},
		{name: "address on an open listener", method: "GET", url: "http://192.0.2.1:8080/", want: 200,
			edit: func(c *Config) { c.Listen = ":8080" }},
		{name: "name on an open listener", method: "GET", url: "http://evil.example:8080/", want: 421,
			edit: func(c *Config) { c.Listen = "0.0.0.0:8080" }},
		{name: "listen address", method: "GET", url: "http://192.0.2.7:8080/", want: 200,
			edit: func(c *Config) { c.Listen = "192.0.2.7:8080" }},
		{name: "public URL", method: "GET", url: "http://vms.example.com/", want: 200,
			edit: func(c *Config) { c.PublicURL = "https://vms.example.com" }},
		{name: "further host", method: "GET", url: "http://vms.lan:8080/", want: 200,
			edit: func(c *Config) { c.Hosts = []string{"VMS.lan"} }},

		{name: "own origin", method: "POST", url: local, want: 200,
			header: map[string]string{"Origin": "http://127.0.0.1:8080", "Cookie": "vms_session=x"}},
		{name: "own origin, other name of it", method: "POST", url: local, want: 403,
			header: map[string]string{"Origin": "http://localhost:8080"}},
		{name: "own host, other scheme", method: "POST", url: local, want: 403,
			header: map[string]string{"Origin": "https://127.0.0.1:8080"}},
		{name: "other port of this machine", method: "POST", url: local, want: 403,
			header: map[string]string{"Origin": "http://127.0.0.1:3000"}},
		{name: "foreign origin", method: "DELETE", url: local, want: 403,
			header: map[string]string{"Origin": "https://evil.example"}},
		{name: "sandboxed page", method: "POST", url: local, want: 403,
			header: map[string]string{"Origin": "null"}},
		{name: "public origin behind a TLS proxy", method: "POST", url: "http://vms.example.com/", want: 200,
			header: map[string]string{"Origin": "https://vms.example.com"},
			edit:   func(c *Config) { c.PublicURL = "https://vms.example.com:443/" }},
		{name: "plain origin of the public host", method: "POST", url: "https://vms.example.com/", want: 403,
			header: map[string]string{"Origin": "http://vms.example.com"},
			edit:   func(c *Config) { c.PublicURL = "https://vms.example.com" }},
		{name: "foreign origin, WebSocket", method: "GET", url: local, want: 403,
			header: map[string]string{"Origin": "https://evil.example", "Upgrade": "websocket", "Connection": "Upgrade"}},
		{name: "foreign origin, reading with a cookie", method: "GET", url: local, want: 403,
			header: map[string]string{"Origin": "http://localhost:3000", "Cookie": "vms_session=x"}},
		{name: "foreign origin, reading", method: "GET", url: local, want: 200,
			header: map[string]string{"Origin": "https://evil.example"}},
		{name: "no origin but cross-site", method: "POST", url: local, want: 403,
			header: map[string]string{"Sec-Fetch-Site": "cross-site"}},
		{name: "a link from elsewhere", method: "GET", url: local, want: 200,
			header: map[string]string{"Sec-Fetch-Site": "cross-site"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newAuth(t, newClock(), tc.edit)
			r := httptest.NewRequest(tc.method, tc.url, nil)
			for k, v := range tc.header {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			a.Guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })).ServeHTTP(w, r)
			if w.Code != tc.want {
				t.Fatalf("status %d, want %d", w.Code, tc.want)
			}
			if w.Code == 200 {
				return
			}
			var p struct{ Status int }
			if ct := w.Header().Get("Content-Type"); ct != "application/problem+json" || json.Unmarshal(w.Body.Bytes(), &p) != nil || p.Status != tc.want {
				t.Errorf("body %q of type %q is no problem of status %d", w.Body, ct, tc.want)
			}
		})
	}
}
