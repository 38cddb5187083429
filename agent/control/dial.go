package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/zipato/vms/pkg/wire"
)

// access is a broker as it is dialled.
type access struct {
	host     string // host:port
	url      *url.URL
	tls      *tls.Config // nil: plain
	loopback bool        // anything else is refused
	username string
	password string
}

// parse checks b. What is wrong with it only another one can cure.
func parse(b wire.Broker, cfg *Config) (*access, error) {
	if b.URL == "" {
		return nil, fmt.Errorf("%w is set", ErrNoBroker)
	}
	u, err := url.Parse(b.URL)
	if err != nil {
		// The URL itself may hold a password.
		return nil, fmt.Errorf("%w: its URL cannot be read", ErrNoBroker)
	}
	if u.User != nil || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%w: its URL is to be mqtt://host:port or mqtts://host:port, nothing else", ErrNoBroker)
	}
	a := &access{url: &url.URL{Scheme: u.Scheme, Host: u.Host}, username: b.Username, password: b.Password}
	if a.username == "" {
		a.username = string(cfg.Hub)
	}
	port := u.Port()
	switch u.Scheme {
	case "mqtt":
		if port == "" {
			port = "1883"
		}
		a.loopback = !cfg.Insecure
		if a.loopback && !isLoopback(u.Hostname()) {
			return nil, fmt.Errorf("%w: mqtt://%s would send the password in the clear; use mqtts://", ErrNoBroker, u.Host)
		}
	case "mqtts":
		if port == "" {
			port = "8883"
		}
		if cfg.TLS == nil {
			return nil, fmt.Errorf("%w: mqtts://%s needs TLS, which this agent was started without", ErrNoBroker, u.Host)
		}
		a.tls = cfg.TLS.Clone()
		if a.tls.ServerName == "" {
			a.tls.ServerName = u.Hostname()
		}
	default:
		return nil, fmt.Errorf("%w: %.20q is no scheme of one; use mqtts:// or mqtt://", ErrNoBroker, u.Scheme)
	}
	a.host = net.JoinHostPort(u.Hostname(), port)
	return a, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// dial connects, within limit.
func (a *access) dial(ctx context.Context, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", a.host)
	if err != nil {
		return nil, err
	}
	if a.loopback {
		if at, ok := raw.RemoteAddr().(*net.TCPAddr); !ok || !at.IP.IsLoopback() {
			raw.Close()
			return nil, errors.New("the name leads off the loopback, where TLS is needed")
		}
	}
	if a.tls == nil {
		return raw, nil
	}
	conn := tls.Client(raw, a.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return conn, nil
}
