package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// patience bounds every wait for something that has to happen: the machine may
// be busy.
const patience = 60 * time.Second

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v: not yet %s", patience, what)
		}
	}
}

// recv receives from c.
func recv[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("after %v: nothing came", patience)
	}
	return v
}

// broker is a Mosquitto of its own, with the permissions that hubs have.
type broker struct {
	addr string
	dir  string
	cmd  *exec.Cmd
	done chan error // of cmd
}

const (
	// acl gives each hub its own topics, and the cloud everything.
	acl = `
user cloud
topic readwrite vms/#

pattern read vms/%u/desired
pattern read vms/%u/cmd
pattern readwrite vms/%u/reported
pattern write vms/%u/reply
`
	password = "correct horse"
)

// users may all log in with password.
var users = []string{"cloud", "h1", "h2"}

func program(t *testing.T, name string) string {
	t.Helper()
	for _, path := range []string{name, "/usr/sbin/" + name, "/usr/bin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	t.Fatalf("this test needs %s: scripts/setup test installs it", name)
	return ""
}

// mosquitto starts a broker that is gone when t is. extra is more configuration.
func mosquitto(t *testing.T, acl, extra string) *broker {
	t.Helper()
	b := &broker{dir: t.TempDir()}
	var plain strings.Builder
	for _, u := range users {
		fmt.Fprintf(&plain, "%s:%s\n", u, password)
	}
	b.write(t, "passwd", plain.String())
	if out, err := exec.CommandContext(t.Context(), program(t, "mosquitto_passwd"), "-U", filepath.Join(b.dir, "passwd")).CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd: %v\n%s", err, out)
	}
	b.write(t, "acl", acl)
	t.Cleanup(func() { b.stop(t, syscall.SIGKILL) })
	for range 10 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		b.addr = l.Addr().String()
		l.Close()
		_, port, _ := net.SplitHostPort(b.addr)
		b.write(t, "conf", fmt.Sprintf(`
user root
log_dest stderr
log_type all
persistence true
persistence_location %s/
allow_anonymous false
password_file %s/passwd
acl_file %s/acl
listener %s 127.0.0.1
%s`, b.dir, b.dir, b.dir, port, extra))
		if b.start(t) {
			return b
		}
	}
	t.Fatal("Mosquitto found no free port")
	return nil
}

func (b *broker) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start starts the broker, again or for the first time. False: its port was taken.
func (b *broker) start(t *testing.T) bool {
	t.Helper()
	b.cmd = exec.Command(program(t, "mosquitto"), "-c", filepath.Join(b.dir, "conf"))
	var log bytes.Buffer
	b.cmd.Stderr = &log
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.done = make(chan error, 1)
	go func() {
		err := b.cmd.Wait()
		t.Logf("mosquitto at %s:\n%s", b.addr, log.String())
		b.done <- err
	}()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		select {
		case <-b.done:
			b.cmd = nil
			return false
		default:
		}
		if conn, err := net.Dial("tcp", b.addr); err == nil {
			conn.Close()
			return true
		}
	}
	t.Fatal("Mosquitto does not listen")
	return false
}

func (b *broker) stop(t *testing.T, how syscall.Signal) {
	t.Helper()
	if b.cmd == nil {
		return
	}
	if err := b.cmd.Process.Signal(how); err != nil {
		t.Fatal(err)
	}
	<-b.done
	b.cmd = nil
}

// restart is a broker that saves what it holds and comes back.
func (b *broker) restart(t *testing.T) {
	t.Helper()
	b.stop(t, syscall.SIGTERM)
	if !b.start(t) {
		t.Fatal("Mosquitto did not come back")
	}
}

// to is how a hub gets to addr.
func to(addr string) wire.Broker {
	return wire.Broker{URL: "mqtt://" + addr, Password: password}
}

// cloud is the other side: a plain client that may do all.
type cloud struct {
	t      *testing.T
	client mqtt.Client

	mu       sync.Mutex
	reported []*wire.Reported
	replies  []*wire.CommandReply
}

func newCloud(t *testing.T, addr string) *cloud {
	t.Helper()
	c := &cloud{t: t}
	o := mqtt.NewClientOptions().AddBroker("mqtt://" + addr).SetClientID("cloud").SetUsername("cloud").SetPassword(password)
	o.SetCleanSession(false).SetMaxReconnectInterval(100 * time.Millisecond).SetDefaultPublishHandler(c.take)
	subscribed := make(chan struct{})
	once := sync.OnceFunc(func() { close(subscribed) })
	o.SetOnConnectHandler(func(client mqtt.Client) {
		token := client.SubscribeMultiple(map[string]byte{"vms/+/reported": 1, "vms/+/reply": 1}, nil)
		if token.WaitTimeout(patience) && token.Error() == nil {
			once()
		}
	})
	c.client = mqtt.NewClient(o)
	wait(t, c.client.Connect())
	t.Cleanup(func() { c.client.Disconnect(1000) })
	select {
	case <-subscribed:
	case <-time.After(patience):
		t.Fatal("the cloud could not subscribe")
	}
	return c
}

func wait(t *testing.T, token mqtt.Token) {
	t.Helper()
	if !token.WaitTimeout(patience) {
		t.Fatal("the broker does not answer the cloud")
	}
	if err := token.Error(); err != nil {
		t.Fatal(err)
	}
}

