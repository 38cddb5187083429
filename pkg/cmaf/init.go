// Package cmaf builds and reads the two things that travel as media: init
// segments (ftyp + moov) and fragments (moof + mdat), after ISO/IEC 14496-12
// and the chunk of ISO/IEC 23000-19 (CMAF). The boxes are written here: an init
// segment takes a few hundred lines instead of a library that a hub would carry
// for nothing else, and a hub writes several fragments a second for each camera;
// neither's bytes depend on a library's version.
package cmaf

import (
	"bytes"
	"fmt"
	"math/bits"
	"strings"

	"github.com/zipato/vms/pkg/vms"
)

// The track ids of everything this package builds.
const (
	VideoTrack = 1
	AudioTrack = 2
)

// VideoClock is the RTP clock of video (RFC 6184, RFC 7798), in Hz.
const VideoClock = 90000

// VideoParams are what a decoder must know before the first picture.
type VideoParams struct {
	Codec string // "h264", "h265" or "mjpeg"
	// VPS, SPS and PPS are the parameter sets, without start codes: VPS for h265
	// only, none for mjpeg.
	VPS, SPS, PPS []byte
	// Width and Height are the picture's, in pixels, for mjpeg only: the other
	// codecs have them in the SPS.
	Width, Height int
}

// Equal reports whether both make the same init segment.
func (v VideoParams) Equal(o VideoParams) bool {
	return v.Codec == o.Codec && bytes.Equal(v.VPS, o.VPS) && bytes.Equal(v.SPS, o.SPS) && bytes.Equal(v.PPS, o.PPS) &&
		v.Width == o.Width && v.Height == o.Height
}

// AudioParams describe sound as it is written: AAC or FLAC.
type AudioParams struct {
	Codec string // "aac" (also when empty) or "flac"
	// Config is, for aac, the AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1); for
	// flac, the 34 bytes of STREAMINFO (RFC 9639, 8.2).
	Config     []byte
	SampleRate int // Hz
	Channels   int
}

// Timescale returns the ticks per second in which both tracks count: the least
// common multiple of the video clock and the sample rate. One clock for all
// tracks is what lets a recording be moved to start at zero by subtracting one
// number, without rounding any track.
func Timescale(a *AudioParams) uint32 {
	if a == nil || a.SampleRate <= 0 {
		return VideoClock
	}
	x, y := uint64(VideoClock), uint64(a.SampleRate)
	for y != 0 {
		x, y = y, x%y
	}
	hi, l := bits.Mul64(VideoClock/x, uint64(a.SampleRate))
	if hi != 0 || l > 50_000_000 { // a sample rate that no codec has
		return VideoClock
	}
	return uint32(l)
}

// BuildInit returns the init segment of a picture and, unless a is nil, its
// sound. All tracks count in ts ticks per second. An error means that the
// parameters describe nothing that can be decoded. Two calls with equal
// arguments give equal bytes.
func BuildInit(ts uint32, v VideoParams, a *AudioParams) (segment []byte, tracks []vms.Track, err error) {
	if ts == 0 {
		return nil, nil, fmt.Errorf("build init segment: no timescale")
	}
	t, entry, err := videoEntry(v)
	if err != nil {
		return nil, nil, err
	}
	tracks, entries := []vms.Track{t}, [][]byte{entry}
	if a != nil {
		if t, entry, err = soundEntry(a); err != nil {
			return nil, nil, err
		}
		tracks, entries = append(tracks, t), append(entries, entry)
	}
	for i := range tracks {
		tracks[i].Timescale = ts
	}
	return buildInit(tracks, entries), tracks, nil
}

// Codecs joins the codecs of tracks as a MIME type wants them.
func Codecs(tracks []vms.Track) string {
	names := make([]string, len(tracks))
	for i, t := range tracks {
		names[i] = t.Codec
	}
	return strings.Join(names, ",")
}

// MIME returns the type for MediaSource.addSourceBuffer.
func MIME(tracks []vms.Track) string { return fmt.Sprintf("video/mp4; codecs=%q", Codecs(tracks)) }
