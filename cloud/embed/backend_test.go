package embed

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/s3response"
)

// We write attributes where the library's own code looks for them; this fails
// when a new version looks elsewhere.
func TestSidecarReadsWhatWeStore(t *testing.T) {
	dir := t.TempDir()
	library, err := meta.NewSideCar(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &syncedSidecar{SideCar: library, dir: dir}
	for _, object := range []string{"", "a", "recordings/c/2026-01-02/x.mp4"} {
		for _, value := range []string{"first", "second, longer", ""} {
			if err := s.StoreAttribute(nil, "bucket", object, "etag", []byte(value)); err != nil {
				t.Fatal(err)
			}
			got, err := library.RetrieveAttribute(nil, "bucket", object, "etag")
			if err != nil || string(got) != value {
				t.Errorf("attribute of %q is %q, %v, want %q", object, got, err, value)
			}
		}
		if names, err := library.ListAttributes("bucket", object); err != nil || !slices.Equal(names, []string{"etag"}) {
			t.Errorf("attributes of %q are %q, %v", object, names, err)
		}
	}
	if err := library.DeleteAttributes("bucket", "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RetrieveAttribute(nil, "bucket", "a", "etag"); !errors.Is(err, meta.ErrNoSuchKey) {
		t.Errorf("removed attribute: %v", err)
	}
}

// fasthttp says io.EOF when a connection closes in the middle of a body.
func TestBodyThatEndsEarlyIsRefused(t *testing.T) {
	objects, metaDir := t.TempDir(), t.TempDir()
	t.Chdir(objects) // newDurable changes it; this changes it back
	d, err := newDurable(objects, metaDir, func(_, key string) {
		if key != "whole" {
			t.Errorf("created %s", key)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Shutdown()
	bucket := "bucket"
	if err := d.CreateBucket(t.Context(), &awss3.CreateBucketInput{Bucket: &bucket, CreateBucketConfiguration: &types.CreateBucketConfiguration{}}, nil); err != nil {
		t.Fatal(err)
	}
	put := func(key string, sent, said int64) error {
		_, err := d.PutObject(t.Context(), s3response.PutObjectInput{Bucket: &bucket, Key: &key, ContentLength: &said, Body: bytes.NewReader(make([]byte, sent))})
		return err
	}
	if err := put("whole", 1000, 1000); err != nil {
		t.Fatal(err)
	}
	for _, sent := range []int64{0, 999, 1001} {
		if err := put("torn", sent, 1000); err == nil {
			t.Errorf("an object of 1000 bytes was stored with %d", sent)
		}
	}
	key, number := "parts", int32(1)
	up, err := d.CreateMultipartUpload(t.Context(), s3response.CreateMultipartUploadInput{Bucket: &bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	part := func(sent, said int64) error {
		_, err := d.UploadPart(t.Context(), &awss3.UploadPartInput{Bucket: &bucket, Key: &key, UploadId: &up.UploadId, PartNumber: &number, ContentLength: &said, Body: bytes.NewReader(make([]byte, sent))})
		return err
	}
	if err := part(1000, 1000); err != nil {
		t.Error(err)
	}
	if err := part(999, 1000); err == nil {
		t.Error("a part of 1000 bytes was stored with 999")
	}
}

func TestWriteFileDurablyReplacesWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, content := range [][]byte{[]byte("long old content"), []byte("new"), {}} {
		if err := writeFileDurably(path, content); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
			t.Errorf("file is %q, %v, want %q", got, err, content)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("directory holds %v, %v", entries, err)
	}
	if err := writeFileDurably(filepath.Join(t.TempDir(), "missing", "f"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("into a missing directory: %v", err)
	}
}

// A process that was killed in the middle of a PUT leaves attributes of an object
// that never got its name. They must not keep the key taken for ever; those that
// a PUT of this process is about to use do take it.
func TestAttributesOfNoObject(t *testing.T) {
	objects, metaDir := t.TempDir(), t.TempDir()
	library, err := meta.NewSideCar(metaDir)
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now().Add(-time.Minute)
	s := &syncedSidecar{SideCar: library, dir: metaDir, objects: objects, since: started}
	file := filepath.Join(metaDir, "bucket", "a", sidecarDir, etag)
	for _, tt := range []struct {
		name    string
		written time.Time
		object  bool
		taken   bool
	}{
		{"being written", started.Add(time.Second), false, true},
		{"left by another process", started.Add(-time.Second), false, false},
		{"of an object that is there", started.Add(-time.Second), true, true},
	} {
		if err := s.StoreAttribute(nil, "bucket", "a", etag, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, tt.written, tt.written); err != nil {
			t.Fatal(err)
		}
		if tt.object {
			if err := os.MkdirAll(filepath.Join(objects, "bucket"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(objects, "bucket", "a"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		value, err := s.RetrieveAttribute(nil, "bucket", "a", etag)
		if taken := err == nil && string(value) == "x"; taken != tt.taken || !taken && !errors.Is(err, meta.ErrNoSuchKey) {
			t.Errorf("%s: %q, %v, want the key taken: %v", tt.name, value, err, tt.taken)
		}
	}
}
