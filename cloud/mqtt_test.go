package cloud_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud"
	"github.com/zipato/vms/cloud/hubctl"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// call uses the API as the account's owner.
func (r *running) call(t *testing.T, cfg cloud.Config, method, path, body string, want int) map[string]any {
	t.Helper()
	admin, err := os.ReadFile(filepath.Join(cfg.Data, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+"/api/v1"+path, strings.NewReader(body))
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
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, data, err)
	}
	out := make(map[string]any)
	if len(data) > 0 {
		if err := json.Unmarshal(data, &out); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// enrol makes a hub with a channel that should record.
func (r *running) enrol(t *testing.T, cfg cloud.Config) vms.HubID {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	made := r.call(t, cfg, "POST", "/hubs", `{"name":"Villa"}`, 201)
	id := made["id"].(string)
	r.call(t, cfg, "POST", "/enroll", fmt.Sprintf(`{"code":%q,"public_key":%q}`, made["enrolment_code"], base64.RawURLEncoding.EncodeToString(pub)), 201)
	r.call(t, cfg, "POST", "/channels", fmt.Sprintf(`{"name":"Door","hub_id":%q,"mode":"continuous","camera":{"host":"192.0.2.1","password":"secret"}}`, id), 201)
	return vms.HubID(id)
}

// hubConn is as much of an MQTT client as these tests need.
type hubConn struct {
	net.Conn
	r *bufio.Reader
}

// dialHub connects as a hub; nil when the broker refuses it.
func dialHub(t *testing.T, conn net.Conn, err error, id vms.HubID, password string) *hubConn {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	c := &hubConn{conn, bufio.NewReader(conn)}
	c.send(t, 1<<4, text("MQTT"), []byte{4, 0xc0, 0, 60}, text(string(id)), text(string(id)), text(password))
	kind, body, err := c.read()
	if err != nil || kind != 2<<4 || len(body) != 2 {
		t.Fatalf("CONNACK: %x %x %v", kind, body, err)
	}
	if body[1] != 0 {
		return nil
	}
	return c
}

func text(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }

func (c *hubConn) send(t *testing.T, kind byte, parts ...[]byte) {
	t.Helper()
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	if _, err := c.Write(append(binary.AppendUvarint([]byte{kind}, uint64(len(body))), body...)); err != nil {
		t.Fatal(err)
	}
}

func (c *hubConn) read() (kind byte, body []byte, err error) {
	if kind, err = c.r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(c.r)
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, n)
	_, err = io.ReadFull(c.r, body)
	return kind, body, err
}

// desired waits for a document of this hub that satisfies ok.
func (c *hubConn) desired(t *testing.T, id vms.HubID, ok func(*wire.Desired) bool) *wire.Desired {
	t.Helper()
	topic := wire.Topic(id, wire.LeafDesired)
	c.send(t, 8<<4|2, []byte{0, 1}, text(topic), []byte{0})
	for {
		kind, body, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		if payload, found := strings.CutPrefix(string(body), string(text(topic))); found && kind>>4 == 3 {
			if m, err := wire.DecodeSession([]byte(payload)); err == nil && ok(m.(*wire.Desired)) {
				return m.(*wire.Desired)
			}
		}
	}
}

