package week

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the zones must be there, whatever machine this runs on

	"github.com/zipato/vms/pkg/vms"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func parse(t testing.TB, text string) Table {
	t.Helper()
	table, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestOn(t *testing.T) {
	for _, tt := range []struct {
		text, at string // 2026-11-23 is a Monday
		want     bool
	}{
		{"", "2026-11-23 10:00", false},
		{"  ", "2026-11-23 10:00", false},
		{"mon", "2026-11-23 00:00", true},
		{"mon", "2026-11-23 23:59", true},
		{"mon", "2026-11-24 00:00", false},
		{"mon-fri 08:00-18:00, sat sun", "2026-11-23 07:59", false},
		{"mon-fri 08:00-18:00, sat sun", "2026-11-23 08:00", true},
		{"mon-fri 08:00-18:00, sat sun", "2026-11-27 17:59", true},
		{"mon-fri 08:00-18:00, sat sun", "2026-11-27 18:00", false},
		{"mon-fri 08:00-18:00, sat sun", "2026-11-28 03:00", true},
		{"22:00-06:00", "2026-11-23 21:59", false},
		{"22:00-06:00", "2026-11-23 22:00", true},
		{"22:00-06:00", "2026-11-24 05:59", true},
		{"22:00-06:00", "2026-11-24 06:00", false},
		{"fri 22:00-06:00", "2026-11-27 05:00", false},
		{"fri 22:00-06:00", "2026-11-28 05:00", true},
		{"sat 22:00-06:00", "2026-11-29 05:00", true},
		{"fri-mon", "2026-11-29 12:00", true},
		{"fri-mon", "2026-11-24 12:00", false},
		{"sun 18:00-24:00", "2026-11-29 23:59", true},
		{"sun 18:00-24:00", "2026-11-30 00:00", false},
		{"sun 18:00-00:00", "2026-11-29 23:59", true},
		{"sun 18:00-00:00", "2026-11-30 00:00", false},
		{" mon  8:00-9:00 ,tue", "2026-11-23 08:30", true},
	} {
		at, err := time.ParseInLocation("2006-01-02 15:04", tt.at, zone(t, "Europe/Zagreb"))
		if err != nil {
			t.Fatal(err)
		}
		if got := parse(t, tt.text).On(at); got != tt.want {
			t.Errorf("%q at %s = %v, want %v", tt.text, tt.at, got, tt.want)
		}
	}
}

func TestErrorsNameTheWord(t *testing.T) {
	for text, word := range map[string]string{
		"mon,":                          `""`,
		",":                             `""`,
		"mon, ,tue":                     `" "`,
		"mon-fry":                       `"fry"`,
		"Mon":                           `"Mon"`,
		"mon--fri":                      `"-fri"`,
		"monday":                        `"monday"`,
		"08:00":                         `"08:00"`,
		"08:00-25:00":                   `"25:00"`,
		"08:00-18:60":                   `"18:60"`,
		"08:00-24:01":                   `"24:01"`,
		"8-18:00":                       `"8"`,
		"08:00-18":                      `"18"`,
		"08:0-18:00":                    `"08:0"`,
		"+8:00-18:00":                   `"+8:00"`,
		"08:00-08:00":                   `"08:00-08:00"`,
		"24:00-08:00":                   `"24:00-08:00"`,
		"08:00-18:00 mon":               `"mon"`,
		"08:00-09:00 10:00-11:00":       `"10:00-11:00"`,
		"mon=1M":                        `"mon=1M"`,
		strings.Repeat("mon,", MaxText): fmt.Sprint(4 * MaxText),
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: error %v, want one that names %s", text, err, word)
		}
	}
}

// tables and model are the same thing said twice: as text, and as days and
// hours in the notation of time.Format.
var tables = map[string][]struct{ days, from, to string }{
	"":                             nil,
	"mon-sun":                      {{"Sun Mon Tue Wed Thu Fri Sat", "00:00", "24:00"}},
	"00:00-24:00":                  {{"Sun Mon Tue Wed Thu Fri Sat", "00:00", "24:00"}},
	"06:00-22:00, 22:00-06:00":     {{"Sun Mon Tue Wed Thu Fri Sat", "00:00", "24:00"}},
	"mon-fri 08:00-18:00, sat sun": {{"Mon Tue Wed Thu Fri", "08:00", "18:00"}, {"Sat Sun", "00:00", "24:00"}},
	"22:00-06:00":                  {{"Sun Mon Tue Wed Thu Fri Sat", "22:00", "06:00"}},
	"sat 23:30-02:15":              {{"Sat", "23:30", "02:15"}},
	"sun 02:00-03:00":              {{"Sun", "02:00", "03:00"}},
	"02:30-03:30":                  {{"Sun Mon Tue Wed Thu Fri Sat", "02:30", "03:30"}},
	"sun 01:45-02:10, 02:20-02:40": {{"Sun", "01:45", "02:10"}, {"Sun Mon Tue Wed Thu Fri Sat", "02:20", "02:40"}},
	"fri-sun 00:00-00:01":          {{"Fri Sat Sun", "00:00", "00:01"}},
	"sat 00:00-24:00, sun 00:00-01:00, sun 04:00-24:00": {{"Sat", "00:00", "24:00"}, {"Sun", "00:00", "01:00"}, {"Sun", "04:00", "24:00"}},
	"wed": {{"Wed", "00:00", "24:00"}},
}

