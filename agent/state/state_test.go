package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/zipato/vms/pkg/vms"
)

func open(t testing.TB, path string) *State {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func gap(n int, chunks bool) vms.Gap {
	at := time.UnixMicro(1_800_000_000_123_456 + int64(n)*1e6).UTC()
	g := vms.Gap{ID: vms.GapID(fmt.Sprintf("gap_%d", n)), Cause: vms.CauseBufferFull, TimeRange: vms.TimeRange{Start: at, End: at.Add(time.Second)}}
	if chunks {
		g.Chunks = &vms.ChunkRange{Epoch: 0xfedc, First: uint64(n) + 1, Last: uint64(n) + 5}
	}
	return g
}

// said is everything that a state knows, to compare.
func said(t testing.TB, s *State, channels ...vms.ChannelID) string {
	t.Helper()
	var b strings.Builder
	for _, ch := range channels {
		gaps, err := s.Gaps(ch)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s:", ch)
		for _, g := range gaps {
			fmt.Fprintf(&b, " %s %s %s %v", g.ID, g.Cause, g.TimeRange, g.Chunks)
		}
		b.WriteString("\n")
	}
	streams, err := s.Streams()
	if err != nil {
		t.Fatal(err)
	}
	today, total, since := s.Flash()
	fmt.Fprint(&b, streams, today, total, since)
	return b.String()
}

func TestFactsOutliveTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "state.db")
	s := open(t, path)
	grown := gap(2, true)
	grown.End = grown.End.Add(time.Minute)
	grown.Chunks.Last += 100
	for _, err := range []error{
		s.PutGaps("ch_1", []vms.Gap{gap(1, true), gap(2, true), gap(3, false)}),
		s.PutGaps("ch_2", []vms.Gap{gap(4, true)}),
		s.PutGaps("ch_1", []vms.Gap{grown}),
		s.DropGaps("ch_1", []vms.GapID{"gap_1", "gap_none"}),
		s.DropGaps("ch_2", []vms.GapID{"gap_4"}),
		s.PutStream(Stream{Channel: "ch_1", SID: "sid_1", NVRURL: "wss://a/"}),
		s.PutStream(Stream{Channel: "ch_3", SID: "sid_3", NVRURL: "wss://b/"}),
		s.DropStream("ch_3"),
		s.FlashWritten("2026-11-22", 1000),
		s.FlashWritten("2026-11-23", 10),
		s.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		gaps, err := s.Gaps("ch_1")
		if err != nil || len(gaps) != 2 || gaps[0].ID != "gap_2" || *gaps[0].Chunks != *grown.Chunks || gaps[0].TimeRange != grown.TimeRange || gaps[1].Chunks != nil {
			t.Errorf("gaps %+v, %v", gaps, err)
		}
		if gaps, err := s.Gaps("ch_2"); err != nil || len(gaps) != 0 {
			t.Errorf("gaps %+v, %v", gaps, err)
		}
		streams, err := s.Streams()
		if want := (Stream{Channel: "ch_1", SID: "sid_1", NVRURL: "wss://a/"}); err != nil || len(streams) != 1 || streams["ch_1"] != want {
			t.Errorf("streams %+v, %v", streams, err)
		}
		if today, total, since := s.Flash(); today != 10 || total != 1010 || since != "2026-11-22" {
			t.Errorf("flash %d %d %s", today, total, since)
		}
		s = open(t, path)
	}
}

// TestDocuments are kept byte by byte, beside the other facts.
func TestDocuments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	big := bytes.Repeat([]byte{0, 1, ' ', 0xff}, 50_000)
	docs := map[string][]byte{"desired": big, "local": []byte("[] "), "clock": {}, "broker": []byte("{}")}
	for name, doc := range docs {
		if err := s.PutDocument(name, doc); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutGaps("ch_1", []vms.Gap{gap(1, true)}); err != nil {
		t.Fatal(err)
	}
	if err := s.PutDocument("broker", nil); err != nil {
		t.Fatal(err)
	}
	docs["broker"] = nil
	docs["none"] = nil
	for range 2 {
		for name, want := range docs {
			got, err := s.Document(name)
			if err != nil || !bytes.Equal(got, want) || (got == nil) != (want == nil) {
				t.Errorf("document %s of %d bytes, %v, want %d", name, len(got), err, len(want))
			}
			for i := range got { // what is handed out is a copy
				got[i] = 'x'
			}
		}
		if gaps, err := s.Gaps("ch_1"); err != nil || len(gaps) != 1 {
			t.Errorf("gaps %v, %v", gaps, err)
		}
		if _, err := os.Stat(path + damagedSuffix); err == nil {
			t.Error("documents were taken for damage")
		}
		s = open(t, path)
	}
	for _, name := range []string{"", "a/b", "A"} {
		if err := s.PutDocument(name, []byte("x")); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("document %q: %v", name, err)
		}
	}
	if err := s.PutDocument("desired", make([]byte, MaxDocument+1)); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("a document that is too long: %v", err)
	}
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	for n := range 50 { // of about one size, as they come
		if err := s.PutDocument("desired", append(big[:150_000:150_000], byte(n))); err != nil {
			t.Fatal(err)
		}
	}
	if n := size(); n > 800_000 {
		t.Errorf("the file has grown to %d bytes", n)
	}
}

