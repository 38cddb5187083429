package embed

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/versity/versitygw/backend/meta"
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
