package nvr_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

func TestStartAndStop(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, key := w.Hub(t, acct)
	ctx := t.Context()
	without := w.Channel(t, acct, "")
	if _, err := w.StartChannel(ctx, acct, without.ID, nvr.StartOptions{Queue: true}); !errors.Is(err, vms.ErrConflict) {
		t.Errorf("start without a hub = %v, want ErrConflict", err)
	}
	c := w.Channel(t, acct, hub)
	before := desired(t, w, hub)
	for name, order := range map[string]func(context.Context, vms.AccountID, vms.ChannelID, nvr.StartOptions) (nvr.StartResult, error){
		"start": w.StartChannel, "stop": w.StopChannel,
	} {
		if _, err := order(ctx, acct, c.ID, nvr.StartOptions{}); !errors.Is(err, vms.ErrConflict) || !strings.Contains(err.Error(), "offline") {
			t.Errorf("%s with the hub offline = %v, want ErrConflict", name, err)
		}
	}
	if d := desired(t, w, hub); d.Revision != before.Revision || order(d, c.ID).Active {
		t.Errorf("a start that was refused changed something: %+v", d)
	}

	online(w, hub)
	first, err := w.StartChannel(ctx, acct, c.ID, nvr.StartOptions{})
	if err != nil || first.Revision <= before.Revision || !first.HubOnline || first.Report != nil {
		t.Fatalf("StartChannel = %+v, %v", first, err)
	}
	d := desired(t, w, hub)
	o := order(d, c.ID)
	if d.Hub != hub || d.Revision != first.Revision || !o.Active || o.NVRURL != w.NVRURL || o.Mode != nvr.ModeOnDemand || !o.Until.IsZero() {
		t.Errorf("the hub is to do %+v", d)
	}
	if cam := camera(t, key, o); cam.URL != "rtsp://admin:hunter2@10.0.0.7/stream" {
		t.Errorf("the hub gets camera %+v", cam)
	}
	again, err := w.StartChannel(ctx, acct, c.ID, nvr.StartOptions{}) // the second time is the same
	if err != nil || again.Revision != first.Revision || order(desired(t, w, hub), c.ID).SID != o.SID {
		t.Errorf("a second start = %+v, %v, want nothing new", again, err)
	}
	if got, _ := w.NVR.Channel(ctx, acct, c.ID); !got.Wanted || got.WantedBy != nvr.WantedByRequest || got.State != wire.StateStarting {
		t.Errorf("after a start channel = %+v, want starting", got)
	}
	if x, err := w.Store.Session(ctx, o.SID); err != nil || x.Hub != hub || x.State != nvr.SessionOpen {
		t.Errorf("declared session = %+v, %v", x, err)
	}

	stop(t, w, c.ID)
	if x, _ := w.Store.Session(ctx, o.SID); x.State != nvr.SessionEnded {
		t.Errorf("after a stop the session is %s", x.State)
	}
	if s := order(desired(t, w, hub), c.ID); s == nil || s.Active || s.SID != "" || len(s.Camera) == 0 {
		t.Errorf("after a stop the hub is told %+v, want the camera and nothing to do", s)
	}
	if s := start(t, w, c); s.SID == o.SID {
		t.Error("a new start reuses the session that ended")
	}
}

