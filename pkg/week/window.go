package week

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Window is some days, between two times of day. The zero value is never on.
type Window struct {
	days     [7]bool // by time.Weekday
	from, to int     // minutes of the day; 0 to 1440 is all day, to before from goes over midnight
}

// EveryMoment returns the window that is always on.
func EveryMoment() Window {
	return Window{days: [7]bool{true, true, true, true, true, true, true}, to: dayMinutes}
}

// ParseWindow reads one window, such as "mon-fri sun 08:00-18:00". An error names
// the word that is wrong.
func ParseWindow(text string) (Window, error) {
	w := EveryMoment()
	var days [7]bool
	words, hours := 0, false
	for word := range strings.FieldsSeq(text) {
		words++
		var err error
		switch {
		case hours:
			err = fmt.Errorf("%q comes after the hours: days come first, and there is one range of hours to a rule", word)
		case strings.Contains(word, ":"):
			hours = true
			w.from, w.to, err = parseHours(word)
		default:
			err = addDays(&days, word)
		}
		if err != nil {
			return Window{}, err
		}
	}
	if words == 0 {
		return Window{}, fmt.Errorf("%q says no days and no hours", text)
	}
	if days != [7]bool{} {
		w.days = days
	}
	return w, nil
}

// On reports whether the window is on at t, in t's location.
func (w Window) On(t time.Time) bool {
	hour, minute, _ := t.Clock()
	return w.on(t.Weekday(), hour*60+minute)
}

// Always reports whether there is no moment at which the window is off.
func (w Window) Always() bool { return w == EveryMoment() }

func (w Window) on(day time.Weekday, minute int) bool {
	if w.from < w.to {
		return w.days[day] && w.from <= minute && minute < w.to
	}
	return w.days[day] && minute >= w.from || w.days[(day+6)%7] && minute < w.to
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
	if from == to || from == dayMinutes {
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
