package s3_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/pkg/vms"
)

// bucket is a store that keeps objects as S3 does, and lies when it is told to.
type bucket struct {
	mu      sync.Mutex
	objects map[string]object
	uploads map[string]*pending
	calls   []string // "PUT key", "PART 1", "ABORT"

	mute          bool              // no checksums at all, anywhere
	silentPut     bool              // none in answers to PUT
	wrong         bool              // another checksum in answers
	unconditional bool              // 501 for a condition on completion
	before        func(string) bool // called before each call; false: 503
}

type object struct {
	body []byte
	sum  string // x-amz-checksum-sha256
	meta map[string]string
}

type pending struct {
	key   string
	parts map[int][]byte
	meta  map[string]string
	began time.Time
}

func newBucket() *bucket {
	return &bucket{objects: map[string]object{}, uploads: map[string]*pending{}}
}

func (b *bucket) open(t *testing.T, change ...func(*s3.Config)) *s3.Store {
	t.Helper()
	srv := httptest.NewServer(b)
	cfg := s3.Config{Endpoint: srv.URL, Bucket: "vms", AccessKey: "access", SecretKey: "secret-key", Single: 6 << 20}
	for _, f := range change {
		f(&cfg)
	}
	store, err := s3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		store.Close()
		srv.CloseClientConnections()
		srv.Close()
	})
	return store
}

// seen returns the calls since the last time.
func (b *bucket) seen() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() { b.calls = nil }()
	return b.calls
}

func meta(h http.Header) map[string]string {
	m := map[string]string{}
	for k, v := range h {
		if name, ok := strings.CutPrefix(k, "X-Amz-Meta-"); ok {
			m[strings.ToLower(name)] = v[0]
		}
	}
	return m
}

