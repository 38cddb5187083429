package token

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/zipato/vms/pkg/vms"
)

// Verifier accepts what the holders of its keys signed. Errors wrap
// vms.ErrInvalid (this is no token), vms.ErrUnauthorized (tampered, signed by
// somebody else, or made for another audience) or vms.ErrExpired. With
// ErrExpired the claims are returned as well: everything but the time was good.
type Verifier struct {
	keys map[string]ed25519.PublicKey
}

// NewVerifier returns a Verifier for the keys of a set.
func NewVerifier(set JWKS) (*Verifier, error) {
	v := &Verifier{keys: make(map[string]ed25519.PublicKey, len(set.Keys))}
	for _, k := range set.Keys {
		pub, err := k.public()
		if err != nil {
			return nil, err
		}
		v.keys[KeyID(pub)] = pub
	}
	if len(v.keys) == 0 {
		return nil, fmt.Errorf("%w: a key set without keys", vms.ErrInvalid)
	}
	return v, nil
}

// VerifyStream reads a stream token.
func (v *Verifier) VerifyStream(tok string, now time.Time) (Stream, error) {
	c, err := v.verify(tok, audienceStream, now)
	if c == nil {
		return Stream{}, fmt.Errorf("stream token: %w", err)
	}
	t := Stream{NVR: c.NVR, SID: c.SID, Channel: c.Channel, Hub: c.Hub, Expires: c.ExpiresAt.UTC()}
	if c.IssuedAt != nil {
		t.Issued = c.IssuedAt.UTC()
	}
	if t.NVR == "" || !vms.ValidID(t.SID) || !vms.ValidID(t.Channel) || (t.Hub != "" && !vms.ValidID(t.Hub)) {
		return Stream{}, fmt.Errorf("stream token: %w: nvr, sid or channel missing", vms.ErrInvalid)
	}
	if err != nil {
		return t, fmt.Errorf("stream token: %w", err)
	}
	return t, nil
}

// VerifyPush reads a push ticket made for worker.
func (v *Verifier) VerifyPush(tok string, worker vms.WorkerID, now time.Time) (Push, error) {
	c, err := v.verify(tok, audiencePush+string(worker), now)
	if c == nil {
		return Push{}, fmt.Errorf("push ticket: %w", err)
	}
	t := Push{Worker: c.Worker, Channel: c.Channel, SID: c.SID, Hub: c.Hub, Generation: c.Generation, Expires: c.ExpiresAt.UTC()}
	if t.Worker != worker || !vms.ValidID(t.Channel) || !vms.ValidID(t.SID) || !vms.ValidID(t.Hub) || t.Generation == 0 {
		return Push{}, fmt.Errorf("push ticket: %w: worker, channel, sid, hub or generation missing", vms.ErrInvalid)
	}
	if err != nil {
		return t, fmt.Errorf("push ticket: %w", err)
	}
	return t, nil
}

// VerifyView reads a view ticket made for worker.
func (v *Verifier) VerifyView(tok string, worker vms.WorkerID, now time.Time) (View, error) {
	c, err := v.verify(tok, audienceView+string(worker), now)
	if c == nil {
		return View{}, fmt.Errorf("view ticket: %w", err)
	}
	t := View{Worker: c.Worker, Channel: c.Channel, Expires: c.ExpiresAt.UTC()}
	if t.Worker != worker || !vms.ValidID(t.Channel) {
		return View{}, fmt.Errorf("view ticket: %w: worker or channel missing", vms.ErrInvalid)
	}
	if err != nil {
		return t, fmt.Errorf("view ticket: %w", err)
	}
	return t, nil
}

// verify returns the claims when all is well, and with ErrExpired; else nil.
func (v *Verifier) verify(tok, audience string, now time.Time) (*claims, error) {
	if len(tok) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", vms.ErrInvalid, len(tok), MaxSize)
	}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
		jwt.WithExpirationRequired(),
		jwt.WithAudience(audience),
		jwt.WithLeeway(Leeway),
		jwt.WithStrictDecoding(),
		jwt.WithTimeFunc(func() time.Time { return now }),
	)
	c := new(claims)
	_, err := parser.ParseWithClaims(tok, c, v.key)
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, jwt.ErrTokenMalformed):
		return nil, fmt.Errorf("%w: not a compact JWS", vms.ErrInvalid)
	case errors.Is(err, jwt.ErrTokenUnverifiable), errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return nil, fmt.Errorf("%w: not signed by a known key", vms.ErrUnauthorized)
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return nil, fmt.Errorf("%w: no expiry or no audience", vms.ErrInvalid)
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return nil, fmt.Errorf("%w: made for another audience", vms.ErrUnauthorized)
	case errors.Is(err, jwt.ErrTokenExpired):
		return c, fmt.Errorf("%w at %s", vms.ErrExpired, c.ExpiresAt.UTC().Format(time.RFC3339))
	}
	return nil, fmt.Errorf("%w: %v", vms.ErrInvalid, err)
}

// key finds the key that a token names. jwt has checked the algorithm before.
func (v *Verifier) key(t *jwt.Token) (any, error) {
	kid, _ := t.Header["kid"].(string)
	pub, ok := v.keys[kid]
	if !ok {
		return nil, errUnknownKey
	}
	return pub, nil
}