// TestForgottenDocumentIsNoticed: one that is gone from the file is damage, not
// a hub of which nothing is wanted.
func TestForgottenDocumentIsNoticed(t *testing.T) {
	captureLog(t)
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	for _, name := range []string{"desired", "local"} {
		if err := s.PutDocument(name, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	err := withDB(path, false, func(db *bbolt.DB) error {
		return db.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(documentPrefix + "desired")) })
	})
	if err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if _, err := os.Stat(path + damagedSuffix); err != nil {
		t.Error("nobody noticed")
	}
	if got, err := s.Document("local"); err != nil || string(got) != "x" {
		t.Errorf("the other one is %q, %v", got, err)
	}
}

func TestWhatIsHandedOutIsACopy(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	g := gap(1, true)
	if err := s.PutGaps("ch_1", []vms.Gap{g}); err != nil {
		t.Fatal(err)
	}
	g.Chunks.Last = 1000
	got, _ := s.Gaps("ch_1")
	got[0].Chunks.Last = 2000
	if again, _ := s.Gaps("ch_1"); again[0].Chunks.Last != 6 {
		t.Errorf("the gap ends at %d", again[0].Chunks.Last)
	}
}

func TestNothingNewWritesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file was made to keep nothing")
	}
	st := Stream{Channel: "ch_1", SID: "sid_1", NVRURL: "wss://a/"}
	if err := s.PutStream(st); err != nil {
		t.Fatal(err)
	}
	if err := s.PutDocument("local", []byte("doc")); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		s.PutStream(st), s.PutDocument("local", []byte("doc")), s.PutDocument("none", nil), s.DropStream("ch_2"), s.DropGaps("ch_1", []vms.GapID{"gap_1"}), s.PutGaps("ch_1", nil), s.Close(),
		s.FlashWritten("2026-11-22", flashStep-1),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the file was written to")
	}
	if err := s.FlashWritten("2026-11-22", 1); err != nil {
		t.Fatal(err)
	}
	if _, total, _ := open(t, path).Flash(); total != flashStep {
		t.Errorf("%d bytes are stored, want %d", total, flashStep)
	}
}

func TestChannelsAreNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	for _, ch := range []vms.ChannelID{"", "CH", "a/b"} {
		if err := s.PutGaps(ch, []vms.Gap{gap(1, true)}); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("channel %q: %v", ch, err)
		}
	}
	for _, ch := range []vms.ChannelID{"flash", "channel"} {
		if err := s.PutGaps(ch, []vms.Gap{gap(1, true)}); err != nil {
			t.Error(err)
		}
		if gaps, _ := open(t, path).Gaps(ch); len(gaps) != 1 {
			t.Errorf("channel %q has %d gaps", ch, len(gaps))
		}
	}
}

// TestManyFacts: more channels than a hub has, and gaps of a bad month.
func TestManyFacts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	var channels []vms.ChannelID
	for c := range 32 {
		ch := vms.ChannelID(fmt.Sprintf("ch_%060d", c))
		channels = append(channels, ch)
		var gaps []vms.Gap
		for n := range 100 {
			gaps = append(gaps, gap(c*1000+n, n%2 == 0))
		}
		if err := s.PutGaps(ch, gaps); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := said(t, open(t, path), channels...), said(t, s, channels...); got != want {
		t.Error("the facts are others when they are read again")
	}
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	before := size()
	for n := range 200 {
		g := gap(0, true)
		g.End = g.End.Add(time.Duration(n) * time.Minute)
		if err := s.PutGaps(channels[0], []vms.Gap{g}); err != nil {
			t.Fatal(err)
		}
	}
	if after := size(); after > before+100<<10 {
		t.Errorf("the file grew from %d to %d bytes by a gap that grew", before, after)
	}
}

func TestAllAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	var wg sync.WaitGroup
	for c := range 4 {
		ch := vms.ChannelID(fmt.Sprintf("ch_%d", c))
		wg.Go(func() {
			for n := range 20 {
				for _, err := range []error{
					s.PutGaps(ch, []vms.Gap{gap(n, true)}), s.FlashWritten("2026-11-22", 5_000_000),
					s.PutStream(Stream{Channel: ch, SID: vms.SID(fmt.Sprint("sid_", n))}), s.DropGaps(ch, []vms.GapID{gap(n-1, false).ID}),
				} {
					if err != nil {
						t.Error(err)
					}
				}
				s.Gaps(ch)
				s.Streams()
				s.Flash()
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	all := []vms.ChannelID{"ch_0", "ch_1", "ch_2", "ch_3"}
	if got, want := said(t, open(t, path), all...), said(t, s, all...); got != want {
		t.Errorf("read again:\n%s\nwant\n%s", got, want)
	}
}

// TestGapsSurviveAKill kills a child right after PutGaps returned to it.
func TestGapsSurviveAKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	put := 0
	for round := range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestGapsSurviveAKillChild$")
		cmd.Env = append(os.Environ(), "STATE_TEST_PATH="+path, fmt.Sprintf("STATE_TEST_FROM=%d", put))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for range 3 + round { // it goes on putting until it is killed
			if _, err := fmt.Fscanf(out, "put %d\n", &put); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		gaps, err := open(t, path).Gaps("ch_1")
		if err != nil {
			t.Fatal(err)
		}
		for n := range put {
			if n >= len(gaps) || gaps[n].ID != gap(n, true).ID {
				t.Fatalf("of %d gaps that were put %d are there", put, len(gaps))
			}
		}
		put = len(gaps)
	}
	if _, err := os.Stat(path + damagedSuffix); err == nil {
		t.Error("a kill was taken for damage")
	}
}

func TestGapsSurviveAKillChild(t *testing.T) {
	path := os.Getenv("STATE_TEST_PATH")
	if path == "" {
		t.Skip("run by TestGapsSurviveAKill")
	}
	s := open(t, path)
	var n int
	fmt.Sscan(os.Getenv("STATE_TEST_FROM"), &n)
	for ; ; n++ {
		if err := s.PutGaps("ch_1", []vms.Gap{gap(n, true)}); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("put %d\n", n+1)
	}
}

// captureLog makes the log a test's.
func captureLog(t *testing.T) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&b, nil)))
	t.Cleanup(func() { slog.SetDefault(old) })
	return &b
}

func TestDamagedFileIsSetAside(t *testing.T) {
	for name, content := range map[string][]byte{
		"empty": {}, "short": []byte("x"), "text": bytes.Repeat([]byte("no database "), 3000), "zeros": make([]byte, 40_000),
	} {
		t.Run(name, func(t *testing.T) {
			log := captureLog(t)
			path := filepath.Join(t.TempDir(), "state.db")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, path)
			if aside, err := os.ReadFile(path + damagedSuffix); err != nil || !bytes.Equal(aside, content) {
				t.Errorf("set aside: %d bytes, %v", len(aside), err)
			}
			if !strings.Contains(log.String(), "state is damaged") {
				t.Errorf("log: %s", log)
			}
			if err := s.PutGaps("ch_1", []vms.Gap{gap(1, true)}); err != nil {
				t.Fatal(err)
			}
			if gaps, err := open(t, path).Gaps("ch_1"); err != nil || len(gaps) != 1 {
				t.Errorf("gaps %v, %v", gaps, err)
			}
		})
	}
}

