package vms

import "time"

// Flags say what a chunk is. The bits are those of the wire (PROTOCOL.md).
type Flags uint16

const (
	// FlagFirst: this chunk begins a recording.
	FlagFirst Flags = 1 << iota
	// FlagKey: this chunk begins with a keyframe; decoding may start here.
	FlagKey
	// FlagPreview: shown to viewers, neither stored nor acknowledged.
	FlagPreview
	// FlagDependent: with FlagFirst, a recording cut without a keyframe. It is
	// played only after its predecessor.
	FlagDependent
	// FlagTimeUncertain: the UTC of this chunk is an estimate; no clock bridged
	// a reboot of the hub, or the time was learned so late that drift may exceed a second.
	FlagTimeUncertain

	// FlagsKnown are all bits that have a meaning.
	FlagsKnown = FlagFirst | FlagKey | FlagPreview | FlagDependent | FlagTimeUncertain
)

// Has reports whether all bits of f2 are set in f.
func (f Flags) Has(f2 Flags) bool { return f&f2 == f2 }

// Chunk is the unit that travels and is stored: a CMAF fragment of one or a
// few frames, numbered and stamped when it was muxed. Its bytes never change
// afterwards: whoever holds a Chunk may keep and share Payload, nobody may
// write to it.
type Chunk struct {
	Epoch Epoch
	// Seq counts the chunks of an epoch from 1, without holes.
	Seq uint64
	// Recording is the number of the recording inside its span, from 0.
	Recording uint32
	// Init names the init message, inside the epoch, that decodes this chunk.
	Init  uint32
	Flags Flags
	// Start and End are UTC of the first sample and of the end of the last one.
	// Inside an epoch Start never goes back, and inside a span each Start is the End before it.
	Start, End time.Time
	// CameraTime is the camera's own wall clock (RTCP) at Start; zero if the
	// camera never told.
	CameraTime time.Time
	// MoofLen is the length of the moof box that Payload begins with.
	MoofLen int
	// CRC is CRC-32C (Castagnoli) of Payload, computed when it was muxed, so
	// that a bit that flips in RAM or flash on the way is noticed.
	CRC uint32
	// Payload is one moof and one mdat box (ISO/IEC 14496-12).
	Payload []byte
}

// Init is what a decoder needs before it can read chunks: an ftyp and a moov
// box. It is the same for all chunks between two codec changes.
type Init struct {
	Epoch Epoch
	// ID counts the inits of an epoch from 1.
	ID     uint32
	Tracks []Track
	// Segment is the ftyp and moov box.
	Segment []byte
}

// Track describes one track of an Init for people and players.
type Track struct {
	ID   int    `json:"id"`
	Kind string `json:"kind"` // "video" or "audio"
	// Codec is the RFC 6381 string, such as "avc1.64001f" or "mp4a.40.2".
	Codec      string `json:"codec"`
	Timescale  uint32 `json:"timescale"`
	Width      int    `json:"width,omitempty"`
	Height     int    `json:"height,omitempty"`
	SampleRate int    `json:"sample_rate,omitempty"`
	Channels   int    `json:"channels,omitempty"`
}
