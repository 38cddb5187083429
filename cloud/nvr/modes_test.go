package nvr_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the zones must be there, whatever machine this runs on

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// modeRig is a channel whose hub has a time zone, on a timeline that begins at
// midnight of 1 November 2026, a Sunday, there.
type modeRig struct {
	*nvrtest.World
	t     *testing.T
	hub   vms.HubID
	c     nvr.Channel
	loc   *time.Location
	epoch vms.Epoch
	seq   map[vms.Epoch]uint64
}

func newModeRig(t *testing.T, zone string, spec nvr.ChannelSpec) *modeRig {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	w := nvrtest.New(t, nil)
	r := &modeRig{World: w, t: t, loc: loc, seq: make(map[vms.Epoch]uint64)}
	r.hub, _ = w.Hub(t, acct)
	if _, err := w.UpdateHub(t.Context(), acct, r.hub, nvr.HubPatch{TimeZone: &zone}); err != nil {
		t.Fatal(err)
	}
	r.clock(r.at("2026-11-01 00:00"))
	online(w, r.hub)
	spec.Name, spec.Hub, spec.Camera = "Door", r.hub, vms.Camera{Host: "10.0.0.8"}
	if r.c, err = w.CreateChannel(t.Context(), acct, spec); err != nil {
		t.Fatal(err)
	}
	return r
}

// at reads a time of the hub's zone.
func (r *modeRig) at(text string) time.Time {
	r.t.Helper()
	t, err := time.ParseInLocation("2006-01-02 15:04", text, r.loc)
	if err != nil {
		r.t.Fatal(err)
	}
	return t
}

func (r *modeRig) clock(t time.Time) { r.Clock.Add(t.Sub(r.Clock.Now())) }

// patch changes the channel at a time.
func (r *modeRig) patch(at string, p nvr.ChannelPatch) {
	r.t.Helper()
	r.clock(r.at(at))
	if _, err := r.UpdateChannel(r.t.Context(), acct, r.c.ID, p); err != nil {
		r.t.Fatal(err)
	}
}

// record registers recordings of a new epoch, an hour each, a chunk a second.
func (r *modeRig) record(from, to time.Time) {
	r.t.Helper()
	r.epoch++
	r.more(from, to)
}

// more goes on in the same epoch.
func (r *modeRig) more(from, to time.Time) {
	r.t.Helper()
	for from.Before(to) {
		end := from.Add(time.Hour)
		if end.After(to) {
			end = to
		}
		first := r.seq[r.epoch] + 1
		r.seq[r.epoch] += uint64(end.Sub(from) / time.Second)
		rec := r.Recording(r.c.ID, r.epoch, first, r.seq[r.epoch])
		rec.Start, rec.End, rec.Key = from, end, vms.RecordingKey(r.c.ID, from, 0)
		if err := r.RecordingUploaded(r.t.Context(), rec); err != nil {
			r.t.Fatal(err)
		}
		from = end
	}
}

// expect compares the gaps and pending ranges, in the hub's time, with those of
// the timeline, and of every day of it asked for alone.
func (r *modeRig) expect(from, to string, want ...string) {
	r.t.Helper()
	r.page(r.at(from), r.at(to), want)
	var daily []string
	for day := r.at(from); day.Before(r.at(to)); day = day.AddDate(0, 0, 1) {
		for _, s := range r.show(day, day.AddDate(0, 0, 1)) {
			// What goes over midnight comes in two pieces.
			if n := len(daily); n > 0 && strings.HasSuffix(daily[n-1], " to "+day.Format("Jan 2 15:04:05")) {
				if head, rest, ok := strings.Cut(s, day.Format("Jan 2 15:04:05")+" to "); ok && strings.HasPrefix(daily[n-1], head) {
					daily[n-1] = strings.TrimSuffix(daily[n-1], day.Format("Jan 2 15:04:05")) + rest
					continue
				}
			}
			daily = append(daily, s)
		}
	}
	if !slices.Equal(daily, want) {
		r.t.Errorf("day by day:\n  %s\nwant\n  %s", strings.Join(daily, "\n  "), strings.Join(want, "\n  "))
	}
}

