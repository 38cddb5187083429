// Package objstoretest holds the promises of objstore.Store as tests. Every
// implementation runs them against a real store.
package objstoretest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/pkg/vms"
)

// Run tests the store that open returns. The bucket may hold other objects;
// those of the tests have keys of their own.
func Run(t *testing.T, open func(t *testing.T) objstore.Store) {
	for name, test := range map[string]func(*testing.T, suite){
		"PutStatGet":            testPutStatGet,
		"MetadataRoundTrip":     testMetadata,
		"WrongChecksumRefused":  testWrongChecksum,
		"ShortBodyRefused":      testShortBody,
		"BodyIsReadFromStart":   testBodyFromStart,
		"IfAbsentRefusesSecond": testIfAbsent,
		"IfAbsentOneWinner":     testIfAbsentRace,
		"PutReplaces":           testReplace,
		"EmptyObject":           testEmpty,
		"GetRanges":             testRanges,
		"MissingKey":            testMissing,
		"DeleteIsIdempotent":    testDelete,
		"ListPages":             testList,
		"BadArguments":          testBadArguments,
		"EndedContext":          testEndedContext,
		"RecordingRoundTrip":    testRecording,
		"PresignGet":            testPresignGet,
		"PresignGetName":        testPresignName,
		"PresignTampered":       testPresignTampered,
		"PresignExpired":        testPresignExpired,
		"PresignPut":            testPresignPut,
	} {
		t.Run(name, func(t *testing.T) {
			test(t, suite{Store: open(t), prefix: "test/" + vms.NewID[string]("k") + "/"})
		})
	}
}

// suite is a store with a folder for one test.
type suite struct {
	objstore.Store
	prefix string
}

func (s suite) put(t *testing.T, name string, body []byte, change ...func(*objstore.PutInput)) {
	t.Helper()
	if err := s.tryPut(t, name, body, change...); err != nil {
		t.Fatalf("Put: %v", err)
	}
}

func (s suite) tryPut(t *testing.T, name string, body []byte, change ...func(*objstore.PutInput)) error {
	in := objstore.PutInput{
		Body: bytes.NewReader(body), Size: int64(len(body)), SHA256: sha256.Sum256(body), ContentType: "application/octet-stream",
	}
	for _, f := range change {
		f(&in)
	}
	return s.Put(t.Context(), s.prefix+name, in)
}

func ifAbsent(in *objstore.PutInput) { in.IfAbsent = true }

func (s suite) get(t *testing.T, name string, offset, length int64) []byte {
	t.Helper()
	r, err := s.Get(t.Context(), s.prefix+name, offset, length)
	if err != nil {
		t.Fatalf("Get(%d, %d): %v", offset, length, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("Get(%d, %d): %v", offset, length, err)
	}
	return b
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s = %v, want %v", what, err, want)
	}
}

// noise returns n bytes that no compression makes smaller.
func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func testPutStatGet(t *testing.T, s suite) {
	before := time.Now().Add(-time.Minute)
	body := noise(3<<20 + 17)
	s.put(t, "a.mp4", body, func(in *objstore.PutInput) { in.ContentType = "video/mp4" })
	o, err := s.Stat(t.Context(), s.prefix+"a.mp4")
	if err != nil {
		t.Fatal(err)
	}
	if o.Key != s.prefix+"a.mp4" || o.Size != int64(len(body)) || !o.HasSHA256 || o.SHA256 != sha256.Sum256(body) || len(o.Metadata) != 0 {
		t.Errorf("Stat = %+v", o)
	}
	if o.Modified.Before(before) || o.Modified.After(time.Now().Add(time.Minute)) || o.Modified.Location() != time.UTC {
		t.Errorf("Modified is %v", o.Modified)
	}
	if got := s.get(t, "a.mp4", 0, -1); !bytes.Equal(got, body) {
		t.Errorf("Get returned %d other bytes", len(got))
	}
}

