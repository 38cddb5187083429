package cloud_test

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

func config(t *testing.T) cloud.Config {
	return cloud.Config{Data: t.TempDir(), Listen: "127.0.0.1:0", S3Listen: "127.0.0.1:0", MQTTListen: "127.0.0.1:0", Log: vmstest.Log(t)}
}

// TestNewFailsCleanly: with a reason, and with nothing left open, so that the
// same directory opens at once when the cause is gone.
func TestNewFailsCleanly(t *testing.T) {
	noneLeft(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := config(t)
	for name, tt := range map[string]struct {
		change func(c *cloud.Config)
		says   string
	}{
		"taken port":          {func(c *cloud.Config) { c.Listen = taken.Addr().String() }, "VMS_LISTEN"},
		"taken S3 port":       {func(c *cloud.Config) { c.S3Listen = taken.Addr().String() }, "in use"},
		"no TLS":              {func(c *cloud.Config) { c.Listen = "0.0.0.0:0" }, "VMS_PUBLIC_URL"},
		"taken MQTT port":     {func(c *cloud.Config) { c.MQTTListen = taken.Addr().String() }, "VMS_MQTT_LISTEN"},
		"no such certificate": {func(c *cloud.Config) { c.MQTTCert, c.MQTTKey = "missing", "missing" }, "certificate"},
		"MQTT key is rubbish": {func(c *cloud.Config) { c.Data = badKey(t) }, "mqtt-key"},
		"no TLS for S3":       {func(c *cloud.Config) { c.S3Listen = ":0" }, "VMS_S3_PUBLIC_URL"},
		"plain public URL":    {func(c *cloud.Config) { c.Listen, c.PublicURL = "0.0.0.0:0", "http://vms.example" }, "https"},
		"no address":          {func(c *cloud.Config) { c.Listen = "here" }, "here"},
		"public URL":          {func(c *cloud.Config) { c.PublicURL = "vms.example" }, "VMS_PUBLIC_URL"},
		"too little room":     {func(c *cloud.Config) { c.WorkerBytes = 1 << 20 }, "unfinished"},
		"worker dir is file":  {func(c *cloud.Config) { c.WorkerDir = file(t) }, "worker directory"},
		"data dir is a file":  {func(c *cloud.Config) { c.Data = file(t) }, "director"},
		"no such uploader":    {func(c *cloud.Config) { c.Uploader = "ftp" }, "rclone"},
		"no rclone":           {func(c *cloud.Config) { c.Uploader, c.RcloneProgram = "rclone", "rclone-is-not-here" }, "apt install rclone"},
		"bad rclone remote": {func(c *cloud.Config) {
			c.Uploader, c.RcloneProgram, c.RcloneRemote = "rclone", "rclone", ":s3,secret_access_key=x:b"
		}, "VMS_RCLONE_REMOTE"},
		"bad mirror":          {func(c *cloud.Config) { c.Mirror = "rtsp://me:secret@h/all" }, "{channel}"},
		"no cluster key":      {func(c *cloud.Config) { c.ClusterKeyFile = "missing" }, "cluster key"},
		"database is rubbish": {func(c *cloud.Config) { c.Data = rubbish(t) }, "database"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := cfg
			tt.change(&bad)
			c, err := cloud.New(t.Context(), bad)
			if err == nil {
				t.Fatalf("New opened %s", c.URL())
			}
			if !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "secret@") {
				t.Errorf("New = %q, want it to say %q", err, tt.says)
			}
			if c != nil {
				t.Error("New returned a Cloud and an error")
			}
		})
	}
	run(t, cfg).end(t)
}