// A stream may run that the LAN started, of which the cloud wants nothing: the hub
// is told of every stop, with its revision, and of no other end.
func TestHubIsToldOfEveryStop(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	l := online(w, hub)
	running(t, w)
	told := func(want int64) {
		t.Helper()
		for { // documents are also told when the hub comes
			if d, ok := recv(t, l.told).(*wire.Desired); ok && d.Revision >= want {
				if s := order(d, c.ID); s.Stopped != want || s.Active {
					t.Errorf("told %+v, want that it was stopped with revision %d", s, want)
				}
				return
			}
		}
	}
	was := desired(t, w, hub).Revision
	for range 2 {
		r, err := w.StopChannel(t.Context(), acct, c.ID, nvr.StartOptions{})
		if err != nil || r.Revision <= was {
			t.Fatalf("StopChannel = %+v, %v, want a revision after %d", r, err, was)
		}
		was = r.Revision
		told(was)
	}
	// It is remembered while the channel is started, ends by itself, and is changed.
	w.Clock.Add(time.Minute)
	if _, err := w.StartChannel(t.Context(), acct, c.ID, nvr.StartOptions{Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if s := order(desired(t, w, hub), c.ID); !s.Active || s.Stopped != was {
		t.Errorf("after a start %+v, want stopped with revision %d", s, was)
	}
	w.Clock.Add(time.Minute)
	if err := w.EndTransient(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := order(desired(t, w, hub), c.ID); s.Active || s.Stopped != was {
		t.Errorf("after its time %+v, want stopped with revision %d", s, was)
	}
	// Another hub counts otherwise.
	next, _ := w.Hub(t, acct)
	if _, err := w.UpdateChannel(t.Context(), acct, c.ID, nvr.ChannelPatch{Hub: &next}); err != nil {
		t.Fatal(err)
	}
	if s := order(desired(t, w, next), c.ID); s.Stopped != 0 {
		t.Errorf("the next hub is told %+v", s)
	}
}

func TestOrdersWaitForAHubThatIsAway(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	r, err := w.StartChannel(t.Context(), acct, c.ID, nvr.StartOptions{Queue: true})
	if err != nil || r.HubOnline || r.Revision == 0 {
		t.Fatalf("StartChannel = %+v, %v, want the order to be taken", r, err)
	}
	if d := desired(t, w, hub); !order(d, c.ID).Active || d.Revision != r.Revision {
		t.Errorf("the hub will be told %+v", d)
	}
	if got, _ := w.NVR.Channel(t.Context(), acct, c.ID); got.Problem != "The hub is offline." {
		t.Errorf("channel %+v, want the cause", got)
	}
}

func TestTimeoutIsForChannelsOnDemand(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	online(w, hub)
	until := func() time.Time { return order(desired(t, w, hub), c.ID).Until }
	for _, tt := range []struct {
		timeout time.Duration
		want    time.Time
	}{{time.Hour, w.Clock.Now().Add(time.Hour)}, {time.Minute, w.Clock.Now().Add(time.Minute)}, {0, time.Time{}}} {
		if _, err := w.StartChannel(t.Context(), acct, c.ID, nvr.StartOptions{Timeout: tt.timeout}); err != nil {
			t.Fatal(err)
		}
		if got := until(); !got.Equal(tt.want) {
			t.Errorf("started for %s it ends at %s, want %s", tt.timeout, got, tt.want)
		}
	}
	mode := nvr.ModeContinuous
	if _, err := w.UpdateChannel(t.Context(), acct, c.ID, nvr.ChannelPatch{Mode: &mode}); err != nil {
		t.Fatal(err)
	}
	for _, timeout := range []time.Duration{time.Hour, -1, 1000 * 24 * time.Hour} {
		if _, err := w.StartChannel(t.Context(), acct, c.ID, nvr.StartOptions{Timeout: timeout}); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("start of a continuous channel for %s = %v, want ErrInvalid", timeout, err)
		}
	}
	if _, err := w.StopChannel(t.Context(), acct, c.ID, nvr.StartOptions{Timeout: time.Hour}); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("stop with a timeout = %v, want ErrInvalid", err)
	}
}

// obedient is a hub that does what it is told over its control line, after a
// while, and says so.
type obedient struct {
	w     *nvrtest.World
	hub   vms.HubID
	after time.Duration

	wg     sync.WaitGroup
	mu     sync.Mutex
	state  wire.SyncState // of what is active
	silent bool
	serial int64
}

func (o *obedient) be(state wire.SyncState, silent bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.state, o.silent = state, silent
}

func (o *obedient) hear(m wire.SessionMessage) {
	o.mu.Lock()
	silent := o.silent
	o.mu.Unlock()
	d, ok := m.(*wire.Desired)
	if !ok || silent {
		return
	}
	o.wg.Go(func() {
		time.Sleep(o.after)
		o.mu.Lock()
		defer o.mu.Unlock()
		o.serial++
		r := &wire.Reported{Hub: o.hub, Boot: "boot_1", Online: true, Serial: o.serial, Revision: d.Revision, State: wire.InSync}
		for _, s := range d.Streams {
			item := wire.ReportedItem{Channel: s.Channel, SID: s.SID, Origin: wire.OriginCloud, Mode: s.Mode, State: wire.InSync}
			if s.Active {
				item.State, item.Running, item.Stream, item.Problem = o.state, o.state == wire.InSync, wire.StateStarting, "no room"
			}
			r.Streams = append(r.Streams, item)
		}
		o.w.HubReported(context.Background(), nvr.Session{Account: acct, Hub: o.hub}, r)
	})
}

// inBubble runs f with an NVR whose clock is the bubble's, and a hub on its line.
func inBubble(t *testing.T, f func(t *testing.T, w *nvrtest.World, o *obedient, c nvr.Channel)) {
	synctest.Test(t, func(t *testing.T) {
		w := nvrtest.New(t, func(c *nvr.Config) { c.Clock = time.Now; c.ReconcileEvery = 1000 * time.Hour })
		ctx, end := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		hub, _ := w.Hub(t, acct)
		c := w.Channel(t, acct, hub)
		o := &obedient{w: w, hub: hub, after: time.Second, state: wire.InSync}
		l := newLink()
		l.hears = o.hear
		w.HubConnected(nvr.Session{Account: acct, Hub: hub}, "boot_1", l)
		f(t, w, o, c)
		end()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		o.wg.Wait()
	})
}

func TestStartWaitsForTheHub(t *testing.T) {
	inBubble(t, func(t *testing.T, w *nvrtest.World, o *obedient, c nvr.Channel) {
		order := func(what string, wait time.Duration) (nvr.StartResult, time.Duration, error) {
			begin := time.Now()
			do := w.StartChannel
			if what == "stop" {
				do = w.StopChannel
			}
			r, err := do(t.Context(), acct, c.ID, nvr.StartOptions{Wait: wait})
			return r, time.Since(begin), err
		}
		r, took, err := order("start", 10*time.Second)
		if err != nil || took != time.Second || r.Report == nil || r.Report.State != wire.InSync || !r.Report.Running {
			t.Errorf("start = %+v, %v after %s", r, err, took)
		}
		if r, took, err = order("start", 10*time.Second); err != nil || took != 0 || r.Report == nil {
			t.Errorf("start of what runs = %+v, %v after %s, want it at once", r, err, took)
		}
		if r, took, err = order("stop", 10*time.Second); err != nil || took != time.Second || r.Report.Running {
			t.Errorf("stop = %+v, %v after %s", r, err, took)
		}
		o.be(wire.Failed, false)
		if _, took, err = order("start", 10*time.Second); !errors.Is(err, vms.ErrConflict) || !strings.Contains(err.Error(), "no room") || took != time.Second {
			t.Errorf("start that fails = %v after %s, want ErrConflict and why", err, took)
		}
		if got, _ := w.NVR.Channel(t.Context(), acct, c.ID); !got.Wanted || got.Sync != wire.Failed || got.Problem != "no room" {
			t.Errorf("the hub tries again: channel = %+v, want it wanted, and the problem", got)
		}
		stop(t, w, c.ID)
		o.be(wire.InSync, true)
		r, took, err = order("start", 3*time.Second)
		if !errors.Is(err, context.DeadlineExceeded) || took != 3*time.Second || r.Revision == 0 {
			t.Errorf("start without an answer = %+v, %v after %s, want DeadlineExceeded", r, err, took)
		}
		if got, _ := w.NVR.Channel(t.Context(), acct, c.ID); !got.Wanted {
			t.Error("the order does not stand")
		}
		// One that is waited for while the caller goes away.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.StopChannel(ctx, acct, c.ID, nvr.StartOptions{Wait: time.Minute}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stop of a caller who went away = %v", err)
		}
	})
}

