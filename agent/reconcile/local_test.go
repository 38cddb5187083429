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

// TestCameraOfARequest: what is left out is taken from what the cloud stored, and
// a stored password goes to its own address only.
func TestCameraOfARequest(t *testing.T) {
	template := map[string]string{"high": "rtsp://{host}:{port}/a", "snapshot": "http://{host}/jpg"}
	stored := storedCamera
	stored.Templates = template
	noPassword := vms.Camera{Host: "192.0.2.7"}
	byURL := vms.Camera{URL: "rtsp://admin:pa55@192.0.2.7/live"}
	for name, tt := range map[string]struct {
		stored *vms.Camera
		asked  vms.Camera
		want   vms.Camera
		err    error
	}{
		"nothing":                        {&stored, vms.Camera{}, stored, nil},
		"nothing, and nothing is stored": {nil, vms.Camera{}, vms.Camera{}, vms.ErrInvalid},
		"only a password":                {&stored, vms.Camera{Password: "x"}, vms.Camera{}, vms.ErrInvalid},
		"only a template":                {&stored, vms.Camera{Templates: map[string]string{"high": "rtsp://evil/{password}"}}, vms.Camera{}, vms.ErrInvalid},
		"all of it":                      {&stored, vms.Camera{Host: "192.0.2.9", Username: "u", Password: "p"}, vms.Camera{Host: "192.0.2.9", Username: "u", Password: "p"}, nil},
		"all of it, by URL":              {&stored, vms.Camera{URL: "rtsp://u:p@192.0.2.9/"}, vms.Camera{URL: "rtsp://u:p@192.0.2.9/"}, nil},
		"not declared":                   {nil, noPassword, noPassword, nil},
		"the stored host": {&stored, vms.Camera{Host: "192.0.2.7"},
			vms.Camera{Host: "192.0.2.7", Username: "admin", Password: "pa55", Templates: template}, nil},
		"the stored host, by URL": {&stored, vms.Camera{URL: "rtsp://192.0.2.7/x"},
			vms.Camera{URL: "rtsp://admin:pa55@192.0.2.7/x", Username: "admin", Password: "pa55", Templates: template}, nil},
		"the stored host, with templates": {&stored, vms.Camera{Host: "192.0.2.7", Templates: map[string]string{"high": "rtsp://{host}/b", "snapshot": "http://{host}:9999/{password}"}},
			vms.Camera{Host: "192.0.2.7", Username: "admin", Password: "pa55", Templates: map[string]string{"high": "rtsp://{host}/b", "snapshot": "http://{host}/jpg"}}, nil},
		"the stored URL's host":       {&byURL, noPassword, vms.Camera{Host: "192.0.2.7", Username: "admin", Password: "pa55"}, nil},
		"another host":                {&stored, vms.Camera{Host: "192.0.2.66"}, vms.Camera{}, vms.ErrForbidden},
		"another host, by URL":        {&stored, vms.Camera{URL: "rtsp://192.0.2.66/"}, vms.Camera{}, vms.ErrForbidden},
		"another host, with the name": {&stored, vms.Camera{URL: "rtsp://admin@192.0.2.66/"}, vms.Camera{}, vms.ErrForbidden},
		"a host behind the host":      {&stored, vms.Camera{URL: "rtsp://192.0.2.7@192.0.2.66/"}, vms.Camera{}, vms.ErrForbidden},
		"another port":                {&stored, vms.Camera{Host: "192.0.2.7", Port: 555}, vms.Camera{}, vms.ErrForbidden},
		"another user":                {&stored, vms.Camera{Host: "192.0.2.7", Username: "guest"}, vms.Camera{}, vms.ErrForbidden},
		"a file":                      {&stored, vms.Camera{URL: "file:///etc/passwd"}, vms.Camera{}, vms.ErrInvalid},
		"no password is stored":       {&noPassword, vms.Camera{Host: "192.0.2.66"}, vms.Camera{Host: "192.0.2.66"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var d *declared
			if tt.stored != nil {
				d = &declared{camera: *tt.stored}
			}
			got, borrows, err := complete(tt.asked, d, address)
			if !errors.Is(err, tt.err) {
				t.Fatalf("%v, want %v", err, tt.err)
			}
			if err == nil && !sameCamera(got, tt.want) {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
			if borrows != (err == nil && got.Password == "pa55" || name == "nothing") {
				t.Errorf("borrows: %t", borrows)
			}
			if err != nil && strings.Contains(err.Error(), "pa55") {
				t.Errorf("%v repeats the password", err)
			}
		})
	}
	if template["high"] == "" {
		t.Error("what is stored was changed")
	}
}

// TestCloudGoesFirst: what it runs is neither taken over nor stopped from the
// LAN, and what the LAN runs is over when the cloud runs the channel.
func TestCloudGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.desire(1, want("ch_1", wire.ModeContinuous), want("ch_2", wire.ModeOnDemand, off))
		synctest.Wait()
		if err := h.Start(local("ch_1", vms.Camera{})); !errors.Is(err, vms.ErrConflict) {
			t.Errorf("taken over: %v", err)
		}
		same := local("ch_1", vms.Camera{})
		same.SID = "sid_ch_1"
		if err := h.Start(same); err != nil {
			t.Errorf("just what runs: %v", err)
		}
		if err := h.Stop("ch_1"); !errors.Is(err, vms.ErrForbidden) {
			t.Errorf("stopped: %v", err)
		}
		if err := h.Stop("ch_2"); !errors.Is(err, vms.ErrNotFound) {
			t.Errorf("stopped what does not run: %v", err)
		}
		if err := h.Start(local("ch_2", vms.Camera{})); err != nil {
			t.Errorf("the LAN's: %v", err)
		}
		if got := h.runner.running()["ch_2"]; got.Origin != wire.OriginLAN || got.Camera.Password != "pa55" {
			t.Errorf("runs %+v", got)
		}
		if i := h.item("ch_2"); i.Origin != wire.OriginLAN || !i.Running || i.SID != "sid_lan_ch_2" || i.State != wire.InSync {
			t.Errorf("reported %+v", i)
		}
		if n := h.runner.started(); n != 2 {
			t.Errorf("%d starts", n)
		}
		h.desire(2, want("ch_1", wire.ModeContinuous), want("ch_2", wire.ModeOnDemand))
		synctest.Wait()
		if got := h.runner.running()["ch_2"]; got.Origin != wire.OriginCloud {
			t.Errorf("runs %+v", got)
		}
		h.desire(3, want("ch_1", wire.ModeContinuous), want("ch_2", wire.ModeOnDemand, off))
		synctest.Wait()
		if got, ok := h.runner.running()["ch_2"]; ok {
			t.Errorf("what the cloud stopped runs again for the LAN: %+v", got)
		}
		h.reboot()
		synctest.Wait()
		if len(h.runner.running()) != 1 {
			t.Errorf("after a reboot runs %v", h.runner.running())
		}
	})
}