func (r *modeRig) page(from, to time.Time, want []string) {
	r.t.Helper()
	if got := r.show(from, to); !slices.Equal(got, want) {
		r.t.Errorf("timeline:\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func (r *modeRig) show(from, to time.Time) (out []string) {
	r.t.Helper()
	p, err := r.Recordings(r.t.Context(), acct, r.c.ID, nvr.RecordingQuery{From: from, To: to, Limit: 1000})
	if err != nil || p.NextCursor != "" {
		r.t.Fatal(err, p.NextCursor)
	}
	line := func(what string, v vms.TimeRange) string {
		return fmt.Sprintf("%s %s to %s", what, v.Start.In(r.loc).Format("Jan 2 15:04:05"), v.End.In(r.loc).Format("Jan 2 15:04:05"))
	}
	type entry struct {
		at   time.Time
		text string
	}
	var all []entry
	for _, g := range p.Gaps {
		all = append(all, entry{g.Start, line(string(g.Cause), g.TimeRange)})
	}
	for _, v := range p.Pending {
		all = append(all, entry{v.Start, line("pending", v)})
	}
	slices.SortStableFunc(all, func(a, b entry) int { return a.at.Compare(b.at) })
	for _, e := range all {
		out = append(out, e.text)
	}
	return out
}

func (r *modeRig) declare(id vms.GapID, from, to string) {
	r.t.Helper()
	g := vms.Gap{ID: id, Cause: vms.CauseCameraOffline, TimeRange: vms.TimeRange{Start: r.at(from), End: r.at(to)}}
	if _, err := r.Store.PutGaps(r.t.Context(), r.c.ID, []vms.Gap{g}); err != nil {
		r.t.Fatal(err)
	}
}

// holding opens a session of the channel's hub that holds these chunks.
func (r *modeRig) holding(ranges ...wire.HeldRange) (nvr.Session, *link) {
	r.t.Helper()
	s, err := r.Store.Session(r.t.Context(), order(desired(r.t, r.World, r.hub), r.c.ID).SID)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Worker(r.t, worker)
	l := newLink()
	a := assign(r.t, r.World, s, &wire.SessionHello{Holding: ranges}, l)
	s.Generation = a.Generation
	return s, l
}

const office = "mon-fri 08:00-18:00"

func TestScheduledTimeline(t *testing.T) {
	r := newModeRig(t, "Europe/Zagreb", nvr.ChannelSpec{Mode: nvr.ModeScheduled, Schedule: office})
	days := func(from, to int, hours ...string) {
		for d := from; d <= to; d++ {
			for i := 0; i < len(hours); i += 2 {
				r.record(r.at(fmt.Sprintf("2026-11-%02d %s", d, hours[i])), r.at(fmt.Sprintf("2026-11-%02d %s", d, hours[i+1])))
			}
		}
	}
	days(2, 3, "08:00", "18:00")
	days(4, 4, "08:00", "17:00", "17:30", "18:00") // a restart in working hours
	days(5, 5, "08:00", "16:00")                   // the agent died, and came back in the night
	days(6, 6, "09:00", "18:00")
	days(9, 9, "08:00", "18:00")
	days(10, 10, "20:00", "21:00") // nobody wanted this: recorded all the same
	days(11, 11, "08:00", "18:00")
	r.declare("g1", "2026-11-07 10:00", "2026-11-07 11:00") // so says the hub, and it is believed
	r.clock(r.at("2026-11-11 18:00"))
	r.expect("2026-11-01 00:00", "2026-11-12 00:00",
		"agent_restarted Nov 4 17:00:00 to Nov 4 17:30:00",
		"agent_restarted Nov 5 16:00:00 to Nov 5 17:59:55",
		"agent_restarted Nov 6 08:00:15 to Nov 6 09:00:00",
		"camera_offline Nov 7 10:00:00 to Nov 7 11:00:00",
		"agent_restarted Nov 10 08:00:15 to Nov 10 17:59:55",
	)
}

// On the days when the clock changes, an hour of the night is there twice or not
// at all, and what should have been recorded is as long as that.
func TestScheduledTimelineOverDaylightSaving(t *testing.T) {
	for _, tt := range []struct {
		zone, day string
		hours     time.Duration // of 01:15 to 03:30 on the wall
	}{
		{"Europe/Zagreb", "2027-03-28", 75 * time.Minute},
		{"Europe/Zagreb", "2027-10-31", 195 * time.Minute},
		{"Europe/Zagreb", "2027-10-30", 135 * time.Minute},
		{"Australia/Lord_Howe", "2027-04-04", 165 * time.Minute},
		{"Australia/Lord_Howe", "2027-10-03", 105 * time.Minute},
		{"Asia/Kolkata", "2027-03-28", 135 * time.Minute},
	} {
		r := newModeRig(t, tt.zone, nvr.ChannelSpec{Mode: nvr.ModeScheduled, Schedule: "01:15-03:30"})
		day, err := time.ParseInLocation("2006-01-02", tt.day, r.loc)
		if err != nil {
			t.Fatal(err)
		}
		on := func(d time.Time) (from, to time.Time) {
			date := d.Format("2006-01-02 ")
			return r.at(date + "01:15"), r.at(date + "03:30")
		}
		for _, d := range []int{-2, -1, 1, 2} {
			r.record(on(day.AddDate(0, 0, d)))
		}
		r.clock(day.AddDate(0, 0, 3))
		from, to := on(day)
		if got := to.Sub(from); got != tt.hours {
			t.Fatalf("%s %s has %s between the two, want %s", tt.zone, tt.day, got, tt.hours)
		}
		r.page(day.AddDate(0, 0, -3), day.AddDate(0, 0, 3), []string{fmt.Sprintf("agent_restarted %s to %s",
			from.Add(15*time.Second).Format("Jan 2 15:04:05"), to.Add(-5*time.Second).Format("Jan 2 15:04:05"))})
		r.record(from, to)
		r.page(day.AddDate(0, 0, -3), day.AddDate(0, 0, 3), nil)
	}
}

func TestEventTimeline(t *testing.T) {
	r := newModeRig(t, "Europe/Zagreb", nvr.ChannelSpec{Mode: nvr.ModeEvent})
	r.record(r.at("2026-11-02 10:00"), r.at("2026-11-02 10:05"))
	r.record(r.at("2026-11-02 12:00"), r.at("2026-11-02 12:02"))
	r.more(r.at("2026-11-02 15:00"), r.at("2026-11-02 15:02")) // the next event of the same epoch
	r.declare("g1", "2026-11-02 13:00", "2026-11-02 14:00")
	first := r.seq[r.epoch] + 1
	r.seq[r.epoch] += 60
	held := wire.HeldRange{Chunks: vms.ChunkRange{Epoch: r.epoch, First: first, Last: r.seq[r.epoch]}, Start: r.at("2026-11-02 16:00"), End: r.at("2026-11-02 16:01")}
	s, l := r.holding(held)
	r.more(r.at("2026-11-02 18:00"), r.at("2026-11-02 18:01"))
	r.clock(r.at("2026-11-02 20:00"))
	r.expect("2026-11-01 00:00", "2026-11-03 00:00",
		"camera_offline Nov 2 13:00:00 to Nov 2 14:00:00",
		"pending Nov 2 16:00:00 to Nov 2 16:01:00",
	)
	// The hub is away for long: what it holds is a gap now, and nothing else is.
	r.Detach(s, l)
	r.clock(r.at("2026-11-03 21:00"))
	r.expect("2026-11-01 00:00", "2026-11-04 00:00",
		"camera_offline Nov 2 13:00:00 to Nov 2 14:00:00",
		"hub_unreachable Nov 2 16:00:00 to Nov 2 16:01:00",
	)
	// It comes back without them, and says nothing: chunks were made, and are lost.
	r.holding()
	r.expect("2026-11-01 00:00", "2026-11-04 00:00",
		"camera_offline Nov 2 13:00:00 to Nov 2 14:00:00",
		"unknown Nov 2 15:02:00 to Nov 2 18:00:00",
	)
	// It says which: that is what is missing.
	g := vms.Gap{ID: "g2", Cause: vms.CauseBufferFull, TimeRange: vms.TimeRange{Start: held.Start, End: held.End}, Chunks: &held.Chunks}
	if _, err := r.Store.PutGaps(t.Context(), r.c.ID, []vms.Gap{g}); err != nil {
		t.Fatal(err)
	}
	r.expect("2026-11-01 00:00", "2026-11-04 00:00",
		"camera_offline Nov 2 13:00:00 to Nov 2 14:00:00",
		"buffer_full Nov 2 16:00:00 to Nov 2 16:01:00",
	)
	r.page(r.at("2026-11-02 16:30"), r.at("2026-11-02 17:30"), nil) // what explains it is on another page
}

// What a channel should have recorded is judged by what was asked for then.
func TestModesOfThePast(t *testing.T) {
	r := newModeRig(t, "Europe/Zagreb", nvr.ChannelSpec{Mode: nvr.ModeContinuous})
	mode := func(m nvr.Mode) *nvr.Mode { return &m }
	hours := func(s string) *string { return &s }
	r.record(r.at("2026-11-02 00:00"), r.at("2026-11-02 06:00")) // and nothing more for a week
	r.patch("2026-11-03 00:00", nvr.ChannelPatch{Mode: mode(nvr.ModeScheduled), Schedule: hours("08:00-18:00")})
	r.patch("2026-11-04 12:00", nvr.ChannelPatch{Schedule: hours("20:00-22:00")})
	r.patch("2026-11-05 00:00", nvr.ChannelPatch{Mode: mode(nvr.ModeEvent)})
	r.patch("2026-11-06 00:00", nvr.ChannelPatch{Mode: mode(nvr.ModeContinuous)})
	r.clock(r.at("2026-11-06 03:00"))
	stop(t, r.World, r.c.ID)
	r.clock(r.at("2026-11-06 05:00"))
	start(t, r.World, r.c)
	r.patch("2026-11-07 00:00", nvr.ChannelPatch{Mode: mode(nvr.ModeScheduled)})
	r.clock(r.at("2026-11-07 21:00"))
	kolkata := "Asia/Kolkata" // 4 h 30 ahead: 20:00 there was 15:30 here
	if _, err := r.UpdateHub(t.Context(), acct, r.hub, nvr.HubPatch{TimeZone: &kolkata}); err != nil {
		t.Fatal(err)
	}
	r.record(r.at("2026-11-09 00:00"), r.at("2026-11-09 01:00"))
	r.clock(r.at("2026-11-09 01:00"))
	r.expect("2026-11-01 00:00", "2026-11-10 00:00",
		"agent_restarted Nov 2 06:00:00 to Nov 2 23:59:55",
		"agent_restarted Nov 3 08:00:15 to Nov 3 17:59:55",
		"agent_restarted Nov 4 08:00:15 to Nov 4 11:59:55",
		"agent_restarted Nov 4 20:00:15 to Nov 4 21:59:55",
		"agent_restarted Nov 6 00:00:15 to Nov 6 02:59:55",
		"agent_restarted Nov 6 05:00:15 to Nov 6 23:59:55",
		"agent_restarted Nov 7 20:00:15 to Nov 7 20:59:55",
		"agent_restarted Nov 8 15:30:15 to Nov 8 17:29:55",
	)
}

// A hub that is away goes on recording in its hours, as far as anybody knows, and
// owes nothing outside of them.
func TestSilenceOfAScheduledChannel(t *testing.T) {
	r := newModeRig(t, "Europe/Zagreb", nvr.ChannelSpec{Mode: nvr.ModeScheduled, Schedule: office})
	r.record(r.at("2026-11-02 08:00"), r.at("2026-11-02 18:00"))
	r.clock(r.at("2026-11-03 07:00"))
	r.expect("2026-11-01 00:00", "2026-11-08 00:00") // the night is its own
	r.clock(r.at("2026-11-03 08:00").Add(20 * time.Second))
	r.expect("2026-11-01 00:00", "2026-11-08 00:00") // nothing could be heard yet
	r.clock(r.at("2026-11-03 12:00"))
	r.expect("2026-11-01 00:00", "2026-11-08 00:00", "pending Nov 3 08:00:15 to Nov 3 12:00:00")
	r.clock(r.at("2026-11-04 07:00"))
	r.expect("2026-11-01 00:00", "2026-11-08 00:00", "pending Nov 3 08:00:15 to Nov 3 17:59:55")
	r.clock(r.at("2026-11-04 12:00"))
	r.expect("2026-11-01 00:00", "2026-11-08 00:00",
		"hub_unreachable Nov 3 08:00:15 to Nov 3 17:59:55", "hub_unreachable Nov 4 08:00:15 to Nov 4 12:00:00")
	r.record(r.at("2026-11-03 08:00"), r.at("2026-11-03 18:00")) // it was not away at all
	r.expect("2026-11-01 00:00", "2026-11-08 00:00", "pending Nov 4 08:00:15 to Nov 4 12:00:00")
	// A page without an end, and one as long as can be.
	for _, to := range []time.Time{{}, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)} {
		r.page(time.Time{}, to, []string{"pending Nov 4 08:00:15 to Nov 4 12:00:00"})
	}
	stopped := nvr.StartOptions{}
	if _, err := r.StopChannel(t.Context(), acct, r.c.ID, stopped); err != nil {
		t.Fatal(err)
	}
	r.clock(r.at("2026-11-05 12:00"))
	r.expect("2026-11-01 00:00", "2026-11-08 00:00") // what it holds it will tell
}

func TestSilenceOfAnEventChannel(t *testing.T) {
	r := newModeRig(t, "UTC", nvr.ChannelSpec{Mode: nvr.ModeEvent})
	r.record(r.at("2026-11-02 08:00"), r.at("2026-11-02 08:05"))
	r.clock(r.at("2026-11-05 00:00"))
	r.expect("2026-11-01 00:00", "2026-11-08 00:00")
}

// A channel that is wanted and whose hub was never heard of says so.
func TestSilenceSinceTheStart(t *testing.T) {
	r := newModeRig(t, "UTC", nvr.ChannelSpec{Mode: nvr.ModeScheduled, Schedule: office})
	r.clock(r.at("2026-11-02 12:00"))
	r.expect("2026-11-01 00:00", "2026-11-03 00:00", "pending Nov 2 08:00:00 to Nov 2 12:00:00")
}

func TestModesAreChecked(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	num := func(n int) *int { return &n }
	cam := vms.Camera{Host: "10.0.0.8"}
	for _, tt := range []struct {
		field string
		spec  nvr.ChannelSpec
	}{
		{"schedule", nvr.ChannelSpec{Mode: nvr.ModeScheduled}},
		{"schedule", nvr.ChannelSpec{Mode: nvr.ModeScheduled, Schedule: "  "}},
		{"schedule", nvr.ChannelSpec{Mode: nvr.ModeScheduled, Schedule: "mon-fry"}},
		{"schedule", nvr.ChannelSpec{Schedule: "25:00-26:00"}},
		{"schedule", nvr.ChannelSpec{Schedule: strings.Repeat("mon, ", 300)}},
		{"pre_roll_s", nvr.ChannelSpec{Mode: nvr.ModeEvent, PreRoll: num(61)}},
		{"pre_roll_s", nvr.ChannelSpec{PreRoll: num(-1)}},
		{"post_roll_s", nvr.ChannelSpec{PostRoll: num(0)}},
		{"post_roll_s", nvr.ChannelSpec{PostRoll: num(601)}},
	} {
		tt.spec.Name, tt.spec.Hub, tt.spec.Camera = "x", hub, cam
		_, err := w.CreateChannel(t.Context(), acct, tt.spec)
		var fe *nvr.FieldError
		if !errors.As(err, &fe) || fe.Field != tt.field {
			t.Errorf("CreateChannel(%+v) = %v, want an error of %s", tt.spec, err, tt.field)
		}
	}
	c, err := w.CreateChannel(t.Context(), acct, nvr.ChannelSpec{Name: "x", Hub: hub, Mode: nvr.ModeScheduled, Schedule: office, Camera: cam})
	if err != nil || !c.Wanted || c.PreRoll != 5 || c.PostRoll != 30 {
		t.Fatalf("CreateChannel = %+v, %v", c, err)
	}
	none, event, demand := "", nvr.ModeEvent, nvr.ModeOnDemand
	if _, err := w.UpdateChannel(t.Context(), acct, c.ID, nvr.ChannelPatch{Schedule: &none}); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("a scheduled channel without a schedule = %v, want ErrInvalid", err)
	}
	what := func() *wire.DesiredStream { return order(desired(t, w, hub), c.ID) }
	if o := what(); !o.Active || o.Schedule != office || o.PreRoll != 0 || o.SID == "" {
		t.Errorf("the hub is told %+v", o)
	}
	online(w, hub)
	stop(t, w, c.ID)
	// A stop holds as long as the mode stays; another one begins anew.
	if c, err = w.UpdateChannel(t.Context(), acct, c.ID, nvr.ChannelPatch{PreRoll: num(10)}); err != nil || c.Wanted {
		t.Errorf("after a stop and another change the channel is %+v, %v", c, err)
	}
	if c, err = w.UpdateChannel(t.Context(), acct, c.ID, nvr.ChannelPatch{Mode: &event}); err != nil || !c.Wanted || c.WantedBy != "" {
		t.Errorf("after a change of mode the channel is %+v, %v", c, err)
	}
	if o := what(); !o.Active || o.Schedule != "" || o.PreRoll != 10 || o.PostRoll != 30 {
		t.Errorf("the hub is told %+v", o)
	}
	sid := what().SID
	if c, err = w.UpdateChannel(t.Context(), acct, c.ID, nvr.ChannelPatch{Mode: &demand}); err != nil || !c.Wanted || c.WantedBy != nvr.WantedByRequest {
		t.Errorf("what ran goes on on demand: %+v, %v", c, err)
	}
	if o := what(); !o.Active || o.SID != sid || o.PreRoll != 0 {
		t.Errorf("the hub is told %+v, want the session to go on", o)
	}
}