// A report of an earlier document answers nothing, whatever it says.
func TestAnOldReportIsNoAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T, w *nvrtest.World, o *obedient, c nvr.Channel) {
		o.be(wire.InSync, true)
		time.Sleep(time.Second)
		report := func(serial, revision int64, state wire.SyncState, items ...wire.ReportedItem) {
			w.Reported(t.Context(), &wire.Reported{Hub: o.hub, Boot: "boot_1", Online: true, Serial: serial, Revision: revision, State: state, Problem: "cannot read it", Streams: items})
		}
		item := wire.ReportedItem{Channel: c.ID, Origin: wire.OriginCloud, Mode: nvr.ModeOnDemand, State: wire.InSync}
		was := desired(t, w, o.hub).Revision
		go func() {
			time.Sleep(time.Second)
			report(1, was, wire.Failed, item)
			time.Sleep(time.Second)
			syncing := item
			syncing.State = wire.Syncing
			report(2, desired(t, w, o.hub).Revision, wire.Syncing, syncing)
			time.Sleep(time.Second)
			report(3, desired(t, w, o.hub).Revision, wire.InSync, item)
		}()
		begin := time.Now()
		if _, err := w.StartChannel(t.Context(), acct, c.ID, nvr.StartOptions{Wait: 10 * time.Second}); err != nil || time.Since(begin) != 3*time.Second {
			t.Errorf("StartChannel = %v after %s, want the third report to answer", err, time.Since(begin))
		}
		stop(t, w, c.ID)
		go func() {
			time.Sleep(time.Second)
			report(4, desired(t, w, o.hub).Revision, wire.Failed) // refuses the whole document
		}()
		if _, err := w.StartChannel(t.Context(), acct, c.ID, nvr.StartOptions{Wait: 10 * time.Second}); !errors.Is(err, vms.ErrConflict) || !strings.Contains(err.Error(), "cannot read it") {
			t.Errorf("StartChannel = %v, want what the hub says of the document", err)
		}
	})
}

