package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// wantCovered proves that from the first recording to the last every instant is
// recorded or a gap, and nothing twice. It returns the causes in order.
func wantCovered(t testing.TB, tl timeline) (causes []vms.Cause) {
	t.Helper()
	type stretch struct {
		vms.TimeRange
		cause vms.Cause
	}
	var all []stretch
	for _, r := range tl.Recordings {
		all = append(all, stretch{vms.TimeRange{Start: r.Start, End: r.End}, ""})
	}
	for _, g := range tl.Gaps {
		all = append(all, stretch{g.TimeRange, g.Cause})
		causes = append(causes, g.Cause)
	}
	slices.SortFunc(all, func(a, b stretch) int { return a.Start.Compare(b.Start) })
	for i := 1; i < len(all); i++ {
		if d := all[i].Start.Sub(all[i-1].End); d != 0 {
			t.Errorf("%v (%q) ends at %v, the next (%q) starts %v later", all[i-1].Start, all[i-1].cause, all[i-1].End, all[i].cause, d)
		}
	}
	return causes
}

// TestCameraPowerCut: the footage before the cut is stored at once, the absence
// is a gap with its cause, and the picture is back by itself.
func TestCameraPowerCut(t *testing.T) {
	t.Parallel()
	s := newStack(t, 5*time.Second)
	cam := camtest.Start(t)
	ch := s.addChannel("garden", cam.URL())
	s.startChannel(ch)
	captured := func(n int) {
		t.Helper()
		s.eventually(30*time.Second, "frames come", func() bool {
			st, ok := s.stream(ch)
			return ok && st.Frames > n
		})
	}
	captured(50)
	cam.PowerOff()
	s.eventually(10*time.Second, "the footage before the cut is stored", func() bool { return len(s.timeline(ch).Recordings) > 0 })
	s.eventually(10*time.Second, "the agent says so", func() bool {
		st, _ := s.stream(ch)
		return st.State == "no_camera" && st.Problem != ""
	})
	if err := cam.PowerOn(); err != nil {
		t.Fatal(err)
	}
	st, _ := s.stream(ch)
	captured(st.Frames + 100)
	s.stopChannel(ch)
	if causes := wantCovered(t, s.settled(ch)); !slices.Equal(causes, []vms.Cause{vms.CauseCameraOffline}) {
		t.Errorf("causes %v, want the camera once", causes)
	}
}

// TestAgentKilled: what the worker had is stored, the rest is a gap that the NVR
// derives, and the stream is started again by the cloud.
func TestAgentKilled(t *testing.T) {
	t.Parallel()
	s := newStack(t, 5*time.Second)
	ch := s.addChannel("attic", camtest.Start(t).URL())
	s.startChannel(ch)
	s.eventually(30*time.Second, "frames come", func() bool {
		st, ok := s.stream(ch)
		return ok && st.Frames > 80
	})
	s.agent.kill()
	s.agent.start()
	s.eventually(30*time.Second, "the stream is back", func() bool {
		list, err := s.tryStreams() // it may not be listening yet
		return err == nil && len(list) == 1 && list[0].Frames > 80
	})
	s.stopChannel(ch)
	if causes := wantCovered(t, s.settled(ch)); !slices.Equal(causes, []vms.Cause{vms.CauseAgentRestarted}) {
		t.Errorf("causes %v, want the restart once", causes)
	}
}
