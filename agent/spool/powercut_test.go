package spool

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/zipato/vms/pkg/vms"
)

// TestPowerCut lets a child process write to a shelf, with files begun, closed
// and removed, and records every call by which it changes the disk. Then the
// power is cut behind each of them: the disk is rebuilt from what was synced,
// with what was not left out, applied, or applied in part and torn at 512 bytes,
// and the next run must find all that was promised and nothing else.
func TestPowerCut(t *testing.T) {
	dir := t.TempDir()
	d, w := newDrive(dir), &witness{}
	defer w.report(t)
	steps := trace(t, dir)
	seeds := uint64(30)
	if testing.Short() {
		seeds = 4
	}
	cuts, disks := 0, 0
	scratch := fastDir(t)
	for i, step := range steps {
		if step.said != "" {
			w.hear(t, step.said)
			continue
		}
		d.apply(t, step)
		if !step.changes() || len(w.tried) == 0 {
			continue
		}
		cuts++
		for _, how := range []survival{nothing, everything} {
			disks++
			w.check(t, d.rebuild(t, dir, scratch, disks, how, nil), disks%20 == 0)
		}
		for seed := range seeds {
			if !d.unsynced() {
				break
			}
			disks++
			w.check(t, d.rebuild(t, dir, scratch, disks, part, rand.New(rand.NewPCG(uint64(i), seed))), disks%20 == 0)
		}
		if t.Failed() {
			t.Fatalf("power cut behind step %d of %d: %s", i, len(steps), step)
		}
	}
	if len(w.kept) == 0 || w.removed == 0 || cuts < 100 {
		t.Fatalf("%d chunks kept, %d files removed, %d cuts: the child did too little", len(w.kept), w.removed, cuts)
	}
	fmt.Printf("figure power_cut_points %d cuts\nfigure power_cut_disks %d disks\n", cuts, disks)
}

const powerCutFile = 200 << 10

// TestPowerCutChild is what the child does. It says on its standard output what
// it is about to do and what was promised to it.
func TestPowerCutChild(t *testing.T) {
	dir := os.Getenv("SPOOL_TEST_POWERCUT")
	if dir == "" {
		t.Skip("run by TestPowerCut")
	}
	runtime.LockOSThread() // one thread makes all the calls: their record is in order
	say := func(format string, args ...any) { fmt.Printf("SAID "+format+"\n", args...) }
	s, _, err := openShelf(filepath.Join(dir, "spool", "ch_1"), shelfOptions{FileBytes: powerCutFile})
	if err != nil {
		t.Fatal(err)
	}
	say("begin")
	seq := uint64(1)
	for i := range 18 {
		e := vms.Epoch(1 + i/11)
		if i == 11 {
			seq = 1
		}
		n := uint64(1 + i*7%5)
		chunks := footage(e, seq, seq+n, 5<<10)
		say("write %d %d %d", e, seq, seq+n)
		if _, _, err := s.write(initsOf(chunks), chunks); err != nil {
			t.Fatal(err)
		}
		say("written %d %d %d", e, seq, seq+n)
		seq += n + 1
		if f := s.oldest(); i%5 == 4 {
			list := s.blocksOf(f)
			say("remove %d %d %d", f.name.Epoch, f.name.First, list[len(list)-1].Last)
			if err := s.remove(f); err != nil {
				t.Fatal(err)
			}
			say("removed %d %d %d", f.name.Epoch, f.name.First, list[len(list)-1].Last)
		}
	}
	s.close()
	say("end")
}

// witness knows what the child was promised.
type witness struct {
	tried   map[vms.ChunkRange]bool // of one: it may be there
	kept    map[vms.ChunkRange]bool // it has to be
	removed int

	// Of what had to be there, over all disks: chunks, those that were found again
	// byte for byte, reported as damaged, or found in more than one place.
	captured, recorded, declared, doubled int
}

// report prints the line of the fault, also when the test ends early.
func (w *witness) report(t *testing.T) {
	verdict := "ok"
	if t.Failed() || w.captured == 0 || w.recorded != w.captured || w.declared+w.doubled > 0 {
		verdict = "FAIL"
	}
	fmt.Printf("fault power_cut captured %d recorded %d declared %d doubled %d verdict %s\n", w.captured, w.recorded, w.declared, w.doubled, verdict)
}