// Whoever asks at once, and in whichever order it comes: what is wanted in the
// end, the document, the session and the idle times agree.
func TestTwoRequestsAtOnce(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	other, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	online(w, hub)
	online(w, other)
	for round := range 50 {
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				var err error
				switch i % 3 {
				case 0:
					_, err = w.StartChannel(t.Context(), acct, c.ID, nvr.StartOptions{})
				case 1:
					_, err = w.StopChannel(t.Context(), acct, c.ID, nvr.StartOptions{})
				case 2:
					_, err = w.UpdateChannel(t.Context(), acct, c.ID, nvr.ChannelPatch{Hub: &[]vms.HubID{hub, other}[round%2]})
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		row, err := w.Store.Channel(t.Context(), c.ID)
		if err != nil {
			t.Fatal(err)
		}
		idle, err := w.Store.Idle(t.Context(), c.ID, w.Clock.Now().Add(-time.Hour), w.Clock.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		stopped := len(idle) > 0 && idle[len(idle)-1].End.After(w.Clock.Now())
		o := order(desired(t, w, row.Hub), c.ID)
		if o.Active != row.Wanted || o.SID != row.SID || (row.SID != "") != row.Wanted || stopped == row.Wanted {
			t.Fatalf("round %d: row %+v, order %+v, idle %v", round, row, o, idle)
		}
		if row.Wanted {
			if s, err := w.Store.Session(t.Context(), row.SID); err != nil || s.State != nvr.SessionOpen || s.Hub != row.Hub {
				t.Fatalf("round %d: session %+v, %v", round, s, err)
			}
		}
		w.Clock.Add(time.Minute)
	}
}

func TestHubIsToldWhatToDoWhenItComes(t *testing.T) {
	vmstest.NoLeaks(t)
	w := nvrtest.New(t, func(c *nvr.Config) {
		c.Broker = func(hub vms.HubID) wire.Broker {
			return wire.Broker{URL: "mqtts://mq", Username: string(hub), Password: "p"}
		}
	})
	running(t, w)
	hub, _ := w.Hub(t, acct)
	first := online(w, hub)
	if b, ok := recv(t, first.told).(*wire.Broker); !ok || b.URL != "mqtts://mq" || b.Username != string(hub) {
		t.Errorf("told %+v, want the broker", b)
	}
	if d, ok := recv(t, first.told).(*wire.Desired); !ok || len(d.Streams) != 0 || d.Revision == 0 {
		t.Errorf("told %+v, want that there is nothing to do", d)
	}
	c := w.Channel(t, acct, hub)
	last := recv(t, first.told).(*wire.Desired)
	start(t, w, c)
	for !order(last, c.ID).Active {
		last = recv(t, first.told).(*wire.Desired)
	}
	w.HubGone(nvr.Session{Account: acct, Hub: hub}, first)
	spec := nvr.ChannelSpec{Name: "Always", Hub: hub, Mode: nvr.ModeContinuous, Camera: vms.Camera{Host: "10.0.0.8"}}
	always, err := w.CreateChannel(t.Context(), acct, spec)
	if err != nil {
		t.Fatal(err)
	}
	if always.State != wire.StateStarting || always.Problem == "" || !always.Wanted {
		t.Errorf("a wanted channel of a hub that is offline = %+v", always)
	}
	second := online(w, hub)
	recv(t, second.told) // the broker
	d := recv(t, second.told).(*wire.Desired)
	if len(d.Streams) != 2 || !order(d, c.ID).Active || !order(d, always.ID).Active || d.Revision <= last.Revision {
		t.Errorf("told %+v, want both channels to run", d)
	}
}

// The store fails while a hub is to be told: it is told later.
func TestHubIsToldAfterTheStoreFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nvrtest.New(t, func(c *nvr.Config) { c.ReconcileEvery = 1000 * time.Hour })
		hub, _ := w.Hub(t, acct)
		ctx, end := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		synctest.Wait()
		w.Store.Fail(errors.New("disk on fire"))
		l := online(w, hub)
		time.Sleep(time.Minute)
		if n := len(l.sent()); n != 0 {
			t.Errorf("told %d messages without a store", n)
		}
		w.Store.Fail(nil)
		time.Sleep(6 * time.Second)
		if sent := l.sent(); len(sent) != 1 {
			t.Errorf("told %+v, want the document once", sent)
		}
		end()
		<-done
	})
}

