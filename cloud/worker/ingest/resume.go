package ingest

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"

	"github.com/zipato/vms/pkg/token"
)

// resumer makes and opens resume tickets: a push ticket that this process
// vouches for, so that a flapping link needs no NVR. The key is made at start
// and never leaves memory: the tickets end with the process.
type resumer struct {
	once sync.Once
	key  [32]byte
}

const resumePrefix = "resume1."

func (r *resumer) mac(body string) []byte {
	r.once.Do(func() { rand.Read(r.key[:]) })
	m := hmac.New(sha256.New, r.key[:])
	m.Write([]byte(body))
	return m.Sum(nil)
}

func (r *resumer) seal(t token.Push) string {
	data, err := json.Marshal(t)
	if err != nil {
		return "" // strings and numbers: cannot happen; without a ticket the agent asks the NVR
	}
	body := base64.RawURLEncoding.EncodeToString(data)
	return resumePrefix + body + "." + base64.RawURLEncoding.EncodeToString(r.mac(body))
}

// open returns false for what is no resume ticket of this process.
func (r *resumer) open(s string) (t token.Push, ok bool) {
	rest, ok := strings.CutPrefix(s, resumePrefix)
	if !ok || len(s) > 4096 {
		return t, false
	}
	body, sig, _ := strings.Cut(rest, ".")
	mac, err := base64.RawURLEncoding.DecodeString(sig)
	if err != nil || !hmac.Equal(mac, r.mac(body)) {
		return t, false
	}
	data, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil || json.Unmarshal(data, &t) != nil {
		return t, false
	}
	return t, true
}
