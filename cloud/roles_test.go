package cloud

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/pkg/vms"
)

func TestRoles(t *testing.T) {
	for text, want := range map[string]Roles{
		"all": AllRoles, "api,nvr": RoleAPI | RoleNVR, "nvr, api": RoleAPI | RoleNVR, "worker": RoleWorker,
		"api,nvr,worker": AllRoles, "worker,worker": RoleWorker,
		"": 0, "api": 0, "nvr": 0, "nvr,worker": 0, "clips": 0, "worker,": 0,
	} {
		r, err := ParseRoles(text)
		if (err == nil) != (want != 0) || err == nil && r != want || err != nil && !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("%q: %v, %v", text, r, err)
		}
		if again, err := ParseRoles(r.String()); want != 0 && (err != nil || again != r) {
			t.Errorf("%q is written %q", text, r)
		}
	}
}

// alone is a good configuration of a worker alone, with a change.
func alone(t *testing.T, change func(*Config)) Config {
	c := Config{
		Roles: RoleWorker, Listen: "127.0.0.1:0", Data: t.TempDir(), WorkerDir: t.TempDir(), NVRURL: "ws://127.0.0.1:1/workers/v1",
		S3: S3Config{URL: "http://127.0.0.1:2", AccessKey: "a", SecretKey: "b"},
	}
	change(&c)
	return c
}

// TestWorkerAloneIsChecked: what is missing is named, and how to get it.
func TestWorkerAloneIsChecked(t *testing.T) {
	far := func(c *Config) {
		c.NVRURL, c.Listen, c.PublicURL = "wss://vms.example/workers/v1", "0.0.0.0:0", "https://w1.example"
	}
	for name, tt := range map[string]struct {
		change func(c *Config)
		says   string // empty: it is good
	}{
		"good":                          {func(*Config) {}, ""},
		"no NVR":                        {func(c *Config) { c.NVRURL = "" }, "-nvr-url"},
		"NVR over HTTP":                 {func(c *Config) { c.NVRURL = "http://127.0.0.1:1/workers/v1" }, "VMS_NVR_URL"},
		"NVR without path":              {func(c *Config) { c.NVRURL = "ws://127.0.0.1:1" }, "/workers/v1"},
		"NVR with password":             {func(c *Config) { c.NVRURL = "ws://me:secret@127.0.0.1:1/workers/v1" }, "VMS_NVR_URL"},
		"NVR far away":                  {far, ""},
		"NVR far away in the clear":     {func(c *Config) { far(c); c.NVRURL = "ws://vms.example/workers/v1" }, "wss"},
		"that is waived":                {func(c *Config) { far(c); c.NVRURL, c.Insecure = "ws://vms.example/workers/v1", true }, ""},
		"nobody reaches the worker":     {func(c *Config) { far(c); c.Listen, c.PublicURL = "127.0.0.1:0", "" }, "VMS_PUBLIC_URL"},
		"by a tunnel they do":           {func(c *Config) { far(c); c.Listen, c.PublicURL = "127.0.0.1:0", "https://w1.example" }, ""},
		"worker without TLS":            {func(c *Config) { c.Listen = "0.0.0.0:0" }, "VMS_PUBLIC_URL"},
		"which address":                 {func(c *Config) { c.Listen, c.Insecure = "0.0.0.0:0", true }, "VMS_PUBLIC_URL"},
		"no worker directory":           {func(c *Config) { c.WorkerDir = "" }, "VMS_WORKER_DIR"},
		"no object store":               {func(c *Config) { c.S3.URL = "" }, "VMS_S3_URL"},
		"no keys of the object store":   {func(c *Config) { c.S3.AccessKey = "" }, "VMS_S3_ACCESS_KEY"},
		"where the keys are":            {func(c *Config) { c.S3.SecretKey = "" }, "s3-secret-key"},
		"object store in the clear":     {func(c *Config) { c.S3.URL = "http://s3.example" }, "https"},
		"no such uploader":              {func(c *Config) { c.Uploader = "ftp" }, "rclone"},
		"bad id":                        {func(c *Config) { c.WorkerID = "Worker 1" }, "VMS_WORKER_ID"},
		"bad zone":                      {func(c *Config) { c.Zone = "Frankfurt 1" }, "VMS_ZONE"},
		"less than no streams":          {func(c *Config) { c.Capacity.Streams = -1 }, "-max-streams"},
		"less than no bytes":            {func(c *Config) { c.Capacity.BytesPerSecond = -1 }, "-max-mbit"},
		"less than no patience":         {func(c *Config) { c.DrainFor = -1 }, "-drain-for"},
		"no role":                       {func(c *Config) { c.Roles = 64 }, "roles"},
		"what it does not listen on":    {func(c *Config) { c.S3Listen, c.MQTTListen = "nonsense", "0.0.0.0:1" }, ""},
		"the NVR itself with NVR URL":   {func(c *Config) { c.Roles = AllRoles; c.S3Listen = "127.0.0.1:0" }, "-roles worker"},
		"the NVR itself needs no store": {func(c *Config) { *c = Config{Roles: RoleAPI | RoleNVR, Listen: "127.0.0.1:0", S3Listen: "127.0.0.1:0"} }, ""},
	} {
		c := alone(t, tt.change)
		err := c.check()
		if tt.says == "" && err != nil || tt.says != "" && (!errors.Is(err, vms.ErrInvalid) || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s: %v, want it to say %q", name, err, tt.says)
		}
		if err != nil && strings.Contains(err.Error(), "secret@") {
			t.Errorf("%s: a password in %v", name, err)
		}
	}
}

