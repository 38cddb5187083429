package api

import (
	"errors"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// timeLayout is RFC 3339 in UTC, always with milliseconds, so that times also
// sort as text.
const timeLayout = "2006-01-02T15:04:05.000Z"

// Time is a point in time as it stands in every answer.
type Time struct{ time.Time }

// MarshalJSON writes milliseconds, cut off rather than rounded: recordings
// that abut still do.
func (t Time) MarshalJSON() ([]byte, error) {
	return []byte(`"` + t.UTC().Format(timeLayout) + `"`), nil
}

// UnmarshalText reads RFC 3339 with any offset and precision.
func (t *Time) UnmarshalText(b []byte) error {
	v, err := time.Parse(time.RFC3339, string(b))
	if err != nil {
		if strings.Contains(string(b), " ") {
			return errors.New("want RFC 3339, such as 2026-11-22T12:00:00Z; a plus sign is %2B in a URL")
		}
		return errors.New("want RFC 3339, such as 2026-11-22T12:00:00Z")
	}
	if v = v.UTC(); v.Year() < 1970 || v.Year() > 9998 {
		return errors.New("want a year from 1970 to 9998")
	}
	t.Time = v
	return nil
}

// Schema implements huma.SchemaProvider.
func (Time) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date-time", Examples: []any{"2026-11-22T12:00:00.000Z"}}
}

// optionalTime leaves a zero time out of an answer.
func optionalTime(t time.Time) *Time {
	if t.IsZero() {
		return nil
	}
	return &Time{t}
}
