// Package identity is who this hub is: a key pair made on the hub, the
// credential that the cloud bound to it, and what the cloud pinned at enrolment.
package identity

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
)

// The files in the agent's directory. Both are readable by their owner only.
const (
	fileName    = "identity.json"
	lanKeyName  = "lan-key"
	maxResponse = 64 << 10
)

// ErrNotEnrolled: this hub has no identity yet.
var ErrNotEnrolled = errors.New("this hub is not enrolled")

// Identity is a hub's credential and what it trusts.
type Identity struct {
	Hub vms.HubID
	Key ed25519.PrivateKey
	// NVRURL is where the control line goes. Streams go to the same origin only.
	NVRURL string
	// TokenKeys verify the stream tokens of the hub's own cloud.
	TokenKeys token.JWKS
	// LANKey is what apps on the LAN must show for everything but starting a
	// stream, which a token of the cloud authorizes.
	LANKey string
}

// stored is the file.
type stored struct {
	Hub        vms.HubID  `json:"hub"`
	PrivateKey []byte     `json:"private_key"` // Ed25519 seed
	NVRURL     string     `json:"nvr_url"`
	TokenKeys  token.JWKS `json:"token_keys"`
}

// Load reads the identity in dir, or returns ErrNotEnrolled.
func Load(dir string) (*Identity, error) {
	data, err := os.ReadFile(filepath.Join(dir, fileName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: run \"vms-agent enroll URL CODE\" with a code from the cloud", ErrNotEnrolled)
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	var s stored
	if err := json.Unmarshal(data, &s); err != nil || len(s.PrivateKey) != ed25519.SeedSize || !vms.ValidID(s.Hub) || s.NVRURL == "" {
		return nil, fmt.Errorf("%s is damaged: enrol this hub again with a new code", filepath.Join(dir, fileName))
	}
	lan, err := os.ReadFile(filepath.Join(dir, lanKeyName))
	if err != nil {
		return nil, fmt.Errorf("read LAN key: %w", err)
	}
	return &Identity{
		Hub: s.Hub, Key: ed25519.NewKeyFromSeed(s.PrivateKey), NVRURL: s.NVRURL, TokenKeys: s.TokenKeys,
		LANKey: strings.TrimSpace(string(lan)),
	}, nil
}

// SameOrigin reports whether a stream's NVR URL is of the cloud that this hub
// enrolled with.
func (id *Identity) SameOrigin(nvrURL string) bool {
	a, err1 := url.Parse(id.NVRURL)
	b, err2 := url.Parse(nvrURL)
	return err1 == nil && err2 == nil && a.Scheme == b.Scheme && strings.EqualFold(a.Host, b.Host)
}

// Enroll makes a key pair, spends the code at the cloud's API at base, and
// stores the identity in dir. The private key never leaves the hub.
func Enroll(ctx context.Context, client *http.Client, base, code, name, dir string) (*Identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("agent directory: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, fileName)); err == nil {
		return nil, fmt.Errorf("%w: %s is enrolled already; remove %s to enrol it anew", vms.ErrConflict, dir, fileName)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key pair: %w", err)
	}
	reply, err := post(ctx, client, base, map[string]string{
		"code": code, "public_key": base64.RawURLEncoding.EncodeToString(pub), "name": name,
	})
	if err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(stored{Hub: reply.Hub, PrivateKey: key.Seed(), NVRURL: reply.NVRURL, TokenKeys: reply.TokenKeys}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("store identity: %w", err)
	}
	var lan [24]byte
	rand.Read(lan[:])
	// The LAN key first: an identity without it would not load.
	if err := writeFile(filepath.Join(dir, lanKeyName), []byte(base64.RawURLEncoding.EncodeToString(lan[:])+"\n")); err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(dir, fileName), append(data, '\n')); err != nil {
		return nil, err
	}
	return Load(dir)
}

// enrolment is the cloud's answer.
type enrolment struct {
	Hub       vms.HubID       `json:"hub_id"`
	NVRURL    string          `json:"nvr_url"`
	Keys      json.RawMessage `json:"token_keys"`
	TokenKeys token.JWKS      `json:"-"`
}

func post(ctx context.Context, client *http.Client, base string, body map[string]string) (*enrolment, error) {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("%w: cloud URL %q, want http:// or https://", vms.ErrInvalid, base)
	}
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.JoinPath("/api/v1/enroll").String(), bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	defer resp.Body.Close()
	if err := problem.ReadResponse(resp); err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	var reply enrolment
	if err := json.Unmarshal(text, &reply); err != nil || !vms.ValidID(reply.Hub) || reply.NVRURL == "" {
		return nil, fmt.Errorf("enrol: the answer of %s is not one of this API", u.Host)
	}
	if reply.TokenKeys, err = token.ParseJWKS(reply.Keys); err != nil {
		return nil, fmt.Errorf("enrol: keys of the cloud: %w", err)
	}
	return &reply, nil
}

// writeFile puts a secret in place as a whole or not at all.
func writeFile(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("store %s: %w", filepath.Base(path), err)
	}
	defer os.Remove(tmp.Name()) // gone already when all went well
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", filepath.Base(path), err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("store %s: %w", filepath.Base(path), err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("store %s: %w", filepath.Base(path), err)
	}
	return nil
}