// TestKeysOfAnNVROnTheSameMachine: a worker finds them in its data directory, and
// nowhere else.
func TestKeysOfAnNVROnTheSameMachine(t *testing.T) {
	data, err := embed.OpenData(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	c := alone(t, func(c *Config) { c.S3.AccessKey, c.S3.SecretKey, c.Data = "", "", data.Dir() })
	open := func() error { // what of it needs no network
		cfg := c
		if err := cfg.check(); err != nil {
			return err
		}
		cloud := &Cloud{cfg: cfg}
		if err := cloud.openClusterKey(); err != nil {
			return err
		}
		if cfg.S3.AccessKey == "" || len(cloud.clusterKey) < 32 {
			t.Errorf("opened with keys %q, %x", cfg.S3.AccessKey, cloud.clusterKey)
		}
		return nil
	}
	wants := func(says string) {
		t.Helper()
		if err := open(); says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%v, want it to say %q", err, says)
		}
	}
	wants("VMS_S3_ACCESS_KEY")
	if _, err := data.Secret(storeAccessKey, storeAccessLen); err != nil {
		t.Fatal(err)
	}
	wants(storeSecretKey)
	if _, err := data.Secret(storeSecretKey, storeSecretLen); err != nil {
		t.Fatal(err)
	}
	wants("VMS_CLUSTER_KEY_FILE")
	nvr := &Cloud{data: data}
	if err := nvr.openClusterKey(); err != nil {
		t.Fatal(err)
	}
	wants("")
	c.S3.URL, c.Insecure = "http://192.0.2.1:9000", true
	wants("VMS_S3_ACCESS_KEY") // those here are of another store
	c.S3.URL = "http://127.0.0.1:9000"

	file := filepath.Join(t.TempDir(), "key")
	c.ClusterKeyFile = file
	wants("no such file")
	for text, says := range map[string]string{
		"":                             "openssl rand -hex 32",
		strings.Repeat("ab", 31):       "openssl rand -hex 32",
		strings.Repeat("xy", 32):       "hexadecimal",
		strings.Repeat("AB", 40) + " ": "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		wants(says)
		if err := open(); err != nil && text != "" && strings.Contains(err.Error(), text[:8]) {
			t.Errorf("a key in %v", err)
		}
	}
}

func TestWorkerIDIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "w")
	first, err := keptWorkerID(dir)
	if err != nil || !vms.ValidID(first) {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := keptWorkerID(dir); err != nil || again != first {
		t.Errorf("%q, then %q, %v", first, again, err)
	}
	if other, err := keptWorkerID(t.TempDir()); err != nil || other == first {
		t.Errorf("two workers are %q, %v", other, err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
	if err := os.WriteFile(filepath.Join(dir, workerIDFile), []byte("Worker 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := keptWorkerID(dir); err == nil {
		t.Errorf("rubbish is %q", id)
	}
	for host, begins := range map[string]string{
		"W1.example.com": "w1_", "": "worker_", "...": "worker_", "früh auf": "fr", strings.Repeat("long", 60): "longlong",
	} {
		if id := newWorkerID(host); !vms.ValidID(id) || !strings.HasPrefix(string(id), begins) {
			t.Errorf("host %q: %q", host, id)
		}
	}
}

// TestNobodyComesInWithoutKeys: a ticket that cannot be verified yet is no bad one.
func TestNobodyComesInWithoutKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newTickets()
		h := k.gate(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
		status := func() int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/push/v1", nil))
			return w.Code
		}
		if got := status(); got != http.StatusServiceUnavailable || k.check(t.Context()) == nil {
			t.Errorf("without keys: %d", got)
		}
		if err := k.use(nil); err == nil {
			t.Error("no keys are keys")
		}
		time.AfterFunc(time.Second, func() {
			if err := k.use([]ed25519.PublicKey{make([]byte, ed25519.PublicKeySize)}); err != nil {
				t.Error(err)
			}
		})
		if got := status(); got != http.StatusNoContent || k.check(t.Context()) != nil {
			t.Errorf("with keys that come: %d", got)
		}
	})
}

func TestDrainGivesUpOnlyWhenTheNVRStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		up := func() bool { // away for 8 s, then there for a while
			d := time.Since(start)
			return d < 10*time.Second || d >= 18*time.Second && d < 30*time.Second
		}
		if whileUp(t.Context(), up, 10*time.Second) || time.Since(start) < 39*time.Second || time.Since(start) > 41*time.Second {
			t.Errorf("gave up after %v", time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if !whileUp(ctx, func() bool { return true }, 10*time.Second) {
			t.Error("gave up although the NVR is there")
		}
	})
}
