package embed_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/objstoretest"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/pkg/vms"
)

const pageOrigin = "http://127.0.0.1:8080"

// start runs a store until the test ends. One at a time: no parallel tests here.
func start(t *testing.T, change ...func(*embed.S3Config)) *embed.S3 {
	t.Helper()
	cfg := embed.S3Config{
		Dir: t.TempDir(), Addr: "127.0.0.1:0", AccessKey: "access", SecretKey: "secret-key", Bucket: "vms",
		AllowOrigins: []string{pageOrigin}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, f := range change {
		f(&cfg)
	}
	srv, err := embed.StartS3(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return srv
}

func open(t *testing.T, srv *embed.S3, change ...func(*s3.Config)) *s3.Store {
	t.Helper()
	cfg := s3.Config{Endpoint: srv.URL(), Bucket: "vms", AccessKey: "access", SecretKey: "secret-key"}
	for _, f := range change {
		f(&cfg)
	}
	store, err := s3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

func put(t *testing.T, store objstore.Store, key, body string) {
	t.Helper()
	if err := store.Put(t.Context(), key, input(body)); err != nil {
		t.Fatal(err)
	}
}

func input(body string) objstore.PutInput {
	return objstore.PutInput{
		Body: strings.NewReader(body), Size: int64(len(body)), SHA256: sha256.Sum256([]byte(body)), ContentType: "text/plain",
		Metadata: map[string]string{"made-by": "test"},
	}
}

func TestConformance(t *testing.T) {
	srv := start(t)
	objstoretest.Run(t, func(t *testing.T) objstore.Store { return open(t, srv) })
	// Large objects are sent in parts, and found like others.
	small := func(cfg *s3.Config) { cfg.Single = 6 << 20 }
	objstoretest.RunUploads(t, func(t *testing.T) objstore.Store { return open(t, srv, small) }, func(u *objstoretest.Uploads) { u.Large = 11 << 20 })
}

// TestUnfinishedUploadsAreRemoved: what a program left that was killed in the
// middle of a large object.
func TestUnfinishedUploadsAreRemoved(t *testing.T) {
	srv := start(t)
	core, err := minio.NewCore(srv.Addr().String(), &minio.Options{Creds: credentials.NewStaticV4("access", "secret-key", ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"recordings/a/1.mp4", "recordings/b/2.mp4", "parts/a/3.mp4"} {
		if _, err := core.NewMultipartUpload(t.Context(), "vms", key, minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	store := open(t, srv)
	for _, c := range []struct {
		before time.Time
		want   int
	}{{time.Now().Add(-time.Hour), 0}, {time.Now().Add(time.Hour), 2}, {time.Now().Add(time.Hour), 0}} {
		if n, err := store.AbortStale(t.Context(), "recordings/", c.before); n != c.want || err != nil {
			t.Errorf("AbortStale = %d, %v, want %d", n, err, c.want)
		}
	}
	left, err := core.ListMultipartUploads(t.Context(), "vms", "", "", "", "", 10)
	if err != nil || len(left.Uploads) != 1 || left.Uploads[0].Key != "parts/a/3.mp4" {
		t.Errorf("left %+v, %v", left.Uploads, err)
	}
}

func TestObjectsSurviveRestart(t *testing.T) {
	dir := t.TempDir()
	in := func(cfg *embed.S3Config) { cfg.Dir = dir }
	srv := start(t, in)
	put(t, open(t, srv), "a/b/c", "kept")
	put(t, open(t, srv), "a/b/d", "removed")
	if err := open(t, srv).Delete(t.Context(), "a/b/d"); err != nil {
		t.Fatal(err)
	}
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	// Also with another access key, as after a restored backup.
	srv = start(t, in, func(cfg *embed.S3Config) { cfg.AccessKey = "another" })
	store := open(t, srv, func(cfg *s3.Config) { cfg.AccessKey = "another" })
	o, err := store.Stat(t.Context(), "a/b/c")
	if err != nil || o.SHA256 != sha256.Sum256([]byte("kept")) || o.Metadata["made-by"] != "test" {
		t.Errorf("Stat = %+v, %v", o, err)
	}
	if _, err := store.Stat(t.Context(), "a/b/d"); !errors.Is(err, vms.ErrNotFound) {
		t.Errorf("Stat of the removed object = %v", err)
	}
}

// The all-in-one may have been killed between any two steps of making the bucket.
func TestHalfMadeBucketIsMended(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "objects", "vms"), 0o700); err != nil {
		t.Fatal(err)
	}
	srv := start(t, func(cfg *embed.S3Config) { cfg.Dir = dir })
	put(t, open(t, srv), "a", "x")
}

// A start writes nothing that is there already: on a full disk it would fail,
// and with it the retention that could make room.
func TestRestartWritesNothing(t *testing.T) {
	dir := t.TempDir()
	in := func(cfg *embed.S3Config) { cfg.Dir = dir }
	if err := start(t, in).Close(); err != nil {
		t.Fatal(err)
	}
	attributes := func() map[string]os.FileInfo {
		found := make(map[string]os.FileInfo)
		err := filepath.Walk(filepath.Join(dir, "meta"), func(path string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().IsRegular() {
				found[path] = info
			}
			return err
		})
		if err != nil || len(found) == 0 {
			t.Fatalf("%d attributes, %v", len(found), err)
		}
		return found
	}
	before := attributes()
	start(t, in)
	for path, info := range attributes() {
		if !os.SameFile(info, before[path]) {
			t.Errorf("%s was written again", path)
		}
	}
}

func TestStoreIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s3")
	srv := start(t, func(cfg *embed.S3Config) { cfg.Dir = dir })
	put(t, open(t, srv), "a/b", "x")
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		info, err := d.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	for name, change := range map[string]func(*s3.Config){
		"secret": func(cfg *s3.Config) { cfg.SecretKey = "wrong" },
		"access": func(cfg *s3.Config) { cfg.AccessKey = "wrong" },
	} {
		if _, err := open(t, srv, change).Stat(t.Context(), "a/b"); !errors.Is(err, vms.ErrForbidden) {
			t.Errorf("Stat with a wrong %s key = %v, want vms.ErrForbidden", name, err)
		}
	}
	for _, path := range []string{"/", "/vms", "/vms/", "/vms/a/b", "/vms/../vms/a/b", "/vms?list-type=2"} {
		resp, err := http.Get(srv.URL() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusBadRequest || bytes.Contains(body, []byte("a/b<")) {
			t.Errorf("anonymous GET %s = %s %s", path, resp.Status, body)
		}
	}
}

func TestOnCreated(t *testing.T) {
	var mu sync.Mutex
	var keys []string
	var store *s3.Store
	srv := start(t, func(cfg *embed.S3Config) {
		cfg.OnCreated = func(key string) {
			mu.Lock()
			defer mu.Unlock()
			keys = append(keys, key)
		}
	})
	store = open(t, srv)
	put(t, store, "recordings/c/1.mp4", "x")
	once := input("y")
	once.IfAbsent = true
	if err := store.Put(t.Context(), "recordings/c/1.mp4", once); !errors.Is(err, objstore.ErrExists) {
		t.Fatal(err)
	}
	bad := input("z")
	bad.SHA256[0]++
	if err := store.Put(t.Context(), "recordings/c/2.mp4", bad); !errors.Is(err, objstore.ErrChecksum) {
		t.Fatal(err)
	}
	if err := store.Delete(t.Context(), "recordings/c/1.mp4"); err != nil {
		t.Fatal(err)
	}
	u, _, err := store.PresignPut(t.Context(), "snapshots/s.jpg", time.Minute, "image/jpeg")
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequestWithContext(t.Context(), "PUT", u, strings.NewReader("jpeg"))
	req.Header.Set("Content-Type", "image/jpeg")
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	resp.Body.Close()

	mu.Lock()
	defer mu.Unlock()
	if want := []string{"recordings/c/1.mp4", "snapshots/s.jpg"}; !slices.Equal(keys, want) {
		t.Errorf("created %q, want %q", keys, want)
	}
}

func TestCORS(t *testing.T) {
	srv := start(t)
	store := open(t, srv)
	put(t, store, "v.mp4", "0123456789")
	u, _, err := store.PresignGet(t.Context(), "v.mp4", time.Minute, "")
	if err != nil {
		t.Fatal(err)
	}
	do := func(method, url string, header ...string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	resp := do("OPTIONS", u, "Origin", pageOrigin, "Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "range")
	if resp.StatusCode != 204 || resp.Header.Get("Access-Control-Allow-Origin") != pageOrigin || !strings.Contains(resp.Header.Get("Access-Control-Allow-Headers"), "Range") {
		t.Errorf("preflight = %s %v", resp.Status, resp.Header)
	}
	resp = do("GET", u, "Origin", pageOrigin, "Range", "bytes=2-4")
	if resp.StatusCode != 206 || !slices.Equal(resp.Header.Values("Access-Control-Allow-Origin"), []string{pageOrigin}) ||
		!strings.Contains(resp.Header.Get("Access-Control-Expose-Headers"), "Content-Range") || resp.Header.Get("Vary") != "Origin" {
		t.Errorf("GET = %s %v", resp.Status, resp.Header)
	}
	// The page must be able to see that its URL is no good any more.
	resp = do("GET", u+"0", "Origin", pageOrigin)
	if resp.StatusCode != 403 || resp.Header.Get("Access-Control-Allow-Origin") != pageOrigin {
		t.Errorf("GET with a bad signature = %s %v", resp.Status, resp.Header)
	}
	for _, origin := range []string{"http://evil.example", "http://127.0.0.1:80800", "null"} {
		for _, method := range []string{"GET", "OPTIONS"} {
			resp := do(method, u, "Origin", origin, "Access-Control-Request-Method", "GET")
			if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "" {
				t.Errorf("%s allows %q for origin %q", method, got, origin)
			}
		}
	}
}

func TestPublicURLIsSignedFor(t *testing.T) {
	srv := start(t)
	_, port, _ := net.SplitHostPort(srv.Addr().String())
	public := "http://localhost:" + port
	store := open(t, srv, func(cfg *s3.Config) { cfg.PublicURL = public })
	put(t, store, "a", "x")
	u, _, err := store.PresignGet(t.Context(), "a", time.Minute, "")
	if err != nil || !strings.HasPrefix(u, public+"/vms/a?") {
		t.Fatal(u, err)
	}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", srv.URL()+strings.TrimPrefix(u, public), nil)
	req.Host = "localhost:" + port
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("GET by the public name = %s", resp.Status)
	}
}

func TestMissingBucketIsNotAMissingObject(t *testing.T) {
	srv := start(t)
	store := open(t, srv, func(cfg *s3.Config) { cfg.Bucket = "other" })
	if _, err := store.Stat(t.Context(), "a"); !errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Stat = %v, want vms.ErrUnavailable", err)
	}
	if _, err := store.Get(t.Context(), "a", 0, -1); !errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Get = %v, want vms.ErrUnavailable", err)
	}
	for _, err := range store.List(t.Context(), "", "") {
		if !errors.Is(err, vms.ErrUnavailable) {
			t.Errorf("List = %v, want vms.ErrUnavailable", err)
		}
	}
	for range 2 {
		if err := store.EnsureBucket(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	put(t, store, "a", "x")
}

func TestTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = embed.StartS3(t.Context(), embed.S3Config{Dir: t.TempDir(), Addr: l.Addr().String(), AccessKey: "a", SecretKey: "s", Bucket: "vms"})
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "VMS_S3_LISTEN") {
		t.Errorf("StartS3 = %v, want the address and the variable in it", err)
	}
	start(t) // a failed start leaves nothing behind
}

func TestBadConfig(t *testing.T) {
	good := embed.S3Config{Dir: t.TempDir(), Addr: "127.0.0.1:0", AccessKey: "a", SecretKey: "s", Bucket: "vms"}
	for name, change := range map[string]func(*embed.S3Config){
		"no dir":                func(cfg *embed.S3Config) { cfg.Dir = "" },
		"no address":            func(cfg *embed.S3Config) { cfg.Addr = "" },
		"all interfaces by gap": func(cfg *embed.S3Config) { cfg.Addr = ":9000" },
		"no port":               func(cfg *embed.S3Config) { cfg.Addr = "127.0.0.1" },
		"no key":                func(cfg *embed.S3Config) { cfg.AccessKey = "" },
		"no secret":             func(cfg *embed.S3Config) { cfg.SecretKey = "" },
		"bucket with a slash":   func(cfg *embed.S3Config) { cfg.Bucket = "../x" },
		"every origin":          func(cfg *embed.S3Config) { cfg.AllowOrigins = []string{"*"} },
		"origin with path":      func(cfg *embed.S3Config) { cfg.AllowOrigins = []string{"http://a/b"} },
		"relative origin":       func(cfg *embed.S3Config) { cfg.AllowOrigins = []string{"127.0.0.1:8080"} },
	} {
		cfg := good
		change(&cfg)
		if srv, err := embed.StartS3(t.Context(), cfg); err == nil {
			srv.Close()
			t.Errorf("%s: StartS3 accepted it", name)
		}
	}
}

func TestOnePerProcess(t *testing.T) {
	start(t)
	srv, err := embed.StartS3(t.Context(), embed.S3Config{Dir: t.TempDir(), Addr: "127.0.0.1:0", AccessKey: "a", SecretKey: "s", Bucket: "vms"})
	if err == nil {
		srv.Close()
		t.Fatal("a second store started")
	}
}

// Run ends with its context and leaves nothing that works on: no listener, no
// connection, no goroutine of ours or of the gateway, and the working directory
// as it was.
func TestRunLeavesNothing(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	srv := start(t)
	store := open(t, srv)
	put(t, store, "a", "x")
	silent, err := net.Dial("tcp", srv.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	put(t, store, "b", "x") // by now the silent one is accepted too
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	began := time.Now()
	go func() { done <- srv.Run(ctx) }()
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("a silent connection held the end up for %v", d)
	}
	store.Close()
	if conn, err := net.Dial("tcp", srv.Addr().String()); err == nil {
		conn.Close()
		t.Error("still listening")
	}
	if now, _ := os.Getwd(); now != wd {
		t.Errorf("working directory is %s, was %s", now, wd)
	}
	// Connections end on their own goroutines, a moment after they were closed.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		buf := make([]byte, 1<<20)
		stacks := string(buf[:runtime.Stack(buf, true)])
		_, others, _ := strings.Cut(stacks, "\n\n") // the first is this one
		if !strings.Contains(others, "embed.(*") && !strings.Contains(others, "versitygw") && !strings.Contains(others, "net/http.") && !strings.Contains(others, "fasthttp.(*Server)") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still alive:\n%s", others)
		}
	}
}

// A connection that is cut in the middle of an object leaves no object.
func TestCutUpload(t *testing.T) {
	created := make(chan string, 1)
	srv := start(t, func(cfg *embed.S3Config) { cfg.OnCreated = func(key string) { created <- key } })
	store := open(t, srv)
	u, _, err := store.PresignPut(t.Context(), "cut", time.Minute, "text/plain")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", srv.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	path := strings.TrimPrefix(u, srv.URL())
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n", path, srv.Addr())
	conn.Write(make([]byte, 50_000))
	conn.(*net.TCPConn).CloseWrite()
	resp, _ := io.ReadAll(conn) // until the server has given up
	conn.Close()
	if bytes.HasPrefix(resp, []byte("HTTP/1.1 200")) {
		t.Errorf("half an object was accepted: %s", resp)
	}
	if _, err := store.Stat(t.Context(), "cut"); !errors.Is(err, vms.ErrNotFound) {
		t.Errorf("Stat = %v, want vms.ErrNotFound", err)
	}
	select {
	case key := <-created:
		t.Errorf("created %s", key)
	default:
	}
}
