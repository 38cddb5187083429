package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/agent/state"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

// startOne starts the stub's channel from a camera and waits until so many
// chunks are held.
func (h *hub) startOne(c *cloudStub, cam *camtest.Camera, chunks int) lan.Stream {
	h.t.Helper()
	if code, body := h.start(c.token(h.t, nil), cam.Camera()); code != 201 {
		h.t.Fatalf("start: %d %s", code, body)
	}
	return h.until("footage is held", func(s lan.Stream) bool { return s.HeldChunks >= chunks && !s.CapturedUntil.IsZero() })
}

func (h *hub) stopOne(id vms.StreamID) {
	h.t.Helper()
	if code, body := h.call("DELETE", "/v1/streams/"+string(id), nil); code != 204 {
		h.t.Fatalf("stop: %d %s", code, body)
	}
}

// kept reads which channels the hub would bring footage of after a restart.
func kept(t *testing.T, dir string) []vms.ChannelID {
	t.Helper()
	st, err := state.Open(filepath.Join(dir, stateName))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	all, err := st.Streams()
	if err != nil {
		t.Fatal(err)
	}
	var out []vms.ChannelID
	for ch := range all {
		out = append(out, ch)
	}
	return out
}

// wantWhole proves that a worker took one unbroken run from chunk 1 on per epoch.
func wantWhole(t *testing.T, got []vms.ChunkRange, epochs int) {
	t.Helper()
	if len(got) != epochs {
		t.Errorf("the worker has %v, want %d unbroken runs", got, epochs)
	}
	for _, r := range got {
		if r.First != 1 {
			t.Errorf("the worker has %v, without its beginning", r)
		}
	}
}

// TestStoppedStreamIsDelivered for as long as it takes, without its camera, and
// then leaves the list.
func TestStoppedStreamIsDelivered(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	c.worker.there.Store(true) // it takes, and stores nothing yet
	cam := camtest.Start(t, camtest.Options{Loop: true})
	h := runHub(t, c)
	s := h.startOne(c, cam, 5)
	h.stopOne(s.ID)
	h.until("stopped and delivering", func(s lan.Stream) bool { return s.State == wire.StateStopped && s.Delivering })
	h.until("all of it is sent", func(s lan.Stream) bool {
		return !s.ReceivedUntil.IsZero() && s.ReceivedUntil.Equal(s.CapturedUntil) && s.Delivering && s.HeldChunks >= 5 && s.HeldBytes > 0
	})
	if got := kept(t, h.a.cfg.Dir); !slices.Equal(got, []vms.ChannelID{"ch_1"}) {
		t.Errorf("kept %v", got)
	}
	h.poll(func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.Contains(c.states, wire.StateStopped)
	}, func() { t.Fatal("the NVR did not hear of the stop while the rest is brought") })
	c.worker.store.Store(true)
	c.conns.cut() // the acknowledgement comes with the next connection
	h.empty()
	wantWhole(t, c.worker.chunks(), 1)
	if got := kept(t, h.a.cfg.Dir); len(got) != 0 {
		t.Errorf("kept %v after all was delivered", got)
	}
}

// TestStartTakesOverFromDelivery at once: nothing of what is still held is in
// the way, and nothing of it is lost.
func TestStartTakesOverFromDelivery(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	cam := camtest.Start(t, camtest.Options{Loop: true})
	h := runHub(t, c)
	first := h.startOne(c, cam, 5)
	h.stopOne(first.ID)
	h.until("delivering", func(s lan.Stream) bool { return s.Delivering })
	began := time.Now()
	if code, body := h.start(c.token(t, nil), cam.Camera()); code != 201 {
		t.Fatalf("start: %d %s", code, body)
	}
	h.until("the camera is there again", func(s lan.Stream) bool { return s.ID != first.ID && !s.Delivering && s.Frames > 0 })
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the new start took %v", d)
	}
	h.until("footage of both runs", func(s lan.Stream) bool { return s.HeldChunks > first.HeldChunks+5 })
	c.worker.there.Store(true)
	c.worker.store.Store(true)
	c.conns.cut() // the NVR says to new sessions that it has a worker
	h.until("both runs are stored", func(s lan.Stream) bool { return s.DurableUntil.After(began) && s.State == wire.StateStreaming })
	second := h.streams()[0]
	h.stopOne(second.ID)
	h.empty()
	wantWhole(t, c.worker.chunks(), 2)
}

