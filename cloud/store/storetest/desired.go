package storetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

func (f *fixture) revision(hub vms.HubID) int64 {
	f.Helper()
	h, err := f.s.Hub(f.Context(), hub)
	f.ok(err)
	return h.Revision
}

// change changes channel c1 of account a.
func (f *fixture) change(at time.Time, change func(*nvr.ChannelRow)) nvr.ChannelRow {
	f.Helper()
	row, err := f.s.UpdateChannel(f.Context(), "a", "c1", at, func(r *nvr.ChannelRow) error { change(r); return nil })
	f.ok(err)
	return row
}

func (f *fixture) dirty() []vms.HubID {
	f.Helper()
	hubs, err := f.s.DirtyHubs(f.Context())
	f.ok(err)
	return hubs
}

// publish makes a hub clean.
func (f *fixture) publish(hub vms.HubID) {
	f.Helper()
	f.ok(f.s.Published(f.Context(), hub, f.revision(hub)))
}

// Whatever changes what a hub should do, and nothing else, makes it dirty.
func revisions(_ *testing.T, f *fixture) {
	ctx := f.Context()
	code := nvr.CodeHash(sha256.Sum256([]byte("h0")))
	f.ok(f.s.CreateHub(ctx, nvr.Hub{ID: "h0", Account: "a", CreatedAt: t0}, code, t0.Add(time.Minute)))
	if dirty := f.dirty(); len(dirty) != 0 {
		f.Errorf("a hub that has not enrolled is to be told something: %v", dirty)
	}
	f.hub("a", "h1")
	f.hub("a", "h2")
	if dirty := f.dirty(); !slices.Equal(dirty, []vms.HubID{"h1", "h2"}) {
		f.Errorf("after the enrolment dirty hubs are %v, want both", dirty)
	}
	f.publish("h1")
	f.publish("h2")
	set := func(change func(*nvr.ChannelRow)) func() {
		return func() { f.change(t0, change) }
	}
	all := func(want ...vms.HubID) {
		f.Helper()
		if hubs, err := f.s.AllHubs(ctx); err != nil || !slices.Equal(hubs, want) {
			f.Errorf("AllHubs = %v, %v, want %v", hubs, err, want)
		}
	}
	all("h1", "h2")
	for _, tt := range []struct {
		name string
		do   func()
		want []vms.HubID
	}{
		{"create a channel elsewhere", func() { f.channel("a", "c0", "") }, nil},
		{"create", func() { f.channel("a", "c1", "h1") }, []vms.HubID{"h1"}},
		{"nothing", set(func(*nvr.ChannelRow) {}), nil},
		{"name", set(func(r *nvr.ChannelRow) { r.Name = "Gate" }), nil},
		{"mode", set(func(r *nvr.ChannelRow) { r.Mode = nvr.ModeEvent }), []vms.HubID{"h1"}},
		{"schedule", set(func(r *nvr.ChannelRow) { r.Schedule = "mon" }), []vms.HubID{"h1"}},
		{"pre-roll", set(func(r *nvr.ChannelRow) { r.PreRoll++ }), []vms.HubID{"h1"}},
		{"post-roll", set(func(r *nvr.ChannelRow) { r.PostRoll++ }), []vms.HubID{"h1"}},
		{"camera", set(func(r *nvr.ChannelRow) { r.Camera.Host = "10.0.0.8" }), []vms.HubID{"h1"}},
		{"template", set(func(r *nvr.ChannelRow) { r.Camera.Templates = map[string]string{"high": "rtsp://{host}/2"} }), []vms.HubID{"h1"}},
		{"password", set(func(r *nvr.ChannelRow) { r.Secret = []byte{9} }), []vms.HubID{"h1"}},
		{"start", set(func(r *nvr.ChannelRow) { r.Wanted, r.SID = true, "s1" }), []vms.HubID{"h1"}},
		{"until", set(func(r *nvr.ChannelRow) { r.WantedUntil = t0.Add(time.Hour) }), []vms.HubID{"h1"}},
		{"by whom", set(func(r *nvr.ChannelRow) { r.WantedBy = nvr.WantedByViewer }), nil},
		{"move", set(func(r *nvr.ChannelRow) { r.Hub, r.SID = "h2", "s2" }), []vms.HubID{"h1", "h2"}},
		{"stop", set(func(r *nvr.ChannelRow) { r.Wanted, r.SID = false, "" }), []vms.HubID{"h2"}},
		{"stop, which it was not wanted", set(func(r *nvr.ChannelRow) { r.StoppedRevision = nvr.StoppedNow }), []vms.HubID{"h2"}},
		{"the same again", set(func(r *nvr.ChannelRow) { r.StoppedRevision = nvr.StoppedNow }), []vms.HubID{"h2"}},
		{"take away", set(func(r *nvr.ChannelRow) { r.Hub = "" }), []vms.HubID{"h2"}},
		{"change without a hub", set(func(r *nvr.ChannelRow) { r.Mode = nvr.ModeContinuous }), nil},
		{"give", set(func(r *nvr.ChannelRow) { r.Hub = "h1" }), []vms.HubID{"h1"}},
		{"refused", func() {
			no := errors.New("no")
			_, err := f.s.UpdateChannel(ctx, "a", "c1", t0, func(r *nvr.ChannelRow) error { r.Mode = nvr.ModeEvent; return no })
			f.want(err, no)
		}, nil},
		{"hub's name", func() {
			_, err := f.s.UpdateHub(ctx, "a", "h1", t0, func(h *nvr.Hub) error { h.Name = "Cellar"; return nil })
			f.ok(err)
		}, nil},
		{"hub's workers", func() {
			_, err := f.s.UpdateHub(ctx, "a", "h1", t0, func(h *nvr.Hub) error { h.Zone = "eu-1"; return nil })
			f.ok(err)
		}, nil},
		{"hub's zone", func() {
			_, err := f.s.UpdateHub(ctx, "a", "h1", t0, func(h *nvr.Hub) error { h.TimeZone = "Europe/Zagreb"; return nil })
			f.ok(err)
		}, []vms.HubID{"h1"}},
		{"hub's limits", func() {
			_, err := f.s.UpdateHub(ctx, "a", "h1", t0, func(h *nvr.Hub) error { h.Limits.Uplink = "1M"; return nil })
			f.ok(err)
		}, []vms.HubID{"h1"}},
		{"a session", func() { f.session("s9", "c1", "h1") }, nil},
		{"delete", func() {
			_, err := f.s.DeleteChannel(ctx, "a", "c1", t0)
			f.ok(err)
		}, []vms.HubID{"h1"}},
		{"revoke", func() {
			_, err := f.s.RevokeHub(ctx, "a", "h2", t0)
			f.ok(err)
		}, []vms.HubID{"h2"}},
	} {
		before := []int64{f.revision("h1"), f.revision("h2")}
		tt.do()
		if got := f.dirty(); !slices.Equal(got, tt.want) {
			f.Errorf("%s: dirty hubs %v, want %v", tt.name, got, tt.want)
		}
		for i, hub := range []vms.HubID{"h1", "h2"} {
			if now, want := f.revision(hub), slices.Contains(tt.want, hub); now < before[i] || (now > before[i]) != want {
				f.Errorf("%s: revision of %s %d, before %d", tt.name, hub, now, before[i])
			}
			f.publish(hub)
		}
	}
	all("h1")
}

