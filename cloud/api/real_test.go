package api_test

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"iter"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	_ "time/tzdata" // the zones must be there, whatever machine this runs on

	"github.com/zipato/vms/cloud/api"
	"github.com/zipato/vms/cloud/auth"
	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/store"
	"github.com/zipato/vms/pkg/seal"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

const bearer = "vms_0123456789012345678901234567890123456789012"

// objects is a bucket that signs anything.
type objects struct{}

func (objects) Stat(context.Context, string) (vms.Recording, error) {
	return vms.Recording{}, vms.ErrNotFound
}
func (objects) List(context.Context, string, string) iter.Seq2[string, error] {
	return func(func(string, error) bool) {}
}
func (objects) Delete(context.Context, string) error { return nil }
func (objects) PresignGet(_ context.Context, key string, expiry time.Duration, _ string) (string, time.Time, error) {
	return "http://127.0.0.1:9000/vms/" + key + "?X-Amz-Signature=x", time.Now().Add(expiry), nil
}

func (objects) PresignPut(_ context.Context, key string, expiry time.Duration, _ string) (string, time.Time, error) {
	return "http://127.0.0.1:9000/vms/" + key + "?X-Amz-Signature=put", time.Now().Add(expiry), nil
}

// hub is a hub on its control line: it does at once what it is told, refuses, or
// says nothing at all.
type hub struct {
	t       *testing.T
	nvr     *nvr.NVR
	session nvr.Session
	key     ed25519.PrivateKey

	mu      sync.Mutex
	silent  bool
	refuses bool
	serial  int64
	cameras map[vms.ChannelID]vms.Camera // of the streams that run
}

func (h *hub) Send(m wire.SessionMessage) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.silent {
		return
	}
	switch m := m.(type) {
	case *wire.Desired:
		h.nvr.HubReported(context.Background(), h.session, h.obey(m))
	case *wire.Command:
		h.nvr.CommandReplied(&wire.CommandReply{ID: m.ID, OK: true, Result: json.RawMessage(`{"bytes":7}`)}, h.session.Hub)
	}
}

func (h *hub) obey(d *wire.Desired) *wire.Reported {
	h.serial++
	r := &wire.Reported{Hub: d.Hub, Boot: "boot_1", Online: true, Serial: h.serial, At: time.Now(), Agent: "test", Revision: d.Revision, State: wire.InSync}
	h.cameras = make(map[vms.ChannelID]vms.Camera)
	for _, s := range d.Streams {
		item := wire.ReportedItem{Channel: s.Channel, SID: s.SID, Origin: wire.OriginCloud, Mode: s.Mode, State: wire.InSync}
		plain, err := seal.Open(h.key, "camera/"+string(s.Channel), s.Camera)
		var cam vms.Camera
		if err == nil {
			err = json.Unmarshal(plain, &cam)
		}
		if err != nil {
			h.t.Errorf("camera of channel %s: %v", s.Channel, err)
		}
		switch {
		case s.Active && h.refuses:
			r.State, item.State, item.Problem = wire.Failed, wire.Failed, "no room for another camera"
		case s.Active:
			h.cameras[s.Channel] = cam
			item.Running, item.Recording, item.Stream = true, true, wire.StateStarting
		}
		r.Streams = append(r.Streams, item)
	}
	return r
}

func (*hub) Revoke(string) {}

func (h *hub) set(silent, refuses bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.silent, h.refuses = silent, refuses
}

func (h *hub) running() map[vms.ChannelID]vms.Camera {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cameras
}

// cloud is the API on the real rules.
type cloud struct {
	t   *testing.T
	nvr *nvr.NVR
	srv *httptest.Server
}

