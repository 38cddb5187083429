package nvrlink

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Who proves. The words keep the proof of one from being handed back as that of
// the other.
const (
	byNVR    = "nvr"
	byWorker = "worker"
)

// prove makes the proof that who has key, in the handshake with these nonces
// and this hello, byte by byte as it was sent: HMAC-SHA256 (RFC 2104). The nonces
// have a fixed length, so that nothing can be moved from one field to the next.
func prove(key []byte, who string, worker, nvr hex32, hello []byte) hex32 {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(Protocol + " " + who + "\n")) // a hash takes everything
	m.Write(worker[:])
	m.Write(nvr[:])
	m.Write(hello)
	return hex32(m.Sum(nil))
}

// equal compares proofs in constant time.
func equal(a, b hex32) bool { return hmac.Equal(a[:], b[:]) }

// newNonce draws a nonce.
func newNonce() (n hex32) {
	rand.Read(n[:]) // never fails: crypto/rand ends the program instead
	return n
}

// hex32 is 32 bytes: a nonce, proof, key or checksum. In JSON it is 64 lower-case
// hexadecimal digits.
type hex32 [32]byte

// MarshalText implements encoding.TextMarshaler.
func (h hex32) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *hex32) UnmarshalText(b []byte) error {
	if len(b) != 2*len(h) || strings.ContainsAny(string(b), "ABCDEF") {
		return fmt.Errorf("want %d lower-case hexadecimal digits", 2*len(h))
	}
	_, err := hex.Decode(h[:], b)
	return err
}
