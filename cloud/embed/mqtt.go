package embed

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/zipato/vms/pkg/retry"
)

// MQTTListenVariable is the environment variable that names the broker's address.
const MQTTListenVariable = "VMS_MQTT_LISTEN"

// What outsiders can make the broker spend.
const (
	// maxMQTTPayload is the largest message: wire.MaxControl, and what the
	// library counts on top of it (its own headers).
	maxMQTTPayload = 256<<10 + 1<<10
	// maxMQTTConns counts those that have not said who they are, too.
	maxMQTTConns = 10_000
	// maxMQTTPending is what one connection may leave unread before it is
	// closed: the retained reports of some thousand hubs, sent in one go to the
	// cloud when it subscribes.
	maxMQTTPending = 32 << 20
	// maxMQTTMemory and maxMQTTStore bound what the broker keeps. Full, it refuses
	// to take more.
	maxMQTTMemory = 32 << 20
	maxMQTTStore  = 1 << 30
	// maxMQTTQueued bounds all that waits for hubs that are away, maxMQTTQueue one
	// topic of one, and maxMQTTWait how long. The oldest goes first: of a
	// document only the newest counts, which is retained besides, and commands
	// are said again until their deadline.
	maxMQTTQueued = 256 << 20
	maxMQTTQueue  = 16
	maxMQTTWait   = 24 * time.Hour
)

// Patience with hubs: slow processors take seconds for a handshake, slow lines
// half a minute for a large document.
const (
	mqttTLSTimeout   = 15 * time.Second
	mqttAuthTimeout  = 10 * time.Second
	mqttWriteTimeout = 45 * time.Second
	mqttAckWait      = 15 * time.Second
)

// mqttWatch is how often Run looks whether the broker still stores what it is told.
const mqttWatch = 2 * time.Second

// MQTTConfig says where the embedded MQTT broker keeps its messages and whom it
// lets in.
type MQTTConfig struct {
	// Dir is the broker's own directory; it is made if it is not there.
	Dir string
	// Addr is host:port, port 0 for any. The host must be there: what listens
	// on all interfaces should say so.
	Addr string
	// TLS, if not nil, is what all must speak.
	TLS *tls.Config
	// Authenticate says what a user may do, and false for one that is not let
	// in. It is called for every connection, from many goroutines. A client's id
	// must be its user name, so that nobody ends or takes over another's session.
	Authenticate func(username, password string) (Access, bool)
	Log          *slog.Logger
}

// Access is what a client may do, as MQTT topic filters. What no filter allows
// is refused.
type Access struct {
	Publish, Subscribe []string
}

// MQTT is a running MQTT 3.1.1 broker (nats-server), without any other listener.
//
// What it acknowledged is on disk: retained messages, sessions, and messages for
// clients that are away survive kill -9 and a power cut. Last wills do not: when
// the broker itself ends, nobody says them.
type MQTT struct {
	cfg  MQTTConfig // Addr with the port that was taken
	log  *slog.Logger
	name string // the internal user's, no hub's
	pass string

	mu     sync.Mutex
	server *server.Server // nil between two, and after Close
	closed bool
}

// StartMQTT starts the broker and returns when it answers and has read all that
// it keeps. ctx bounds the start only; Close ends the broker.
func StartMQTT(ctx context.Context, cfg MQTTConfig) (*MQTT, error) {
	m := &MQTT{cfg: cfg, log: cmp.Or(cfg.Log, slog.Default()), name: "$internal", pass: rand.Text()}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("embedded MQTT broker: %w", err)
	}
	if err := m.start(ctx); err != nil {
		return nil, fmt.Errorf("embedded MQTT broker: %w", err)
	}
	return m, nil
}

func (m *MQTT) check() error {
	cfg := &m.cfg
	switch {
	case cfg.Dir == "":
		return errors.New("no directory")
	case cfg.Authenticate == nil:
		return errors.New("nobody to authenticate clients")
	case cfg.Addr == "":
		return fmt.Errorf("no address: set %s", MQTTListenVariable)
	}
	if host, _, err := net.SplitHostPort(cfg.Addr); err != nil || host == "" {
		return fmt.Errorf("%s is %q, want host:port such as 127.0.0.1:1883", MQTTListenVariable, cfg.Addr)
	}
	var err error
	cfg.Dir, err = filepath.Abs(cfg.Dir) // the embedded object store changes the working directory
	return err
}

// start starts a server on m.cfg.Addr.
func (m *MQTT) start(ctx context.Context) error {
	log := &mqttLog{log: m.log}
	auth := &mqttAuth{mqtt: m, ready: make(chan struct{})}
	opts, err := m.options(auth)
	if err != nil {
		return err
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return err
	}
	srv.SetLoggerV2(log, false, false, false)
	srv.Start() // returns, because no client port is listened on
	if err := log.fatalError(); err != nil {
		end(srv)
		return fmt.Errorf("%w (is %s free? set %s to another address)", err, m.cfg.Addr, MQTTListenVariable)
	}
	host, _, err := net.SplitHostPort(m.cfg.Addr)
	if err != nil {
		end(srv)
		return err
	}
	addr := net.JoinHostPort(host, strconv.Itoa(opts.MQTT.Port)) // it wrote there which one it got
	if err := m.prepare(ctx, srv, addr); err != nil {
		end(srv)
		return err
	}
	close(auth.ready)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		end(srv)
		return net.ErrClosed
	}
	m.cfg.Addr, m.server = addr, srv
	return nil
}

