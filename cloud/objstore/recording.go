package objstore

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// RecordingType is the content type of a recording.
const RecordingType = "video/mp4"

// The metadata of a recording. With its key, size and checksum it is all that
// is known of it, so that the bucket alone suffices to rebuild the index. The
// names and forms are part of the format: objects outlive the programs that
// wrote them.
const (
	metaFormat  = "vms-format"   // vms.FormatVersion, decimal
	metaChannel = "vms-channel"  // channel id
	metaEpoch   = "vms-epoch"    // 16 hexadecimal digits
	metaChunks  = "vms-chunks"   // first and last sequence number: "17-45"
	metaNumber  = "vms-number"   // number of the recording inside its span, decimal
	metaStart   = "vms-start"    // UTC of the first sample, RFC 3339 with up to nanoseconds
	metaEnd     = "vms-end"      // UTC, exclusive, likewise
	metaMedia   = "vms-media-ns" // media duration in nanoseconds, decimal
	metaHead    = "vms-head"     // length of ftyp+moov+sidx in bytes, decimal
	metaInit    = "vms-init"     // length of ftyp+moov in bytes, decimal
	metaCodecs  = "vms-codecs"   // RFC 6381 list
	metaFlags   = "vms-flags"    // comma separated words, absent when there is none
	// And MetaSHA256, where the store holds no checksum of the whole object.
)

const (
	flagDependent     = "dependent"
	flagTimeUncertain = "time-uncertain"
)

// maxRecording bounds how long a recording may claim to be. The agent cuts
// after 120 s at the latest; the rest is room for streams of one frame in many
// minutes.
const maxRecording = 24 * time.Hour

// RecordingMetadata returns what a recording's object carries beside its
// bytes. ParseRecording reads it back.
func RecordingMetadata(r vms.Recording) map[string]string {
	m := map[string]string{
		metaFormat:  strconv.Itoa(vms.FormatVersion),
		metaChannel: string(r.Channel),
		metaEpoch:   r.Chunks.Epoch.String(),
		metaChunks:  fmt.Sprintf("%d-%d", r.Chunks.First, r.Chunks.Last),
		metaNumber:  strconv.FormatUint(uint64(r.Number), 10),
		metaStart:   r.Start.UTC().Format(time.RFC3339Nano),
		metaEnd:     r.End.UTC().Format(time.RFC3339Nano),
		metaMedia:   strconv.FormatInt(int64(r.Media), 10),
		metaHead:    strconv.FormatInt(r.HeadLen, 10),
		metaInit:    strconv.FormatInt(r.InitLen, 10),
		metaCodecs:  r.Codecs,
	}
	var flags []string
	if r.Dependent {
		flags = append(flags, flagDependent)
	}
	if r.TimeUncertain {
		flags = append(flags, flagTimeUncertain)
	}
	if flags != nil {
		m[metaFlags] = strings.Join(flags, ",")
	}
	return m
}

// ParseRecording tells which recording, or part of one, an object is, from its key and what
// Stat said of it. Anybody who may write to the bucket may have written the
// object, so every value is checked, alone and against the others; what is
// wrong is reported as vms.ErrInvalid.
func ParseRecording(key string, o Object) (vms.Recording, error) {
	r, err := parseRecording(key, o)
	if err != nil {
		return vms.Recording{}, fmt.Errorf("object %.200q as a recording: %w: %w", key, err, vms.ErrInvalid)
	}
	return r, nil
}

func parseRecording(key string, o Object) (vms.Recording, error) {
	p := metaParser{meta: o.Metadata}
	if v := p.integer(metaFormat, 0, 1<<31); p.err == nil && v != vms.FormatVersion {
		return vms.Recording{}, fmt.Errorf("format version %d, want %d", v, vms.FormatVersion)
	}
	r := vms.Recording{
		Channel: vms.ChannelID(p.text(metaChannel)),
		Key:     key,
		Chunks:  p.chunks(),
		Number:  uint32(p.integer(metaNumber, 0, 1<<32-1)),
		Start:   p.time(metaStart),
		End:     p.time(metaEnd),
		Media:   time.Duration(p.integer(metaMedia, 1, int64(maxRecording))),
		Bytes:   o.Size,
		SHA256:  o.SHA256,
		HeadLen: p.integer(metaHead, 1, o.Size-1),
		InitLen: p.integer(metaInit, 1, o.Size-1),
		Codecs:  p.text(metaCodecs),
	}
	p.flags(&r)
	p.sum(&r, o)
	if p.err != nil {
		return vms.Recording{}, p.err
	}
	want := vms.RecordingKey(r.Channel, r.Start, r.Number)
	if r.Provisional() {
		want = vms.PartKey(r.Channel, r.Chunks, r.Number)
	}
	switch {
	case !vms.ValidID(r.Channel):
		return vms.Recording{}, fmt.Errorf("channel %.80q is not an id", r.Channel)
	case !r.End.After(r.Start):
		return vms.Recording{}, errors.New("ends before it starts")
	case r.End.Sub(r.Start) > maxRecording:
		return vms.Recording{}, fmt.Errorf("lasts %v, longer than %v", r.End.Sub(r.Start), maxRecording)
	case key != want:
		return vms.Recording{}, errors.New("the metadata belongs to another key")
	case r.InitLen > r.HeadLen:
		return vms.Recording{}, fmt.Errorf("init of %d bytes is longer than the head of %d", r.InitLen, r.HeadLen)
	case !validCodecs(r.Codecs):
		return vms.Recording{}, fmt.Errorf("codecs %.80q", r.Codecs)
	}
	return r, nil
}