// TestDeliveryAfterRestart: what was on flash when the agent ended is brought by
// the next one without being asked.
func TestDeliveryAfterRestart(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	cam := camtest.Start(t, camtest.Options{Loop: true})
	cfg := Config{Dir: enrolled(t, c)}
	h := runHubWith(t, cfg)
	s := h.startOne(c, cam, 10)
	h.stopOne(s.ID)
	began := time.Now()
	h.stop()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the agent took %v to end", d)
	}
	if got := kept(t, cfg.Dir); !slices.Equal(got, []vms.ChannelID{"ch_1"}) {
		t.Fatalf("kept %v", got)
	}
	cam.PowerOff() // the next agent must not want it

	h = runHubWith(t, cfg)
	h.until("it is listed", func(got lan.Stream) bool {
		return got.Channel == "ch_1" && got.Origin == "spool" && got.Delivering && got.State == wire.StateStopped &&
			got.HeldChunks >= s.HeldChunks && got.FlashBytes > 0 && got.Camera == "" && got.HeldUntil.After(got.HeldFrom)
	})
	h.stop()       // once more, with nothing new
	cfg.Flash = -1 // it is switched off: what is there is brought all the same
	h = runHubWith(t, cfg)
	c.worker.there.Store(true)
	c.conns.cut()
	h.poll(func() bool {
		c.worker.mu.Lock()
		defer c.worker.mu.Unlock()
		return len(c.worker.ends) > 0
	}, func() { t.Fatal("nobody said that nothing follows: the worker cannot complete the recording") })
	c.worker.store.Store(true)
	c.conns.cut()
	h.empty()
	got := c.worker.chunks()
	wantWhole(t, got, 1)
	if len(got) == 1 && got[0].Last < uint64(s.HeldChunks) {
		t.Errorf("the worker has %v of %d chunks", got, s.HeldChunks)
	}
	if got := kept(t, cfg.Dir); len(got) != 0 {
		t.Errorf("kept %v after all was delivered", got)
	}
	h.stop()
	if files, err := filepath.Glob(filepath.Join(cfg.Dir, "spool", "*", "*.db")); err != nil || len(files) != 0 {
		t.Errorf("%v left on flash, %v", files, err)
	}
}

// TestRefusedDeliveryKeepsTheFootage, and says who refused.
func TestRefusedDeliveryKeepsTheFootage(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	cam := camtest.Start(t, camtest.Options{Loop: true})
	cfg := Config{Dir: enrolled(t, c)}
	h := runHubWith(t, cfg)
	s := h.startOne(c, cam, 5)
	h.stopOne(s.ID)
	held := s.HeldChunks
	h.stop()
	c.refuse, c.status = wire.ProblemRevoked, 410
	h = runHubWith(t, cfg)
	h.until("refused", func(s lan.Stream) bool {
		return s.State == wire.StateRefused && strings.Contains(s.Problem, "The test says no.") && !s.Delivering && s.HeldChunks >= held
	})
	c.refuse = ""
	c.worker.there.Store(true)
	c.worker.store.Store(true)
	if code, body := h.start(c.token(t, nil), cam.Camera()); code != 201 {
		t.Fatalf("start: %d %s", code, body)
	}
	s = h.until("a new start brings it", func(s lan.Stream) bool { return s.Frames > 0 && s.FlashBytes == 0 })
	h.stopOne(s.ID)
	h.empty()
	wantWhole(t, c.worker.chunks(), 2)
}

