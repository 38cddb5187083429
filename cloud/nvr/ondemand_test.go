package nvr_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// demandRig is an NVR with a hub that is there, and a channel on demand.
type demandRig struct {
	*nvrtest.World
	t   *testing.T
	hub vms.HubID
	c   nvr.Channel
}

func newDemandRig(t *testing.T) *demandRig {
	w := nvrtest.New(t, nil)
	w.Worker(t, worker)
	hub, _ := w.Hub(t, acct)
	online(w, hub)
	return &demandRig{w, t, hub, w.Channel(t, acct, hub)}
}

// later moves the clock and looks who is wanted still.
func (r *demandRig) later(d time.Duration) {
	r.t.Helper()
	r.Clock.Add(d)
	if err := r.EndTransient(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

func (r *demandRig) expect(what string, wanted bool, by nvr.WantedBy) {
	r.t.Helper()
	c, err := r.NVR.Channel(r.t.Context(), acct, r.c.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	if o := order(desired(r.t, r.World, r.hub), r.c.ID); c.Wanted != wanted || c.WantedBy != by || o.Active != wanted {
		r.t.Errorf("%s: wanted %v by %q, the hub is told %v, want %v by %q", what, c.Wanted, c.WantedBy, o.Active, wanted, by)
	}
}

func (r *demandRig) live(start bool, want error) {
	r.t.Helper()
	if _, err := r.Live(r.t.Context(), acct, r.c.ID, start); !errors.Is(err, want) {
		r.t.Errorf("Live = %v, want %v", err, want)
	}
}

func (r *demandRig) viewers(n int) {
	r.t.Helper()
	if err := r.Viewers(r.t.Context(), r.c.ID, n); err != nil {
		r.t.Fatal(err)
	}
}

func (r *demandRig) streams() {
	r.t.Helper()
	e := vms.StreamEvent{Channel: r.c.ID, SID: "s", Hub: r.hub, Generation: 1, Worker: worker.ID, Instance: worker.Instance, Lane: vms.LaneLive, At: r.Clock.Now()}
	if err := r.StreamStarted(r.t.Context(), e); err != nil {
		r.t.Fatal(err)
	}
}

func TestViewersStartAndEndAStream(t *testing.T) {
	r := newDemandRig(t)
	r.live(false, vms.ErrUnavailable)
	r.expect("looked at without starting", false, "")
	r.live(true, nvr.ErrStarting)
	r.expect("started", true, nvr.WantedByViewer)
	for range 10 { // the camera takes its time, and the page asks again and again
		r.later(20 * time.Second)
		r.live(false, nvr.ErrStarting)
	}
	r.expect("waited for", true, nvr.WantedByViewer)
	r.streams()
	r.live(true, nil)
	r.viewers(2)
	for range 30 {
		r.later(10 * time.Second)
		r.viewers(1)
	}
	r.expect("looked at", true, nvr.WantedByViewer)
	r.later(10 * time.Second)
	r.viewers(0)
	r.later(30 * time.Second)
	r.expect("lingers", true, nvr.WantedByViewer)
	r.viewers(1) // back again
	r.later(30 * time.Second)
	r.expect("looked at again", true, nvr.WantedByViewer)
	r.later(time.Second)
	r.expect("alone", false, "")
	// Nothing of it is missing on the timeline.
	if idle, err := r.Store.Idle(t.Context(), r.c.ID, r.Clock.Now(), r.Clock.Now().Add(time.Hour)); err != nil || len(idle) != 1 {
		t.Errorf("idle %v, %v", idle, err)
	}
}

// A worker that dies with its viewers, or a page that never opens what it asked
// for, keeps no stream running.
func TestViewersWhoNeverCame(t *testing.T) {
	r := newDemandRig(t)
	r.live(true, nvr.ErrStarting)
	r.later(31 * time.Second)
	r.expect("nobody came", false, "")
	r.live(true, nvr.ErrStarting)
	r.viewers(3)
	r.later(31 * time.Second)
	r.expect("nobody tells of them any more", false, "")
}

func TestRequestBeatsViewer(t *testing.T) {
	r := newDemandRig(t)
	r.live(true, nvr.ErrStarting)
	before := desired(t, r.World, r.hub).Revision
	start(t, r.World, r.c)
	r.expect("started by a request", true, nvr.WantedByRequest)
	if now := desired(t, r.World, r.hub).Revision; now != before {
		t.Errorf("the hub is told anew (%d after %d), although nothing changes for it", now, before)
	}
	r.later(time.Hour)
	r.live(true, nvr.ErrStarting) // a viewer takes nothing away
	r.later(time.Hour)
	r.expect("without a viewer", true, nvr.WantedByRequest)
	r.viewers(1)
	stop(t, r.World, r.c.ID)
	r.viewers(1)
	r.later(time.Second)
	r.live(false, vms.ErrUnavailable)
	r.expect("stopped, whoever looks on", false, "")
}

func TestTimeoutEndsAStream(t *testing.T) {
	r := newDemandRig(t)
	begin := r.Clock.Now()
	if _, err := r.StartChannel(t.Context(), acct, r.c.ID, nvr.StartOptions{Timeout: time.Hour}); err != nil {
		t.Fatal(err)
	}
	r.later(time.Hour - time.Second)
	r.viewers(1)
	r.expect("before", true, nvr.WantedByRequest)
	r.later(10 * time.Minute) // we were away when it was over: the hub was not
	r.expect("after", false, "")
	idle, err := r.Store.Idle(t.Context(), r.c.ID, begin, r.Clock.Now())
	if err != nil || len(idle) != 1 || !idle[0].Start.Equal(begin.Add(time.Hour)) {
		t.Errorf("idle %v, %v, want it from the end of its time on", idle, err)
	}
	// One that was started anew meanwhile goes on.
	if _, err := r.StartChannel(t.Context(), acct, r.c.ID, nvr.StartOptions{Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	r.Clock.Add(time.Minute)
	start(t, r.World, r.c)
	r.later(time.Hour)
	r.expect("started anew", true, nvr.WantedByRequest)
}

// After a restart of ours nobody is known to look on; viewers have time to say so.
func TestViewersAfterARestart(t *testing.T) {
	r := newDemandRig(t)
	r.live(true, nvr.ErrStarting)
	r.Clock.Add(time.Hour)
	again, err := nvr.New(r.Config)
	if err != nil {
		t.Fatal(err)
	}
	wanted := func() bool {
		t.Helper()
		if err := again.EndTransient(t.Context()); err != nil {
			t.Fatal(err)
		}
		c, err := again.Channel(t.Context(), acct, r.c.ID)
		if err != nil {
			t.Fatal(err)
		}
		return c.Wanted
	}
	r.Clock.Add(30 * time.Second)
	if !wanted() {
		t.Error("ended before viewers could say that they are there")
	}
	r.Clock.Add(time.Second)
	if wanted() {
		t.Error("goes on without viewers")
	}
}

func TestLiveSaysWhyThereIsNone(t *testing.T) {
	r := newDemandRig(t)
	hub, _ := r.Hub(t, acct) // offline
	says := func(id vms.ChannelID, want string) {
		t.Helper()
		_, err := r.Live(t.Context(), acct, id, true)
		if !errors.Is(err, vms.ErrUnavailable) || errors.Is(err, nvr.ErrStarting) || !strings.Contains(err.Error(), want) {
			t.Errorf("Live = %v, want %q", err, want)
		}
	}
	says(r.Channel(t, acct, hub).ID, "the hub is offline")
	says(r.Channel(t, acct, "").ID, "it does not stream")
	c, err := r.CreateChannel(t.Context(), acct, nvr.ChannelSpec{Name: "x", Hub: hub, Mode: nvr.ModeContinuous, Camera: vms.Camera{Host: "10.0.0.8"}})
	if err != nil {
		t.Fatal(err)
	}
	says(c.ID, "The hub is offline.")
	stop := nvr.StartOptions{Queue: true}
	if _, err := r.StopChannel(t.Context(), acct, c.ID, stop); err != nil {
		t.Fatal(err)
	}
	says(c.ID, "it does not stream") // a stop holds: this one is not on demand
	start(t, r.World, r.c)
	r.Reported(t.Context(), &wire.Reported{Hub: r.hub, Boot: "boot_1", Online: true, Serial: 1, Revision: 1, Streams: []wire.ReportedItem{
		{Channel: r.c.ID, Origin: wire.OriginCloud, Mode: nvr.ModeOnDemand, State: wire.Failed, Stream: wire.StateAuthFailed, Problem: "The camera refuses the password."},
	}})
	says(r.c.ID, "The camera refuses the password.")
}
