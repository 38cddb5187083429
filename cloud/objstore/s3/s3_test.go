package s3_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/pkg/vms"
)

// The promises that need a real store are tested where one runs, in
// cloud/embed. Here the stores misbehave.

// script opens a store whose server does what h says.
func script(t *testing.T, stall time.Duration, h http.HandlerFunc) *s3.Store {
	t.Helper()
	srv := httptest.NewServer(h)
	store := open(t, srv.URL, stall)
	t.Cleanup(func() {
		store.Close()
		srv.CloseClientConnections() // handlers that still wait see it
		srv.Close()
	})
	return store
}

func open(t *testing.T, url string, stall time.Duration) *s3.Store {
	t.Helper()
	store, err := s3.New(s3.Config{Endpoint: url, Bucket: "vms", AccessKey: "access", SecretKey: "secret-key", Stall: stall})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func input(body []byte) objstore.PutInput {
	return objstore.PutInput{Body: bytes.NewReader(body), Size: int64(len(body)), SHA256: sha256.Sum256(body), ContentType: "video/mp4"}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	if code != "" {
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>scripted</Message></Error>", code)
	}
}

// agree answers that what was announced is what is held.
func agree(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Amz-Checksum-Sha256", r.Header.Get("X-Amz-Checksum-Sha256"))
}

// One plain request whose signature covers the checksum of the whole body: the
// form that every store verifies.
func TestPutRequest(t *testing.T) {
	body := []byte("moof and mdat")
	sum := sha256.Sum256(body)
	requests := 0
	store := script(t, 0, func(w http.ResponseWriter, r *http.Request) {
		requests++
		agree(w, r)
		got, _ := io.ReadAll(r.Body)
		if r.Method != "PUT" || r.URL.Path != "/vms/recordings/c/x.mp4" || r.URL.RawQuery != "" || !bytes.Equal(got, body) || r.ContentLength != int64(len(body)) {
			t.Errorf("%s %s of %q, length %d", r.Method, r.URL, got, r.ContentLength)
		}
		for k, want := range map[string]string{
			"X-Amz-Checksum-Sha256": base64.StdEncoding.EncodeToString(sum[:]),
			"X-Amz-Content-Sha256":  hex.EncodeToString(sum[:]),
			"If-None-Match":         "*",
			"Content-Type":          "video/mp4",
			"X-Amz-Meta-Vms-Epoch":  "00000000000000ff",
		} {
			if r.Header.Get(k) != want {
				t.Errorf("%s: %q, want %q", k, r.Header.Get(k), want)
			}
		}
		if auth := r.Header.Get("Authorization"); !strings.Contains(auth, "x-amz-checksum-sha256") {
			t.Errorf("the checksum is not signed: %s", auth)
		}
	})
	in := input(body)
	in.IfAbsent = true
	in.Metadata = map[string]string{"vms-epoch": "00000000000000ff"}
	if err := store.Put(t.Context(), "recordings/c/x.mp4", in); err != nil || requests != 1 {
		t.Errorf("Put = %v after %d requests", err, requests)
	}
}

func TestErrorKinds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status int
		code   string
		want   error
	}{
		{404, "NoSuchKey", vms.ErrNotFound},
		{404, "", vms.ErrNotFound},
		{404, "NoSuchBucket", vms.ErrUnavailable},
		{412, "PreconditionFailed", objstore.ErrExists},
		{412, "", objstore.ErrExists},
		{409, "ConditionalRequestConflict", vms.ErrUnavailable},
		{400, "BadDigest", objstore.ErrChecksum},
		{400, "XAmzContentSHA256Mismatch", objstore.ErrChecksum},
		{400, "XAmzContentChecksumMismatch", objstore.ErrChecksum},
		{400, "IncompleteBody", objstore.ErrChecksum},
		{400, "InvalidArgument", vms.ErrInvalid},
		{400, "RequestTimeout", vms.ErrUnavailable},
		{403, "AccessDenied", vms.ErrForbidden},
		{403, "InvalidAccessKeyId", vms.ErrForbidden},
		{403, "SignatureDoesNotMatch", vms.ErrForbidden},
		{403, "RequestTimeTooSkewed", vms.ErrUnavailable},
		{403, "", vms.ErrForbidden},
		{416, "InvalidRange", vms.ErrInvalid},
		{429, "", vms.ErrUnavailable},
		{500, "InternalError", vms.ErrUnavailable},
		{501, "NotImplemented", vms.ErrInvalid},
		{503, "SlowDown", vms.ErrUnavailable},
		{507, "InsufficientStorage", vms.ErrUnavailable},
		{418, "<<<", vms.ErrInvalid},
	} {
		t.Run(fmt.Sprintf("%d%s", c.status, c.code), func(t *testing.T) {
			t.Parallel()
			store := script(t, 0, func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				refuse(w, c.status, c.code)
			})
			if err := store.Put(t.Context(), "k", input([]byte("x"))); !errors.Is(err, c.want) {
				t.Errorf("Put = %v, want %v", err, c.want)
			}
			if _, err := store.Get(t.Context(), "k", 0, -1); !errors.Is(err, c.want) {
				t.Errorf("Get = %v, want %v", err, c.want)
			}
		})
	}
}