func (w *witness) hear(t *testing.T, line string) {
	var what string
	r := vms.ChunkRange{}
	if _, err := fmt.Sscanf(line, "%s %d %d %d", &what, &r.Epoch, &r.First, &r.Last); err != nil && line != "begin" && line != "end" {
		t.Fatalf("the child said %q: %v", line, err)
	}
	if line == "begin" {
		w.tried, w.kept = map[vms.ChunkRange]bool{}, map[vms.ChunkRange]bool{}
	}
	for seq := r.First; seq <= r.Last && r.First > 0; seq++ {
		one := vms.ChunkRange{Epoch: r.Epoch, First: seq, Last: seq}
		switch what {
		case "write":
			w.tried[one] = true
		case "written":
			w.kept[one] = true
		case "remove":
			delete(w.kept, one)
		case "removed":
			delete(w.tried, one)
		}
	}
	if what == "removed" {
		w.removed++
	}
}

// keptIn counts the chunks of r that have to be there.
func (w *witness) keptIn(r vms.ChunkRange) (n int) {
	for one := range w.kept {
		if r.Contains(one) {
			n++
		}
	}
	return n
}

var expected = map[vms.ChunkRange]*vms.Chunk{}

// check opens what a power cut left.
func (w *witness) check(t *testing.T, root string, goOn bool) {
	t.Helper()
	defer os.RemoveAll(root)
	dir := filepath.Join(root, "spool", "ch_1")
	w.captured += len(w.kept)
	s, lost, err := openShelf(dir, shelfOptions{FileBytes: powerCutFile})
	if err != nil {
		t.Error(err)
		return
	}
	defer s.close()
	for _, d := range lost {
		t.Errorf("damage: %+v", d)
		w.declared += w.keptIn(vms.ChunkRange{Epoch: d.Epoch, First: d.First, Last: max(d.First, d.Last)})
	}
	var places vms.ChunkSet
	for _, b := range s.blocks() {
		for seq := b.First; seq <= b.Last; seq++ {
			one := vms.ChunkRange{Epoch: b.Epoch, First: seq, Last: seq}
			if places.Has(b.Epoch, seq) {
				t.Errorf("chunk %s is there twice", one)
				w.doubled += w.keptIn(one)
			}
			places.Add(one)
		}
	}
	got, errs := onShelf(s)
	for seq, err := range errs {
		t.Errorf("chunk %d: %v", seq, err)
	}
	found := 0
	for e, m := range got {
		for seq, c := range m {
			one := vms.ChunkRange{Epoch: e, First: seq, Last: seq}
			if !w.tried[one] {
				t.Errorf("chunk %s was never written, or was removed", one)
				continue
			}
			if expected[one] == nil {
				expected[one] = footage(e, seq, seq, 5<<10)[0]
			}
			diff := sameChunk(&c, expected[one])
			if diff != "" {
				t.Error(diff)
			}
			_, ok := s.init(e, c.Init)
			if !ok {
				t.Errorf("init %d of chunk %s is missing", c.Init, one)
			}
			if w.kept[one] && ok && diff == "" {
				found++
			}
		}
	}
	w.recorded += found
	if found != len(w.kept) {
		t.Errorf("%d chunks are there of %d that were promised", found, len(w.kept))
	}
	if !goOn {
		return
	}
	// The next run writes on, and its next run finds that too.
	before := len(got[1]) + len(got[2])
	mustWrite(t, s, footage(9, 1, 3, 100))
	s.close()
	got, errs = onShelf(mustOpen(t, dir, shelfOptions{}))
	if n := len(got[1]) + len(got[2]); n != before || len(got[9]) != 3 || len(errs) != 0 {
		t.Errorf("after going on %d and %d chunks, want %d and 3; %v", n, len(got[9]), before, errs)
	}
}

// call is one call of the child: a change of the disk, or what it said.
type call struct {
	name string
	path string // also of the descriptor
	to   string
	fd   string
	data []byte
	off  int64
	made bool // O_CREAT
	said string
	file *inode // of a create
}

func (c call) String() string {
	return fmt.Sprintf("%s %s %s %d bytes at %d", c.name, c.path, c.to, len(c.data), c.off)
}

// changes reports whether the call can change what a power cut leaves.
func (c call) changes() bool {
	return c.name != "close" && (c.name != "open" || c.made)
}

