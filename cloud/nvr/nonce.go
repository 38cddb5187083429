package nvr

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"sync"
	"time"
)

const (
	// nonceLife is how long a hub has to come back with a proof.
	nonceLife = time.Minute
	// maxSpent bounds the memory of spent nonces. Only a proof that verified
	// is remembered, so that only enrolled hubs can fill it, and their rate is
	// limited; a full memory refuses rather than forgets.
	maxSpent = 100_000

	nonceBody = 8 + 16 // expiry in unix seconds, random
	nonceSize = nonceBody + 16
)

// nonces makes challenges that cost nothing to hand out: a nonce carries its
// expiry and a MAC, and nothing is kept until it is spent. The key lives as
// long as the process; after a restart hubs are challenged once more.
type nonces struct {
	clock func() time.Time
	key   [32]byte

	mu    sync.Mutex
	spent map[string]time.Time // nonce -> expiry
	swept time.Time
}

func newNonces(clock func() time.Time) *nonces {
	n := &nonces{clock: clock, spent: make(map[string]time.Time)}
	rand.Read(n.key[:])
	return n
}

// issue returns a fresh nonce of base64url characters.
func (n *nonces) issue() string {
	var b [nonceSize]byte
	binary.BigEndian.PutUint64(b[:], uint64(n.clock().Add(nonceLife).Unix()))
	rand.Read(b[8:nonceBody])
	copy(b[nonceBody:], n.mac(b[:nonceBody]))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// genuine reports whether this process issued the nonce and it has not expired.
func (n *nonces) genuine(nonce string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(nonce)
	if err != nil || len(b) != nonceSize || !hmac.Equal(b[nonceBody:], n.mac(b[:nonceBody])) {
		return false
	}
	return n.clock().Unix() < int64(binary.BigEndian.Uint64(b))
}

// spend uses a genuine nonce up. It reports false for one that was used before.
func (n *nonces) spend(nonce string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.clock()
	if len(n.spent) >= maxSpent || now.Sub(n.swept) > nonceLife {
		for k, exp := range n.spent {
			if !now.Before(exp) {
				delete(n.spent, k)
			}
		}
		n.swept = now
	}
	if _, used := n.spent[nonce]; used || len(n.spent) >= maxSpent {
		return false
	}
	n.spent[nonce] = now.Add(nonceLife + time.Second) // at or past its own expiry
	return true
}

func (n *nonces) mac(b []byte) []byte {
	m := hmac.New(sha256.New, n.key[:])
	m.Write(b)
	return m.Sum(nil)[:nonceSize-nonceBody]
}
