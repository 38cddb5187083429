package segment_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// killed is what a process leaves that ends in this moment: a copy of its files.
func killed(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// recovered returns the only recording in dir, nil if there is none, and what
// was said of the rest.
func recovered(t *testing.T, dir string) (*segment.Found, []error) {
	t.Helper()
	found, dropped, err := segment.Recover(dir)
	if err != nil || len(found) > 1 {
		t.Fatalf("Recover: %d recordings, %v", len(found), err)
	}
	if len(found) == 0 {
		empty(t, dir)
		return nil, dropped
	}
	return &found[0], dropped
}

// goOn appends the chunks of cs that w lacks and returns the object.
func goOn(t *testing.T, w *segment.Writer, cs []vms.Chunk) (vms.Recording, []byte) {
	t.Helper()
	for i := range cs {
		if cs[i].Seq > w.Range().Last {
			if err := w.Append(&cs[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	f, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return f.Recording, object(t, f)
}

// TestAnotherProcessGoesOn: killed behind any chunk, with any of the last ones
// not flushed yet, the recording becomes what it would have been.
func TestAnotherProcessGoesOn(t *testing.T) {
	init, cs := clip(t, 1<<40+123)
	stamped(cs)
	cs[3].Flags |= vms.FlagTimeUncertain
	row, want := goOn(t, open(t, t.TempDir(), init, cs), nil)
	dir := t.TempDir()
	w, err := segment.Create(dir, "ch_1", init, &cs[0])
	if err != nil {
		t.Fatal(err)
	}
	for i, flushed := 1, uint64(1); ; i++ {
		f, dropped := recovered(t, killed(t, dir))
		if f == nil || len(dropped) > 0 || f.Complete {
			t.Fatalf("behind chunk %d: %+v, %v", i, f, dropped)
		}
		if got := f.Range(); got != (vms.ChunkRange{Epoch: 1, First: 1, Last: flushed}) || f.Channel() != "ch_1" || f.Recording() != 7 || f.Init().ID != init.ID {
			t.Fatalf("killed behind chunk %d, flushed up to %d: %s of %s, number %d", i, flushed, got, f.Channel(), f.Recording())
		}
		if info, err := os.Stat(f.Path()); err != nil || info.Size() != f.Bytes() {
			t.Fatalf("%v, %v, want %d bytes", info, err, f.Bytes())
		}
		tail, err := f.Tail(1 << 20)
		if err != nil || len(tail) == 0 || !bytes.Equal(wire.EncodeChunk(&tail[len(tail)-1]), wire.EncodeChunk(&cs[flushed-1])) {
			t.Fatalf("%d chunks in the tail, %v", len(tail), err)
		}
		if got, body := goOn(t, f.Writer, cs); got != row || !bytes.Equal(body, want) {
			t.Fatalf("killed behind chunk %d: another object\n%+v, want\n%+v", i, got, row)
		}
		if i == len(cs) {
			break
		}
		if err := w.Append(&cs[i]); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			flushed = uint64(i + 1)
		}
	}
	if err := w.Keep(); err != nil {
		t.Fatal(err)
	}
	f, _ := recovered(t, dir)
	if f == nil || f.Range().Last != uint64(len(cs)) || f.Complete {
		t.Fatalf("what a process keeps has %+v", f)
	}
	if err := f.Discard(); err != nil {
		t.Error(err)
	}
	empty(t, dir)
}

// TestAProcessThatFindsAFoundOne: killed again and again, before anything came.
func TestAProcessThatFindsAFoundOne(t *testing.T) {
	init, cs := clip(t, 1000)
	stamped(cs)
	row, want := goOn(t, open(t, t.TempDir(), init, cs), nil)
	dir := t.TempDir()
	w := open(t, dir, init, cs[:1])
	for i := range cs[1:] {
		if err := w.Append(&cs[i+1]); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		dir = killed(t, dir)
		f, dropped := recovered(t, dir)
		if f == nil || len(dropped) > 0 {
			t.Fatalf("%+v, %v", f, dropped)
		}
		w = f.Writer
	}
	if got, body := goOn(t, w, cs); got != row || !bytes.Equal(body, want) {
		t.Errorf("another object\n%+v, want\n%+v", got, row)
	}
}

// TestAFinishedRecordingIsFoundComplete: until its files are removed.
func TestAFinishedRecordingIsFoundComplete(t *testing.T) {
	init, cs := clip(t, 1000)
	stamped(cs)
	dir := t.TempDir()
	f, err := open(t, dir, init, cs).Finish()
	if err != nil {
		t.Fatal(err)
	}
	want := object(t, f)
	after := killed(t, dir)
	again, dropped := recovered(t, after)
	if again == nil || !again.Complete || len(dropped) > 0 {
		t.Fatalf("%+v, %v", again, dropped)
	}
	if row, body := goOn(t, again.Writer, nil); row != f.Recording || !bytes.Equal(body, want) {
		t.Errorf("another object\n%+v, want\n%+v", row, f.Recording)
	}
	if again, _ := recovered(t, after); again == nil || !again.Complete {
		t.Errorf("finished once more: %+v", again)
	}
	if f.Journal == "" {
		t.Fatal("no journal")
	}
	for _, path := range []string{f.Path, f.Journal} {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
	empty(t, dir)
}

// TestOnlyWhatItsJournalNamesIsFound: the rest is removed, and what is not ours
// is left alone.
func TestOnlyWhatItsJournalNamesIsFound(t *testing.T) {
	init, cs := clip(t, 1000)
	stamped(cs)
	dir := t.TempDir()
	if _, err := segment.Scratch(dir, "ch_1", init, &cs[0]); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x.journal", "y.body", "z.journal.tmp", "object.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if f, _ := recovered(t, dir); f != nil {
		t.Fatalf("found %s", f.Range())
	}
	for _, name := range []string{"lock", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "d.body"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := segment.Recover(dir); err != nil {
		t.Fatal(err)
	}
	if fs, err := os.ReadDir(dir); err != nil || len(fs) != 3 {
		t.Errorf("%v is left, %v", fs, err)
	}
	if _, _, err := segment.Recover(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("recovered from no directory")
	}
}

// TestDamageIsNeverRecorded: whatever happens to the files, what is found of the
// recording is its beginning, unharmed, or nothing; and it can go on.
func TestDamageIsNeverRecorded(t *testing.T) {
	init, cs := clip(t, 1000)
	stamped(cs)
	row, want := goOn(t, open(t, t.TempDir(), init, cs), nil)
	dir := t.TempDir()
	w := open(t, dir, init, cs[:1])
	for i := range cs[1:] {
		if err := w.Append(&cs[i+1]); err != nil {
			t.Fatal(err)
		}
		if i%4 == 0 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	short, gone := 0, 0
	for n := range 240 {
		hurt := killed(t, dir)
		files, err := os.ReadDir(hurt)
		if err != nil || len(files) != 2 {
			t.Fatal(files, err)
		}
		path := filepath.Join(hurt, files[n%2].Name())
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		switch at := rnd.IntN(len(b)); n / 2 % 4 {
		case 0:
			b[at] ^= 1 << rnd.IntN(8)
		case 1:
			b = b[:at]
		case 2:
			clear(b[at:min(len(b), at+1+rnd.IntN(500))])
		case 3:
			b = append(b, b[at:]...)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f, dropped := recovered(t, hurt)
		if f == nil {
			gone++
			if len(dropped) != 1 {
				t.Fatalf("round %d: nothing was found, and %v is said", n, dropped)
			}
			continue
		}
		last := int(f.Range().Last)
		if last < len(cs) {
			short++
			if f.Complete || len(dropped) != 1 {
				t.Fatalf("round %d: %d chunks, complete: %v, %v is said", n, last, f.Complete, dropped)
			}
		}
		twice := killed(t, hurt)
		if again, dropped := recovered(t, twice); again == nil || again.Range() != f.Range() || len(dropped) > 0 || again.Complete != f.Complete {
			t.Fatalf("round %d: the next process finds %+v, %v", n, again, dropped)
		}
		if got, body := goOn(t, f.Writer, cs); got != row || !bytes.Equal(body, want) {
			t.Fatalf("round %d, %d chunks found: another object\n%+v, want\n%+v", n, last, got, row)
		}
	}
	if short < 40 || gone < 4 {
		t.Errorf("%d of 240 were cut short and %d gone: the damage does too little", short, gone)
	}
}

// TestAJournalOfAnotherRecording: and one of another format, are not believed.
func TestAJournalOfAnotherRecording(t *testing.T) {
	init, cs := clip(t, 1000)
	stamped(cs)
	dir := t.TempDir()
	if err := open(t, dir, init, cs).Keep(); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.body"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	other := t.TempDir()
	cs[0].Payload[len(cs[0].Payload)-1]++
	stamped(cs)
	if err := open(t, other, init, cs).Keep(); err != nil {
		t.Fatal(err)
	}
	bodies, err := filepath.Glob(filepath.Join(other, "*.body"))
	if err != nil || len(bodies) != 1 {
		t.Fatal(bodies, err)
	}
	if err := os.Rename(bodies[0], names[0]); err != nil {
		t.Fatal(err)
	}
	if f, dropped := recovered(t, dir); f != nil || len(dropped) != 1 || !errors.Is(dropped[0], segment.ErrBroken) {
		t.Errorf("found %v, %v", f, dropped)
	}
}

// TestAJournalWithAHole: what is behind it is not believed, although it is what
// was muxed.
func TestAJournalWithAHole(t *testing.T) {
	init, cs := clip(t, 1000)
	stamped(cs)
	dir := t.TempDir()
	w := open(t, dir, init, cs[:1])
	var sizes []int64
	journal := strings.TrimSuffix(w.Path(), ".body") + ".journal"
	for i := range 2 {
		info, err := os.Stat(journal)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, info.Size())
		if err := errors.Join(w.Append(&cs[i+1]), w.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Keep(); err != nil {
		t.Fatal(err)
	}
	cut := func(path string, from, to int64) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, slices.Delete(b, int(from), int(to)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cut(journal, sizes[0], sizes[1])
	at := int64(len(cs[0].Payload))
	cut(w.Path(), at, at+int64(len(cs[1].Payload)))
	if f, dropped := recovered(t, dir); f == nil || f.Range().Last != 1 || len(dropped) != 1 {
		t.Errorf("found %+v, %v", f, dropped)
	}
}

// TestAFullDiskLosesNothing: a chunk that found no room comes again, and a
// journal that found none is written later.
func TestAFullDiskLosesNothing(t *testing.T) {
	init, cs := clip(t, 1000)
	stamped(cs)
	row, want := goOn(t, open(t, t.TempDir(), init, cs), nil)
	dir := tinyDisk(t, 1<<20)
	w := open(t, dir, init, cs[:3])
	fill := filepath.Join(dir, "fill")
	big := make([]byte, 2<<20)
	for i := range cs[3:] {
		c := &cs[i+3]
		if i%4 == 0 {
			if err := os.WriteFile(fill, big, 0o600); err == nil {
				t.Fatal("the disk is not full")
			}
			failed := false
			for range 3 { // there may be room in the last page
				if err := w.Append(c); err != nil {
					if errors.Is(err, cmaf.ErrInvalid) || w.Range().Last != c.Seq-1 {
						t.Fatalf("Append = %v at %s", err, w.Range())
					}
					failed = true
				} else if c = &cs[c.Seq]; int(c.Seq) == len(cs) {
					break
				}
				_ = w.Flush() // which may fail too
			}
			if !failed {
				t.Fatal("everything found room")
			}
			if fs, err := filepath.Glob(filepath.Join(dir, "*.body")); err != nil || len(fs) != 1 {
				t.Fatal(fs, err)
			} else if info, err := os.Stat(fs[0]); err != nil || info.Size() != w.Bytes() {
				t.Errorf("%v, %v after a write that failed, want %d bytes", info, err, w.Bytes())
			}
			f, dropped := recovered(t, killed(t, dir))
			if f == nil || f.Range().Last > w.Range().Last || len(dropped) > 1 {
				t.Fatalf("a process that was killed on a full disk left %+v, %v", f, dropped)
			}
			if got, body := goOn(t, f.Writer, cs); got != row || !bytes.Equal(body, want) {
				t.Fatalf("killed on a full disk: another object\n%+v, want\n%+v", got, row)
			}
			if err := os.Remove(fill); err != nil {
				t.Fatal(err)
			}
		}
		if c.Seq == w.Range().Last+1 {
			if err := w.Append(c); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if f, dropped := recovered(t, killed(t, dir)); f == nil || f.Range() != w.Range() || len(dropped) > 0 {
			t.Fatalf("with room again: %+v, %v, want %s", f, dropped, w.Range())
		}
	}
	if got, body := goOn(t, w, cs); got != row || !bytes.Equal(body, want) {
		t.Errorf("another object\n%+v, want\n%+v", got, row)
	}
}

// TestAProcessStartsOnAFullDisk: what cannot be journaled there is given up, and
// that makes room.
func TestAProcessStartsOnAFullDisk(t *testing.T) {
	init, cs := clip(t, 1000)
	stamped(cs)
	dir := tinyDisk(t, 1<<20)
	if err := open(t, dir, init, cs).Keep(); err != nil {
		t.Fatal(err)
	}
	bodies, err := filepath.Glob(filepath.Join(dir, "*.body"))
	if err != nil || len(bodies) != 1 {
		t.Fatal(bodies, err)
	}
	journal := strings.TrimSuffix(bodies[0], ".body") + ".journal"
	whole, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	// The process was killed while it wrote the last frame.
	if err := os.Truncate(journal, int64(len(whole)-10)); err != nil {
		t.Fatal(err)
	}
	fill := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 2<<20), 0o600); err == nil {
			t.Fatal("the disk is not full")
		}
	}
	fill()
	found, dropped, err := segment.Recover(dir)
	if err != nil || len(found) != 1 || found[0].Range().Last != 1 || len(dropped) != 1 {
		t.Fatalf("with half a frame: %d found, %v, %v", len(found), dropped, err)
	}
	if err := found[0].Discard(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "fill")); err != nil {
		t.Fatal(err)
	}
	// Its bytes have changed behind the first chunk.
	if err := open(t, dir, init, cs).Keep(); err != nil {
		t.Fatal(err)
	}
	bodies, err = filepath.Glob(filepath.Join(dir, "*.body"))
	if err != nil || len(bodies) != 1 {
		t.Fatal(bodies, err)
	}
	f, err := os.OpenFile(bodies[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("other bytes"), int64(len(cs[0].Payload)+200))
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	fill()
	found, dropped, err = segment.Recover(dir)
	if err != nil || len(found) > 1 || len(dropped) != 1 {
		t.Fatalf("with other bytes: %d found, %v, %v", len(found), dropped, err)
	}
	for _, f := range found {
		if err := f.Discard(); err != nil {
			t.Error(err)
		}
	}
}

// FuzzRecover: no journal makes more of a file than what was muxed.
func FuzzRecover(f *testing.F) {
	init := vms.Init{Epoch: 1, ID: 1, Segment: []byte("\x00\x00\x00\x08ftyp\x00\x00\x00\x08moov"), Tracks: []vms.Track{{ID: 1, Kind: "video", Codec: "x", Timescale: 90000}}}
	var cs []vms.Chunk
	for seq := range uint64(2) {
		cs = append(cs, chunk(f, seq+1, cmaf.Run{Track: 1, Base: 1000 + seq*3600, Samples: []cmaf.Sample{{Duration: 3600, Sync: true, NALs: [][]byte{{0x65, 1}}}}}))
		cs[seq].Flags = vms.FlagKey
	}
	cs[0].Flags |= vms.FlagFirst
	stamped(cs)
	dir := f.TempDir()
	w, err := segment.Create(dir, "ch_1", init, &cs[0])
	if err != nil {
		f.Fatal(err)
	}
	if err := w.Append(&cs[1]); err != nil {
		f.Fatal(err)
	}
	if err := w.Keep(); err != nil {
		f.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 2 {
		f.Fatal(names, err)
	}
	body, err := os.ReadFile(names[0])
	if err != nil {
		f.Fatal(err)
	}
	journal, err := os.ReadFile(names[1])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(journal, body)
	f.Fuzz(func(t *testing.T, journal, body []byte) {
		dir := t.TempDir()
		for name, b := range map[string][]byte{"a.journal": journal, "a.body": body} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, _ := recovered(t, dir)
		if got == nil {
			return
		}
		r := got.Range()
		if r.First == 0 || r.Last < r.First || got.Bytes() > int64(len(body)) {
			t.Fatalf("found %s, %d bytes of %d", r, got.Bytes(), len(body))
		}
		if _, err := got.Finish(); err != nil {
			t.Fatal(err)
		}
	})
}
