package nvr

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"

	"github.com/zipato/vms/pkg/vms"
)

// sealVersion begins every sealed password, so that another cipher can follow.
const sealVersion = 1

func newSeal(key []byte) (cipher.AEAD, error) {
	if len(key) != 32 {
		return nil, fmt.Errorf("%w: secret key has %d bytes, want 32", vms.ErrInvalid, len(key))
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("secret key: %w", err)
	}
	// 96-bit random nonces are good for 2^32 passwords under one key.
	return cipher.NewGCM(b)
}

// seal encrypts a camera password. The channel is bound into it: a row copied
// to another channel does not open there.
func (n *NVR) seal(ch vms.ChannelID, password string) []byte {
	if password == "" {
		return nil
	}
	out := make([]byte, 1+n.aead.NonceSize(), 1+n.aead.NonceSize()+len(password)+n.aead.Overhead())
	out[0] = sealVersion
	rand.Read(out[1:])
	return n.aead.Seal(out, out[1:], []byte(password), []byte(ch))
}

// unseal is the reverse of seal. It fails when the key was replaced.
func (n *NVR) unseal(ch vms.ChannelID, sealed []byte) (string, error) {
	if len(sealed) == 0 {
		return "", nil
	}
	if size := 1 + n.aead.NonceSize(); len(sealed) < size || sealed[0] != sealVersion {
		return "", fmt.Errorf("camera password of channel %s is not sealed by us", ch)
	}
	nonce, box := sealed[1:1+n.aead.NonceSize()], sealed[1+n.aead.NonceSize():]
	p, err := n.aead.Open(nil, nonce, box, []byte(ch))
	if err != nil {
		return "", fmt.Errorf("camera password of channel %s does not open with this secret key: %w", ch, err)
	}
	return string(p), nil
}