// A revision is the time of the change, unless that is no more than the one before.
func revisionClock(_ *testing.T, f *fixture) {
	f.hub("a", "h1")
	f.channel("a", "c1", "h1")
	toggle := func(r *nvr.ChannelRow) { r.PreRoll++ }
	for i, tt := range []struct {
		at   time.Time
		want int64
	}{
		{t0.Add(time.Second), t0.UnixMilli() + 1000},
		{t0.Add(time.Second), t0.UnixMilli() + 1001},
		{t0.Add(-time.Hour), t0.UnixMilli() + 1002}, // a clock that was set back
		{t0.Add(time.Hour), t0.Add(time.Hour).UnixMilli()},
	} {
		f.change(tt.at, toggle)
		if got := f.revision("h1"); got != tt.want {
			f.Errorf("revision %d of change %d, want %d", got, i, tt.want)
		}
	}
}

func revisionRestored(_ *testing.T, f *fixture) {
	ctx := f.Context()
	f.hub("a", "h1")
	f.publish("h1")
	have := f.revision("h1")
	for _, tt := range []struct {
		seen, want int64
		raised     bool
	}{
		{0, have, false}, {have - 1, have, false}, {have, have, false}, {have + 5000, have + 5001, true}, {have + 5000, have + 5001, false},
	} {
		raised, err := f.s.RaiseRevision(ctx, "h1", tt.seen, t0)
		f.ok(err)
		if got := f.revision("h1"); got != tt.want || raised != tt.raised {
			f.Errorf("a hub that has seen %d: revision %d, raised %v, want %d, %v", tt.seen, got, raised, tt.want, tt.raised)
		}
	}
	if dirty := f.dirty(); !slices.Equal(dirty, []vms.HubID{"h1"}) {
		f.Errorf("dirty hubs %v, want the one that was raised", dirty)
	}
	if raised, err := f.s.RaiseRevision(ctx, "none", 1, t0); err != nil || raised {
		f.Errorf("RaiseRevision of no hub = %v, %v", raised, err)
	}
}

