package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// onFlash is a configuration in which each GOP of 4 chunks (4 KB) is a
// transaction, and a file has two of them.
func onFlash(t testing.TB) Config {
	return Config{RAM: 20_000, Dir: t.TempDir(), Flash: 1 << 30, FileBytes: 90_000, BatchBytes: 4_000, Facts: &facts{}}
}

// start runs the store with the test.
func start(t testing.TB, st *Store) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- st.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func list(first, last uint64) string {
	var out []string
	for i := first; i <= last; i++ {
		out = append(out, fmt.Sprint(i))
	}
	return strings.Join(out, ", ")
}

// files lists the files with footage.
func files(t testing.TB, dir string) []string {
	found, err := filepath.Glob(filepath.Join(dir, "ch_*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestWhatRAMCannotHoldGoesToFlash(t *testing.T) {
	vmstest.NoLeaks(t)
	cfg := onFlash(t)
	st := store(t, cfg)
	s := st.Spool("ch_1")
	putMarked(s, 1, strings.Repeat("f...", 4))
	st.work(t.Context())
	if n := len(files(t, cfg.Dir)); n > 0 || st.Stats().FlashWritten != 0 {
		t.Errorf("%d files while RAM has room", n)
	}
	putMarked(s, 17, "f...")
	st.work(t.Context())
	got := st.Stats()
	if got.RAM != 12_000 || s.Stats().Chunks != 20 || got.FlashWritten == 0 || got.FlashToday != got.FlashWritten || got.Flash < 8_000 {
		t.Errorf("%+v, want two GOPs on flash", got)
	}
	check(t, "held", walk(whole(s, nil)), list(1, 20))
	if g := gaps(s); g != "" {
		t.Errorf("gaps: %s", g)
	}
	s.Durable([]vms.ChunkRange{rangeOf(5, 8), rangeOf(2, 4)})
	st.work(t.Context())
	if n := len(files(t, cfg.Dir)); n != 1 {
		t.Errorf("%d files while chunk 1 is not durable, want 1", n)
	}
	check(t, "held", walk(whole(s, []vms.ChunkRange{rangeOf(1, 8)})), list(9, 20))
	s.Durable([]vms.ChunkRange{rangeOf(1, 1)})
	st.work(t.Context())
	if n := len(files(t, cfg.Dir)); n != 0 || st.Stats().Flash != 0 {
		t.Errorf("%d files and %d bytes on flash of what is durable", n, st.Stats().Flash)
	}
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := cfg.Facts.(*facts).days[today()]; n != st.Stats().FlashWritten {
		t.Errorf("%d bytes written, %d told", st.Stats().FlashWritten, n)
	}
}

// TestRunSpills: by itself, and for more than RAM could hold by far.
func TestRunSpills(t *testing.T) {
	vmstest.NoLeaks(t)
	st := store(t, onFlash(t))
	start(t, st)
	s := st.Spool("ch_1")
	for i := range uint64(50) {
		putMarked(s, 4*i+1, "f...")
		eventually(t, "RAM has room", func() bool { return st.used.Load() <= 16_000 })
	}
	if g := gaps(s); g != "" {
		t.Errorf("gaps: %s", g)
	}
	check(t, "held", walk(whole(s, nil)), list(1, 200))
	s.Durable([]vms.ChunkRange{rangeOf(1, 200)})
	eventually(t, "the files are gone", func() bool { return st.Stats().Flash == 0 })
}

// TestSlowFlashDoesNotHoldUpTheCamera: the write does not end, the oldest GOP
// that is not on its way is dropped, and what is on its way is not.
func TestSlowFlashDoesNotHoldUpTheCamera(t *testing.T) {
	vmstest.NoLeaks(t)
	st := store(t, onFlash(t))
	start(t, st)
	s := st.Spool("ch_1")
	putMarked(s, 1, strings.Repeat("f...", 5))
	eventually(t, "the first files are written", func() bool { return st.used.Load() <= 12_000 })
	st.io.Lock() // between two writes
	s.mu.Lock()
	sh := s.shelf
	s.mu.Unlock()
	sh.wmu.Lock()
	st.io.Unlock()
	putMarked(s, 21, strings.Repeat("f...", 2))
	eventually(t, "a write is under way", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.flight == run{9, 12}
	})
	putMarked(s, 29, strings.Repeat("f...", 2))
	if n := st.used.Load(); n > st.cfg.RAM {
		t.Errorf("%d bytes in RAM of %d", n, st.cfg.RAM)
	}
	check(t, "gaps", gaps(s), "buffer_full 13-20")
	s.Durable([]vms.ChunkRange{rangeOf(10, 11)}) // as it flies
	s.Skip(epoch, 9)
	sh.wmu.Unlock()
	eventually(t, "the write has ended", func() bool { return s.Stats().Flash > 0 && st.used.Load() <= 16_000 })
	check(t, "held", walk(whole(s, []vms.ChunkRange{rangeOf(1, 1)})), list(2, 8)+", rejected 9-9, durable 10-11, 12, buffer_full 13-20, "+list(21, 36))
}

// TestSlowReadDoesNotHoldUpTheCamera: nor what becomes of the chunk meanwhile.
func TestSlowReadDoesNotHoldUpTheCamera(t *testing.T) {
	vmstest.NoLeaks(t)
	st := store(t, onFlash(t))
	s := st.Spool("ch_1")
	putMarked(s, 1, strings.Repeat("f...", 5))
	st.work(t.Context())
	s.shelf.rmu.Lock()
	c := whole(s, nil)
	type result struct {
		seq uint64
		err error
	}
	got := make(chan result)
	go func() {
		item, err := c.Next(t.Context())
		if err != nil {
			got <- result{0, err}
			return
		}
		got <- result{item.Chunk.Seq, nil}
	}()
	eventually(t, "it reads", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return c.pos.seq == 1
	})
	putMarked(s, 21, "f...")
	s.Durable([]vms.ChunkRange{rangeOf(1, 4)})
	s.shelf.rmu.Unlock()
	if r := <-got; r.err != nil || r.seq != 5 {
		t.Errorf("got chunk %d, %v; want 5, because 1 became durable meanwhile", r.seq, r.err)
	}
}

