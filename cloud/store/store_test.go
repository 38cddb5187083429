package store_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/cloud/store"
	"github.com/zipato/vms/cloud/store/storetest"
)

func open(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.OpenSQLite(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return s
}

func TestSQLite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) nvr.Store { return open(t, filepath.Join(t.TempDir(), "a dir#?%.db")) })
}

func TestSQLiteStartsWhereItStopped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vms.db")
	s, err := store.OpenSQLite(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	h := nvr.Hub{ID: "hub_1", Account: "a", Name: "Attic", CreatedAt: time.UnixMicro(1_700_000_000_000_001).UTC()}
	if err := s.CreateHub(t.Context(), h, nvr.CodeHash{1}, h.CreatedAt.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, path).Hub(t.Context(), h.ID)
	if err != nil || got.Name != h.Name || !got.CreatedAt.Equal(h.CreatedAt) {
		t.Errorf("after a restart Hub = %+v, %v, want %+v", got, err, h)
	}
}

// The database names cameras and hubs; a data directory that others may enter
// must not give it away.
func TestSQLiteIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vms.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil { // as a restored backup may be
		t.Fatal(err)
	}
	s := open(t, path)
	h := nvr.Hub{ID: "hub_1", Account: "a", CreatedAt: time.Now()}
	if err := s.CreateHub(t.Context(), h, nvr.CodeHash{1}, h.CreatedAt.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) < 2 {
		t.Fatalf("files %v, %v, want the database and its log", files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v, want 0600", f, info.Mode().Perm(), err)
		}
	}
}

// A program that is older than the file must not touch it.
func TestSQLiteRefusesANewerSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vms.db")
	s := open(t, path)
	if err := store.Exec(t.Context(), s, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)`); err != nil {
		t.Fatal(err)
	}
	if again, err := store.OpenSQLite(context.Background(), path); err == nil {
		again.Close()
		t.Error("a file of a newer version was opened")
	}
}

func TestSQLitePragmas(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "vms.db"))
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "10000"} {
		got, err := store.Pragma(t.Context(), s, pragma)
		if err != nil || got != want {
			t.Errorf("pragma %s = %q, %v, want %q", pragma, got, err, want)
		}
	}
}

// The store that the tests of others stand on keeps the same promises.
func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) nvr.Store { return nvrtest.NewStore() })
}
