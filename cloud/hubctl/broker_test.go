package hubctl

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// testKey is what passwords are made of.
var testKey = []byte("0123456789abcdef0123456789abcdef")

// testHubs are the hubs that a broker knows.
func testHubs(n int) []vms.HubID {
	hubs := make([]vms.HubID, n)
	for i := range hubs {
		hubs[i] = vms.HubID(fmt.Sprintf("hub_%d", i))
	}
	return hubs
}

// broker is a real broker with the documented permissions, and the password of
// testKey. It keeps its address when it is stopped and started.
type broker interface {
	addr() string // host:port
	start(t testing.TB)
	stop(t testing.TB) // as a service manager would
	kill(t testing.TB) // as a power cut would, or nearly so
	wipe(t testing.TB) // while it is stopped: all that it kept is gone
}

// onEveryBroker runs a test against each.
func onEveryBroker(t *testing.T, f func(t *testing.T, b broker)) {
	for name, b := range map[string]broker{"embedded": &embedded{}, "mosquitto": &mosquitto{}} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			b.start(t)
			t.Cleanup(func() { b.stop(t) })
			f(t, b)
		})
	}
}

// embedded is ours, wired as the cloud wires it.
type embedded struct {
	at, dir string
	tls     *tls.Config
	mqtt    *embed.MQTT
}

func (b *embedded) addr() string { return b.at }

func (b *embedded) start(t testing.TB) {
	t.Helper()
	if b.at == "" {
		b.at, b.dir = freeAddr(t), t.TempDir()
	}
	var err error
	b.mqtt, err = embed.StartMQTT(t.Context(), embed.MQTTConfig{
		Dir: b.dir, Addr: b.at, TLS: b.tls, Log: vmstest.Log(t),
		Authenticate: func(username, password string) (embed.Access, bool) {
			pub, sub := HubTopics(vms.HubID(username))
			if username == CloudUser {
				pub, sub = CloudTopics()
			}
			return embed.Access{Publish: pub, Subscribe: sub}, CheckPassword(testKey, username, password)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (b *embedded) stop(t testing.TB) {
	if err := b.mqtt.Close(); err != nil {
		t.Error(err)
	}
}

func (b *embedded) kill(t testing.TB) { b.stop(t) } // cloud/embed kills it for good

func (b *embedded) wipe(t testing.TB) {
	if err := os.RemoveAll(b.dir); err != nil {
		t.Fatal(err)
	}
}

// mosquitto is Debian's, with the configuration of MOSQUITTO.md.
type mosquitto struct {
	at, dir string
	cert    tls.Certificate // with one, the listener is as documented
	cmd     *exec.Cmd
	ended   chan struct{}
}

func (b *mosquitto) addr() string { return b.at }

func (b *mosquitto) start(t testing.TB) {
	t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto" // where not everybody's PATH leads
	}
	if b.at == "" {
		b.at, b.dir = freeAddr(t), t.TempDir()
		b.configure(t)
	}
	b.cmd = exec.Command(path, "-c", filepath.Join(b.dir, "mosquitto.conf"))
	var out bytes.Buffer
	b.cmd.Stdout, b.cmd.Stderr = &out, &out
	if err := b.cmd.Start(); err != nil {
		t.Fatalf("%v (apt-get install mosquitto)", err)
	}
	b.ended = make(chan struct{})
	go func(cmd *exec.Cmd) {
		defer close(b.ended)
		_ = cmd.Wait()
	}(b.cmd)
	for deadline := time.Now().Add(patience); ; {
		c, err := net.Dial("tcp", b.at)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-b.ended:
			t.Fatalf("mosquitto ended: %s", &out)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("mosquitto does not listen")
		}
	}
}

// configure writes what MOSQUITTO.md says, with addresses and files of the test.
func (b *mosquitto) configure(t testing.TB) {
	t.Helper()
	_, port, err := net.SplitHostPort(b.at)
	if err != nil {
		t.Fatal(err)
	}
	conf := documented(t, "conf")
	for _, change := range [][2]string{
		{"listener 8883", "listener " + port + " 127.0.0.1"},
		{"/etc/mosquitto/certs/", b.dir + "/"},
		{"/etc/mosquitto/", b.dir + "/"},
		{"/var/lib/mosquitto/", b.dir + "/kept/"},
		{"autosave_interval 60\n", "autosave_interval 1\n"},
	} {
		if !strings.Contains(conf, change[0]) {
			t.Fatalf("MOSQUITTO.md has no %q", change[0])
		}
		conf = strings.ReplaceAll(conf, change[0], change[1])
	}
	if b.cert.PrivateKey == nil {
		conf = regexp.MustCompile(`(?m)^(cert|key)file .*$`).ReplaceAllString(conf, "")
	} else {
		writePEM(t, b.cert, filepath.Join(b.dir, "server.crt"), filepath.Join(b.dir, "server.key"))
	}
	if os.Getuid() == 0 {
		conf += "user root\n" // another could not read the test's folder
	}
	passwords, err := MosquittoPasswords(testKey, testHubs(100))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"mosquitto.conf": conf, "vms.acl": documented(t, "acl"), "vms.passwd": string(passwords),
	} {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(b.dir, "kept"), 0o700); err != nil {
		t.Fatal(err)
	}
}

func (b *mosquitto) end(t testing.TB, sig os.Signal) {
	// More than once: one that has just begun to listen forgets that it was told.
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	late := time.After(patience)
	for {
		if err := b.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		select {
		case <-b.ended:
			return
		case <-again.C:
		case <-late:
			t.Error("mosquitto does not end")
			_ = b.cmd.Process.Kill()
			<-b.ended
			return
		}
	}
}

func (b *mosquitto) stop(t testing.TB) { b.end(t, syscall.SIGTERM) }
func (b *mosquitto) kill(t testing.TB) { b.end(t, syscall.SIGKILL) }

func (b *mosquitto) wipe(t testing.TB) {
	if err := os.RemoveAll(filepath.Join(b.dir, "kept", "mosquitto.db")); err != nil {
		t.Fatal(err)
	}
}

// documented returns the block of MOSQUITTO.md in this language.
func documented(t testing.TB, language string) string {
	t.Helper()
	text, err := os.ReadFile("MOSQUITTO.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, ok := strings.Cut(string(text), "```"+language+"\n")
	block, _, end := strings.Cut(block, "```\n")
	if !ok || !end {
		t.Fatalf("MOSQUITTO.md has no block of %s", language)
	}
	return block
}

// freeAddr is an address that nobody listens on at this moment, for a broker that
// is stopped and started on the same one.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
