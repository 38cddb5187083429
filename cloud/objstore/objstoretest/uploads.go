package objstoretest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/pkg/vms"
)

// Uploads says more of what RunUploads tests.
type Uploads struct {
	// Large is the size of an object that Put does not send in one request, if
	// it ever does not. By default a little more than 64 MiB.
	Large int64
	// Down opens a store for whom nobody answers; nil: that is not tested.
	Down func(t *testing.T) objstore.Store
}

// RunUploads tests what puts recordings: Put, and that Stat and Get find what it
// stored. The bucket may hold other objects.
func RunUploads(t *testing.T, open func(t *testing.T) objstore.Store, change ...func(*Uploads)) {
	opts := Uploads{Large: 64<<20 + 17}
	for _, f := range change {
		f(&opts)
	}
	tests := map[string]func(*testing.T, suite){
		"Fresh":                 testFresh,
		"Exists":                testIfAbsent,
		"ExistsOneWinner":       testIfAbsentRace,
		"Replaces":              testReplace,
		"Metadata":              testMetadataKept,
		"WrongChecksumRefused":  testWrongChecksum,
		"ShortBodyRefused":      testShortBody,
		"BodyIsReadFromStart":   testBodyFromStart,
		"EmptyObject":           testEmptyKept,
		"Cancelled":             testCancelled,
		"BadArguments":          testBadPut,
		"Large":                 func(t *testing.T, s suite) { testLarge(t, s, opts.Large) },
		"LargeWrongSizeRefused": func(t *testing.T, s suite) { testLargeWrong(t, s, opts.Large) },
	}
	if opts.Down != nil {
		tests["Down"] = func(t *testing.T, _ suite) { testDown(t, opts.Down(t)) }
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test(t, suite{Store: open(t), prefix: "test/" + vms.NewID[string]("k") + "/"})
		})
	}
}

// recording is one of so many bytes, and how it is put.
func recording(body []byte) (vms.Recording, objstore.PutInput) {
	start := time.Date(2026, 3, 4, 5, 6, 7, 89012000, time.UTC)
	r := vms.Recording{
		Channel: vms.NewID[vms.ChannelID]("ch"), Chunks: vms.ChunkRange{Epoch: vms.NewEpoch(), First: 1, Last: 61}, Number: 7,
		Start: start, End: start.Add(30 * time.Second), Media: 29_966_666_666, Bytes: int64(len(body)), SHA256: sha256.Sum256(body),
		HeadLen: 1500, InitLen: 1200, Codecs: "hvc1.1.6.L93.B0,fLaC", Dependent: true,
	}
	r.Key = vms.RecordingKey(r.Channel, r.Start, r.Number)
	return r, objstore.PutInput{
		Body: bytes.NewReader(body), Size: r.Bytes, SHA256: r.SHA256, ContentType: objstore.RecordingType,
		Metadata: objstore.RecordingMetadata(r), IfAbsent: true,
	}
}

// found checks that the bucket holds r, and says so.
func (s suite) found(t *testing.T, r vms.Recording, body []byte) {
	t.Helper()
	o, err := s.Stat(t.Context(), r.Key)
	if err != nil {
		t.Fatalf("Stat: %v", err)
	}
	got, err := objstore.ParseRecording(r.Key, o)
	if err != nil {
		t.Fatalf("ParseRecording: %v", err)
	}
	if got != r {
		t.Errorf("the bucket says\n%+v, want\n%+v", got, r)
	}
	f, err := s.Get(t.Context(), r.Key, 0, -1)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	defer f.Close()
	if have, err := io.ReadAll(f); err != nil || !bytes.Equal(have, body) {
		t.Errorf("Get returned %d other bytes, %v", len(have), err)
	}
}

// remove deletes what a test put outside of its folder.
func (s suite) remove(t *testing.T, key string) {
	if err := s.Delete(context.WithoutCancel(t.Context()), key); err != nil {
		t.Errorf("Delete: %v", err)
	}
}

func testFresh(t *testing.T, s suite) {
	body := noise(3<<20 + 17)
	r, in := recording(body)
	if err := s.Put(t.Context(), r.Key, in); err != nil {
		t.Fatalf("Put: %v", err)
	}
	defer s.remove(t, r.Key)
	s.found(t, r, body)
	again := in
	again.Body = bytes.NewReader(body)
	wantErr(t, "the same Put again", s.Put(t.Context(), r.Key, again), objstore.ErrExists)
}

