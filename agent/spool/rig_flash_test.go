package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// quickExit keeps a child with the race detector from waiting a second at its end.
const quickExit = "GORACE=atexit_sleep_ms=0"

// footage makes chunks first to last of an epoch, always the same for the same
// numbers: about size bytes each, a GOP per three, an init per twelve.
func footage(e vms.Epoch, first, last uint64, size int) []*vms.Chunk {
	var out []*vms.Chunk
	for seq := first; seq <= last; seq++ {
		rng := rand.New(rand.NewPCG(uint64(e), seq))
		var seed [32]byte
		for i := range seed {
			seed[i] = byte(rng.Uint32())
		}
		payload := make([]byte, size/2+rng.IntN(size))
		rand.NewChaCha8(seed).Read(payload)
		c := &vms.Chunk{
			Epoch: e, Seq: seq, Init: uint32(1 + (seq-1)/12), Recording: uint32(seq / 30), MoofLen: 100,
			Start: time.UnixMicro(1_800_000_000_000_000 + int64(seq)*500_000).UTC(), Payload: payload, CRC: wire.Checksum(payload),
		}
		c.End = c.Start.Add(500 * time.Millisecond)
		if seq%3 == 1 {
			c.Flags = vms.FlagKey
		}
		if seq%30 == 1 {
			c.Flags |= vms.FlagFirst
		}
		out = append(out, c)
	}
	return out
}

// initsOf are the inits that chunks name.
func initsOf(chunks []*vms.Chunk) (out []vms.Init) {
	for _, c := range chunks {
		if n := len(out); n == 0 || out[n-1].ID != c.Init {
			out = append(out, vms.Init{Epoch: c.Epoch, ID: c.Init, Segment: bytes.Repeat([]byte{byte(c.Init)}, 700), Tracks: []vms.Track{{ID: 1, Kind: "video", Codec: "avc1.64001f"}}})
		}
	}
	return out
}

// sameChunk returns what differs, or nothing.
func sameChunk(got, want *vms.Chunk) string {
	g, w := *got, *want
	g.Payload, w.Payload = nil, nil
	if fmt.Sprint(g) != fmt.Sprint(w) {
		return fmt.Sprintf("got %+v, want %+v", g, w)
	}
	if !bytes.Equal(got.Payload, want.Payload) {
		return fmt.Sprintf("payload of chunk %d differs", want.Seq)
	}
	return ""
}

func mustOpen(t testing.TB, dir string, o shelfOptions) *shelf {
	t.Helper()
	s, lost, err := openShelf(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range lost {
		t.Fatalf("damage: %+v", d)
	}
	t.Cleanup(func() { s.close() })
	return s
}

func mustWrite(t testing.TB, s *shelf, chunks []*vms.Chunk) *block {
	t.Helper()
	b, _, err := s.write(initsOf(chunks), chunks)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// onShelf reads everything: chunks by number per epoch; and the error of each
// that cannot be read.
func onShelf(s *shelf) (chunks map[vms.Epoch]map[uint64]vms.Chunk, errs map[uint64]error) {
	chunks, errs = make(map[vms.Epoch]map[uint64]vms.Chunk), make(map[uint64]error)
	for _, b := range s.blocks() {
		for seq := b.First; seq <= b.Last; seq++ {
			c, err := s.read(b, seq)
			if err != nil {
				errs[seq] = err
				continue
			}
			if chunks[b.Epoch] == nil {
				chunks[b.Epoch] = make(map[uint64]vms.Chunk)
			}
			chunks[b.Epoch][seq] = c
		}
	}
	return chunks, errs
}

// checkHeld fails t unless the shelf holds just the chunks wanted, byte for byte,
// with their inits.
func checkHeld(t testing.TB, s *shelf, want []*vms.Chunk) {
	t.Helper()
	got, errs := onShelf(s)
	for seq, err := range errs {
		t.Errorf("chunk %d: %v", seq, err)
	}
	n := 0
	for _, m := range got {
		n += len(m)
	}
	for _, w := range want {
		g, ok := got[w.Epoch][w.Seq]
		if !ok {
			t.Errorf("chunk %d of %s is not there", w.Seq, w.Epoch)
			continue
		}
		if diff := sameChunk(&g, w); diff != "" {
			t.Error(diff)
		}
		if i, ok := s.init(w.Epoch, w.Init); !ok || fmt.Sprint(i) != fmt.Sprint(initsOf([]*vms.Chunk{w})[0]) {
			t.Errorf("init %d of %s is %v, %v", w.Init, w.Epoch, i, ok)
		}
	}
	if n != len(want) {
		t.Errorf("%d chunks are there, want %d", n, len(want))
	}
}

// filesIn lists the files below dir by name, with their contents.
func filesIn(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	out := make(map[string][]byte)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		out[rel] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// putFiles is the inverse of filesIn, in a new folder.
func putFiles(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// openCopy opens what the next run would find, and leaves the original alone.
func openCopy(t testing.TB, dir string) *shelf {
	t.Helper()
	other := filepath.Join(fastDir(t), "copy", filepath.Base(dir))
	putFiles(t, other, filesIn(t, dir))
	return mustOpen(t, other, shelfOptions{})
}

// fastDir is a folder in memory where there is one: for tests that rebuild
// thousands of files and measure nothing.
func fastDir(t testing.TB) string {
	t.Helper()
	sweepFastDirs()
	dir, err := os.MkdirTemp("/dev/shm", fmt.Sprintf("spool-test-%d-", os.Getpid()))
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// sweepFastDirs removes what test runs that were killed have left in memory.
var sweepFastDirs = sync.OnceFunc(func() {
	left, _ := filepath.Glob("/dev/shm/spool-test-*") // the pattern is a good one
	for _, dir := range left {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), "spool-test-"), "-")
		if n, err := strconv.Atoi(pid); err != nil || errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			os.RemoveAll(dir)
		}
	}
})

// onTmpfs reports whether dir is in memory, where nothing is written to a disk.
func onTmpfs(t testing.TB, dir string) bool {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	const tmpfs, ramfs = 0x01021994, 0x858458f6
	return uint32(st.Type) == tmpfs || uint32(st.Type) == ramfs
}

// blocksOf lists what a file holds, oldest first.
func (s *shelf) blocksOf(f *file) []*block {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(f.list)
}
