package spool

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// diskDir is a folder on a real disk: what is written to memory wears nothing
// out, and /proc/self/io does not count it.
func diskDir(t testing.TB) string {
	t.Helper()
	if dir := t.TempDir(); !onTmpfs(t, dir) {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal("flash writes cannot be measured in memory: set TMPDIR to a folder on a disk")
	}
	os.MkdirAll(cache, 0o700)
	dir, err := os.MkdirTemp(cache, "vms-spool-")
	if err != nil || onTmpfs(t, dir) {
		os.RemoveAll(dir)
		t.Fatalf("flash writes cannot be measured in memory: set TMPDIR to a folder on a disk (%v)", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// diskWrites is what this process has had written to disks so far, in bytes.
func diskWrites(t testing.TB) (n int64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Fatalf("what is written to flash cannot be measured: %v", err)
	}
	if _, err := fmt.Sscanf(string(b[strings.Index(string(b), "\nwrite_bytes:"):]), "\nwrite_bytes: %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFlashBytesPerByte measures what a byte of footage costs: the database, its
// rounding, new files and their names included; by the kernel's count and by ours.
func TestFlashBytesPerByte(t *testing.T) {
	if probe := t.TempDir(); !onTmpfs(t, probe) {
		before := diskWrites(t)
		if err := os.WriteFile(filepath.Join(probe, "probe"), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if n := diskWrites(t) - before; n < 1<<20 {
			t.Fatalf("the kernel counted %d bytes of 1 MiB: this disk cannot be measured", n)
		}
	}
	for _, tt := range []struct {
		figure       string
		chunk, batch int
		total        int64
		limit        float64
	}{
		{"flash_bytes_per_byte", 64 << 10, 4 << 20, 128 << 20, 1.05},               // as most cameras
		{"flash_bytes_per_byte_small_chunks", 6 << 10, 4 << 20, 64 << 20, 1.06},    // a camera of 100 kbit/s
		{"flash_bytes_per_byte_small_commits", 64 << 10, 1 << 20, 64 << 20, 1.08},  // a hub with 6 MiB to spare
		{"flash_bytes_per_byte_tiny_commits", 32 << 10, 256 << 10, 32 << 20, 1.15}, // a camera that comes and goes every few seconds
	} {
		if testing.Short() {
			tt.total /= 3 // the first one still fills a file
		}
		dir := filepath.Join(diskDir(t), "ch_1")
		s := mustOpen(t, dir, shelfOptions{})
		per := uint64(tt.batch / tt.chunk)
		batch := footage(1, 1, per, tt.chunk)
		inits := initsOf(batch)
		var footageBytes, ours int64
		before := diskWrites(t)
		var mem0, mem1 runtime.MemStats
		runtime.ReadMemStats(&mem0)
		for seq := uint64(1); footageBytes < tt.total; seq += per {
			for i, c := range batch {
				c.Seq = seq + uint64(i)
				footageBytes += int64(len(c.Payload))
			}
			_, written, err := s.write(inits, batch)
			if err != nil {
				t.Fatal(err)
			}
			ours += written
		}
		s.close()
		runtime.ReadMemStats(&mem1)
		kernel := diskWrites(t) - before
		factor := float64(kernel) / float64(footageBytes)
		fmt.Printf("figure %s %.3f x\n", tt.figure, factor)
		if tt.figure == "flash_bytes_per_byte" {
			fmt.Printf("figure spool_heap_per_byte_written %.2f x\n", float64(mem1.TotalAlloc-mem0.TotalAlloc)/float64(footageBytes))
		}
		if factor > tt.limit {
			t.Errorf("%s is %.3f, want at most %.3f", tt.figure, factor, tt.limit)
		}
		if diff := float64(ours-kernel) / float64(kernel); diff < -0.02 || diff > 0.05 {
			t.Errorf("%s: counted %d bytes written, the kernel %d", tt.figure, ours, kernel)
		}
	}
}

// TestFlashBytesPerByteOfLittleRAM: transactions are no smaller because the
// budget is, whatever a GOP is large; by the kernel's count.
func TestFlashBytesPerByteOfLittleRAM(t *testing.T) {
	worst := 0.0
	for _, ram := range []int64{1 << 20, 2 << 20} {
		for _, cameras := range []int{1, 4} {
			for _, gop := range []int{3, 9, 13} { // chunks: 90, 270 and 390 KB
				total := 12 * ram
				if testing.Short() {
					total /= 3
				}
				st := store(t, Config{RAM: ram, Dir: diskDir(t)})
				var spools []*Spool
				for i := range cameras {
					spools = append(spools, st.Spool(vms.ChannelID(fmt.Sprint("ch_", i))))
				}
				before := diskWrites(t)
				for n, captured := 0, int64(0); captured < total; n++ {
					for i, s := range spools {
						c := vms.Chunk{Epoch: epoch, Seq: uint64(n) + 1, Init: 1, Payload: make([]byte, 30<<10)}
						if n == 0 || (n+i)%gop == 0 { // not all at once
							c.Flags = vms.FlagKey
						}
						c.Start = time.Unix(1_800_000_000+int64(n), 0).UTC()
						c.End = c.Start.Add(time.Second)
						s.Append(c)
						captured += int64(len(c.Payload))
						st.work(t.Context())
					}
				}
				var spilled int64
				for _, s := range spools {
					for _, b := range s.blocks {
						spilled += b.Bytes
					}
					if d := s.Stats().Dropped; d > 0 {
						t.Errorf("%d chunks dropped", d)
					}
				}
				factor := float64(diskWrites(t)-before) / float64(spilled)
				worst = max(worst, factor)
				if spilled < total/2 || factor > 1.15 {
					t.Errorf("%d MiB of RAM, %d cameras, GOPs of %d KiB: %.3f bytes written for one, want at most 1.15; %d of %d bytes spilled",
						ram>>20, cameras, gop*30, factor, spilled, total)
				}
			}
		}
	}
	fmt.Printf("figure flash_bytes_per_byte_little_ram %.3f x\n", worst)
}

func TestMemoryIsNoDisk(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err != nil {
		t.Skip("no /dev/shm here")
	}
	if !onTmpfs(t, "/dev/shm") {
		t.Error("/dev/shm is taken for a disk")
	}
}

func BenchmarkShelfWrite(b *testing.B) {
	s := mustOpen(b, filepath.Join(diskDir(b), "ch_1"), shelfOptions{})
	batch := footage(1, 1, 64, 64<<10)
	inits := initsOf(batch)
	b.SetBytes(4 << 20)
	b.ReportAllocs()
	seq := uint64(1)
	for b.Loop() {
		for i, c := range batch {
			c.Seq = seq + uint64(i)
		}
		seq += 64
		if _, _, err := s.write(inits, batch); err != nil {
			b.Fatal(err)
		}
		if s.bytes() > 512<<20 {
			b.StopTimer()
			if err := s.remove(s.oldest()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
}

func BenchmarkShelfRead(b *testing.B) {
	s := mustOpen(b, filepath.Join(diskDir(b), "ch_1"), shelfOptions{})
	for i := range uint64(8) {
		mustWrite(b, s, footage(1, 1+64*i, 64+64*i, 64<<10))
	}
	b.SetBytes(64 << 10)
	b.ReportAllocs()
	list := s.blocks()
	n := 0
	for b.Loop() {
		bl := list[n/64%len(list)]
		if _, err := s.read(bl, bl.First+uint64(n%64)); err != nil {
			b.Fatal(err)
		}
		n++
	}
}

// BenchmarkShelfOpen is a start with a full spool of 512 MiB.
func BenchmarkShelfOpen(b *testing.B) {
	dir := filepath.Join(diskDir(b), "ch_1")
	s := mustOpen(b, dir, shelfOptions{})
	batch := footage(1, 1, 64, 64<<10)
	for seq := uint64(1); s.bytes() < 480<<20; seq += 64 {
		for i, c := range batch {
			c.Seq = seq + uint64(i)
		}
		mustWrite(b, s, batch)
	}
	s.close()
	b.ReportAllocs()
	for b.Loop() {
		s, lost, err := openShelf(dir, shelfOptions{})
		if err != nil || len(lost) != 0 || s.bytes() < 480<<20 {
			b.Fatal(err, lost)
		}
	}
}
