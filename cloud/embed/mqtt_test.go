package embed_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/pkg/vmstest"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// hubAccess lets everybody in whose password is its name, to topics below its name.
func hubAccess(username, password string) (embed.Access, bool) {
	switch {
	case password != username:
		return embed.Access{}, false
	case username == "cloud":
		return embed.Access{Publish: []string{"vms/+/desired", "vms/+/cmd"}, Subscribe: []string{"vms/+/reported", "vms/+/reply"}}, true
	case username == "mute":
		return embed.Access{}, true
	}
	return embed.Access{
		Publish:   []string{"vms/" + username + "/reported", "vms/" + username + "/reply"},
		Subscribe: []string{"vms/" + username + "/desired", "vms/" + username + "/cmd"},
	}, true
}

func mqttConfig(t testing.TB) embed.MQTTConfig {
	return embed.MQTTConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0", Authenticate: hubAccess, Log: vmstest.Log(t)}
}

func startMQTT(t testing.TB, cfg embed.MQTTConfig) *embed.MQTT {
	t.Helper()
	m, err := embed.StartMQTT(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// mqttClient is a client that keeps what it hears.
type mqttClient struct {
	mqtt.Client
	heard chan mqtt.Message
	lost  chan error
}

func options(url, username string) *mqtt.ClientOptions {
	return mqtt.NewClientOptions().AddBroker(url).SetClientID(username).SetUsername(username).SetPassword(username).
		SetCleanSession(false).SetAutoReconnect(false).SetConnectTimeout(patience).SetWriteTimeout(patience)
}

func dial(t testing.TB, opts *mqtt.ClientOptions) (*mqttClient, error) {
	t.Helper()
	c := &mqttClient{heard: make(chan mqtt.Message, 10_000), lost: make(chan error, 1)}
	opts.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { c.heard <- m })
	opts.SetConnectionLostHandler(func(_ mqtt.Client, err error) { c.lost <- err })
	c.Client = mqtt.NewClient(opts)
	if err := wait(c.Connect()); err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Disconnect(100) })
	return c, nil
}

