package cloud_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud"
	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

const (
	s3Key, s3Secret = "key-of-the-test", "secret-of-the-test"
	s3Bucket        = "elsewhere"
)

// eventually polls until ok, or fails t.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// get reads a JSON answer of the API.
func get(t *testing.T, cfg cloud.Config, method, url, body string) (int, map[string]any) {
	t.Helper()
	admin, err := os.ReadFile(filepath.Join(cfg.Data, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(admin)))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var v map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, v
}

// TestObjectStoreElsewhere: the cloud starts while the store is away, says so,
// and works once it is there; it finds what nobody told it of.
func TestObjectStoreElsewhere(t *testing.T) {
	noneLeft(t)
	defer http.DefaultClient.CloseIdleConnections()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil { // away
		t.Fatal(err)
	}
	cfg := config(t)
	cfg.S3 = cloud.S3Config{URL: "http://" + addr, Bucket: s3Bucket, AccessKey: s3Key, SecretKey: s3Secret}
	cfg.ReconcileEvery = 50 * time.Millisecond
	r := run(t, cfg)
	ready := func() (bool, string) {
		status, v := get(t, cfg, "GET", r.url+"/readyz", "")
		checks := v["checks"].(map[string]any)
		return status == http.StatusOK, checks["object store"].(string)
	}
	if ok, says := ready(); ok || says == "ok" {
		t.Errorf("without its store it is ready: %s", says)
	}
	if status, v := get(t, cfg, "GET", r.url+"/healthz", ""); status != http.StatusOK {
		t.Errorf("healthz: %v; a restart would not help", v)
	}
	status, ch := get(t, cfg, "POST", r.url+"/api/v1/channels", `{"name":"Door","camera":{"url":"rtsp://192.0.2.4/s"}}`)
	if status != http.StatusCreated {
		t.Fatalf("channel: %d %v", status, ch)
	}

	store, err := embed.StartS3(t.Context(), embed.S3Config{Dir: t.TempDir(), Addr: addr, AccessKey: s3Key, SecretKey: s3Secret, Bucket: s3Bucket, Log: vmstest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	defer func() {
		r.end(t)
		stop()
		if err := <-done; err != nil {
			t.Errorf("store: %v", err)
		}
		if err := store.Close(); err != nil {
			t.Errorf("store: %v", err)
		}
	}()
	eventually(t, "it is ready", func() bool { ok, _ := ready(); return ok })

	client, err := s3.New(s3.Config{Endpoint: "http://" + addr, Bucket: s3Bucket, AccessKey: s3Key, SecretKey: s3Secret})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	id := vms.ChannelID(ch["id"].(string))
	start := time.Now().UTC().Add(-time.Minute).Truncate(time.Millisecond)
	put := func(first, last uint64, part bool) {
		t.Helper()
		body := bytes.Repeat([]byte{byte(first), byte(last)}, 500)
		rec := vms.Recording{
			Channel: id, Chunks: vms.ChunkRange{Epoch: 5, First: first, Last: last}, Start: start.Add(time.Duration(first) * time.Second),
			End: start.Add(time.Duration(last+1) * time.Second), Media: time.Duration(last+1-first) * time.Second,
			Bytes: int64(len(body)), SHA256: sha256.Sum256(body), HeadLen: 90, InitLen: 60, Codecs: "avc1.64001f",
		}
		rec.Key = vms.RecordingKey(id, rec.Start, 0)
		if part {
			rec.Key = vms.PartKey(id, rec.Chunks, 0)
		}
		if err := client.Put(t.Context(), rec.Key, objstore.PutInput{
			Body: bytes.NewReader(body), Size: rec.Bytes, SHA256: rec.SHA256, ContentType: objstore.RecordingType,
			Metadata: objstore.RecordingMetadata(rec), IfAbsent: true,
		}); err != nil {
			t.Fatal(err)
		}
	}
	recordings := func() []any {
		_, page := get(t, cfg, "GET", r.url+"/api/v1/channels/"+string(id)+"/recordings", "")
		return page["recordings"].([]any)
	}
	put(1, 10, true)
	put(11, 15, true)
	eventually(t, "both parts are registered", func() bool { return len(recordings()) == 2 })
	part := recordings()[0].(map[string]any)
	if part["provisional"] != true {
		t.Errorf("part: %v", part)
	}
	put(1, 20, false)
	eventually(t, "the whole has taken their place", func() bool {
		rs := recordings()
		return len(rs) == 1 && rs[0].(map[string]any)["provisional"] == nil
	})
	resp, err := http.Get(part["url"].(string)) // somebody has it open still
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 1000 || resp.StatusCode != http.StatusOK {
		t.Errorf("the part by its URL: %s, %d bytes, %v", resp.Status, n, err)
	}
}

func TestObjectStoreElsewhereIsChecked(t *testing.T) {
	good := cloud.S3Config{URL: "http://127.0.0.1:1", AccessKey: "a", SecretKey: "b"}
	for name, tt := range map[string]struct {
		change func(*cloud.Config)
		says   string
	}{
		"no URL":         {func(c *cloud.Config) { c.S3.URL = "s3.example" }, "VMS_S3_URL"},
		"no keys":        {func(c *cloud.Config) { c.S3.SecretKey = "" }, "VMS_S3_SECRET_KEY"},
		"in the clear":   {func(c *cloud.Config) { c.S3.URL = "http://s3.example" }, "https"},
		"with a path":    {func(c *cloud.Config) { c.S3.URL = "https://s3.example/x" }, "scheme, host and port"},
		"no bucket name": {func(c *cloud.Config) { c.S3.Bucket = "A" }, "bucket"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			cfg.S3 = good
			tt.change(&cfg)
			c, err := cloud.New(t.Context(), cfg)
			if err == nil {
				t.Fatalf("New opened %s", c.URL())
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("New = %q, want it to say %q", err, tt.says)
			}
		})
	}
}
