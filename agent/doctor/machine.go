package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// leastFiles is what 32 cameras need: each has a connection to the camera and
	// up to three to the cloud, and a file or two.
	leastFiles = 256
	// runtimeRAM is what the agent needs beside footage (measured with four
	// cameras), bytes.
	runtimeRAM = 16 << 20
	// leastKernel says how much memory is available; Go itself wants 3.2.
	leastKernel = "3.14"
)

// kernel looks at the system that everything runs on.
func (c *Config) kernel(context.Context) Finding {
	const check = "kernel"
	release := c.text("proc/sys/kernel/osrelease")
	if release == "" {
		return bad(check, "The files in /proc cannot be read.", "Mount the proc file system on /proc.")
	}
	if older(release, leastKernel) {
		return bad(check, fmt.Sprintf("Linux %s is older than %s, the oldest this agent is made for.", release, leastKernel), "Update the hub's firmware.")
	}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil && files.Max < leastFiles {
		return bad(check, fmt.Sprintf("The agent may open %d files only.", files.Max),
			fmt.Sprintf("Raise the limit of open files to %d or more where the agent is started (ulimit -n, LimitNOFILE).", leastFiles))
	}
	up := ""
	if seconds, _, ok := strings.Cut(c.text("proc/uptime"), " "); ok {
		if s, err := strconv.ParseFloat(seconds, 64); err == nil {
			up = ", up " + span(time.Duration(s)*time.Second)
		}
	}
	return good(check, "Linux %s on %s%s.", release, runtime.GOARCH, up)
}

// text reads a short file.
func (c *Config) text(name string) string {
	data, err := fs.ReadFile(c.Root, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// older compares the first two numbers of versions.
func older(a, b string) bool {
	number := func(v string, i int) int {
		parts := strings.FieldsFunc(v, func(r rune) bool { return r < '0' || r > '9' })
		if i >= len(parts) {
			return 0
		}
		n, _ := strconv.Atoi(parts[i]) // digits only
		return n
	}
	if x, y := number(a, 0), number(b, 0); x != y {
		return x < y
	}
	return number(a, 1) < number(b, 1)
}

// memory looks whether what is for footage is there.
func (c *Config) memory(context.Context) Finding {
	const check = "memory"
	if c.Total == 0 {
		return unknown(check, "The system does not say how much memory it has.")
	}
	need := max(c.RAM-c.RAMUsed, 0)
	if c.Running == nil {
		need += runtimeRAM
	}
	said := fmt.Sprintf("%s of %s are available, and the agent takes up to %s for footage", size(c.Available), size(c.Total), size(c.RAM))
	if c.Available < need {
		least := max(c.Available-runtimeRAM, 4<<20) + c.RAMUsed
		return bad(check, said+", which is more than there is.", fmt.Sprintf("End other programs, or set ram to %dMiB or less.", least>>20))
	}
	return good(check, "%s.", said)
}

const (
	// testPiece is written and synced testPieces times: 1 MiB in all, which flash
	// does not feel, in transactions as large as the spool's least.
	testPiece  = 256 << 10
	testPieces = 4
	// leastSpeed is four cameras of 1 Mbit/s, bytes a second.
	leastSpeed = 500_000

	tmpfs = 0x01021994
	ramfs = 0x858458f6
)

// flash looks at the file system that footage is put on.
func (c *Config) flash(ctx context.Context) Finding {
	const check = "flash"
	dir, what := c.Spool, "footage"
	if !c.Flash {
		dir, what = c.Dir, "the agent's small state"
	}
	dir = existing(dir)
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return bad(check, fmt.Sprintf("%s, where %s goes, cannot be looked at: %v.", dir, what, err), "Check that the directory is there and that its flash is mounted.")
	}
	free := int64(st.Bavail * uint64(st.Bsize))
	kept := used(c.Spool) // gives way to what comes
	if kind := uint32(st.Type); c.Flash && (kind == tmpfs || kind == ramfs) {
		return bad(check, fmt.Sprintf("%s is in memory, not on flash: what is put there takes from the memory and is gone with the power.", dir),
			"Set spool to a directory on flash, or flash to none.")
	}
	if c.Flash && float64(free+kept)*c.FlashShare < float64(c.LeastFlash) {
		return bad(check, fmt.Sprintf("%s has %s free, of which footage may use the share %g: less than the %s that are of use.", dir, size(free), c.FlashShare, size(c.LeastFlash)),
			"Make room there, set spool to a directory with more, or flash to none.")
	}
	speed, slowest, err := c.write(ctx, dir)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return bad(check, fmt.Sprintf("Writing %s to %s takes longer than %s.", size(testPieces*testPiece), dir, span(checkTime)), "Replace the flash memory: it is worn out, or much too slow; until then set flash to none.")
	case errors.Is(err, syscall.EROFS):
		return bad(check, fmt.Sprintf("%s is read-only, as file systems get when their flash fails.", dir), "Mount it writable; if it becomes read-only again, replace the flash memory.")
	case errors.Is(err, fs.ErrPermission):
		return bad(check, fmt.Sprintf("The user of this command may not write to %s.", dir), "Run this command as the agent's user; if that is this one, give it the directory.")
	case errors.Is(err, syscall.ENOSPC):
		return bad(check, fmt.Sprintf("%s is full.", dir), "Make room there.")
	case err != nil:
		return bad(check, fmt.Sprintf("Writing to %s fails: %v.", dir, err), "Check the flash memory; if it stays so, replace it.")
	case c.Flash && speed < leastSpeed:
		return bad(check, fmt.Sprintf("%s takes %s a second, which is less than a few cameras bring.", dir, size(speed)), "Use faster flash memory, or set flash to none.")
	}
	return good(check, "%s, where %s goes, has %s free and takes %s a second, %d ms for the slowest write.", dir, what, size(free), size(speed), slowest.Milliseconds())
}

// existing is the nearest directory above that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return dir
		}
		dir = up // it is made when it is needed
	}
}

// used is what the files of a directory hold, bytes.
func used(dir string) int64 {
	var sum int64
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0 // it is not there yet
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
	}
	return sum
}

// write measures how fast dir takes what is synced piece by piece, bytes a
// second. A write that hangs cannot be given up: then its goroutine goes on after
// the check, until the kernel gives up.
func (c *Config) write(ctx context.Context, dir string) (speed int64, slowest time.Duration, err error) {
	type result struct {
		speed   int64
		slowest time.Duration
		err     error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		r.speed, r.slowest, r.err = write(ctx, dir)
		done <- r
	}()
	select {
	case r := <-done:
		return r.speed, r.slowest, r.err
	case <-ctx.Done():
		return 0, 0, context.DeadlineExceeded
	}
}

func write(ctx context.Context, dir string) (speed int64, slowest time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	os.Remove(f.Name()) // it has its blocks until it is closed, and cannot be left behind
	piece := make([]byte, testPiece)
	for i := range piece {
		piece[i] = byte(i * i >> 8) // file systems that compress must not win by it
	}
	began := time.Now()
	for range testPieces {
		if ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
		at := time.Now()
		if _, err := f.Write(piece); err != nil {
			return 0, 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, 0, err
		}
		slowest = max(slowest, time.Since(at))
	}
	return int64(testPieces * testPiece / max(time.Since(began), time.Microsecond).Seconds()), slowest, nil
}

// size is bytes for people.
func size(n int64) string {
	switch {
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// span is a duration for people.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d < 2*365*24*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
	return fmt.Sprintf("%d years", d/(365*24*time.Hour))
}
