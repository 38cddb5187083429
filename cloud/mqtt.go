package cloud

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/cloud/hubctl"
	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// mqttListen is where the embedded broker listens by default.
	mqttListen = "127.0.0.1:1883"
	// mqttKey is the secret that the passwords of hubs are made of.
	mqttKey = "mqtt-key"
	// authPatience is how long the database may take to say whether a hub exists.
	authPatience = 5 * time.Second
)

// MQTTConfig says where an MQTT broker elsewhere is and how to get in. What hubs
// may do there its operator sets up: see cloud/hubctl/MOSQUITTO.md.
type MQTTConfig struct {
	URL string // mqtt:// or mqtts://
	// Username is hubctl.CloudUser by default, Password what is in the files
	// that `vms-cloud mosquitto` makes.
	Username, Password string
}

// checkBroker refuses to carry passwords in the clear over a network.
func (c *Config) checkBroker() error {
	for _, u := range []struct{ url, variable string }{{c.MQTT.URL, "VMS_MQTT_URL"}, {c.MQTTPublicURL, "VMS_MQTT_PUBLIC_URL"}} {
		if u.url == "" {
			continue
		}
		parsed, err := hubctl.ParseURL(u.url)
		if err != nil {
			return fmt.Errorf("%s: %w", u.variable, err)
		}
		if parsed.Scheme == "mqtt" && !loopback(parsed.Hostname()) && !c.Insecure {
			return fmt.Errorf("%w: %s: %s is not on the loopback: use mqtts, or pass -insecure", vms.ErrInvalid, u.variable, parsed.Host)
		}
	}
	if (c.MQTTCert == "") != (c.MQTTKey == "") {
		return fmt.Errorf("%w: VMS_MQTT_CERT and VMS_MQTT_KEY go together", vms.ErrInvalid)
	}
	if c.MQTT.URL != "" {
		return nil // nothing listens here
	}
	host, _, err := net.SplitHostPort(cmp.Or(c.MQTTListen, mqttListen))
	switch {
	case err != nil:
		return fmt.Errorf("%w: address %q: %v", vms.ErrInvalid, c.MQTTListen, err)
	case loopback(host):
		return nil
	case c.MQTTPublicURL == "":
		return fmt.Errorf("%w: %s is not on the loopback: name in VMS_MQTT_PUBLIC_URL what hubs reach", vms.ErrInvalid, c.MQTTListen)
	case c.MQTTCert == "" && !c.Insecure:
		// Unlike with HTTP, a proxy for TLS would be on this machine, and reach the loopback.
		return fmt.Errorf("%w: %s is not on the loopback: name a certificate in VMS_MQTT_CERT and VMS_MQTT_KEY, or pass -insecure", vms.ErrInvalid, c.MQTTListen)
	}
	return nil
}

// openBroker starts the embedded broker, unless one elsewhere is named, and
// makes the client of it, which connects in Run.
func (c *Cloud) openBroker(ctx context.Context) error {
	key, err := c.data.Secret(mqttKey, hubctl.KeySize)
	if err != nil {
		return err
	}
	c.mqttKey = key
	cfg := hubctl.Config{
		NVR: hubRules{c.nvr}, Broker: c.cfg.MQTT.URL, Log: c.log,
		Username: cmp.Or(c.cfg.MQTT.Username, hubctl.CloudUser), Password: cmp.Or(c.cfg.MQTT.Password, hubctl.Password(key, hubctl.CloudUser)),
	}
	if cfg.Broker == "" {
		if cfg.TLS, err = c.startMQTT(ctx); err != nil {
			return err
		}
		cfg.Broker = c.mqtt.URL()
		cfg.Username, cfg.Password = hubctl.CloudUser, hubctl.Password(key, hubctl.CloudUser)
	}
	c.brokerURL = c.cfg.MQTTPublicURL
	if c.brokerURL == "" && c.reachable(cfg.Broker) {
		c.brokerURL = cfg.Broker
	}
	if c.brokerURL == "" {
		c.log.Warn("hubs elsewhere cannot reach the MQTT broker, which is on the loopback; their control lines do it alone until VMS_MQTT_PUBLIC_URL says where it is")
	}
	c.hubctl, err = hubctl.New(cfg)
	return err
}

// reachable reports whether hubs that reach this cloud reach the broker too. One
// on the loopback would be a hub's own, which must not learn passwords.
func (c *Cloud) reachable(broker string) bool {
	at, err := hubctl.ParseURL(broker)
	here, err2 := url.Parse(c.URL())
	return err == nil && err2 == nil && (!loopback(at.Hostname()) || loopback(here.Hostname()))
}