func published(_ *testing.T, f *fixture) {
	ctx := f.Context()
	f.hub("a", "h1")
	f.channel("a", "c1", "h1")
	r := f.revision("h1")
	f.ok(f.s.Published(ctx, "h1", r-1))
	if len(f.dirty()) != 1 {
		f.Error("an older revision made the hub clean")
	}
	f.ok(f.s.Published(ctx, "h1", r))
	f.ok(f.s.Published(ctx, "h1", r-1)) // told late
	f.ok(f.s.Published(ctx, "none", 1))
	if dirty := f.dirty(); len(dirty) != 0 {
		f.Errorf("dirty hubs %v, want none", dirty)
	}
	f.change(t0, func(r *nvr.ChannelRow) { r.PreRoll++ })
	if len(f.dirty()) != 1 {
		f.Error("a change leaves the hub clean")
	}
}

func hubRoundTrip(_ *testing.T, f *fixture) {
	ctx := f.Context()
	f.hub("a", "h1")
	f.channel("a", "c1", "h1")
	set := func(h *nvr.Hub) error {
		h.Name, h.TimeZone, h.Zone, h.Limits = "Cellar", "Europe/Zagreb", "eu-1", wire.HubLimits{Uplink: "mon 08:00-18:00=1M"}
		return nil
	}
	for _, who := range []struct {
		acct vms.AccountID
		hub  vms.HubID
	}{{"b", "h1"}, {"a", "none"}} {
		_, err := f.s.UpdateHub(ctx, who.acct, who.hub, t0, set)
		f.want(err, vms.ErrNotFound)
	}
	no := errors.New("no")
	_, err := f.s.UpdateHub(ctx, "a", "h1", t0, func(h *nvr.Hub) error { h.Name = "lost"; return no })
	f.want(err, no)
	want, err := f.s.UpdateHub(ctx, "a", "h1", t0, set)
	f.ok(err)
	got, err := f.s.Hub(ctx, "h1")
	f.ok(err)
	if !reflect.DeepEqual(got, want) || got.Name != "Cellar" || got.TimeZone != "Europe/Zagreb" || got.Zone != "eu-1" || got.Limits.Uplink != "mon 08:00-18:00=1M" || len(got.PublicKey) == 0 {
		f.Errorf("Hub = %+v, want %+v", got, want)
	}
	if h, rows, err := f.s.DesiredChannels(ctx, "h1"); err != nil || !reflect.DeepEqual(h, want) || len(rows) != 1 {
		f.Errorf("DesiredChannels = %+v, %+v, %v", h, rows, err)
	}
	_, _, err = f.s.DesiredChannels(ctx, "none")
	f.want(err, vms.ErrNotFound)
	_, err = f.s.RevokeHub(ctx, "a", "h1", t0)
	f.ok(err)
	_, err = f.s.UpdateHub(ctx, "a", "h1", t0, set)
	f.want(err, vms.ErrNotFound)
	if h, rows, err := f.s.DesiredChannels(ctx, "h1"); err != nil || h.RevokedAt.IsZero() || len(rows) != 0 {
		f.Errorf("DesiredChannels of a revoked hub = %+v, %+v, %v", h, rows, err)
	}
}

