// Package embed holds the parts that replace services in the all-in-one: the
// data directory, an object store that speaks the S3 API, and an MQTT broker.
// Whatever they have acknowledged survives kill -9 and a power cut.
package embed

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// DataVariable is the environment variable that names the data directory.
const DataVariable = "VMS_DATA"

// ErrInUse: another process works on the data directory.
var ErrInUse = errors.New("data directory in use")

// Data is the one directory under which an all-in-one keeps everything. While
// it is open, no other process can open it.
type Data struct {
	dir  string
	lock *os.File

	mu sync.Mutex // one Secret at a time
}

// OpenData opens the data directory, makes it (mode 0700) if it is not there,
// and locks it. A second process gets ErrInUse with a sentence for people. The
// kernel frees the lock when the process ends, however it ends.
func OpenData(dir string) (*Data, error) {
	if dir == "" {
		return nil, fmt.Errorf("no data directory: set %s", DataVariable)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: another process uses %s; stop it, or set %s to another directory", ErrInUse, dir, DataVariable)
		}
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	return &Data{dir: dir, lock: lock}, nil
}

// Close unlocks the directory. Whatever works below it must have ended.
func (d *Data) Close() error { return d.lock.Close() }

// Dir returns the absolute path of the directory.
func (d *Data) Dir() string { return d.dir }

// Path returns the absolute path of a file or directory below it.
func (d *Data) Path(name ...string) string {
	return filepath.Join(append([]string{d.dir}, name...)...)
}

// Room returns how many bytes may still be written below the directory.
func (d *Data) Room() (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &st); err != nil {
		return 0, fmt.Errorf("room in %s: %w", d.dir, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // the types differ between systems
}

// Secret returns the n random bytes that this name has had since it was first
// asked for. They are kept in the file Path(name), mode 0600, in lower case
// hexadecimal, which SecretText returns. A file that holds anything else is an
// error: whoever trusts the secret would be locked out by a new one.
func (d *Data) Secret(name string, n int) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if name == "" || name[0] == '.' || strings.ContainsAny(name, `/\`) || n < 1 {
		return nil, fmt.Errorf("secret %q of %d bytes", name, n)
	}
	path := d.Path(name)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		secret := make([]byte, n)
		rand.Read(secret) // never fails: crypto/rand ends the program instead
		if err := writeFileDurably(path, append(hex.AppendEncode(nil, secret), '\n')); err != nil {
			return nil, fmt.Errorf("write secret %s: %w", name, err)
		}
		return secret, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", name, err)
	}
	secret, err := parseSecret(path, text, n)
	if err != nil {
		return nil, err
	}
	// A copy or a restored backup may have opened it to others.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("secret %s: %w", name, err)
	}
	return secret, nil
}

func parseSecret(path string, text []byte, n int) ([]byte, error) {
	secret, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(secret) != n {
		return nil, fmt.Errorf("secret file %s does not hold %d bytes in hexadecimal; restore it, or remove it to get a new secret", path, n)
	}
	return secret, nil
}

// ReadSecret returns a secret of a data directory that may be in use. It makes
// none: fs.ErrNotExist.
func ReadSecret(dir, name string, n int) ([]byte, error) {
	path := filepath.Join(dir, name)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", name, err)
	}
	return parseSecret(path, text, n)
}

// SecretText is Secret as it stands in the file: 2n hexadecimal digits.
func (d *Data) SecretText(name string, n int) (string, error) {
	secret, err := d.Secret(name, n)
	return hex.EncodeToString(secret), err
}

// writeFileDurably makes a file of mode 0600 appear whole or not at all.
func writeFileDurably(path string, content []byte) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails after the rename, as it should
	_, err = tmp.Write(content)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	// Some network and FUSE file systems know no sync of directories; there is
	// nothing better to be had from them.
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}
