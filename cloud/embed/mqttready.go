package embed

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// prepare makes a server ready for clients: it bounds what waits for clients
// that are away, and waits until the retained messages are read.
func (m *MQTT) prepare(ctx context.Context, srv *server.Server, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, mqttStartPatience)
	defer cancel()
	if err := m.bound(ctx, srv); err != nil {
		return fmt.Errorf("bound its queues: %w", err)
	}
	if err := m.awaitRetained(ctx, addr); err != nil {
		return fmt.Errorf("read its retained messages: %w", err)
	}
	return nil
}

// msgStream is what the library calls the messages that wait for clients. It
// makes the stream, without limits, when there is none.
const msgStream = "$MQTT_msgs"

// bound makes that stream with limits, or gives it them.
func (m *MQTT) bound(ctx context.Context, srv *server.Server) error {
	nc, err := nats.Connect("", nats.InProcessServer(srv), nats.UserInfo(m.name, m.pass), nats.NoReconnect())
	if err != nil {
		return err
	}
	defer nc.Close()
	cfg, err := json.Marshal(server.StreamConfig{
		Name: msgStream, Subjects: []string{"$MQTT.msgs.>"}, Storage: server.FileStorage, Retention: server.InterestPolicy, Replicas: 1,
		Discard: server.DiscardOld, MaxMsgs: -1, MaxConsumers: -1,
		MaxMsgsPer: maxMQTTQueue, MaxBytes: maxMQTTQueued, MaxAge: maxMQTTWait,
	})
	if err != nil {
		return err
	}
	verb := "CREATE"
	for {
		msg, err := nc.RequestWithContext(ctx, "$JS.API.STREAM."+verb+"."+msgStream, cfg)
		if err != nil {
			return err
		}
		var answer server.JSApiStreamCreateResponse
		if err := json.Unmarshal(msg.Data, &answer); err != nil {
			return err
		}
		switch {
		case answer.Error == nil:
			return nil
		case verb == "CREATE" && server.IsNatsErr(answer.Error, server.JSStreamNameExistErr):
			verb = "UPDATE" // it was made with other limits
		default:
			return answer.Error
		}
	}
}

// awaitRetained returns when the broker hands out its retained messages. It
// reads them in the background, in the order in which they were published: one
// published now is the last that it reads.
func (m *MQTT) awaitRetained(ctx context.Context, addr string) error {
	c, err := m.probe(ctx, addr)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	defer context.AfterFunc(ctx, func() { c.conn.Close() })()
	if err := c.connect(m.name, m.pass); err != nil {
		return err
	}
	topic, nonce := "$vms/ready", rand.Text()
	if err := c.publish(topic, nonce); err != nil {
		return err
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		got, err := c.retained(topic)
		if err != nil {
			return err
		}
		if got == nonce {
			break
		}
		<-tick.C // the connection is closed when ctx ends
	}
	if err := c.publish(topic, ""); err != nil { // and it is gone
		return err
	}
	_, err = c.conn.Write([]byte{mqttDisconnect, 0})
	return err
}

// mqttProbe is as much of an MQTT client as awaitRetained needs.
type mqttProbe struct {
	conn net.Conn
	r    *bufio.Reader
	id   uint16
}

// First bytes of packets: kind and flags.
const (
	mqttConnect    = 1 << 4
	mqttConnAck    = 2 << 4
	mqttPublish    = 3 << 4
	mqttPubAck     = 4 << 4
	mqttSubscribe  = 8<<4 | 2
	mqttPing       = 12 << 4
	mqttPong       = 13 << 4
	mqttDisconnect = 14 << 4
	mqttQoS1Retain = 1<<1 | 1
)

var errMQTTAnswer = errors.New("unexpected answer of the broker")

func (m *MQTT) probe(ctx context.Context, addr string) (*mqttProbe, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", reachable(addr))
	if err != nil {
		return nil, err
	}
	if m.cfg.TLS != nil {
		// It is this process that answers, and the name is not in its certificate.
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // see above
	}
	return &mqttProbe{conn: conn, r: bufio.NewReader(conn)}, nil
}

// text is a string as MQTT writes it.
func (*mqttProbe) text(s string) string {
	return string(binary.BigEndian.AppendUint16(nil, uint16(len(s)))) + s //nolint:gosec // all are short
}

func (p *mqttProbe) nextID() string {
	p.id++
	return string(binary.BigEndian.AppendUint16(nil, p.id))
}

func (p *mqttProbe) send(kind byte, body string) error {
	_, err := p.conn.Write(append(binary.AppendUvarint([]byte{kind}, uint64(len(body))), body...))
	return err
}

// expect reads packets until one of this kind comes, and passes the others on.
func (p *mqttProbe) expect(kind byte, other func(kind byte, body []byte)) ([]byte, error) {
	for {
		k, err := p.r.ReadByte()
		if err != nil {
			return nil, err
		}
		n, err := binary.ReadUvarint(p.r)
		if err != nil {
			return nil, err
		}
		if n > 2*maxMQTTPayload {
			return nil, errMQTTAnswer
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(p.r, body); err != nil {
			return nil, err
		}
		if k&0xf0 == kind&0xf0 {
			return body, nil
		}
		if other != nil {
			other(k, body)
		}
	}
}

func (p *mqttProbe) connect(username, password string) error {
	const userPassClean = 1<<7 | 1<<6 | 1<<1
	err := p.send(mqttConnect, p.text("MQTT")+string([]byte{4, userPassClean, 0, 0})+p.text("vms-internal")+p.text(username)+p.text(password))
	if err != nil {
		return err
	}
	body, err := p.expect(mqttConnAck, nil)
	if err != nil {
		return err
	}
	if len(body) != 2 || body[1] != 0 {
		return fmt.Errorf("%w to CONNECT: %x", errMQTTAnswer, body)
	}
	return nil
}

// publish publishes a retained message and waits until it is acknowledged.
func (p *mqttProbe) publish(topic, payload string) error {
	if err := p.send(mqttPublish|mqttQoS1Retain, p.text(topic)+p.nextID()+payload); err != nil {
		return err
	}
	_, err := p.expect(mqttPubAck, nil)
	return err
}

// retained subscribes, and returns what the broker has retained under topic. The
// answer to the ping comes after it.
func (p *mqttProbe) retained(topic string) (payload string, err error) {
	if err := p.send(mqttSubscribe, p.nextID()+p.text(topic)+"\x00"); err != nil {
		return "", err
	}
	if err := p.send(mqttPing, ""); err != nil {
		return "", err
	}
	_, err = p.expect(mqttPong, func(kind byte, body []byte) {
		if rest, ok := strings.CutPrefix(string(body), p.text(topic)); ok && kind&0xf0 == mqttPublish {
			payload = rest // QoS 0: no id
		}
	})
	return payload, err
}
