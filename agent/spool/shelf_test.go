package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const smallFile = 256 << 10

func TestShelfKeepsWhatWasWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool", "ch_1") // not even the folder above is there
	s := mustOpen(t, dir, shelfOptions{FileBytes: smallFile})
	var all []*vms.Chunk
	for i := range uint64(10) {
		chunks := footage(1, 1+i*9, 9+i*9, 8<<10)
		b := mustWrite(t, s, chunks)
		all = append(all, chunks...)
		if b.First != 1+i*9 || b.Last != 9+i*9 || !b.Start.Equal(chunks[0].Start) || !b.End.Equal(chunks[8].End) || b.Epoch != 1 {
			t.Errorf("block %+v", b)
		}
		var marks []uint64
		for _, m := range b.Marks {
			marks = append(marks, m.Seq)
		}
		if want := []uint64{1 + i*9, 4 + i*9, 7 + i*9}; !slices.Equal(marks, want) {
			t.Errorf("marks at %v, want %v", marks, want)
		}
	}
	other := footage(2, 5, 7, 8<<10) // another epoch begins another file, not at a keyframe
	if b := mustWrite(t, s, other); len(b.Marks) != 2 || b.Marks[0].Seq != 5 || b.Marks[0].Flags != 0 || b.Marks[0].Init != 1 {
		t.Errorf("marks of a block that begins inside a GOP: %+v", b.Marks)
	}
	all = append(all, other...)
	checkHeld(t, s, all)

	before := s.blocks()
	for range 2 { // found as they were left, twice
		s = mustOpen(t, dir, shelfOptions{FileBytes: smallFile})
		checkHeld(t, s, all)
		after := s.blocks()
		if len(after) != len(before) {
			t.Fatalf("%d blocks, want %d", len(after), len(before))
		}
		for i, b := range after {
			w := before[i]
			if b.Epoch != w.Epoch || b.First != w.First || b.Last != w.Last || !b.Start.Equal(w.Start) || !b.End.Equal(w.End) || b.Bytes != w.Bytes || fmt.Sprint(b.Marks) != fmt.Sprint(w.Marks) {
				t.Errorf("block %d is %+v, was %+v", i, b, w)
			}
		}
	}
	more := footage(3, 1, 3, 8<<10)
	mustWrite(t, s, more)
	checkHeld(t, s, append(all, more...))
	sum := int64(0)
	for _, data := range filesIn(t, dir) {
		sum += int64(len(data))
	}
	if s.bytes() != sum {
		t.Errorf("%d bytes on flash, files have %d", s.bytes(), sum)
	}
}

// TestFilesAreFew: of the size asked for, and nothing stays open.
func TestFilesAreFew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ch_1")
	s := mustOpen(t, dir, shelfOptions{FileBytes: 1 << 20})
	bytes := int64(0)
	for i := range uint64(30) {
		bytes += mustWrite(t, s, footage(1, 1+i*20, 20+i*20, 6<<10)).Bytes
	}
	files := filesIn(t, dir)
	for name, data := range files {
		if len(data) > 1<<20 {
			t.Errorf("%s has %d bytes", name, len(data))
		}
	}
	if least := bytes / (1 << 20); int64(len(files)) > least+2 {
		t.Errorf("%d files for %d bytes", len(files), bytes)
	}
	onShelf(s)
	if n := openIn(t, dir); n > openReaders {
		t.Errorf("%d files are open", n)
	}
	if maps, err := os.ReadFile("/proc/self/maps"); err != nil || strings.Contains(string(maps), dir) {
		t.Errorf("files are mapped while nothing is written: %v", err)
	}
	if err := s.close(); err != nil || openIn(t, dir) != 0 {
		t.Errorf("%d files are open after close: %v", openIn(t, dir), err)
	}
}

// openIn counts this process's open files below dir.
func openIn(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if path, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(path, dir+"/") {
			n++
		}
	}
	return n
}

func TestManySmallTransactionsBeginAnotherFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ch_1")
	s := mustOpen(t, dir, shelfOptions{})
	var all []*vms.Chunk
	for i := range uint64(maxBlocks + 3) {
		chunks := footage(1, 1+i, 1+i, 20) // a payload of a few bytes
		mustWrite(t, s, chunks)
		all = append(all, chunks...)
	}
	files := filesIn(t, dir)
	if len(files) != 2 {
		t.Errorf("%d files, want 2", len(files))
	}
	for name, data := range files {
		for page := 0; page < len(data); page += pageSize {
			if binary.NativeEndian.Uint64(data[page:]) == uint64(page/pageSize) && binary.NativeEndian.Uint16(data[page+8:]) == 1 {
				t.Errorf("%s has a branch page at %d", name, page)
			}
		}
	}
	checkHeld(t, s, all)
	checkHeld(t, mustOpen(t, dir, shelfOptions{}), all)
}

func TestRemoveTakesTheFileWhole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ch_1")
	s := mustOpen(t, dir, shelfOptions{FileBytes: smallFile})
	var all []*vms.Chunk
	for i := range uint64(12) {
		chunks := footage(1, 1+i*9, 9+i*9, 8<<10)
		mustWrite(t, s, chunks)
		all = append(all, chunks...)
	}
	for s.oldest() != nil {
		f := s.oldest()
		list := s.blocksOf(f)
		b := list[0]
		if _, err := s.read(b, b.First); err != nil {
			t.Fatal(err)
		}
		if err := s.remove(f); err != nil {
			t.Fatal(err)
		}
		if err := s.remove(f); err != nil {
			t.Errorf("removed twice: %v", err)
		}
		if _, err := s.read(b, b.First); !errors.Is(err, errGone) {
			t.Errorf("read after remove: %v", err)
		}
		all = slices.DeleteFunc(all, func(c *vms.Chunk) bool { return c.Seq <= list[len(list)-1].Last })
		checkHeld(t, s, all)
		checkHeld(t, openCopy(t, dir), all)
	}
	if _, ok := s.init(1, 1); ok || s.bytes() != 0 || len(filesIn(t, dir)) != 0 {
		t.Errorf("something is left: init %v, %d bytes, %d files", ok, s.bytes(), len(filesIn(t, dir)))
	}
	mustWrite(t, s, footage(1, 1000, 1001, 1000)) // the removed file was the one written to
}

func TestInitStaysWhileAFileNamesIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ch_1")
	s := mustOpen(t, dir, shelfOptions{FileBytes: 1}) // a file per transaction
	mustWrite(t, s, footage(1, 1, 3, 1000))
	mustWrite(t, s, footage(1, 4, 6, 1000))
	if err := s.remove(s.oldest()); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.init(1, 1); !ok {
		t.Error("init 1 is gone with the first of two files that have it")
	}
	if _, ok := mustOpen(t, dir, shelfOptions{}).init(1, 1); !ok {
		t.Error("init 1 is not in the second file")
	}
}

func TestShelfRefusesWhatIsNoRun(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "ch_1"), shelfOptions{})
	a := footage(1, 1, 9, 100)
	for name, chunks := range map[string][]*vms.Chunk{
		"nothing": nil, "hole": {a[0], a[2]}, "backwards": {a[1], a[0]}, "two epochs": {a[0], footage(2, 2, 2, 100)[0]}, "twice": {a[0], a[0]},
	} {
		if _, _, err := s.write(nil, chunks); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := mustWrite(t, s, a)
	for _, seq := range []uint64{0, 10} {
		if _, err := s.read(b, seq); !errors.Is(err, vms.ErrNotFound) {
			t.Errorf("chunk %d: %v", seq, err)
		}
	}
}