func connect(t testing.TB, url, username string) *mqttClient {
	t.Helper()
	c, err := dial(t, options(url, username))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wait(tok mqtt.Token) error {
	if !tok.WaitTimeout(patience) {
		return errors.New("no answer")
	}
	return tok.Error()
}

func (c *mqttClient) publish(t testing.TB, topic, payload string, retained bool) {
	t.Helper()
	if err := wait(c.Publish(topic, 1, retained, payload)); err != nil {
		t.Fatalf("publish %s: %v", topic, err)
	}
}

// subscribe returns whether the broker agreed.
func (c *mqttClient) subscribe(t testing.TB, filter string) bool {
	t.Helper()
	tok := c.Subscribe(filter, 1, nil).(*mqtt.SubscribeToken)
	if !tok.WaitTimeout(patience) {
		t.Fatalf("subscribe %s: no answer", filter)
	}
	return tok.Error() == nil && tok.Result()[filter] != 0x80
}

func (c *mqttClient) hears(t testing.TB, topic, payload string) {
	t.Helper()
	select {
	case m := <-c.heard:
		if m.Topic() != topic || string(m.Payload()) != payload {
			t.Fatalf("heard %s %.60q, want %s %.60q", m.Topic(), m.Payload(), topic, payload)
		}
	case <-time.After(patience):
		t.Fatalf("nothing heard, want %s %.60q", topic, payload)
	}
}

func TestMQTTPermissions(t *testing.T) {
	vmstest.NoLeaks(t)
	m := startMQTT(t, mqttConfig(t))
	for name, opts := range map[string]*mqtt.ClientOptions{
		"wrong password": options(m.URL(), "a").SetPassword("b"),
		"nobody":         options(m.URL(), "a").SetUsername("").SetPassword(""),
		"internal user":  options(m.URL(), "$internal"),
		// It would end the other's session, and be told what is for it.
		"another's client id": options(m.URL(), "a").SetClientID("b"),
	} {
		if _, err := dial(t, opts); err == nil {
			t.Errorf("%s was let in", name)
		}
	}
	a, cloud := connect(t, m.URL(), "a"), connect(t, m.URL(), "cloud")
	for filter, want := range map[string]bool{
		"vms/a/desired": true, "vms/a/cmd": true,
		"vms/b/desired": false, "vms/+/desired": false, "vms/#": false, "#": false, "+/+/+": false, "vms/a/#": false, "vms/a/+": false,
		"$SYS/#": false, "$MQTT/#": false, "$MQTT/msgs/#": false, "$JS/#": false, "+/msgs/#": false, "vms/a/reported": false, "_INBOX/#": false,
	} {
		if got := a.subscribe(t, filter); got != want {
			t.Errorf("subscribe %s: %v, want %v", filter, got, want)
		}
	}
	if !cloud.subscribe(t, "vms/+/reported") {
		t.Error("the cloud may not hear reports")
	}
	for _, topic := range []string{"vms/b/reported", "vms/a/desired", "vms/a/cmd", "vms/a", "vms/a/reported/x", "$JS/API/STREAM/DELETE/$MQTT_msgs", "$MQTT/rmsgs/vms/a/desired", "$SYS/REQ/SERVER/PING"} {
		for _, retained := range []bool{false, true} {
			a.publish(t, topic, "forged", retained) // MQTT 3.1.1 has no word for "no"
		}
	}
	a.publish(t, "vms/a/reported", "last", false)
	cloud.hears(t, "vms/a/reported", "last") // and nothing before it
	cloud.publish(t, "vms/a/desired", "first", false)
	a.hears(t, "vms/a/desired", "first")

	mute := connect(t, m.URL(), "mute")
	for _, filter := range []string{"#", "vms/mute/desired", "+"} {
		if mute.subscribe(t, filter) {
			t.Errorf("one that may nothing may subscribe %s", filter)
		}
	}
}

// A hub that comes back the moment the broker does must be told what is retained.
func TestMQTTRetainedIsThereAtOnce(t *testing.T) {
	vmstest.NoLeaks(t)
	cfg := mqttConfig(t)
	m := startMQTT(t, cfg)
	const hubs = 1500
	c := connect(t, m.URL(), "cloud")
	toks := make([]mqtt.Token, hubs)
	for i := range toks {
		toks[i] = c.Publish(fmt.Sprintf("vms/h%d/desired", i), 1, true, strings.Repeat("x", 500))
	}
	for _, tok := range toks {
		if err := wait(tok); err != nil {
			t.Fatal(err)
		}
	}
	c.publish(t, "vms/last/desired", "last", true)
	c.Disconnect(100)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	cfg.Authenticate = func(string, string) (embed.Access, bool) {
		return embed.Access{Subscribe: []string{"vms/+/desired"}}, true
	}
	m = startMQTT(t, cfg)
	t.Logf("started with %d retained messages in %v", hubs, time.Since(begin).Round(time.Millisecond))
	c = connect(t, m.URL(), "reader")
	c.subscribe(t, "vms/+/desired")
	for n := range hubs + 1 {
		select {
		case <-c.heard:
		case <-time.After(patience):
			t.Fatalf("%d of %d retained messages came", n, hubs+1)
		}
	}
}

func TestMQTTQueuesForTheAwayAreBounded(t *testing.T) {
	vmstest.NoLeaks(t)
	cfg := mqttConfig(t)
	m := startMQTT(t, cfg)
	a, cloud := connect(t, m.URL(), "a"), connect(t, m.URL(), "cloud")
	a.subscribe(t, "vms/a/cmd")
	a.Disconnect(100)
	for i := range 40 {
		cloud.publish(t, "vms/a/cmd", fmt.Sprint(i), false)
	}
	cloud.Disconnect(100)
	m.Close()
	m = startMQTT(t, cfg) // over a restart
	a = connect(t, m.URL(), "a")
	for i := 40 - 16; i < 40; i++ {
		a.hears(t, "vms/a/cmd", fmt.Sprint(i)) // without subscribing again
	}
	connect(t, m.URL(), "cloud").publish(t, "vms/a/cmd", "more", false)
	a.hears(t, "vms/a/cmd", "more")
}

func TestMQTTMessagesAreBounded(t *testing.T) {
	vmstest.NoLeaks(t)
	m := startMQTT(t, mqttConfig(t))
	a, cloud := connect(t, m.URL(), "a"), connect(t, m.URL(), "cloud")
	a.subscribe(t, "vms/a/desired")
	large := strings.Repeat("x", 256<<10)
	cloud.publish(t, "vms/a/desired", large, true)
	a.hears(t, "vms/a/desired", large)
	cloud.Publish("vms/a/desired", 1, true, large+large)
	select {
	case <-cloud.lost:
	case <-time.After(patience):
		t.Error("a message of 512 KiB was taken")
	}
	// QoS 2 would let a client fill the store.
	b := connect(t, m.URL(), "b")
	b.Publish("vms/b/reported", 2, false, "x")
	select {
	case <-b.lost:
	case <-time.After(patience):
		t.Error("a message of QoS 2 was taken")
	}
}

func TestMQTTDisconnectEndsAUsersConnection(t *testing.T) {
	vmstest.NoLeaks(t)
	m := startMQTT(t, mqttConfig(t))
	cloud := connect(t, m.URL(), "cloud")
	cloud.subscribe(t, "vms/+/reported")
	a, err := dial(t, options(m.URL(), "a").SetWill("vms/a/reported", "gone", 1, true))
	if err != nil {
		t.Fatal(err)
	}
	b := connect(t, m.URL(), "ab")
	m.Disconnect("a")
	select {
	case <-a.lost:
	case <-time.After(patience):
		t.Fatal("the connection is still open")
	}
	cloud.hears(t, "vms/a/reported", "gone")
	b.publish(t, "vms/ab/reported", "still here", false)
	cloud.hears(t, "vms/ab/reported", "still here")
	m.Disconnect("nobody")
}

func TestMQTTTakesOneConnectionPerClient(t *testing.T) {
	vmstest.NoLeaks(t)
	m := startMQTT(t, mqttConfig(t))
	first := connect(t, m.URL(), "a")
	first.subscribe(t, "vms/a/cmd")
	second := connect(t, m.URL(), "a")
	select {
	case <-first.lost:
	case <-time.After(patience):
		t.Fatal("two connections with one client id")
	}
	connect(t, m.URL(), "cloud").publish(t, "vms/a/cmd", "x", false)
	second.hears(t, "vms/a/cmd", "x") // it has the session, subscriptions and all
}

// The broker is this test binary, run again, so that it can be killed.
func TestMQTTKeepsWhatItAcknowledgedThroughAKill(t *testing.T) {
	if dir := os.Getenv("TEST_MQTT_DIR"); dir != "" {
		cfg := mqttConfig(t)
		cfg.Dir = dir
		fmt.Println("url", startMQTT(t, cfg).URL())
		<-t.Context().Done() // until it is killed
		return
	}
	vmstest.NoLeaks(t)
	dir := t.TempDir()
	spawn := func() (url string, kill func()) {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMQTTKeepsWhatItAcknowledgedThroughAKill$")
		cmd.Env = append(os.Environ(), "TEST_MQTT_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
		t.Cleanup(kill)
		for s := bufio.NewScanner(out); s.Scan(); {
			if u, ok := strings.CutPrefix(s.Text(), "url "); ok {
				return u, kill
			}
		}
		t.Fatal("no broker")
		return "", nil
	}
	url, kill := spawn()
	a, cloud := connect(t, url, "a"), connect(t, url, "cloud")
	a.subscribe(t, "vms/a/cmd")
	a.Disconnect(100)
	for i := range 3 {
		cloud.publish(t, "vms/a/desired", fmt.Sprint("revision ", i), true)
		cloud.publish(t, "vms/a/cmd", fmt.Sprint("command ", i), false)
	}
	kill()
	url, _ = spawn()
	a = connect(t, url, "a")
	for i := range 3 {
		a.hears(t, "vms/a/cmd", fmt.Sprint("command ", i))
	}
	a.subscribe(t, "vms/a/desired")
	a.hears(t, "vms/a/desired", "revision 2")
	cloud = connect(t, url, "cloud")
	cloud.publish(t, "vms/a/desired", "", true) // forget it
	a.hears(t, "vms/a/desired", "")
	b := connect(t, url, "a")
	b.subscribe(t, "vms/a/desired")
	cloud.publish(t, "vms/a/desired", "new", false)
	b.hears(t, "vms/a/desired", "new")
}

func TestMQTTOverTLS(t *testing.T) {
	vmstest.NoLeaks(t)
	cert, roots := selfSigned(t)
	cfg := mqttConfig(t)
	cfg.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	m := startMQTT(t, cfg)
	if !strings.HasPrefix(m.URL(), "mqtts://127.0.0.1:") {
		t.Errorf("URL %s", m.URL())
	}
	a, err := dial(t, options(m.URL(), "a").SetTLSConfig(&tls.Config{RootCAs: roots, ServerName: "broker.example"}))
	if err != nil {
		t.Fatal(err)
	}
	a.subscribe(t, "vms/a/cmd")
	for name, opts := range map[string]*mqtt.ClientOptions{
		"unknown root": options(m.URL(), "b"),
		"other name":   options(m.URL(), "b").SetTLSConfig(&tls.Config{RootCAs: roots, ServerName: "other.example"}),
		"no TLS":       options(strings.Replace(m.URL(), "mqtts", "mqtt", 1), "b"),
	} {
		if _, err := dial(t, opts); err == nil {
			t.Errorf("%s: connected", name)
		}
	}
}

func selfSigned(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"}, DNSNames: []string{"broker.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, roots
}

func TestMQTTTakenPort(t *testing.T) {
	vmstest.NoLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := mqttConfig(t)
	cfg.Addr = l.Addr().String()
	if _, err := embed.StartMQTT(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), cfg.Addr) || !strings.Contains(err.Error(), "VMS_MQTT_LISTEN") {
		t.Errorf("StartMQTT = %v, want the address and the variable in it", err)
	}
	cfg.Addr = "127.0.0.1:0"
	startMQTT(t, cfg) // a failed start leaves nothing behind
}

func TestMQTTBadConfig(t *testing.T) {
	for name, change := range map[string]func(*embed.MQTTConfig){
		"no dir":                func(cfg *embed.MQTTConfig) { cfg.Dir = "" },
		"no address":            func(cfg *embed.MQTTConfig) { cfg.Addr = "" },
		"all interfaces by gap": func(cfg *embed.MQTTConfig) { cfg.Addr = ":1883" },
		"no port":               func(cfg *embed.MQTTConfig) { cfg.Addr = "127.0.0.1" },
		"port is no number":     func(cfg *embed.MQTTConfig) { cfg.Addr = "127.0.0.1:x" },
		"everybody":             func(cfg *embed.MQTTConfig) { cfg.Authenticate = nil },
		"dir is a file":         func(cfg *embed.MQTTConfig) { cfg.Dir = os.Args[0] },
	} {
		cfg := mqttConfig(t)
		change(&cfg)
		if _, err := embed.StartMQTT(t.Context(), cfg); err == nil {
			t.Errorf("%s: it started", name)
		}
	}
}

func TestMQTTRunEndsWithItsContext(t *testing.T) {
	vmstest.NoLeaks(t)
	m := startMQTT(t, mqttConfig(t))
	connect(t, m.URL(), "a")
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Run = %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Run did not end")
	}
	if c, err := net.Dial("tcp", strings.TrimPrefix(m.URL(), "mqtt://")); err == nil {
		c.Close()
		t.Error("its port is still open")
	}
	m.Disconnect("a")
}
