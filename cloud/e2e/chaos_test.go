package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest/chaos"
)

// TestChaos is the matrix of what goes wrong in the field. Each fault has a
// cloud, an agent and a camera of its own, all real; afterwards every access
// unit that the camera sent is in the recordings, once and unaltered, or in a
// gap that says why it is missing. CHAOS=full lets the faults last as long as
// in the field.
func TestChaos(t *testing.T) {
	for _, s := range []struct {
		name string
		run  func(t *testing.T) *audit
	}{
		{"uplink_cut", chaosUplinkCut},
		{"flapping", chaosFlapping},
		{"half_open", chaosHalfOpen},
		{"slow_64kbit", chaosSlowLink},
		{"cloud_killed", chaosCloudKilled},
		{"nvr_down", chaosNVRDown},
		{"camera_reboot", chaosCameraReboot},
		{"chunk_refused", chaosChunkRefused},
		{"store_down", chaosStoreDown},
		{"dead_store", chaosDeadStore},
		{"fifo_bottleneck", chaosBottleneck},
		{"agent_killed", chaosAgentKilled},
		{"agent_ended_offline", chaosAgentEnded},
		{"agent_ended_half_open", chaosAgentEndedHalfOpen},
		{"two_agents", chaosTwoAgents},
		{"spool_truncated", chaosSpoolTruncated},
		{"spool_bit_flipped", chaosSpoolFlipped},
		{"flash_full", chaosFlashFull},
		{"flash_budget", chaosFlashBudget},
		{"flash_read_only", chaosFlashReadOnly},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			if a := s.run(t); a != nil {
				report(t, s.name, a)
			}
		})
	}
}

// chaosUplinkCut: the uplink is away for much longer than the RAM lasts.
func chaosUplinkCut(t *testing.T) *audit {
	r := newRig(t, rigOptions{size: "640x360", stackOptions: stackOptions{agentArgs: []string{"-ram", "1048576"}}})
	view := r.watch(t, r.ch, r.book)
	r.lasts(5 * time.Second)
	r.link.Cut()
	r.lasts(span(10*time.Minute, 15*time.Second))
	if n := r.spooled(); n == 0 {
		t.Error("nothing is on flash, though the RAM is too small")
	}
	r.link.Restore()
	back := time.Now()
	r.eventually(time.Minute, "the live picture is back", func() bool { _, ok := view.back(back); return ok })
	d, _ := view.back(back)
	fmt.Printf("figure live_back_after_cut_ms %d ms\n", d.Milliseconds())
	r.caughtUp(3 * time.Minute)
	return r.finish(2*time.Minute, nil)
}

// chaosFlapping: the uplink goes and comes every three seconds.
func chaosFlapping(t *testing.T) *audit {
	r := newRig(t, rigOptions{})
	for end := time.Now().Add(span(3*time.Minute, 15*time.Second)); time.Now().Before(end); {
		r.lasts(3 * time.Second)
		r.link.Cut()
		r.lasts(3 * time.Second)
		r.link.Restore()
	}
	r.caughtUp(2 * time.Minute)
	return r.finish(time.Minute, nil)
}

// chaosHalfOpen: packets vanish, and nobody is told.
func chaosHalfOpen(t *testing.T) *audit {
	r := newRig(t, rigOptions{})
	r.link.Stall()
	r.lasts(span(2*time.Minute, 20*time.Second))
	r.link.Resume()
	r.caughtUp(2 * time.Minute)
	return r.finish(time.Minute, nil)
}

// chaosSlowLink: for a while the link carries an eighth of what the camera sends.
func chaosSlowLink(t *testing.T) *audit {
	r := newRig(t, rigOptions{})
	r.link.SetRate(64_000 / 8)
	r.lasts(span(5*time.Minute, 15*time.Second))
	r.link.SetRate(0)
	r.caughtUp(2 * time.Minute)
	return r.finish(time.Minute, nil)
}

// chaosCloudKilled: NVR, worker and store die in the middle of recordings.
func chaosCloudKilled(t *testing.T) *audit {
	r := newRig(t, rigOptions{})
	for range times(12, 2) {
		r.lasts(time.Second + time.Duration(r.rand.Int64N(int64(span(14*time.Second, 4*time.Second)))))
		r.cloud.kill()
		r.lasts(time.Duration(r.rand.Int64N(int64(span(8*time.Second, time.Second)))))
		r.cloud.start()
	}
	r.caughtUp(2 * time.Minute)
	return r.finish(time.Minute, nil)
}

