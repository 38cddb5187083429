package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// offline is a rig whose uplink was cut until there is footage on flash, and
// whose agent was then ended in order: all that it holds is in those files.
func offline(t *testing.T, extra ...string) *rig {
	t.Helper()
	r := newRig(t, rigOptions{size: "640x360", stackOptions: stackOptions{agentArgs: append([]string{"-ram", "1048576"}, extra...)}})
	r.lasts(3 * time.Second)
	r.link.Cut()
	r.lasts(span(8*time.Minute, 12*time.Second)) // files are closed at 32 MiB: two, and one that is open
	r.quiet()
	r.endAgent()
	if files, n := r.spoolFiles(); len(files) < times(2, 1) {
		t.Fatalf("%d files with %d bytes on flash", len(files), n)
	}
	return r
}

// revive starts the agent and brings everything back.
func (r *rig) revive() {
	r.agent.start()
	r.cam.Thaw()
	r.link.Restore()
	r.flows()
	r.lasts(2 * time.Second)
}

// chaosSpoolTruncated: a file lost its end. Its range is a gap, all else is brought.
func chaosSpoolTruncated(t *testing.T) *audit {
	r := offline(t)
	files, _ := r.spoolFiles()
	info, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(files[0], info.Size()*2/5); err != nil {
		t.Fatal(err)
	}
	r.revive()
	a := r.finish(3*time.Minute, []vms.Cause{vms.CauseStorageFailed, vms.CauseAgentRestarted})
	if a.declared == 0 || a.causes[vms.CauseStorageFailed] == 0 {
		t.Error("nothing is missing after the file was cut")
	}
	return a
}

// chaosSpoolFlipped: single bits of footage changed on flash. Each costs its GOP
// and no more.
func chaosSpoolFlipped(t *testing.T) *audit {
	r := offline(t)
	files, _ := r.spoolFiles()
	flips := 0
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var pictures []int // where they begin
		for from := 0; ; {
			i := bytes.Index(data[from:], []byte("vms-camtest-unit"))
			if i < 0 {
				break
			}
			pictures = append(pictures, from+i)
			from += i + 1
		}
		for range min(2, len(pictures)) {
			data[pictures[r.rand.IntN(len(pictures))]+40] ^= 0x10
			flips++
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.revive()
	a := r.finish(3*time.Minute, []vms.Cause{vms.CauseStorageFailed, vms.CauseAgentRestarted})
	if flips == 0 || a.declared == 0 || a.lost > time.Duration(flips)*2*time.Second {
		t.Errorf("%v missing after %d flips, want a GOP of a second for each", a.lost, flips)
	}
	return a
}

// chaosFlashFull: somebody else fills the flash while the uplink is away.
func chaosFlashFull(t *testing.T) *audit {
	dir := mount(t, "16m")
	r := newRig(t, rigOptions{size: "640x360", stackOptions: stackOptions{agentArgs: []string{"-ram", "1048576", "-spool", dir}}})
	r.lasts(2 * time.Second)
	cut := time.Now()
	r.link.Cut()
	r.eventually(30*time.Second, "there is footage on flash", func() bool { return r.spooled() > 0 })
	fill(t, filepath.Join(dir, "other"))
	r.lasts(span(3*time.Minute, 15*time.Second))
	return r.oldestGone(cut, 0)
}

// chaosFlashBudget: the outage is longer than what the hub may use of its flash.
func chaosFlashBudget(t *testing.T) *audit {
	args := []string{"-ram", "1048576"}
	if fullChaos {
		args = append(args, "-flash", strconv.Itoa(16<<20))
	} else {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(t.TempDir(), &fs); err != nil {
			t.Fatal(err)
		}
		free := float64(fs.Bavail) * float64(fs.Bsize)
		args = append(args, "-flash-share", strconv.FormatFloat((1<<20)/free, 'g', -1, 64))
	}
	r := newRig(t, rigOptions{size: "640x360", stackOptions: stackOptions{agentArgs: args}})
	r.lasts(2 * time.Second)
	cut := time.Now()
	r.link.Cut()
	r.lasts(span(5*time.Minute, 25*time.Second))
	if n := r.spooled(); n == 0 || n > int64(times(17<<20, 3<<20)) {
		t.Errorf("%d bytes on flash", n)
	}
	// A file goes whole, also when its oldest GOP is being sent.
	return r.oldestGone(cut, 1)
}

// oldestGone ends an outage that began at cut, in which there was room for a
// part of the footage only: the newest is there, what is missing are whole
// GOPs, but for so many, and declared.
func (r *rig) oldestGone(cut time.Time, mayTear int) *audit {
	r.t.Helper()
	dialled := r.link.Requests("/push/")
	r.link.Restore()
	r.eventually(time.Minute, "a lane is back", func() bool { return r.link.Requests("/push/") > dialled })
	newest := time.Now().Add(-2 * time.Second)
	r.caughtUp(2 * time.Minute)
	a := r.finish(time.Minute, []vms.Cause{vms.CauseBufferFull})
	if a.declared == 0 {
		r.t.Error("nothing is missing though not everything fitted")
	}
	// A worker has the beginning of the GOP that was under way when the link was cut.
	torn := slices.DeleteFunc(a.torn, func(u *unit) bool { return u.at.Sub(cut).Abs() < 2*time.Second })
	if len(torn) > mayTear {
		r.t.Errorf("GOPs are recorded in part: %v are missing, the pictures before them are not", torn)
	}
	if end := a.lastGap; end.After(newest) {
		r.t.Errorf("footage of %s is missing, though it was new when the hub was back", end.Format(clockLayout))
	}
	return a
}

// chaosFlashReadOnly: after a reboot the flash can only be read, as worn out
// chips end. What is on it is brought; from then on RAM is all there is.
func chaosFlashReadOnly(t *testing.T) *audit {
	dir := mount(t, "256m")
	r := offline(t, "-spool", dir)
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	r.agent.start()
	r.cam.Thaw()
	r.link.Restore()
	r.flows()
	r.caughtUp(2 * time.Minute)
	r.link.Cut()
	r.lasts(span(time.Minute, 12*time.Second))
	r.link.Restore()
	return r.finish(2*time.Minute, []vms.Cause{vms.CauseBufferFull, vms.CauseAgentRestarted})
}

// mount makes a small flash of its own, which only root can.
func mount(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=700"); err != nil {
		t.Skipf("cannot mount a file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill writes a file until no byte fits beside it any more.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int{64 << 10, 4 << 10} {
		block := make([]byte, n)
		for err == nil {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
}
