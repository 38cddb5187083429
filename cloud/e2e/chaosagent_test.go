package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/pkg/vms"
)

// chaosAgentKilled: the agent dies again and again, at any moment, some of the
// time without an uplink. What is missing was only in its RAM, and is declared.
func chaosAgentKilled(t *testing.T) *audit {
	r := newRig(t, rigOptions{size: "640x360", stackOptions: stackOptions{agentArgs: []string{"-ram", "1048576"}}})
	const longest = 4 * time.Second // between two kills
	const inRAM = 8 * time.Second   // of footage fit there
	kills, outages, outage := times(200, 8), 0, span(15*time.Second, time.Second)
	flash := int64(0)
	for i := range kills {
		r.lasts(200*time.Millisecond + time.Duration(r.rand.Int64N(int64(longest))))
		switch i % 8 {
		case 4:
			r.link.Cut()
			r.lasts(outage)
			outages++
			flash = max(flash, r.spooled())
		case 6:
			r.link.Restore()
		}
		r.agent.kill()
		r.agent.start()
	}
	r.flows()
	r.lasts(3 * time.Second)
	a := r.finish(2*time.Minute, []vms.Cause{vms.CauseAgentRestarted, vms.CauseBufferFull})
	// With an uplink there is a second or so in RAM that no worker has; without
	// one what fits there, and what two more agents that are killed soon capture.
	bound := time.Duration(kills)*1500*time.Millisecond + time.Duration(outages)*(min(outage, inRAM)+2*longest)
	if a.lost > bound {
		t.Errorf("%v of pictures are missing after %d kills, %d of them after %v without an uplink; want less than %v", a.lost, kills, outages, outage, bound)
	}
	if outage > inRAM && flash == 0 {
		t.Error("nothing was ever on flash")
	}
	return a
}

// chaosAgentEnded: the hub is shut down in order while it cannot reach the
// cloud, and nothing is lost.
func chaosAgentEnded(t *testing.T) *audit {
	r := newRig(t, rigOptions{})
	r.link.Cut()
	r.lasts(span(time.Minute, 8*time.Second))
	r.quiet() // what the camera sends while the agent ends would be a matter of luck
	r.endAgent()
	r.lasts(span(20*time.Second, 2*time.Second))
	r.agent.start()
	r.cam.Thaw()
	r.lasts(span(20*time.Second, 3*time.Second))
	r.link.Restore()
	r.flows()
	r.lasts(3 * time.Second)
	a := r.finish(time.Minute, []vms.Cause{vms.CauseAgentRestarted})
	if a.declared > 0 {
		t.Errorf("%d units are missing, want none", a.declared)
	}
	return a
}

// chaosAgentEndedHalfOpen: the hub is shut down in order while packets vanish
// and nobody is told: at first it does not know yet, then it has tried again for
// long. It ends in time, with all that is not durable on flash.
func chaosAgentEndedHalfOpen(t *testing.T) *audit {
	r := newRig(t, rigOptions{size: "640x360"})
	for _, stalled := range []time.Duration{2 * time.Second, span(2*time.Minute, 20*time.Second)} {
		r.lasts(3 * time.Second)
		r.link.Stall()
		r.lasts(stalled)
		r.quiet()
		held, ok := r.peek()
		if !ok || held.HeldChunks == 0 {
			t.Errorf("the agent holds nothing: %+v", held)
		}
		r.endAgent()
		if n := r.chunksOnFlash(); n < held.HeldChunks {
			t.Errorf("%d chunks are on flash, of %d that were not durable", n, held.HeldChunks)
		}
		r.link.CutOnce() // what was under way never arrives
		r.link.Resume()
		r.agent.start()
		r.cam.Thaw()
		r.flows()
	}
	r.lasts(3 * time.Second)
	a := r.finish(time.Minute, []vms.Cause{vms.CauseAgentRestarted})
	if a.declared > 0 {
		t.Errorf("%d units are missing, want none", a.declared)
	}
	return a
}

// chunksOnFlash reads how many chunks an agent that has ended left behind.
func (r *rig) chunksOnFlash() int {
	r.t.Helper()
	if _, err := os.Stat(r.spoolDir()); os.IsNotExist(err) {
		return 0
	}
	dir := r.t.TempDir() // opening files of the spool may change them
	if err := os.CopyFS(dir, os.DirFS(r.spoolDir())); err != nil {
		r.t.Fatal(err)
	}
	private(r.t, dir)
	store, err := spool.Open(spool.Config{RAM: 1 << 20, Dir: dir})
	if err != nil {
		r.t.Fatal(err)
	}
	defer store.Close()
	return store.Spool(r.ch).Stats().Chunks
}

// chaosTwoAgents: a copy of the hub's disk runs elsewhere. It is refused, and
// the hub is not disturbed.
func chaosTwoAgents(t *testing.T) *audit {
	r := newRig(t, rigOptions{})
	r.eventually(30*time.Second, "a recording is there", func() bool { return len(r.timeline(r.ch).Recordings) > 0 })
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(r.hubDir)); err != nil {
		t.Fatal(err)
	}
	private(t, dir)
	address := freePort(t)
	second := startProgram(t, "vms-agent", nil, "-data", dir, "-listen", address)
	other := *r.stack
	other.agentURL = "http://" + address
	var status struct {
		Control string `json:"control"`
		Problem string `json:"control_problem"`
	}
	r.eventually(20*time.Second, "the second agent says that it is refused", func() bool {
		return request("GET", other.agentURL+"/v1/status", r.lanKey, nil, &status) == nil && status.Control == "offline" && status.Problem != ""
	})
	t.Logf("the second agent says: %s", status.Problem)
	// What it was told when it was copied it begins to do; then it leaves the camera.
	other.eventually(10*time.Second, "the second agent leaves the camera", func() bool {
		list, err := other.tryStreams()
		return err == nil && !slices.ContainsFunc(list, func(s agentStream) bool { return !s.Delivering })
	})
	for end := time.Now().Add(span(time.Minute, 8*time.Second)); time.Now().Before(end); r.lasts(time.Second) {
		if list, err := other.tryStreams(); err != nil || slices.ContainsFunc(list, func(s agentStream) bool { return !s.Delivering }) {
			t.Errorf("the second agent runs %+v, %v", list, err)
		}
		if !r.online() {
			t.Error("the hub is offline")
		}
	}
	second.kill()
	r.lasts(3 * time.Second)
	return r.finish(time.Minute, nil)
}

// private gives a copy of the hub's directory the rights of the original.
func private(t testing.TB, dir string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if info.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// spoolFiles lists the files with footage on the hub's flash.
func (r *rig) spoolFiles() (paths []string, bytes int64) {
	err := filepath.Walk(r.spoolDir(), func(path string, info os.FileInfo, err error) error {
		switch {
		case os.IsNotExist(err):
			return nil // it is removed at this moment, or was never made
		case err != nil:
			return err
		}
		if !info.IsDir() && strings.HasSuffix(path, ".db") {
			paths, bytes = append(paths, path), bytes+info.Size()
		}
		return nil
	})
	if err != nil {
		r.t.Error(err)
	}
	return paths, bytes
}

func (r *rig) spoolDir() string {
	for i, a := range r.agentArgs {
		if a == "-spool" {
			return r.agentArgs[i+1]
		}
	}
	return filepath.Join(r.hubDir, "spool")
}

// spooled is how many bytes of files with footage are on the hub's flash.
func (r *rig) spooled() int64 {
	_, n := r.spoolFiles()
	return n
}
