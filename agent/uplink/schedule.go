package uplink

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/week"
)

// Schedule says how much the hub may send when: a list of rules, of which the
// first that matches holds. The zero value never limits.
type Schedule struct {
	rules []rule
	loc   *time.Location
}

// rule is a rate and when it holds.
type rule struct {
	when week.Window
	rate int64 // bytes/s, 0 for no limit
}

// ParseSchedule reads rules that are separated by commas, such as
//
//	mon-fri 08:00-18:00=1M, sat sun=none, 4M
//
// A rule is days and hours as package week has them, then "=" and the rate; a
// rate alone holds always. A rate is bit/s, with k for 1000 and M for 1,000,000, or "none" for no
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
		if n := len(s.rules); n > 0 && s.rules[n-1].when.Always() {
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
	for _, r := range s.rules {
		if r.when.On(t) {
			return r.rate
		}
	}
	return 0
}

func parseRule(text string) (rule, error) {
	when, rate, ok := strings.Cut(text, "=")
	switch {
	case !ok:
		rate = text
	case strings.TrimSpace(when) == "":
		return rule{}, fmt.Errorf("%q says no days and no hours before the =", text)
	}
	r := rule{when: week.EveryMoment()}
	var err error
	if r.rate, err = parseRate(strings.TrimSpace(rate)); err != nil {
		return rule{}, err
	}
	if ok {
		if r.when, err = week.ParseWindow(when); err != nil {
			return rule{}, err
		}
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