// TestStopInTheCloudEndsARequest that was made before the hub knew of the stop,
// although the cloud did not want the channel before either; and whatever became
// of the document that brought it. Later ones run.
func TestStopInTheCloudEndsARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		stopped := func(with int64) wire.DesiredStream {
			return want("ch_1", wire.ModeOnDemand, off, func(s *wire.DesiredStream) { s.Stopped = with })
		}
		start := func() {
			t.Helper()
			if err := h.Start(local("ch_1", vms.Camera{Host: "a", Username: "u", Password: "p"})); err != nil {
				t.Fatal(err)
			}
		}
		runs := func(what string, want bool) {
			t.Helper()
			synctest.Wait()
			if _, got := h.runner.running()["ch_1"]; got != want {
				t.Errorf("%s: runs %t, want %t", what, got, want)
			}
			if i := h.item("ch_1"); i.State != wire.InSync || i.Running != want || (i.Origin == wire.OriginLAN) != want {
				t.Errorf("%s: reported %+v", what, i)
			}
		}
		start() // by a hub that was never told anything
		h.desire(1, stopped(0))
		runs("declared", true)
		h.desire(2, stopped(2))
		runs("stopped", false)
		start()
		runs("started when the stop was seen", true)
		h.desire(3, stopped(2))
		runs("another change", true)
		h.reboot()
		runs("after a reboot", true)
		h.desire(6, stopped(4)) // 4 and 5 got lost
		runs("stopped, by a later document", false)
		h.reboot()
		runs("stopped, after a reboot", false)

		// What a failed start puts back is as old as it was.
		start()
		h.runner.mu.Lock()
		h.runner.slow = time.Second
		h.runner.mu.Unlock()
		h.runner.fail("ch_1", errors.New("broken"))
		h.desire(7, want("ch_1", wire.ModeOnDemand, off, func(s *wire.DesiredStream) { s.Stopped = 4 }), want("ch_2", wire.ModeOnDemand, off))
		if err := h.Start(local("ch_1", vms.Camera{Host: "b", Username: "u", Password: "p"})); err == nil {
			t.Error("a broken camera was started")
		}
		h.runner.fail("ch_1", nil)
		h.desire(8, stopped(7))
		time.Sleep(time.Minute)
		runs("stopped after a failed start", false)

		// Who still waits for a start hears of it.
		got := make(chan error)
		go func() { got <- h.Start(local("ch_1", vms.Camera{Host: "a", Username: "u", Password: "p"})) }()
		synctest.Wait()
		h.desire(9, stopped(9))
		if err := <-got; !errors.Is(err, vms.ErrConflict) || !strings.Contains(err.Error(), "stopped in the cloud") {
			t.Errorf("Start = %v, want that it was stopped meanwhile", err)
		}
		time.Sleep(time.Minute)
		runs("stopped while it was being started", false)
	})
}

