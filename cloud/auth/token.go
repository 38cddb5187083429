package auth

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tokenPrefix makes a token that leaks into a log or a repository findable.
const tokenPrefix = "vms_"

// secretLen is the length of newSecret's text.
const secretLen = 43

// newSecret returns 256 random bits as base64url.
func newSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// LoadToken returns the bearer token in file. A file that is missing is
// created, mode 0600, with a new token of 256 bits, whole or not at all. One
// that others may read is refused, because they may have read it.
func LoadToken(file string) (string, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		token := tokenPrefix + newSecret()
		if err := writeFile(file, []byte(token+"\n")); err != nil {
			return "", fmt.Errorf("create token: %w", err)
		}
		return token, nil
	}
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("token file %s has mode %#o: others can read it; delete it for a new token, or chmod 600", file, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if err := validToken(token); err != nil {
		return "", fmt.Errorf("token file %s: %w", file, err)
	}
	return token, nil
}

// validToken refuses what is too short to be safe, or would not survive a header.
func validToken(token string) error {
	if len(token) < 32 || len(token) > 512 {
		return fmt.Errorf("the token has %d characters, want 32 to 512", len(token))
	}
	for _, c := range []byte(token) {
		if c <= ' ' || c > '~' {
			return errors.New("the token has characters other than printable ASCII")
		}
	}
	return nil
}

// writeFile replaces file, mode 0600, so that a crash leaves the old or the new one.
func writeFile(file string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