func TestForeignAndLeftoverFilesDoNotDisturb(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ch_1")
	s := mustOpen(t, dir, shelfOptions{})
	chunks := footage(1, 1, 9, 1000)
	mustWrite(t, s, chunks)
	s.close()
	for _, name := range []string{"00000009-00000000000000ee-1-5.db.new", "notes.txt", "00000009.db", ".nfs0001", "99999999999999999999999-0-0-0.db", "00000009-00000000000000EE-1-5.db"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"lost+found", "00000008-00000000000000ee-1-5.db", "00000008-00000000000000ee-1-5.db.new"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	checkHeld(t, mustOpen(t, dir, shelfOptions{}), chunks)
	left := filesIn(t, dir)
	if _, ok := left["00000009-00000000000000ee-1-5.db.new"]; ok || len(left) != 6 {
		t.Errorf("%d files are left: the unfinished one goes, what is not ours stays", len(left))
	}
}

// TestWhatALaterFileHasAgainIsSeenOnce: a transaction that failed after all of
// it had reached the flash.
func TestWhatALaterFileHasAgainIsSeenOnce(t *testing.T) {
	for _, tt := range []struct{ first, last uint64 }{{10, 18}, {10, 30}, {13, 30}, {18, 30}, {19, 30}} {
		dir := filepath.Join(t.TempDir(), "ch_1")
		s := mustOpen(t, dir, shelfOptions{})
		mustWrite(t, s, footage(1, 1, 9, 1000))
		mustWrite(t, s, footage(1, 10, 18, 1000))
		s.close()
		mustWrite(t, s, footage(1, tt.first, tt.last, 1000))
		s = mustOpen(t, dir, shelfOptions{})
		checkHeld(t, s, footage(1, 1, tt.last, 1000))
		var bytes, want int64
		next := uint64(1)
		for _, b := range s.blocks() {
			if b.First != next {
				t.Errorf("block from %d, want %d", b.First, next)
			}
			next = b.Last + 1
			bytes += b.Bytes
			for _, m := range b.Marks {
				if m.Seq > b.Last {
					t.Errorf("mark at %d in a block to %d", m.Seq, b.Last)
				}
			}
		}
		for _, c := range footage(1, 1, tt.last, 1000) {
			want += int64(len(c.Payload))
		}
		if bytes != want {
			t.Errorf("%d bytes, want %d", bytes, want)
		}
	}
}

// TestReadsDoNotDisturbWrites is for the race detector.
func TestReadsDoNotDisturbWrites(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ch_1")
	s := mustOpen(t, dir, shelfOptions{FileBytes: smallFile})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				got, errs := onShelf(s)
				for seq, err := range errs {
					if !errors.Is(err, errGone) {
						t.Errorf("chunk %d: %v", seq, err)
					}
				}
				for seq, c := range got[1] {
					if diff := sameChunk(&c, footage(1, seq, seq, 4<<10)[0]); diff != "" {
						t.Error(diff)
					}
					s.init(1, c.Init)
				}
			}
		})
	}
	for i := range uint64(25) {
		mustWrite(t, s, footage(1, 1+i*9, 9+i*9, 4<<10))
		if f := s.oldest(); i%6 == 5 {
			if err := s.remove(f); err != nil {
				t.Error(err)
			}
		}
	}
	stop()
	wg.Wait()
}

// damageRig is a shelf of four files, one of them as a power cut leaves it.
func damageRig(t *testing.T) (files map[string][]byte, all []*vms.Chunk) {
	t.Helper()
	dir := filepath.Join(fastDir(t), "ch_1")
	s := mustOpen(t, dir, shelfOptions{FileBytes: 240 << 10})
	for i := range uint64(16) {
		chunks := footage(1, 1+i*6, 6+i*6, 4<<10)
		mustWrite(t, s, chunks)
		all = append(all, chunks...)
	}
	files = filesIn(t, dir) // before close gives the last one its full name
	if len(files) != 4 {
		t.Fatalf("%d files, want 4", len(files))
	}
	return files, all
}