func sum64(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// say puts a checksum, or a lie, into an answer.
func (b *bucket) say(w http.ResponseWriter, sum string) {
	switch {
	case b.mute:
	case b.wrong:
		w.Header().Set("X-Amz-Checksum-Sha256", sum64([]byte("something else")))
	default:
		w.Header().Set("X-Amz-Checksum-Sha256", sum)
	}
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	key, q := strings.TrimPrefix(r.URL.Path, "/vms/"), r.URL.Query()
	call := r.Method + " " + key
	switch {
	case q.Has("partNumber"):
		call = "PART " + q.Get("partNumber")
	case q.Has("uploads") && r.Method == http.MethodGet:
		call = "LIST"
	case q.Has("uploads"):
		call = "BEGIN"
	case q.Has("uploadId") && r.Method == http.MethodPost:
		call = "COMPLETE"
	case q.Has("uploadId"):
		call = "ABORT"
	}
	b.calls = append(b.calls, call)
	if b.before != nil && !b.before(call) {
		refuse(w, 503, "SlowDown")
		return
	}
	if got := r.Header.Get("X-Amz-Content-Sha256"); r.Method == http.MethodPut && got != fmt.Sprintf("%x", sha256.Sum256(body)) {
		refuse(w, 400, "XAmzContentSHA256Mismatch")
		return
	}
	if _, taken := b.objects[key]; taken && r.Header.Get("If-None-Match") == "*" {
		refuse(w, 412, "PreconditionFailed")
		return
	}
	up := b.uploads[q.Get("uploadId")]
	if q.Has("uploadId") && (up == nil || up.key != key) {
		refuse(w, 404, "NoSuchUpload")
		return
	}
	switch verb, _, _ := strings.Cut(call, " "); verb {
	case "BEGIN":
		id := "upload-" + strconv.Itoa(len(b.calls))
		b.uploads[id] = &pending{key: key, parts: map[int][]byte{}, meta: meta(r.Header), began: time.Now()}
		if r.Header.Get("X-Amz-Checksum-Algorithm") != "SHA256" {
			refuse(w, 400, "InvalidRequest")
			return
		}
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>", id)
	case "PART":
		n, _ := strconv.Atoi(q.Get("partNumber"))
		up.parts[n] = body
		w.Header().Set("Etag", fmt.Sprintf(`"part-%d"`, n))
		b.say(w, r.Header.Get("X-Amz-Checksum-Sha256"))
	case "COMPLETE":
		if b.unconditional && r.Header.Get("If-None-Match") != "" {
			refuse(w, 501, "NotImplemented")
			return
		}
		b.complete(w, q.Get("uploadId"), body)
	case "ABORT":
		delete(b.uploads, q.Get("uploadId"))
		w.WriteHeader(http.StatusNoContent)
	case "LIST":
		b.list(w, q.Get("prefix"), q.Get("upload-id-marker"))
	case "PUT":
		b.objects[key] = object{body, r.Header.Get("X-Amz-Checksum-Sha256"), meta(r.Header)}
		if !b.silentPut {
			b.say(w, r.Header.Get("X-Amz-Checksum-Sha256"))
		}
	case "HEAD":
		o, ok := b.objects[key]
		if !ok {
			if key != "vms/" && key != "/vms" {
				w.WriteHeader(http.StatusNotFound)
			}
			return
		}
		serveObject(w, len(o.body))
		b.say(w, o.sum)
		for k, v := range o.meta {
			w.Header().Set("X-Amz-Meta-"+k, v)
		}
	default:
		refuse(w, 501, "NotImplemented")
	}
}

func (b *bucket) complete(w http.ResponseWriter, id string, body []byte) {
	var want struct {
		Part []struct {
			PartNumber     int
			ETag           string
			ChecksumSHA256 string
		}
	}
	if err := xml.Unmarshal(body, &want); err != nil {
		refuse(w, 400, "MalformedXML")
		return
	}
	up := b.uploads[id]
	var whole, sums []byte
	for i, p := range want.Part {
		part := up.parts[p.PartNumber]
		sum := sha256.Sum256(part)
		if p.PartNumber != i+1 || p.ETag != fmt.Sprintf("part-%d", i+1) || p.ChecksumSHA256 != base64.StdEncoding.EncodeToString(sum[:]) {
			refuse(w, 400, "InvalidPart")
			return
		}
		whole, sums = append(whole, part...), append(sums, sum[:]...)
	}
	o := object{whole, fmt.Sprintf("%s-%d", sum64(sums), len(want.Part)), up.meta}
	b.objects[up.key] = o
	delete(b.uploads, id)
	says := ""
	switch {
	case b.wrong:
		says = sum64([]byte("something else")) + "-3"
	case !b.mute && !b.silentPut:
		says = o.sum
	}
	fmt.Fprintf(w, "<CompleteMultipartUploadResult><Bucket>vms</Bucket><Key>%s</Key><ETag>e</ETag>", up.key)
	if says != "" {
		fmt.Fprintf(w, "<ChecksumSHA256>%s</ChecksumSHA256>", says)
	}
	fmt.Fprint(w, "</CompleteMultipartUploadResult>")
}

// list answers two uploads at a time.
func (b *bucket) list(w http.ResponseWriter, prefix, after string) {
	ids := slices.Sorted(maps.Keys(b.uploads))
	fmt.Fprint(w, "<ListMultipartUploadsResult>")
	n := 0
	for _, id := range ids {
		if up := b.uploads[id]; id > after && strings.HasPrefix(up.key, prefix) {
			if n++; n > 2 {
				break
			}
			fmt.Fprintf(w, "<Upload><Key>%s</Key><UploadId>%s</UploadId><Initiated>%s</Initiated></Upload>", up.key, id, up.began.UTC().Format(time.RFC3339))
			fmt.Fprintf(w, "<NextKeyMarker>%s</NextKeyMarker><NextUploadIdMarker>%s</NextUploadIdMarker>", up.key, id)
		}
	}
	fmt.Fprintf(w, "<IsTruncated>%v</IsTruncated></ListMultipartUploadsResult>", n > 2)
}

// large is an object of two parts.
const large = 6<<20 + 5

// noise returns n bytes, the same each time.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func fresh(body []byte) objstore.PutInput {
	in := input(body)
	in.IfAbsent = true
	in.Metadata = map[string]string{"vms-epoch": "00000000000000ff"}
	return in
}

// TestTheAnswerIsCompared: a store that says yes and means something else is
// not believed.
func TestTheAnswerIsCompared(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		set  func(*bucket)
		size int
	}{
		"whole":             {func(b *bucket) { b.wrong = true }, 1000},
		"whole, when asked": {func(b *bucket) { b.wrong, b.silentPut = true, true }, 1000},
		"parts":             {func(b *bucket) { b.wrong = true }, large},
		"completion": {func(b *bucket) {
			b.before = func(call string) bool { b.wrong = call == "COMPLETE"; return true }
		}, large},
		"completion, when asked": {func(b *bucket) {
			b.silentPut = true
			b.before = func(call string) bool { b.wrong = strings.HasPrefix(call, "HEAD"); return true }
		}, large},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBucket()
			c.set(b)
			err := b.open(t).Put(t.Context(), "k", input(noise(c.size)))
			if !errors.Is(err, objstore.ErrWrongAnswer) {
				t.Errorf("Put = %v, want ErrWrongAnswer", err)
			}
			if len(b.uploads) != 0 {
				t.Errorf("%d unfinished uploads are left", len(b.uploads))
			}
		})
	}
}

