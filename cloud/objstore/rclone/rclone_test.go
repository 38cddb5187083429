package rclone_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/objstoretest"
	"github.com/zipato/vms/cloud/objstore/rclone"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

const bucket, access, secret = "vms", "access-of-the-test", "secret-of-the-test"

// program is where rclone is.
func program(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("rclone")
	if err != nil {
		t.Fatal("this test needs rclone: scripts/setup test installs it")
	}
	return path
}

// store starts the embedded store, and returns its URL.
func store(t testing.TB) string {
	t.Helper()
	srv, err := embed.StartS3(t.Context(), embed.S3Config{
		Dir: t.TempDir(), Addr: "127.0.0.1:0", AccessKey: access, SecretKey: secret, Bucket: bucket, Log: vmstest.Log(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	return srv.URL()
}

func client(t testing.TB, url string) *s3.Store {
	t.Helper()
	c, err := s3.New(s3.Config{Endpoint: url, Bucket: bucket, AccessKey: access, SecretKey: secret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func config(t testing.TB, url string) rclone.Config {
	return rclone.Config{
		Store: client(t, url), Program: program(t), Bucket: bucket, Dir: t.TempDir(), Log: vmstest.Log(t),
		S3: rclone.S3{Endpoint: url, AccessKey: access, SecretKey: secret},
	}
}

func open(t testing.TB, cfg rclone.Config) *rclone.Store {
	t.Helper()
	s, err := rclone.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if left, _ := filepath.Glob(filepath.Join(cfg.Dir, "*")); len(left) != 0 {
			t.Errorf("copies are left: %q", left)
		}
	})
	return s
}

func input(body []byte) objstore.PutInput {
	return objstore.PutInput{
		Body: bytes.NewReader(body), Size: int64(len(body)), SHA256: sha256.Sum256(body), ContentType: "video/mp4",
		Metadata: map[string]string{"vms-epoch": "00000000000000ff"}, IfAbsent: true,
	}
}

func TestConformance(t *testing.T) {
	url := store(t)
	objstoretest.RunUploads(t, func(t *testing.T) objstore.Store { return open(t, config(t, url)) }, func(u *objstoretest.Uploads) {
		u.Large = 11 << 20 // one request whatever the size
		u.Down = func(t *testing.T) objstore.Store {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			return open(t, config(t, "http://"+l.Addr().String()))
		}
	})
}

// script writes a program that notes how it was called and then does what body
// says; "$rclone" is the real one.
func script(t *testing.T, body string) (path string, calls func() string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "rclone")
	notes := path + ".calls"
	text := "#!/bin/sh\nrclone='" + program(t) + "'\n{ echo \"args: $*\"; env; } >>'" + notes + "'\n" + body + "\n"
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	return path, func() string {
		b, err := os.ReadFile(notes)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

// args are the lines that say how the program was called.
func args(calls string) []string {
	var out []string
	for line := range strings.Lines(calls) {
		if a, ok := strings.CutPrefix(line, "args: "); ok {
			out = append(out, a)
		}
	}
	return out
}

// TestKeysAreNoArguments: everybody on a machine sees those. And what the
// environment says to other users of rclone does not reach ours.
func TestKeysAreNoArguments(t *testing.T) {
	t.Setenv("RCLONE_MAX_DELETE", "7")
	t.Setenv("AWS_CA_BUNDLE", "/nowhere")
	cfg := config(t, store(t))
	var calls func() string
	cfg.Program, calls = script(t, `exec "$rclone" "$@"`)
	s := open(t, cfg)
	if err := s.Put(t.Context(), "recordings/c/a.mp4", input([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	said := calls()
	for _, line := range args(said) {
		if strings.Contains(line, secret) || strings.Contains(line, access) {
			t.Errorf("called with %s", line)
		}
	}
	if strings.Contains(said, "RCLONE_MAX_DELETE") || strings.Contains(said, "AWS_CA_BUNDLE") || !strings.Contains(said, secret) {
		t.Errorf("the environment is\n%s", said)
	}
	for _, never := range []string{"sync", "move", "delete", "purge"} {
		if slices.ContainsFunc(args(said), func(line string) bool { return slices.Contains(strings.Fields(line), never) }) {
			t.Errorf("called to %s", never)
		}
	}
}

// TestSecretsAreNotInErrors: whatever the program prints.
func TestSecretsAreNotInErrors(t *testing.T) {
	cfg := config(t, store(t))
	cfg.Program, _ = script(t, `case "$*" in *copyto*) echo "key is $RCLONE_CONFIG_VMS_SECRET_ACCESS_KEY here" >&2; exit 3;; esac; exec "$rclone" "$@"`)
	err := open(t, cfg).Put(t.Context(), "recordings/c/a.mp4", input([]byte("x")))
	if !errors.Is(err, vms.ErrUnavailable) || strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), "key is [hidden] here") {
		t.Errorf("Put = %v", err)
	}
}

// TestOperatorsRemote: one that stands in rclone's own configuration.
func TestOperatorsRemote(t *testing.T) {
	url := store(t)
	conf := filepath.Join(t.TempDir(), "rclone.conf")
	text := fmt.Sprintf("[else where]\ntype = s3\nprovider = Other\nendpoint = %s\naccess_key_id = %s\nsecret_access_key = %s\nno_check_bucket = true\n", url, access, secret)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RCLONE_CONFIG", conf)
	if value, set := os.LookupEnv("AWS_CA_BUNDLE"); set { // some rclones fail with it
		os.Unsetenv("AWS_CA_BUNDLE")
		t.Cleanup(func() { os.Setenv("AWS_CA_BUNDLE", value) })
	}
	cfg := config(t, url)
	cfg.S3, cfg.Remote = rclone.S3{}, "else where:"+bucket
	s := open(t, cfg)
	if err := s.Put(t.Context(), "recordings/c/a.mp4", input([]byte("first"))); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "recordings/c/a.mp4", input([]byte("other"))); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("Put again = %v, want ErrExists", err)
	}
	o, err := s.Stat(t.Context(), "recordings/c/a.mp4")
	if err != nil || o.Size != 5 || o.Metadata["vms-epoch"] == "" || o.Metadata[objstore.MetaSHA256] == "" {
		t.Errorf("Stat = %+v, %v", o, err)
	}

	t.Run("overtaken", func(t *testing.T) { // somebody is faster, after we have looked
		cfg := cfg
		cfg.Dir = t.TempDir()
		cfg.Store = &faster{cfg.Store.(*s3.Store), input([]byte("faster"))}
		if err := open(t, cfg).Put(t.Context(), "recordings/c/b.mp4", input([]byte("ours"))); !errors.Is(err, objstore.ErrExists) {
			t.Errorf("Put = %v, want ErrExists", err)
		}
	})
	t.Run("another bucket", func(t *testing.T) {
		cfg := cfg
		cfg.Dir = t.TempDir()
		cfg.Remote += "/folder"
		err := open(t, cfg).Put(t.Context(), "recordings/c/c.mp4", input([]byte("x")))
		if !errors.Is(err, vms.ErrUnavailable) || !strings.Contains(err.Error(), rclone.RemoteVariable) {
			t.Errorf("Put = %v", err)
		}
	})
}

// faster stores an object of its own once somebody has looked whether it is there.
type faster struct {
	*s3.Store
	in objstore.PutInput
}

func (f *faster) Stat(ctx context.Context, key string) (objstore.Object, error) {
	o, err := f.Store.Stat(ctx, key)
	if err != nil {
		if perr := f.Put(ctx, key, f.in); perr != nil {
			return o, perr
		}
	}
	return o, err
}

// TestWithoutHashesItDownloads: a copy that nobody compared is no copy.
func TestWithoutHashesItDownloads(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		want string
	}{
		"hashes":    {`exec "$rclone" "$@"`, "check --one-way -- "},
		"no hashes": {`case "$*" in *lsjson*) echo '{"Size":1}'; exit;; esac; exec "$rclone" "$@"`, "check --one-way --download -- "},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, store(t))
			var calls func() string
			cfg.Program, calls = script(t, c.body)
			s := open(t, cfg)
			for _, key := range []string{"recordings/c/a.mp4", "recordings/c/b.mp4"} {
				if err := s.Put(t.Context(), key, input([]byte("x"))); err != nil {
					t.Fatal(err)
				}
			}
			checks, looks := 0, 0
			for _, line := range args(calls()) {
				if strings.Contains(line, c.want) {
					checks++
				}
				if strings.Contains(line, "lsjson") {
					looks++
				}
			}
			if checks != 2 || looks != 1 {
				t.Errorf("%d times %q, asked %d times for hashes", checks, c.want, looks)
			}
		})
	}
}

