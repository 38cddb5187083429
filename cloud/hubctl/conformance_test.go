package hubctl

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/chaos"
	"github.com/zipato/vms/pkg/wire"
)

// The suite: what holds with the embedded broker holds with Mosquitto, and the
// other way round.

func TestHubsTouchTheirOwnTopicsOnly(t *testing.T) {
	onEveryBroker(t, func(t *testing.T, b broker) {
		url, r := "mqtt://"+b.addr(), newRules()
		for name, opts := range map[string]*mqtt.ClientOptions{
			"wrong password":     (&hub{id: "hub_0", url: url}).options().SetPassword("x"),
			"another's password": (&hub{id: "hub_0", url: url}).options().SetPassword(Password(testKey, "hub_1")),
			"no password":        (&hub{id: "hub_0", url: url}).options().SetUsername("").SetPassword(""),
			"the cloud's name":   (&hub{id: "hub_0", url: url}).options().SetUsername(CloudUser),
		} {
			c := mqtt.NewClient(opts.SetConnectRetry(false).SetAutoReconnect(false))
			if tok := c.Connect(); !tok.WaitTimeout(patience) || tok.Error() == nil {
				t.Errorf("%s: connected", name)
				c.Disconnect(10)
			}
		}
		startCloud(t, r, url)
		r.set("hub_0", 5)
		r.set("hub_1", 7)
		r.clean(t)
		good := startHub(t, url, "hub_1")
		good.obeys(t, 7)
		forge := func(topic string, m wire.SessionMessage) {
			t.Helper()
			for _, qos := range []byte{0, 1} { // for the second Mosquitto throws it out
				for _, retained := range []bool{true, false} {
					lost := make(chan struct{})
					opts := (&hub{id: "hub_0", url: url}).options().SetAutoReconnect(false)
					c := mqtt.NewClient(opts.SetConnectionLostHandler(func(mqtt.Client, error) { close(lost) }))
					if tok := c.Connect(); !tok.WaitTimeout(patience) || tok.Error() != nil {
						t.Fatal(tok.Error())
					}
					tok := c.Publish(topic, qos, retained, mustEncode(m))
					select {
					case <-tok.Done():
					case <-lost:
					case <-time.After(patience):
						t.Errorf("%s: neither taken nor refused", topic)
					}
					c.Disconnect(100)
				}
			}
		}
		forge("vms/hub_1/desired", desired("hub_1", 1000))
		forge("vms/hub_0/desired", desired("hub_0", 1000))
		forge("vms/hub_1/cmd", &wire.Command{ID: "forged", Kind: wire.CommandDrain, Deadline: time.Now().Add(time.Hour)})
		forge("vms/hub_1/reported", &wire.Reported{Hub: "hub_1", Boot: "forged", Online: true, Serial: 1})
		forge("vms/hub_1/reply", &wire.CommandReply{ID: "one"})
		forge("$SYS/broker/uptime", desired("hub_1", 1000))
		bad := startHub(t, url, "hub_0",
			"vms/hub_1/desired", "vms/hub_1/cmd", "vms/hub_1/reported", "vms/hub_1/reply", "vms/+/desired", "vms/+/cmd", "vms/+/reported", "+/+/+", "vms/#", "#", "$SYS/#", "vms/hub_0/reply")
		bad.obeys(t, 5)
		good.report(t, 1)
		r.command(t, "hub_1", "one")
		r.set("hub_1", 8)
		good.obeys(t, 8)
		r.command(t, "hub_0", "two") // all that was sent before has come, or never will
		bad.report(t, 1)
		if n := good.kept(t); n != 8 {
			t.Errorf("retained for hub_1: revision %d", n)
		}
		r.until(t, "both reports", func() bool { return r.last("hub_0").Online && r.last("hub_1").Online })
		bad.mu.Lock()
		defer bad.mu.Unlock()
		for _, topic := range bad.heard {
			if topic != "vms/hub_0/desired" && topic != "vms/hub_0/cmd" && topic != "vms/hub_0/reported" {
				t.Errorf("hub_0 heard %s", topic)
			}
		}
		if bad.desired != 5 || bad.ran["forged"] != 0 {
			t.Errorf("hub_0 gave itself revision %d", bad.desired)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, m := range r.reports["hub_1"] {
			if m.Boot == "forged" {
				t.Error("hub_0 reported for hub_1")
			}
		}
		good.mu.Lock()
		defer good.mu.Unlock()
		if good.desired != 8 || good.ran["forged"] != 0 || good.cleared != 0 {
			t.Errorf("hub_1 was told revision %d, commands %v", good.desired, good.ran)
		}
	})
}

// A hub's client id is its user name: it can neither take a session over nor end it.
func TestNobodyConnectsAsAnother(t *testing.T) {
	onEveryBroker(t, func(t *testing.T, b broker) {
		url, r := "mqtt://"+b.addr(), newRules()
		startCloud(t, r, url)
		victim := startHub(t, url, "hub_1")
		lost := make(chan error, 1)
		opts := (&hub{id: "hub_0", url: url}).options().SetClientID("hub_1").SetConnectRetry(false).SetAutoReconnect(false)
		c := mqtt.NewClient(opts.SetConnectionLostHandler(func(_ mqtt.Client, err error) { lost <- err }))
		if tok := c.Connect(); tok.WaitTimeout(patience) && tok.Error() == nil {
			defer c.Disconnect(10) // Mosquitto lets it in under its own name
		}
		r.command(t, "hub_1", "still-here")
		victim.mu.Lock()
		defer victim.mu.Unlock()
		if victim.ran["still-here"] == 0 {
			t.Error("the command went elsewhere")
		}
		if !victim.mqtt.IsConnectionOpen() {
			t.Error("the hub was thrown out")
		}
	})
}

func TestDocumentsArePublishedAfterTheCommit(t *testing.T) {
	onEveryBroker(t, func(t *testing.T, b broker) {
		url, r := "mqtt://"+b.addr(), newRules()
		r.set("hub_0", 1) // before there is a connection
		c := startCloud(t, r, url)
		r.clean(t)
		h := startHub(t, url, "hub_0") // after it was published
		h.obeys(t, 1)
		for i := range int64(20) {
			r.set("hub_0", i+2)
		}
		h.obeys(t, 21)
		r.clean(t)
		r.set("hub_0", 0) // revoked
		h.until(t, "the document is cleared", func() bool { return h.cleared > 0 })
		r.clean(t)
		if n := h.kept(t); n != 0 {
			t.Errorf("retained for a revoked hub: revision %d", n)
		}
		c.stop()
		if c.Connected() {
			t.Error("connected after Run")
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.send != nil {
			t.Error("commands are still sent after Run")
		}
		if h.stale > 0 {
			t.Errorf("%d older documents after newer ones", h.stale)
		}
	})
}

func TestNothingIsLostWhenTheBrokerRestarts(t *testing.T) {
	for how, down := range map[string]func(testing.TB, broker){
		"stopped": func(t testing.TB, b broker) { b.stop(t) },
		"killed":  func(t testing.TB, b broker) { b.kill(t) },
		"wiped":   func(t testing.TB, b broker) { b.kill(t); b.wipe(t) }, // a broker without persistence
	} {
		t.Run(how, func(t *testing.T) {
			onEveryBroker(t, func(t *testing.T, b broker) {
				url, r := "mqtt://"+b.addr(), newRules()
				c := startCloud(t, r, url)
				h := startHub(t, url, "hub_0")
				for _, id := range testHubs(40) {
					r.set(id, 10)
				}
				r.clean(t)
				h.report(t, 1)
				r.command(t, "hub_0", "before")
				down(t, b)
				c.connected(t, false)
				r.set("hub_0", 11)
				r.set("hub_1", 11)
				r.mu.Lock()
				send := r.send
				r.mu.Unlock()
				if err := send("hub_0", &wire.Command{ID: "c", Kind: wire.CommandDrain, Deadline: time.Now()}); !errors.Is(err, vms.ErrUnavailable) {
					t.Errorf("command without a broker: %v", err)
				}
				b.start(t)
				c.connected(t, true)
				r.clean(t)
				h.obeys(t, 11)
				r.command(t, "hub_0", "after")
				want := int64(11)
				for _, id := range testHubs(40)[1:] { // those that were not changed, too
					startHub(t, url, id).obeys(t, want)
					want = 10
				}
				h.mu.Lock()
				defer h.mu.Unlock()
				if h.stale > 0 {
					t.Logf("%d older documents came after newer ones; a hub ignores them", h.stale)
				}
			})
		})
	}
}

func TestNothingIsLostInAPartition(t *testing.T) {
	for how, tt := range map[string]struct{ part, heal func(*chaos.Proxy) }{
		"cut":   {(*chaos.Proxy).Cut, (*chaos.Proxy).Restore},
		"stall": {(*chaos.Proxy).Stall, (*chaos.Proxy).Resume},
	} {
		t.Run(how, func(t *testing.T) {
			onEveryBroker(t, func(t *testing.T, b broker) {
				r, line := newRules(), chaos.New(t, b.addr())
				c := startCloud(t, r, "mqtt://"+line.Addr())
				h := startHub(t, "mqtt://"+b.addr(), "hub_0")
				r.set("hub_0", 1)
				h.obeys(t, 1)
				r.command(t, "hub_0", "before")
				tt.part(line)
				r.set("hub_0", 2)
				// An answer that comes while the cloud is away waits for it.
				h.publish(t, wire.Topic("hub_0", wire.LeafReply), false, mustEncode(&wire.CommandReply{ID: "late", OK: true}))
				h.report(t, 1)
				c.connected(t, false)
				tt.heal(line)
				c.connected(t, true)
				h.obeys(t, 2)
				r.clean(t)
				r.until(t, "the late answer", func() bool { return r.replies["late"] == "hub_0" })
				r.until(t, "the report", func() bool { return r.last("hub_0").Serial == 1 })
				r.command(t, "hub_0", "after")
			})
		})
	}
}

func TestASlowLineIsOnlySlow(t *testing.T) {
	onEveryBroker(t, func(t *testing.T, b broker) {
		r, line := newRules(), chaos.New(t, b.addr())
		line.SetLatency(100 * time.Millisecond)
		line.SetRate(32 << 10)
		c := startCloud(t, r, "mqtt://"+line.Addr())
		c.connected(t, true)
		h := startHub(t, "mqtt://"+line.Addr(), "hub_0")
		for _, id := range testHubs(60) {
			r.set(id, 1)
		}
		r.clean(t)
		for i := range int64(10) {
			r.bump("hub_0")
			h.report(t, i+1)
			r.command(t, "hub_0", fmt.Sprint("c", i))
		}
		h.obeys(t, 11)
		r.until(t, "the last report", func() bool { return r.last("hub_0").Serial == 10 })
		if n := line.Accepted(); n != 2 {
			t.Errorf("%d connections were made, want one each", n)
		}
	})
}

// Broker, cloud and lines fail at random while documents change and hubs report.
// In the end everybody knows the newest.
func TestItConvergesAfterAnything(t *testing.T) {
	onEveryBroker(t, func(t *testing.T, b broker) {
		const hubs, steps = 8, 60
		seed := time.Now().UnixNano()
		t.Logf("seed %d", seed)
		dice := mrand.New(mrand.NewPCG(uint64(seed), 1)) //nolint:gosec // reproducible
		r := newRules()
		mine, theirs := chaos.New(t, b.addr()), chaos.New(t, b.addr())
		c := startCloud(t, r, "mqtt://"+mine.Addr())
		all := make([]*hub, hubs)
		serial := make([]int64, hubs)
		for i, id := range testHubs(hubs) {
			all[i] = startHub(t, "mqtt://"+theirs.Addr(), id)
			r.set(id, 1)
		}
		for range steps {
			i := dice.IntN(hubs)
			switch dice.IntN(12) {
			case 0:
				b.stop(t)
				b.start(t)
			case 1:
				b.kill(t)
				r.bump(all[i].id)
				b.start(t)
			case 2:
				mine.CutOnce()
			case 3:
				theirs.CutOnce()
			case 4:
				mine.Cut()
				r.bump(all[i].id)
				mine.Restore()
			case 5:
				c.stop() // the cloud restarts
				c = startCloud(t, r, "mqtt://"+mine.Addr())
			default:
				r.bump(all[i].id)
				serial[i]++
				h := all[i]
				h.mqtt.Publish(wire.Topic(h.id, wire.LeafReported), 1, true, mustEncode(&wire.Reported{Hub: h.id, Boot: h.boot, Online: true, Serial: serial[i]}))
			}
		}
		r.clean(t)
		for i, h := range all {
			r.mu.Lock()
			want := r.revision[h.id]
			r.mu.Unlock()
			h.obeys(t, want)
			r.command(t, h.id, "last-"+string(h.id))
			h.until(t, "connected", func() bool { return h.mqtt.IsConnectionOpen() })
			if n := h.kept(t); n != want {
				t.Errorf("retained for %s: revision %d, want %d", h.id, n, want)
			}
			h.report(t, serial[i]+1)
			r.until(t, "the last report", func() bool { return r.last(h.id).Serial == serial[i]+1 })
		}
	})
}

func TestReportsAndLastWills(t *testing.T) {
	onEveryBroker(t, func(t *testing.T, b broker) {
		r, theirs := newRules(), chaos.New(t, b.addr())
		h := startHub(t, "mqtt://"+theirs.Addr(), "hub_0")
		h.report(t, 1)
		h.report(t, 2)
		c := startCloud(t, r, "mqtt://"+b.addr())
		r.until(t, "what is retained", func() bool { return len(r.reports["hub_0"]) == 1 && r.last("hub_0").Serial == 2 })
		theirs.Cut()
		r.until(t, "the last will", func() bool { return !r.last("hub_0").Online })
		c.stop()
		theirs.Restore()
		h.until(t, "connected", func() bool { return h.mqtt.IsConnectionOpen() })
		h.report(t, 3)
		startCloud(t, r, "mqtt://"+b.addr())
		r.until(t, "the newest, and nothing that was said while the cloud was away", func() bool { return r.last("hub_0").Serial == 3 })
		r.mu.Lock()
		defer r.mu.Unlock()
		if n := len(r.reports["hub_0"]); n != 3 {
			t.Errorf("%d reports, want 3", n)
		}
	})
}

// A broker sends the reports of all hubs at once to a cloud that subscribes.
func TestReportsOfManyHubs(t *testing.T) {
	onEveryBroker(t, func(t *testing.T, b broker) {
		const hubs = 3000
		url := "mqtt://" + b.addr()
		// Written by the cloud's user, which may, for there are not so many passwords.
		c := mqtt.NewClient((&hub{id: CloudUser, url: url}).options())
		if tok := c.Connect(); !tok.WaitTimeout(patience) || tok.Error() != nil {
			t.Fatal(tok.Error())
		}
		var last mqtt.Token
		for i := range hubs {
			id := vms.HubID(fmt.Sprint("h", i))
			last = c.Publish(wire.Topic(id, wire.LeafReported), 1, true, mustEncode(&wire.Reported{Hub: id, Boot: "b", Online: true, Serial: 1, Agent: strings.Repeat("x", 200)}))
		}
		if !last.WaitTimeout(2*patience) || last.Error() != nil {
			t.Fatal("not all were published")
		}
		c.Disconnect(1000)
		r := newRules()
		startCloud(t, r, url)
		r.until(t, "all reports", func() bool { return len(r.reports) == hubs })
	})
}

// A broker may acknowledge what it then forgets.
func TestAHubThatShowsAnOldRevisionIsToldAgain(t *testing.T) {
	onEveryBroker(t, func(t *testing.T, b broker) {
		url, r := "mqtt://"+b.addr(), newRules()
		c := startCloud(t, r, url)
		r.set("hub_0", 5)
		r.clean(t)
		// It is gone, and nobody has noticed.
		for _, leaf := range []string{wire.LeafDesired} {
			c.mu.Lock()
			l := c.link
			c.mu.Unlock()
			if err := l.publish(t.Context(), wire.Topic("hub_0", leaf), true, nil, patience); err != nil {
				t.Fatal(err)
			}
		}
		h := startHub(t, url, "hub_0")
		for i := int64(1); ; i++ {
			h.report(t, i)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-t.Context().Done():
			}
			h.mu.Lock()
			rev := h.desired
			h.mu.Unlock()
			if rev == 5 {
				break
			}
			if i > 200 {
				t.Fatal("it was not told")
			}
		}
	})
}

func TestASilentHubIsOffline(t *testing.T) {
	onEveryBroker(t, func(t *testing.T, b broker) {
		url, r := "mqtt://"+b.addr(), newRules()
		h := startHub(t, url, "hub_0")
		h.report(t, 1)
		c := startCloud(t, r, url, func(c *Client) { c.timing.gone = 300 * time.Millisecond })
		r.until(t, "online", func() bool { return r.last("hub_0").Online })
		r.until(t, "offline", func() bool { return !r.last("hub_0").Online && r.last("hub_0").Boot == h.boot })
		h.report(t, 2)
		r.until(t, "online again", func() bool { return r.last("hub_0").Serial == 2 })
		c.stop()
	})
}

func TestMalformedMessagesAreDropped(t *testing.T) {
	onEveryBroker(t, func(t *testing.T, b broker) {
		url, r := "mqtt://"+b.addr(), newRules()
		startCloud(t, r, url)
		h := startHub(t, url, "hub_0")
		for _, payload := range []string{
			"", "x", "{}", `{"type":"reported"}`, `{"type":"ping"}`, strings.Repeat("x", 200<<10),
			string(mustEncode(&wire.Reported{Hub: "hub_1", Boot: "b", Online: true, Serial: 1})), // another's
			string(mustEncode(&wire.CommandReply{ID: "misplaced"})),
			string(mustEncode(desired("hub_0", 1))),
		} {
			h.publish(t, wire.Topic("hub_0", wire.LeafReported), true, []byte(payload))
		}
		h.publish(t, wire.Topic("hub_0", wire.LeafReply), false, mustEncode(&wire.Reported{Hub: "hub_0", Boot: "b", Online: true, Serial: 1}))
		r.command(t, "hub_0", "c")
		h.report(t, 1)
		r.until(t, "a good one", func() bool { return r.last("hub_0").Boot == h.boot })
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.reports["hub_0"]) != 1 || len(r.reports["hub_1"]) != 0 || len(r.replies) != 1 {
			t.Errorf("reports %v, replies %v", r.reports, r.replies)
		}
	})
}

