package cloud_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// freeAddress is where nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// page is the text of a page, and its headers.
func page(t *testing.T, url string) (string, http.Header) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), resp.Header
}

// TestSplit: a worker and an NVR that have nothing in common but sockets and two
// files. The worker is first; it takes nothing before it has a link.
func TestSplit(t *testing.T) {
	noneLeft(t)
	defer http.DefaultClient.CloseIdleConnections()
	atNVR, atStore := freeAddress(t), freeAddress(t)
	ncfg := config(t)
	ncfg.Roles, ncfg.Listen, ncfg.S3Listen = cloud.RoleAPI|cloud.RoleNVR, atNVR, atStore
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("a1", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ncfg.ClusterKeyFile = key
	for name, secret := range map[string]string{"s3-access-key": strings.Repeat("ab", 10), "s3-secret-key": strings.Repeat("cd", 20)} {
		if err := os.WriteFile(filepath.Join(ncfg.Data, name), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wcfg := cloud.Config{
		Roles: cloud.RoleWorker, Listen: "127.0.0.1:0", NVRURL: "ws://" + atNVR + "/workers/v1", ClusterKeyFile: key,
		S3:        cloud.S3Config{URL: "http://" + atStore, AccessKey: strings.Repeat("ab", 10), SecretKey: strings.Repeat("cd", 20)},
		WorkerDir: t.TempDir(), Zone: "fra1", Capacity: vms.WorkerCapacity{Streams: 7}, Version: "1.2.3", Log: vmstest.Log(t),
	}
	w := run(t, wcfg)
	checks := func(url string) (int, map[string]any) {
		status, v := get(t, ncfg, "GET", url+"/readyz", "")
		return status, v["checks"].(map[string]any)
	}
	// The token is the NVR's, which was not there yet; nobody asks for it here.
	if err := os.WriteFile(filepath.Join(ncfg.Data, "admin-token"), []byte(strings.Repeat("t", 43)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, c := checks(w.url); status != http.StatusServiceUnavailable || !strings.Contains(c["NVR"].(string), atNVR) || !strings.Contains(c["ticket keys"].(string), "no keys") {
		t.Errorf("without an NVR: %d %v", status, c)
	}
	if status, v := get(t, ncfg, "GET", w.url+"/push/v1", ""); status != http.StatusServiceUnavailable || v["type"] != wire.ProblemBusy {
		t.Errorf("push without keys: %d %v", status, v)
	}
	if status, _ := get(t, ncfg, "GET", w.url+"/healthz", ""); status != http.StatusOK {
		t.Errorf("healthz: %d; a restart would not help", status)
	}

	n := run(t, ncfg)
	eventually(t, "the worker is ready", func() bool {
		status, _ := checks(w.url)
		return status == http.StatusOK
	})
	if status, c := checks(n.url); status != http.StatusOK {
		t.Errorf("NVR: %d %v", status, c)
	}
	workers := func() []cloud.Worker {
		t.Helper()
		list, err := cloud.Workers(t.Context(), n.url, ncfg.Data)
		if err != nil {
			t.Fatal(err)
		}
		return list.Workers
	}
	list := workers()
	ws := strings.Replace(w.url, "http", "ws", 1)
	if len(list) != 1 || list[0].State != "up" || list[0].Zone != "fra1" || list[0].Version != "1.2.3" || list[0].Capacity.Streams != 7 ||
		list[0].PushURL != ws+"/push/v1" || list[0].LiveURL != ws+"/live/v1/mse" {
		t.Fatalf("workers %+v", list)
	}
	id := list[0].ID
	metrics, _ := page(t, n.url+"/metrics")
	for _, line := range []string{`vms_nvr_workers{state="up"} 1`, `vms_nvr_workers{state="lost"} 0`, "vms_nvr_workers_wanted 1", `vms_nvr_streams{worker="` + string(id) + `"} 0`} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("no %s in\n%s", line, metrics)
		}
	}
	if strings.Contains(metrics, "vms_worker_") {
		t.Error("an NVR has metrics of a worker")
	}
	if metrics, _ := page(t, w.url+"/metrics"); !strings.Contains(metrics, "vms_worker_lanes 0\n") || strings.Contains(metrics, "vms_nvr_") {
		t.Errorf("metrics of the worker:\n%s", metrics)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "rebound.example"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("metrics under a foreign name: %s", resp.Status)
	}
	for _, path := range []string{"/push/v1", "/live/v1/mse"} {
		if text, _ := page(t, n.url+path); text != "not found\n" {
			t.Errorf("an NVR without a worker has %s: %q", path, text)
		}
	}
	if _, h := page(t, n.url+"/"); !strings.Contains(h.Get("Content-Security-Policy"), " wss:") {
		t.Errorf("the page cannot reach workers: %s", h.Get("Content-Security-Policy"))
	}

	// The NVR's tickets are good there, of others nothing is.
	seed, err := os.ReadFile(filepath.Join(ncfg.Data, "signing-key"))
	if err != nil {
		t.Fatal(err)
	}
	if seed, err = hex.DecodeString(strings.TrimSpace(string(seed))); err != nil {
		t.Fatal(err)
	}
	watch := func(private ed25519.PrivateKey) error {
		t.Helper()
		signer, err := token.NewSigner(private)
		if err != nil {
			t.Fatal(err)
		}
		ticket, err := signer.SignView(token.View{Worker: id, Channel: "ch", Expires: time.Now().Add(time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		// The page is the NVR's.
		c, _, err := websocket.Dial(t.Context(), ws+"/live/v1/mse?ticket="+ticket, &websocket.DialOptions{
			Subprotocols: []string{"vms.mse.v1"}, HTTPHeader: http.Header{"Origin": {n.url}},
		})
		if err == nil {
			c.CloseNow()
		}
		return err
	}
	if err := watch(ed25519.NewKeyFromSeed(seed)); err != nil {
		t.Errorf("viewer: %v", err)
	}
	if err := watch(ed25519.NewKeyFromSeed(make([]byte, 32))); err == nil {
		t.Error("a viewer with a forged ticket is let in")
	}

	// Told to end, it says so to the NVR: it is not lost. With its directory it is
	// the same worker again.
	w.end(t)
	eventually(t, "the worker has left", func() bool { return len(workers()) == 0 })
	w = run(t, wcfg)
	eventually(t, "the worker is back", func() bool { l := workers(); return len(l) == 1 && l[0].State == "up" })
	if again := workers()[0]; again.ID != id || again.Instance == list[0].Instance {
		t.Errorf("it is %s %s, was %s %s", again.ID, again.Instance, id, list[0].Instance)
	}

	// Drained over the API it ends by itself, when the last lane is over.
	push := func(ch vms.ChannelID) (*websocket.Conn, *http.Response, error) {
		t.Helper()
		signer, err := token.NewSigner(ed25519.NewKeyFromSeed(seed))
		if err != nil {
			t.Fatal(err)
		}
		ticket, err := signer.SignPush(token.Push{Worker: id, Channel: ch, SID: "sid", Hub: "hub", Generation: 1, Expires: time.Now().Add(time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		return websocket.Dial(t.Context(), strings.Replace(w.url, "http", "ws", 1)+"/push/v1", &websocket.DialOptions{
			Subprotocols: []string{wire.PushProtocol}, HTTPHeader: http.Header{"Authorization": {"Bearer " + ticket}},
		})
	}
	lane, _, err := push("ch")
	if err != nil {
		t.Fatal(err)
	}
	lane.SetReadLimit(-1)
	defer lane.CloseNow()
	if err := lane.Write(t.Context(), websocket.MessageText, []byte(`{"type":"hello","lane":"live"}`)); err != nil {
		t.Fatal(err)
	}
	if m := read(t, lane); m["type"] != "welcome" {
		t.Fatalf("lane: %v", m)
	}
	if _, err := cloud.DrainWorker(t.Context(), n.url, ncfg.Data, "worker_none"); err == nil || !strings.Contains(err.Error(), "worker_none") {
		t.Errorf("drain of nobody: %v", err)
	}
	if drained, err := cloud.DrainWorker(t.Context(), n.url, ncfg.Data, string(id)); err != nil || drained.State != "draining" {
		t.Errorf("drain: %+v, %v", drained, err)
	}
	eventually(t, "it is not ready", func() bool {
		status, _ := checks(w.url)
		return status == http.StatusServiceUnavailable
	})
	if c, resp, err := push("other"); err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a worker that drains takes a stream: %v, %v", c, err)
	}
	eventually(t, "the lane is seen at the NVR", func() bool {
		l := workers()
		return len(l) == 1 && l[0].State == "draining" && l[0].Load.Lanes == 1
	})
	if err := lane.Write(t.Context(), websocket.MessageText, []byte(`{"type":"end","epoch":"0123456789abcdef","seq":1,"cause":"stopped"}`)); err != nil {
		t.Fatal(err)
	}
	if err := lane.Close(websocket.StatusNormalClosure, "done"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.done:
		if w.err != nil {
			t.Errorf("Run = %v", w.err)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("a drained worker did not end within 15 s")
	}
	eventually(t, "the drained worker has left", func() bool { return len(workers()) == 0 })
	metrics, _ = page(t, n.url+"/metrics")
	if strings.Contains(metrics, "vms_nvr_streams{") {
		t.Errorf("the worker that left is in\n%s", metrics)
	}
	n.end(t)
}

// TestAllInOneIsJoined: an all-in-one takes other workers too, drains like one of
// them, and does not end by that, for it is the NVR still.
func TestAllInOneIsJoined(t *testing.T) {
	noneLeft(t)
	defer http.DefaultClient.CloseIdleConnections()
	ncfg := config(t)
	ncfg.S3Listen, ncfg.WorkerID, ncfg.Zone = freeAddress(t), "main", "here"
	n := run(t, ncfg)
	states := func() string {
		t.Helper()
		list, err := cloud.Workers(t.Context(), n.url, ncfg.Data)
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, w := range list.Workers {
			s = append(s, string(w.ID)+" "+w.State)
		}
		return strings.Join(s, ", ")
	}
	if got := states(); got != "main up" {
		t.Errorf("workers %q", got)
	}
	if _, h := page(t, n.url+"/"); strings.Contains(h.Get("Content-Security-Policy"), " wss: ") {
		t.Errorf("the page may reach more than it needs: %s", h.Get("Content-Security-Policy"))
	}
	wcfg := cloud.Config{
		Roles: cloud.RoleWorker, Listen: "127.0.0.1:0", NVRURL: "ws" + strings.TrimPrefix(n.url, "http") + "/workers/v1", Data: ncfg.Data,
		S3: cloud.S3Config{URL: "http://" + ncfg.S3Listen}, WorkerDir: t.TempDir(), WorkerID: "other", Log: vmstest.Log(t),
	}
	w := run(t, wcfg)
	eventually(t, "both are up", func() bool { return states() == "main up, other up" })
	if _, h := page(t, n.url+"/"); !strings.Contains(h.Get("Content-Security-Policy"), " wss: ") {
		t.Errorf("the page cannot reach the other worker: %s", h.Get("Content-Security-Policy"))
	}

	if _, err := cloud.DrainWorker(t.Context(), n.url, ncfg.Data, "main"); err != nil {
		t.Error(err)
	}
	eventually(t, "the own worker drains", func() bool { return states() == "main draining, other up" })
	resp, err := http.Get(n.url + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("readyz of the NVR: %s", resp.Status)
	}
	select {
	case <-n.done:
		t.Fatal("the NVR ended because its worker drained")
	default:
	}
	n.end(t) // it drains first, which without streams takes no time
	w.end(t) // the NVR is away, and there is nothing to move
}

// TestWrongClusterKey: such a worker is not let in, and says why.
func TestWrongClusterKey(t *testing.T) {
	noneLeft(t)
	defer http.DefaultClient.CloseIdleConnections()
	ncfg := config(t)
	ncfg.Roles, ncfg.S3Listen = cloud.RoleAPI|cloud.RoleNVR, freeAddress(t)
	n := run(t, ncfg)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("a1", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	var log lockedLog
	w := run(t, cloud.Config{
		Roles: cloud.RoleWorker, Listen: "127.0.0.1:0", NVRURL: "ws" + strings.TrimPrefix(n.url, "http") + "/workers/v1", Data: ncfg.Data,
		ClusterKeyFile: key, S3: cloud.S3Config{URL: "http://" + ncfg.S3Listen}, WorkerDir: t.TempDir(), Log: log.logger(),
	})
	eventually(t, "the worker says why", func() bool { return strings.Contains(log.text(), "VMS_CLUSTER_KEY_FILE") })
	if list, err := cloud.Workers(t.Context(), n.url, ncfg.Data); err != nil || len(list.Workers) != 0 {
		t.Errorf("workers %+v, %v", list, err)
	}
	w.end(t)
	n.end(t)
}

// lockedLog keeps what is logged.
type lockedLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lockedLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lockedLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