func startStop(_ *testing.T, f *fixture) {
	ctx := f.Context()
	f.hub("a", "h1")
	row := nvr.ChannelRow{ID: "c1", Account: "a", Hub: "h1", Name: "x", Mode: nvr.ModeContinuous, Wanted: true, SID: "s1", CreatedAt: t0}
	f.ok(f.s.CreateChannel(ctx, row))
	state := func(sid vms.SID, want nvr.SessionState) {
		f.Helper()
		x, err := f.s.Session(ctx, sid)
		f.ok(err)
		if x.State != want || x.Hub != "h1" || x.Channel != "c1" || x.Account != "a" {
			f.Errorf("session %s = %+v, want %s", sid, x, want)
		}
	}
	idleTimes := func(want ...vms.TimeRange) {
		f.Helper()
		got, err := f.s.Idle(ctx, "c1", t0, t0.Add(time.Hour))
		f.ok(err)
		if !slices.Equal(got, want) {
			f.Errorf("idle %v, want %v", got, want)
		}
	}
	state("s1", nvr.SessionOpen)
	idleTimes()
	minute := func(m int) time.Time { return t0.Add(time.Duration(m) * time.Minute) }
	f.change(minute(10), func(r *nvr.ChannelRow) { r.Wanted, r.SID = false, "" })
	state("s1", nvr.SessionEnded)
	idleTimes(vms.TimeRange{Start: minute(10), End: minute(60)})
	f.change(minute(15), func(r *nvr.ChannelRow) { r.Wanted, r.SID = false, "" }) // stopped twice
	f.change(minute(20), func(r *nvr.ChannelRow) { r.Wanted, r.SID = true, "s2" })
	state("s2", nvr.SessionOpen)
	idleTimes(vms.TimeRange{Start: minute(10), End: minute(20)})
}

// A stop is noted with the revision to which it has raised that of the hub, and
// stays noted through what changes later, until the hub loses the channel.
func stopRevision(_ *testing.T, f *fixture) {
	ctx := f.Context()
	f.hub("a", "h1")
	f.channel("a", "c1", "h1")
	expect := func(what string, returned nvr.ChannelRow, want int64) {
		f.Helper()
		row, err := f.s.Channel(ctx, "c1")
		f.ok(err)
		if row.StoppedRevision != want || returned.StoppedRevision != want {
			f.Errorf("%s: stopped with revision %d, returned %d, want %d", what, row.StoppedRevision, returned.StoppedRevision, want)
		}
	}
	stop := func(r *nvr.ChannelRow) { r.StoppedRevision = nvr.StoppedNow }
	expect("never stopped", f.change(t0, func(r *nvr.ChannelRow) { r.Wanted, r.SID = true, "s1" }), 0)
	row := f.change(t0.Add(time.Hour), func(r *nvr.ChannelRow) { r.Wanted, r.SID = false, ""; stop(r) })
	first := t0.Add(time.Hour).UnixMilli()
	expect("stopped", row, first)
	if got := f.revision("h1"); got != first {
		f.Errorf("revision %d, want %d: the stop's own", got, first)
	}
	expect("stopped again, by a clock that was set back", f.change(t0, stop), first+1)
	_, err := f.s.UpdateHub(ctx, "a", "h1", t0, func(h *nvr.Hub) error { h.TimeZone = "Europe/Zagreb"; return nil })
	f.ok(err)
	expect("started", f.change(t0, func(r *nvr.ChannelRow) { r.Wanted, r.SID = true, "s2" }), first+1)
	_, rows, err := f.s.DesiredChannels(ctx, "h1")
	f.ok(err)
	if len(rows) != 1 || rows[0].StoppedRevision != first+1 {
		f.Errorf("DesiredChannels = %+v, want the stop to be remembered", rows)
	}
	no := errors.New("no")
	_, err = f.s.UpdateChannel(ctx, "a", "c1", t0, func(r *nvr.ChannelRow) error { stop(r); return no })
	f.want(err, no)
	expect("refused", rows[0], first+1)
	_, err = f.s.RevokeHub(ctx, "a", "h1", t0)
	f.ok(err)
	expect("without its hub", f.change(t0, func(*nvr.ChannelRow) {}), 0)
	expect("stopped without a hub", f.change(t0, stop), 0)
}

