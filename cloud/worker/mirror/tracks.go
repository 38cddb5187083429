package mirror

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"
	"github.com/pion/rtp"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
)

// track is one media of a session: a track of the fragments, as RTP.
type track struct {
	id    int
	scale int64 // ticks per second of the fragments
	clock int64 // of RTP
	media *description.Media
	// params are the parameter sets that a keyframe begins with; none for sound.
	params [][]byte
	// leads is the NAL unit that stands before them: an access unit delimiter.
	leads func(nal []byte) bool
	// kind is the type of a NAL unit, and kinds how many there are: what lies
	// beyond means something else in RTP, and is never part of a picture. least
	// is how long a NAL unit is, at least.
	kind   func(nal []byte) byte
	kinds  byte
	least  int
	encode func(data [][]byte) ([]*rtp.Packet, error)

	nals [][]byte // scratch
}

// dynamic is the first RTP payload type without a fixed meaning (RFC 3551, 6).
const dynamic = 96

// tracksOf returns what RTP can carry of init: H264, H265 and AAC. lacks are the
// codecs that are left out; an error means that nothing is left.
func tracksOf(init *vms.Init) (tracks []*track, lacks []string, err error) {
	read, err := cmaf.ReadInit(init.Segment)
	if err != nil {
		return nil, nil, err
	}
	for _, in := range read {
		t := &track{id: in.ID, scale: int64(in.Timescale)}
		known := false
		switch {
		case in.Timescale != read[0].Timescale: // all count alike, or they could not be kept together
		case slices.ContainsFunc(tracks, func(o *track) bool { return o.id == in.ID }):
		case in.Video != nil:
			known, err = t.picture(in.Video)
		case in.Audio != nil:
			known, err = t.sound(in.Audio)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("track %d: %w", in.ID, err)
		}
		if !known {
			lacks = append(lacks, codecOf(init, in))
			continue
		}
		tracks = append(tracks, t)
	}
	if len(tracks) == 0 {
		return nil, lacks, errors.New("no track of H264, H265 or AAC")
	}
	return tracks, lacks, nil
}

// codecOf is what people call the codec of a track.
func codecOf(init *vms.Init, in cmaf.InitTrack) string {
	for _, t := range init.Tracks {
		if t.ID == in.ID && t.Codec != "" {
			return t.Codec
		}
	}
	return in.Entry
}

// picture sets t up for RFC 6184 or 7798.
func (t *track) picture(v *cmaf.VideoParams) (known bool, err error) {
	var f format.Format
	switch v.Codec {
	case "h264":
		h := &format.H264{PayloadTyp: dynamic, SPS: v.SPS, PPS: v.PPS, PacketizationMode: 1}
		e, err := h.CreateEncoder()
		if err != nil {
			return false, err
		}
		f, t.encode, t.params = h, e.Encode, [][]byte{v.SPS, v.PPS}
		t.kinds, t.least = 24, 1 // RFC 6184, 5.2
		t.kind = func(nal []byte) byte { return nal[0] & 0x1f }
		t.leads = func(nal []byte) bool { return t.kind(nal) == byte(h264.NALUTypeAccessUnitDelimiter) }
	case "h265":
		h := &format.H265{PayloadTyp: dynamic, VPS: v.VPS, SPS: v.SPS, PPS: v.PPS}
		e, err := h.CreateEncoder()
		if err != nil {
			return false, err
		}
		f, t.encode, t.params = h, e.Encode, [][]byte{v.VPS, v.SPS, v.PPS}
		t.kinds, t.least = 48, 2 // RFC 7798, 4.4
		t.kind = func(nal []byte) byte { return nal[0] >> 1 & 0x3f }
		t.leads = func(nal []byte) bool { return t.kind(nal) == byte(h265.NALUType_AUD_NUT) }
	default:
		return false, nil
	}
	t.clock = int64(f.ClockRate())
	t.media = &description.Media{Type: description.MediaTypeVideo, Formats: []format.Format{f}}
	return true, nil
}

// maxAAC is the longest access unit whose size fits its field (RFC 3640, 3.3.6).
const maxAAC = 1<<13 - 1

