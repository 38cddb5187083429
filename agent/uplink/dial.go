// Package uplink is the agent's side of the two protocols: the session with the
// NVR, and the lanes to a worker. Both keep themselves up, with jittered
// backoff, until they are told to stop or told that coming back is of no use. A
// Governor shares a hub's uplink out among its lanes, live first.
package uplink

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"syscall"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// dialTimeout bounds a handshake: TCP, TLS and the upgrade.
	dialTimeout = 15 * time.Second
	// silence is how long a connection may say nothing: the worker acknowledges
	// and the NVR pings every 5 s.
	silence = 15 * time.Second
	// writeTimeout bounds a control message. Chunks have no deadline of their
	// own: on a slow uplink one may take minutes while acknowledgements come in.
	writeTimeout = 15 * time.Second
	// connectTimeout bounds the first step, name and TCP: while the link is down
	// packets vanish, and one that was sent then must not be waited for when it is
	// back.
	connectTimeout = 3 * time.Second
	// lastWord is how long a connection that can no longer be written to is still
	// read: the other side may have said why it closes.
	lastWord = 2 * time.Second
	// goodbye is how long the NVR may take to answer that a session closes.
	goodbye = time.Second
)

// Credential is what a hub proves itself with.
type Credential struct {
	Hub vms.HubID
	Key ed25519.PrivateKey
}

// errLink: the other side was not reached at all.
type errLink struct{ error }

func (e errLink) Unwrap() error { return e.error }

// linkDown reports whether err means that nobody was reached, or that a
// connection that had held for so long broke without a word: most often it is the
// household's own uplink that is down then, and to try again costs the cloud
// little. One that breaks right away rather means a server in trouble.
func linkDown(err error, held time.Duration) bool {
	var link errLink
	var closed *CloseError
	var refused Refused
	return errors.As(err, &link) || held >= time.Second && !errors.As(err, &closed) && !errors.As(err, &refused) && websocket.CloseStatus(err) == -1
}

// linkPace spaces the tries while the link is down: the live picture has to be
// back within 2 s of the link. Servers that are there and say no, or close, are
// given the longer waits of the callers.
func linkPace() retry.Backoff {
	return retry.Backoff{Min: 200 * time.Millisecond, Max: 2 * time.Second, Steady: steady}
}

// NewClient returns what makes the connections of sessions and lanes: one that
// gives up a link that is down soon, and verifies servers as tls says; nil: as
// the system does. One client is enough for a hub.
func NewClient(tls *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:           http.ProxyFromEnvironment,
		DialContext:     (&net.Dialer{Timeout: connectTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig: tls,
	}}
}

// httpClient is for who has none.
var httpClient = NewClient(nil)

// dial opens a WebSocket. A refusal before the upgrade is a *problem.Problem.
func dial(ctx context.Context, client *http.Client, u, protocol string, h http.Header) (*websocket.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if client == nil {
		client = httpClient
	}
	c, resp, err := websocket.Dial(ctx, u, &websocket.DialOptions{
		HTTPClient: client, HTTPHeader: h, Subprotocols: []string{protocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		if resp != nil && resp.StatusCode >= 400 {
			return nil, resp, problem.ReadResponse(resp)
		}
		var cert *tls.CertificateVerificationError
		if resp == nil && !errors.As(err, &cert) {
			err = errLink{err}
		}
		return nil, resp, err
	}
	if c.Subprotocol() != protocol {
		c.CloseNow()
		return nil, resp, fmt.Errorf("the server at %s does not speak %s", host(u), protocol)
	}
	return c, resp, nil
}

// dial shakes hands with the NVR: a first try to learn the nonce, a
// second one with the proof.
func (s *Session) dial(ctx context.Context) (*websocket.Conn, error) {
	u, err := url.Parse(s.URL)
	if err != nil || u.Host == "" || (u.Scheme != "ws" && u.Scheme != "wss") {
		return nil, fmt.Errorf("%w: NVR URL %q, want ws:// or wss://", vms.ErrInvalid, s.URL)
	}
	if s.SID != "" {
		q := u.Query()
		q.Set("sid", string(s.SID))
		u.RawQuery = q.Encode()
	}
	conn, resp, err := dial(ctx, s.Client, u.String(), wire.SessionProtocol, nil)
	if err == nil {
		conn.CloseNow()
		return nil, fmt.Errorf("the NVR at %s asked for no proof of identity", u.Host)
	}
	if resp == nil {
		return nil, err
	}
	nonce, ok := wire.ParseChallenge(resp.Header)
	if !ok {
		return nil, err
	}
	h := http.Header{"Authorization": {wire.Prove(s.Credential.Key, nonce, s.Credential.Hub, u.Host, s.SID).Header()}}
	if s.Token != "" {
		h.Set(wire.TokenHeader, s.Token)
	}
	s.socket = nil
	conn, _, err = dial(withSocket(ctx, &s.socket), s.Client, u.String(), wire.SessionProtocol, h)
	return conn, err
}

// withSocket returns a context for a dial that notes the connection below in c.
func withSocket(ctx context.Context, c *net.Conn) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { *c = i.Conn }})
}

// below returns the connection below c's TLS.
func below(c net.Conn) net.Conn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return c
}

// rawConn returns the descriptor of a socket, nil when c is none.
func rawConn(c net.Conn) syscall.RawConn {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// host names a server in errors and logs, without path or query.
func host(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "an invalid URL"
	}
	return u.Host
}