func TestFullFlashDropsTheOldestFile(t *testing.T) {
	cfg := onFlash(t)
	cfg.Flash = 260_000
	st := store(t, cfg)
	s, other := st.Spool("ch_1"), st.Spool("ch_2")
	putMarked(other, 1, "f..")
	n := uint64(0)
	for s.Stats().Dropped == 0 && n < 400 {
		putMarked(s, 4*n+1, "f...")
		n++
		st.work(t.Context())
	}
	if b := st.Stats().Flash; b > cfg.Flash || b < cfg.Flash/2 {
		t.Errorf("%d bytes on flash of %d", b, cfg.Flash)
	}
	if d := other.Stats().Dropped; d > 0 {
		t.Errorf("the stream that has little lost %d chunks", d)
	}
	d := s.Stats().Dropped
	check(t, "gaps", gaps(s), fmt.Sprintf("buffer_full 1-%d", d))
	if d%4 != 0 {
		t.Errorf("%d chunks dropped, which are not whole GOPs", d)
	}
	check(t, "held", walk(whole(s, nil)), list(d+1, 4*n))
	if g := cfg.Facts.(*facts).gaps["ch_1"]; len(g) != 1 || g[0].Chunks.Last != d {
		t.Errorf("saved before the file went: %v", g)
	}
}

