package stream

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/agent/camera"
	"github.com/zipato/vms/agent/hubclock"
	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

func newStream(t *testing.T) (*Stream, *spool.Spool) {
	s, sp, _ := newStreamOf(t, 1<<20, func(*Config) {})
	return s, sp
}

func newStreamOf(t *testing.T, ram int64, set func(*Config)) (*Stream, *spool.Spool, *spool.Store) {
	store, err := spool.Open(spool.Config{RAM: ram, Log: vmstest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	sp := store.Spool("ch_1")
	cfg := Config{
		ID: "str_1", Channel: "ch_1", SID: "sid_1", NVRURL: "ws://nvr.test/", Spool: sp, Clock: hubclock.New(hubclock.Config{}),
		Log: vmstest.Log(t), OnState: func(Status) {},
	}
	set(&cfg)
	s := New(cfg)
	s.mu.Lock()
	s.capturedUntil(s.cfg.Clock.Now())
	s.mu.Unlock()
	return s, sp, store
}

// give is a chunk of 200 ms that ends now by the hub's clock.
func give(s *Stream, e vms.Epoch, seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Clock.Now()
	s.chunk(vms.Chunk{Epoch: e, Seq: seq, Flags: vms.FlagKey, Start: now.Add(-200 * time.Millisecond), End: now})
}

// learn sets the hub's clock, from any error to that of the test's plus by.
func learn(s *Stream, by time.Duration) {
	now := time.Now()
	s.cfg.Clock.Learn(now, now, now.Add(by))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle() // as Run does
}

func TestAbsenceOfTheCameraIsAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, sp := newStream(t)
		learn(s, 30*365*24*time.Hour)
		give(s, s.epoch, 1)
		end := s.cfg.Clock.Now()
		time.Sleep(9 * time.Second)
		s.growAbsence()
		if g := sp.Gaps(10); len(g) != 0 {
			t.Errorf("gaps %v after 9 s", g)
		}
		time.Sleep(6 * time.Second)
		s.growAbsence()
		g := sp.Gaps(10)
		if len(g) != 1 || !g[0].Start.Equal(end) || g[0].Duration() != 15*time.Second || g[0].Cause != vms.CauseCameraOffline {
			t.Fatalf("gaps %v, want one of 15 s from %v", g, end)
		}
		time.Sleep(5 * time.Second)
		give(s, s.epoch, 2)
		sp.Resend()
		same := sp.Gaps(10)
		if len(same) != 1 || same[0].ID != g[0].ID || same[0].Duration() != 20*time.Second-200*time.Millisecond {
			t.Errorf("gaps %v, want the same one, up to the next chunk", same)
		}
		give(s, s.epoch, 3)
		time.Sleep(3 * time.Second)
		give(s, s.epoch, 4) // too short to be declared while it lasted
		if g := sp.Gaps(10); len(g) != 1 || g[0].Duration() != 3*time.Second-200*time.Millisecond {
			t.Errorf("gaps %v, want one of 2.8 s", g)
		}
	})
}

// TestSettingTheClockIsNoAbsence: a hub that boots in 1970 and learns the time
// after its first chunk, or before it, was not away for half a century.
func TestSettingTheClockIsNoAbsence(t *testing.T) {
	for name, before := range map[string]int{"before the first chunk": 0, "after some": 3} {
		for dir, by := range map[string]time.Duration{"forward": 30 * 365 * 24 * time.Hour, "back": 26 * 365 * 24 * time.Hour} {
			t.Run(name+" "+dir, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, sp := newStream(t)
					for i := range before {
						time.Sleep(200 * time.Millisecond)
						give(s, s.epoch, uint64(i)+1)
					}
					learn(s, by)
					s.growAbsence()
					time.Sleep(200 * time.Millisecond)
					give(s, s.epoch, uint64(before)+1)
					if g := sp.Gaps(10); len(g) != 0 {
						t.Errorf("gaps %v", g)
					}
					time.Sleep(20 * time.Second)
					s.growAbsence()
					if g := sp.Gaps(10); len(g) != 1 || g[0].Duration() != 20*time.Second {
						t.Errorf("gaps %v, want the 20 s in which nothing came", g)
					}
				})
			})
		}
	}
}

// TestLeavingAnAbsentCamera: its absence ends when nobody waits for it any
// longer, and is declared however short it was.
func TestLeavingAnAbsentCamera(t *testing.T) {
	for state, gaps := range map[string]int{wire.StateStreaming: 0, wire.StateNoCamera: 1} {
		synctest.Test(t, func(t *testing.T) {
			s, sp := newStream(t)
			learn(s, 30*365*24*time.Hour)
			give(s, s.epoch, 1)
			s.camState.State = state
			time.Sleep(5 * time.Second)
			s.leave()
			time.Sleep(time.Minute)
			s.growAbsence()
			g := sp.Gaps(10)
			if len(g) != gaps || gaps == 1 && g[0].Duration() != 5*time.Second {
				t.Errorf("%s: gaps %v, want %d of 5 s", state, g, gaps)
			}
			if want := time.Duration(gaps) * 5 * time.Second; s.Absent() != want {
				t.Errorf("%s: absent for %v, want %v", state, s.Absent(), want)
			}
		})
	}
}

