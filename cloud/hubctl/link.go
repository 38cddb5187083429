package hubctl

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// address is a broker as it is dialled.
type address struct {
	url  *url.URL
	host string // host:port
	tls  *tls.Config
}

// ParseURL reads the URL of a broker: mqtt://host:port or mqtts://host:port, with
// 1883 or 8883 where there is no port. vms.ErrInvalid; it never says what was in
// the URL, which may be a password.
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "mqtt" && u.Scheme != "mqtts" || u.User != nil || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%w: the URL of an MQTT broker is to be mqtt://host:port or mqtts://host:port", vms.ErrInvalid)
	}
	return u, nil
}

func parseAddress(text string, config *tls.Config) (*address, error) {
	u, err := ParseURL(text)
	if err != nil {
		return nil, err
	}
	a := &address{url: u}
	port := "1883"
	if u.Scheme == "mqtts" {
		port = "8883"
		a.tls = &tls.Config{MinVersion: tls.VersionTLS12}
		if config != nil {
			a.tls = config.Clone()
		}
		a.tls.ServerName = cmp.Or(a.tls.ServerName, u.Hostname())
	}
	a.host = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
	return a, nil
}

func (a *address) dial(ctx context.Context) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", a.host)
	if err != nil || a.tls == nil {
		return c, err
	}
	t := tls.Client(c, a.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return t, nil
}

// Qualities of service.
const (
	qosPublish = 1
	// Reports are published with QoS 1, and heard with QoS 0: what the broker
	// would keep for us while we are away is older than what it has retained,
	// and would come after it.
	qosReports = 0
	qosReplies = 1
)

// link is one connection to the broker, with a paho client of its own. Only the
// protocol is paho's: it neither reconnects nor stores.
type link struct {
	conn *conn
	mqtt mqtt.Client
}

// open connects and subscribes.
func (c *Client) open(ctx context.Context) (_ *link, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timing.dial, errSilent)
	defer cancel()
	socket, err := c.at.dial(ctx)
	if err != nil {
		return nil, err
	}
	l := &link{conn: newConn(socket, c.timing.silence)}
	l.mqtt = mqtt.NewClient(c.options(l))
	defer func() {
		if err != nil {
			l.end()
		}
	}()
	stop := context.AfterFunc(ctx, func() { l.conn.kill(context.Cause(ctx)) })
	defer stop()
	t := l.mqtt.Connect()
	select {
	case <-t.Done():
	case <-l.conn.open.Done():
		return nil, l.conn.why()
	}
	if err := t.Error(); err != nil {
		if t, ok := t.(*mqtt.ConnectToken); ok && t.ReturnCode() != packets.Accepted && t.ReturnCode() < packets.ErrNetworkError {
			return nil, fmt.Errorf("it refuses %s: %w", c.cfg.Username, err)
		}
		return nil, cmp.Or(l.conn.why(), err)
	}
	if err := l.subscribe(map[string]byte{wire.Topic("+", wire.LeafReported): qosReports, wire.Topic("+", wire.LeafReply): qosReplies}); err != nil {
		return nil, err
	}
	return l, nil
}

func (c *Client) options(l *link) *mqtt.ClientOptions {
	o := mqtt.NewClientOptions()
	o.Servers = []*url.URL{c.at.url}
	o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return l.conn, nil })
	o.SetProtocolVersion(4) // 3.1.1, and no second try with 3.1
	o.SetClientID(c.cfg.ClientID).SetUsername(c.cfg.Username).SetPassword(c.cfg.Password)
	o.SetCleanSession(false) // the broker keeps answers for us
	o.SetKeepAlive(c.timing.keepAlive)
	o.SetPingTimeout(24 * time.Hour) // conn decides what is dead
	o.SetConnectTimeout(c.timing.dial)
	o.SetWriteTimeout(c.timing.command)
	o.SetAutoReconnect(false).SetConnectRetry(false).SetResumeSubs(false)
	o.SetStore(noStore{})
	o.SetOrderMatters(true) // and the handler never blocks
	o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { c.in.receive(m.Topic(), m.Payload(), m.Retained()) })
	o.OnConnectionLost = nil
	return o
}

// subscribe asks for topics. The broker may have kept the subscriptions, but
// only a new one brings the retained messages.
func (l *link) subscribe(topics map[string]byte) error {
	t := l.mqtt.SubscribeMultiple(topics, nil)
	select {
	case <-t.Done():
	case <-l.conn.open.Done():
		return l.conn.why()
	}
	if err := t.Error(); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	granted := t.(*mqtt.SubscribeToken).Result()
	for topic, qos := range topics {
		if got, ok := granted[topic]; !ok || got != qos {
			return fmt.Errorf("the broker refuses a subscription to %s", topic)
		}
	}
	return nil
}

// publish returns when the broker has acknowledged the message.
func (l *link) publish(ctx context.Context, topic string, retained bool, payload []byte, patience time.Duration) error {
	t := l.mqtt.Publish(topic, qosPublish, retained, payload)
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-t.Done():
		return t.Error()
	case <-l.conn.open.Done():
		return l.conn.why()
	case <-late.C:
		return errSilent
	case <-ctx.Done():
		return ctx.Err()
	}
}

// goodbye says that this end of the connection is meant.
func (l *link) goodbye() {
	l.mqtt.Disconnect(1000) // milliseconds, for DISCONNECT to get out
}

// end closes the connection, if it is not, and waits until nothing of it runs.
func (l *link) end() {
	l.conn.kill(errTold)
	l.mqtt.Disconnect(5000) // milliseconds; a socket that is closed keeps nobody
}

// noStore keeps nothing, and so paho sends nothing again: the outbox does.
type noStore struct{}

var _ mqtt.Store = noStore{}

func (noStore) Open()                             {}
func (noStore) Put(string, packets.ControlPacket) {}
func (noStore) Get(string) packets.ControlPacket  { return nil }
func (noStore) All() []string                     { return nil }
func (noStore) Del(string)                        {}
func (noStore) Close()                            {}
func (noStore) Reset()                            {}