// TestAFileStaysWhileItsGapCannotBeSaved: else a power cut would lose both.
func TestAFileStaysWhileItsGapCannotBeSaved(t *testing.T) {
	cfg := onFlash(t)
	cfg.Flash = 260_000
	f := cfg.Facts.(*facts)
	st := store(t, cfg)
	s := st.Spool("ch_1")
	f.fail = errors.New("no")
	n := uint64(0)
	for s.Stats().Dropped == 0 && n < 400 {
		putMarked(s, 4*n+1, "f...")
		n++
		st.work(t.Context())
	}
	before := len(files(t, cfg.Dir))
	if p := st.Stats().FlashProblem; !strings.Contains(p, "no") {
		t.Errorf("problem %q", p)
	}
	f.mu.Lock()
	f.fail = nil
	f.mu.Unlock()
	st.work(t.Context())
	if after := len(files(t, cfg.Dir)); after >= before || len(f.gaps["ch_1"]) == 0 {
		t.Errorf("%d files, then %d when gaps can be saved; %v", before, after, f.gaps)
	}
}

func TestRefuseNewKeepsTheOldest(t *testing.T) {
	cfg := onFlash(t)
	cfg.Flash, cfg.Policy = 260_000, RefuseNew
	st := store(t, cfg)
	s := st.Spool("ch_1")
	for n := range uint64(60) {
		putMarked(s, 4*n+1, "f...")
		st.work(t.Context())
	}
	got := walk(whole(s, nil))
	dropped := s.Stats().Dropped
	kept := 240 - dropped - 20
	check(t, "held", got, fmt.Sprintf("%s, buffer_full %d-%d, %s", list(1, kept), kept+1, 220, list(221, 240)))
	if p := st.Stats().FlashProblem; p != errFull.Error() {
		t.Errorf("problem %q", p)
	}
	// What becomes durable makes room at once.
	s.Durable([]vms.ChunkRange{rangeOf(1, kept)})
	st.work(t.Context())
	st.work(t.Context())
	if st.Stats().FlashProblem != "" || st.used.Load() > 12_000 {
		t.Errorf("%+v when there is room again", st.Stats())
	}
}

// TestFlashThatCannotBeWrittenIsLeftAlone: RAM goes on.
func TestFlashThatCannotBeWrittenIsLeftAlone(t *testing.T) {
	cfg := onFlash(t)
	cfg.Dir = filepath.Join(cfg.Dir, "spool")
	st := store(t, cfg)
	if err := os.WriteFile(cfg.Dir, nil, 0o600); err != nil { // where the folder should be
		t.Fatal(err)
	}
	s := st.Spool("ch_1")
	for n := range uint64(10) {
		putMarked(s, 4*n+1, "f...")
		st.work(t.Context())
	}
	check(t, "gaps", gaps(s), "buffer_full 1-20")
	check(t, "held", walk(whole(s, nil)), list(21, 40))
	if st.Stats().FlashProblem == "" || st.writable() {
		t.Errorf("%+v", st.Stats())
	}
	os.Remove(cfg.Dir)
	st.work(t.Context())
	if st.used.Load() != 20_000 {
		t.Error("flash is tried again at once")
	}
	st.flash.retry = time.Time{}
	st.work(t.Context())
	if st.used.Load() > 12_000 || st.Stats().FlashProblem != "" {
		t.Errorf("%+v when flash takes it again", st.Stats())
	}
}

