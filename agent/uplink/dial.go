// Package uplink is the agent's side of the two connections: the session with
// the NVR, and a lane to a worker. Both keep themselves up, with jittered
// backoff, until they are told to stop or told that coming back is of no use.
package uplink

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/problem"
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
	// lastWord is how long a connection that can no longer be written to is still
	// read: the other side may have said why it closes.
	lastWord = 2 * time.Second
)

// Credential is what a hub proves itself with.
type Credential struct {
	Hub vms.HubID
	Key ed25519.PrivateKey
}

// dial opens a WebSocket. A refusal before the upgrade is a *problem.Problem.
func dial(ctx context.Context, client *http.Client, u, protocol string, h http.Header) (*websocket.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, u, &websocket.DialOptions{
		HTTPClient: client, HTTPHeader: h, Subprotocols: []string{protocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		if resp != nil && resp.StatusCode >= 400 {
			return nil, resp, problem.ReadResponse(resp)
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
	conn, resp, err := dial(ctx, s.client, u.String(), wire.SessionProtocol, nil)
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
	conn, _, err = dial(ctx, s.client, u.String(), wire.SessionProtocol, h)
	return conn, err
}

// host names a server in errors and logs, without path or query.
func host(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "an invalid URL"
	}
	return u.Host
}