func model(text string, at time.Time) bool {
	day, hm := at.Format("Mon"), at.Format("15:04")
	yesterday := map[string]string{"Mon": "Sun", "Tue": "Mon", "Wed": "Tue", "Thu": "Wed", "Fri": "Thu", "Sat": "Fri", "Sun": "Sat"}[day]
	for _, w := range tables[text] {
		switch {
		case w.from < w.to && strings.Contains(w.days, day) && w.from <= hm && hm < w.to,
			w.from > w.to && strings.Contains(w.days, day) && w.from <= hm,
			w.from > w.to && strings.Contains(w.days, yesterday) && hm < w.to:
			return true
		}
	}
	return false
}

// TestAgainstTheClockOnTheWall walks minute by minute through days on which the
// wall clock jumps, and through others.
func TestAgainstTheClockOnTheWall(t *testing.T) {
	for _, tt := range []struct{ zone, from string }{
		{"Europe/Zagreb", "2026-03-26"},       // Sunday 29th: 02:00 becomes 03:00
		{"Europe/Zagreb", "2026-10-22"},       // Sunday 25th: 03:00 becomes 02:00
		{"Europe/Zagreb", "2026-12-29"},       // a new year, no jump
		{"America/New_York", "2026-03-05"},    // Sunday 8th: 02:00 becomes 03:00
		{"America/New_York", "2026-10-29"},    // Sunday 1st: 02:00 becomes 01:00
		{"Australia/Lord_Howe", "2026-04-02"}, // Sunday 5th: 02:00 becomes 01:30
		{"Australia/Lord_Howe", "2026-10-01"}, // Sunday 4th: 02:00 becomes 02:30
		{"Asia/Kolkata", "2026-10-22"},        // never
		{"America/Havana", "2026-03-05"},      // Sunday 8th: 00:00 becomes 01:00, the day has no midnight
		{"America/Havana", "2026-10-29"},      // Sunday 1st: 01:00 becomes 00:00, midnight comes twice
		{"Pacific/Apia", "2011-12-27"},        // there was no Friday 30th
		{"UTC", "2026-02-26"},
	} {
		loc := zone(t, tt.zone)
		from, err := time.ParseInLocation("2006-01-02", tt.from, loc)
		if err != nil {
			t.Fatal(err)
		}
		to := from.Add(9 * 24 * time.Hour)
		for text := range tables {
			t.Run(fmt.Sprintf("%s %s %s", tt.zone, tt.from, text), func(t *testing.T) {
				testWalk(t, text, from, to)
			})
		}
	}
}

func testWalk(t *testing.T, text string, from, to time.Time) {
	table := parse(t, text)
	var want []vms.TimeRange
	var changes []time.Time
	was := model(text, from)
	for at := from; at.Before(to); at = at.Add(time.Minute) {
		on := model(text, at)
		if got := table.On(at); got != on {
			t.Fatalf("On(%s) = %v, want %v", at, got, on)
		}
		if late := at.Add(time.Minute - 1); table.On(late) != on {
			t.Fatalf("On(%s) = %v, want %v", late, !on, on)
		}
		if on != was {
			changes, was = append(changes, at), on
		}
		switch n := len(want); {
		case !on:
		case n > 0 && want[n-1].End.Equal(at):
			want[n-1].End = at.Add(time.Minute).UTC()
		default:
			want = append(want, vms.TimeRange{Start: at.UTC(), End: at.Add(time.Minute).UTC()})
		}
	}
	if got := table.Within(from, to, from.Location()); !slices.Equal(got, want) {
		t.Fatalf("Within =\n%v, want\n%v", got, want)
	}
	// From each minute, and from between two, to the next change.
	for at := from; at.Before(to); at = at.Add(time.Minute) {
		for len(changes) > 0 && !changes[0].After(at) {
			changes = changes[1:]
		}
		for _, at := range []time.Time{at, at.Add(20*time.Second + 7), at.Add(time.Minute - 1)} {
			got, ok := table.Next(at)
			switch {
			case len(changes) > 0 && (!ok || !got.Equal(changes[0])):
				t.Fatalf("Next(%s) = %s, %v, want %s", at, got, ok, changes[0])
			case len(changes) == 0 && ok && got.Before(to):
				t.Fatalf("Next(%s) = %s, but nothing changes before %s", at, got, to)
			}
		}
	}
}