// validCodecs reports whether s is a list of codecs that may be put into a
// media type without escaping.
func validCodecs(s string) bool {
	if len(s) > 200 {
		return false
	}
	for codec := range strings.SplitSeq(s, ",") {
		if codec == "" {
			return false
		}
		for _, c := range []byte(codec) {
			if !alphanumeric(c) && c != '.' && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

// metaParser reads metadata and keeps the first thing that is wrong.
type metaParser struct {
	meta map[string]string
	err  error
}

func (p *metaParser) fail(key, format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("metadata %s: %s", key, fmt.Sprintf(format, args...))
	}
}

func (p *metaParser) text(key string) string {
	s, ok := p.meta[key]
	if !ok || s == "" {
		p.fail(key, "missing")
	}
	return s
}

// integer reads a decimal number as strconv writes it: one number, one form.
func (p *metaParser) integer(key string, lo, hi int64) int64 {
	s := p.text(key)
	v, err := strconv.ParseInt(s, 10, 64)
	switch {
	case err != nil || strconv.FormatInt(v, 10) != s:
		p.fail(key, "%.40q is not a decimal number", s)
	case v < lo || v > hi:
		p.fail(key, "%d is not between %d and %d", v, lo, hi)
	default:
		return v
	}
	return 0
}

func (p *metaParser) time(key string) time.Time {
	s := p.text(key)
	t, err := time.Parse(time.RFC3339Nano, s)
	switch {
	case err != nil || !strings.HasSuffix(s, "Z"):
		p.fail(key, "%.40q is not a UTC time of RFC 3339", s)
	case t.Year() < 1970 || t.Year() > 9999:
		p.fail(key, "the year %d is out of range", t.Year())
	}
	return t.UTC()
}

func (p *metaParser) chunks() vms.ChunkRange {
	epoch, err := vms.ParseEpoch(p.text(metaEpoch))
	if err != nil || epoch == 0 {
		p.fail(metaEpoch, "not an epoch")
	}
	s := p.text(metaChunks)
	a, b, _ := strings.Cut(s, "-")
	first, err1 := strconv.ParseUint(a, 10, 64)
	last, err2 := strconv.ParseUint(b, 10, 64)
	if err1 != nil || err2 != nil || first == 0 || first > last || s != fmt.Sprintf("%d-%d", first, last) {
		p.fail(metaChunks, "%.64q is not a range of chunks", s)
	}
	return vms.ChunkRange{Epoch: epoch, First: first, Last: last}
}

// sum takes the checksum from the store or, where that has none, from the
// metadata: both must not contradict each other.
func (p *metaParser) sum(r *vms.Recording, o Object) {
	s, ok := p.meta[MetaSHA256]
	if !ok {
		if !o.HasSHA256 {
			p.fail(MetaSHA256, "missing, and the store has no checksum of it")
		}
		return
	}
	sum, err := hex.DecodeString(s)
	switch {
	case err != nil || len(sum) != len(r.SHA256) || hex.EncodeToString(sum) != s:
		p.fail(MetaSHA256, "%.80q is no checksum", s)
	case o.HasSHA256 && o.SHA256 != [32]byte(sum):
		p.fail(MetaSHA256, "the store's checksum is another one")
	default:
		r.SHA256 = [32]byte(sum)
	}
}

// flags refuses words it does not know: they might change what the rest means.
func (p *metaParser) flags(r *vms.Recording) {
	s, ok := p.meta[metaFlags]
	if !ok {
		return
	}
	for word := range strings.SplitSeq(s, ",") {
		switch {
		case word == flagDependent && !r.Dependent:
			r.Dependent = true
		case word == flagTimeUncertain && !r.TimeUncertain:
			r.TimeUncertain = true
		default:
			p.fail(metaFlags, "%.64q", s)
			return
		}
	}
}
