package nvr

import (
	"encoding/base64"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestNonce(t *testing.T) {
	now := zero
	n := newNonces(func() time.Time { return now })
	nonce := n.issue()
	if len(nonce) > 200 || !n.genuine(nonce) {
		t.Fatalf("nonce %q is not genuine", nonce)
	}
	if newNonces(time.Now).genuine(nonce) {
		t.Error("a nonce of another process is genuine")
	}
	b, _ := base64.RawURLEncoding.DecodeString(nonce)
	for i := range b {
		b[i] ^= 1
		if n.genuine(base64.RawURLEncoding.EncodeToString(b)) {
			t.Errorf("a nonce with byte %d changed is genuine", i)
		}
		b[i] ^= 1
	}
	var spent atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if n.spend(nonce) {
				spent.Add(1)
			}
		})
	}
	wg.Wait()
	if spent.Load() != 1 {
		t.Errorf("a nonce was spent %d times", spent.Load())
	}
	other := n.issue()
	now = now.Add(nonceLife)
	if n.genuine(other) {
		t.Error("an expired nonce is genuine")
	}
	now = now.Add(2 * nonceLife)
	if !n.spend(n.issue()) || len(n.spent) != 1 {
		t.Errorf("%d spent nonces are remembered, want those that have not expired", len(n.spent))
	}
}