// options are those of a server that listens for MQTT alone.
func (m *MQTT) options(auth *mqttAuth) (*server.Options, error) {
	host, text, err := net.SplitHostPort(m.cfg.Addr)
	if err != nil {
		return nil, err
	}
	port, err := net.LookupPort("tcp", text)
	if err != nil {
		return nil, err
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	opts := &server.Options{}
	// QoS 2 keeps messages for a client until it says more, which it need never
	// do; nothing of ours uses it. The two have no exported field.
	if err := opts.ProcessConfigString("mqtt { reject_qos2_publish: true, downgrade_qos2_subscribe: true }"); err != nil {
		return nil, err
	}
	opts.ServerName = "vms" // part of what is stored: it must not change
	opts.DontListen = true
	opts.NoSigs = true // signals are the program's
	opts.DisableJetStreamBanner = true
	opts.MaxConn = maxMQTTConns
	opts.MaxClosedClients = 64 // which nobody asks for; the room for the default, 10,000, is taken at once
	opts.MaxPayload = maxMQTTPayload
	opts.MaxPending = maxMQTTPending
	opts.WriteDeadline = mqttWriteTimeout
	opts.CustomClientAuthentication = auth
	opts.JetStream = true
	opts.StoreDir = m.cfg.Dir
	opts.SyncAlways = true
	opts.JetStreamMaxMemory = maxMQTTMemory
	opts.JetStreamMaxStore = maxMQTTStore
	// Retained messages are read with one request each, all at once: the default
	// of 10,000 would drop them all from so many hubs on.
	opts.JetStreamRequestQueueLimit = 10 * maxMQTTConns
	opts.MQTT.Host = host
	opts.MQTT.Port = port
	opts.MQTT.TLSConfig = m.cfg.TLS
	opts.MQTT.TLSTimeout = mqttTLSTimeout.Seconds()
	opts.MQTT.AuthTimeout = mqttAuthTimeout.Seconds()
	opts.MQTT.AckWait = mqttAckWait
	return opts, nil
}

// end stops a server and waits until nothing of it is left.
func end(srv *server.Server) {
	srv.Shutdown()
	srv.WaitForShutdown()
}

// URL returns the address of the broker for programs on this machine,
// mqtt://host:port or mqtts://host:port.
func (m *MQTT) URL() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	scheme := "mqtt"
	if m.cfg.TLS != nil {
		scheme = "mqtts"
	}
	return scheme + "://" + reachable(m.cfg.Addr)
}

// reachable replaces "all interfaces" by one.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

// Run keeps the broker going until ctx ends, and closes it. A full disk makes
// the library give up storing for good; then it is started anew until it can.
func (m *MQTT) Run(ctx context.Context) error {
	tick := time.NewTicker(mqttWatch)
	defer tick.Stop()
	backoff := retry.Backoff{Min: time.Second, Max: time.Minute, Steady: time.Minute}
	begin := time.Now()
	for {
		select {
		case <-ctx.Done():
			return m.Close()
		case <-tick.C:
		}
		if m.stores() {
			continue
		}
		wait := backoff.Next(time.Since(begin))
		m.log.Error("the MQTT broker stores nothing any more, perhaps the disk is full; starting it again", "wait", wait)
		m.stop()
		if !retry.Sleep(ctx, wait) {
			return m.Close()
		}
		begin = time.Now()
		if err := m.start(ctx); err != nil && ctx.Err() == nil {
			m.log.Error("the MQTT broker does not start", "err", err)
		}
	}
}

func (m *MQTT) stores() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed || m.server != nil && m.server.JetStreamEnabled()
}

func (m *MQTT) stop() {
	m.mu.Lock()
	srv := m.server
	m.server = nil
	m.mu.Unlock()
	if srv != nil {
		end(srv)
	}
}

// Close stops the broker. When it returns, nothing of it touches the disk or
// the network any more and its port is free.
func (m *MQTT) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.stop()
	return nil
}

// Disconnect ends the open connections of a user, whose last will is said. What
// keeps it from coming back is Authenticate.
func (m *MQTT) Disconnect(username string) {
	m.mu.Lock()
	srv := m.server
	m.mu.Unlock()
	if srv == nil {
		return
	}
	list, err := srv.Connz(&server.ConnzOptions{MQTTClient: username, Limit: maxMQTTConns}) // client id and user name are one
	if err != nil {
		m.log.Error("cannot list the connections of the MQTT broker", "err", err)
		return
	}
	for _, c := range list.Conns {
		_ = srv.DisconnectClientByID(c.Cid) // it may have gone by itself
	}
}
