package reconcile

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// TestDocumentOutlivesAReboot: what the cloud wanted runs again without it, and
// what was asked for on the LAN too.
func TestDocumentOutlivesAReboot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.desire(7, want("ch_1", wire.ModeContinuous), want("ch_2", wire.ModeOnDemand, off), want("ch_3", wire.ModeEvent, func(s *wire.DesiredStream) { s.PreRoll, s.PostRoll = 5, 30 }))
		if err := h.Start(local("ch_9", vms.Camera{URL: "rtsp://u:p@192.0.2.9/"})); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			synctest.Wait()
			got := h.runner.running()
			if len(got) != 3 || got["ch_1"].Camera.Password != "pa55" || got["ch_1"].SID != "sid_ch_1" || got["ch_1"].Origin != wire.OriginCloud ||
				got["ch_3"].PreRoll != 5*time.Second || got["ch_3"].PostRoll != 30*time.Second || got["ch_9"].Origin != wire.OriginLAN || got["ch_9"].Token != "token" {
				t.Fatalf("running %+v", got)
			}
			if r := h.report(); r.Revision != 7 || r.State != wire.InSync || len(r.Streams) != 4 {
				t.Errorf("report %+v", r)
			}
			if i := h.item("ch_2"); i.Running || i.State != wire.InSync || i.Mode != wire.ModeOnDemand {
				t.Errorf("what is not wanted: %+v", i)
			}
			if i := h.item("ch_3"); !i.Running || i.Recording {
				t.Errorf("between events: %+v", i)
			}
			h.reboot()
		}
	})
}

// TestReactsAtOnce: between a document and the start of its stream no time passes.
func TestReactsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		synctest.Wait()
		began := time.Now()
		h.desire(1, want("ch_1", wire.ModeOnDemand))
		synctest.Wait()
		if len(h.runner.running()) != 1 || time.Since(began) != 0 {
			t.Errorf("%d streams after %v", len(h.runner.running()), time.Since(began))
		}
		h.desire(2, want("ch_1", wire.ModeOnDemand, off))
		synctest.Wait()
		if len(h.runner.running()) != 0 || time.Since(began) != 0 {
			t.Errorf("%d streams after %v", len(h.runner.running()), time.Since(began))
		}
	})
}

// TestSuspended: a hub of which there are two leaves the cameras, and takes them
// again when it is the only one.
func TestSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.desire(1, want("ch_1", wire.ModeContinuous))
		synctest.Wait()
		h.Suspend("there are two")
		h.desire(2, want("ch_1", wire.ModeContinuous), want("ch_2", wire.ModeContinuous))
		synctest.Wait()
		if n := len(h.runner.running()); n != 0 {
			t.Errorf("%d streams run", n)
		}
		if it := h.item("ch_1"); it.Problem != "there are two" {
			t.Errorf("reported: %+v", it)
		}
		h.Suspend("")
		synctest.Wait()
		if n := len(h.runner.running()); n != 2 {
			t.Errorf("%d streams run, want 2", n)
		}
	})
}

// TestOneSlowCameraKeepsNobodyWaiting: operations on other channels go on.
func TestOneSlowCameraKeepsNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.runner.slow = time.Minute
		h.desire(1, want("ch_1", wire.ModeContinuous))
		synctest.Wait()
		h.runner.mu.Lock()
		h.runner.slow = 0
		h.runner.mu.Unlock()
		h.desire(2, want("ch_1", wire.ModeContinuous), want("ch_2", wire.ModeContinuous))
		synctest.Wait()
		if _, ok := h.runner.running()["ch_2"]; !ok {
			t.Error("ch_2 waits for ch_1")
		}
		if i := h.item("ch_1"); i.State != wire.Syncing || h.report().State != wire.Syncing {
			t.Errorf("ch_1 is %+v of %s", i, h.report().State)
		}
		// What was wanted meanwhile is done when it is its turn.
		h.desire(3, want("ch_1", wire.ModeContinuous, off), want("ch_2", wire.ModeContinuous))
		time.Sleep(2 * time.Minute)
		if got := h.runner.running(); len(got) != 1 || h.report().State != wire.InSync {
			t.Errorf("running %v, %s", got, h.report().State)
		}
	})
}

func TestStaleDocumentChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.desire(10, want("ch_1", wire.ModeContinuous))
		synctest.Wait()
		check := func(what string) {
			t.Helper()
			synctest.Wait()
			if got := h.runner.running(); len(got) != 1 || got["ch_1"].Channel == "" || h.report().Revision != 10 {
				t.Errorf("%s: running %v at revision %d", what, got, h.report().Revision)
			}
		}
		for _, rev := range []int64{10, 9, 1} {
			if err := h.Desired(desired(rev, want("ch_2", wire.ModeContinuous))); !errors.Is(err, ErrOld) {
				t.Errorf("revision %d: %v", rev, err)
			}
			check(fmt.Sprint("revision ", rev))
		}
		foreign := desired(11, want("ch_2", wire.ModeContinuous))
		foreign.Hub = "hub_2"
		if err := h.Desired(foreign); !errors.Is(err, vms.ErrForbidden) {
			t.Errorf("another hub's: %v", err)
		}
		check("another hub's")
		if r := h.report(); r.State != wire.Failed || !strings.Contains(r.Problem, "hub_2") {
			t.Errorf("report %+v", r)
		}
		h.reboot()
		if err := h.Desired(desired(9, want("ch_2", wire.ModeContinuous))); !errors.Is(err, ErrOld) {
			t.Errorf("after a reboot: %v", err)
		}
		check("after a reboot")
		if r := h.report(); r.State != wire.InSync {
			t.Errorf("report %+v", r)
		}
	})
}

// TestForeignDocumentOnFlash: a hub that was enrolled anew does not go on with
// the life of the old one.
func TestForeignDocumentOnFlash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		m := desired(1_000, want("ch_1", wire.ModeContinuous))
		m.Hub = "hub_0"
		data, err := wire.EncodeSession(m)
		if err != nil {
			t.Fatal(err)
		}
		h.flash.docs[docDesired] = data
		h.flash.docs[docLocal] = []byte("noise")
		h.boot()
		defer func() { h.stop() }()
		synctest.Wait()
		if len(h.runner.starts) != 0 {
			t.Errorf("started %v", h.runner.starts)
		}
		h.desire(1, want("ch_2", wire.ModeContinuous))
		synctest.Wait()
		if len(h.runner.running()) != 1 {
			t.Error("the hub's own document was not obeyed")
		}
	})
}

func TestWornFlashIsNoReasonNotToRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.flash.fail(true)
		h.desire(1, want("ch_1", wire.ModeContinuous))
		if err := h.Start(local("ch_2", vms.Camera{Host: "h"})); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if len(h.runner.running()) != 2 {
			t.Errorf("running %v", h.runner.running())
		}
	})
}

// TestUnchangedStreamsAreLeftAlone, whatever else a new document says; what is
// sealed anew is the same camera.
func TestUnchangedStreamsAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.desire(1, want("ch_1", wire.ModeOnDemand), want("ch_2", wire.ModeContinuous))
		synctest.Wait()
		h.desire(2, want("ch_1", wire.ModeContinuous), want("ch_2", wire.ModeContinuous), want("ch_3", wire.ModeContinuous))
		synctest.Wait()
		if n := h.runner.started(); n != 3 || h.runner.stops != 0 {
			t.Errorf("%d starts and %d stops", n, h.runner.stops)
		}
		for rev, edit := range []func(*wire.DesiredStream){
			func(s *wire.DesiredStream) { s.Camera = seal("ch_1", vms.Camera{Host: "192.0.2.8"}) },
			func(s *wire.DesiredStream) { s.SID = "sid_new" },
			func(s *wire.DesiredStream) { s.Mode = wire.ModeEvent },
			func(s *wire.DesiredStream) { s.Mode, s.PreRoll = wire.ModeEvent, 9 },
		} {
			before := h.runner.started()
			h.desire(int64(10+rev), want("ch_1", wire.ModeContinuous, edit), want("ch_2", wire.ModeContinuous), want("ch_3", wire.ModeContinuous))
			synctest.Wait()
			if n := h.runner.started() - before; n != 1 {
				t.Errorf("change %d: %d starts", rev, n)
			}
		}
	})
}