// trace runs the child under strace.
func trace(t *testing.T, dir string) []call {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("this test needs strace: scripts/setup test installs it")
	}
	log := filepath.Join(t.TempDir(), "strace.log")
	cmd := exec.CommandContext(t.Context(), strace, "-f", "-xx", "-s", "4000000", "-o", log, "-e",
		"trace=openat,?open,pwrite64,write,ftruncate,?ftruncate64,fallocate,fdatasync,fsync,?rename,renameat,renameat2,?unlink,unlinkat,?mkdir,mkdirat,close",
		os.Args[0], "-test.run=^TestPowerCutChild$", "-test.count=1")
	cmd.Env = append(os.Environ(), "SPOOL_TEST_POWERCUT="+dir, quickExit)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("strace cannot trace the child, so that nothing is known of power cuts (in a container it needs the capability SYS_PTRACE): %v\n%s", err, out)
	}
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var calls []call
	began := map[string]string{} // by thread: the first half of a line that another thread's cut in two
	fds := map[string]string{}
	r := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break
		}
		line = strings.TrimSuffix(line, "\n")
		pid, rest, _ := strings.Cut(line, " ")
		if head, cut := strings.CutSuffix(line, " <unfinished ...>"); cut {
			began[pid] = head
			continue
		}
		if i := strings.Index(rest, " resumed>"); i >= 0 && strings.Contains(rest[:i], "<... ") {
			line = began[pid] + rest[i+len(" resumed>"):]
		}
		if c, ok := parseCall(t, line, dir, fds); ok {
			calls = append(calls, c)
		}
	}
	if len(calls) < 100 {
		t.Fatalf("strace recorded %d calls below %s: it did not see the child work\n%s", len(calls), dir, out)
	}
	return calls
}

