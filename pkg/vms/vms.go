// Package vms holds the words of the system: ids as distinct types, chunks,
// time ranges, gaps with their causes, and the kinds of error that decisions
// are made by. It imports the standard library only; every other package may
// import it.
package vms

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Ids are opaque strings drawn from [a-z0-9_-], at most 64 bytes, so that they
// are safe in URLs, MQTT topics, file names and S3 keys. Distinct types keep a
// hub from being passed where a channel is meant.
type (
	// AccountID names a tenant, who owns hubs, cameras, channels and users.
	AccountID string
	// HubID names a hub: a device that runs the agent.
	HubID string
	// ChannelID names a camera's registration with one NVR: the unit of
	// authorization and storage.
	ChannelID string
	// SID names a stream authorization session.
	SID string
	// WorkerID names one worker, across its restarts.
	WorkerID string
	// Instance names one run of one worker process. What an instance holds is
	// gone with it.
	Instance string
	// RecordingID names one recording.
	RecordingID string
	// GapID names one gap, chosen by whoever declares it.
	GapID string
	// StreamID names one run of one camera through one agent.
	StreamID string
)

// idAlphabet is Crockford's base 32 in lower case: no i, l, o, u.
var idAlphabet = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewID returns prefix + "_" + 16 random characters (80 bits).
func NewID[T ~string](prefix string) T {
	var b [10]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return T(prefix + "_" + idAlphabet.EncodeToString(b[:]))
}

// ValidID reports whether s may be used as an id: 1 to 64 bytes of [a-z0-9_-].
func ValidID[T ~string](s T) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// Epoch names one run of sequence numbers of a stream. It is random, so two
// epochs have no order. The zero Epoch names none.
type Epoch uint64

// NewEpoch draws a random epoch.
func NewEpoch() Epoch {
	var b [8]byte
	for {
		rand.Read(b[:])
		if e := Epoch(binary.BigEndian.Uint64(b[:])); e != 0 {
			return e
		}
	}
}

// String returns the 16 hexadecimal digits that also stand in keys and JSON:
// JSON numbers lose precision above 2^53.
func (e Epoch) String() string { return fmt.Sprintf("%016x", uint64(e)) }

// MarshalText implements encoding.TextMarshaler.
func (e Epoch) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (e *Epoch) UnmarshalText(b []byte) error {
	v, err := ParseEpoch(string(b))
	if err != nil {
		return err
	}
	*e = v
	return nil
}

// ParseEpoch reads the 16 lower-case hexadecimal digits that String writes.
func ParseEpoch(s string) (Epoch, error) {
	if len(s) != 16 || strings.ToLower(s) != s {
		return 0, fmt.Errorf("epoch %q: want 16 lower-case hexadecimal digits", s)
	}
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("epoch %q: want 16 lower-case hexadecimal digits", s)
	}
	return Epoch(v), nil
}

// Generation is a number that the NVR issues per session, always rising. It
// alone fences an older connection, per channel and lane.
type Generation uint64

// Lane is what a connection to a worker carries.
type Lane string

const (
	// LaneLive carries what the camera shows now.
	LaneLive Lane = "live"
	// LaneBackfill carries what an outage left behind.
	LaneBackfill Lane = "backfill"
)

// Valid reports whether l is one of the two lanes.
func (l Lane) Valid() bool { return l == LaneLive || l == LaneBackfill }

// TimeRange is half open: Start is in it, End is not.
type TimeRange struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
}

// Duration returns End - Start.
func (r TimeRange) Duration() time.Duration { return r.End.Sub(r.Start) }

// Overlaps reports whether the ranges share an instant.
func (r TimeRange) Overlaps(o TimeRange) bool { return r.Start.Before(o.End) && o.Start.Before(r.End) }