// TestAStoreThatAnswersNothingIsAsked: and one that knows nothing gets the
// checksum as metadata, so that whoever looks later learns it.
func TestAStoreThatAnswersNothingIsAsked(t *testing.T) {
	t.Parallel()
	b := newBucket()
	b.silentPut = true
	store := b.open(t)
	if err := store.Put(t.Context(), "k", fresh([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	if got := b.seen(); !slices.Equal(got, []string{"PUT k", "HEAD k"}) {
		t.Errorf("calls %q", got)
	}
	if _, carried := b.objects["k"].meta[objstore.MetaSHA256]; carried {
		t.Error("the metadata carry a checksum that the store has")
	}
}

func TestAStoreWithoutChecksums(t *testing.T) {
	t.Parallel()
	b := newBucket()
	b.mute = true
	store := b.open(t)
	for i, body := range []string{"first", "second"} {
		key := fmt.Sprint("k", i)
		if err := store.Put(t.Context(), key, fresh([]byte(body))); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(body))
		o, err := store.Stat(t.Context(), key)
		if err != nil || o.HasSHA256 || o.Metadata[objstore.MetaSHA256] != hex.EncodeToString(sum[:]) || o.Metadata["vms-epoch"] == "" {
			t.Errorf("Stat = %+v, %v", o, err)
		}
		if err := store.Put(t.Context(), key, fresh([]byte(body))); !errors.Is(err, objstore.ErrExists) {
			t.Errorf("Put again = %v", err)
		}
	}
	want := []string{"PUT k0", "HEAD k0", "PUT k0", "HEAD k0", "PUT k0", "PUT k1", "HEAD k1", "HEAD k1", "PUT k1"}
	if got := b.seen(); !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
}

// TestLargeObjects: in parts, each with its own checksum, and with that of the
// whole as metadata.
func TestLargeObjects(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(*bucket){
		"":                         func(*bucket) {},
		"silent":                   func(b *bucket) { b.silentPut = true },
		"without checksums":        func(b *bucket) { b.mute = true },
		"without conditional part": func(b *bucket) { b.unconditional = true },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBucket()
			set(b)
			store := b.open(t)
			body := noise(large)
			in := fresh(body)
			in.Body.Seek(99, io.SeekStart)
			if err := store.Put(t.Context(), "k", in); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b.objects["k"].body, body) {
				t.Error("the object is another one")
			}
			sum := sha256.Sum256(body)
			o, err := store.Stat(t.Context(), "k")
			if err != nil || o.HasSHA256 || o.Metadata[objstore.MetaSHA256] != hex.EncodeToString(sum[:]) || o.Metadata["vms-epoch"] == "" {
				t.Errorf("Stat = %+v, %v", o, err)
			}
			b.seen()
			if err := store.Put(t.Context(), "k", fresh(body)); !errors.Is(err, objstore.ErrExists) {
				t.Errorf("Put again = %v", err)
			}
			if got := b.seen(); !slices.Equal(got, []string{"HEAD k"}) {
				t.Errorf("to learn that the key is taken it sent %q", got)
			}
		})
	}
}

// TestLargeObjectOneWinner: the key is taken while the parts are on their way.
func TestLargeObjectOneWinner(t *testing.T) {
	t.Parallel()
	for _, unconditional := range []bool{false, true} {
		b := newBucket()
		b.unconditional = unconditional
		b.before = func(call string) bool {
			if call == "PART 2" {
				b.objects["k"] = object{body: []byte("the winner's")}
			}
			return true
		}
		if err := b.open(t).Put(t.Context(), "k", fresh(noise(large))); !errors.Is(err, objstore.ErrExists) {
			t.Errorf("Put = %v, want ErrExists", err)
		}
		if string(b.objects["k"].body) != "the winner's" || len(b.uploads) != 0 {
			t.Errorf("object of %d bytes, %d unfinished uploads", len(b.objects["k"].body), len(b.uploads))
		}
	}
}