func file(t *testing.T) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func rubbish(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vms.db"), []byte(strings.Repeat("rubbish ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func badKey(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mqtt-key"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// running is a cloud that runs.
type running struct {
	c    *cloud.Cloud
	url  string
	stop context.CancelFunc
	done chan struct{}
	err  error // after done
}

func run(t *testing.T, cfg cloud.Config) *running {
	t.Helper()
	c, err := cloud.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	r := &running{c: c, url: c.URL(), stop: stop, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = c.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-r.done
	})
	return r
}

// end stops it; everybody who is connected must not delay that much.
func (r *running) end(t *testing.T) {
	t.Helper()
	r.stop()
	select {
	case <-r.done:
		if r.err != nil {
			t.Errorf("Run = %v", r.err)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("Run did not end within 15 s")
	}
}

func TestSecondProcessOnTheSameDataIsRefused(t *testing.T) {
	noneLeft(t)
	cfg := config(t)
	r := run(t, cfg)
	if c, err := cloud.New(t.Context(), cfg); err == nil {
		t.Errorf("New opened %s", c.URL())
	}
	// The first one goes on as if nothing had happened.
	resp, err := http.Get(r.url + "/healthz")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("healthz: %v, %v", resp, err)
	}
	if resp != nil {
		resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	r.end(t)
	run(t, cfg).end(t) // and after it another one may
}

// TestRunEndsWithEverybodyConnected: a lane, a viewer and a page that follows events.
func TestRunEndsWithEverybodyConnected(t *testing.T) {
	noneLeft(t)
	cfg := config(t)
	r := run(t, cfg)
	ws := "ws" + strings.TrimPrefix(r.url, "http")
	admin, err := os.ReadFile(filepath.Join(cfg.Data, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	bearer := http.Header{"Authorization": {"Bearer " + strings.TrimSpace(string(admin))}}
	seed, err := os.ReadFile(filepath.Join(cfg.Data, "signing-key"))
	if err != nil {
		t.Fatal(err)
	}
	if seed, err = hex.DecodeString(strings.TrimSpace(string(seed))); err != nil {
		t.Fatal(err)
	}
	signer, err := token.NewSigner(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		t.Fatal(err)
	}

	ticket, err := signer.SignPush(token.Push{Worker: "worker_local", Channel: "ch", SID: "sid", Hub: "hub", Generation: 1, Expires: time.Now().Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	lane, _, err := websocket.Dial(t.Context(), ws+"/push/v1", &websocket.DialOptions{
		Subprotocols: []string{wire.PushProtocol}, HTTPHeader: http.Header{"Authorization": {"Bearer " + ticket}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer lane.CloseNow()
	if err := lane.Write(t.Context(), websocket.MessageText, []byte(`{"type":"hello","lane":"live"}`)); err != nil {
		t.Fatal(err)
	}
	if m := read(t, lane); m["type"] != "welcome" {
		t.Fatalf("lane: %v", m)
	}

	view, err := signer.SignView(token.View{Worker: "worker_local", Channel: "ch", Expires: time.Now().Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	viewer, _, err := websocket.Dial(t.Context(), ws+"/live/v1/mse?ticket="+view, &websocket.DialOptions{Subprotocols: []string{"vms.mse.v1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer viewer.CloseNow()
	if m := read(t, viewer); m["type"] != "offline" {
		t.Fatalf("viewer: %v", m)
	}

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/api/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = bearer
	events, err := http.DefaultClient.Do(req)
	if err != nil || events.StatusCode != http.StatusOK {
		t.Fatalf("events: %v, %v", events, err)
	}
	defer events.Body.Close()

	begin := time.Now()
	r.stop()
	// The lane is sent to another worker, with the reason.
	m := read(t, lane)
	for m["type"] == "ack" {
		m = read(t, lane)
	}
	if m["type"] != "error" || m["code"] != wire.CodeDraining || m["class"] != string(wire.ClassReassign) {
		t.Errorf("lane: %v", m)
	}
	if _, _, err := lane.Read(t.Context()); int(websocket.CloseStatus(err)) != wire.ClassReassign.Code() {
		t.Errorf("lane closed with %v", err)
	}
	for err = nil; err == nil; { // perhaps it is told that the stream is offline, but then its socket ends
		_, _, err = viewer.Read(t.Context())
	}
	for s := bufio.NewScanner(events.Body); s.Scan(); {
	}
	r.end(t)
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("Run ended after %v", d)
	}
	http.DefaultClient.CloseIdleConnections()
}

func read(t *testing.T, c *websocket.Conn) map[string]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, data, err := c.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatalf("%q: %v", data, err)
	}
	return m
}

func TestHealth(t *testing.T) {
	noneLeft(t)
	r := run(t, config(t))
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		resp, err := http.Get(r.url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	r.end(t)
}

// noneLeft fails t if goroutines of ours, of the database or of an HTTP server
// are alive at its end. vmstest.NoLeaks would count one of fasthttp, below the
// embedded object store, that sleeps ten seconds before it sees that it should end.
func noneLeft(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		deadline := time.After(5 * time.Second)
		for {
			left := leftBehind()
			if left == "" {
				return
			}
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("left behind:\n%s", left)
			}
		}
	})
}

func leftBehind() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for i, g := range strings.Split(string(buf), "\n\n") {
		if i == 0 || strings.Contains(g, "testing.tRunner(") { // this one, and the test that waits for it
			continue
		}
		for _, whose := range []string{"github.com/zipato/vms/", "github.com/nats-io/", "github.com/eclipse/", "database/sql.", "net/http.(*Server)", "net/http.(*conn)"} {
			if strings.Contains(g, whose) {
				return g
			}
		}
	}
	return ""
}