// TestFlashThatIsSwitchedOffIsEmptied: what an earlier run put there is brought
// and deleted, and nothing is added, neither while RAM is full nor at the end.
func TestFlashThatIsSwitchedOffIsEmptied(t *testing.T) {
	vmstest.NoLeaks(t)
	cfg := onFlash(t)
	st := store(t, cfg)
	putMarked(st.Spool("ch_1"), 1, strings.Repeat("f...", 4))
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	before := filesIn(t, cfg.Dir)
	cfg.Flash = -1
	st = store(t, cfg)
	start(t, st)
	s := st.Spool("ch_1")
	if got := s.Holding(); len(got) != 1 || got[0].Chunks != rangeOf(1, 16) {
		t.Fatalf("holding %v, want what is on flash", got)
	}
	next := func(first uint64, gops string) {
		for i, r := range gops {
			c := vms.Chunk{Epoch: epoch + 1, Seq: first + uint64(i), Init: 1, Payload: make([]byte, 744)}
			if r == 'f' {
				c.Flags = vms.FlagKey | vms.FlagFirst
			}
			s.Append(c)
		}
	}
	next(1, strings.Repeat("f...", 6))
	if err := st.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	check(t, "gaps", gaps(s), "buffer_full 1-4")
	after := filesIn(t, cfg.Dir)
	for name, data := range after {
		if string(before[name]) != string(data) {
			t.Errorf("%s was written to", name)
		}
	}
	if got := st.Stats(); len(after) != len(before) || got.RAM != 20_000 || got.Flash == 0 || got.FlashLimit != 0 || got.FlashWritten != 0 || got.FlashProblem != "" {
		t.Errorf("%d files, then %d; %+v", len(before), len(after), got)
	}
	check(t, "handed out", walk(whole(s, nil)), list(1, 16)+", end 16, "+list(5, 24))
	s.Durable([]vms.ChunkRange{rangeOf(1, 16)})
	eventually(t, "the files are gone", func() bool { return len(files(t, cfg.Dir)) == 0 && st.Stats().Flash == 0 })
}

// TestFreeSpaceBoundsFlash: what others have left on the file system counts.
func TestFreeSpaceBoundsFlash(t *testing.T) {
	cfg := onFlash(t)
	cfg.Flash, cfg.FreeShare = 1<<62, 1e-9
	st := store(t, cfg)
	s := st.Spool("ch_1")
	putMarked(s, 1, strings.Repeat("f...", 5))
	st.work(t.Context())
	if got := st.Stats(); got.Flash > 0 || got.FlashLimit > 1<<20 || got.FlashProblem != errFull.Error() {
		t.Errorf("%+v with next to nothing free", got)
	}
}

func TestFlushAndRestart(t *testing.T) {
	cfg := onFlash(t)
	cfg.RAM, cfg.BatchBytes = 24<<20, 0
	st := store(t, cfg)
	var spools []*Spool
	for i := range 4 {
		s := st.Spool(vms.ChannelID(fmt.Sprint("ch_", i)))
		spools = append(spools, s)
		s.PutInit(vms.Init{Epoch: epoch, ID: 1, Segment: []byte("segment")})
		for j := range uint64(110) {
			c := vms.Chunk{Epoch: epoch, Seq: j + 1, Init: 1, MoofLen: 8, Payload: make([]byte, 50_000)}
			c.CRC = wire.Checksum(c.Payload)
			if j%10 == 0 {
				c.Flags = vms.FlagKey
			}
			c.Start = time.Unix(1_800_000_000+int64(j), 0).UTC()
			c.End = c.Start.Add(time.Second)
			s.Append(c)
		}
	}
	at := time.Unix(1_800_000_000, 0).UTC()
	away := vms.Gap{ID: "gap_1", Cause: vms.CauseCameraOffline, TimeRange: vms.TimeRange{Start: at, End: at.Add(time.Second)}}
	spools[0].Declare(away)
	spools[0].Skip(epoch, 105)
	spools[0].Durable([]vms.ChunkRange{rangeOf(1, 10)})
	begin := time.Now()
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("flushing 22 MB took %v", d)
	}
	if n := st.used.Load(); n != 0 {
		t.Errorf("%d bytes only in RAM after Flush", n)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}

	st = store(t, cfg)
	if got := fmt.Sprint(st.Channels()); got != "[ch_0 ch_1 ch_2 ch_3]" {
		t.Errorf("channels %s", got)
	}
	s := st.Spool("ch_0")
	if got := s.Gaps(10); len(got) != 2 || got[0].ID != away.ID || got[0].TimeRange != away.TimeRange || *got[1].Chunks != rangeOf(101, 110) {
		t.Errorf("gaps after the restart: %v", got)
	}
	live := s.Live("w1", nil)
	check(t, "live has nothing of an earlier run", walk(live), "")
	if !wanted(s) {
		t.Error("backfill is not wanted")
	}
	check(t, "backfill", walk(s.Backfill("w1", nil, false)), "durable 1-10, "+list(11, 100)+", end 100, EOF")
	if i, ok := s.Init(epoch, 1); !ok || string(i.Segment) != "segment" {
		t.Errorf("init %v %v", i, ok)
	}
	h := s.Holding()
	if len(h) != 1 || h[0].Chunks != rangeOf(11, 100) || h[0].Lane != vms.LaneBackfill || !h[0].End.Equal(at.Add(100*time.Second)) {
		t.Errorf("holding %v", h)
	}
	c := vms.Chunk{Epoch: 77, Seq: 1, Init: 1, Flags: vms.FlagFirst | vms.FlagKey, Start: at.Add(time.Hour), End: at.Add(time.Hour + time.Second), Payload: make([]byte, 100)}
	s.Append(c)
	check(t, "live", walk(live), "1")
	s.Durable([]vms.ChunkRange{rangeOf(1, 110)})
	if got := s.Epochs(); len(got) != 1 || got[0] != 77 {
		t.Errorf("epochs %v", got)
	}
}

