package store_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/cloud/store"
	"github.com/zipato/vms/cloud/store/storetest"
	"github.com/zipato/vms/pkg/vms"
)

func open(t testing.TB, path string) *store.Store {
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

// What the first release wrote is there after the upgrade, and new rules hold for it.
func TestSQLiteUpgradesFromTheFirstSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vms.db")
	start := time.UnixMicro(1_795_000_000_250_000).UTC()
	key := vms.RecordingKey("ch_1", start, 2)
	err := store.MakeOld(t.Context(), path, 1,
		`INSERT INTO hubs (id, account_id, name, public_key, created_at, enrolled_at) VALUES ('hub_1', 'a', 'Attic', 'AAAA', 1795000000000001, 1795000000000002)`,
		`INSERT INTO channels (id, account_id, hub_id, name, mode, camera, secret, wanted, sid, generation, created_at)
			VALUES ('ch_1', 'a', 'hub_1', 'Door', 'continuous', '{"host":"10.0.0.7"}', 'AQID', TRUE, 'sid_1', 7, 1795000000000003)`,
		`INSERT INTO sessions (sid, account_id, channel_id, hub_id, state, generation, created_at) VALUES ('sid_1', 'a', 'ch_1', 'hub_1', 'open', 7, 1795000000000004)`,
		`INSERT INTO recordings VALUES ('`+key+`', 'ch_1', 1795000000250000, 1795000030250000, 'fedcba9876543210', 1, 150, 2, 30000000, 1000,
			'`+strings.Repeat("ab", 32)+`', 90, 60, 'avc1.64001f', FALSE, TRUE, 1795000031000000)`,
		`INSERT INTO garbage (object_key, created_at) VALUES ('recordings/ch_1/old', 1795000000000005)`,
		`INSERT INTO gaps (channel_id, id, start_at, end_at, cause) VALUES ('ch_1', 'gap_1', 1795000030250000, 1795000040250000, 'camera_offline')`,
		`INSERT INTO idle (channel_id, start_at) VALUES ('ch_1', 1795000050000000)`,
	)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	ctx := t.Context()
	if h, err := s.Hub(ctx, "hub_1"); err != nil || h.Name != "Attic" || len(h.PublicKey) == 0 {
		t.Errorf("Hub = %+v, %v", h, err)
	}
	if c, err := s.Channel(ctx, "ch_1"); err != nil || c.Camera.Host != "10.0.0.7" || !c.Wanted || len(c.Secret) != 3 {
		t.Errorf("Channel = %+v, %v", c, err)
	}
	if hubs, err := s.DirtyHubs(ctx); err != nil || len(hubs) != 1 {
		t.Errorf("DirtyHubs = %v, %v: the hub was never told over MQTT what to do", hubs, err)
	}
	if h, rows, err := s.DesiredChannels(ctx, "hub_1"); err != nil || h.Revision != 1 || len(rows) != 1 || rows[0].PreRoll != 5 || rows[0].PostRoll != 30 {
		t.Errorf("DesiredChannels = %+v, %+v, %v", h, rows, err)
	}
	if g, err := s.NextGenerations(ctx, []vms.SID{"sid_1"}); err != nil || len(g) != 1 || g[0] != 8 {
		t.Errorf("NextGenerations = %d, %v, want 8", g, err)
	}
	rs, err := s.Recordings(ctx, "ch_1", start, start.Add(time.Hour), nvr.Cursor{}, 10)
	if err != nil || len(rs) != 1 || rs[0].Key != key || rs[0].Chunks.Last != 150 || !rs[0].TimeUncertain {
		t.Fatalf("Recordings = %+v, %v", rs, err)
	}
	if gaps, err := s.Gaps(ctx, "ch_1", start, start.Add(time.Hour), 10); err != nil || len(gaps) != 1 {
		t.Errorf("Gaps = %+v, %v", gaps, err)
	}
	if idle, err := s.Idle(ctx, "ch_1", start, start.Add(time.Hour)); err != nil || len(idle) != 1 {
		t.Errorf("Idle = %+v, %v", idle, err)
	}
	if keys, err := s.Garbage(ctx, start, 10); err != nil || len(keys) != 1 {
		t.Errorf("what was garbage may go at once: %v, %v", keys, err)
	}
	p := rs[0] // what comes late of a recording that the first release stored
	p.Chunks.First = 100
	p.Start = start.Add(20 * time.Second)
	p.Key = vms.PartKey(p.Channel, p.Chunks, p.Number)
	if v, err := s.PutRecording(ctx, p, start, time.Hour); err != nil || v != (nvr.Verdict{}) {
		t.Errorf("PutRecording of a part = %+v, %v, want no news", v, err)
	}
}

// The parts of a channel are found without a look at its recordings.
func TestSQLiteFindsPartsByTheirIndex(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "vms.db"))
	for _, query := range store.PartQueries {
		plan, err := store.Plan(t.Context(), s, query)
		if err != nil || !strings.Contains(plan, "recordings_parts") {
			t.Errorf("plan of %s: %s, %v", query, plan, err)
		}
	}
}

// What is asked all the time does not look at every hub and channel.
func TestSQLiteFindsWhatIsToBeDoneByItsIndex(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "vms.db"))
	for index, query := range store.HubQueries {
		plan, err := store.Plan(t.Context(), s, query)
		if err != nil || !strings.Contains(plan, index) {
			t.Errorf("plan of %s: %s, %v", query, plan, err)
		}
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