func (c *cloud) take(_ mqtt.Client, m mqtt.Message) {
	decoded, err := wire.DecodeSession(m.Payload())
	if err != nil {
		c.t.Errorf("the hub sent on %s: %v", m.Topic(), err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch v := decoded.(type) {
	case *wire.Reported:
		c.reported = append(c.reported, v)
	case *wire.CommandReply:
		c.replies = append(c.replies, v)
	}
}

// publish has the broker take m.
func (c *cloud) publish(hub vms.HubID, leaf string, m wire.SessionMessage) {
	c.t.Helper()
	data, err := wire.EncodeSession(m)
	if err != nil {
		c.t.Fatal(err)
	}
	c.raw(hub, leaf, data)
}

func (c *cloud) raw(hub vms.HubID, leaf string, data []byte) {
	c.t.Helper()
	wait(c.t, c.client.Publish(wire.Topic(hub, leaf), 1, leaf == wire.LeafDesired || leaf == wire.LeafReported, data))
}

// last returns what was reported last, an empty report when nothing was.
func (c *cloud) last() wire.Reported {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.reported) == 0 {
		return wire.Reported{}
	}
	return *c.reported[len(c.reported)-1]
}

func (c *cloud) replied() (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.replies {
		ids = append(ids, r.ID)
	}
	return ids
}

// hub is a client with what its callbacks got.
type hub struct {
	*Client
	stop func() // ends Run and waits

	mu       sync.Mutex
	desired  []*wire.Desired
	commands []string
	reports  []*wire.Reported
	states   []error
}

// newHub makes a client that does not run yet; change may change it.
func newHub(t *testing.T, id vms.HubID, boot string, change func(*hub)) *hub {
	t.Helper()
	h := &hub{}
	h.Client = New(Config{
		Hub: id, Boot: boot, Log: vmstest.Log(t).With("boot", boot),
		OnDesired:  func(d *wire.Desired) { h.note(func() { h.desired = append(h.desired, d) }) },
		OnCommand:  func(c *wire.Command) { h.note(func() { h.commands = append(h.commands, c.ID) }) },
		OnReported: func(r *wire.Reported) { h.note(func() { h.reports = append(h.reports, r) }) },
		OnState:    func(err error) { h.note(func() { h.states = append(h.states, err) }) },
	})
	if change != nil {
		change(h)
	}
	return h
}

// run runs h until its stop, or the end of t.
func (h *hub) run(t *testing.T) *hub {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	t.Cleanup(h.stop)
	return h
}

// startHub is a hub at addr, connected.
func startHub(t *testing.T, id vms.HubID, boot, addr string) *hub {
	t.Helper()
	h := newHub(t, id, boot, nil)
	h.SetBroker(to(addr))
	h.run(t)
	h.connected(t)
	return h
}

func (h *hub) connected(t *testing.T) {
	t.Helper()
	eventually(t, "connected", func() bool { up, err := h.Connected(); return up && err == nil })
}

// says waits for a state.
func (h *hub) says(t *testing.T, want error) {
	t.Helper()
	eventually(t, "in the state: "+want.Error(), func() bool { _, err := h.Connected(); return errors.Is(err, want) })
	eventually(t, "said by OnState: "+want.Error(), func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.states) > 0 && errors.Is(h.states[len(h.states)-1], want)
	})
}

func (h *hub) note(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *hub) heardCommands() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.commands...)
}

func (h *hub) revision() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.desired) == 0 {
		return 0
	}
	return h.desired[len(h.desired)-1].Revision
}

func desired(id vms.HubID, revision int64) *wire.Desired {
	return &wire.Desired{Hub: id, Revision: revision, Issued: time.UnixMilli(revision).UTC()}
}

func report(id vms.HubID, boot string, serial int64) *wire.Reported {
	return &wire.Reported{Hub: id, Boot: boot, Online: true, Serial: serial}
}

func command(id string) *wire.Command {
	return &wire.Command{ID: id, Kind: wire.CommandDoctor, Deadline: time.Now().Add(time.Hour)}
}

// scripted is a broker whose every connection is handled by serve, for what no
// real broker can be made to do.
func scripted(t *testing.T, serve func(*script)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[conn] = true
			mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				serve(&script{Conn: conn, t: t})
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// script is one connection at a scripted broker.
type script struct {
	net.Conn
	t *testing.T
}

// next reads a packet, nil at the end of the connection.
func (s *script) next() packets.ControlPacket {
	p, err := packets.ReadPacket(s)
	if err != nil {
		return nil
	}
	return p
}

// welcome takes the client in, with codes for its three topics.
func (s *script) welcome(codes ...byte) bool {
	if _, ok := s.next().(*packets.ConnectPacket); !ok {
		return false
	}
	if packets.NewControlPacket(packets.Connack).Write(s) != nil {
		return false
	}
	sub, ok := s.next().(*packets.SubscribePacket)
	if !ok {
		return false
	}
	ack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	ack.MessageID, ack.ReturnCodes = sub.MessageID, codes
	return ack.Write(s) == nil
}

// send sends one message.
func (s *script) send(id uint16, topic string, m wire.SessionMessage) bool {
	data, err := wire.EncodeSession(m)
	if err != nil {
		s.t.Error(err)
		return false
	}
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.Qos, p.MessageID, p.TopicName, p.Payload = 1, id, topic, data
	return p.Write(s) == nil
}

// answer acknowledges and answers pings until the connection ends.
func (s *script) answer() {
	for {
		switch p := s.next().(type) {
		case nil:
			return
		case *packets.PublishPacket:
			s.acknowledge(p)
		case *packets.PingreqPacket:
			_ = packets.NewControlPacket(packets.Pingresp).Write(s)
		case *packets.DisconnectPacket:
			return
		}
	}
}

func (s *script) acknowledge(p *packets.PublishPacket) {
	ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	ack.MessageID = p.MessageID
	_ = ack.Write(s) // an error ends the connection, which the reader sees
}