// TestNext: what a jump of the clock takes away comes a week later, and what
// never changes is not waited for.
func TestNext(t *testing.T) {
	zagreb := zone(t, "Europe/Zagreb")
	for _, tt := range []struct {
		text     string
		at, want time.Time // zero: never
	}{
		{"", time.Date(2026, 3, 29, 0, 0, 0, 0, zagreb), time.Time{}},
		{"mon-sun", time.Date(2026, 3, 29, 0, 0, 0, 0, zagreb), time.Time{}},
		{"sun-sat 12:00-12:01, 12:01-12:00", time.Date(2026, 3, 29, 0, 0, 0, 0, zagreb), time.Time{}},
		{"sun 02:00-03:00", time.Date(2026, 3, 28, 12, 0, 0, 0, zagreb), time.Date(2026, 4, 5, 2, 0, 0, 0, zagreb)},
		{"sun 02:30-03:30", time.Date(2026, 3, 28, 12, 0, 0, 0, zagreb), time.Date(2026, 3, 29, 1, 0, 0, 0, time.UTC)},
		{"sun 02:15-02:45", time.Date(2026, 10, 25, 0, 50, 0, 0, time.UTC).In(zagreb), time.Date(2026, 10, 25, 1, 15, 0, 0, time.UTC)},
		{"wed", time.Date(2026, 3, 26, 0, 0, 0, 0, zagreb), time.Date(2026, 4, 1, 0, 0, 0, 0, zagreb)},
		{"08:00-18:00", time.Date(2026, 6, 1, 8, 0, 0, 0, zagreb), time.Date(2026, 6, 1, 18, 0, 0, 0, zagreb)},
		{"08:00-18:00", time.Date(2026, 6, 1, 7, 59, 59, 999_999_999, zagreb), time.Date(2026, 6, 1, 8, 0, 0, 0, zagreb)},
		// A zone that is not on the minute: its hours begin when its clock says so.
		{"08:00-18:00", time.Date(2026, 6, 1, 7, 0, 0, 0, time.FixedZone("", 1234)), time.Date(2026, 6, 1, 8, 0, 0, 0, time.FixedZone("", 1234))},
	} {
		got, ok := parse(t, tt.text).Next(tt.at)
		if ok == tt.want.IsZero() || !got.Equal(tt.want) {
			t.Errorf("%q from %s: %s, %v, want %s", tt.text, tt.at, got, ok, tt.want)
		}
	}
}

func TestWithinIsClipped(t *testing.T) {
	from := time.Date(2026, 6, 1, 8, 30, 15, 5, time.UTC) // a Monday
	for _, tt := range []struct {
		text string
		to   time.Time
		want []vms.TimeRange
	}{
		{"08:00-18:00", from, nil},
		{"08:00-18:00", from.Add(-time.Hour), nil},
		{"", from.Add(time.Hour), nil},
		{"tue", from.Add(time.Hour), nil},
		{"mon-sun", from.Add(1000 * time.Hour), []vms.TimeRange{{Start: from, End: from.Add(1000 * time.Hour)}}},
		{"08:00-18:00", from.Add(time.Minute), []vms.TimeRange{{Start: from, End: from.Add(time.Minute)}}},
		{"08:00-09:00, 10:00-10:10", from.Add(97 * time.Minute), []vms.TimeRange{
			{Start: from, End: time.Date(2026, 6, 1, 9, 0, 0, 0, time.UTC)},
			{Start: time.Date(2026, 6, 1, 10, 0, 0, 0, time.UTC), End: from.Add(97 * time.Minute)},
		}},
	} {
		if got := parse(t, tt.text).Within(from, tt.to, nil); !slices.Equal(got, tt.want) {
			t.Errorf("%q until %s = %v, want %v", tt.text, tt.to, got, tt.want)
		}
	}
}

// FuzzParse: what parses answers every question, and its changes are changes.
func FuzzParse(f *testing.F) {
	for text := range tables {
		f.Add(text)
	}
	f.Add("mon-fri 08:00-18:00=1M")
	loc := zone(f, "Europe/Zagreb")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := Parse(text)
		if err != nil {
			if len(err.Error()) > 4*len(text)+300 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		at := time.Date(2026, 10, 24, 12, 0, 0, 0, loc)
		for range 20 {
			next, ok := table.Next(at)
			if !ok {
				break
			}
			if !next.After(at) || table.On(next) == table.On(at) || table.On(next.Add(-1)) != table.On(at) {
				t.Fatalf("%q: Next(%s) = %s", text, at, next)
			}
			at = next
		}
	})
}