// TestFailedIsTriedAgain with growing waits, at once when the cloud says
// something new, and quickly again after it ran well.
func TestFailedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.runner.fail("ch_1", fmt.Errorf("%w: no room", vms.ErrUnavailable))
		h.desire(1, want("ch_1", wire.ModeContinuous), want("ch_2", wire.ModeContinuous))
		synctest.Wait()
		if i := h.item("ch_1"); i.State != wire.Failed || i.Running || !strings.Contains(i.Problem, "no room") || h.report().State != wire.Failed {
			t.Errorf("%+v of %s", i, h.report().State)
		}
		time.Sleep(10 * time.Minute)
		if n := h.runner.started(); n < 10 || n > 40 {
			t.Errorf("%d starts in ten minutes", n)
		}
		before := h.runner.started()
		h.desire(2, want("ch_1", wire.ModeContinuous), want("ch_2", wire.ModeContinuous))
		synctest.Wait()
		if n := h.runner.started() - before; n != 1 {
			t.Errorf("%d starts with a new document", n)
		}
		h.runner.fail("ch_1", nil)
		time.Sleep(retryMax)
		if i := h.item("ch_1"); i.State != wire.InSync || !i.Running || i.Problem != "" {
			t.Errorf("%+v after the failure", i)
		}
		time.Sleep(2 * steady)
		h.runner.end("ch_1", State{Problem: "it broke"})
		h.Kick()
		synctest.Wait()
		if i := h.item("ch_1"); i.State != wire.Failed || i.Problem != "it broke" {
			t.Errorf("%+v after it ended", i)
		}
		time.Sleep(2 * retryMin)
		if i := h.item("ch_1"); i.State != wire.InSync {
			t.Errorf("%+v: not started again", i)
		}
	})
}

// TestRefusedIsAskedSlowly: the camera would be pulled for nothing.
func TestRefusedIsAskedSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		refuse := func() {
			h.runner.end("ch_1", State{Stream: wire.StateRefused, Problem: "The NVR refuses this stream: no."})
			h.Kick()
			synctest.Wait()
		}
		h.desire(1, want("ch_1", wire.ModeContinuous))
		synctest.Wait()
		for range 60 {
			refuse()
			time.Sleep(time.Minute)
		}
		if n := h.runner.started(); n < 12 || n > 40 {
			t.Errorf("%d starts in an hour", n)
		}
		refuse()
		if i := h.item("ch_1"); i.State != wire.Failed || !strings.Contains(i.Problem, "no.") || i.Stream != wire.StateRefused {
			t.Errorf("%+v", i)
		}
		before := h.runner.started()
		h.desire(2, want("ch_1", wire.ModeContinuous, func(s *wire.DesiredStream) { s.SID = "sid_new" }))
		synctest.Wait()
		if n := h.runner.started() - before; n != 1 || h.item("ch_1").State != wire.InSync {
			t.Errorf("%d starts with a new session, %+v", n, h.item("ch_1"))
		}
		// Who came with a token must come with another one.
		if err := h.Start(local("ch_9", vms.Camera{Host: "h"})); err != nil {
			t.Fatal(err)
		}
		before = h.runner.started()
		h.runner.end("ch_9", State{Stream: wire.StateRefused, Problem: "The token expired."})
		h.Kick()
		time.Sleep(time.Hour)
		if n := h.runner.started() - before; n != 0 {
			t.Errorf("%d starts with a token that was refused", n)
		}
		h.reboot()
		synctest.Wait()
		if _, ok := h.runner.running()["ch_9"]; ok {
			t.Error("it was started again after a reboot")
		}
	})
}

func TestOnDemandEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		end := time.Now().Add(10 * time.Minute).UTC()
		h.desire(1, want("ch_1", wire.ModeOnDemand, func(s *wire.DesiredStream) { s.Until = end }))
		time.Sleep(time.Until(end) - time.Millisecond)
		if len(h.runner.running()) != 1 {
			t.Error("it ended too early")
		}
		time.Sleep(2 * time.Millisecond)
		if len(h.runner.running()) != 0 || h.item("ch_1").State != wire.InSync {
			t.Errorf("it runs on: %+v", h.item("ch_1"))
		}
		h.reboot()
		h.setClock(0, false)
		synctest.Wait()
		if len(h.runner.running()) != 0 {
			t.Error("it runs again after a reboot")
		}
	})
}

