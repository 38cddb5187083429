package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/zipato/vms/pkg/wire"
)

// qos is that of all messages: at least once.
const qos = 1

var (
	// errTold: this client was told to end the connection.
	errTold = errors.New("told to disconnect")
	// errMoved is the cause when another broker was set.
	errMoved = errors.New("another MQTT broker was set")
)

// link is one connection to the broker, with a paho client of its own. Of paho
// only the protocol is used. It is not let to reconnect, which it does without
// telling why it could not, and its clients are not used twice, which its
// documentation warns of. It stores nothing: what is to be sent again is in the
// outbox, and what the broker has to send again is with the broker, which keeps
// the hub's session.
type link struct {
	*Client
	conn *conn
	mqtt mqtt.Client
	log  *slog.Logger
}

// runOnce lives as long as one connection, and so does all that it starts. held
// is how long the client was connected and subscribed. doubt is what the state
// says meanwhile.
func (c *Client) runOnce(ctx context.Context, a *access, doubt error, log *slog.Logger) (held time.Duration, err error) {
	socket, err := a.dial(ctx, c.timing.dial)
	if err != nil {
		return 0, fmt.Errorf("dial %s: %w", a.host, err)
	}
	topics := map[string]byte{}
	for _, leaf := range []string{wire.LeafDesired, wire.LeafCommand, wire.LeafReported} {
		topics[wire.Topic(c.cfg.Hub, leaf)] = qos
	}
	l := &link{Client: c, conn: newConn(socket, c.timing.silence, maxPacket, len(topics)), log: log}
	defer l.conn.kill(errTold)
	l.mqtt = mqtt.NewClient(l.options(a))

	// Until the client is ready, being told to stop and being too slow both end the
	// connection, and with it what waits for paho.
	stop := context.AfterFunc(ctx, func() { l.conn.kill(errTold) })
	defer stop()
	late := time.AfterFunc(c.timing.dial, func() { l.conn.kill(errSilent) })
	defer late.Stop()
	if err := l.connect(); err != nil {
		return 0, err
	}
	defer l.end()
	late.Reset(c.timing.ready)
	c.mu.Lock()
	c.echoed, c.alien = false, false
	c.mu.Unlock()
	if err := l.subscribe(topics); err != nil {
		return 0, err
	}
	if !late.Stop() || !stop() {
		<-l.conn.open.Done()
		return 0, l.conn.why()
	}

	since := time.Now()
	c.setState(true, doubt)
	log.Info("MQTT connected")
	c.out.again()
	err = l.serve(ctx, doubt)
	return max(time.Since(since), 1), err
}

// options are those of the one connection.
func (l *link) options(a *access) *mqtt.ClientOptions {
	o := mqtt.NewClientOptions()
	// The connection is there already; paho asks for it by the broker's URL.
	o.Servers = []*url.URL{a.url}
	o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return l.conn, nil })
	o.SetProtocolVersion(4) // 3.1.1, and no second try with 3.1
	o.SetClientID(string(l.cfg.Hub)).SetUsername(a.username).SetPassword(a.password)
	o.SetCleanSession(false) // the broker keeps commands for a hub that is away
	o.SetKeepAlive(l.timing.keepAlive)
	o.SetPingTimeout(24 * time.Hour) // conn decides what is dead
	o.SetBinaryWill(wire.Topic(l.cfg.Hub, wire.LeafReported), l.will, qos, true)
	o.SetAutoReconnect(false).SetConnectRetry(false).SetResumeSubs(false)
	o.SetStore(noStore{})
	// How long Publish and Subscribe may keep their caller when nobody takes what
	// they have, because the connection is just ending.
	o.SetWriteTimeout(l.timing.goodbye)
	o.SetOrderMatters(true)
	o.SetAutoAckDisabled(true)
	// The one handler: messages may come before the answer to SUBSCRIBE.
	o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { l.receive(l.conn.open, m) })
	o.OnConnectionLost = nil
	return o
}

// connect says who this is.
func (l *link) connect() error {
	t := l.mqtt.Connect()
	<-t.Done()
	err := t.Error()
	if err == nil {
		return nil
	}
	if t, ok := t.(*mqtt.ConnectToken); ok {
		switch t.ReturnCode() {
		case packets.ErrRefusedBadUsernameOrPassword, packets.ErrRefusedNotAuthorised, packets.ErrRefusedIDRejected, packets.ErrRefusedBadProtocolVersion:
			return fmt.Errorf("%w: %w", ErrRefused, err)
		case packets.ErrRefusedServerUnavailable:
			return err
		}
	}
	return cmp.Or(l.conn.why(), err)
}