// TestDeliveryOfNothingEnds, without a camera and without the NVR; and with a
// gap it waits until that is committed.
func TestDeliveryOfNothingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, sp := newStream(t)
		deliver := func() *Stream {
			return New(Config{
				ID: "str_2", Channel: "ch_1", SID: "sid_1", NVRURL: "no URL", Deliver: true, Spool: sp,
				Clock: hubclock.New(hubclock.Config{}), Log: vmstest.Log(t), OnState: func(Status) {},
			})
		}
		if err := deliver().Run(t.Context()); err != nil {
			t.Errorf("Run = %v", err)
		}
		now := time.Now()
		sp.Declare(vms.Gap{ID: "gap_1", Cause: vms.CauseCameraOffline, TimeRange: vms.TimeRange{Start: now.Add(-time.Minute), End: now}})
		s := deliver()
		done := make(chan error, 1)
		go func() { done <- s.Run(t.Context()) }()
		time.Sleep(time.Minute)
		select {
		case err := <-done:
			t.Fatalf("Run = %v with a gap that nobody committed", err)
		default:
		}
		if st := s.Status(); st.State != wire.StateStopped || !s.Delivering() {
			t.Errorf("status %+v", st)
		}
		sp.Gaps(10)
		s.message(&wire.Committed{IDs: []vms.GapID{"gap_1"}})
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestANewEpochEndsTheOldOne(t *testing.T) {
	s, sp := newStream(t)
	old := s.Epoch()
	give(s, old, 1)
	give(s, 7, 1)
	if s.Epoch() != 7 || s.hello().Epoch != 7 {
		t.Errorf("epoch %s, want the new one", s.Epoch())
	}
	cur := sp.Live("", nil)
	for _, want := range []string{"chunk", "end", "chunk"} {
		item, err := cur.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := map[bool]string{true: "end", false: "chunk"}[item.End != nil]; got != want {
			t.Errorf("%s handed out, want %s", got, want)
		}
		if item.End != nil && (item.End.Epoch != old || item.End.Seq != 1) {
			t.Errorf("end %+v", item.End)
		}
	}
}

func TestStateIsMadeOfThree(t *testing.T) {
	s, _ := newStream(t)
	camState := func(state string) func() { return func() { s.camState = camera.State{State: state, Problem: "p"} } }
	boom := errString("boom")
	for _, step := range []struct {
		f       func()
		state   string
		problem string
	}{
		{func() { s.sessErr = boom }, wire.StateStarting, "The NVR cannot be reached: boom"},
		{camState(wire.StateNoCamera), wire.StateNoCamera, "p"},
		{camState(wire.StateStreaming), wire.StateBuffering, "The NVR cannot be reached; the hub keeps the footage: boom"},
		{func() { s.sessErr = nil }, wire.StateBuffering, ""},
		{func() { s.laneUp = true }, wire.StateStreaming, ""},
		{func() { s.laneUp, s.laneErr = false, boom }, wire.StateBuffering, "The worker cannot be reached; the hub keeps the footage: boom"},
		{camState(wire.StateAuthFailed), wire.StateAuthFailed, "p"},
		{func() { s.delivering = true }, wire.StateStopped, "The worker cannot be reached; the hub keeps the footage: boom"},
		{func() { s.laneUp = true }, wire.StateStopped, ""},
		{func() { s.delivering = false }, wire.StateAuthFailed, "p"},
	} {
		s.change(step.f)
		if st := s.Status(); st.State != step.state || st.Problem != step.problem {
			t.Errorf("state %+v, want %s %q", st, step.state, step.problem)
		}
	}
	// What is too long to be sent is cut where a character ends.
	s.change(func() { s.camState = camera.State{State: wire.StateNoCamera, Problem: strings.Repeat("ä", 800) + "x"} })
	st := s.Status()
	if _, err := wire.EncodeSession(&wire.StreamState{State: st.State, Problem: st.Problem}); err != nil || strings.ContainsRune(st.Problem, '\uFFFD') {
		t.Errorf("problem of %d bytes: %v", len(st.Problem), err)
	}
}

type errString string

func (e errString) Error() string { return string(e) }

// TestLastStateToldIsTheState: camera, lane and session change at once.
func TestLastStateToldIsTheState(t *testing.T) {
	vmstest.NoLeaks(t)
	s, _ := newStream(t)
	var told Status
	s.cfg.OnState = func(st Status) { told = st }
	for range 300 {
		var wg sync.WaitGroup
		wg.Go(func() { s.change(func() { s.camState.State = wire.StateNoCamera }) })
		wg.Go(func() { s.change(func() { s.laneUp = !s.laneUp }) })
		wg.Go(func() { s.change(func() { s.camState.State = wire.StateStreaming }) })
		wg.Wait()
		s.stateMu.Lock()
		want := s.derive()
		s.stateMu.Unlock()
		if s.Status() != want || told != want {
			t.Fatalf("state %+v, told %+v, want %+v", s.Status(), told, want)
		}
	}
}