// startMQTT starts the embedded broker, and returns how this process verifies
// that it is it.
func (c *Cloud) startMQTT(ctx context.Context) (*tls.Config, error) {
	cfg := embed.MQTTConfig{Dir: c.data.Path("mqtt"), Addr: c.cfg.MQTTListen, Authenticate: c.authenticateMQTT, Log: c.log}
	var client *tls.Config
	if c.cfg.MQTTCert != "" {
		cert := &certificate{certFile: c.cfg.MQTTCert, keyFile: c.cfg.MQTTKey, log: c.log}
		if _, err := cert.get(nil); err != nil {
			return nil, err
		}
		cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get}
		client = cert.client()
	}
	var err error
	c.mqtt, err = embed.StartMQTT(ctx, cfg)
	return client, err
}

// authenticateMQTT lets in the cloud and the hubs that are not revoked, each to
// its own topics.
func (c *Cloud) authenticateMQTT(username, password string) (embed.Access, bool) {
	if !hubctl.CheckPassword(c.mqttKey, username, password) {
		return embed.Access{}, false
	}
	if username == hubctl.CloudUser {
		pub, sub := hubctl.CloudTopics()
		return embed.Access{Publish: pub, Subscribe: sub}, true
	}
	ctx, cancel := context.WithTimeout(context.Background(), authPatience)
	defer cancel()
	hub, err := c.store.Hub(ctx, vms.HubID(username))
	if err != nil || !hub.RevokedAt.IsZero() {
		if err != nil && !errors.Is(err, vms.ErrNotFound) {
			c.log.Error("cannot look up a hub that connects to the broker", "hub", username, "err", err)
		}
		return embed.Access{}, false
	}
	pub, sub := hubctl.HubTopics(hub.ID)
	return embed.Access{Publish: pub, Subscribe: sub}, true
}

// BrokerURL is where hubs reach the MQTT broker; empty: they do not.
func (c *Cloud) BrokerURL() string { return c.brokerURL }

// broker is what a hub is told.
func (c *Cloud) broker(hub vms.HubID) wire.Broker {
	if c.brokerURL == "" {
		return wire.Broker{}
	}
	return wire.Broker{URL: c.brokerURL, Username: string(hub), Password: hubctl.Password(c.mqttKey, string(hub))}
}

// disconnect ends the connections of a hub that is revoked.
func (c *Cloud) disconnect(hub vms.HubID) {
	if c.mqtt != nil {
		c.mqtt.Disconnect(string(hub))
	}
}

// hubRules are the rules as hubctl sees them.
type hubRules struct{ *nvr.NVR }

var _ hubctl.Rules = hubRules{}

// AllHubs lists the hubs that have enrolled.
func (r hubRules) AllHubs(ctx context.Context) (ids []vms.HubID, err error) {
	for cursor, more := "", true; more; more = cursor != "" {
		var hubs []nvr.Hub
		if hubs, cursor, err = r.Hubs(ctx, demoAccount, cursor, 1000); err != nil {
			return nil, err
		}
		for _, h := range hubs {
			if len(h.PublicKey) > 0 {
				ids = append(ids, h.ID)
			}
		}
	}
	return ids, nil
}

// certificate is one in two files, which something renews now and then.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	loaded  *tls.Certificate
	changed [2]time.Time // of the files
}

// get is for tls.Config. New files that cannot be used leave the old certificate
// in use.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var changed [2]time.Time
	for i, name := range []string{c.certFile, c.keyFile} {
		if info, err := os.Stat(name); err == nil {
			changed[i] = info.ModTime()
		}
	}
	if c.loaded != nil && changed == c.changed {
		return c.loaded, nil
	}
	c.changed = changed
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	switch {
	case err == nil:
		c.loaded = &cert
	case c.loaded == nil:
		return nil, fmt.Errorf("certificate of the MQTT broker: %w", err)
	default:
		c.log.Error("the new certificate of the MQTT broker cannot be used; the old one stays", "err", err)
	}
	return c.loaded, nil
}

// client trusts this certificate and no other: this process connects to an
// address, which is not in it.
func (c *certificate) client() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it
		VerifyConnection: func(s tls.ConnectionState) error {
			cert, err := c.get(nil)
			if err != nil {
				return err
			}
			if len(s.PeerCertificates) == 0 || !bytes.Equal(s.PeerCertificates[0].Raw, cert.Certificate[0]) {
				return errors.New("not the certificate of the embedded MQTT broker")
			}
			return nil
		},
	}
}