// end ends the connection without a word, and waits until paho's goroutines have
// ended.
func (l *link) end() {
	l.conn.kill(errTold)
	l.mqtt.Disconnect(5000) // milliseconds; a socket that is closed keeps nobody
}

// subscribe asks for topics. The broker may have kept the subscriptions, but
// only a new one brings the retained messages again.
func (l *link) subscribe(topics map[string]byte) error {
	t := l.mqtt.SubscribeMultiple(topics, nil)
	select {
	case <-l.conn.open.Done():
		return l.conn.why()
	case <-t.Done():
	}
	if err := t.Error(); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	granted := t.(*mqtt.SubscribeToken).Result()
	for topic := range topics {
		if got, ok := granted[topic]; !ok || got > qos {
			return fmt.Errorf("%w its topic %s", ErrRefused, topic)
		} else if got < qos {
			return fmt.Errorf("%w: it would lose messages of %s (QoS %d)", ErrRefused, topic, got)
		}
	}
	return nil
}

// serve publishes what is in the outbox, one message at a time, until the
// connection is over or ctx ends.
func (l *link) serve(ctx context.Context, doubt error) error {
	ticks := time.NewTicker(l.timing.keepAlive / 4)
	defer ticks.Stop()
	var (
		w       = watch{link: l, doubt: doubt}
		sent    *outgoing // not acknowledged yet
		token   mqtt.Token
		acked   <-chan struct{}
		late    <-chan time.Time
		trusted <-chan time.Time
	)
	if doubt != nil {
		trusted = time.After(2 * longTaken)
	}
	for {
		if sent == nil {
			if sent = l.out.next(); sent != nil {
				token = l.publish(sent)
				acked = token.Done()
				late = time.After(l.timing.ack + time.Duration(len(sent.payload)/l.timing.slowest)*time.Second)
			}
		}
		select {
		case <-ctx.Done():
			return l.goodbye(ctx)
		case <-l.conn.open.Done():
			return l.conn.why()
		case <-l.out.ring:
		case <-acked:
			if err := token.Error(); err != nil {
				return cmp.Or(l.conn.why(), fmt.Errorf("publish: %w", err))
			}
			if sent.reply == "" {
				w.published()
			}
			l.out.done(sent)
			sent, acked, late = nil, nil, nil
		case <-late:
			// The token of a message that is not acknowledged never completes, not even
			// with its connection.
			return fmt.Errorf("%w to a message", errSilent)
		case <-ticks.C:
			l.conn.ping(l.timing.keepAlive)
		case <-l.heard:
			w.heard()
		case <-w.settled:
			w.correct()
		case <-w.echo:
			w.missed()
		case <-trusted:
			trusted, w.doubt = nil, nil
			l.setState(true, nil)
		}
	}
}

// publish hands m to paho.
func (l *link) publish(m *outgoing) mqtt.Token {
	leaf, retained := wire.LeafReported, true
	if m.reply != "" {
		leaf, retained = wire.LeafReply, false
	}
	return l.mqtt.Publish(wire.Topic(l.cfg.Hub, leaf), qos, retained, m.payload)
}

// goodbye has the broker keep that this hub is offline, and disconnects. Where
// that fails the connection ends without DISCONNECT, and the broker publishes the
// last will, which says the same.
func (l *link) goodbye(ctx context.Context) error {
	limit := time.AfterFunc(l.timing.goodbye, func() { l.conn.kill(errTold) })
	defer limit.Stop()
	if !errors.Is(context.Cause(ctx), errMoved) {
		// What a callback is just dealing with is to be acknowledged.
		select {
		case <-l.dispatched:
		case <-time.After(l.timing.goodbye / 3):
		}
	}
	token := l.publish(&outgoing{payload: l.will})
	select {
	case <-token.Done():
		if token.Error() == nil {
			l.mqtt.Disconnect(1000) // milliseconds
		}
	case <-l.conn.open.Done():
	}
	return errTold
}

// noStore keeps nothing, and so paho sends nothing again.
type noStore struct{}

var _ mqtt.Store = noStore{}

func (noStore) Open()                             {}
func (noStore) Put(string, packets.ControlPacket) {}
func (noStore) Get(string) packets.ControlPacket  { return nil }
func (noStore) All() []string                     { return nil }
func (noStore) Del(string)                        {}
func (noStore) Close()                            {}
func (noStore) Reset()                            {}
