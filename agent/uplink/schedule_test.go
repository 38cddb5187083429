package uplink

import (
	"strings"
	"testing"
	"time"
)

func TestSchedule(t *testing.T) {
	loc := time.FixedZone("UTC+2", 2*3600)
	for _, tt := range []struct {
		text, at string // at: local time; 2026-11-23 is a Monday
		want     int64  // bytes/s
	}{
		{"", "2026-11-23 10:00", 0},
		{"  ", "2026-11-23 10:00", 0},
		{"none", "2026-11-23 10:00", 0},
		{"4M", "2026-11-23 10:00", 500_000},
		{"1.5M", "2026-11-23 10:00", 187_500},
		{"64k", "2026-11-23 10:00", 8_000},
		{"64000", "2026-11-23 10:00", 8_000},
		{"mon-fri 08:00-18:00=1M, 4M", "2026-11-23 07:59", 500_000},
		{"mon-fri 08:00-18:00=1M, 4M", "2026-11-23 08:00", 125_000},
		{"mon-fri 08:00-18:00=1M, 4M", "2026-11-27 17:59", 125_000},
		{"mon-fri 08:00-18:00=1M, 4M", "2026-11-23 18:00", 500_000},
		{"mon-fri 08:00-18:00=1M, 4M", "2026-11-28 12:00", 500_000},
		{"mon-fri 08:00-18:00=1M", "2026-11-28 12:00", 0},
		{"08:00-18:00=1M,mon=2M", "2026-11-23 12:00", 125_000},
		{"08:00-18:00=1M,mon=2M", "2026-11-23 19:00", 250_000},
		{"sat sun=none,1M", "2026-11-29 12:00", 0},
		{"sat sun=none,1M", "2026-11-23 12:00", 125_000},
		{"fri-mon=1M", "2026-11-29 12:00", 125_000},
		{"fri-mon=1M", "2026-11-24 12:00", 0},
		{"fri 22:00-06:00=1M", "2026-11-27 23:00", 125_000},
		{"fri 22:00-06:00=1M", "2026-11-28 05:59", 125_000},
		{"fri 22:00-06:00=1M", "2026-11-28 06:00", 0},
		{"fri 22:00-06:00=1M", "2026-11-27 05:00", 0},
		{"sun 18:00-24:00=1M", "2026-11-29 23:59", 125_000},
	} {
		s, err := ParseSchedule(tt.text, loc)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		at, err := time.ParseInLocation("2006-01-02 15:04", tt.at, loc)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.At(at.UTC()); got != tt.want {
			t.Errorf("%q at %s = %d bytes/s, want %d", tt.text, tt.at, got, tt.want)
		}
	}
}

func TestScheduleErrorsNameTheWord(t *testing.T) {
	for text, word := range map[string]string{
		"4G":                         `"4G"`,
		"1e6":                        `"1e6"`,
		"-1M":                        `"-1M"`,
		"fast":                       `"fast"`,
		"M":                          `"M"`,
		"1.2.3M":                     `"1.2.3M"`,
		"0":                          `"0"`,
		"7k":                         `"7k"`,
		"1M,":                        `""`,
		"=1M":                        `"=1M"`,
		"mon-fri=":                   `""`,
		"mon-fry 08:00-18:00=1M":     `"fry"`,
		"Mon=1M":                     `"Mon"`,
		"mon--fri=1M":                `"-fri"`,
		"08:00=1M":                   `"08:00"`,
		"08:00-25:00=1M":             `"25:00"`,
		"08:00-18:60=1M":             `"18:60"`,
		"8-18:00=1M":                 `"8"`,
		"08:00-08:00=1M":             `"08:00-08:00"`,
		"24:00-08:00=1M":             `"24:00-08:00"`,
		"08:00-18:00 mon=1M":         `"mon"`,
		"08:00-09:00 10:00-11:00=1M": `"10:00-11:00"`,
		"1M, mon=2M":                 `"mon=2M"`,
		"mon-sun=1M, none":           `"none"`,
	} {
		if _, err := ParseSchedule(text, nil); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: error %v, want one that names %s", text, err, word)
		}
	}
}
