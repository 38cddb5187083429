package nvr_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// presence is a hub that comes and goes in both ways.
type presence struct {
	t    *testing.T
	w    *nvrtest.World
	hub  vms.HubID
	seen <-chan nvr.Event
	line *link
}

func newPresence(t *testing.T) *presence {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	return &presence{t: t, w: w, hub: hub, seen: w.Subscribe(t.Context(), acct)}
}

// report is said over MQTT; at is minutes on the hub's clock.
func (p *presence) report(boot string, serial int64, at int, revision int64) {
	p.w.Reported(p.t.Context(), p.word(boot, serial, at, revision))
}

func (p *presence) word(boot string, serial int64, at int, revision int64) *wire.Reported {
	return &wire.Reported{Hub: p.hub, Boot: boot, Online: true, Serial: serial, At: p.w.Clock.Now().Add(time.Duration(at) * time.Minute), Revision: revision, State: wire.InSync}
}

// will is a hub's last word over MQTT.
func (p *presence) will(boot string) {
	p.w.Reported(p.t.Context(), &wire.Reported{Hub: p.hub, Boot: boot})
}

func (p *presence) connect(boot string) {
	p.line = newLink()
	p.w.HubConnected(nvr.Session{Account: acct, Hub: p.hub}, boot, p.line)
}

func (p *presence) hangUp() { p.w.HubGone(nvr.Session{Account: acct, Hub: p.hub}, p.line) }

// expect says how the hub is seen, and which events there were.
func (p *presence) expect(what string, online, mqtt bool, boot string, events ...nvr.EventType) {
	p.t.Helper()
	h, err := p.w.NVR.Hub(p.t.Context(), acct, p.hub)
	if err != nil {
		p.t.Fatal(err)
	}
	said := ""
	if h.Reported != nil {
		said = h.Reported.Boot
	}
	if h.Online != online || h.MQTT != mqtt || said != boot {
		p.t.Errorf("%s: online %v, mqtt %v, report of %q, want %v, %v, %q", what, h.Online, h.MQTT, said, online, mqtt, boot)
	}
	for _, want := range events {
		if e := recv(p.t, p.seen); e.Type != want || e.Hub != p.hub {
			p.t.Errorf("%s: event %+v, want %s", what, e, want)
		}
	}
	select {
	case e := <-p.seen:
		p.t.Errorf("%s: one more event %+v", what, e)
	default:
	}
}

func TestPresenceInTwoWays(t *testing.T) {
	p := newPresence(t)
	p.expect("at first", false, false, "")
	p.will("b0") // retained, of before we started
	p.expect("last will", false, false, "")
	p.report("b1", 1, 0, 0)
	p.expect("report", true, true, "b1", nvr.EventHubOnline)
	p.report("b1", 1, 0, 0)
	p.connect("b1")
	p.expect("both ways", true, true, "b1")
	p.will("b1")
	p.expect("MQTT lost", true, false, "b1")
	p.report("b1", 1, 0, 0) // the same again, as the agent does when it finds its will
	p.expect("MQTT back", true, true, "b1")
	p.hangUp()
	p.expect("line lost", true, true, "b1")
	p.hangUp() // told twice
	p.will("b1")
	p.expect("gone", false, false, "b1", nvr.EventHubOffline)
	p.will("b1")
	p.expect("gone, told twice", false, false, "b1")
	p.connect("b2")
	p.expect("another boot on the line", true, false, "b1", nvr.EventHubOnline)
	p.report("b1", 1, 0, 0) // the broker remembers it
	p.expect("the boot before, over MQTT", true, false, "b1")
	p.w.HubReported(p.t.Context(), nvr.Session{Account: acct, Hub: p.hub}, p.word("b2", 1, 1, 0))
	p.expect("it speaks on the line", true, false, "b2")
	p.report("b1", 9, 0, 0) // retained: the broker has come back
	p.will("b1")
	p.expect("what MQTT says of the boot before", true, false, "b2")
	p.hangUp()
	p.report("b1", 9, 0, 0)
	p.expect("and while nothing is there", false, false, "b2", nvr.EventHubOffline)
	p.report("b2", 2, 2, 0)
	p.expect("its own", true, true, "b2", nvr.EventHubOnline)
	p.w.HubReported(p.t.Context(), nvr.Session{Account: acct, Hub: "hub_other"}, p.word("b3", 1, 9, 0))
	p.expect("a report for another hub", true, true, "b2")
}