// TestGapsAreSavedWhenTheNVRDoesNotTakeThem: not at once, because online nothing
// should be written, and a growing one not every second.
func TestGapsAreSavedWhenTheNVRDoesNotTakeThem(t *testing.T) {
	f := &facts{}
	st := store(t, Config{RAM: 1 << 20, Facts: f})
	s := st.Spool("ch_1")
	put(s, 1, "k.k.k.k.")
	s.Skip(epoch, 1)
	st.saveGaps(true)
	if f.puts != 0 {
		t.Error("a gap is saved at once")
	}
	age := func(d time.Duration) {
		for _, g := range s.gaps {
			g.since, g.savedAt = g.since.Add(-d), g.savedAt.Add(-d)
		}
	}
	age(gapPatience)
	st.saveGaps(true)
	if f.puts != 1 {
		t.Errorf("saved %d times, want once", f.puts)
	}
	s.Skip(epoch, 3)
	age(gapPatience)
	st.saveGaps(true)
	if f.puts != 1 {
		t.Error("a gap that grows is saved again within a minute")
	}
	if got := gaps(s); got != "" {
		t.Errorf("gaps: %s, of which less is saved", got)
	}
	st.saveGaps(true)
	check(t, "gaps, when the NVR asks", gaps(s), "rejected 1-4")
	if g := f.gaps["ch_1"]; len(g) != 1 || g[0].Chunks.Last != 4 {
		t.Errorf("saved: %v", g)
	}
	s.Committed([]vms.GapID{f.gaps["ch_1"][0].ID})
	st.saveGaps(true)
	if g := f.gaps["ch_1"]; len(g) != 0 {
		t.Errorf("still saved after it was committed: %v", g)
	}
}

// TestGapsOfMonthsAreBounded: a camera that comes and goes, an NVR that does
// not commit, and no room.
func TestGapsOfMonthsAreBounded(t *testing.T) {
	f := &facts{}
	st := store(t, Config{RAM: 3_000, Facts: f})
	s := st.Spool("ch_1")
	at := func(n uint64) time.Time { return time.Unix(1_800_000_000+int64(n), 0).UTC() }
	for i := range uint64(10_000) {
		put(s, 2*i+1, "k")
		s.Declare(vms.Gap{ID: vms.GapID(fmt.Sprint("gap_", i)), Cause: vms.CauseCameraOffline, TimeRange: vms.TimeRange{Start: at(2*i + 2), End: at(2*i + 3)}})
		if i%500 == 0 {
			s.Gaps(100)
			s.Resend()
			st.saveGaps(false)
		}
	}
	if n := len(s.gaps); n > 2*maxGaps {
		t.Errorf("%d gaps", n)
	}
	st.saveGaps(false)
	if n := len(f.gaps["ch_1"]); n != len(s.gaps) {
		t.Errorf("%d gaps saved of %d", n, len(s.gaps))
	}
	// Together they still cover all but what is held.
	list := s.Gaps(1 << 20)
	slices.SortFunc(list, func(a, b vms.Gap) int { return a.Start.Compare(b.Start) })
	end, held := at(1), s.Stats().Oldest
	for _, g := range list {
		if g.Start.After(end) && end.Before(held) {
			t.Fatalf("nothing says what was from %v to %v", end, g.Start)
		}
		if g.End.After(end) {
			end = g.End
		}
	}
	if end.Before(held) {
		t.Errorf("the gaps end at %v, and what is held begins at %v", end, held)
	}
}