// A channel that was wanted without a session, as releases before left them, has one.
func TestDesiredDeclaresSessions(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	id := vms.ChannelID("ch_old")
	row := nvr.ChannelRow{ID: id, Account: acct, Hub: hub, Name: "x", Mode: nvr.ModeContinuous, Wanted: true, Camera: vms.Camera{Host: "10.0.0.8"}, CreatedAt: w.Clock.Now()}
	if err := w.Store.CreateChannel(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	sids := make([]vms.SID, 8)
	for i := range sids { // at once
		wg.Go(func() {
			if d, err := w.Desired(t.Context(), hub); err == nil {
				sids[i] = order(d, id).SID
			}
		})
	}
	wg.Wait()
	for _, sid := range sids {
		if s, err := w.Store.Session(t.Context(), sid); err != nil || s.State != nvr.SessionOpen || s.Hub != hub || sid != sids[0] {
			t.Errorf("sessions %v: %+v, %v", sids, s, err)
		}
	}
}

func TestHubTakesSoManyChannels(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	for range wire.MaxStreams {
		w.Channel(t, acct, hub)
	}
	spec := nvr.ChannelSpec{Name: "one more", Hub: hub, Camera: vms.Camera{Host: "10.0.0.8"}}
	if _, err := w.CreateChannel(t.Context(), acct, spec); !errors.Is(err, vms.ErrConflict) {
		t.Errorf("one channel too many = %v, want ErrConflict", err)
	}
	free := w.Channel(t, acct, "")
	if _, err := w.UpdateChannel(t.Context(), acct, free.ID, nvr.ChannelPatch{Hub: &hub}); !errors.Is(err, vms.ErrConflict) {
		t.Errorf("a channel moved to a full hub = %v, want ErrConflict", err)
	}
	if d := desired(t, w, hub); len(d.Streams) != wire.MaxStreams {
		t.Errorf("the hub is told of %d channels", len(d.Streams))
	}
}

// Channels with templates of the greatest length do not keep the wanted ones from their hub.
func TestDocumentThatIsTooLong(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	long := vms.Camera{Host: "10.0.0.8", Templates: map[string]string{}}
	for _, k := range []string{"high", "mid", "low", "mjpeg", "snapshot"} {
		long.Templates[k] = "rtsp://{host}/" + strings.Repeat("x", 1900)
	}
	var wanted []vms.ChannelID
	for i := range 40 {
		spec := nvr.ChannelSpec{Name: fmt.Sprint(i), Hub: hub, Camera: long}
		if i%4 == 0 {
			spec.Mode = nvr.ModeContinuous
		}
		c, err := w.CreateChannel(t.Context(), acct, spec)
		if err != nil {
			t.Fatal(err)
		}
		if c.Wanted {
			wanted = append(wanted, c.ID)
		}
	}
	d := desired(t, w, hub)
	for _, id := range wanted {
		if o := order(d, id); o == nil || !o.Active {
			t.Errorf("channel %s is not in the document", id)
		}
	}
}

func TestMovedChannel(t *testing.T) {
	w := nvrtest.New(t, nil)
	a, _ := w.Hub(t, acct)
	b, keyB := w.Hub(t, acct)
	c := w.Channel(t, acct, a)
	online(w, a)
	old := start(t, w, c)
	before := desired(t, w, a).Revision
	moved, err := w.UpdateChannel(t.Context(), acct, c.ID, nvr.ChannelPatch{Hub: &b})
	if err != nil || !moved.Wanted || moved.Problem != "The hub is offline." {
		t.Fatalf("UpdateChannel = %+v, %v", moved, err)
	}
	if d := desired(t, w, a); order(d, c.ID) != nil || d.Revision <= before {
		t.Errorf("the old hub is told %+v", d)
	}
	o := order(desired(t, w, b), c.ID)
	if o == nil || !o.Active || o.SID == old.SID || camera(t, keyB, o).Password != "hunter2" {
		t.Errorf("the new hub is told %+v", o)
	}
	now, err := w.Store.Session(t.Context(), o.SID)
	if was, err2 := w.Store.Session(t.Context(), old.SID); err != nil || err2 != nil || was.State != nvr.SessionEnded || now.Hub != b {
		t.Errorf("sessions %+v and %+v", was, now)
	}
	// The old hub still brings what it holds.
	w.Worker(t, worker)
	if a := assign(t, w, old, &wire.SessionHello{}, newLink()); a == nil {
		t.Error("the old hub cannot bring what it holds")
	}
	none := vms.HubID("")
	if got, err := w.UpdateChannel(t.Context(), acct, c.ID, nvr.ChannelPatch{Hub: &none}); err != nil || got.Problem != "The channel has no hub." {
		t.Errorf("UpdateChannel = %+v, %v", got, err)
	}
	if d := desired(t, w, b); len(d.Streams) != 0 {
		t.Errorf("a hub is told of a channel that it lost: %+v", d)
	}
	if x, err := w.Store.Session(t.Context(), o.SID); err != nil || x.State != nvr.SessionEnded {
		t.Errorf("the session of a hub that lost the channel is %+v, %v", x, err)
	}
}

func TestRevokedHubIsToldNothing(t *testing.T) {
	var revoked []vms.HubID
	w := nvrtest.New(t, func(c *nvr.Config) { c.HubRevoked = func(id vms.HubID) { revoked = append(revoked, id) } })
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	l := online(w, hub)
	start(t, w, c)
	published := desired(t, w, hub).Revision
	if err := w.Published(t.Context(), hub, published); err != nil {
		t.Fatal(err)
	}
	<-w.DesiredChanged()
	events := w.Subscribe(t.Context(), acct)
	if err := w.RevokeHub(t.Context(), acct, hub); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.DesiredChanged():
	default:
		t.Error("nobody is told that a document is to be cleared")
	}
	if e := recv(t, events); e.Type != nvr.EventHubOffline || e.Hub != hub {
		t.Errorf("event %+v, want that the hub is offline", e)
	}
	if why, _ := l.ended(); why == "" || len(revoked) != 1 || revoked[0] != hub {
		t.Errorf("the control line was not closed (%q), or the broker not told (%v)", why, revoked)
	}
	if _, err := w.Desired(t.Context(), hub); !errors.Is(err, vms.ErrNotFound) {
		t.Errorf("Desired of a revoked hub = %v, want ErrNotFound", err)
	}
	dirty := func() int {
		t.Helper()
		hubs, err := w.DirtyHubs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(hubs)
	}
	if err := w.Published(t.Context(), hub, published); err != nil || dirty() != 1 { // of before, told late
		t.Errorf("the document of a revoked hub need not be cleared (%v)", err)
	}
	w.Reported(t.Context(), &wire.Reported{Hub: hub, Boot: "b", Online: true, Serial: 1}) // its retained message
	if e, ok := w.NVR.Hub(t.Context(), acct, hub); ok == nil {
		t.Errorf("a revoked hub is there: %+v", e)
	}
	if err := w.Published(t.Context(), hub, 0); err != nil || dirty() != 0 {
		t.Errorf("the document is cleared and still to be cleared (%v)", err)
	}
	// Its channel is without a hub; another hub runs it from where it was.
	next, _ := w.Hub(t, acct)
	if _, err := w.UpdateChannel(t.Context(), acct, c.ID, nvr.ChannelPatch{Hub: &next}); err != nil {
		t.Fatal(err)
	}
	if o := order(desired(t, w, next), c.ID); o == nil || !o.Active || o.SID == "" {
		t.Errorf("the next hub is told %+v", o)
	}
	if err := w.Published(t.Context(), next, 0); err != nil || dirty() != 1 {
		t.Errorf("a cleared document made a hub clean that has one (%v)", err)
	}
}