// TestWhatCheckFindsIsAnError: the copy is not what was copied.
func TestWhatCheckFindsIsAnError(t *testing.T) {
	cfg := config(t, store(t))
	cfg.Program, _ = script(t, `case "$*" in *check*) for f; do case "$f" in /*) echo more >>"$f";; esac; done;; esac; exec "$rclone" "$@"`)
	if err := open(t, cfg).Put(t.Context(), "recordings/c/a.mp4", input([]byte("x"))); err == nil || !strings.Contains(err.Error(), "check") {
		t.Errorf("Put = %v", err)
	}
}

// TestAProgramThatHangsIsEnded: with the one who waits for it.
func TestAProgramThatHangsIsEnded(t *testing.T) {
	cfg := config(t, store(t))
	var calls func() string
	cfg.Program, calls = script(t, `case "$*" in *copyto*) exec sleep 600;; esac; exec "$rclone" "$@"`)
	s := open(t, cfg)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- s.Put(ctx, "recordings/c/a.mp4", input([]byte("x"))) }()
	limit := time.Now().Add(20 * time.Second)
	for !strings.Contains(calls(), "copyto") && time.Now().Before(limit) {
		time.Sleep(5 * time.Millisecond) // the pace of looking
	}
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) || errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Put = %v, want context.Canceled alone", err)
	}
}