func TestTheNewestReportCounts(t *testing.T) {
	p := newPresence(t)
	revision := func() int64 {
		h, err := p.w.NVR.Hub(t.Context(), acct, p.hub)
		if err != nil {
			t.Fatal(err)
		}
		return h.Reported.Revision
	}
	for i, step := range []struct {
		boot     string
		serial   int64
		at       int
		revision int64
		want     int64
	}{
		{"b1", 1, 0, 1, 1},
		{"b1", 3, 2, 3, 3},
		{"b1", 2, 1, 2, 3}, // came late
		{"b1", 3, 2, 3, 3},
		{"b2", 1, 1, 4, 3}, // retained of a boot before, as far as its clock tells
		{"b2", 1, 5, 5, 5}, // restarted, and its will is lost
		{"b1", 9, 4, 9, 5}, // the boot before
		{"b2", 2, 5, 6, 6}, // a clock that was set back changes nothing within a boot
		{"b2", 3, 0, 7, 7},
	} {
		p.report(step.boot, step.serial, step.at, step.revision)
		if got := revision(); got != step.want {
			t.Errorf("step %d: revision %d is known, want %d", i, got, step.want)
		}
	}
	p.w.Reported(t.Context(), &wire.Reported{Hub: p.hub, Boot: "b2", Serial: 1}) // a goodbye of before, delivered again
	if h, _ := p.w.NVR.Hub(t.Context(), acct, p.hub); !h.MQTT {
		t.Error("an old goodbye counts")
	}
	// A boot that said goodbye is followed by any other, whatever its clock says.
	p.will("b2")
	p.report("b3", 1, -1000, 8)
	if got := revision(); got != 8 {
		t.Errorf("after a goodbye revision %d is known, want 8", got)
	}
}

// After a restart of ours everything is known again from what the broker has
// retained, and no hub is told to have come before it has spoken.
func TestPresenceAfterARestart(t *testing.T) {
	p := newPresence(t)
	c := p.w.Channel(t, acct, p.hub)
	again, err := nvr.New(p.w.Config)
	if err != nil {
		t.Fatal(err)
	}
	r := p.word("b1", 7, 0, 3)
	r.Streams = []wire.ReportedItem{{Channel: c.ID, Origin: wire.OriginLAN, Mode: nvr.ModeOnDemand, State: wire.InSync, Running: true, Recording: true, Stream: wire.StateBuffering, Problem: "No uplink."}}
	again.Reported(t.Context(), r)
	h, err := again.Hub(t.Context(), acct, p.hub)
	if err != nil || !h.Online || !h.MQTT || h.Reported == nil {
		t.Errorf("hub %+v, %v", h, err)
	}
	got, err := again.Channel(t.Context(), acct, c.ID)
	if err != nil || got.State != wire.StateBuffering || got.Problem != "No uplink." || got.Sync != wire.InSync || !got.Recording {
		t.Errorf("channel %+v, %v, want what the hub says of it", got, err)
	}
	// The store is away while the first report comes: the next one is taken.
	p.w.Store.Fail(errors.New("disk on fire"))
	third, err := nvr.New(p.w.Config)
	if err != nil {
		t.Fatal(err)
	}
	third.Reported(t.Context(), r)
	p.w.Store.Fail(nil)
	if h, _ := third.Hub(t.Context(), acct, p.hub); h.Online {
		t.Error("a hub is online of which nothing could be found out")
	}
	third.Reported(t.Context(), r)
	if h, _ := third.Hub(t.Context(), acct, p.hub); !h.Online {
		t.Error("a report was not taken when the store was back")
	}
	third.Reported(context.Background(), &wire.Reported{Hub: "hub_none", Boot: "b", Online: true, Serial: 1})
}