func testMetadata(t *testing.T, s suite) {
	meta := map[string]string{
		"vms-start": "2026-03-04T05:06:07.089012Z", "a": "0", "codecs": "avc1.64001f,mp4a.40.2", "odd": `a "b" %20 + = ; \ ~ !#$&'()*`, "spaces": "a  b",
	}
	s.put(t, "m", []byte("x"), func(in *objstore.PutInput) { in.Metadata = meta })
	o, err := s.Stat(t.Context(), s.prefix+"m")
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(o.Metadata, meta) {
		t.Errorf("metadata came back as\n%q, want\n%q", o.Metadata, meta)
	}
}

// The store must compute the checksum itself: a network or a worker that flips
// a bit must not end in an acknowledged object.
func testWrongChecksum(t *testing.T, s suite) {
	body := noise(100_000)
	err := s.tryPut(t, "bad", body, func(in *objstore.PutInput) { in.SHA256[0] ^= 1 })
	wantErr(t, "Put with another checksum", err, objstore.ErrChecksum)
	flipped := bytes.Clone(body)
	flipped[99_999] ^= 0x80
	err = s.tryPut(t, "bad", body, func(in *objstore.PutInput) { in.Body = bytes.NewReader(flipped) })
	wantErr(t, "Put with a flipped bit", err, objstore.ErrChecksum)
	_, err = s.Stat(t.Context(), s.prefix+"bad")
	wantErr(t, "Stat afterwards", err, vms.ErrNotFound)
}

func testShortBody(t *testing.T, s suite) {
	body := noise(100_000)
	err := s.tryPut(t, "short", body, func(in *objstore.PutInput) { in.Body = bytes.NewReader(body[:50_000]) })
	wantErr(t, "Put of half the body", err, objstore.ErrChecksum)
	broken := errors.New("tmpfs is gone")
	err = s.tryPut(t, "short", body, func(in *objstore.PutInput) { in.Body = &failingBody{body: body[:50_000], err: broken} })
	wantErr(t, "Put of a body that breaks", err, broken)
	_, err = s.Stat(t.Context(), s.prefix+"short")
	wantErr(t, "Stat afterwards", err, vms.ErrNotFound)
}

// failingBody ends with an error of its own.
type failingBody struct {
	body []byte
	pos  int
	err  error
}

func (b *failingBody) Read(p []byte) (int, error) {
	n := copy(p, b.body[b.pos:])
	b.pos += n
	if n == 0 {
		return 0, b.err
	}
	return n, nil
}

func (b *failingBody) Seek(int64, int) (int64, error) {
	b.pos = 0
	return 0, nil
}

func testBodyFromStart(t *testing.T, s suite) {
	body := noise(1000)
	r := bytes.NewReader(body)
	r.Seek(400, io.SeekStart) // whoever computed the checksum left it there
	s.put(t, "b", body, func(in *objstore.PutInput) { in.Body = r })
	if got := s.get(t, "b", 0, -1); !bytes.Equal(got, body) {
		t.Errorf("stored %d other bytes", len(got))
	}
	// What lies behind Size is not part of the object.
	s.put(t, "c", body[:300], func(in *objstore.PutInput) { in.Body = bytes.NewReader(body) })
	if got := s.get(t, "c", 0, -1); !bytes.Equal(got, body[:300]) {
		t.Errorf("stored %d other bytes", len(got))
	}
}

func testIfAbsent(t *testing.T, s suite) {
	s.put(t, "once", []byte("first"), ifAbsent)
	wantErr(t, "second Put", s.tryPut(t, "once", []byte("second"), ifAbsent), objstore.ErrExists)
	wantErr(t, "the same Put again", s.tryPut(t, "once", []byte("first"), ifAbsent), objstore.ErrExists)
	if got := s.get(t, "once", 0, -1); string(got) != "first" {
		t.Errorf("object is %q", got)
	}
}

