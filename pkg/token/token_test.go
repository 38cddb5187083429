package token_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
)

var now = time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)

// key is the same in every run: failures can be looked at twice.
func key(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(slices.Repeat([]byte{n}, ed25519.SeedSize))
}

func signer(t testing.TB, current byte, older ...ed25519.PublicKey) *token.Signer {
	t.Helper()
	s, err := token.NewSigner(key(current), older...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func must(t testing.TB) func(string, error) string {
	return func(tok string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
}

var (
	stream = token.Stream{NVR: "ws://127.0.0.1:8080/session/v1", SID: "sid_1", Channel: "ch_1", Hub: "hub_1", Issued: now, Expires: now.Add(time.Hour)}
	push   = token.Push{Worker: "w1", Channel: "ch_1", SID: "sid_1", Hub: "hub_1", Generation: 1<<63 + 1, Expires: now.Add(time.Hour)}
	view   = token.View{Worker: "w1", Channel: "ch_1", Expires: now.Add(time.Hour)}
)

func TestRoundTrip(t *testing.T) {
	s := signer(t, 1)
	v := s.Verifier()
	if got, err := v.VerifyStream(must(t)(s.SignStream(stream)), now); err != nil || got != stream {
		t.Errorf("VerifyStream = %+v, %v, want %+v", got, err, stream)
	}
	if got, err := v.VerifyPush(must(t)(s.SignPush(push)), "w1", now); err != nil || got != push {
		t.Errorf("VerifyPush = %+v, %v, want %+v", got, err, push)
	}
	if got, err := v.VerifyView(must(t)(s.SignView(view)), "w1", now); err != nil || got != view {
		t.Errorf("VerifyView = %+v, %v, want %+v", got, err, view)
	}
	if _, err := s.SignView(token.View{Worker: "w1", Channel: "c"}); err == nil {
		t.Error("a ticket without an expiry was signed")
	}
}

func TestExpiry(t *testing.T) {
	s := signer(t, 1)
	tok := must(t)(s.SignStream(stream))
	if _, err := s.Verifier().VerifyStream(tok, stream.Expires.Add(token.Leeway-time.Second)); err != nil {
		t.Errorf("within the leeway: %v", err)
	}
	got, err := s.Verifier().VerifyStream(tok, stream.Expires.Add(token.Leeway))
	if !errors.Is(err, vms.ErrExpired) || got != stream {
		t.Errorf("past the leeway = %+v, %v, want the claims and ErrExpired", got, err)
	}
	if _, err := s.Verifier().VerifyStream(tok, time.Unix(0, 0)); err != nil {
		t.Errorf("on a hub that believes in 1970: %v", err)
	}
}

func TestRotation(t *testing.T) {
	old := signer(t, 1)
	tok := must(t)(old.SignStream(stream))
	oldPub := key(1).Public().(ed25519.PublicKey)
	next := signer(t, 2, oldPub)
	if _, err := next.Verifier().VerifyStream(tok, now); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
	if _, err := old.Verifier().VerifyStream(must(t)(next.SignStream(stream)), now); !errors.Is(err, vms.ErrUnauthorized) {
		t.Errorf("a key that is not known yet = %v, want ErrUnauthorized", err)
	}
	if _, err := signer(t, 2).Verifier().VerifyStream(tok, now); !errors.Is(err, vms.ErrUnauthorized) {
		t.Errorf("a key rotated out = %v, want ErrUnauthorized", err)
	}
}

// forge makes a JWS by hand.
func forge(t testing.TB, header, claims map[string]any, sign func([]byte) []byte) string {
	t.Helper()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(header) + "." + part(claims)
	return text + "." + base64.RawURLEncoding.EncodeToString(sign([]byte(text)))
}

func TestRefusals(t *testing.T) {
	s := signer(t, 1)
	pub := key(1).Public().(ed25519.PublicKey)
	kid := token.KeyID(pub)
	ed := func(b []byte) []byte { return ed25519.Sign(key(1), b) }
	head := func(alg, kid string) map[string]any { return map[string]any{"alg": alg, "kid": kid, "typ": "JWT"} }
	claims := func(change func(map[string]any)) map[string]any {
		c := map[string]any{"aud": "vms-nvr", "nvr": "ws://x/", "sid": "sid_1", "channel": "ch_1", "exp": now.Add(time.Hour).Unix()}
		if change != nil {
			change(c)
		}
		return c
	}
	if _, err := s.Verifier().VerifyStream(forge(t, head("EdDSA", kid), claims(nil), ed), now); err != nil {
		t.Fatalf("the forger forges badly: %v", err)
	}
	good := must(t)(s.SignStream(stream))
	parts := strings.Split(good, ".")
	for _, tt := range []struct {
		name string
		tok  string
		want error
	}{
		{"empty", "", vms.ErrInvalid},
		{"no JWS", "a.b", vms.ErrInvalid},
		{"oversize", good + strings.Repeat("A", token.MaxSize), vms.ErrInvalid},
		{"none", forge(t, head("none", kid), claims(nil), func([]byte) []byte { return nil }), vms.ErrUnauthorized},
		{"HMAC with the public key", forge(t, head("HS256", kid), claims(nil), func(b []byte) []byte {
			m := hmac.New(sha256.New, pub)
			m.Write(b)
			return m.Sum(nil)
		}), vms.ErrUnauthorized},
		{"unknown key", forge(t, head("EdDSA", "x"), claims(nil), ed), vms.ErrUnauthorized},
		{"no key", forge(t, map[string]any{"alg": "EdDSA"}, claims(nil), ed), vms.ErrUnauthorized},
		{"other key under this name", forge(t, head("EdDSA", kid), claims(nil), func(b []byte) []byte { return ed25519.Sign(key(9), b) }), vms.ErrUnauthorized},
		{"claims exchanged", parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"aud":"vms-nvr","exp":9999999999}`)) + "." + parts[2], vms.ErrUnauthorized},
		{"no expiry", forge(t, head("EdDSA", kid), claims(func(c map[string]any) { delete(c, "exp") }), ed), vms.ErrInvalid},
		{"expiry is a word", forge(t, head("EdDSA", kid), claims(func(c map[string]any) { c["exp"] = "never" }), ed), vms.ErrInvalid},
		{"no audience", forge(t, head("EdDSA", kid), claims(func(c map[string]any) { delete(c, "aud") }), ed), vms.ErrInvalid},
		{"push ticket as stream token", must(t)(s.SignPush(push)), vms.ErrUnauthorized},
		{"expired and of another audience", forge(t, head("EdDSA", kid), claims(func(c map[string]any) { c["aud"], c["exp"] = "x", 1 }), ed), vms.ErrUnauthorized},
		{"no sid", forge(t, head("EdDSA", kid), claims(func(c map[string]any) { delete(c, "sid") }), ed), vms.ErrInvalid},
		{"channel is no id", forge(t, head("EdDSA", kid), claims(func(c map[string]any) { c["channel"] = "../x" }), ed), vms.ErrInvalid},
	} {
		if got, err := s.Verifier().VerifyStream(tt.tok, now); !errors.Is(err, tt.want) || got != (token.Stream{}) {
			t.Errorf("%s: %+v, %v, want %v", tt.name, got, err, tt.want)
		}
	}
	if _, err := s.Verifier().VerifyPush(must(t)(s.SignPush(push)), "w2", now); !errors.Is(err, vms.ErrUnauthorized) {
		t.Errorf("ticket of another worker = %v, want ErrUnauthorized", err)
	}
	if _, err := s.Verifier().VerifyView(must(t)(s.SignPush(push)), "w1", now); !errors.Is(err, vms.ErrUnauthorized) {
		t.Errorf("push ticket as view ticket = %v, want ErrUnauthorized", err)
	}
}

func TestJWKS(t *testing.T) {
	oldPub := key(1).Public().(ed25519.PublicKey)
	s := signer(t, 2, oldPub)
	data, err := json.Marshal(s.JWKS())
	if err != nil {
		t.Fatal(err)
	}
	set, err := token.ParseJWKS(data)
	if err != nil || len(set.Keys) != 2 {
		t.Fatalf("ParseJWKS = %+v, %v", set, err)
	}
	v, err := token.NewVerifier(set)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.VerifyStream(must(t)(s.SignStream(stream)), now); err != nil {
		t.Errorf("a verifier from the published set: %v", err)
	}
	x := set.Keys[0].X
	for name, bad := range map[string]string{
		"no JSON":      "{",
		"no keys":      `{"keys":[]}`,
		"RSA only":     `{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`,
		"short key":    `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AAAA"}]}`,
		"another name": fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":%q,"kid":"mine"}]}`, x),
		"too large":    `{"keys":[],"x":"` + strings.Repeat("x", 65<<10) + `"}`,
	} {
		if _, err := token.ParseJWKS([]byte(bad)); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("%s = %v, want ErrInvalid", name, err)
		}
	}
	mixed := fmt.Sprintf(`{"keys":[{"kty":"RSA","n":"AQAB"},{"kty":"OKP","crv":"Ed25519","x":%q}]}`, x)
	if set, err := token.ParseJWKS([]byte(mixed)); err != nil || len(set.Keys) != 1 {
		t.Errorf("a set with other keys = %+v, %v, want the one that is ours", set, err)
	}
	// RFC 8037, appendix A.3: the thumbprint of the key of appendix A.2.
	pub, _ := base64.RawURLEncoding.DecodeString("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
	if got, want := token.KeyID(pub), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"; got != want {
		t.Errorf("KeyID = %s, want %s", got, want)
	}
	if _, err := token.NewSigner(nil); err == nil {
		t.Error("a signer without a key was made")
	}
}

// Whatever comes: no panic, and nothing passes that this key did not sign.
func FuzzVerifyStream(f *testing.F) {
	s := signer(f, 1)
	good := must(f)(s.SignStream(stream))
	f.Add(good)
	f.Add("..")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add(strings.Repeat("A", token.MaxSize+1))
	v := s.Verifier()
	f.Fuzz(func(t *testing.T, tok string) {
		if got, err := v.VerifyStream(tok, now); err == nil && (tok != good || got != stream) {
			t.Errorf("passed: %q as %+v", tok, got)
		}
	})
}