func passwordOf(t *testing.T, cfg cloud.Config, id vms.HubID) string {
	t.Helper()
	file, err := os.ReadFile(filepath.Join(cfg.Data, "mqtt-key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(file)))
	if err != nil {
		t.Fatal(err)
	}
	return hubctl.Password(key, string(id))
}

// A hub is told over MQTT what to do, as soon as it has enrolled and until it is
// revoked, also by a cloud that was started anew.
func TestHubsAreToldOverMQTT(t *testing.T) {
	noneLeft(t)
	cfg := config(t)
	r := run(t, cfg)
	id := r.enrol(t, cfg)
	password := passwordOf(t, cfg, id)
	addr := func() string { return strings.TrimPrefix(r.c.BrokerURL(), "mqtt://") }
	connect := func(password string) *hubConn {
		conn, err := net.Dial("tcp", addr())
		return dialHub(t, conn, err, id, password)
	}
	if connect("wrong") != nil {
		t.Error("a wrong password was taken")
	}
	recording := func(d *wire.Desired) bool { return len(d.Streams) == 1 && d.Streams[0].Active }
	hub := connect(password)
	first := hub.desired(t, id, recording)
	r.call(t, cfg, "PATCH", "/hubs/"+string(id), `{"time_zone":"Europe/Zagreb"}`, 200)
	second := hub.desired(t, id, func(d *wire.Desired) bool { return d.TimeZone == "Europe/Zagreb" })
	if second.Revision <= first.Revision {
		t.Errorf("revision %d after %d", second.Revision, first.Revision)
	}
	r.end(t)
	var err error
	for err == nil { // a document may have been on its way
		_, _, err = hub.read()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the broker is still there")
	}
	r = run(t, cfg)
	hub = connect(password)
	if d := hub.desired(t, id, recording); d.Revision != second.Revision {
		t.Errorf("after a restart: revision %d, want %d", d.Revision, second.Revision)
	}
	r.call(t, cfg, "DELETE", "/hubs/"+string(id), "", 204)
	for { // what was retained for it is cleared, perhaps before it is thrown out
		if _, _, err := hub.read(); err != nil {
			break
		}
	}
	if connect(password) != nil {
		t.Error("a revoked hub was let in")
	}
	http.DefaultClient.CloseIdleConnections()
	r.end(t)
}

// The cloud trusts its own certificate by its bytes, and takes a renewed one.
func TestEmbeddedBrokerOverTLS(t *testing.T) {
	noneLeft(t)
	cfg := config(t)
	dir := t.TempDir()
	cfg.MQTTCert, cfg.MQTTKey = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	roots := certify(t, cfg, 1)
	r := run(t, cfg)
	id := r.enrol(t, cfg)
	password := passwordOf(t, cfg, id)
	addr, ok := strings.CutPrefix(r.c.BrokerURL(), "mqtts://")
	if !ok {
		t.Fatalf("hubs are told %s", r.c.BrokerURL())
	}
	recording := func(d *wire.Desired) bool { return len(d.Streams) == 1 }
	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, ServerName: "broker.example"})
	dialHub(t, conn, err, id, password).desired(t, id, recording)
	renewed := certify(t, cfg, 2)
	conn, err = tls.Dial("tcp", addr, &tls.Config{RootCAs: renewed, ServerName: "broker.example"})
	dialHub(t, conn, err, id, password).desired(t, id, recording)
	http.DefaultClient.CloseIdleConnections()
	r.end(t)
}

// certify writes a new certificate, so many hours younger.
func certify(t *testing.T, cfg cloud.Config, hours int) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(hours)), DNSNames: []string{"broker.example"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(time.Duration(hours) * time.Hour) // however coarse the file system's clock
	for name, b := range map[string]*pem.Block{cfg.MQTTCert: {Type: "CERTIFICATE", Bytes: der}, cfg.MQTTKey: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return pool
}

// Hubs behind a public URL are not told of a broker on the loopback: it would be
// their own.
func TestAPrivateBrokerIsNotTold(t *testing.T) {
	noneLeft(t)
	for name, tt := range map[string]struct {
		change func(*cloud.Config)
		want   string
	}{
		"public cloud":      {func(c *cloud.Config) { c.PublicURL = "https://vms.example" }, ""},
		"public broker too": {func(c *cloud.Config) { c.PublicURL, c.MQTTPublicURL = "https://vms.example", "mqtts://mq.example" }, "mqtts://mq.example"},
		"broker elsewhere":  {func(c *cloud.Config) { c.PublicURL, c.MQTT.URL = "https://vms.example", "mqtts://mq.example" }, "mqtts://mq.example"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			tt.change(&cfg)
			r := run(t, cfg)
			if got := r.c.BrokerURL(); got != tt.want {
				t.Errorf("hubs are told %q, want %q", got, tt.want)
			}
			r.end(t)
		})
	}
}
