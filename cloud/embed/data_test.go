package embed_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zipato/vms/cloud/embed"
)

func openData(t *testing.T, dir string) *embed.Data {
	t.Helper()
	d, err := embed.OpenData(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDataDirectoryIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "data")
	d := openData(t, dir)
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode is %v, %v, want 0700", info.Mode(), err)
	}
	if d.Dir() != dir || d.Path("s3", "x") != filepath.Join(dir, "s3", "x") {
		t.Errorf("Dir %s, Path %s", d.Dir(), d.Path("s3", "x"))
	}
}

func TestDataPathsAreAbsolute(t *testing.T) {
	t.Chdir(t.TempDir())
	if d := openData(t, "data"); !filepath.IsAbs(d.Dir()) || !filepath.IsAbs(d.Path("x")) {
		t.Errorf("Dir %s, Path %s", d.Dir(), d.Path("x"))
	}
}

// The second process is this test binary, run again.
func TestSecondProcessIsRefused(t *testing.T) {
	if dir := os.Getenv("TEST_OPEN_DATA"); dir != "" {
		_, err := embed.OpenData(dir)
		fmt.Printf("inuse=%v %v\n", errors.Is(err, embed.ErrInUse), err)
		return
	}
	dir := t.TempDir()
	second := func() string {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSecondProcessIsRefused$")
		cmd.Env = append(os.Environ(), "TEST_OPEN_DATA="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	d := openData(t, dir)
	if out := second(); !strings.Contains(out, "inuse=true") || !strings.Contains(out, dir) || !strings.Contains(out, "VMS_DATA") {
		t.Errorf("second process says %q, want the directory and the remedy", out)
	}
	d.Close()
	if out := second(); !strings.Contains(out, "inuse=false <nil>") {
		t.Errorf("after Close it says %q", out)
	}
}

func TestSecondOpenInProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	openData(t, dir)
	if _, err := embed.OpenData(dir); !errors.Is(err, embed.ErrInUse) {
		t.Errorf("OpenData = %v, want ErrInUse", err)
	}
}

func TestRoom(t *testing.T) {
	if n, err := openData(t, t.TempDir()).Room(); err != nil || n <= 0 {
		t.Errorf("Room = %d, %v", n, err)
	}
}

func TestSecretPersists(t *testing.T) {
	dir := t.TempDir()
	d := openData(t, dir)
	a, err := d.Secret("token-key", 32)
	if err != nil || len(a) != 32 {
		t.Fatal(a, err)
	}
	b, err := d.Secret("other", 32)
	if err != nil || bytes.Equal(a, b) {
		t.Errorf("two names, one secret (%v)", err)
	}
	d.Close()
	again, err := openData(t, dir).Secret("token-key", 32)
	if err != nil || !bytes.Equal(a, again) {
		t.Errorf("after a restart the secret is another (%v)", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("directory holds %v, %v, want lock and two secrets", entries, err)
	}
}

func TestSecretFile(t *testing.T) {
	d := openData(t, t.TempDir())
	text, err := d.SecretText("admin-token", 24)
	if err != nil || len(text) != 48 {
		t.Fatal(text, err)
	}
	// What `cat` shows is what a client sends.
	file, err := os.ReadFile(d.Path("admin-token"))
	if err != nil || strings.TrimSpace(string(file)) != text {
		t.Errorf("file holds %q, %v, want %q", file, err, text)
	}
	if err := os.Chmod(d.Path("admin-token"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.SecretText("admin-token", 24); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(d.Path("admin-token")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, %v, want 0600", info.Mode(), err)
	}
}

// A secret that others rely on is never replaced silently.
func TestDamagedSecretIsAnError(t *testing.T) {
	d := openData(t, t.TempDir())
	for _, content := range []string{"", "zz", "00ff", strings.Repeat("0", 66)} {
		if err := os.WriteFile(d.Path("key"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Secret("key", 32); err == nil || !strings.Contains(err.Error(), d.Path("key")) {
			t.Errorf("Secret from %q = %v, want an error with the file's name", content, err)
		}
	}
	for _, name := range []string{"", "../key", "a/b", ".hidden", "."} {
		if _, err := d.Secret(name, 32); err == nil {
			t.Errorf("Secret(%q) worked", name)
		}
	}
}