// When the rules cannot say what a hub should do, it is tried again.
func TestRulesThatFailAreAskedAgain(t *testing.T) {
	b := &embedded{}
	vmstest.NoLeaks(t)
	b.start(t)
	defer b.stop(t)
	r := newRules()
	r.set("hub_0", 1)
	r.fail = errors.New("database is away")
	c := startCloud(t, r, "mqtt://"+b.addr())
	c.connected(t, true)
	h := startHub(t, "mqtt://"+b.addr(), "hub_0")
	r.mu.Lock()
	r.fail = nil
	r.mu.Unlock()
	h.obeys(t, 1)
	r.clean(t)
	c.stop()
}

func TestTLS(t *testing.T) {
	cert, roots := selfSigned(t)
	for name, b := range map[string]broker{
		"embedded":  &embedded{tls: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}},
		"mosquitto": &mosquitto{cert: cert},
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			b.start(t)
			defer b.stop(t)
			r := newRules()
			trust := func(roots *x509.CertPool, name string) func(*Client) {
				return func(c *Client) {
					c.at.tls.RootCAs = roots
					c.at.tls.ServerName = name
				}
			}
			good := startCloud(t, r, "mqtts://"+b.addr(), trust(roots, "broker.example"))
			good.connected(t, true)
			r.set("hub_0", 1)
			r.clean(t)
			good.stop()
			for name, f := range map[string]func(*Client){"unknown root": trust(nil, "broker.example"), "other name": trust(roots, "other.example")} {
				c, err := New(Config{NVR: r, Broker: "mqtts://" + b.addr(), Username: CloudUser, Password: Password(testKey, CloudUser), Log: vmstest.Log(t)})
				if err != nil {
					t.Fatal(err)
				}
				c.timing = quick
				f(c)
				var unverified *tls.CertificateVerificationError
				if l, err := c.open(t.Context()); err == nil {
					l.end()
					t.Errorf("%s: connected", name)
				} else if !errors.As(err, &unverified) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

func selfSigned(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"}, DNSNames: []string{"broker.example"}, IPAddresses: []net.IP{{127, 0, 0, 1}},
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

func writePEM(t testing.TB, cert tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
