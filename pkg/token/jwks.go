package token

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/zipato/vms/pkg/vms"
)

const (
	maxJWKS = 64 << 10 // bytes of a key set
	maxKeys = 32       // keys in a set: a year of monthly rotation, twice over
)

// JWKS is a set of public keys (RFC 7517): what hubs pin at enrolment.
type JWKS struct {
	Keys []JWK `json:"keys"`
}

// JWK is one Ed25519 public key (RFC 8037).
type JWK struct {
	KeyType   string `json:"kty"` // "OKP"
	Curve     string `json:"crv"` // "Ed25519"
	X         string `json:"x"`   // the key, base64url
	KeyID     string `json:"kid"`
	Use       string `json:"use,omitempty"` // "sig"
	Algorithm string `json:"alg,omitempty"` // "EdDSA"
}

// KeyID names a public key by its thumbprint (RFC 7638), so that a key has the
// same id everywhere and needs no register.
func KeyID(pub ed25519.PublicKey) string {
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":"Ed25519","kty":"OKP","x":"%s"}`, base64.RawURLEncoding.EncodeToString(pub)))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// NewJWKS returns the set of the given keys.
func NewJWKS(keys ...ed25519.PublicKey) (JWKS, error) {
	set := JWKS{Keys: make([]JWK, 0, len(keys))}
	for _, k := range keys {
		if len(k) != ed25519.PublicKeySize {
			return JWKS{}, fmt.Errorf("%w: public key has %d bytes, want %d", vms.ErrInvalid, len(k), ed25519.PublicKeySize)
		}
		set.Keys = append(set.Keys, JWK{KeyType: "OKP", Curve: "Ed25519", X: base64.RawURLEncoding.EncodeToString(k),
			KeyID: KeyID(k), Use: "sig", Algorithm: "EdDSA"})
	}
	return set, nil
}

// ParseJWKS reads a key set. Keys of other types are left out, as RFC 7517
// asks; a set in which none remains is an error.
func ParseJWKS(data []byte) (JWKS, error) {
	if len(data) > maxJWKS {
		return JWKS{}, fmt.Errorf("%w: key set of %d bytes, more than %d", vms.ErrInvalid, len(data), maxJWKS)
	}
	var all JWKS
	if err := json.Unmarshal(data, &all); err != nil {
		return JWKS{}, fmt.Errorf("%w: key set: %v", vms.ErrInvalid, err)
	}
	var set JWKS
	for _, k := range all.Keys {
		if k.KeyType != "OKP" || k.Curve != "Ed25519" || (k.Use != "" && k.Use != "sig") {
			continue
		}
		if _, err := k.public(); err != nil {
			return JWKS{}, err
		}
		set.Keys = append(set.Keys, k)
	}
	if len(set.Keys) == 0 || len(set.Keys) > maxKeys {
		return JWKS{}, fmt.Errorf("%w: key set with %d Ed25519 keys, want 1 to %d", vms.ErrInvalid, len(set.Keys), maxKeys)
	}
	return set, nil
}

// public decodes the key and checks that its id, when it has one, is its own:
// a set cannot give somebody else's name to a key.
func (k JWK) public() (ed25519.PublicKey, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(k.X)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: key %.64q is no Ed25519 public key", vms.ErrInvalid, k.KeyID)
	}
	if k.KeyID != "" && k.KeyID != KeyID(b) {
		return nil, fmt.Errorf("%w: key %.64q has another thumbprint", vms.ErrInvalid, k.KeyID)
	}
	return b, nil
}

func (s JWKS) clone() JWKS { return JWKS{Keys: slices.Clone(s.Keys)} }
