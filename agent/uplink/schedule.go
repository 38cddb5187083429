package uplink

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Schedule says how much the hub may send when: a list of rules, of which the
// first that matches holds. The zero value never limits.
type Schedule struct {
	rules []rule
	loc   *time.Location
}

// rule holds on some days, between two times of day. One that begins late and
// ends early goes over midnight, and belongs to the day on which it begins.
type rule struct {
	days     [7]bool // by time.Weekday
	from, to int     // minutes of the day; 0 to 1440 is all day
	rate     int64   // bytes/s, 0 for no limit
}

const allDay = 24 * 60

// ParseSchedule reads rules that are separated by commas, such as
//
//	mon-fri 08:00-18:00=1M, sat sun=none, 4M
//
// A rule is days (each a day or a range of days; none: every day), then at most
// one range of hours (none: all day), then "=" and the rate; a rate alone holds
// always. A rate is bit/s, with k for 1000 and M for 1,000,000, or "none" for no
// limit, which is also what holds when no rule matches. Times are those of loc;
// nil is UTC. An error names the word that is wrong.
func ParseSchedule(text string, loc *time.Location) (Schedule, error) {
	if loc == nil {
		loc = time.UTC
	}
	s := Schedule{loc: loc}
	if strings.TrimSpace(text) == "" {
		return s, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if n := len(s.rules); n > 0 && s.rules[n-1].always() {
			return Schedule{}, fmt.Errorf("schedule: %q is never reached: the rule before it holds always", part)
		}
		r, err := parseRule(part)
		if err != nil {
			return Schedule{}, fmt.Errorf("schedule: %w", err)
		}
		s.rules = append(s.rules, r)
	}
	return s, nil
}

// At returns the limit at t in bytes per second, 0 for none.
func (s Schedule) At(t time.Time) int64 {
	if len(s.rules) == 0 {
		return 0
	}
	t = t.In(s.loc)
	day, minute := t.Weekday(), t.Hour()*60+t.Minute()
	for _, r := range s.rules {
		if r.matches(day, minute) {
			return r.rate
		}
	}
	return 0
}

func (r rule) matches(day time.Weekday, minute int) bool {
	if r.from < r.to {
		return r.days[day] && r.from <= minute && minute < r.to
	}
	return r.days[day] && minute >= r.from || r.days[(day+6)%7] && minute < r.to
}

func (r rule) always() bool {
	return r.from == 0 && r.to == allDay && r.days == everyDay
}

var everyDay = [7]bool{true, true, true, true, true, true, true}

func parseRule(text string) (rule, error) {
	r := rule{days: everyDay, to: allDay}
	when, rate, ok := strings.Cut(text, "=")
	if !ok {
		when, rate = "", text
	} else if strings.TrimSpace(when) == "" {
		return r, fmt.Errorf("%q says no days and no hours before the =", text)
	}
	var err error
	if r.rate, err = parseRate(strings.TrimSpace(rate)); err != nil {
		return r, err
	}
	hours := false
	var days [7]bool
	for word := range strings.FieldsSeq(when) {
		switch {
		case hours:
			return r, fmt.Errorf("%q comes after the hours: days come first, and there is one range of hours to a rule", word)
		case strings.Contains(word, ":"):
			hours = true
			r.from, r.to, err = parseHours(word)
		default:
			err = addDays(&days, word)
		}
		if err != nil {
			return r, err
		}
	}
	if days != [7]bool{} {
		r.days = days
	}
	return r, nil
}

// minRate is the least limit, bit/s: below it not even the messages that keep a
// connection alive would get through.
const minRate = 8000

func parseRate(word string) (int64, error) {
	if word == "none" {
		return 0, nil
	}
	number, unit := word, 1.0
	switch {
	case strings.HasSuffix(word, "k"):
		number, unit = strings.TrimSuffix(word, "k"), 1e3
	case strings.HasSuffix(word, "M"):
		number, unit = strings.TrimSuffix(word, "M"), 1e6
	}
	// ParseFloat alone would take 1e9, 0x10 and inf.
	if strings.Trim(number, "0123456789.") != "" {
		return 0, fmt.Errorf("%q is no rate: want bit/s as in 500k or 1.5M, or none", word)
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no rate: want bit/s as in 500k or 1.5M, or none", word)
	}
	if v *= unit; v < minRate || v > 1e12 {
		return 0, fmt.Errorf("rate %q is out of range: at least %dk, or none", word, minRate/1000)
	}
	return int64(math.Round(v / 8)), nil
}

func parseHours(word string) (from, to int, err error) {
	a, b, ok := strings.Cut(word, "-")
	if !ok {
		return 0, 0, fmt.Errorf("%q is no range of hours: want it as in 08:00-18:00", word)
	}
	if from, err = parseTime(a); err != nil {
		return 0, 0, err
	}
	if to, err = parseTime(b); err != nil {
		return 0, 0, err
	}
	if from == to || from == allDay {
		return 0, 0, fmt.Errorf("%q is an empty range of hours", word)
	}
	return from, to, nil
}

func parseTime(word string) (int, error) {
	h, m, ok := strings.Cut(word, ":")
	hour, err1 := strconv.ParseUint(h, 10, 8)
	minute, err2 := strconv.ParseUint(m, 10, 8)
	if !ok || err1 != nil || err2 != nil || len(h) > 2 || len(m) != 2 || hour > 24 || minute > 59 || hour == 24 && minute > 0 {
		return 0, fmt.Errorf("%q is no time of day: want it as in 08:00", word)
	}
	return int(hour)*60 + int(minute), nil
}

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func addDays(days *[7]bool, word string) error {
	first, last, isRange := strings.Cut(word, "-")
	if !isRange {
		last = first
	}
	a, err := parseDay(first)
	if err != nil {
		return err
	}
	b, err := parseDay(last)
	if err != nil {
		return err
	}
	for d := a; ; d = (d + 1) % 7 { // fri-mon goes over the weekend
		days[d] = true
		if d == b {
			return nil
		}
	}
}

func parseDay(word string) (int, error) {
	for i, name := range dayNames {
		if word == name {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%q is no day: want mon, tue, wed, thu, fri, sat or sun", word)
}
