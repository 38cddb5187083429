// Package week is tables of the week: on which days and between which hours
// something holds, by the clock on the wall.
//
//	mon-fri 08:00-18:00, sat sun, 22:00-06:00
//
// A table is windows that are separated by commas; it is on while any of them
// is. A window is days (each a day or a range of days; none: every day) and then
// at most one range of hours (none: all day). A range that ends before it begins
// goes over midnight and belongs to the day on which it begins.
//
// The wall clock alone decides. Where it jumps ahead, the hours that it skips
// do not exist, and a window that begins in them begins behind them; where it
// goes back, the hours that it shows twice count twice.
package week

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// MaxText bounds the text of a table, bytes.
const MaxText = 1000

const (
	dayMinutes  = 24 * 60
	weekMinutes = 7 * dayMinutes
)

// Table is a table of the week. The zero value is never on.
type Table struct {
	windows []Window
	// edges are the minutes since Sunday 00:00 on the wall, rising, at which the
	// table goes on or off. None: it is always on, or never.
	edges []int
}

// Parse reads a table; the empty text is one that is never on. An error names
// the word that is wrong.
func Parse(text string) (Table, error) {
	if len(text) > MaxText {
		return Table{}, fmt.Errorf("schedule of %d bytes, more than %d", len(text), MaxText)
	}
	var t Table
	if strings.TrimSpace(text) == "" {
		return t, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		w, err := ParseWindow(part)
		if err != nil {
			return Table{}, fmt.Errorf("schedule: %w", err)
		}
		t.windows = append(t.windows, w)
	}
	before := t.on(weekMinutes - 1)
	for minute := range weekMinutes {
		if now := t.on(minute); now != before {
			t.edges, before = append(t.edges, minute), now
		}
	}
	return t, nil
}

// on says whether the table is on in a minute of the week.
func (t Table) on(minute int) bool {
	return slices.ContainsFunc(t.windows, func(w Window) bool {
		return w.on(time.Weekday(minute/dayMinutes), minute%dayMinutes)
	})
}

// On reports whether the table is on at t, in t's location.
func (t Table) On(at time.Time) bool {
	return slices.ContainsFunc(t.windows, func(w Window) bool { return w.On(at) })
}

// Next returns the first instant after t at which On is another than at t, in
// t's location. False: it never is.
func (t Table) Next(from time.Time) (at time.Time, ok bool) {
	if len(t.edges) == 0 {
		return time.Time{}, false
	}
	on := t.On(from)
	for at = from; ; {
		// Up to the end of its zone the wall clock runs evenly; there it jumps.
		edge := t.edge(at)
		if _, end := at.ZoneBounds(); end.IsZero() || edge.Before(end) {
			if t.On(edge) != on {
				return edge, true
			}
			at = edge
		} else {
			if t.On(end) != on {
				return end, true
			}
			at = end
		}
	}
}

// edge returns the first edge behind at, as if the wall clock never jumped.
func (t Table) edge(at time.Time) time.Time {
	hour, minute, second := at.Clock()
	now := time.Duration(int(at.Weekday())*dayMinutes+hour*60+minute)*time.Minute +
		time.Duration(second)*time.Second + time.Duration(at.Nanosecond())
	for _, e := range t.edges {
		if wait := time.Duration(e)*time.Minute - now; wait > 0 {
			return at.Add(wait)
		}
	}
	return at.Add(time.Duration(weekMinutes+t.edges[0])*time.Minute - now)
}

// Within returns when between from and to the table is on in loc (nil is UTC),
// in order and in UTC. Ranges neither overlap nor touch.
func (t Table) Within(from, to time.Time, loc *time.Location) []vms.TimeRange {
	if loc == nil {
		loc = time.UTC
	}
	var out []vms.TimeRange
	for at := from.In(loc); at.Before(to); {
		end, ok := t.Next(at)
		if !ok || end.After(to) {
			end = to
		}
		if t.On(at) {
			out = append(out, vms.TimeRange{Start: at.UTC(), End: end.UTC()})
		}
		at = end.In(loc)
	}
	return out
}