func moved(_ *testing.T, f *fixture) {
	ctx := f.Context()
	f.hub("a", "h1")
	f.hub("a", "h2")
	f.channel("a", "c1", "h1")
	f.change(t0, func(r *nvr.ChannelRow) { r.Wanted, r.SID = true, "s1" })
	f.change(t0, func(r *nvr.ChannelRow) { r.Hub, r.SID = "h2", "s2" })
	old, err := f.s.Session(ctx, "s1")
	f.ok(err)
	now, err := f.s.Session(ctx, "s2")
	f.ok(err)
	if old.State != nvr.SessionEnded || old.Hub != "h1" || now.State != nvr.SessionOpen || now.Hub != "h2" {
		f.Errorf("sessions %+v and %+v, want the old hub's ended and one of the new hub", old, now)
	}
	for hub, want := range map[vms.HubID]int{"h1": 0, "h2": 1} {
		if _, rows, err := f.s.DesiredChannels(ctx, hub); err != nil || len(rows) != want {
			f.Errorf("hub %s has channels %+v, %v", hub, rows, err)
		}
	}
}

func modes(_ *testing.T, f *fixture) {
	ctx := f.Context()
	f.hub("a", "h1")
	f.channel("a", "c1", "h1") // at t0
	f.channel("a", "c2", "")
	hour := func(h int) time.Time { return t0.Add(time.Duration(h) * time.Hour) }
	f.change(hour(1), func(r *nvr.ChannelRow) { r.Mode, r.Schedule = nvr.ModeScheduled, "mon" })
	f.change(hour(2), func(r *nvr.ChannelRow) { r.Name = "Gate" })
	_, err := f.s.UpdateHub(ctx, "a", "h1", hour(3), func(h *nvr.Hub) error { h.TimeZone = "Asia/Kolkata"; return nil })
	f.ok(err)
	f.change(hour(4), func(r *nvr.ChannelRow) { r.Schedule = "tue" })
	f.change(hour(4), func(r *nvr.ChannelRow) { r.Schedule = "wed" }) // at the same instant
	f.change(hour(5), func(r *nvr.ChannelRow) { r.Mode = nvr.ModeEvent })
	all := []nvr.ModeChange{
		{Since: t0, Mode: nvr.ModeOnDemand},
		{Since: hour(1), Mode: nvr.ModeScheduled, Schedule: "mon"},
		{Since: hour(3), Mode: nvr.ModeScheduled, Schedule: "mon", TimeZone: "Asia/Kolkata"},
		{Since: hour(4), Mode: nvr.ModeScheduled, Schedule: "wed", TimeZone: "Asia/Kolkata"},
		{Since: hour(5), Mode: nvr.ModeEvent, Schedule: "wed", TimeZone: "Asia/Kolkata"},
	}
	for _, tt := range []struct {
		from, to time.Time
		want     []nvr.ModeChange
	}{
		{hour(-10), hour(10), all},
		{hour(-10), t0, nil},
		{hour(-10), t0.Add(time.Microsecond), all[:1]},
		{hour(1), hour(3), all[1:2]},
		{hour(1).Add(-time.Microsecond), hour(3), all[:2]},
		{hour(2), hour(4), all[1:3]},
		{hour(9), hour(10), all[4:]},
	} {
		got, err := f.s.Modes(ctx, "c1", tt.from, tt.to)
		f.ok(err)
		if fmt.Sprint(got) != fmt.Sprint(tt.want) {
			f.Errorf("Modes from %s to %s = %v, want %v", tt.from, tt.to, got, tt.want)
		}
	}
	_, err = f.s.UpdateChannel(ctx, "a", "c2", hour(6), func(r *nvr.ChannelRow) error { r.Hub = "h1"; return nil })
	f.ok(err)
	want := []nvr.ModeChange{{Since: t0, Mode: nvr.ModeOnDemand}, {Since: hour(6), Mode: nvr.ModeOnDemand, TimeZone: "Asia/Kolkata"}}
	if got, err := f.s.Modes(ctx, "c2", hour(-10), hour(10)); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		f.Errorf("Modes of a channel that came to the hub = %v, %v, want %v", got, err, want)
	}
	_, err = f.s.DeleteChannel(ctx, "a", "c1", hour(6))
	f.ok(err)
	if got, err := f.s.Modes(ctx, "c1", hour(-10), hour(10)); err != nil || len(got) != 0 {
		f.Errorf("Modes of a deleted channel = %v, %v", got, err)
	}
}