func testIfAbsentRace(t *testing.T, s suite) {
	for round := range 5 {
		name := fmt.Sprintf("race-%d", round)
		errs := make(chan error, 4)
		bodies := make([][]byte, cap(errs))
		for i := range bodies {
			bodies[i] = bytes.Repeat([]byte{byte('a' + i)}, 200_000)
			go func() { errs <- s.tryPut(t, name, bodies[i], ifAbsent) }()
		}
		won := 0
		for range bodies {
			switch err := <-errs; {
			case err == nil:
				won++
			case !errors.Is(err, objstore.ErrExists) && !errors.Is(err, vms.ErrUnavailable): // stores may also say "conflict, try again"
				t.Errorf("Put = %v, want nil or ErrExists", err)
			}
		}
		if won != 1 {
			t.Fatalf("%d of %d writers won", won, len(bodies))
		}
		got := s.get(t, name, 0, -1)
		if !bytes.Equal(got, bytes.Repeat(got[:1], 200_000)) {
			t.Error("the object is a mixture")
		}
		o, err := s.Stat(t.Context(), s.prefix+name)
		if err != nil || o.HasSHA256 && o.SHA256 != sha256.Sum256(got) {
			t.Errorf("the winner's object has the loser's checksum (%v)", err)
		}
	}
}

func testReplace(t *testing.T, s suite) {
	s.put(t, "r", []byte("old"), func(in *objstore.PutInput) { in.Metadata = map[string]string{"v": "1"} })
	s.put(t, "r", []byte("newer"), func(in *objstore.PutInput) { in.Metadata = map[string]string{"v": "2"} })
	o, err := s.Stat(t.Context(), s.prefix+"r")
	if err != nil || o.Size != 5 || o.Metadata["v"] != "2" || o.HasSHA256 && o.SHA256 != sha256.Sum256([]byte("newer")) {
		t.Errorf("Stat = %+v, %v", o, err)
	}
	if got := s.get(t, "r", 0, -1); string(got) != "newer" {
		t.Errorf("object is %q", got)
	}
}

func testEmpty(t *testing.T, s suite) {
	s.put(t, "e", nil)
	o, err := s.Stat(t.Context(), s.prefix+"e")
	if err != nil || o.Size != 0 || o.SHA256 != sha256.Sum256(nil) {
		t.Errorf("Stat = %+v, %v", o, err)
	}
	if got := s.get(t, "e", 0, -1); len(got) != 0 {
		t.Errorf("Get returned %q", got)
	}
}

func testRanges(t *testing.T, s suite) {
	s.put(t, "d", []byte("0123456789"))
	for _, c := range []struct {
		offset, length int64
		want           string
	}{{0, 1, "0"}, {0, 10, "0123456789"}, {3, 4, "3456"}, {3, -1, "3456789"}, {9, 1, "9"}, {9, -1, "9"}, {5, 100, "56789"}, {0, -1, "0123456789"}} {
		if got := s.get(t, "d", c.offset, c.length); string(got) != c.want {
			t.Errorf("Get(%d, %d) = %q, want %q", c.offset, c.length, got, c.want)
		}
	}
	_, err := s.Get(t.Context(), s.prefix+"d", 10, -1)
	wantErr(t, "Get behind the end", err, vms.ErrInvalid)
}

func testMissing(t *testing.T, s suite) {
	_, err := s.Stat(t.Context(), s.prefix+"missing")
	wantErr(t, "Stat", err, vms.ErrNotFound)
	_, err = s.Get(t.Context(), s.prefix+"missing", 0, -1)
	wantErr(t, "Get", err, vms.ErrNotFound)
	s.put(t, "folder/x", []byte("x"))
	_, err = s.Stat(t.Context(), s.prefix+"folder")
	wantErr(t, "Stat of a prefix", err, vms.ErrNotFound)
}

func testDelete(t *testing.T, s suite) {
	s.put(t, "gone", []byte("x"))
	for range 2 {
		if err := s.Delete(t.Context(), s.prefix+"gone"); err != nil {
			t.Errorf("Delete = %v", err)
		}
	}
	_, err := s.Stat(t.Context(), s.prefix+"gone")
	wantErr(t, "Stat afterwards", err, vms.ErrNotFound)
	s.put(t, "gone", []byte("y"), ifAbsent) // the key is free again
}