// TestScheduleOnTheSecond, through the night in which the clocks are set back,
// and although the hub's clock is slewed.
func TestScheduleOnTheSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone, err := time.LoadLocation("Europe/Zagreb")
		if err != nil {
			t.Fatal(err)
		}
		h := newHub(t)
		start := time.Date(2026, 10, 24, 12, 0, 0, 0, zone) // the clocks are set back in the night to the 25th
		h.ahead = time.Until(start)
		h.boot()
		defer func() { h.stop() }()
		h.desire(1, want("ch_1", wire.ModeScheduled, func(s *wire.DesiredStream) { s.Schedule = "22:00-06:00" }))
		synctest.Wait()
		for _, tt := range []struct {
			at   time.Time
			want bool
		}{
			{start, false},
			{time.Date(2026, 10, 24, 21, 59, 59, 0, zone), false},
			{time.Date(2026, 10, 24, 22, 0, 0, 0, zone), true},
			{time.Date(2026, 10, 25, 5, 59, 59, 0, zone), true},
			{time.Date(2026, 10, 25, 6, 0, 0, 0, zone), false},
			{time.Date(2026, 10, 25, 21, 59, 59, 0, zone), false},
			{time.Date(2026, 10, 25, 22, 0, 0, 0, zone), true},
		} {
			now, _ := h.now()
			d := tt.at.Sub(now)
			h.mu.Lock()
			h.ahead += d / 1000 // the clock is slewed by 1000 ppm meanwhile, and nobody says so
			h.mu.Unlock()
			time.Sleep(d - d/1000 + time.Millisecond)
			synctest.Wait()
			if got := len(h.runner.running()) == 1; got != tt.want {
				t.Errorf("at %v it runs: %t", tt.at, got)
			}
			if i := h.item("ch_1"); i.State != wire.InSync || i.Running != tt.want {
				t.Errorf("at %v: %+v", tt.at, i)
			}
		}
	})
}

// TestClockUnknown: what is scheduled records until the time is known.
func TestClockUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.setClock(0, false)
		h.desire(1, want("ch_1", wire.ModeScheduled, func(s *wire.DesiredStream) { s.Schedule = "" }))
		time.Sleep(time.Hour)
		if len(h.runner.running()) != 1 {
			t.Fatal("it does not record")
		}
		h.setClock(0, true)
		synctest.Wait()
		if len(h.runner.running()) != 0 || h.runner.started() != 1 {
			t.Error("it runs although its schedule is empty")
		}
	})
}

// TestWhatCannotBeObeyed is reported, each by itself.
func TestWhatCannotBeObeyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.desire(1,
			want("sealed", wire.ModeContinuous, func(s *wire.DesiredStream) { s.Camera = seal("other", storedCamera) }),
			want("garbage", wire.ModeContinuous, func(s *wire.DesiredStream) { s.Camera = []byte("camera/garbage|x|{pa55") }),
			want("schedule", wire.ModeScheduled, func(s *wire.DesiredStream) { s.Schedule = "whenever" }),
			want("mode", "sometimes"),
			want("good", wire.ModeContinuous),
		)
		synctest.Wait()
		for ch, problem := range map[vms.ChannelID]string{
			"sealed": "another key", "garbage": "no camera", "schedule": "It records all the time", "mode": "update it",
		} {
			i := h.item(ch)
			if i.State != wire.Failed || !strings.Contains(i.Problem, problem) || strings.Contains(i.Problem, "pa55") || i.Running != (ch == "schedule") {
				t.Errorf("%+v", i)
			}
		}
		if i := h.item("good"); i.State != wire.InSync || h.report().State != wire.Failed {
			t.Errorf("%+v of %s", i, h.report().State)
		}
		m := desired(2, want("zone", wire.ModeScheduled, func(s *wire.DesiredStream) { s.Schedule = "08:00-18:00" }))
		m.TimeZone = "Europe/Atlantis"
		if err := h.Desired(m); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if i := h.item("zone"); i.State != wire.Failed || !strings.Contains(i.Problem, "Atlantis") || !i.Running {
			t.Errorf("%+v", i)
		}
	})
}

// TestNothingIsSaidTwice: a report is news.
func TestNothingIsSaidTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.desire(1, want("ch_1", wire.ModeContinuous))
		synctest.Wait()
		n := len(h.reports)
		for range 10 {
			h.Kick()
			synctest.Wait()
		}
		if len(h.reports) != n {
			t.Errorf("%d reports without news", len(h.reports)-n)
		}
	})
}