func TestPressure(t *testing.T) {
	st := store(t, Config{RAM: 10_000})
	s := st.Spool("ch_1")
	put(s, 1, "k.......")
	if p, on := st.Pressure(); on || p.Held != 8_000 || p.Budget != 10_000 {
		t.Errorf("pressure %v at %+v", on, p)
	}
	put(s, 9, ".")
	if p, on := st.Pressure(); !on || p.Held != 9_000 {
		t.Errorf("pressure %v at %+v", on, p)
	}
}

// TestSpillsOnlyWhenRAMIsNearlyFull: from 92 % down to 60 %.
func TestSpillsOnlyWhenRAMIsNearlyFull(t *testing.T) {
	cfg := onFlash(t)
	cfg.RAM, cfg.BatchBytes = 20_000, 2_000
	st := store(t, cfg)
	s := st.Spool("ch_1")
	putMarked(s, 1, strings.Repeat("f.", 9))
	st.work(t.Context())
	if got := st.Stats(); got.RAM != 18_000 || got.Flash != 0 {
		t.Errorf("at 90 %%: %d bytes in RAM, %d on flash", got.RAM, got.Flash)
	}
	putMarked(s, 19, "f")
	st.work(t.Context())
	if got := st.Stats(); got.RAM > 12_000 || got.RAM < 10_000 || got.Flash == 0 {
		t.Errorf("above 92 %%: %d bytes in RAM, %d on flash", got.RAM, got.Flash)
	}
}

func TestDiscardLeavesNothing(t *testing.T) {
	cfg := onFlash(t)
	st := store(t, cfg)
	s := st.Spool("ch_1")
	putMarked(s, 1, strings.Repeat("f...", 5))
	s.Skip(epoch, 9)
	st.work(t.Context())
	st.saveGaps(false)
	if err := st.Discard("ch_1"); err != nil {
		t.Fatal(err)
	}
	putMarked(s, 21, "f...")
	if n := len(files(t, cfg.Dir)); n > 0 || st.used.Load() != 0 || len(cfg.Facts.(*facts).gaps["ch_1"]) > 0 || len(st.Channels()) > 0 {
		t.Errorf("%d files, %d bytes, gaps %v, channels %v", n, st.used.Load(), cfg.Facts.(*facts).gaps, st.Channels())
	}
	if st.Spool("ch_1") == s {
		t.Error("a channel that begins again has the spool that was discarded")
	}
}