func testBadArguments(t *testing.T, s suite) {
	for _, key := range []string{"", "/a", "a//b", "../a", "a/../../b", "a b", "a?b", "ä", "a/"} {
		wantErr(t, fmt.Sprintf("Put %q", key), s.Put(t.Context(), key, objstore.PutInput{Body: bytes.NewReader(nil), SHA256: sha256.Sum256(nil), ContentType: "a/b"}), vms.ErrInvalid)
		_, err := s.Stat(t.Context(), key)
		wantErr(t, fmt.Sprintf("Stat %q", key), err, vms.ErrInvalid)
		_, err = s.Get(t.Context(), key, 0, -1)
		wantErr(t, fmt.Sprintf("Get %q", key), err, vms.ErrInvalid)
		wantErr(t, fmt.Sprintf("Delete %q", key), s.Delete(t.Context(), key), vms.ErrInvalid)
		_, _, err = s.PresignGet(t.Context(), key, time.Minute, "")
		wantErr(t, fmt.Sprintf("PresignGet %q", key), err, vms.ErrInvalid)
	}
	wantErr(t, "Put without a content type", s.tryPut(t, "x", nil, func(in *objstore.PutInput) { in.ContentType = "" }), vms.ErrInvalid)
	wantErr(t, "Put of upper case metadata", s.tryPut(t, "x", nil, func(in *objstore.PutInput) { in.Metadata = map[string]string{"A": "b"} }), vms.ErrInvalid)
	for _, r := range [][2]int64{{-1, 5}, {0, 0}, {0, -2}} {
		_, err := s.Get(t.Context(), s.prefix+"x", r[0], r[1])
		wantErr(t, fmt.Sprintf("Get%v", r), err, vms.ErrInvalid)
	}
	_, _, err := s.PresignGet(t.Context(), s.prefix+"x", 8*24*time.Hour, "")
	wantErr(t, "PresignGet for 8 days", err, vms.ErrInvalid)
	_, _, err = s.PresignPut(t.Context(), s.prefix+"x", time.Minute, "")
	wantErr(t, "PresignPut without a content type", err, vms.ErrInvalid)
}

func testEndedContext(t *testing.T, s suite) {
	s.put(t, "c", noise(1<<20))
	ctx, stop := context.WithCancel(t.Context())
	r, err := s.Get(ctx, s.prefix+"c", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stop()
	if _, err := io.ReadAll(r); err != nil { // all of it may have arrived already
		wantErr(t, "Read", err, context.Canceled)
	}
	in := objstore.PutInput{Body: bytes.NewReader(nil), SHA256: sha256.Sum256(nil), ContentType: "a/b"}
	wantErr(t, "Put", s.Put(ctx, s.prefix+"d", in), context.Canceled)
	_, err = s.Stat(ctx, s.prefix+"c")
	wantErr(t, "Stat", err, context.Canceled)
	wantErr(t, "Delete", s.Delete(ctx, s.prefix+"c"), context.Canceled)
	n := 0
	for _, err := range s.List(ctx, s.prefix, "") {
		wantErr(t, "List", err, context.Canceled)
		n++
	}
	if n != 1 {
		t.Errorf("List with an ended context yielded %d times, want 1", n)
	}
}

func testRecording(t *testing.T, s suite) {
	want, in := recording(noise(10_000))
	err := s.Put(t.Context(), want.Key, in)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Delete(context.WithoutCancel(t.Context()), want.Key)
	for listed, err := range s.List(t.Context(), "recordings/"+string(want.Channel)+"/", "") {
		if err != nil {
			t.Fatal(err)
		}
		o, err := s.Stat(t.Context(), listed.Key)
		if err != nil {
			t.Fatal(err)
		}
		got, err := objstore.ParseRecording(o.Key, o)
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("the bucket says\n%+v, want\n%+v", got, want)
		}
		return
	}
	t.Error("not listed")
}