// chaosNVRDown: the NVR is away while a worker takes the stream: it goes on, also
// over a connection that breaks meanwhile.
func chaosNVRDown(t *testing.T) *audit {
	r := newRig(t, rigOptions{})
	r.eventually(30*time.Second, "a recording is there", func() bool { return len(r.timeline(r.ch).Recordings) > 0 })
	r.link.CutPath("/session/")
	before := len(r.timeline(r.ch).Recordings)
	d := span(5*time.Minute, 16*time.Second)
	r.lasts(d / 2)
	r.link.CutOnce()
	r.lasts(d - d/2)
	if n := len(r.timeline(r.ch).Recordings) - before; n < int(d/r.recording)-2 {
		t.Errorf("%d recordings of %v were stored within %v without the NVR", n, r.recording, d)
	}
	r.link.Restore()
	return r.finish(time.Minute, nil)
}

// chaosCameraReboot: the camera loses power and comes back; only its own
// absence is missing.
func chaosCameraReboot(t *testing.T) *audit {
	r := newRig(t, rigOptions{})
	for range times(5, 1) {
		r.lasts(span(10*time.Second, 4*time.Second))
		r.cam.PowerOff()
		r.lasts(span(20*time.Second, 3*time.Second))
		if err := r.cam.PowerOn(); err != nil {
			t.Fatal(err)
		}
		n := r.cam.Plays()
		r.eventually(time.Minute, "the agent is back at the camera", func() bool { return r.cam.Plays() > n })
	}
	r.lasts(5 * time.Second)
	return r.finish(time.Minute, []vms.Cause{vms.CauseCameraOffline})
}

// chaosChunkRefused: a chunk arrives damaged; the worker refuses it, and all but
// its GOP is recorded.
func chaosChunkRefused(t *testing.T) *audit {
	r := newRig(t, rigOptions{})
	for i := range times(10, 1) {
		r.lasts(5 * time.Second)
		r.link.Damage(4000)
		r.eventually(10*time.Second, "a chunk is damaged", func() bool { return r.link.Damaged() > i })
	}
	r.lasts(5 * time.Second)
	a := r.finish(time.Minute, []vms.Cause{vms.CauseRejected})
	if a.declared == 0 || a.lost > time.Duration(r.link.Damaged())*2*time.Second {
		t.Errorf("%v missing, want a GOP for each chunk refused", a.lost)
	}
	return a
}

// chaosStoreDown: the object store is away; nothing is lost, and nothing is
// called durable meanwhile.
func chaosStoreDown(t *testing.T) *audit {
	env := []string{"VMS_S3_ACCESS_KEY=chaos-access", "VMS_S3_SECRET_KEY=chaos-secret-of-the-test"}
	address := freePort(t)
	startProgram(t, "objectstore", env, "-dir", t.TempDir(), "-listen", address, "-bucket", "chaos").line("listening ", 20*time.Second)
	way := chaos.New(t, address)
	r := newRig(t, rigOptions{stackOptions: stackOptions{
		cloudArgs: []string{"-s3-url", "http://" + way.Addr(), "-s3-bucket", "chaos"}, cloudEnv: env,
	}})
	r.eventually(30*time.Second, "a recording is stored", func() bool { return len(r.timeline(r.ch).Recordings) > 0 })
	way.Cut()
	r.lasts(span(5*time.Minute, 15*time.Second))
	way.Restore()
	r.caughtUp(2 * time.Minute)
	return r.finish(time.Minute, nil)
}

// chaosBottleneck: all connections share a line of one and a half times what
// the camera sends, also while an outage is made up for.
func chaosBottleneck(t *testing.T) *audit {
	r := newRig(t, rigOptions{})
	view := r.watch(t, r.ch, r.book)
	before, since := r.book.sentBytes(), time.Now()
	r.lasts(4 * time.Second)
	rate := float64(r.book.sentBytes()-before) / time.Since(since).Seconds()
	r.link.SetUpRate(int64(1.5 * rate))
	r.lasts(span(30*time.Second, 2*time.Second))
	r.link.Cut()
	r.lasts(span(time.Minute, 13*time.Second))
	r.link.Restore()
	back := time.Now()
	r.eventually(time.Minute, "the live picture is back", func() bool { _, ok := view.back(back); return ok })
	d, _ := view.back(back)
	from := back.Add(d)
	r.lasts(12 * time.Second)
	if fullChaos {
		r.caughtUp(10 * time.Minute)
	}
	until := time.Now()
	r.link.SetUpRate(0)
	lags := view.between(from, until)
	fmt.Printf("figure live_back_behind_bottleneck_ms %d ms\n", d.Milliseconds())
	fmt.Printf("figure live_lag_behind_bottleneck_ms %d ms (median %d, worst %d, of %d pictures)\n",
		percentile(lags, 95).Milliseconds(), percentile(lags, 50).Milliseconds(), percentile(lags, 100).Milliseconds(), len(lags))
	return r.finish(2*time.Minute, nil)
}