func TestPatchHub(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	before := desired(t, w, hub).Revision
	str := func(s string) *string { return &s }
	h, err := w.UpdateHub(t.Context(), acct, hub, nvr.HubPatch{Name: str("Villa"), TimeZone: str("Europe/Zagreb"), Uplink: str("mon-fri 08:00-18:00=500k, 22:00-06:00=none, 1.5M")})
	if err != nil || h.Name != "Villa" || h.Revision <= before {
		t.Fatalf("UpdateHub = %+v, %v", h, err)
	}
	if d := desired(t, w, hub); d.TimeZone != "Europe/Zagreb" || d.Limits.Uplink != h.Limits.Uplink || d.Revision != h.Revision {
		t.Errorf("the hub is told %+v", d)
	}
	for field, patches := range map[string][]nvr.HubPatch{
		"name":      {{Name: str("")}, {Name: str("a\nb")}},
		"time_zone": {{TimeZone: str("Mars/Olympus")}, {TimeZone: str("Local")}, {TimeZone: str("../etc/passwd")}, {TimeZone: str("CET+1")}},
		"limits.uplink": {
			{Uplink: str("fast")}, {Uplink: str("mon-fry=1M")}, {Uplink: str("mon=")}, {Uplink: str("=1M")}, {Uplink: str("1M,")}, {Uplink: str("1e9")},
			{Uplink: str(strings.Repeat("1M, ", 400))},
		},
	} {
		for _, p := range patches {
			_, err := w.UpdateHub(t.Context(), acct, hub, p)
			var fe *nvr.FieldError
			if !errors.As(err, &fe) || fe.Field != field {
				t.Errorf("UpdateHub(%+v) = %v, want an error of %s", p, err, field)
			}
		}
	}
	if got, _ := w.NVR.Hub(t.Context(), acct, hub); got.Revision != h.Revision || got.TimeZone != "Europe/Zagreb" {
		t.Errorf("after refused changes the hub is %+v", got)
	}
}
