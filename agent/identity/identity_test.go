package identity

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
)

// cloudOf answers enrolments, and returns what it was sent.
func cloudOf(t *testing.T, answer http.HandlerFunc) (base string, bodies *[]map[string]string) {
	bodies = new([]map[string]string)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in map[string]string
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Method != "POST" || r.URL.Path != "/base/api/v1/enroll" {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		*bodies = append(*bodies, in)
		answer(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL + "/base", bodies
}

func keys(t *testing.T) token.JWKS {
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := token.NewJWKS(pub)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func accept(t *testing.T) http.HandlerFunc {
	k := keys(t)
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(201)
		if err := json.NewEncoder(w).Encode(map[string]any{"hub_id": "hub_1", "nvr_url": "ws://nvr.test/session/v1", "token_keys": k}); err != nil {
			t.Error(err)
		}
	}
}

func TestEnrolAndLoad(t *testing.T) {
	base, bodies := cloudOf(t, accept(t))
	dir := filepath.Join(t.TempDir(), "new")
	if _, err := Load(dir); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("Load = %v before enrolment", err)
	}
	made, err := Enroll(t.Context(), http.DefaultClient, base, "code-1", "Kitchen", dir)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !loaded.Key.Equal(made.Key) || loaded.Hub != "hub_1" || loaded.LANKey != made.LANKey || len(loaded.LANKey) < 32 || len(loaded.TokenKeys.Keys) != 1 {
		t.Errorf("loaded %+v", loaded)
	}
	in := (*bodies)[0]
	pub, err := base64.RawURLEncoding.DecodeString(in["public_key"])
	if err != nil || !made.Key.Public().(ed25519.PublicKey).Equal(ed25519.PublicKey(pub)) || in["code"] != "code-1" || in["name"] != "Kitchen" {
		t.Errorf("sent %v, %v", in, err)
	}
	// The secrets are for their owner only, and nothing half written is left.
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 || strings.HasPrefix(d.Name(), ".new-") {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := Enroll(t.Context(), http.DefaultClient, base, "code-2", "Kitchen", dir); !errors.Is(err, vms.ErrConflict) || len(*bodies) != 1 {
		t.Errorf("enrolled twice: %v, %d codes spent", err, len(*bodies))
	}
}

func TestEnrolRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		is     error
	}{
		"used code": {func(w http.ResponseWriter, _ *http.Request) {
			problem.Write(w, &problem.Problem{Type: problem.TypeUnauthorized, Status: 401, Title: "No", Detail: "The code was used."})
		}, vms.ErrUnauthorized},
		"down":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, vms.ErrUnavailable},
		"another API": {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) }, nil},
		"no hub": {func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(`{"nvr_url":"ws://x/","token_keys":{"keys":[]}}`))
		}, nil},
		"no keys": {func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(`{"hub_id":"hub_1","nvr_url":"ws://x/"}`))
		}, nil},
		"endless": {func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1<<20)) }, nil},
		"hub id escape": {func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(`{"hub_id":"../x","nvr_url":"ws://x/","token_keys":{"keys":[]}}`))
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			base, _ := cloudOf(t, tt.answer)
			dir := t.TempDir()
			_, err := Enroll(t.Context(), http.DefaultClient, base, "code", "n", dir)
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("Enroll = %v, want %v", err, tt.is)
			}
			if _, err := Load(dir); !errors.Is(err, ErrNotEnrolled) {
				t.Errorf("Load = %v after a refusal", err)
			}
		})
	}
	for _, bad := range []string{"", "ftp://x", "http://", "::"} {
		if _, err := Enroll(t.Context(), http.DefaultClient, bad, "c", "n", t.TempDir()); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("Enroll at %q = %v", bad, err)
		}
	}
}

func TestDamagedIdentityIsSaid(t *testing.T) {
	base, _ := cloudOf(t, accept(t))
	for name, damage := range map[string]func(path string, data []byte) error{
		"cut":   func(p string, d []byte) error { return os.WriteFile(p, d[:len(d)/2], 0o600) },
		"empty": func(p string, _ []byte) error { return os.WriteFile(p, nil, 0o600) },
		"no NVR": func(p string, d []byte) error {
			return os.WriteFile(p, []byte(strings.Replace(string(d), "nvr_url", "x", 1)), 0o600)
		},
		"short key": func(p string, d []byte) error {
			return os.WriteFile(p, []byte(strings.Replace(string(d), `"private_key": "`, `"private_key": "AAAA`, 1)), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := Enroll(t.Context(), http.DefaultClient, base, "c", "n", dir); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, fileName)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(path, data); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(dir); err == nil || errors.Is(err, ErrNotEnrolled) || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("Load = %v", err)
			}
		})
	}
}

func TestSameOrigin(t *testing.T) {
	id := Identity{NVRURL: "wss://nvr.example:8443/session/v1"}
	for u, want := range map[string]bool{
		"wss://nvr.example:8443/session/v1": true, "wss://NVR.example:8443/other": true, "WSS://nvr.example:8443/": true,
		"ws://nvr.example:8443/session/v1": false, "wss://nvr.example/session/v1": false, "wss://evil.example:8443/": false,
		"wss://nvr.example:8443.evil.example/": false, "wss://nvr.example:8443@evil.example/": false, "": false, "::": false,
	} {
		if id.SameOrigin(u) != want {
			t.Errorf("SameOrigin(%q) = %v, want %v", u, !want, want)
		}
	}
}
