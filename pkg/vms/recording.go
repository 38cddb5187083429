package vms

import (
	"fmt"
	"strings"
	"time"
)

// FormatVersion is written into every object's metadata. 1: ftyp, moov, sidx,
// then moof+mdat pairs, zero based.
const FormatVersion = 1

// Recording is what is known of one object in S3: about 30 s of one channel,
// starting at a keyframe.
type Recording struct {
	Channel ChannelID
	Key     string
	Chunks  ChunkRange
	// Number is the recording's number inside its span, as the agent stamped it.
	Number uint32
	// Start is UTC of the first sample; End is the start of the next chunk in
	// the span, so that recordings of a span abut exactly.
	Start, End time.Time
	// Media is the sum of the sample durations of the longest track.
	Media time.Duration
	Bytes int64
	// SHA256 is the checksum of the whole object, verified by the store.
	SHA256 [32]byte
	// HeadLen is the length of ftyp + moov + sidx: where the first moof begins.
	HeadLen int64
	// InitLen is the length of ftyp + moov, what a playlist names in EXT-X-MAP.
	InitLen int64
	// Codecs is the RFC 6381 list, such as "avc1.64001f,mp4a.40.2".
	Codecs        string
	Dependent     bool
	TimeUncertain bool
}

// RecordingKey returns the object key of a recording, after the
// object-storage annex of the ONVIF Recording Control specification:
// recordings/{channel}/YYYY-MM-DD/HH-MM-SS.ffffffZ.{number}.mp4
func RecordingKey(ch ChannelID, start time.Time, number uint32) string {
	return fmt.Sprintf("recordings/%s/%s.%d.mp4", ch, start.UTC().Format("2006-01-02/15-04-05.000000Z"), number)
}

// PartKey returns the object key of a part: a run of chunks of a recording that
// is not complete, parts/{channel}/{epoch}/{recording}/{first}-{last}.
func PartKey(ch ChannelID, chunks ChunkRange, number uint32) string {
	return fmt.Sprintf("parts/%s/%s/%d/%d-%d", ch, chunks.Epoch, number, chunks.First, chunks.Last)
}

// Provisional reports whether r is a part: the whole recording takes its place
// once it is stored.
func (r *Recording) Provisional() bool { return strings.HasPrefix(r.Key, "parts/") }

// KeyChannel returns the channel that an object key under recordings/ or parts/
// belongs to.
func KeyChannel(key string) (ChannelID, bool) {
	rest, ok := strings.CutPrefix(key, "recordings/")
	if !ok {
		rest, ok = strings.CutPrefix(key, "parts/")
	}
	if !ok {
		return "", false
	}
	ch, _, ok := strings.Cut(rest, "/")
	return ChannelID(ch), ok && ValidID(ch)
}
