package nvr

import (
	"context"
	"regexp"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/week"
)

// maxSchedule bounds a weekly table, in bytes: every quarter of an hour of a
// week fits in no less useful form.
const maxSchedule = 1000

// validModes checks what a channel's mode needs.
func validModes(r *ChannelRow) error {
	switch r.Mode {
	case ModeOnDemand, ModeContinuous, ModeScheduled, ModeEvent:
	default:
		return fieldError("mode", "must be %q, %q, %q or %q", ModeOnDemand, ModeContinuous, ModeScheduled, ModeEvent)
	}
	if len(r.Schedule) > maxSchedule {
		return fieldError("schedule", "must be at most %d bytes", maxSchedule)
	}
	if _, err := week.Parse(r.Schedule); err != nil {
		return fieldError("schedule", "is not one: %v", err)
	}
	if r.Mode == ModeScheduled && strings.TrimSpace(r.Schedule) == "" {
		return fieldError("schedule", "is needed for mode %q, such as \"mon-fri 08:00-18:00, sat sun\"", ModeScheduled)
	}
	return validRoll(&r.PreRoll, &r.PostRoll)
}

// validRoll checks seconds around an event; nil is none given.
func validRoll(pre, post *int) error {
	if pre != nil && (*pre < 0 || *pre > MaxPreRoll) {
		return fieldError("pre_roll_s", "must be 0 to %d", MaxPreRoll)
	}
	if post != nil && (*post < 1 || *post > MaxPostRoll) {
		return fieldError("post_roll_s", "must be 1 to %d", MaxPostRoll)
	}
	return nil
}

// zone is the time zone of a name that validZone has let pass; empty is UTC.
func zone(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	return time.LoadLocation(name)
}

// validZone wants a name of the IANA database.
func validZone(name string) error {
	const most = 64 // "America/Argentina/ComodRivadavia" has 32
	if _, err := zone(name); err != nil || name == "Local" || len(name) > most {
		return fieldError("time_zone", `must be the IANA name of a time zone, such as "Europe/Zagreb"`)
	}
	return nil
}

// idle lists when nobody wanted a channel to record in [from, to): somebody had
// stopped it, or its mode at that time said no. They are in order and apart.
func (n *NVR) idle(ctx context.Context, ch vms.ChannelID, from, to time.Time) ([]vms.TimeRange, error) {
	stopped, err := n.Store.Idle(ctx, ch, from, to)
	if err != nil {
		return nil, err
	}
	modes, err := n.Store.Modes(ctx, ch, from, to)
	if err != nil {
		return nil, err
	}
	all := ranges(stopped)
	for i, m := range modes {
		w := vms.TimeRange{Start: from, End: to}
		if m.Since.After(from) {
			w.Start = m.Since
		}
		if i+1 < len(modes) && modes[i+1].Since.Before(to) {
			w.End = modes[i+1].Since
		}
		all = append(all, n.rest(ch, m, w)...)
	}
	return all.union(), nil
}

// rest lists when a mode does not record of its own in w.
func (n *NVR) rest(ch vms.ChannelID, m ModeChange, w vms.TimeRange) ranges {
	if !w.Start.Before(w.End) {
		return nil
	}
	switch m.Mode {
	case ModeEvent: // what is recorded stands on the timeline before this does
		return ranges{w}
	case ModeScheduled:
		table, err := week.Parse(m.Schedule)
		if err == nil {
			var loc *time.Location
			if loc, err = zone(m.TimeZone); err == nil {
				return ranges{w}.minus(ranges(table.Within(w.Start, w.End, loc)).union())
			}
		}
		// A zone that is gone from the database: better a gap too many.
		n.Log.Error("a channel's hours cannot be read", "channel", ch, "since", m.Since, "err", err)
	}
	return nil
}

var uplinkRate = regexp.MustCompile(`^[0-9]*\.?[0-9]+[kM]?$`)

// validUplink checks the form of a schedule of rates, so that whoever sets it
// hears at once what is wrong. The hub's agent has the last word on it.
func validUplink(text string) error {
	const field = "limits.uplink"
	if len(text) > maxSchedule {
		return fieldError(field, "must be at most %d bytes", maxSchedule)
	}
	if strings.TrimSpace(text) == "" {
		return nil
	}
	for part := range strings.SplitSeq(text, ",") {
		when, rate, timed := strings.Cut(part, "=")
		if !timed {
			when, rate = "", part
		}
		if _, err := week.ParseWindow(when); timed && err != nil {
			return fieldError(field, "is no schedule of rates: %v", err)
		}
		if rate = strings.TrimSpace(rate); rate != "none" && !uplinkRate.MatchString(rate) {
			return fieldError(field, "has the rate %.40q: want bit/s as in 500k or 1.5M, or none", rate)
		}
	}
	return nil
}