// A hiccup is bridged, with the body sent again from its start; an outage is not.
func TestPutRetriesBriefly(t *testing.T) {
	t.Parallel()
	body := bytes.Repeat([]byte("0123456789"), 100_000)
	var requests atomic.Int32
	store := script(t, 0, func(w http.ResponseWriter, r *http.Request) {
		got, _ := io.ReadAll(r.Body)
		if requests.Add(1) == 1 {
			refuse(w, 503, "SlowDown")
			return
		}
		agree(w, r)
		if !bytes.Equal(got, body) {
			t.Errorf("second request has %d other bytes", len(got))
		}
	})
	if err := store.Put(t.Context(), "k", input(body)); err != nil || requests.Load() != 2 {
		t.Errorf("Put = %v after %d requests", err, requests.Load())
	}
	requests.Store(0)
	down := script(t, 0, func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		refuse(w, 503, "SlowDown")
	})
	if err := down.Put(t.Context(), "k", input(body)); !errors.Is(err, vms.ErrUnavailable) || requests.Load() > 3 {
		t.Errorf("Put = %v after %d requests", err, requests.Load())
	}
}

func TestUnreachableStore(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	store := open(t, "http://"+l.Addr().String(), 0)
	if _, err := store.Stat(t.Context(), "k"); !errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Stat = %v, want vms.ErrUnavailable", err)
	}
	if err := store.EnsureBucket(t.Context()); !errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("EnsureBucket = %v, want vms.ErrUnavailable", err)
	}
}

// A store that takes the request and never answers.
func TestSilentStore(t *testing.T) {
	t.Parallel()
	store := script(t, 100*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	for name, call := range map[string]func() error{
		"Put":    func() error { return store.Put(t.Context(), "k", input([]byte("x"))) },
		"Stat":   func() error { _, err := store.Stat(t.Context(), "k"); return err },
		"Get":    func() error { _, err := store.Get(t.Context(), "k", 0, -1); return err },
		"Delete": func() error { return store.Delete(t.Context(), "k") },
		"List": func() error {
			for _, err := range store.List(t.Context(), "", "") {
				return err
			}
			return nil
		},
		"EnsureBucket": func() error { return store.EnsureBucket(t.Context()) },
	} {
		began := time.Now()
		err := call()
		if !errors.Is(err, vms.ErrUnavailable) || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "no progress") {
			t.Errorf("%s = %v, want vms.ErrUnavailable", name, err)
		}
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("%s took %v", name, d)
		}
	}
}

// A store that stops reading in the middle of a body.
func TestPutStalls(t *testing.T) {
	ended := make(chan struct{})
	store := script(t, 200*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		io.CopyN(io.Discard, r.Body, 1000)
		<-ended // with body left, the server would not notice that the client went
	})
	t.Cleanup(func() { close(ended) })
	body := make([]byte, 32<<20) // more than any socket buffer
	if err := store.Put(t.Context(), "k", input(body)); !errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Put = %v, want vms.ErrUnavailable", err)
	}
}

// A slow link is no stall: it takes longer than Stall in all, but moves.
func TestSlowPutSucceeds(t *testing.T) {
	const stall = time.Second
	began := time.Now()
	store := script(t, stall, func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(stall / 8)
		defer tick.Stop()
		for {
			if _, err := io.CopyN(io.Discard, r.Body, 2<<20); err != nil {
				agree(w, r)
				return
			}
			<-tick.C
		}
	})
	if err := store.Put(t.Context(), "k", input(make([]byte, 32<<20))); err != nil {
		t.Errorf("Put = %v", err)
	}
	if d := time.Since(began); d < stall {
		t.Errorf("took %v, too fast to show anything", d)
	}
}

func serveObject(w http.ResponseWriter, length int) {
	w.Header().Set("Content-Length", fmt.Sprint(length))
	w.Header().Set("Last-Modified", "Wed, 04 Mar 2026 05:06:07 GMT")
	w.Header().Set("Etag", `"e"`)
}

