package snapshot

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// challenge is one way to authenticate that a camera offers (RFC 9110, 11.6.1).
type challenge struct {
	basic                bool
	hash                 func() hash.Hash // of Digest
	algorithm            string           // as the camera spells it; empty: it does not say
	session              bool             // the algorithm ends in -sess
	realm, nonce, opaque string
	qop                  bool // RFC 7616; else as RFC 2069 has it
	stale                bool
	strength             int
}

// strongest returns the best of the challenges that can be met.
func strongest(headers []string) (best challenge, ok bool) {
	for _, h := range headers {
		for _, p := range parse(h) {
			if c, can := p.read(); can && c.strength > best.strength {
				best, ok = c, true
			}
		}
	}
	return best, ok
}

// offer is a challenge as it stands in the header.
type offer struct {
	scheme string // lower case
	params map[string]string
}

// parse takes a WWW-Authenticate header apart, which may hold several challenges
// with several parameters each, all with commas between them. What makes no
// sense is passed over.
func parse(header string) (out []offer) {
	for s := header; ; {
		s = strings.TrimLeft(s, " \t,")
		if s == "" {
			return out
		}
		n := strings.IndexAny(s, " \t,=\"")
		if n < 0 {
			n = len(s)
		}
		if n == 0 { // a stray = or quote
			s = s[1:]
			continue
		}
		word := s[:n]
		s = strings.TrimLeft(s[n:], " \t")
		if !strings.HasPrefix(s, "=") {
			out = append(out, offer{scheme: strings.ToLower(word), params: map[string]string{}})
			continue
		}
		var value string
		value, s = valueOf(strings.TrimLeft(s[1:], " \t"))
		if len(out) > 0 {
			out[len(out)-1].params[strings.ToLower(word)] = value
		}
	}
}

// valueOf reads a token or a quoted string.
func valueOf(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		n := strings.IndexAny(s, " \t,")
		if n < 0 {
			n = len(s)
		}
		return s[:n], s[n:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// read reports whether the offer can be met.
func (o offer) read() (c challenge, ok bool) {
	if o.scheme == "basic" {
		return challenge{basic: true, strength: 1}, true
	}
	if o.scheme != "digest" {
		return c, false
	}
	c = challenge{
		algorithm: o.params["algorithm"], realm: o.params["realm"], nonce: o.params["nonce"], opaque: o.params["opaque"],
		stale: strings.EqualFold(o.params["stale"], "true"),
	}
	name, sess := strings.CutSuffix(strings.ToUpper(c.algorithm), "-SESS")
	c.session = sess
	switch name {
	case "", "MD5":
		c.hash, c.strength = md5.New, 2
	case "SHA-256":
		c.hash, c.strength = sha256.New, 3
	default:
		return c, false
	}
	list, given := o.params["qop"]
	for q := range strings.SplitSeq(list, ",") {
		c.qop = c.qop || strings.EqualFold(strings.TrimSpace(q), "auth")
	}
	// Only auth-int is not for us. Without qop there is no session either.
	return c, c.nonce != "" && (c.qop || !given && !c.session)
}

// answer returns the header Authorization for one request.
func (c *challenge) answer(username, password, method, uri string) string {
	if c.basic {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return c.digest(username, password, method, uri, hex.EncodeToString(b[:]))
}

// digest is answer with a client nonce that is used once.
func (c *challenge) digest(username, password, method, uri, cnonce string) string {
	const count = "00000001" // each nonce is used for one request
	a1 := c.sum(username, c.realm, password)
	if c.session {
		a1 = c.sum(a1, c.nonce, cnonce)
	}
	a2 := c.sum(method, uri)
	response := c.sum(a1, c.nonce, a2)
	if c.qop {
		response = c.sum(a1, c.nonce, count, cnonce, "auth", a2)
	}
	var out strings.Builder
	fmt.Fprintf(&out, `Digest username=%s, realm=%s, nonce=%s, uri=%s, response="%s"`, quote(username), quote(c.realm), quote(c.nonce), quote(uri), response)
	if c.algorithm != "" {
		fmt.Fprintf(&out, `, algorithm=%s`, strings.Map(token, c.algorithm))
	}
	if c.opaque != "" {
		fmt.Fprintf(&out, `, opaque=%s`, quote(c.opaque))
	}
	if c.qop {
		fmt.Fprintf(&out, `, qop=auth, nc=%s, cnonce="%s"`, count, cnonce)
	}
	return out.String()
}

// sum is the hash of the parts with colons between them, in hexadecimal digits.
func (c *challenge) sum(parts ...string) string {
	h := c.hash()
	h.Write([]byte(strings.Join(parts, ":"))) // a hash takes all
	return hex.EncodeToString(h.Sum(nil))
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func token(r rune) rune {
	if r == '-' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' {
		return r
	}
	return -1
}
