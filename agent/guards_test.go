package agent

import (
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

// TestGuardsOfTheLocalAPI: whatever somebody on the LAN, or a page in a browser
// there, tries without the right to it is refused, starts no stream, stops none,
// and carries no password anywhere. What is refused is allowed with one thing
// changed, so that each guard is seen to be the one.
func TestGuardsOfTheLocalAPI(t *testing.T) {
	vmstest.NoLeaks(t)
	c, foreign := newCloud(t), newCloud(t)
	cam := camtest.Start(t, camtest.Options{Loop: true, Username: "admin", Password: "pa55"})
	other := camtest.Start(t, camtest.Options{Loop: true, Username: "admin", Password: "0ther"})
	bare := cam.Camera() // the stored camera without its password
	bare.URL = strings.Replace(bare.URL, "admin:pa55@", "", 1)
	elsewhere := vms.Camera{URL: strings.Replace(other.URL(), "admin:0ther@", "", 1)}
	h := runHub(t, c)
	c.toHub <- c.desired(1, c.want(t, "ch_run", wire.ModeContinuous, cam.Camera()), c.unwanted(t, "ch_1", cam.Camera()))
	c.reported(t, "the document is obeyed", func(r *wire.Reported) bool {
		return r.Revision == 1 && item(r, "ch_run").Running
	})
	runs := h.until("the cloud's stream", func(s lan.Stream) bool { return s.Channel == "ch_run" && s.Frames > 0 })
	good := c.token(t, nil)

	for _, tt := range []struct {
		name, method, path string
		body               string
		token              string // with cam, instead of body
		cam                vms.Camera
		edit               func(*http.Request)
		want               int
	}{
		{name: "foreign token", token: foreign.token(t, func(s *token.Stream) { s.NVR = c.nvrURL() }), cam: bare, want: 401},
		{name: "foreign NVR", token: c.token(t, func(s *token.Stream) { s.NVR = foreign.nvrURL() }), cam: bare, want: 403},
		{name: "NVR of the same host, another port", token: c.token(t, func(s *token.Stream) { s.NVR = "ws://127.0.0.1:1/session/v1" }), cam: bare, want: 403},
		{name: "NVR with the right one as a name of a user", token: c.token(t, func(s *token.Stream) {
			s.NVR = "ws://" + strings.TrimPrefix(c.srv.URL, "http://") + "@evil.example/session/v1"
		}), cam: bare, want: 403},
		{name: "token of another hub", token: c.token(t, func(s *token.Stream) { s.Hub = "hub_2" }), cam: bare, want: 403},
		{name: "token of yesterday", token: c.token(t, func(s *token.Stream) { s.Issued, s.Expires = s.Issued.Add(-48*time.Hour), s.Expires.Add(-48*time.Hour) }), cam: bare, want: 401},
		{name: "the LAN key is no token", token: h.key, cam: bare, want: 400},

		{name: "caller's host with the stored password", token: good, cam: elsewhere, want: 403},
		{name: "caller's port with the stored password", token: good, cam: vms.Camera{URL: "rtsp://127.0.0.1:1/stream"}, want: 403},
		{name: "caller's template with the stored password", token: good, cam: vms.Camera{Host: "127.0.0.1", Templates: map[string]string{"high": "rtsp://" + other.Addr() + "/{password}"}}, want: 403},
		{name: "camera that the cloud has not stored", token: c.tokenOf(t, "ch_7"), want: 400},
		{name: "channel that the cloud runs", token: c.token(t, func(s *token.Stream) { s.Channel, s.SID = "ch_run", "sid_x" }), cam: other.Camera(), want: 409},
		{name: "stop what the cloud runs", method: "DELETE", path: "/v1/streams/" + string(runs.ID), want: 403},

		{name: "another host", token: good, cam: bare, edit: func(r *http.Request) { r.Host = "evil.example" }, want: 403},
		{name: "DNS rebinding", token: good, cam: bare, edit: func(r *http.Request) {
			_, port, _ := net.SplitHostPort(r.URL.Host)
			r.Host = "evil.example:" + port
			r.Header.Set("Origin", "http://"+r.Host)
		}, want: 403},
		{name: "DNS rebinding with the key", method: "GET", path: "/v1/status", edit: func(r *http.Request) { r.Host = "evil.example" }, want: 403},
		{name: "another origin", token: good, cam: bare, edit: func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, want: 403},
		{name: "page of a file", token: good, cam: bare, edit: func(r *http.Request) { r.Header.Set("Origin", "null") }, want: 403},

		{name: "list without the key", method: "GET", path: "/v1/streams", edit: noKey, want: 401},
		{name: "status without the key", method: "GET", path: "/v1/status", edit: noKey, want: 401},
		{name: "metrics without the key", method: "GET", path: "/metrics", edit: noKey, want: 401},
		{name: "stop without the key", method: "DELETE", path: "/v1/streams/" + string(runs.ID), edit: noKey, want: 401},
		{name: "event without the key", method: "POST", path: "/v1/events", body: "{}", edit: noKey, want: 401},
		{name: "doctor without the key", method: "POST", path: "/v1/doctor", edit: noKey, want: 401},
		{name: "token instead of the key", method: "GET", path: "/v1/streams", edit: func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+good) }, want: 401},

		{name: "too large a body", method: "POST", path: "/v1/streams", body: `{"token":"` + strings.Repeat("x", 64<<10) + `"}`, want: 413},
		{name: "event where nothing waits for one", method: "POST", path: "/v1/events", body: "{}", want: 409},
		{name: "event of a channel that nobody knows", method: "POST", path: "/v1/events", body: `{"channel":"ch_7"}`, want: 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			method, path, body := tt.method, tt.path, tt.body
			if tt.token != "" {
				method, path, body = "POST", "/v1/streams", startBody(t, tt.token, tt.cam)
			}
			code, text, ctype := h.send(t, method, path, body, tt.edit)
			if code != tt.want || ctype != problem.ContentType {
				t.Errorf("%d %s %s, want %d", code, ctype, text, tt.want)
			}
			for _, secret := range []string{"pa55", h.key} {
				if strings.Contains(text, secret) {
					t.Errorf("the answer tells a secret: %s", text)
				}
			}
		})
	}
	if got := h.streams(); len(got) != 1 || got[0].ID != runs.ID || cam.Plays() != 1 {
		t.Errorf("streams %+v; the camera was opened %d times", got, cam.Plays())
	}
	if other.Plays() != 0 || other.Refused() != 0 {
		t.Errorf("the other camera was asked: %d, %d", other.Plays(), other.Refused())
	}

	// With nothing wrong it is let in, also without the stored camera or its password.
	for name, asked := range map[string]vms.Camera{"no camera": {}, "no password": bare} {
		code, text, _ := h.send(t, "POST", "/v1/streams", startBody(t, good, asked), noKey)
		if code != 201 || strings.Contains(text, "pa55") {
			t.Errorf("%s: %d %s", name, code, text)
		}
	}
	h.poll(func() bool { return cam.Plays() >= 2 }, func() { t.Fatalf("streams %+v", h.streams()) })
	if cam.Refused() != 0 {
		t.Errorf("the camera refused the password %d times", cam.Refused())
	}
}

func noKey(r *http.Request) { r.Header.Del("Authorization") }

func startBody(t *testing.T, tok string, cam vms.Camera) string {
	t.Helper()
	in := map[string]any{"token": tok}
	if cam.URL != "" || cam.Host != "" {
		in["camera"] = cam
	}
	return jsonOf(t, in)
}

// send does a request as it is, edited.
func (h *hub) send(t *testing.T, method, path, body string, edit func(*http.Request)) (code int, text, ctype string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, h.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+h.key)
	if edit != nil {
		edit(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data), resp.Header.Get("Content-Type")
}

// TestNoLANKeyNoAgent: without its key file an agent does not start, rather than
// with an API that lets everybody in, or nobody.
func TestNoLANKeyNoAgent(t *testing.T) {
	c := newCloud(t)
	dir := enrolled(t, c)
	if err := os.Remove(dir + "/lan-key"); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Dir: dir, Log: vmstest.Log(t)}); err == nil || !strings.Contains(err.Error(), "LAN key") {
		t.Errorf("New = %v", err)
	}
}
