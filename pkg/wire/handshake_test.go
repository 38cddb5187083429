package wire

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/zipato/vms/pkg/vms"
)

// testKey is a fixed key: its proof is part of the golden bytes.
func testKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{0x42}, 32)) }

// TestProofIsGolden pins the text that is signed: hubs that are out there sign it.
func TestProofIsGolden(t *testing.T) {
	const text = "vms.session.v1 handshake\nbm9uY2U\nhub_01\nnvr.example:8080\nsid_01"
	p := Prove(testKey(), "bm9uY2U", "hub_01", "NVR.example:8080", "sid_01")
	if want := ed25519.Sign(testKey(), []byte(text)); !bytes.Equal(p.Sig, want) {
		t.Errorf("signature %x, want that of %q", p.Sig, text)
	}
	const sig = "e8c2632ef71eaed1cc27a76ba0c099f0b5da62424e80bbd486f8eae06c5fb860" +
		"90683df30b8e4499282f6b0b4262db1bbc30802aa09223087e650a2c0671420b"
	if got := hex.EncodeToString(p.Sig); got != sig {
		t.Errorf("signature %s, want %s", got, sig)
	}
	const header = `VMS-Hub hub="hub_01", nonce="bm9uY2U", sig="6MJjLvcertHMJ6droMCZ8LXaYkJOgLvUhvjq4GxfuGCQaD3zC45EmSgvawtCYtsbvDCAKqCSIwh-ZQosBnFCCw"`
	if p.Header() != header {
		t.Errorf("header %s, want %s", p.Header(), header)
	}
	if want := `VMS-Hub nonce="bm9uY2U"`; Challenge("bm9uY2U") != want {
		t.Errorf("challenge %s, want %s", Challenge("bm9uY2U"), want)
	}
}

func TestProofHoldsForOneHandshakeOnly(t *testing.T) {
	pub := testKey().Public().(ed25519.PublicKey)
	other, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		pub  ed25519.PublicKey
		edit func(p *Proof, host *string, sid *vms.SID)
		want bool
	}{
		{"as made", pub, func(*Proof, *string, *vms.SID) {}, true},
		{"host in capitals", pub, func(_ *Proof, host *string, _ *vms.SID) { *host = "NVR.EXAMPLE" }, true},
		{"another host", pub, func(_ *Proof, host *string, _ *vms.SID) { *host = "evil.example" }, false},
		{"another port", pub, func(_ *Proof, host *string, _ *vms.SID) { *host += ":81" }, false},
		{"another sid", pub, func(_ *Proof, _ *string, sid *vms.SID) { *sid = "sid_02" }, false},
		{"the control line", pub, func(_ *Proof, _ *string, sid *vms.SID) { *sid = "" }, false},
		{"another nonce", pub, func(p *Proof, _ *string, _ *vms.SID) { p.Nonce = "x" }, false},
		{"another hub", pub, func(p *Proof, _ *string, _ *vms.SID) { p.Hub = "hub_02" }, false},
		{"a flipped bit", pub, func(p *Proof, _ *string, _ *vms.SID) { p.Sig[0] ^= 1 }, false},
		{"no signature", pub, func(p *Proof, _ *string, _ *vms.SID) { p.Sig = nil }, false},
		{"another key", other, func(*Proof, *string, *vms.SID) {}, false},
		{"no key", nil, func(*Proof, *string, *vms.SID) {}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host, sid := "nvr.example", vms.SID("sid_01")
			p := Prove(testKey(), "bm9uY2U", "hub_01", host, sid)
			tt.edit(&p, &host, &sid)
			if got := p.Verify(tt.pub, host, sid); got != tt.want {
				t.Errorf("Verify = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestParseProofReadsWhatHeaderWrites(t *testing.T) {
	want := Prove(testKey(), "bm9uY2U", "hub_01", "nvr.example", "")
	for _, value := range []string{
		want.Header(),
		strings.Replace(want.Header(), "VMS-Hub", "vms-hub", 1),
		strings.ReplaceAll(want.Header(), ", ", ","),
	} {
		got, ok, err := ParseProof(http.Header{"Authorization": {value}})
		if err != nil || !ok || got.Hub != want.Hub || got.Nonce != want.Nonce || !bytes.Equal(got.Sig, want.Sig) {
			t.Errorf("ParseProof(%s) = %+v, %v, %v", value, got, ok, err)
		}
	}
}

func TestParseProofRefuses(t *testing.T) {
	good := Prove(testKey(), "bm9uY2U", "hub_01", "nvr.example", "").Header()
	for name, value := range map[string]string{
		"no sig":            `VMS-Hub hub="hub_01", nonce="bm9uY2U"`,
		"no hub":            strings.Replace(good, `hub="hub_01", `, "", 1),
		"no nonce":          strings.Replace(good, `nonce="bm9uY2U", `, "", 1),
		"empty nonce":       strings.Replace(good, "bm9uY2U", "", 1),
		"a hub that no id":  strings.Replace(good, "hub_01", "Hub 1", 1),
		"a short sig":       good[:len(good)-4] + `"`,
		"sig in other text": `VMS-Hub hub="hub_01", nonce="n", sig="` + strings.Repeat("+", 86) + `"`,
		"nonce of 201":      strings.Replace(good, "bm9uY2U", strings.Repeat("n", 201), 1),
	} {
		_, ok, err := ParseProof(http.Header{"Authorization": {value}})
		if !ok || !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: ParseProof = %v, %v; want a malformed proof", name, ok, err)
		}
	}
	for name, value := range map[string]string{
		"absent":         "",
		"another scheme": "Bearer abc",
		"a longer name":  "VMS-Hubs hub=\"a\"",
	} {
		if _, ok, err := ParseProof(http.Header{"Authorization": {value}}); ok || err != nil {
			t.Errorf("%s: ParseProof = %v, %v; want no proof", name, ok, err)
		}
	}
}

func TestParseChallengeFindsOursAmongOthers(t *testing.T) {
	nonce, ok := ParseChallenge(http.Header{"Www-Authenticate": {`Bearer realm="x"`, Challenge("bm9uY2U")}})
	if !ok || nonce != "bm9uY2U" {
		t.Errorf("ParseChallenge = %q, %v", nonce, ok)
	}
	for _, value := range []string{"", "VMS-Hub", `VMS-Hub nonce=""`, `VMS-Hub nonce=bm9uY2U`, `VMS-Hub realm="x"`, `VMS-Hub nonce="` + strings.Repeat("n", 1001) + `"`} {
		if nonce, ok := ParseChallenge(http.Header{"Www-Authenticate": {value}}); ok {
			t.Errorf("ParseChallenge(%s) = %q", value, nonce)
		}
	}
}
