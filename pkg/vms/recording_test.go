package vms

import (
	"regexp"
	"slices"
	"testing"
	"time"
)

func TestRecordingKey(t *testing.T) {
	east := time.FixedZone("east", 2*3600)
	for _, tt := range []struct {
		start  time.Time
		number uint32
		want   string
	}{
		{time.Date(2026, 11, 22, 10, 30, 1, 250_000_000, time.UTC), 0, "recordings/ch_01/2026-11-22/10-30-01.250000Z.0.mp4"},
		{time.Date(2026, 11, 22, 10, 30, 1, 0, time.UTC), 12, "recordings/ch_01/2026-11-22/10-30-01.000000Z.12.mp4"},
		{time.Date(2026, 11, 22, 1, 0, 0, 999, east), 7, "recordings/ch_01/2026-11-21/23-00-00.000000Z.7.mp4"},
		{time.Date(1970, 1, 1, 0, 0, 0, 1000, time.UTC), 4294967295, "recordings/ch_01/1970-01-01/00-00-00.000001Z.4294967295.mp4"},
	} {
		got := RecordingKey("ch_01", tt.start, tt.number)
		if got != tt.want {
			t.Errorf("key %s, want %s", got, tt.want)
		}
		if !regexp.MustCompile(`^[A-Za-z0-9/._-]+$`).MatchString(got) {
			t.Errorf("key %s holds bytes that not every store takes", got)
		}
		if ch, ok := KeyChannel(got); !ok || ch != "ch_01" {
			t.Errorf("KeyChannel(%s) = %q, %v", got, ch, ok)
		}
	}
}

func TestPartKey(t *testing.T) {
	got := PartKey("ch_01", ChunkRange{Epoch: 0x0123456789abcdef, First: 151, Last: 300}, 2)
	if want := "parts/ch_01/0123456789abcdef/2/151-300"; got != want {
		t.Errorf("key %s, want %s", got, want)
	}
	if ch, ok := KeyChannel(got); !ok || ch != "ch_01" {
		t.Errorf("KeyChannel(%s) = %q, %v", got, ch, ok)
	}
	part, whole := Recording{Key: got}, Recording{Key: RecordingKey("ch_01", time.Unix(1, 0), 2)}
	if !part.Provisional() || whole.Provisional() {
		t.Errorf("provisional: part %v, whole %v", part.Provisional(), whole.Provisional())
	}
}

// TestKeysSortByTime: a listing of a channel's day is in order of time.
func TestKeysSortByTime(t *testing.T) {
	var keys []string
	start := time.Date(2026, 11, 22, 23, 58, 0, 0, time.UTC)
	for i := range uint32(12) {
		keys = append(keys, RecordingKey("ch_01", start.Add(time.Duration(i)*30*time.Second), i))
	}
	if !slices.IsSorted(keys) {
		t.Errorf("keys are not in order: %q", keys)
	}
}

func TestKeyChannelOfOtherKeys(t *testing.T) {
	for _, key := range []string{
		"", "recordings", "recordings/", "recordings/ch_01", "recordings//x.mp4", "recordings/CH/x.mp4",
		"clips/ch_01/x.mp4", "/recordings/ch_01/x.mp4", "recordings/../ch_01/x.mp4", "parts/ch_01", "snapshots/ch_01/x",
	} {
		if ch, ok := KeyChannel(key); ok {
			t.Errorf("KeyChannel(%q) = %q", key, ch)
		}
	}
}
