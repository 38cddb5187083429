// Package token signs and verifies the three strings that open doors in this
// system: the stream token (a hub may open a session at the NVR), the push
// ticket (an agent may push to a worker) and the view ticket (a browser may
// watch at a worker).
//
// All are compact JWS (RFC 7515) with EdDSA over Ed25519 (RFC 8037) and
// nothing else: a verifier accepts neither another algorithm, nor "none", nor
// a token without an expiry, nor one above MaxSize. The audience keeps one
// kind from being used as another, and a ticket of one worker from being used
// at the next.
package token

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// MaxSize bounds a token before anything of it is parsed.
	MaxSize = 8 << 10
	// Leeway is how long past its expiry a token still passes: the clocks of
	// the machine that signed and of the one that verifies differ a little.
	Leeway = 30 * time.Second
)

// Audiences. Those of tickets are followed by the id of the worker.
const (
	audienceStream = "vms-nvr"
	audiencePush   = "vms-worker:"
	audienceView   = "vms-view:"
)

// Stream is what a stream token says: its bearer, if it is the hub, may open
// session SID of Channel at NVR.
type Stream struct {
	// NVR is the URL of the handshake, such as ws://127.0.0.1:8080/session/v1.
	NVR     string
	SID     vms.SID
	Channel vms.ChannelID
	// Hub is empty when any hub of the account may use the token.
	Hub     vms.HubID
	Issued  time.Time
	Expires time.Time
}

// Push is what a push ticket says: Hub may push Channel to Worker, and fences
// every connection of a lower generation.
type Push struct {
	Worker     vms.WorkerID
	Channel    vms.ChannelID
	SID        vms.SID
	Hub        vms.HubID
	Generation vms.Generation
	Expires    time.Time
}

// View is what a view ticket says: its bearer may watch Channel at Worker.
type View struct {
	Worker  vms.WorkerID
	Channel vms.ChannelID
	Expires time.Time
}

// claims is the body of all three kinds on the wire.
type claims struct {
	NVR        string         `json:"nvr,omitempty"`
	Worker     vms.WorkerID   `json:"worker,omitempty"`
	SID        vms.SID        `json:"sid,omitempty"`
	Channel    vms.ChannelID  `json:"channel"`
	Hub        vms.HubID      `json:"hub,omitempty"`
	Generation vms.Generation `json:"generation,omitempty"`
	jwt.RegisteredClaims
}

// Signer signs with one key and still knows the public half of older ones, so
// that what they signed stays good until it expires. It never changes: to
// rotate, make a new Signer with the old public key among the older ones.
type Signer struct {
	key  ed25519.PrivateKey
	kid  string
	keys JWKS
}

// NewSigner returns a Signer that signs with current.
func NewSigner(current ed25519.PrivateKey, older ...ed25519.PublicKey) (*Signer, error) {
	if len(current) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("signing key has %d bytes, want %d", len(current), ed25519.PrivateKeySize)
	}
	pub := current.Public().(ed25519.PublicKey)
	keys, err := NewJWKS(append([]ed25519.PublicKey{pub}, older...)...)
	if err != nil {
		return nil, err
	}
	return &Signer{key: current, kid: KeyID(pub), keys: keys}, nil
}

// JWKS returns the public keys, the signing one first.
func (s *Signer) JWKS() JWKS { return s.keys.clone() }

// Verifier returns what accepts everything that this signer signed, or that
// its older keys did.
func (s *Signer) Verifier() *Verifier {
	v, err := NewVerifier(s.keys)
	if err != nil {
		panic("token: a signer without keys: " + err.Error()) // NewSigner made the set
	}
	return v
}

// SignStream signs a stream token.
func (s *Signer) SignStream(t Stream) (string, error) {
	return s.sign(audienceStream, t.Expires, claims{NVR: t.NVR, SID: t.SID, Channel: t.Channel, Hub: t.Hub,
		RegisteredClaims: jwt.RegisteredClaims{IssuedAt: jwt.NewNumericDate(t.Issued)}})
}

// SignPush signs a push ticket.
func (s *Signer) SignPush(t Push) (string, error) {
	return s.sign(audiencePush+string(t.Worker), t.Expires,
		claims{Worker: t.Worker, Channel: t.Channel, SID: t.SID, Hub: t.Hub, Generation: t.Generation})
}

// SignView signs a view ticket.
func (s *Signer) SignView(t View) (string, error) {
	return s.sign(audienceView+string(t.Worker), t.Expires, claims{Worker: t.Worker, Channel: t.Channel})
}

func (s *Signer) sign(audience string, expires time.Time, c claims) (string, error) {
	if expires.IsZero() {
		return "", fmt.Errorf("sign token for %s: no expiry", audience)
	}
	c.Audience = jwt.ClaimStrings{audience}
	c.ExpiresAt = jwt.NewNumericDate(expires)
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
	t.Header["kid"] = s.kid
	out, err := t.SignedString(s.key)
	if err != nil {
		return "", fmt.Errorf("sign token for %s: %w", audience, err)
	}
	if len(out) > MaxSize {
		return "", fmt.Errorf("sign token for %s: %d bytes, more than %d", audience, len(out), MaxSize)
	}
	return out, nil
}

// errUnknownKey is a token of another cloud, or of a key long rotated out.
var errUnknownKey = errors.New("no such key")