// checkDamaged opens a shelf of which one file was damaged: each chunk is byte
// for byte what it was, or said to be damaged, and the other files are untouched.
func checkDamaged(t *testing.T, root, victim string, all []*vms.Chunk) (whole, lostTail, single int) {
	t.Helper()
	dir := filepath.Join(root, "ch_1")
	before := filesIn(t, dir)
	s, lost, err := openShelf(dir, shelfOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	defer s.close()
	n, _ := parseFileName(victim)
	got, errs := onShelf(s)
	for seq, err := range errs {
		if !errors.Is(err, errDamaged) {
			t.Errorf("chunk %d: %v", seq, err)
		}
	}
	inDamage := func(seq uint64) bool {
		for _, d := range lost {
			if d.Epoch == 1 && d.First <= seq && (seq <= d.Last || d.Last == 0) {
				return true
			}
		}
		return false
	}
	for _, d := range lost {
		if d.First < n.First || n.Last != 0 && d.Last > n.Last || d.Err == nil {
			t.Errorf("damage %+v in %s", d, victim)
		}
		if d.First == n.First {
			whole++
		} else {
			lostTail++
		}
	}
	for _, w := range all {
		g, ok := got[1][w.Seq]
		if ok {
			if diff := sameChunk(&g, w); diff != "" {
				t.Error(diff)
			}
		} else if errs[w.Seq] == nil && !inDamage(w.Seq) {
			t.Errorf("chunk %d is missing without a word", w.Seq)
		} else if w.Seq < n.First || n.Last != 0 && w.Seq > n.Last {
			t.Errorf("chunk %d, which is in another file, is lost: %v", w.Seq, errs[w.Seq])
		}
	}
	single += len(errs)
	for name, data := range filesIn(t, dir) {
		if old, ok := before[name]; ok && name != victim && string(old) != string(data) {
			t.Errorf("%s was changed", name)
		}
	}
	// It goes on: also what was said now is not said again.
	if _, _, err := s.write(nil, footage(9, 1, 3, 100)); err != nil {
		t.Errorf("write after damage: %v", err)
	}
	if _, again, err := openShelf(dir, shelfOptions{}); err != nil || len(again) != 0 {
		t.Errorf("opened again: %v, %v", again, err)
	}
	return whole, lostTail, single
}

func TestTruncatedFiles(t *testing.T) {
	files, all := damageRig(t)
	names := sortedKeys(files)
	rng := rand.New(rand.NewPCG(1, 1))
	tried, said := 0, 0
	for _, victim := range names {
		size := len(files[victim])
		lengths := []int{0, 1, 80, 4095, 4096, 4097, 8191, 8192, 8193, 16384, size - 4096, size - 4095, size - 1}
		more := 40
		if testing.Short() {
			more = 10
		}
		for range more {
			lengths = append(lengths, rng.IntN(size))
		}
		for _, n := range lengths {
			root := filepath.Join(fastDir(t), "x")
			putFiles(t, filepath.Join(root, "ch_1"), files)
			if err := os.Truncate(filepath.Join(root, "ch_1", victim), int64(n)); err != nil {
				t.Fatal(err)
			}
			whole, tail, single := checkDamaged(t, root, victim, all)
			tried++
			if whole+tail+single > 0 {
				said++
			}
			if t.Failed() {
				t.Fatalf("%s at %d of %d bytes", victim, n, size)
			}
			os.RemoveAll(root)
		}
	}
	t.Logf("%d truncations, %d lost something and said so", tried, said)
	if said < tried/2 {
		t.Errorf("only %d of %d truncations lost anything", said, tried)
	}
}

func sortedKeys(m map[string][]byte) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// TestFlippedBits: single bits, runs, and whole sectors of noise or nothing;
// half of them in the pages of the database, which are few.
func TestFlippedBits(t *testing.T) {
	files, all := damageRig(t)
	names := sortedKeys(files)
	runs := uint64(600)
	if testing.Short() {
		runs = 150
	}
	var whole, tail, single, nothing int
	for seed := range runs {
		rng := rand.New(rand.NewPCG(seed, 2))
		victim := names[rng.IntN(len(names))]
		data := slices.Clone(files[victim])
		at := rng.IntN(len(data))
		if rng.IntN(2) == 0 {
			at = databaseByte(rng, data)
		}
		switch kind := rng.IntN(4); {
		case kind < 2:
			data[at] ^= 1 << rng.IntN(8)
		case kind == 2:
			for i := at; i < min(len(data), at+1+rng.IntN(64)); i++ {
				data[i] = byte(rng.Uint32())
			}
		default:
			noise := rng.IntN(2) == 0
			for i := at &^ 511; i < min(len(data), at|511+1); i++ {
				data[i] = 0
				if noise {
					data[i] = byte(rng.Uint32())
				}
			}
		}
		root := filepath.Join(fastDir(t), "x")
		putFiles(t, filepath.Join(root, "ch_1"), files)
		if err := os.WriteFile(filepath.Join(root, "ch_1", victim), data, 0o600); err != nil {
			t.Fatal(err)
		}
		w, l, s := checkDamaged(t, root, victim, all)
		whole, tail, single = whole+w, tail+l, single+s
		if w+l+s == 0 {
			nothing++
		}
		if t.Failed() {
			t.Fatalf("seed %d: %s at %d", seed, victim, at)
		}
		os.RemoveAll(root)
	}
	t.Logf("%d flips: %d files set aside, %d last transactions lost, %d chunks damaged, %d without effect", runs, whole, tail, single, nothing)
	if whole < 10 || tail < 1 || single < 10 {
		t.Error("the flips did not reach all parts of a file")
	}
}

// TestEveryByteOfTheBookkeeping flips a bit of each byte that says where the
// footage is and what it is.
func TestEveryByteOfTheBookkeeping(t *testing.T) {
	dir := filepath.Join(fastDir(t), "ch_1")
	s := mustOpen(t, dir, shelfOptions{})
	all := footage(1, 1, 8, 1<<10)
	mustWrite(t, s, all[:4])
	b := mustWrite(t, s, all[4:])
	if _, err := s.read(b, b.First); err != nil { // so that its table is there
		t.Fatal(err)
	}
	files := filesIn(t, dir) // not closed: the name does not tell where it ends
	victim := sortedKeys(files)[0]
	data := files[victim]
	var places []int64
	upTo := func(from, n int64) {
		for i := range n {
			places = append(places, from+i)
		}
	}
	for page := range int64(len(data) / pageSize) {
		if binary.NativeEndian.Uint64(data[page*pageSize:]) == uint64(page) {
			upTo(page*pageSize, 88)
		}
	}
	upTo(b.head.off, b.head.len)
	for _, p := range b.table {
		upTo(b.payload.off+p.off, 64)
	}
	rng := rand.New(rand.NewPCG(3, 3))
	harmless := 0
	if testing.Short() { // every third, another one per run
		places = slices.DeleteFunc(places, func(at int64) bool { return (at+time.Now().Unix())%3 != 0 })
	}
	for _, at := range places {
		root := filepath.Join(fastDir(t), "x")
		flipped := slices.Clone(data)
		flipped[at] ^= 1 << rng.IntN(8)
		putFiles(t, filepath.Join(root, "ch_1"), map[string][]byte{victim: flipped})
		whole, tail, single := checkDamaged(t, root, victim, all)
		if whole+tail+single == 0 {
			harmless++
		}
		if t.Failed() {
			t.Fatalf("byte %d of %d", at, len(data))
		}
		os.RemoveAll(root)
	}
	t.Logf("%d bytes flipped, %d without effect", len(places), harmless)
}

// databaseByte is a place in the first bytes of a page that is not footage.
func databaseByte(rng *rand.Rand, data []byte) int {
	for {
		page := rng.IntN(len(data)/pageSize) * pageSize
		if id := uint64(page / pageSize); binary.NativeEndian.Uint64(data[page:]) == id {
			return page + rng.IntN(120)
		}
	}
}

// TestDamageSaysWhatItCan: from the name of the file, or from what comes after it.
func TestDamageSaysWhatItCan(t *testing.T) {
	files, all := damageRig(t)
	names := sortedKeys(files)
	root := filepath.Join(fastDir(t), "x")
	dir := filepath.Join(root, "ch_1")
	putFiles(t, dir, files)
	// The second one loses its end from its name, as after a power cut.
	n, _ := parseFileName(names[1])
	want := damage{Epoch: 1, First: n.First, Last: n.Last, Start: n.Start, End: n.End}
	n.Last = 0
	if err := os.Rename(filepath.Join(dir, names[1]), filepath.Join(dir, n.String())); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{names[0], n.String(), names[3]} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 100_000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, lost, err := openShelf(dir, shelfOptions{})
	if err != nil || len(lost) != 3 {
		t.Fatalf("%d damaged, %v", len(lost), err)
	}
	defer s.close()
	if d := lost[1]; d.Epoch != want.Epoch || d.First != want.First || d.Last != want.Last || !d.Start.Equal(want.Start) || !d.End.Equal(want.End) {
		t.Errorf("damage %+v, want %+v", d, want)
	}
	if d := lost[2]; d.Last != 0 || !d.End.IsZero() || d.First != all[len(all)-1].Seq-footageLeft(names[3], all) {
		t.Errorf("damage %+v of a file whose end nobody knows", d)
	}
	if _, again, err := openShelf(dir, shelfOptions{}); err != nil || len(again) != 3 {
		t.Errorf("opened again before the damage was noted: %d damaged, %v", len(again), err)
	}
	s.settle()
	// Of three, two are kept.
	if kept := filesIn(t, filepath.Join(root, setAsideDir)); len(kept) != setAsideFiles {
		t.Errorf("%d files set aside, want %d", len(kept), setAsideFiles)
	}
	if left := filesIn(t, dir); len(left) != 1 {
		t.Errorf("%d files left, want 1", len(left))
	}
}

// footageLeft is how many chunks follow the first one of a file.
func footageLeft(name string, all []*vms.Chunk) uint64 {
	n, _ := parseFileName(name)
	return all[len(all)-1].Seq - n.First
}

// TestFileThatShrinksUnderneath: what is read is checked, however late.
func TestFileThatShrinksUnderneath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ch_1")
	s := mustOpen(t, dir, shelfOptions{})
	b := mustWrite(t, s, footage(1, 1, 9, 8<<10))
	if err := os.Truncate(s.oldest().path, 3*pageSize); err != nil {
		t.Fatal(err)
	}
	if _, err := s.read(b, 5); !errors.Is(err, errDamaged) {
		t.Errorf("read from a truncated file: %v", err)
	}
	// The next transaction finds its root page gone, and must not take the agent with it.
	chunks := footage(1, 10, 18, 8<<10)
	_, _, err := s.write(initsOf(chunks), chunks)
	if err == nil {
		t.Error("written to a file without its pages")
	}
	b = mustWrite(t, s, chunks)
	if b.file == s.oldest() {
		t.Error("the damaged file is still written to")
	}
	if c, err := s.read(b, 12); err != nil || sameChunk(&c, chunks[2]) != "" {
		t.Errorf("read what was written after that: %v", err)
	}
}