// testMetadataKept: an uploader may add some of its own.
func testMetadataKept(t *testing.T, s suite) {
	meta := map[string]string{
		"vms-start": "2026-03-04T05:06:07.089012Z", "a": "0", "codecs": "avc1.64001f,mp4a.40.2", "odd": `a "b" %20 + = ; \ ~ !#$&'()*`, "spaces": "a  b",
	}
	s.put(t, "m", []byte("x"), ifAbsent, func(in *objstore.PutInput) { in.Metadata = meta })
	o, err := s.Stat(t.Context(), s.prefix+"m")
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range meta {
		if o.Metadata[k] != v {
			t.Errorf("metadata %s came back as %q, want %q", k, o.Metadata[k], v)
		}
	}
}

func testEmptyKept(t *testing.T, s suite) {
	s.put(t, "e", nil, ifAbsent)
	o, err := s.Stat(t.Context(), s.prefix+"e")
	if err != nil || o.Size != 0 {
		t.Errorf("Stat = %+v, %v", o, err)
	}
}

// stopping ends a context when half of it was read.
type stopping struct {
	*bytes.Reader
	at   int
	stop context.CancelFunc
}

func (b *stopping) Read(p []byte) (int, error) {
	if b.Len() < b.at {
		b.stop()
	}
	return b.Reader.Read(p[:min(len(p), 32<<10)])
}

// testCancelled: whoever was told to stop has stored the whole, or nothing.
func testCancelled(t *testing.T, s suite) {
	body := noise(8 << 20)
	for _, at := range []int{len(body), len(body) / 2} {
		r, in := recording(body)
		ctx, stop := context.WithCancel(t.Context())
		in.Body = &stopping{bytes.NewReader(body), at, stop}
		wantErr(t, "a Put that was told to stop", s.Put(ctx, r.Key, in), context.Canceled)
		stop()
		in.Body = bytes.NewReader(body)
		if err := s.Put(t.Context(), r.Key, in); err != nil && !errors.Is(err, objstore.ErrExists) {
			t.Errorf("Put afterwards = %v", err)
		}
		s.found(t, r, body)
		s.remove(t, r.Key)
	}
}

func testBadPut(t *testing.T, s suite) {
	for _, key := range []string{"", "/a", "a//b", "../a", "a/../../b", "a b", "a?b", "ä", "a/", "-a b"} {
		wantErr(t, fmt.Sprintf("Put %q", key), s.Put(t.Context(), key, objstore.PutInput{Body: bytes.NewReader(nil), SHA256: sha256.Sum256(nil), ContentType: "a/b"}), vms.ErrInvalid)
	}
	wantErr(t, "Put without a content type", s.tryPut(t, "x", nil, func(in *objstore.PutInput) { in.ContentType = "" }), vms.ErrInvalid)
	wantErr(t, "Put of upper case metadata", s.tryPut(t, "x", nil, func(in *objstore.PutInput) { in.Metadata = map[string]string{"A": "b"} }), vms.ErrInvalid)
	wantErr(t, "Put of the store's own metadata", s.tryPut(t, "x", nil, func(in *objstore.PutInput) { in.Metadata = map[string]string{objstore.MetaSHA256: "b"} }), vms.ErrInvalid)
}

// testLarge: found by what the bucket says, like any other.
func testLarge(t *testing.T, s suite, size int64) {
	body := noise(int(size))
	r, in := recording(body)
	if err := s.Put(t.Context(), r.Key, in); err != nil {
		t.Fatalf("Put: %v", err)
	}
	defer s.remove(t, r.Key)
	s.found(t, r, body)
	in.Body = bytes.NewReader(body)
	wantErr(t, "the same Put again", s.Put(t.Context(), r.Key, in), objstore.ErrExists)
}

func testLargeWrong(t *testing.T, s suite, size int64) {
	body := noise(int(size))
	r, in := recording(body)
	in.Body = bytes.NewReader(body[:size-1])
	wantErr(t, "Put without the last byte", s.Put(t.Context(), r.Key, in), objstore.ErrChecksum)
	body[size-1] ^= 1
	in.Body = bytes.NewReader(body)
	wantErr(t, "Put with a flipped bit", s.Put(t.Context(), r.Key, in), objstore.ErrChecksum)
	_, err := s.Stat(t.Context(), r.Key)
	wantErr(t, "Stat afterwards", err, vms.ErrNotFound)
}

func testDown(t *testing.T, s objstore.Store) {
	r, in := recording(noise(10_000))
	wantErr(t, "Put", s.Put(t.Context(), r.Key, in), vms.ErrUnavailable)
}
