package lan

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

type fakeAgent struct {
	started []vms.Camera
	events  []event
	err     error
}

type event struct {
	channel   vms.ChannelID
	pre, post *time.Duration
}

func (f *fakeAgent) Event(ch vms.ChannelID, pre, post *time.Duration) error {
	if f.err == nil {
		f.events = append(f.events, event{ch, pre, post})
	}
	return f.err
}

func (f *fakeAgent) Doctor(context.Context) (json.RawMessage, error) {
	return json.RawMessage(`{"ok":true}`), f.err
}

func (f *fakeAgent) Start(token string, cam vms.Camera) (Stream, error) {
	if f.err != nil {
		return Stream{}, f.err
	}
	f.started = append(f.started, cam)
	return Stream{ID: "str_1", Channel: "ch_1", Origin: "lan"}, nil
}

func (f *fakeAgent) Stop(id vms.StreamID) error {
	if id != "str_1" {
		return fmt.Errorf("%w: no stream %s", vms.ErrNotFound, id)
	}
	return nil
}

func (f *fakeAgent) Streams() []Stream { return []Stream{{ID: "str_1"}} }
func (f *fakeAgent) Status() Status    { return Status{Hub: "hub_1"} }

const key = "secret-lan-key"

func TestGuards(t *testing.T) {
	good := `{"token":"t","camera":{"url":"rtsp://192.0.2.1/"}}`
	for _, tt := range []struct {
		name, method, path, body string
		edit                     func(*http.Request)
		want                     int
	}{
		{"start needs no key", "POST", "/v1/streams", good, func(r *http.Request) { r.Header.Del("Authorization") }, 201},
		{"list", "GET", "/v1/streams", "", nil, 200},
		{"status", "GET", "/v1/status", "", nil, 200},
		{"metrics", "GET", "/metrics", "", nil, 200},
		{"stop", "DELETE", "/v1/streams/str_1", "", nil, 204},
		{"stop another", "DELETE", "/v1/streams/str_2", "", nil, 404},
		{"event", "POST", "/v1/events", `{"channel":"ch_1"}`, nil, 202},
		{"event with times", "POST", "/v1/events", `{"pre_roll_s":0,"post_roll_s":600}`, nil, 202},
		{"event of all", "POST", "/v1/events", `{}`, nil, 202},
		{"doctor", "POST", "/v1/doctor", "", nil, 200},
		{"start without a camera", "POST", "/v1/streams", `{"token":"t"}`, nil, 201},
		{"health needs no key", "GET", "/healthz", "", func(r *http.Request) { r.Header.Del("Authorization") }, 200},

		{"list without key", "GET", "/v1/streams", "", func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		{"stop without key", "DELETE", "/v1/streams/str_1", "", func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		{"status with a wrong key", "GET", "/v1/status", "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+key+"x") }, 401},
		{"metrics with a wrong key", "GET", "/metrics", "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") }, 401},

		{"event without key", "POST", "/v1/events", `{}`, func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		{"event with a token of the cloud", "POST", "/v1/events", `{}`, func(r *http.Request) { r.Header.Set("Authorization", "Bearer eyJhbGciOiJFZERTQSJ9.e30.c2ln") }, 401},
		{"doctor without key", "POST", "/v1/doctor", "", func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		{"key in another scheme", "GET", "/v1/status", "", func(r *http.Request) { r.SetBasicAuth("", key) }, 401},
		{"key without a scheme", "GET", "/v1/status", "", func(r *http.Request) { r.Header.Set("Authorization", key) }, 401},
		{"two keys", "GET", "/v1/status", "", func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer x", "Bearer " + key} }, 401},

		{"by name", "GET", "/v1/status", "", func(r *http.Request) { r.Host = "hub.local:8090" }, 200},
		{"by name in capitals", "GET", "/v1/status", "", func(r *http.Request) { r.Host = "HUB.local" }, 200},
		{"by localhost", "GET", "/v1/status", "", func(r *http.Request) { r.Host = "localhost:8090" }, 200},
		{"by IPv6", "GET", "/v1/status", "", func(r *http.Request) { r.Host = "[fe80::1]:8090" }, 200},
		{"by IPv6 without port", "GET", "/v1/status", "", func(r *http.Request) { r.Host = "[::1]" }, 200},
		{"foreign host", "POST", "/v1/streams", good, func(r *http.Request) { r.Host = "evil.example" }, 403},
		{"host that looks like an address", "GET", "/v1/status", "", func(r *http.Request) { r.Host = "127.0.0.1.evil.example" }, 403},
		{"host that ends in a name", "GET", "/v1/status", "", func(r *http.Request) { r.Host = "evilhub.local" }, 403},
		{"no host", "GET", "/v1/status", "", func(r *http.Request) { r.Host = "" }, 403},
		{"rebound name with the port", "POST", "/v1/events", `{}`, func(r *http.Request) { r.Host = "evil.example:8090" }, 403},
		{"rebound name and its origin", "POST", "/v1/streams", good, func(r *http.Request) {
			r.Host = "evil.example:8090"
			r.Header.Set("Origin", "http://evil.example:8090")
		}, 403},
		{"number that browsers take for an address", "GET", "/v1/status", "", func(r *http.Request) { r.Host = "2130706433" }, 403},
		{"host with a user", "GET", "/v1/status", "", func(r *http.Request) { r.Host = "127.0.0.1@evil.example" }, 403},
		{"foreign host of the health", "GET", "/healthz", "", func(r *http.Request) { r.Host = "evil.example" }, 403},

		{"own origin", "POST", "/v1/streams", good, func(r *http.Request) { r.Header.Set("Origin", "http://"+r.Host) }, 201},
		{"foreign origin", "POST", "/v1/streams", good, func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, 403},
		{"origin of a sandbox", "POST", "/v1/streams", good, func(r *http.Request) { r.Header.Set("Origin", "null") }, 403},
		{"another port is another origin", "GET", "/v1/streams", "", func(r *http.Request) { r.Header.Set("Origin", "http://127.0.0.1:1") }, 403},

		{"origin that begins like this one", "POST", "/v1/streams", good, func(r *http.Request) { r.Header.Set("Origin", "http://"+r.Host+".evil.example") }, 403},
		{"foreign origin with the key", "POST", "/v1/events", `{}`, func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, 403},

		{"event too long", "POST", "/v1/events", `{"post_roll_s":601}`, nil, 400},
		{"event that ends before it begins", "POST", "/v1/events", `{"post_roll_s":0}`, nil, 400},
		{"event from long ago", "POST", "/v1/events", `{"pre_roll_s":61}`, nil, 400},
		{"event from the future", "POST", "/v1/events", `{"pre_roll_s":-1}`, nil, 400},
		{"event that overflows", "POST", "/v1/events", `{"pre_roll_s":9223372036854775807}`, nil, 400},
		{"event of no channel", "POST", "/v1/events", `{"channel":"../x"}`, nil, 400},
		{"event with more", "POST", "/v1/events", `{"cause":"motion"}`, nil, 400},
		{"event too large", "POST", "/v1/events", `{"channel":"` + strings.Repeat("x", maxBody) + `"}`, nil, 413},
		{"wrong method of events", "GET", "/v1/events", "", nil, 405},
		{"body too large", "POST", "/v1/streams", `{"token":"` + strings.Repeat("x", maxBody) + `"}`, nil, 413},
		{"unknown field", "POST", "/v1/streams", `{"token":"t","camera":{},"debug":1}`, nil, 400},
		{"unknown field of the camera", "POST", "/v1/streams", `{"token":"t","camera":{"exec":"sh"}}`, nil, 400},
		{"two objects", "POST", "/v1/streams", good + good, nil, 400},
		{"no object", "POST", "/v1/streams", `[]`, nil, 400},
		{"empty", "POST", "/v1/streams", ``, nil, 400},

		{"wrong method", "PUT", "/v1/streams", good, nil, 405},
		{"wrong method of a stream", "GET", "/v1/streams/str_1", "", nil, 405},
		{"wrong method of the status", "POST", "/v1/status", "", nil, 405},
		{"no such path", "GET", "/v2", "", nil, 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			agent := &fakeAgent{}
			h := Handler(Config{Agent: agent, Key: key, Names: []string{"hub.local"}, Metrics: obs.NewRegistry(), Log: vmstest.Log(t)})
			r := httptest.NewRequest(tt.method, "http://127.0.0.1:8090"+tt.path, strings.NewReader(tt.body))
			r.Header.Set("Authorization", "Bearer "+key)
			if tt.edit != nil {
				tt.edit(r)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != tt.want {
				t.Fatalf("status %d, want %d: %s", w.Code, tt.want, w.Body)
			}
			if tt.want >= 400 && w.Header().Get("Content-Type") != problem.ContentType {
				t.Errorf("a refusal of type %q", w.Header().Get("Content-Type"))
			}
			if (len(agent.started) == 1) != (tt.want == 201) {
				t.Errorf("%d streams started", len(agent.started))
			}
			if (len(agent.events) == 1) != (tt.want == 202) {
				t.Errorf("%d events", len(agent.events))
			}
			if tt.want == 405 && w.Header().Get("Allow") == "" {
				t.Error("405 without Allow (RFC 9110, section 15.5.6)")
			}
			if strings.Contains(w.Body.String(), key) {
				t.Error("the answer tells the key")
			}
		})
	}
}

// TestNoKeyNoAccess: an agent that has lost its LAN key lets nobody in.
func TestNoKeyNoAccess(t *testing.T) {
	h := Handler(Config{Agent: &fakeAgent{}, Metrics: obs.NewRegistry(), Log: vmstest.Log(t)})
	for _, auth := range []string{"", "Bearer ", "Bearer x"} {
		r := httptest.NewRequest("GET", "http://127.0.0.1/v1/status", nil)
		r.Header.Set("Authorization", auth)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 401 {
			t.Errorf("%q: status %d", auth, w.Code)
		}
	}
}

func TestErrorsOfTheAgentHaveTheirStatus(t *testing.T) {
	for err, want := range map[error]int{
		vms.ErrExpired: 401, vms.ErrUnauthorized: 401, vms.ErrForbidden: 403, vms.ErrInvalid: 400, vms.ErrUnavailable: 503, vms.ErrConflict: 409, io.ErrShortWrite: 500,
	} {
		h := Handler(Config{Agent: &fakeAgent{err: fmt.Errorf("%w: because of the test", err)}, Key: key, Metrics: obs.NewRegistry(), Log: vmstest.Log(t)})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "http://127.0.0.1/v1/streams", strings.NewReader(`{"token":"t","camera":{}}`)))
		if w.Code != want || (want != 500) != strings.Contains(w.Body.String(), "because of the test") {
			t.Errorf("%v: status %d %s, want %d", err, w.Code, w.Body, want)
		}
	}
}