// A database that was restored from a backup is behind its hubs: it catches up,
// and is obeyed.
func TestRevisionNeverFallsBehindAHub(t *testing.T) {
	p := newPresence(t)
	p.w.Channel(t, acct, p.hub)
	have := desired(t, p.w, p.hub).Revision
	if err := p.w.Published(t.Context(), p.hub, have); err != nil {
		t.Fatal(err)
	}
	for serial, tt := range []struct {
		seen, want int64
	}{
		{0, have}, {have, have}, {have + 1_000_000, have + 1_000_001}, {have + 1_000_001, have + 1_000_001},
		{math.MaxInt64 - 1, have + 1_000_001}, // nobody issued that, and there would be no higher one
	} {
		p.report("b1", int64(serial+1), serial, tt.seen)
		d := desired(t, p.w, p.hub)
		dirty, err := p.w.DirtyHubs(t.Context())
		if err != nil || d.Revision != tt.want || len(d.Streams) != 1 || (len(dirty) == 1) != (tt.want > have) {
			t.Errorf("a hub that has seen %d is told revision %d, dirty %v, %v, want %d", tt.seen, d.Revision, dirty, err, tt.want)
		}
	}
	// The store fails meanwhile: the hub's next report is compared again.
	p.w.Store.Fail(errors.New("disk on fire"))
	p.report("b1", 10, 10, have+2_000_000)
	p.w.Store.Fail(nil)
	p.report("b1", 11, 11, have+2_000_000)
	if d := desired(t, p.w, p.hub); d.Revision != have+2_000_001 {
		t.Errorf("revision %d, want %d", d.Revision, have+2_000_001)
	}
}

func TestChannelStateFromTheReport(t *testing.T) {
	item := func(f func(*wire.ReportedItem)) *wire.ReportedItem {
		i := wire.ReportedItem{Origin: wire.OriginCloud, Mode: nvr.ModeOnDemand, State: wire.InSync}
		f(&i)
		return &i
	}
	for _, tt := range []struct {
		name   string
		mode   nvr.Mode
		wanted bool
		item   *wire.ReportedItem
		want   string
	}{
		{"no word", nvr.ModeOnDemand, false, nil, nvr.StateIdle},
		{"no word of what is wanted", nvr.ModeOnDemand, true, nil, wire.StateStarting},
		{"idle", nvr.ModeOnDemand, false, item(func(*wire.ReportedItem) {}), nvr.StateIdle},
		{"not heard yet", nvr.ModeOnDemand, true, item(func(*wire.ReportedItem) {}), wire.StateStarting},
		{"runs", nvr.ModeOnDemand, true, item(func(i *wire.ReportedItem) { i.Running, i.Stream = true, wire.StateStreaming }), wire.StateStreaming},
		{"runs on the LAN", nvr.ModeOnDemand, false, item(func(i *wire.ReportedItem) { i.Running, i.Stream = true, wire.StateStreaming }), wire.StateStreaming},
		{"camera away", nvr.ModeContinuous, true, item(func(i *wire.ReportedItem) { i.Running, i.Stream = true, wire.StateNoCamera }), wire.StateNoCamera},
		{"fails", nvr.ModeOnDemand, true, item(func(i *wire.ReportedItem) { i.State, i.Stream = wire.Failed, wire.StateAuthFailed }), wire.StateAuthFailed},
		{"not its hour", nvr.ModeScheduled, true, item(func(*wire.ReportedItem) {}), nvr.StateWaiting},
		{"its hour", nvr.ModeScheduled, true, item(func(i *wire.ReportedItem) { i.State = wire.Syncing }), wire.StateStarting},
		{"no event", nvr.ModeEvent, true, item(func(i *wire.ReportedItem) { i.Running, i.Stream = true, wire.StateStreaming }), nvr.StateWaiting},
		{"an event", nvr.ModeEvent, true, item(func(i *wire.ReportedItem) { i.Running, i.Recording, i.Stream = true, true, wire.StateStreaming }), wire.StateStreaming},
	} {
		p := newPresence(t)
		spec := nvr.ChannelSpec{Name: "x", Hub: p.hub, Mode: tt.mode, Schedule: "mon", Camera: vms.Camera{Host: "10.0.0.8"}}
		c, err := p.w.CreateChannel(t.Context(), acct, spec)
		if err != nil {
			t.Fatal(err)
		}
		r := p.word("b1", 1, 0, 1)
		if tt.item != nil {
			i := *tt.item
			i.Channel = c.ID
			r.Streams = append(r.Streams, i)
		}
		p.w.Reported(t.Context(), r)
		if tt.wanted {
			start(t, p.w, c)
		}
		got, err := p.w.NVR.Channel(t.Context(), acct, c.ID)
		if err != nil || got.State != tt.want || got.Problem != "" {
			t.Errorf("%s: state %q (%q), %v, want %q", tt.name, got.State, got.Problem, err, tt.want)
		}
		p.will("b1")
		if got, _ := p.w.NVR.Channel(t.Context(), acct, c.ID); got.Wanted && !strings.Contains(got.Problem, "offline") || got.Sync != "" {
			t.Errorf("%s: of a hub that has gone: %+v", tt.name, got)
		}
	}
}