func forgetModes(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	hour := func(h int) time.Time { return t0.Add(time.Duration(h) * time.Hour) }
	f.change(hour(1), func(r *nvr.ChannelRow) { r.Mode = nvr.ModeEvent })
	f.change(hour(2), func(r *nvr.ChannelRow) { r.Mode = nvr.ModeOnDemand })
	f.ok(f.s.Forget(f.Context(), hour(2), t0))
	got, err := f.s.Modes(f.Context(), "c1", t0, hour(9))
	f.ok(err)
	if len(got) != 2 || !got[0].Since.Equal(hour(1)) {
		f.Errorf("Modes = %v, want the one that reaches to the cutoff, and the last", got)
	}
	f.ok(f.s.Forget(f.Context(), hour(100), t0))
	if got, err = f.s.Modes(f.Context(), "c1", t0, hour(200)); err != nil || len(got) != 1 {
		f.Errorf("Modes = %v, %v, want the last one to stay", got, err)
	}
}

func transient(_ *testing.T, f *fixture) {
	ctx := f.Context()
	for i, change := range []func(*nvr.ChannelRow){
		func(r *nvr.ChannelRow) { r.Wanted, r.WantedBy = true, nvr.WantedByViewer },
		func(r *nvr.ChannelRow) { r.Wanted, r.WantedUntil = true, t0 },
		func(r *nvr.ChannelRow) { r.Wanted, r.WantedBy = true, nvr.WantedByRequest },
		func(r *nvr.ChannelRow) { r.WantedBy = nvr.WantedByViewer },
	} {
		id := vms.ChannelID(fmt.Sprintf("c%d", i))
		f.channel("a", id, "")
		_, err := f.s.UpdateChannel(ctx, "a", id, t0, func(r *nvr.ChannelRow) error { change(r); return nil })
		f.ok(err)
	}
	rows, err := f.s.Transient(ctx)
	f.ok(err)
	var got []vms.ChannelID
	for _, r := range rows {
		got = append(got, r.ID)
	}
	if slices.Sort(got); !slices.Equal(got, []vms.ChannelID{"c0", "c1"}) {
		f.Errorf("Transient = %v, want c0 and c1", got)
	}
}

func discard(_ *testing.T, f *fixture) {
	for range 2 {
		f.ok(f.s.Discard(f.Context(), "snapshots/c1/x.jpg", t0, t0.Add(time.Hour)))
	}
	if got := f.garbageAt(t0.Add(time.Hour - time.Second)); len(got) != 0 {
		f.Errorf("garbage %v before its time", got)
	}
	if got := f.garbageAt(t0.Add(time.Hour)); !slices.Equal(got, []string{"snapshots/c1/x.jpg"}) {
		f.Errorf("garbage %v, want the object", got)
	}
}