// TestCopiesOfTheDeadAreRemoved: and those of the living are not.
func TestCopiesOfTheDeadAreRemoved(t *testing.T) {
	cfg := config(t, "http://127.0.0.1:1")
	dead := filepath.Join(cfg.Dir, "rclone-123", "put-1")
	if err := os.MkdirAll(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	first, err := rclone.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	second, err := rclone.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(cfg.Dir, "*")); len(left) != 2 {
		t.Errorf("there are %q", left)
	}
	if err := errors.Join(first.Close(), second.Close()); err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	fake := func(says string) func(*rclone.Config) {
		return func(c *rclone.Config) { c.Program, _ = script(t, says) }
	}
	for name, c := range map[string]struct {
		change func(*rclone.Config)
		says   string
	}{
		"no program":      {func(c *rclone.Config) { c.Program = "rclone-is-not-here" }, "apt install rclone"},
		"no such file":    {func(c *rclone.Config) { c.Program = "/nowhere/rclone" }, rclone.ProgramVariable},
		"another program": {fake("echo hello"), "is not rclone"},
		"a broken one":    {fake("exit 3"), "version"},
		"an old one":      {fake("echo rclone v1.53.3-DEV"), "1.59"},
		"no keys":         {func(c *rclone.Config) { c.S3.SecretKey = "" }, "keys"},
		"no store":        {func(c *rclone.Config) { c.Store = nil }, "store"},
		"remote in place": {func(c *rclone.Config) { c.Remote = ":s3,secret_access_key=x:vms" }, rclone.RemoteVariable},
		"an option":       {func(c *rclone.Config) { c.Remote = "--config=x:vms" }, rclone.RemoteVariable},
		"a folder":        {func(c *rclone.Config) { c.Remote = "/tmp/x" }, rclone.RemoteVariable},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, "http://127.0.0.1:1")
			c.change(&cfg)
			if _, err := rclone.New(t.Context(), cfg); !errors.Is(err, vms.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("New = %v, want vms.ErrInvalid with %q", err, c.says)
			}
			if left, _ := filepath.Glob(filepath.Join(cfg.Dir, "*")); len(left) != 0 {
				t.Errorf("copies are left: %q", left)
			}
		})
	}
}