// TestGapsOutliveARestart: what was declared offline reaches the NVR from the
// next run of the agent.
func TestGapsOutliveARestart(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	cam := camtest.Start(t, camtest.Options{Loop: true})
	cfg := Config{Dir: enrolled(t, c), RAM: 100 << 10, Flash: -1, Drain: 10 * time.Millisecond}
	h := runHubWith(t, cfg)
	c.mute.Store(true) // it commits nothing
	s := h.startOne(c, cam, 1)
	h.until("chunks were dropped", func(s lan.Stream) bool { return s.DroppedChunks > 0 && s.OpenGaps > 0 })
	h.stopOne(s.ID)
	h.stop()
	c.mute.Store(false)
	c.mu.Lock()
	c.gaps = nil
	c.mu.Unlock()
	if got := kept(t, cfg.Dir); !slices.Equal(got, []vms.ChannelID{"ch_1"}) {
		t.Fatalf("kept %v", got)
	}
	h = runHubWith(t, cfg)
	h.empty() // the list is there before the API is
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.gaps) == 0 || c.gaps[0].Cause != vms.CauseBufferFull {
		t.Errorf("the NVR heard of the gaps %+v", c.gaps)
	}
}

func TestFiguresComeAndGo(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	c.worker.there.Store(true)
	cam := camtest.Start(t, camtest.Options{Loop: true})
	h := runHub(t, c)
	s := h.startOne(c, cam, 5)
	h.until("it is taken", func(s lan.Stream) bool { return !s.ReceivedUntil.IsZero() })
	_, text := h.call("GET", "/metrics", nil)
	for _, want := range []string{
		`vms_agent_captured_until_seconds{channel="ch_1"} 1.`, `vms_agent_received_until_seconds{channel="ch_1"} 1.`,
		`vms_agent_stream_ram_bytes{channel="ch_1"}`, `vms_agent_camera_sessions_total{channel="ch_1"} 1`,
		"vms_agent_flash_written_bytes_total 0", "vms_agent_flash_life_days +Inf", "vms_agent_pressure 0", "vms_agent_sent_bytes_total",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if st := h.a.Status(); st.Flash == nil || st.Flash.Limit <= 0 || st.Flash.Endurance <= 0 || st.RAM.Used == 0 || st.RAM.Limit < leastRAM {
		t.Errorf("status %+v, flash %+v", st, st.Flash)
	}
	h.stopOne(s.ID)
	c.worker.store.Store(true)
	c.conns.cut()
	h.empty()
	if _, text := h.call("GET", "/metrics", nil); strings.Contains(text, "ch_1") {
		t.Errorf("series of a stream that is gone:\n%s", text)
	}
}

func TestLifeOfTheChip(t *testing.T) {
	const GB = 1_000_000_000
	for _, tt := range []struct {
		endurance, ever, today int64
		days                   float64
		words                  string
	}{
		{0, 0, 5, -1, "not known"},
		{1000 * GB, 0, 0, -1, "Nothing was written today"},
		{1000 * GB, 100 * GB, 10 * GB, 90, "90 more days"},
		{4000 * GB, 350 * GB, GB, 3650, "10 more years"},
		{4000 * GB, 0, GB / 1000, 4_000_000, "more than 100 years"},
		{GB, 2 * GB, GB, 0, "Replace it"},
	} {
		if days, words := lifeLeft(tt.endurance, tt.ever, tt.today); days != tt.days || !strings.Contains(words, tt.words) {
			t.Errorf("%d of %d, %d today: %v %q, want %v %q", tt.ever, tt.endurance, tt.today, days, words, tt.days, tt.words)
		}
	}
}

// TestReadOnlyFlashIsNoReasonNotToRecord.
func TestReadOnlyFlashIsNoReasonNotToRecord(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	dir := enrolled(t, c)
	// A file in the place of the folder can be told from a full or broken disk by root, too.
	if err := os.WriteFile(filepath.Join(dir, "spool"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{Dir: dir, Log: vmstest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	if f := a.Status().Flash; f == nil || f.Problem == "" {
		t.Errorf("flash %+v", f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Run(ctx); err != nil {
		t.Errorf("Run = %v", err)
	}
}