func TestFileNames(t *testing.T) {
	at := time.UnixMicro(1_795_341_600_250_000).UTC()
	for _, n := range []fileName{
		{1, 0xabc, 1, 0, at, time.Time{}},
		{99999999, 0xffffffffffffffff, 18446744073709551615, 18446744073709551615, at, at.Add(time.Hour)},
		{123456789, 1, 7, 9, time.Time{}, time.Time{}},
	} {
		got, ok := parseFileName(n.String())
		if !ok || got != n {
			t.Errorf("%s is read as %+v, %v, want %+v", n, got, ok, n)
		}
	}
	for _, bad := range []string{
		"", ".db", "00000001-0000000000000abc-1-5", "00000001-0000000000000abc-0-5.db", "00000001-0000000000000abc-9-5-8-9.db",
		"00000001-0000000000000abc-1.db", "1-0000000000000abc-1-5.db", "00000001-0000000000000abc-99999999999999999999-5.db", "00000001-0000000000000abc-1-5.db.new",
	} {
		if n, ok := parseFileName(bad); ok {
			t.Errorf("%q is read as %+v", bad, n)
		}
	}
}

// TestFlashThatRefuses runs the test binary again with a disk of its own: full,
// read-only, or a file size limit where no disk can be mounted.
func TestFlashThatRefuses(t *testing.T) {
	for _, kind := range []string{"full", "readonly", "limit"} {
		t.Run(kind, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFlashThatRefusesChild$", "-test.v", "-test.timeout=60s")
			cmd.Env = append(os.Environ(), "SPOOL_TEST_FLASH="+kind, "SPOOL_TEST_DIR="+t.TempDir(), quickExit)
			if kind != "limit" {
				cmd.SysProcAttr = &syscall.SysProcAttr{
					Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
					UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
					GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
				}
			}
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Skipf("no mount namespace of our own here (%v): the size limit stands for the full disk", err)
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if strings.Contains(string(out), "cannot mount") {
				t.Skipf("no mounting here: the size limit stands for the full disk\n%s", out)
			}
			if !strings.Contains(string(out), "--- PASS: TestFlashThatRefusesChild") {
				t.Fatalf("the child did not run:\n%s", out)
			}
		})
	}
}