// sound sets t up for RFC 3640, in its high bit rate mode.
func (t *track) sound(a *cmaf.AudioParams) (known bool, err error) {
	if a.Codec != "aac" {
		return false, nil
	}
	config := &mpeg4audio.AudioSpecificConfig{}
	if err := config.Unmarshal(a.Config); err != nil {
		return false, fmt.Errorf("AAC configuration: %w", err)
	}
	f := &format.MPEG4Audio{PayloadTyp: dynamic + 1, Config: config, SizeLength: 13, IndexLength: 3, IndexDeltaLength: 3}
	e, err := f.CreateEncoder()
	if err != nil {
		return false, err
	}
	if t.clock = int64(f.ClockRate()); t.clock <= 0 {
		return false, fmt.Errorf("AAC of %d Hz", t.clock)
	}
	t.encode = e.Encode
	t.media = &description.Media{Type: description.MediaTypeAudio, Formats: []format.Format{f}}
	return true, nil
}

// packets returns the RTP packets of one sample, without their time; none when
// there is nothing in it that can be sent. They may share the sample's memory,
// and are good until the next call.
func (t *track) packets(u *cmaf.Unit) ([]*rtp.Packet, error) {
	t.nals = t.nals[:0]
	if t.kind == nil {
		if len(u.Data) == 0 || len(u.Data) > maxAAC {
			return nil, nil
		}
		t.nals = append(t.nals, u.Data)
		return t.encode(t.nals)
	}
	var err error
	if t.nals, err = cmaf.NALs(t.nals, u.Data); err != nil {
		return nil, err
	}
	t.nals = slices.DeleteFunc(t.nals, func(nal []byte) bool { return len(nal) < t.least || t.kind(nal) >= t.kinds })
	if len(t.nals) == 0 {
		return nil, nil
	}
	if u.Sync {
		t.addParams()
	}
	return t.encode(t.nals)
}

// addParams puts the parameter sets before a keyframe that has none of its own:
// they stand in the description of the session, but not every server hands that
// on to those who come in its middle.
func (t *track) addParams() {
	at := 0
	if t.leads(t.nals[0]) {
		at = 1
	}
	for _, p := range t.params {
		if !slices.ContainsFunc(t.nals, func(nal []byte) bool { return t.kind(nal) == t.kind(p) }) {
			t.nals = slices.Insert(t.nals, at, p)
			at++
		}
	}
}

// rtpTime is ticks in the track's RTP clock. What is exact in ticks of both is
// exact (cmaf.Timescale); whoever reads it wraps as RTP does.
func (t *track) rtpTime(ticks int64) uint32 {
	return uint32(ticks/t.scale*t.clock + ticks%t.scale*t.clock/t.scale)
}

// timeline puts the times of the fragments in a row: the clock of an agent
// starts anew when the agent does, that of an RTP session may not.
type timeline struct {
	scale int64 // ticks per second
	begun bool
	epoch vms.Epoch
	shift int64     // from the fragments' ticks to the session's
	end   int64     // session's ticks of the end of what came last
	utc   time.Time // and its UTC
}

const (
	// agree is how far media time and UTC may lie apart where both go on: the
	// agent's UTC slews, and rounds to milliseconds.
	agree = time.Second
	// maxJump is the longest silence that a session shows as such: a hub that
	// woke up in 1970 learns the time with a jump of decades.
	maxJump = 10 * time.Minute
)

// place says when c, whose ticks go from base to end, comes in the session.
// Times go on as the agent counts them; where they begin anew, the distance is
// that in UTC.
func (l *timeline) place(c *vms.Chunk, base, end int64) {
	switch {
	case !l.begun:
		l.begun = true
		l.shift = l.scale - base // one second: a picture that is shown before it is decoded is not before zero
	default:
		gap := c.Start.Sub(l.utc)
		media := time.Duration(float64(base+l.shift-l.end) / float64(l.scale) * float64(time.Second))
		if c.Epoch == l.epoch && media > -agree && (media-gap).Abs() < agree {
			break
		}
		if gap < 0 || gap > maxJump {
			gap = 0
		}
		l.shift = l.end + int64(math.Round(gap.Seconds()*float64(l.scale))) - base
	}
	l.epoch, l.end, l.utc = c.Epoch, end+l.shift, c.End
}

// byTime sorts samples of several tracks as they are to be decoded.
func byTime(a, b cmaf.Unit) int { return cmp.Compare(a.DTS, b.DTS) }