func newCloud(t *testing.T) *cloud {
	t.Helper()
	vmstest.NoLeaks(t)
	st, err := store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "vms.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := token.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	n, err := nvr.New(nvr.Config{
		Store: st, Objects: objects{}, Tokens: signer, SecretKey: make([]byte, 32),
		NVRURL: "ws://127.0.0.1:8080/session/v1", Log: vmstest.Log(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	a, err := auth.New(auth.Config{Account: "demo", Token: bearer, Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(api.New(api.Config{NVR: n, Auth: a, Log: vmstest.Log(t)}))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		srv.Close()
		stop()
		<-done
	})
	return &cloud{t, n, srv}
}

// call sends a request and decodes the answer, which must have that status.
func (c *cloud) call(method, path, body string, status int) map[string]any {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.srv.URL+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.srv.Client().Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	var v map[string]any
	if resp.ContentLength != 0 && resp.StatusCode != http.StatusNoContent {
		if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
			c.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	if resp.StatusCode != status {
		c.t.Fatalf("%s %s: status %d, want %d: %v", method, path, resp.StatusCode, status, v)
	}
	return v
}

// TestFromHubToRecording goes the way of a new account: a hub, a channel, a
// stream, its recordings, and the end of all that.
func TestFromHubToRecording(t *testing.T) {
	c := newCloud(t)
	created := c.call("POST", "/api/v1/hubs", `{"name":"Villa"}`, 201)
	hubID := created["id"].(string)
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	enrol := `{"code":"` + created["enrolment_code"].(string) + `","public_key":"` + base64.RawURLEncoding.EncodeToString(pub) + `"}`
	e := c.call("POST", "/api/v1/enroll", enrol, 201)
	if e["hub_id"] != hubID || e["nvr_url"] != "ws://127.0.0.1:8080/session/v1" {
		t.Errorf("enrolment %v", e)
	}
	keys, _ := json.Marshal(e["token_keys"])
	if _, err := token.ParseJWKS(keys); err != nil {
		t.Errorf("token keys: %v", err)
	}
	c.call("POST", "/api/v1/enroll", enrol, 401) // spent

	ch := c.call("POST", "/api/v1/channels", `{"name":"Front door","hub_id":"`+hubID+`","camera":{"url":"rtsp://viewer:hunter2@192.0.2.4/s"}}`, 201)
	path := "/api/v1/channels/" + ch["id"].(string)
	if cam := ch["camera"].(map[string]any); cam["url"] != "rtsp://192.0.2.4/s" || cam["username"] != "viewer" || cam["has_password"] != true {
		t.Errorf("camera %v", cam)
	}
	if ch["state"] != "idle" || ch["mode"] != "on_demand" {
		t.Errorf("channel %v", ch)
	}

	for _, body := range []string{"", `{"wait_s":1,"when_offline":"refuse"}`} {
		p := c.call("POST", path+"/start", body, 409)
		if !strings.Contains(p["detail"].(string), "offline") {
			t.Errorf("409 without the cause: %v", p)
		}
	}
	if got := c.call("GET", path, "", 200); got["wanted"] != false {
		t.Errorf("a start that was refused changed the channel: %v", got)
	}
	c.call("POST", "/api/v1/hubs/"+hubID+"/commands", `{"kind":"doctor"}`, 409)
	events := c.follow()
	session := nvr.Session{Account: "demo", Hub: vms.HubID(hubID)}
	h := &hub{t: t, nvr: c.nvr, session: session, key: key}
	chID := vms.ChannelID(ch["id"].(string))
	c.nvr.HubConnected(session, "boot_1", h)
	if e := <-events; e != "hub_online" {
		t.Errorf("event %q, want hub_online", e)
	}
	h.set(false, true)
	p := c.call("POST", path+"/start", `{"wait_s":20}`, 409)
	if !strings.Contains(p["detail"].(string), "no room for another camera") {
		t.Errorf("409 without the hub's reason: %v", p)
	}
	h.set(false, false)
	c.call("POST", path+"/stop", `{"wait_s":20}`, 200)
	order := c.call("POST", path+"/start", `{"timeout_s":3600,"wait_s":20}`, 200)
	if order["state"] != "IN_SYNC" || order["running"] != true || order["hub_online"] != true || order["stream"] != "starting" {
		t.Errorf("order %v", order)
	}
	if cam := h.running()[chID]; cam.Password != "hunter2" || cam.URL != "rtsp://viewer:hunter2@192.0.2.4/s" {
		t.Errorf("the hub pulls %+v", cam)
	}
	got := c.call("GET", path, "", 200)
	if got["wanted"] != true || got["wanted_by"] != "request" || got["wanted_until"] == nil || got["sync_state"] != "IN_SYNC" || got["recording"] != true {
		t.Errorf("started channel %v", got)
	}
	hubNow := c.call("GET", "/api/v1/hubs/"+hubID, "", 200)
	if rep := hubNow["reported"].(map[string]any); rep["revision"] != hubNow["revision"] || rep["revision"] != order["revision"] || rep["agent"] != "test" || hubNow["mqtt"] != false || hubNow["online"] != true {
		t.Errorf("hub %v after order %v", hubNow, order)
	}
	h.set(true, false)
	if p := c.call("POST", path+"/stop", `{"wait_s":1}`, 504); p["detail"] != "The hub did not answer in time. The order stands: the hub obeys it when it hears of it." {
		t.Errorf("504 without the cause: %v", p)
	}
	if p := c.call("POST", "/api/v1/hubs/"+hubID+"/commands", `{"kind":"event","timeout_s":1}`, 504); p["detail"] != "The hub did not answer in time. Whether it obeyed is not known." {
		t.Errorf("504 without the cause: %v", p)
	}
	h.set(false, false)
	c.call("POST", path+"/start", "", 202)

	answer := c.call("POST", "/api/v1/hubs/"+hubID+"/commands", `{"kind":"snapshot","channel_id":"`+string(chID)+`"}`, 200)
	if r := answer["result"].(map[string]any); answer["ok"] != true || r["bytes"] != 7.0 || r["url_expires_at"] == nil || !strings.HasPrefix(r["url"].(string), "http://127.0.0.1:9000/vms/snapshots/"+string(chID)+"/") {
		t.Errorf("snapshot %v", answer)
	}
	c.call("POST", "/api/v1/hubs/"+hubID+"/commands", `{"kind":"snapshot"}`, 422)
	c.call("POST", "/api/v1/hubs/"+hubID+"/commands", `{"kind":"restart-stream","channel_id":"ch_none"}`, 422)
	c.call("POST", "/api/v1/hubs/hub_none/commands", `{"kind":"doctor"}`, 404)

	changed := c.call("PATCH", "/api/v1/hubs/"+hubID, `{"time_zone":"Europe/Zagreb","limits":{"uplink":"mon-fri 08:00-18:00=1M, none"}}`, 200)
	if changed["time_zone"] != "Europe/Zagreb" || changed["limits"].(map[string]any)["uplink"] != "mon-fri 08:00-18:00=1M, none" || changed["revision"].(float64) <= order["revision"].(float64) {
		t.Errorf("changed hub %v", changed)
	}
	c.call("PATCH", "/api/v1/hubs/"+hubID, `{"time_zone":"Europe/Atlantis"}`, 422)
	c.call("PATCH", "/api/v1/hubs/"+hubID, `{"zone":"Frankfurt 1"}`, 422)
	if got := c.call("PATCH", "/api/v1/hubs/"+hubID, `{"zone":"fra1"}`, 200); got["zone"] != "fra1" || got["time_zone"] != "Europe/Zagreb" {
		t.Errorf("hub in a zone %v", got)
	}
	c.call("POST", "/api/v1/workers/worker_none/drain", "", 404)
	c.call("PATCH", "/api/v1/hubs/"+hubID, `{"limits":{"uplink":"fast"}}`, 422)
	c.call("PATCH", path, `{"mode":"scheduled"}`, 422)
	c.call("PATCH", path, `{"mode":"scheduled","schedule":"mon-fry"}`, 422)
	if got := c.call("PATCH", path, `{"mode":"scheduled","schedule":"mon-fri 08:00-18:00"}`, 200); got["schedule"] != "mon-fri 08:00-18:00" || got["wanted_by"] != "" {
		t.Errorf("scheduled channel %v", got)
	}
	c.call("PATCH", path, `{"mode":"event","pre_roll_s":10,"schedule":null}`, 200)

	c.call("GET", path+"/live", "", 503)
	tok := c.call("POST", path+"/token", "", 201)
	if tok["token"] == "" || tok["sid"] == "" || tok["nvr_url"] != "ws://127.0.0.1:8080/session/v1" {
		t.Errorf("token %v", tok)
	}

	startAt := time.Now().UTC().Add(-time.Minute).Truncate(time.Second)
	for i := range 3 {
		at := startAt.Add(time.Duration(i) * 10 * time.Second)
		r := vms.Recording{
			Channel: chID, Key: vms.RecordingKey(chID, at, uint32(i)), Number: uint32(i),
			Chunks: vms.ChunkRange{Epoch: 1, First: uint64(i)*50 + 1, Last: uint64(i)*50 + 50},
			Start:  at, End: at.Add(10 * time.Second), Media: 10 * time.Second, Bytes: 1000, HeadLen: 100, InitLen: 50, Codecs: "avc1.64001f",
		}
		r.SHA256[0] = byte(i + 1)
		if i == 2 { // the last one is not complete yet
			r.Key = vms.PartKey(r.Channel, r.Chunks, r.Number)
		}
		if err := c.nvr.RecordingUploaded(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if e := <-events; e != "recording" {
			t.Errorf("event %q, want recording", e)
		}
	}
	query := path + "/recordings?limit=2&from=" + startAt.Format(time.RFC3339) + "&to=" + startAt.Add(30*time.Second).Format(time.RFC3339)
	page := c.call("GET", query, "", 200)
	if rs := page["recordings"].([]any); len(rs) != 2 || rs[0].(map[string]any)["provisional"] != nil {
		t.Errorf("recordings on the first page: %v, want 2 whole ones", rs)
	}
	page = c.call("GET", query+"&cursor="+page["next_cursor"].(string), "", 200)
	rest := page["recordings"].([]any)
	if len(rest) != 1 || page["next_cursor"] != nil || rest[0].(map[string]any)["provisional"] != true {
		t.Fatalf("second page %v", page)
	}
	if r := rest[0].(map[string]any); r["start"] != startAt.Add(20*time.Second).Format("2006-01-02T15:04:05.000Z") || r["media_ms"] != 10000.0 || !strings.HasPrefix(r["url"].(string), "http://127.0.0.1:9000/") {
		t.Errorf("recording %v", r)
	}
	c.call("GET", query+"&cursor=nonsense", "", 422)

	ch = c.call("PATCH", path, `{"name":"Back door","camera":{"host":"192.0.2.5","url":null}}`, 200)
	if cam := ch["camera"].(map[string]any); ch["name"] != "Back door" || cam["host"] != "192.0.2.5" || cam["has_password"] != false {
		t.Errorf("changed channel %v, want the password gone with the address", ch)
	}
	c.call("PATCH", path, `{"camera":{"host":"a b"}}`, 422)
	c.call("DELETE", path, "", 204)
	c.call("GET", path, "", 404)
	c.call("DELETE", "/api/v1/hubs/"+hubID, "", 204)
	c.call("GET", "/api/v1/hubs/"+hubID, "", 404)
}

// follow opens the event stream and yields the names of events.
func (c *cloud) follow() <-chan string {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	c.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", c.srv.URL+"/api/v1/events", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	resp, err := c.srv.Client().Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	names := make(chan string, 100)
	first := make(chan struct{})
	go func() {
		defer resp.Body.Close()
		defer close(names)
		for s := bufio.NewScanner(resp.Body); s.Scan(); {
			if strings.HasPrefix(s.Text(), "retry:") {
				close(first)
			}
			if name, ok := strings.CutPrefix(s.Text(), "event: "); ok {
				names <- name
			}
		}
	}()
	<-first
	return names
}