func TestFlashThatRefusesChild(t *testing.T) {
	kind, root := os.Getenv("SPOOL_TEST_FLASH"), os.Getenv("SPOOL_TEST_DIR")
	if kind == "" {
		t.Skip("run by TestFlashThatRefuses")
	}
	if kind != "limit" {
		if err := syscall.Mount("none", root, "tmpfs", 0, "size=1m"); err != nil {
			t.Skipf("cannot mount: %v", err)
		}
	}
	dir := filepath.Join(root, "ch_1")
	s := mustOpen(t, dir, shelfOptions{FileBytes: 300 << 10})
	var all []*vms.Chunk
	seq := uint64(1)
	next := func() []*vms.Chunk { return footage(1, seq, seq+8, 8<<10) }
	put := func() error {
		chunks := next()
		_, _, err := s.write(initsOf(chunks), chunks)
		if err == nil {
			all = append(all, chunks...)
			seq += 9
		}
		return err
	}
	for range 3 {
		if err := put(); err != nil {
			t.Fatal(err)
		}
	}
	want := syscall.ENOSPC
	switch kind {
	case "full":
		s.fileBytes = 4 << 20 // more than there is
	case "readonly":
		want = syscall.EROFS
		if err := syscall.Mount("none", root, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
	case "limit":
		want = syscall.EFBIG
		signal.Ignore(syscall.SIGXFSZ)
		limit := syscall.Rlimit{Cur: 250 << 10, Max: 250 << 10}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			t.Fatal(err)
		}
		s.fileBytes = 1 << 20
	}
	refused := 0
	for range 40 {
		before := s.bytes()
		if err := put(); err != nil {
			refused++
			if after := s.bytes(); after > before {
				t.Errorf("what was refused takes %d bytes", after-before)
			}
			if !errors.Is(err, want) && !strings.Contains(err.Error(), want.Error()) { // bbolt loses the kind of some
				t.Errorf("%v, want %v", err, want)
			}
			checkHeld(t, s, all)
			if kind == "limit" && refused < 5 {
				continue // another file has room
			}
			if refused == 3 {
				break
			}
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
	// Nothing that was refused is there, also not for the next run; and what was taken is.
	if kind != "limit" {
		checkHeld(t, openCopy(t, dir), all)
	}
	switch kind {
	case "readonly":
		if err := s.remove(s.oldest()); !errors.Is(err, syscall.EROFS) {
			t.Errorf("remove: %v", err)
		}
		checkHeld(t, s, all)
		if err := syscall.Mount("none", root, "", syscall.MS_REMOUNT, ""); err != nil {
			t.Fatal(err)
		}
		if err := put(); err != nil {
			t.Errorf("write when it can be written to again: %v", err)
		}
	case "full":
		for s.oldest() != nil && put() != nil {
			f := s.oldest()
			list := s.blocksOf(f)
			all = slices.DeleteFunc(all, func(c *vms.Chunk) bool { return c.Seq <= list[len(list)-1].Last })
			if err := s.remove(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.close()
	checkHeld(t, mustOpen(t, dir, shelfOptions{}), all)
}
