package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// codeLife is how long a login code waits to be used: it stands in a URL,
	// and URLs stay in terminals and histories.
	codeLife = 10 * time.Minute
	// maxCodes bounds the codes that wait. One more takes the place of the oldest.
	maxCodes = 64
)

// codes are the login codes that wait to be used. They live in memory: a code
// that a restart forgets is asked for again.
type codes struct {
	now func() time.Time

	mu      sync.Mutex
	waiting map[[sha256.Size]byte]waitingCode
}

type waitingCode struct {
	account vms.AccountID
	expires time.Time
}

func (c *codes) issue(account vms.AccountID) (code string, expires time.Time) {
	code = rand.Text() // at least 128 bits
	now := c.now()
	expires = now.Add(codeLife)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		c.waiting = make(map[[sha256.Size]byte]waitingCode)
	}
	var oldest [sha256.Size]byte
	var oldestExpires time.Time
	for k, w := range c.waiting {
		if !now.Before(w.expires) {
			delete(c.waiting, k)
		} else if oldestExpires.IsZero() || w.expires.Before(oldestExpires) {
			oldest, oldestExpires = k, w.expires
		}
	}
	if len(c.waiting) >= maxCodes {
		delete(c.waiting, oldest)
	}
	c.waiting[sha256.Sum256([]byte(code))] = waitingCode{account, expires}
	return code, expires
}

// redeem uses a code up, whether or not it is still good.
func (c *codes) redeem(code string) (vms.AccountID, bool) {
	key := sha256.Sum256([]byte(code))
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	w, ok := c.waiting[key]
	delete(c.waiting, key)
	return w.account, ok && now.Before(w.expires)
}