// TestLargeObjectFails: whatever goes wrong, nothing is left behind.
func TestLargeObjectFails(t *testing.T) {
	t.Parallel()
	body := noise(large)
	broken := errors.New("tmpfs is gone")
	for name, c := range map[string]struct {
		before func(call string) bool
		change func(*objstore.PutInput)
		want   error
	}{
		"second part refused":  {before: func(call string) bool { return call != "PART 2" }, want: vms.ErrUnavailable},
		"completion refused":   {before: func(call string) bool { return call != "COMPLETE" }, want: vms.ErrUnavailable},
		"another body":         {change: func(in *objstore.PutInput) { in.SHA256[0] ^= 1 }, want: objstore.ErrChecksum},
		"a short body":         {change: func(in *objstore.PutInput) { in.Body = bytes.NewReader(body[:large-1]) }, want: objstore.ErrChecksum},
		"a body that breaks":   {change: func(in *objstore.PutInput) { in.Body = &breaking{bytes.NewReader(body), 5<<20 + 1<<19, broken} }, want: broken},
		"one that breaks late": {change: func(in *objstore.PutInput) { in.Body = &breaking{bytes.NewReader(body), 11<<20 + 1<<19, broken} }, want: broken},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBucket()
			b.before = c.before
			in := fresh(body)
			if c.change != nil {
				c.change(&in)
			}
			if err := b.open(t).Put(t.Context(), "k", in); !errors.Is(err, c.want) {
				t.Errorf("Put = %v, want %v", err, c.want)
			}
			if len(b.objects) != 0 || len(b.uploads) != 0 {
				t.Errorf("%d objects and %d unfinished uploads are left", len(b.objects), len(b.uploads))
			}
		})
	}
}

// breaking fails after so many bytes, however often it is rewound.
type breaking struct {
	io.ReadSeeker
	left int
	err  error
}

func (b *breaking) Read(p []byte) (int, error) {
	n, err := b.ReadSeeker.Read(p)
	if b.left -= n; b.left <= 0 {
		return 0, b.err
	}
	return n, err
}

func TestLargeObjectCancelled(t *testing.T) {
	t.Parallel()
	b := newBucket()
	ctx, cancel := context.WithCancel(t.Context())
	b.before = func(call string) bool {
		if call == "PART 2" {
			cancel()
		}
		return true
	}
	if err := b.open(t).Put(ctx, "k", fresh(noise(large))); !errors.Is(err, context.Canceled) {
		t.Errorf("Put = %v", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.objects) != 0 || len(b.uploads) != 0 {
		t.Errorf("%d objects and %d unfinished uploads are left", len(b.objects), len(b.uploads))
	}
}

// TestAbortStale: what a killed process left is removed, what is under way is not.
func TestAbortStale(t *testing.T) {
	t.Parallel()
	b := newBucket()
	now := time.Now()
	for i := range 7 {
		b.uploads[fmt.Sprint("old-", i)] = &pending{key: fmt.Sprint("recordings/", i), began: now.Add(-25 * time.Hour)}
	}
	b.uploads["new"] = &pending{key: "recordings/a", began: now}
	b.uploads["elsewhere"] = &pending{key: "others/a", began: now.Add(-25 * time.Hour)}
	n, err := b.open(t).AbortStale(t.Context(), "recordings/", now.Add(-24*time.Hour))
	if n != 7 || err != nil || len(b.uploads) != 2 || b.uploads["new"] == nil || b.uploads["elsewhere"] == nil {
		t.Errorf("AbortStale = %d, %v; left %v", n, err, b.uploads)
	}
}

// TestARetryBeginsAgain: what the store gets is the whole body, in one request
// or in parts, also when the first try failed behind it.
func TestARetryBeginsAgain(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"whole": 3_000_000, "parts": large} {
		b := newBucket()
		failed := false
		b.before = func(call string) bool {
			first := !failed && (call == "PUT k" || call == "PART 2")
			failed = failed || first
			return !first
		}
		body := noise(size)
		if err := b.open(t).Put(t.Context(), "k", fresh(body)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !failed || !bytes.Equal(b.objects["k"].body, body) {
			t.Errorf("%s: object of %d other bytes", name, len(b.objects["k"].body))
		}
	}
}