// parseCall reads one line of strace; ok: it succeeded and is about dir or said something.
func parseCall(t *testing.T, line, dir string, fds map[string]string) (c call, ok bool) {
	t.Helper()
	_, line, _ = strings.Cut(line, " ") // the thread
	name, rest, _ := strings.Cut(strings.TrimSpace(line), "(")
	end := strings.LastIndex(rest, ") ")
	if end < 0 {
		return c, false // a signal, or the end of a thread
	}
	args := rest[:end]
	ret, _, _ := strings.Cut(strings.TrimLeft(rest[end+1:], " ="), " ")
	if ret == "" || ret[0] < '0' || ret[0] > '9' {
		return c, false
	}
	// Every second piece between quotes is a string, all of it in hexadecimal.
	pieces := strings.Split(args, `"`)
	var strs [][]byte
	for i := 1; i < len(pieces); i += 2 {
		b, err := hex.DecodeString(strings.ReplaceAll(pieces[i], `\x`, ""))
		if err != nil || strings.HasPrefix(pieces[i+1], "...") {
			t.Fatalf("strace cut a string short, or wrote it differently: %v", err)
		}
		strs = append(strs, b)
		pieces[i] = ""
	}
	plain := strings.Split(strings.Join(pieces, `"`), ", ")
	number := func(i int) int64 {
		v, err := strconv.ParseInt(plain[i], 0, 64)
		if err != nil {
			t.Fatalf("%s: argument %d: %v", name, i, err)
		}
		return v
	}
	path := func(i int) string { return string(strs[i]) }
	below := func(p string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
	switch name {
	case "openat", "open":
		delete(fds, ret)
		if !below(path(0)) {
			return c, false
		}
		fds[ret] = path(0)
		return call{name: "open", path: path(0), fd: ret, made: strings.Contains(args, "O_CREAT")}, true
	case "close":
		_, ok = fds[plain[0]]
		delete(fds, plain[0])
		return call{name: "close", fd: plain[0]}, ok
	case "write":
		said, isSaid := strings.CutPrefix(string(strs[0]), "SAID ")
		if _, ours := fds[plain[0]]; ours {
			t.Fatal("a write without a place")
		}
		return call{said: strings.TrimSpace(said)}, isSaid
	case "rename", "renameat", "renameat2":
		return call{name: "rename", path: path(0), to: path(1)}, below(path(0))
	case "unlink", "unlinkat":
		return call{name: "unlink", path: path(0)}, below(path(0))
	case "mkdir", "mkdirat":
		return call{name: "mkdir", path: path(0)}, below(path(0))
	}
	if _, ours := fds[plain[0]]; !ours {
		return c, false
	}
	c = call{name: name, path: fds[plain[0]], fd: plain[0]}
	switch name {
	case "pwrite64":
		c.data, c.off = strs[0], number(3)
		if int64(len(c.data)) != number(2) || ret != plain[2] {
			t.Fatalf("a write of %d of %s bytes", len(c.data), plain[2])
		}
	case "ftruncate", "ftruncate64":
		c.name, c.off = "ftruncate", number(1)
	case "fsync", "fdatasync":
		c.name = "sync"
	default:
		t.Fatalf("the test knows no %s", name)
	}
	return c, true
}

// drive is a file system that keeps for certain only what was synced: the bytes
// and the length of a file by a sync of the file, names by one of their directory.
type drive struct {
	dirs  map[string]bool   // synced
	files map[string]*inode // synced names
	names []call            // changes of names since, in order
	now   map[string]*inode // names as the child sees them
	open  map[string]*inode // by descriptor; nil: a directory
}

type inode struct {
	data    []byte
	pending []call // pwrite64 and ftruncate since the last sync
}

func newDrive(root string) *drive {
	return &drive{dirs: map[string]bool{root: true}, files: map[string]*inode{}, now: map[string]*inode{}, open: map[string]*inode{}}
}

func (d *drive) apply(t *testing.T, c call) {
	t.Helper()
	switch c.name {
	case "open":
		f := d.now[c.path]
		if f == nil && c.made {
			f = new(inode)
			d.now[c.path] = f
			d.names = append(d.names, call{name: "create", path: c.path, file: f})
		}
		d.open[c.fd] = f
	case "close":
		delete(d.open, c.fd)
	case "mkdir":
		d.names = append(d.names, c)
	case "rename":
		d.now[c.to] = d.now[c.path]
		delete(d.now, c.path)
		d.names = append(d.names, c)
	case "unlink":
		delete(d.now, c.path)
		d.names = append(d.names, c)
	case "pwrite64", "ftruncate":
		f := d.open[c.fd]
		if f == nil {
			t.Fatalf("%s: to a directory", c)
		}
		f.pending = append(f.pending, c)
	case "sync":
		if f := d.open[c.fd]; f != nil {
			for _, p := range f.pending {
				f.data = p.change(f.data)
			}
			f.pending = nil
			return
		}
		d.names = slices.DeleteFunc(d.names, func(n call) bool {
			if filepath.Dir(n.path) != c.path {
				return false
			}
			n.changeNames(d.dirs, d.files)
			return true
		})
	}
}

// unsynced reports whether a power cut now leaves something to chance.
func (d *drive) unsynced() bool {
	for _, files := range []map[string]*inode{d.files, d.now} {
		for _, f := range files {
			if len(f.pending) > 0 {
				return true
			}
		}
	}
	return len(d.names) > 0
}

// change returns what a write or a truncation makes of a file.
func (c call) change(data []byte) []byte {
	end := c.off + int64(len(c.data))
	data = slices.Clone(data)
	if n := int64(len(data)); end > n {
		data = append(data, make([]byte, end-n)...)
	}
	if c.name == "ftruncate" {
		return data[:c.off]
	}
	copy(data[c.off:], c.data)
	return data
}

func (c call) changeNames(dirs map[string]bool, files map[string]*inode) {
	switch c.name {
	case "mkdir":
		dirs[c.path] = true
	case "create":
		files[c.path] = c.file
	case "rename":
		files[c.to] = files[c.path]
		delete(files, c.path)
	case "unlink":
		delete(files, c.path)
	}
}

// survival is what becomes of changes that were not synced.
type survival int

const (
	nothing survival = iota
	everything
	part // the first few of the names; any of the writes, torn at 512 bytes
)

// rebuild makes the disk that a power cut now leaves, in a folder of its own.
func (d *drive) rebuild(t *testing.T, root, scratch string, n int, how survival, rng *rand.Rand) string {
	t.Helper()
	dirs, files := maps.Clone(d.dirs), maps.Clone(d.files)
	names := d.names
	switch how {
	case nothing:
		names = nil
	case part:
		names = names[:rng.IntN(len(names)+1)] // file systems keep the order of names
	}
	for _, c := range names {
		c.changeNames(dirs, files)
	}
	out := filepath.Join(scratch, strconv.Itoa(n))
	content := map[string][]byte{}
	for path, f := range files {
		if !dirs[filepath.Dir(path)] {
			continue
		}
		data := f.data
		for _, c := range f.pending {
			switch {
			case how == everything || how == part && rng.IntN(3) == 0:
				data = c.change(data)
			case how == part && c.name == "pwrite64" && rng.IntN(2) == 0:
				for at := 0; at < len(c.data); at += 512 {
					if rng.IntN(2) == 0 {
						data = call{name: c.name, off: c.off + int64(at), data: c.data[at:min(at+512, len(c.data))]}.change(data)
					}
				}
			}
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			t.Fatal(err)
		}
		content[rel] = data
	}
	putFiles(t, out, content)
	return out
}
