package vms

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"a": true, "ch_01-x": true, "0": true, "-": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, "A": false, "a.b": false, "a/b": false, "..": false,
		"a b": false, "é": false, "a\n": false, "a\x00": false, "a+": false, "#": false,
	} {
		if ValidID(id) != want {
			t.Errorf("ValidID(%q) = %v, want %v", id, !want, want)
		}
	}
}

func TestNewID(t *testing.T) {
	seen := make(map[ChannelID]bool)
	for range 1000 {
		id := NewID[ChannelID]("ch")
		if !strings.HasPrefix(string(id), "ch_") || len(id) != 3+16 || !ValidID(id) {
			t.Fatalf("new id %q", id)
		}
		if strings.ContainsAny(string(id[3:]), "ilou") {
			t.Fatalf("id %q holds letters that are read wrongly", id)
		}
		if seen[id] {
			t.Fatalf("id %q came twice", id)
		}
		seen[id] = true
	}
}

func TestEpochText(t *testing.T) {
	for _, e := range []Epoch{1, 0xab, 1 << 63, 0xffffffffffffffff, NewEpoch()} {
		got, err := ParseEpoch(e.String())
		if err != nil || got != e {
			t.Errorf("ParseEpoch(%s) = %s, %v", e, got, err)
		}
		b, err := json.Marshal(e)
		if err != nil || string(b) != `"`+e.String()+`"` || len(b) != 18 {
			t.Errorf("JSON of %d: %s, %v", uint64(e), b, err)
		}
	}
	for _, bad := range []string{
		"", "ab", "0123456789ABCDEF", "0123456789abcdeg", "0x23456789abcdef", "+123456789abcdef", "-123456789abcdef",
		"0123456789abcdef0", " 123456789abcdef", "0123_56789abcdef", "0123456789abcd\u00e9",
	} {
		if got, err := ParseEpoch(bad); err == nil {
			t.Errorf("ParseEpoch(%q) = %s", bad, got)
		}
	}
}

func TestEpochKeepsItsValueWhenRefused(t *testing.T) {
	e := Epoch(7)
	if err := e.UnmarshalText([]byte("seven")); err == nil || e != 7 {
		t.Errorf("UnmarshalText = %v and epoch %s", err, e)
	}
}

func TestLane(t *testing.T) {
	for l, want := range map[Lane]bool{LaneLive: true, LaneBackfill: true, "": false, "LIVE": false} {
		if l.Valid() != want {
			t.Errorf("lane %q valid: %v, want %v", l, l.Valid(), want)
		}
	}
}

func TestTimeRangeIsHalfOpen(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	r := TimeRange{at(10), at(20)}
	if r.Duration() != 10*time.Second {
		t.Errorf("duration %s, want 10s", r.Duration())
	}
	for _, tt := range []struct {
		from, to int
		want     bool
	}{
		{0, 10, false}, {20, 30, false}, {0, 11, true}, {19, 30, true}, {12, 13, true}, {0, 30, true}, {10, 20, true},
	} {
		o := TimeRange{at(tt.from), at(tt.to)}
		if r.Overlaps(o) != tt.want || o.Overlaps(r) != tt.want {
			t.Errorf("[10, 20) overlaps [%d, %d): %v and back %v, want %v", tt.from, tt.to, r.Overlaps(o), o.Overlaps(r), tt.want)
		}
	}
}

func TestFlags(t *testing.T) {
	if FlagFirst != 1 || FlagKey != 2 || FlagPreview != 4 || FlagDependent != 8 || FlagTimeUncertain != 16 || FlagsKnown != 31 {
		t.Error("the flags are bits of the wire and may not move")
	}
	f := FlagFirst | FlagKey
	if !f.Has(FlagFirst) || !f.Has(FlagFirst|FlagKey) || f.Has(FlagFirst|FlagPreview) || !f.Has(0) {
		t.Error("Has wants all bits")
	}
}

// TestEveryCauseHasItsSentence: the fallback is for causes of a newer peer.
func TestEveryCauseHasItsSentence(t *testing.T) {
	seen := make(map[string]Cause)
	for _, c := range []Cause{
		CauseCameraOffline, CauseBufferFull, CauseAgentRestarted, CauseRejected,
		CauseUndecodable, CauseClockUnknown, CauseHubUnreachable, CauseUnknown,
	} {
		s := c.Sentence()
		if other, twice := seen[s]; twice {
			t.Errorf("causes %s and %s share the sentence %q", c, other, s)
		}
		seen[s] = c
		if !ValidID(c) || !strings.HasSuffix(s, ".") {
			t.Errorf("cause %q says %q", c, s)
		}
	}
	if got := Cause("of_the_future").Sentence(); got != CauseUnknown.Sentence() {
		t.Errorf("a cause of the future says %q", got)
	}
}
