package cloud

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/worker/upload"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

// memory is an object store; what a worker does not call is not there.
type memory struct {
	objstore.Store
	mu      sync.Mutex
	objects map[string]objstore.Object
}

func (m *memory) Put(_ context.Context, key string, in objstore.PutInput) error {
	if err := errors.Join(objstore.CheckKey(key), in.Check()); err != nil {
		return err
	}
	data, err := io.ReadAll(in.Body)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch _, taken := m.objects[key]; {
	case taken && in.IfAbsent:
		return objstore.ErrExists
	case sha256.Sum256(data) != in.SHA256 || int64(len(data)) != in.Size:
		return objstore.ErrChecksum
	}
	m.objects[key] = objstore.Object{Key: key, Size: in.Size, SHA256: in.SHA256, HasSHA256: true, Metadata: in.Metadata}
	return nil
}

func (m *memory) Stat(_ context.Context, key string) (objstore.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	if !ok {
		return o, vms.ErrNotFound
	}
	return o, nil
}

// TestWhatWorkersStoreCanBeFound: whatever holds a recording's key, it ends
// under one that the index takes, and says the same of it.
func TestWhatWorkersStoreCanBeFound(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	head, body := []byte("head"), []byte("the body")
	all := append(bytes.Clone(head), body...)
	rec := vms.Recording{
		Channel: "ch", Key: vms.RecordingKey("ch", start, 3), Number: 3, Chunks: vms.ChunkRange{Epoch: 9, First: 5, Last: 7},
		Start: start, End: start.Add(time.Second), Media: time.Second, Bytes: int64(len(all)), SHA256: sha256.Sum256(all),
		HeadLen: 4, InitLen: 2, Codecs: "avc1.64001f,mp4a.40.2", Dependent: true,
	}
	other := rec
	other.Chunks.Epoch, other.SHA256 = 8, [32]byte{1}
	for name, there := range map[string]*objstore.Object{
		"nothing":           nil,
		"another recording": {Size: rec.Bytes, SHA256: other.SHA256, HasSHA256: true, Metadata: objstore.RecordingMetadata(other)},
		"a stranger":        {Size: 4},
	} {
		t.Run(name, func(t *testing.T) {
			m := &memory{objects: map[string]objstore.Object{}}
			if there != nil {
				there.Key = rec.Key
				m.objects[rec.Key] = *there
			}
			path := filepath.Join(t.TempDir(), "x.body")
			if err := os.WriteFile(path, body, 0o600); err != nil {
				t.Fatal(err)
			}
			u := upload.Uploader{Store: uploads{m}, Log: vmstest.Log(t)}
			var done []vms.Recording
			u.Submit(t.Context(), upload.Job{Recording: rec, Head: head, Path: path, Done: func(r vms.Recording) { done = append(done, r) }})
			u.Wait()
			if len(done) != 1 {
				t.Fatalf("done %+v", done)
			}
			got, err := objects{m}.Stat(t.Context(), done[0].Key)
			if err != nil || got != done[0] || got.Chunks != rec.Chunks || got.SHA256 != rec.SHA256 {
				t.Errorf("the index finds %+v (%v), stored was %+v", got, err, done[0])
			}
			if (there != nil) != (got.Key != rec.Key) {
				t.Errorf("stored under %s", got.Key)
			}
		})
	}
}

// mqttExposed is a good configuration with a change.
func mqttExposed(change func(*Config)) Config {
	c := Config{Listen: "127.0.0.1:1", S3Listen: "127.0.0.1:1", MQTTListen: "127.0.0.1:1"}
	change(&c)
	return c
}

func TestCheckExposure(t *testing.T) {
	for _, tt := range []struct {
		c  Config
		ok bool
	}{
		{Config{Listen: "127.0.0.1:1", S3Listen: "[::1]:1"}, true},
		{Config{Listen: "localhost:1", S3Listen: "127.9.9.9:1"}, true},
		{Config{Listen: "0.0.0.0:1", S3Listen: "127.0.0.1:1"}, false},
		{Config{Listen: "127.0.0.1:1", S3Listen: "0.0.0.0:1"}, false},
		{Config{Listen: ":1", S3Listen: "127.0.0.1:1"}, false},
		{Config{Listen: "vms.example:1", S3Listen: "127.0.0.1:1"}, false},
		{Config{Listen: ":1", S3Listen: ":1", Insecure: true}, true},
		{mqttExposed(func(c *Config) {}), true},
		{mqttExposed(func(c *Config) { c.MQTTListen = "1" }), false},
		{mqttExposed(func(c *Config) { c.MQTTListen = "0.0.0.0:1" }), false},
		{mqttExposed(func(c *Config) { c.MQTTListen, c.MQTTCert, c.MQTTKey = "0.0.0.0:1", "c", "k" }), false}, // hubs cannot reach that
		{mqttExposed(func(c *Config) { c.MQTTListen, c.MQTTPublicURL = "0.0.0.0:1", "mqtts://b" }), false},
		{mqttExposed(func(c *Config) {
			c.MQTTListen, c.MQTTPublicURL, c.MQTTCert, c.MQTTKey = "0.0.0.0:1", "mqtts://b", "c", "k"
		}), true},
		{mqttExposed(func(c *Config) { c.MQTTListen, c.MQTTPublicURL, c.Insecure = "0.0.0.0:1", "mqtt://b", true }), true},
		{mqttExposed(func(c *Config) { c.MQTTPublicURL = "mqtts://b:8883" }), true}, // behind a proxy
		{mqttExposed(func(c *Config) { c.MQTTPublicURL = "mqtt://b" }), false},
		{mqttExposed(func(c *Config) { c.MQTTPublicURL = "https://b" }), false},
		{mqttExposed(func(c *Config) { c.MQTTCert = "c" }), false},
		{mqttExposed(func(c *Config) { c.MQTT.URL = "mqtts://b" }), true},
		{mqttExposed(func(c *Config) { c.MQTT.URL = "mqtt://127.0.0.1" }), true},
		{mqttExposed(func(c *Config) { c.MQTT.URL = "mqtt://b" }), false},
		{mqttExposed(func(c *Config) { c.MQTT.URL, c.Insecure = "mqtt://b", true }), true},
		{mqttExposed(func(c *Config) { c.MQTT.URL, c.MQTTListen = "mqtts://b", "0.0.0.0:1" }), true}, // nothing listens
		{Config{Listen: ":1", S3Listen: ":1", PublicURL: "https://a", S3PublicURL: "https://b"}, true},
		{Config{Listen: ":1", S3Listen: ":1", PublicURL: "https://a", S3PublicURL: "http://b"}, false},
		{Config{Listen: "127.0.0.1:1", S3Listen: "127.0.0.1:1", PublicURL: "ftp://a"}, false},
		{Config{Listen: "127.0.0.1", S3Listen: "127.0.0.1:1"}, false},
	} {
		tt.c.Roles = AllRoles
		if err := tt.c.check(); (err == nil) != tt.ok || err != nil && !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("%+v: %v", tt.c, err)
		}
	}
}
