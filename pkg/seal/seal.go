// Package seal closes a secret so that one hub alone can read it: what the
// cloud publishes for a hub may lie on a broker, in a backup and on flash, and
// gives nothing away there.
//
// A sealed text is one byte for the version, 1, and then HPKE (RFC 9180) in base
// mode, single shot: the encapsulated key (32 bytes) and the ciphertext (16 bytes
// longer than the secret), with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
// ChaCha20-Poly1305, no additional data, and "vms.seal.v1 " and the context as the
// info. The key pair is the X25519 form of the hub's Ed25519 key (the birational
// map of RFC 7748, section 4.1), which is the only key that hub and cloud have
// agreed on.
//
// It says nothing about who sealed: anybody who knows the public key can. And
// it hides the secret's content, not its length.
package seal

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/sha512"
	"errors"
	"fmt"

	"filippo.io/edwards25519"

	"github.com/zipato/vms/pkg/vms"
)

// Overhead is how much longer a sealed text is than its secret, bytes.
const Overhead = 1 + 32 + 16

// ErrSealed says that a text stays closed: it was sealed to another key or for
// another context, or it was damaged. Which of these, nobody can tell.
var ErrSealed = errors.New("sealed for somebody or something else")

const (
	version = 1
	prefix  = "vms.seal.v1 "
)

// Seal closes plaintext for the hub with this public key. Context names what it
// is for: whoever opens must name the same, so that a secret cannot be put in
// another's place. Two seals of one secret differ. ErrInvalid: no hub can have
// such a key.
func Seal(hub ed25519.PublicKey, context string, plaintext []byte) ([]byte, error) {
	if len(hub) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: seal to a key of %d bytes", vms.ErrInvalid, len(hub))
	}
	point, err := new(edwards25519.Point).SetBytes(hub)
	if err != nil {
		return nil, fmt.Errorf("%w: seal: %v", vms.ErrInvalid, err)
	}
	pub, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(point.BytesMontgomery())
	if err != nil {
		return nil, fmt.Errorf("%w: seal: %v", vms.ErrInvalid, err)
	}
	box, err := hpke.Seal(pub, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(prefix+context), plaintext)
	if err != nil { // a point of small order: there is no private key for it
		return nil, fmt.Errorf("%w: seal: %v", vms.ErrInvalid, err)
	}
	return append([]byte{version}, box...), nil
}

// Open returns what was sealed to the hub's key for this context, or ErrSealed.
func Open(hub ed25519.PrivateKey, context string, sealed []byte) ([]byte, error) {
	if len(hub) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("%w: open with a key of %d bytes", vms.ErrInvalid, len(hub))
	}
	if len(sealed) < Overhead || sealed[0] != version {
		return nil, fmt.Errorf("%w: %d bytes that are no sealed text of version %d", ErrSealed, len(sealed), version)
	}
	digest := sha512.Sum512(hub.Seed()) // RFC 8032, section 5.1.5; X25519 clamps it in the same way
	key, err := ecdh.X25519().NewPrivateKey(digest[:32])
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	priv, err := hpke.NewDHKEMPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	plaintext, err := hpke.Open(priv, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(prefix+context), sealed[1:])
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrSealed, err)
	}
	return plaintext, nil
}
