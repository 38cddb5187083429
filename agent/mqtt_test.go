package agent

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

// TestBothWaysToTheHub: the NVR names a broker; what is wanted and what is asked
// comes over it too, and goes on coming while the NVR is away, also after a reboot.
func TestBothWaysToTheHub(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	cam := camtest.Start(t, camtest.Options{Loop: true})
	b := startMosquitto(t)
	cfg := Config{Dir: enrolled(t, c), Drain: 50 * time.Millisecond}
	h := runHubWith(t, cfg)
	cloud := b.client(t)
	c.toHub <- &wire.Broker{URL: "mqtt://" + b.addr, Username: "hub_1", Password: "x"}
	cloud.reported(t, "the hub is there", func(r *wire.Reported) bool { return r.Online })
	if code, body := h.call("GET", "/v1/status", nil); code != 200 || !bytes.Contains([]byte(body), []byte(`"mqtt":"online"`)) {
		t.Errorf("status %d %s", code, body)
	}
	cloud.publish(t, wire.LeafDesired, true, c.desired(5, c.want(t, "ch_1", wire.ModeContinuous, cam.Camera())))
	cloud.reported(t, "revision 5 is done", func(r *wire.Reported) bool { return r.Revision == 5 && r.State == wire.InSync })
	h.until("it runs", func(s lan.Stream) bool { return s.Frames > 0 })

	// Over both ways, and twice over one: done once, answered each time.
	restart := &wire.Command{ID: "cmd_1", Deadline: time.Now().Add(time.Minute), Kind: wire.CommandRestartStream, Channel: "ch_1"}
	cloud.publish(t, wire.LeafCommand, false, restart)
	cloud.publish(t, wire.LeafCommand, false, restart)
	c.toHub <- restart
	if r := cloud.answer(t, "cmd_1"); !r.OK {
		t.Errorf("answer %+v", r)
	}
	cloud.publish(t, wire.LeafCommand, false, restart) // the answer was lost, thinks the cloud
	if r := cloud.answer(t, "cmd_1"); !r.OK {
		t.Errorf("answer %+v", r)
	}
	if r := c.answer(t, "cmd_1"); !r.OK {
		t.Errorf("answer over the control line %+v", r)
	}
	h.until("the camera was left and pulled anew", func(s lan.Stream) bool { return s.CameraSessions == 2 && s.State == wire.StateBuffering })
	h.stop()
	cloud.reported(t, "it says that it goes", func(r *wire.Reported) bool { return !r.Online })

	// The NVR is away. The broker keeps what the hub has not heard.
	c.srv.CloseClientConnections()
	c.srv.Close()
	cloud.publish(t, wire.LeafDesired, true, c.desired(6, c.want(t, "ch_1", wire.ModeContinuous, cam.Camera()), c.want(t, "ch_2", wire.ModeContinuous, cam.Camera())))
	h = runHubWith(t, cfg)
	r := cloud.reported(t, "revision 6 is done", func(r *wire.Reported) bool { return r.Revision == 6 && r.State == wire.InSync })
	if !r.Online || !item(r, "ch_2").Running || cam.Plays() != 4 {
		t.Errorf("report %+v; the camera was opened %d times", r, cam.Plays())
	}
	if n := len(h.streams()); n != 2 {
		t.Errorf("%d streams", n)
	}
}

// TestBrokerThatHangsHoldsNothingUp: neither the agent's start nor its end.
func TestBrokerThatHangsHoldsNothingUp(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	cam := camtest.Start(t, camtest.Options{Loop: true})
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := runHub(t, c)
	c.toHub <- &wire.Broker{URL: "mqtt://" + l.Addr().String(), Username: "hub_1", Password: "x"}
	c.toHub <- c.desired(1, c.want(t, "ch_1", wire.ModeContinuous, cam.Camera()))
	h.until("it runs", func(s lan.Stream) bool { return s.Frames > 0 })
	began := time.Now()
	h.stop()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the agent took %v to end", d)
	}
}