// TestFailedRequestIsForgotten, and what ran before it goes on.
func TestFailedRequestIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		if err := h.Start(local("ch_1", vms.Camera{Host: "a"})); err != nil {
			t.Fatal(err)
		}
		broken := fmt.Errorf("%w: full", vms.ErrUnavailable)
		h.runner.fail("ch_1", broken)
		h.runner.fail("ch_2", broken)
		for _, l := range []Local{local("ch_1", vms.Camera{Host: "b"}), local("ch_2", vms.Camera{Host: "b"})} {
			if err := h.Start(l); !errors.Is(err, vms.ErrUnavailable) {
				t.Errorf("Start = %v", err)
			}
		}
		h.runner.fail("ch_1", nil)
		h.runner.fail("ch_2", nil)
		before := h.runner.started()
		time.Sleep(time.Hour)
		if got := h.runner.running(); len(got) != 1 || got["ch_1"].Camera.Host != "a" || h.runner.started() != before {
			t.Errorf("running %v", got)
		}
		if r := h.report(); r.State != wire.InSync || len(r.Streams) != 1 {
			t.Errorf("report %+v", r)
		}
		h.reboot()
		synctest.Wait()
		if got := h.runner.running(); len(got) != 1 || got["ch_1"].Camera.Host != "a" {
			t.Errorf("after a reboot runs %v", got)
		}
	})
}

// TestRequestIsTriedAtOnce, also while an earlier one waits for its next try; and
// it was started, also when the NVR refuses it in the same moment.
func TestRequestIsTriedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		for range 3 {
			began := time.Now()
			if err := h.Start(local("ch_1", vms.Camera{Host: "a"})); err != nil || time.Since(began) != 0 {
				t.Errorf("Start = %v after %v", err, time.Since(began))
			}
			h.runner.end("ch_1", State{Problem: "it broke"})
			h.Kick()
			synctest.Wait()
		}
		h.runner.refuse = true
		if err := h.Start(local("ch_2", vms.Camera{Host: "a"})); err != nil {
			t.Errorf("Start = %v of what was refused a moment later", err)
		}
	})
}

// TestFailedRequestIsNotKept, although another one that succeeds meanwhile puts
// all of them on flash.
func TestFailedRequestIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		h.runner.slow = time.Second
		h.runner.fail("ch_1", errors.New("broken"))
		failed := make(chan error)
		go func() { failed <- h.Start(local("ch_1", vms.Camera{Host: "a"})) }()
		synctest.Wait()
		h.runner.mu.Lock()
		h.runner.slow = 0
		h.runner.mu.Unlock()
		if err := h.Start(local("ch_2", vms.Camera{Host: "a"})); err != nil {
			t.Fatal(err)
		}
		if err := <-failed; err == nil {
			t.Error("it was started")
		}
		if data := string(h.flash.docs[docLocal]); strings.Contains(data, "ch_1") || !strings.Contains(data, "ch_2") {
			t.Errorf("kept: %s", data)
		}
	})
}

func TestRequestsAreStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		for range 2 { // the second time it is as asked
			if err := h.Start(local("ch_1", vms.Camera{Host: "a"})); err != nil {
				t.Fatal(err)
			}
		}
		if n := h.runner.started(); n != 1 {
			t.Errorf("%d starts", n)
		}
		if err := h.Stop("ch_1"); err != nil || len(h.runner.running()) != 0 {
			t.Errorf("%v, running %v", err, h.runner.running())
		}
		if err := h.Stop("ch_1"); !errors.Is(err, vms.ErrNotFound) {
			t.Errorf("again: %v", err)
		}
		h.reboot()
		synctest.Wait()
		if len(h.runner.running()) != 0 || len(h.report().Streams) != 0 {
			t.Errorf("after a reboot runs %v", h.runner.running())
		}
	})
}

