package seal

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/edwards25519"

	"github.com/zipato/vms/pkg/vms"
)

// hub is the key of RFC 8032, section 7.1, test 2.
func hub(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	seed, err := hex.DecodeString("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
	if err != nil {
		t.Fatal(err)
	}
	return ed25519.NewKeyFromSeed(seed)
}

func public(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

func TestOnlyTheHubOpens(t *testing.T) {
	key := hub(t)
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range [][]byte{nil, []byte("p"), []byte(`{"host":"192.168.1.20","password":"<secret>"}`), bytes.Repeat([]byte("long "), 10_000)} {
		sealed, err := Seal(public(key), "camera/ch_01", secret)
		if err != nil {
			t.Fatal(err)
		}
		if len(sealed) != len(secret)+Overhead {
			t.Errorf("%d bytes are sealed into %d, want %d more", len(secret), len(sealed), Overhead)
		}
		if len(secret) > 10 && bytes.Contains(sealed, secret[:10]) {
			t.Error("the secret can be read in the sealed text")
		}
		if got, err := Open(key, "camera/ch_01", sealed); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("opened %q, %v", got, err)
		}
		if _, err := Open(other, "camera/ch_01", sealed); !errors.Is(err, ErrSealed) {
			t.Errorf("another hub opens: %v", err)
		}
		for _, context := range []string{"", "camera/ch_02", "camera/ch_01 ", "camera/ch_0"} {
			if _, err := Open(key, context, sealed); !errors.Is(err, ErrSealed) {
				t.Errorf("opened for %q: %v", context, err)
			}
		}
	}
}

func TestTwoSealsDiffer(t *testing.T) {
	a, err := Seal(public(hub(t)), "x", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Seal(public(hub(t)), "x", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a, b) || bytes.Equal(a[1:33], b[1:33]) {
		t.Error("the same secret gives the same text: who watches sees what did not change")
	}
}

func TestDamageIsSeen(t *testing.T) {
	sealed, err := Seal(public(hub(t)), "x", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		for _, bit := range []byte{0x01, 0x80} {
			bad := bytes.Clone(sealed)
			bad[i] ^= bit
			if _, err := Open(hub(t), "x", bad); !errors.Is(err, ErrSealed) {
				t.Fatalf("byte %d changed: %v, want ErrSealed", i, err)
			}
		}
		if _, err := Open(hub(t), "x", sealed[:i]); !errors.Is(err, ErrSealed) {
			t.Fatalf("cut to %d bytes: %v, want ErrSealed", i, err)
		}
	}
	if _, err := Open(hub(t), "x", append(sealed, 0)); !errors.Is(err, ErrSealed) {
		t.Errorf("a byte more: %v, want ErrSealed", err)
	}
}

func golden(t testing.TB) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "golden.hex"))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// TestGolden opens what is on flash and on brokers already. If it fails, the
// format has changed and every hub has lost its cameras' passwords.
func TestGolden(t *testing.T) {
	sealed := golden(t)
	const want = `{"host":"192.168.1.20","port":8554,"username":"viewer","password":"<secret> & \"more\""}`
	got, err := Open(hub(t), "camera/ch_01", sealed)
	if err != nil || string(got) != want {
		t.Errorf("opened %q, %v, want %q", got, err, want)
	}
}

// TestKeysMatch: the public key that the cloud makes is that of the private key
// which the hub makes, whatever the seed.
func TestKeysMatch(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		seed := make([]byte, ed25519.SeedSize)
		for i := range seed {
			seed[i] = byte(rnd.Uint32())
		}
		key := ed25519.NewKeyFromSeed(seed)
		digest := sha512.Sum512(seed)
		dh, err := ecdh.X25519().NewPrivateKey(digest[:32])
		if err != nil {
			t.Fatal(err)
		}
		point, err := new(edwards25519.Point).SetBytes(public(key))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dh.PublicKey().Bytes(), point.BytesMontgomery()) {
			t.Fatalf("seed %x: public keys differ", seed)
		}
	}
}

// TestNoSuchKey: nothing is sealed to what can be no hub's key, where everybody
// could open it.
func TestNoSuchKey(t *testing.T) {
	one := make([]byte, 32) // the neutral element: y = 1
	one[0] = 1
	offCurve := make([]byte, 32)
	offCurve[0] = 2
	for name, key := range map[string][]byte{
		"none": nil, "short": make([]byte, 31), "long": make([]byte, 33),
		"small order": make([]byte, 32), "neutral element": one, "not on the curve": offCurve,
	} {
		if sealed, err := Seal(key, "x", []byte("secret")); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("%s: sealed %x, %v, want ErrInvalid", name, sealed, err)
		}
	}
	if _, err := Open(nil, "x", make([]byte, 100)); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("open without a key: %v, want ErrInvalid", err)
	}
}

func FuzzOpen(f *testing.F) {
	key, sealed := hub(f), golden(f)
	f.Add(sealed)
	f.Add(make([]byte, Overhead))
	f.Add([]byte{version})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Open(key, "camera/ch_01", data)
		if err == nil && !bytes.Equal(data, sealed) {
			t.Fatalf("opened %x as %q", data, got)
		}
		if err != nil && !errors.Is(err, ErrSealed) {
			t.Fatalf("error %v does not wrap ErrSealed", err)
		}
	})
}