// mosquitto is a broker without passwords.
type mosquitto struct{ addr string }

func startMosquitto(t *testing.T) *mosquitto {
	t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		if path = "/usr/sbin/mosquitto"; !exists(path) {
			t.Fatal("this test needs mosquitto: scripts/setup test installs it")
		}
	}
	for range 10 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		_, port, _ := net.SplitHostPort(addr)
		conf := filepath.Join(t.TempDir(), "conf")
		if err := os.WriteFile(conf, fmt.Appendf(nil, "allow_anonymous true\nlistener %s 127.0.0.1\n", port), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, "-c", conf)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = cmd.Wait() // it is killed
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
		})
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
			if conn, err := net.Dial("tcp", addr); err == nil {
				conn.Close()
				return &mosquitto{addr}
			}
			select {
			case <-ended: // somebody else has taken the port
				deadline = time.Time{}
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	t.Fatal("mosquitto does not start")
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// mqttClient is the cloud's side of MQTT 3.1.1, as little of it as is needed.
type mqttClient struct {
	conn net.Conn
	id   uint16
	said chan wire.SessionMessage
	acks chan struct{}
}

// client connects and hears all that hub_1 says.
func (b *mosquitto) client(t *testing.T) *mqttClient {
	t.Helper()
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	m := &mqttClient{conn: conn, said: make(chan wire.SessionMessage, 1000), acks: make(chan struct{}, 100)}
	var wg sync.WaitGroup
	wg.Go(m.read)
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
	m.send(t, 0x10, append(text("MQTT"), 4, 2, 0, 0), text("cloud")) // a clean session, no keep-alive
	<-m.acks
	m.send(t, 0x82, []byte{0, 1}, text("vms/hub_1/reported"), []byte{1}, text("vms/hub_1/reply"), []byte{1})
	<-m.acks
	return m
}

func text(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

func (m *mqttClient) send(t *testing.T, kind byte, parts ...[]byte) {
	t.Helper()
	body := bytes.Join(parts, nil)
	packet := binary.AppendUvarint([]byte{kind}, uint64(len(body)))
	if _, err := m.conn.Write(append(packet, body...)); err != nil {
		t.Fatal(err)
	}
}

// publish says m to the hub with QoS 1, and waits until the broker has it.
func (m *mqttClient) publish(t *testing.T, leaf string, retain bool, msg wire.SessionMessage) {
	t.Helper()
	payload, err := wire.EncodeSession(msg)
	if err != nil {
		t.Fatal(err)
	}
	kind := byte(0x32)
	if retain {
		kind |= 1
	}
	m.id++
	m.send(t, kind, text(wire.Topic("hub_1", leaf)), binary.BigEndian.AppendUint16(nil, m.id), payload)
	select {
	case <-m.acks:
	case <-time.After(20 * time.Second):
		t.Fatal("the broker does not answer")
	}
}

// read takes what comes until the connection is closed.
func (m *mqttClient) read() {
	in := bufio.NewReader(m.conn)
	for {
		kind, err := in.ReadByte()
		if err != nil {
			return
		}
		n, err := binary.ReadUvarint(in)
		if err != nil {
			return
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		if kind>>4 != 3 {
			m.acks <- struct{}{}
			continue
		}
		topic := 2 + int(binary.BigEndian.Uint16(body))
		payload := body[topic:]
		if kind&6 != 0 {
			_, _ = m.conn.Write([]byte{0x40, 2, payload[0], payload[1]})
			payload = payload[2:]
		}
		if msg, err := wire.DecodeSession(payload); err == nil {
			m.said <- msg
		}
	}
}

func (m *mqttClient) reported(t *testing.T, what string, ok func(*wire.Reported) bool) *wire.Reported {
	t.Helper()
	return reported(t, m.said, what, ok)
}

func (m *mqttClient) answer(t *testing.T, id string) *wire.CommandReply {
	t.Helper()
	return answer(t, m.said, id)
}