// An object that ends early must not look complete.
func TestGetCutShort(t *testing.T) {
	store := script(t, 0, func(w http.ResponseWriter, _ *http.Request) {
		serveObject(w, 1000)
		w.Write(make([]byte, 500))
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	r, err := store.Get(t.Context(), "k", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); !errors.Is(err, vms.ErrUnavailable) || len(b) > 500 {
		t.Errorf("read %d bytes, %v, want vms.ErrUnavailable", len(b), err)
	}
}

// The store stalls in the middle of an object; the reader may take its time.
func TestGetStalls(t *testing.T) {
	const stall = 200 * time.Millisecond
	store := script(t, stall, func(w http.ResponseWriter, r *http.Request) {
		serveObject(w, 1000)
		w.Write(make([]byte, 500))
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	r, err := store.Get(t.Context(), "k", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	<-time.After(2 * stall) // the reader's own slowness
	if _, err := io.ReadFull(r, make([]byte, 400)); err != nil {
		t.Errorf("a slow reader got %v", err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Read = %v, want vms.ErrUnavailable", err)
	}
}

// The caller's own end is told as such, not as an outage.
func TestCancelIsTheCallers(t *testing.T) {
	arrived := make(chan struct{})
	store := script(t, 0, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	if _, err := store.Stat(ctx, "k"); !errors.Is(err, context.Canceled) || errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Stat = %v, want context.Canceled alone", err)
	}
}

// A checksum of checksums is not the object's.
func TestStatChecksum(t *testing.T) {
	sum := sha256.Sum256([]byte("x"))
	for header, want := range map[string]bool{
		base64.StdEncoding.EncodeToString(sum[:]):        true,
		base64.StdEncoding.EncodeToString(sum[:]) + "-3": false,
		base64.StdEncoding.EncodeToString(sum[:5]):       false,
		"": false,
	} {
		store := script(t, 0, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Amz-Checksum-Mode") != "ENABLED" {
				t.Error("did not ask for the checksum")
			}
			serveObject(w, 1)
			w.Header().Set("X-Amz-Checksum-Sha256", header)
		})
		o, err := store.Stat(t.Context(), "k")
		if err != nil || o.HasSHA256 != want || want && o.SHA256 != sum {
			t.Errorf("checksum %q: %+v, %v", header, o, err)
		}
	}
}

func TestPresignForPublicURL(t *testing.T) {
	store, err := s3.New(s3.Config{
		Endpoint: "http://10.0.0.1:9000", PublicURL: "https://media.example.com", Bucket: "vms", AccessKey: "access", SecretKey: "secret-key", Region: "eu-west-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	u, _, err := store.PresignGet(t.Context(), "a/b.mp4", time.Hour, "") // nobody is asked: there is nobody
	if err != nil || !strings.HasPrefix(u, "https://media.example.com/vms/a/b.mp4?") || !strings.Contains(u, "eu-west-1") || strings.Contains(u, "secret-key") {
		t.Errorf("PresignGet = %s, %v", u, err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := s3.Config{Endpoint: "http://127.0.0.1:9000", Bucket: "vms", AccessKey: "a", SecretKey: "s"}
	if _, err := s3.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*s3.Config){
		"no endpoint":    func(c *s3.Config) { c.Endpoint = "" },
		"no scheme":      func(c *s3.Config) { c.Endpoint = "127.0.0.1:9000" },
		"another scheme": func(c *s3.Config) { c.Endpoint = "file:///tmp" },
		"a path":         func(c *s3.Config) { c.PublicURL = "https://example.com/media" },
		"a query":        func(c *s3.Config) { c.PublicURL = "https://example.com?x=y" },
		"credentials":    func(c *s3.Config) { c.Endpoint = "http://user:pass@127.0.0.1:9000" },
		"no bucket":      func(c *s3.Config) { c.Bucket = "" },
		"bucket path":    func(c *s3.Config) { c.Bucket = "a/b" },
		"bucket case":    func(c *s3.Config) { c.Bucket = "Bucket" },
		"no key":         func(c *s3.Config) { c.AccessKey = "" },
		"no secret":      func(c *s3.Config) { c.SecretKey = "" },
	} {
		cfg := good
		change(&cfg)
		if _, err := s3.New(cfg); !errors.Is(err, vms.ErrInvalid) || strings.Contains(err.Error(), "pass") {
			t.Errorf("%s: New = %v, want vms.ErrInvalid", name, err)
		}
	}
}