// TestStartAndEndAtOnce: callers that wait are answered when the agent ends, or
// when somebody else was faster.
func TestStartAndEndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		h.runner.mu.Lock()
		h.runner.slow = time.Second
		h.runner.mu.Unlock()
		got := make(chan error, 3)
		for _, host := range []string{"a", "b"} {
			go func() { got <- h.Start(local("ch_1", vms.Camera{Host: host})) }()
			synctest.Wait()
		}
		if err := <-got; !errors.Is(err, vms.ErrConflict) {
			t.Errorf("the one that was overtaken: %v", err)
		}
		if err := <-got; err != nil {
			t.Errorf("the faster one: %v", err)
		}
		go func() { got <- h.Start(local("ch_2", vms.Camera{Host: "a"})) }()
		synctest.Wait()
		h.stop()
		if err := <-got; !errors.Is(err, vms.ErrUnavailable) {
			t.Errorf("at the end: %v", err)
		}
		if err := h.Start(local("ch_3", vms.Camera{Host: "a"})); !errors.Is(err, vms.ErrUnavailable) {
			t.Errorf("after the end: %v", err)
		}
		if err := h.Stop("ch_1"); err != nil {
			t.Error(err)
		}
	})
}

// TestBorrowedPassword: a request that leaves the password to the cloud follows
// what the cloud stores, also after a reboot; one that brought all it needs goes
// on whatever the cloud stores later.
func TestBorrowedPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.boot()
		defer func() { h.stop() }()
		open := vms.Camera{Host: "192.0.2.99"} // needs no password
		if err := h.Start(local("ch_2", open)); err != nil {
			t.Fatal(err)
		}
		h.desire(1, want("ch_1", wire.ModeOnDemand, off), want("ch_2", wire.ModeOnDemand, off))
		if err := h.Start(local("ch_1", vms.Camera{})); err != nil {
			t.Fatal(err)
		}
		if data := string(h.flash.docs[docLocal]); strings.Contains(data, "pa55") {
			t.Errorf("the cloud's password is kept in the clear: %s", data)
		}
		changed := storedCamera
		changed.Password = "new"
		h.desire(2, want("ch_1", wire.ModeOnDemand, off, func(s *wire.DesiredStream) { s.Camera = seal("ch_1", changed) }), want("ch_2", wire.ModeOnDemand, off))
		for range 2 {
			synctest.Wait()
			got := h.runner.running()
			if !sameCamera(got["ch_1"].Camera, changed) || !sameCamera(got["ch_2"].Camera, open) {
				t.Errorf("running %+v", got)
			}
			h.reboot()
		}
		// Without the document nobody knows the camera; that may come again.
		h.stop()
		delete(h.flash.docs, docDesired)
		h.reboot()
		synctest.Wait()
		if i := h.item("ch_1"); len(h.runner.running()) != 1 || i.State != wire.Failed || !strings.Contains(i.Problem, "none is stored") {
			t.Errorf("the document is lost: running %+v, %+v", h.runner.running(), i)
		}
		h.desire(3, want("ch_1", wire.ModeOnDemand, off))
		synctest.Wait()
		if len(h.runner.running()) != 2 {
			t.Errorf("the document is there again: running %+v", h.runner.running())
		}
		h.desire(4) // the channel is another hub's
		synctest.Wait()
		if r := h.report(); len(h.runner.running()) != 1 || r.State != wire.InSync || len(r.Streams) != 1 {
			t.Errorf("the camera was taken away: running %+v, %+v", h.runner.running(), r)
		}
		h.reboot()
		synctest.Wait()
		if len(h.runner.running()) != 1 {
			t.Errorf("after a reboot runs %+v", h.runner.running())
		}
	})
}

// TestScheduleEndsARequest: as soon as the cloud's schedule runs the channel.
func TestScheduleEndsARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.ahead = time.Until(time.Date(2026, 6, 1, 7, 0, 0, 0, time.UTC))
		h.boot()
		defer func() { h.stop() }()
		m := desired(1, want("ch_1", wire.ModeScheduled, func(s *wire.DesiredStream) { s.Schedule = "08:00-09:00" }))
		m.TimeZone = ""
		if err := h.Desired(m); err != nil {
			t.Fatal(err)
		}
		if err := h.Start(local("ch_1", vms.Camera{})); err != nil {
			t.Fatal(err)
		}
		time.Sleep(90 * time.Minute)
		if got := h.runner.running()["ch_1"]; got.Origin != wire.OriginCloud {
			t.Errorf("at half past eight runs %+v", got)
		}
		time.Sleep(time.Hour)
		if len(h.runner.running()) != 0 {
			t.Error("it runs after nine")
		}
	})
}