// TestDamagedChunkLosesItsGOPOnly: one bit, and the cursor goes on.
func TestDamagedChunkLosesItsGOPOnly(t *testing.T) {
	cfg := onFlash(t)
	cfg.BatchBytes = 12_000
	st := store(t, cfg)
	s := st.Spool("ch_1")
	putMarked(s, 1, strings.Repeat("f...", 5))
	st.work(t.Context())
	found := files(t, cfg.Dir)
	if len(found) != 1 {
		t.Fatalf("files %v", found)
	}
	b := s.blocks[0]
	f, err := os.OpenFile(found[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{1}, b.payload.off+5*(wire.ChunkHeaderLen+744)+100); err != nil { // of chunk 6
		t.Fatal(err)
	}
	check(t, "held", walk(whole(s, nil)), "1, 2, 3, 4, 5, storage_failed 6-8, "+list(9, 20))
	check(t, "gaps", gaps(s), "storage_failed 6-8")
	s.Skip(epoch, 10) // on flash too
	check(t, "held", walk(whole(s, []vms.ChunkRange{rangeOf(1, 1)})), "2, 3, 4, 5, storage_failed 6-8, rejected 9-12, "+list(13, 20))
}

// BenchmarkAppend is what a chunk costs while an uplink takes it.
func BenchmarkAppend(b *testing.B) {
	st := store(b, Config{RAM: 24 << 20})
	s := st.Spool("ch_1")
	s.PutInit(vms.Init{Epoch: epoch, ID: 1})
	c := s.Live("w1", nil)
	payload := make([]byte, 50_000)
	at := time.Unix(1_800_000_000, 0).UTC()
	b.ReportAllocs()
	for i := range uint64(b.N) {
		ch := vms.Chunk{Epoch: epoch, Seq: i + 1, Init: 1, Payload: payload, Start: at, End: at.Add(200 * time.Millisecond)}
		if i%10 == 0 {
			ch.Flags = vms.FlagKey
		}
		if i%150 == 0 {
			ch.Flags |= vms.FlagFirst
		}
		at = ch.End
		s.Append(ch)
		if st := c.step(); st.out.Chunk == nil {
			b.Fatalf("chunk %d is not handed out: %+v", i+1, st)
		}
		if i%150 == 149 {
			s.Durable([]vms.ChunkRange{rangeOf(i-148, i+1)})
		}
	}
}

// TestAllAtOnceOnFlash is for the race detector: cameras, lanes that come and
// go, acknowledgements, refusals and flash, and still each chunk is held,
// durable or declared.
func TestAllAtOnceOnFlash(t *testing.T) {
	vmstest.NoLeaks(t)
	cfg := onFlash(t)
	cfg.RAM, cfg.Flash = 60_000, 600_000
	st := store(t, cfg)
	start(t, st)
	var wg sync.WaitGroup
	const last = 1_000
	for i := range 2 {
		s := st.Spool(vms.ChannelID(fmt.Sprint("ch_", i)))
		done := make(chan struct{})
		wg.Go(func() {
			defer close(done)
			for n := uint64(1); n < last; n += 8 {
				putMarked(s, n, "f...k...")
				s.Holding()
				s.Stats()
				st.Pressure()
			}
		})
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var mu sync.Mutex
		var durable, declared runs
		serve := func(c *Cursor) { // until it ends or has sent enough
			defer c.Close()
			for range 40 {
				item, err := c.Next(ctx)
				if err != nil {
					return
				}
				c.Behind()
				if ch := item.Chunk; ch != nil && !ch.Flags.Has(vms.FlagPreview) && ch.Seq%3 > 0 {
					mu.Lock()
					durable.add(ch.Seq, ch.Seq)
					mu.Unlock()
					s.Durable([]vms.ChunkRange{rangeOf(ch.Seq, ch.Seq)})
					if ch.Seq%50 == 0 {
						s.Skip(epoch, ch.Seq+4)
					}
				}
			}
			if c.lane == vms.LaneLive {
				heir := c.HandOver("w1", nil)
				_, _ = c.Next(ctx)
				heir.Close()
			}
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				serve(s.Live("w1", nil))
			}
		})
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				serve(s.Backfill("w1", nil, n%2 == 0))
				_, changed := s.BackfillWanted()
				select {
				case <-ctx.Done():
				case <-changed:
				}
			}
		})
		wg.Go(func() {
			<-done
			stop() // the lanes end by themselves
		})
		defer func() {
			st.saveGaps(false) // one that grew since it was saved is not handed out
			for _, g := range s.Gaps(1 << 20) {
				declared.add(g.Chunks.First, g.Chunks.Last)
			}
			for seq := uint64(1); seq <= last; seq++ {
				if !durable.has(seq) && !declared.has(seq) && !s.holds(epoch, seq) {
					t.Errorf("chunk %d of %s is lost without a word", seq, s.channel)
				}
			}
		}()
	}
	wg.Wait()
	if n := st.used.Load(); n > cfg.RAM {
		t.Errorf("%d bytes in RAM of %d", n, cfg.RAM)
	}
}