// TestDamageNeverLies: whatever is flipped or cut off, a fact is there as it was
// put, or not at all; and the file is one that the next run can use.
func TestDamageNeverLies(t *testing.T) {
	captureLog(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	s := open(t, path)
	channels := []vms.ChannelID{"ch_1", "ch_2", "ch_3"}
	for n := range 30 {
		if err := s.PutGaps(channels[n%3], []vms.Gap{gap(n, true)}); err != nil {
			t.Fatal(err)
		}
	}
	document := bytes.Repeat([]byte("what the cloud wants "), 500) // some pages
	if err := s.PutDocument("desired", document); err != nil {
		t.Fatal(err)
	}
	want := map[vms.GapID]string{}
	for _, ch := range channels {
		gaps, _ := s.Gaps(ch)
		for _, g := range gaps {
			want[g.ID] = fmt.Sprint(g.TimeRange, *g.Chunks)
		}
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	runs := uint64(400)
	if testing.Short() {
		runs = 150
	}
	damaged, salvaged := 0, 0
	for seed := range runs {
		rng := rand.New(rand.NewPCG(seed, 1))
		data := slices.Clone(good)
		switch rng.IntN(3) {
		case 0:
			data = data[:rng.IntN(len(data))]
		case 1:
			data[rng.IntN(len(data)/pageSize)*pageSize+rng.IntN(160)] ^= 1 << rng.IntN(8)
		default:
			data[rng.IntN(len(data))] ^= 1 << rng.IntN(8)
		}
		path := filepath.Join(dir, fmt.Sprint(seed), "state.db")
		os.MkdirAll(filepath.Dir(path), 0o700)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			s := open(t, path)
			n := 0
			for _, ch := range channels {
				gaps, err := s.Gaps(ch)
				if err != nil {
					t.Fatal(err)
				}
				for _, g := range gaps {
					n++
					if got := fmt.Sprint(g.TimeRange, *g.Chunks); got != want[g.ID] {
						t.Errorf("seed %d: gap %s is %s, was %s", seed, g.ID, got, want[g.ID])
					}
				}
			}
			doc, err := s.Document("desired")
			if err != nil || doc != nil && !bytes.Equal(doc, document) {
				t.Errorf("seed %d: a document of %d bytes that nobody put, %v", seed, len(doc), err)
			}
			_, err = os.Stat(path + damagedSuffix)
			if n < len(want)-1 && err != nil { // the last change may be the one that the other meta page has not
				t.Errorf("seed %d: %d gaps of %d, and nothing was set aside", seed, n, len(want))
			}
			if err == nil {
				damaged++
				if n > 0 {
					salvaged++
				}
			}
			if err := s.PutGaps("ch_9", []vms.Gap{gap(99, true)}); err != nil {
				t.Errorf("seed %d: put after damage: %v", seed, err)
			}
		}
	}
	t.Logf("%d damaged files, %d found damaged, of %d something was saved", runs, damaged/2, salvaged/2)
}

// TestDamageWhileRunning: the facts are in memory too, and are written anew.
func TestDamageWhileRunning(t *testing.T) {
	for _, n := range []int64{0, pageSize, 2 * pageSize, 3 * pageSize} {
		path := filepath.Join(t.TempDir(), "state.db")
		s := open(t, path)
		for i := range 5 {
			if err := s.PutGaps("ch_1", []vms.Gap{gap(i, true)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Truncate(path, n); err != nil {
			t.Fatal(err)
		}
		if err := s.PutGaps("ch_2", []vms.Gap{gap(9, true)}); err != nil {
			t.Errorf("cut to %d: %v", n, err)
		}
		if got, want := said(t, open(t, path), "ch_1", "ch_2"), said(t, s, "ch_1", "ch_2"); got != want {
			t.Errorf("cut to %d:\n%s\nwant\n%s", n, got, want)
		}
	}
}

func TestFlashThatRefuses(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFlashThatRefusesChild$", "-test.v")
	cmd.Env = append(os.Environ(), "STATE_TEST_REFUSE="+t.TempDir(), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Skipf("no mount namespace of our own here: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestFlashThatRefusesChild(t *testing.T) {
	dir := os.Getenv("STATE_TEST_REFUSE")
	if dir == "" {
		t.Skip("run by TestFlashThatRefuses")
	}
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	path := filepath.Join(dir, "state.db")
	s := open(t, path)
	if err := s.PutGaps("ch_1", []vms.Gap{gap(1, true)}); err != nil {
		t.Fatal(err)
	}
	big := gap(2, true)
	big.ID = vms.GapID(strings.Repeat("x", 300<<10))
	before := said(t, s, "ch_1")
	if err := s.PutGaps("ch_1", []vms.Gap{big}); err == nil {
		t.Error("put more than the disk has")
	}
	if err := syscall.Mount("none", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := s.PutGaps("ch_1", []vms.Gap{gap(3, true)}); !errors.Is(err, syscall.EROFS) {
		t.Errorf("put on a read-only disk: %v", err)
	}
	for _, s := range []*State{s, open(t, path)} {
		if got := said(t, s, "ch_1"); got != before {
			t.Errorf("after what was refused %s, want %s", got, before)
		}
	}
	// Also a damaged file on such a disk must not keep the hub from its work.
	if err := syscall.Mount("none", dir, "", syscall.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.db")
	if err := os.WriteFile(other, []byte("noise"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	open(t, other)
	if err := syscall.Mount("none", dir, "", syscall.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if err := s.PutGaps("ch_1", []vms.Gap{gap(3, true)}); err != nil {
		t.Errorf("put when the disk takes it again: %v", err)
	}
	if gaps, _ := open(t, path).Gaps("ch_1"); len(gaps) != 2 {
		t.Errorf("%d gaps, want 2", len(gaps))
	}
}
