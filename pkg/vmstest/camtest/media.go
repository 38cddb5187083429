package camtest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mpegts"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mpegts/codecs"
)

// VideoRate is the clock of video, in ticks per second.
const VideoRate = 90000

// Media is what a camera shows, wholly in memory: the access units of a clip in
// decode order, with their times. Nobody writes to it once it is loaded, so one
// Media may feed many cameras.
type Media struct {
	Codec         string // "h264", "h265" or "mjpeg"
	VPS, SPS, PPS []byte // the first of each in the video; none for mjpeg
	Video         []VideoUnit

	// Audio is what one round sends, without the quiet stretches; empty when the
	// clip has no sound, and AudioCodec is empty then.
	Audio       []AudioUnit
	AudioCodec  string                          // "aac", "pcma", "pcmu" or "lpcm"
	AudioConfig *mpeg4audio.AudioSpecificConfig // of AAC only
	SampleRate  int                             // samples per second
	Channels    int
	BitDepth    int // of lpcm: 8, 16 or 24

	// sound is Audio with the quiet stretches, which pass in silence.
	sound []soundUnit
	// period is how long the picture lasts, in 90 kHz ticks: what a loop adds.
	period int64
}

// VideoUnit is one access unit of video: its NAL units without start codes or
// access unit delimiters, or one JPEG file.
type VideoUnit struct {
	PTS, DTS int64 // 90 kHz, from zero at the first DTS
	AU       [][]byte
}

// AudioUnit is one access unit of AAC, or one packet of PCM.
type AudioUnit struct {
	// PTS counts samples and has the same zero as the video's.
	PTS     int64
	Samples int64 // how long it lasts
	// AU is, for G711, one byte a sample; for LPCM the samples as in RTP: 8 bits
	// without a sign, 16 and 24 with one and big endian (RFC 3551, section 4.5).
	// The channels take turns.
	AU []byte
}

type soundUnit struct {
	AudioUnit
	quiet bool
}

// Load reads a file as MakeClip makes it: MPEG-TS with H264 or H265, and AAC or
// no sound.
func Load(path string) (*Media, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load clip: %w", err)
	}
	defer f.Close()
	m, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("load clip %s: %w", path, err)
	}
	return m, nil
}

// Read reads an MPEG-TS stream as Load does a file.
func Read(r io.Reader) (*Media, error) {
	ts := &mpegts.Reader{R: bufio.NewReader(r)}
	if err := ts.Initialize(); err != nil {
		return nil, err
	}
	var m Media
	var broken error // the first decode error: a clip with one is no reference
	ts.OnDecodeError(func(err error) { broken = errors.Join(broken, err) })
	var audio []pesAudio
	for _, track := range ts.Tracks() {
		switch codec := track.Codec.(type) {
		case *codecs.H264:
			m.Codec = "h264"
			ts.OnDataH264(track, m.addVideo)
		case *codecs.H265:
			m.Codec = "h265"
			ts.OnDataH265(track, m.addVideo)
		case *codecs.MPEG4Audio:
			config := codec.Config
			m.AudioCodec, m.AudioConfig = "aac", &config
			m.SampleRate, m.Channels = config.SampleRate, int(config.ChannelConfig)
			ts.OnDataMPEG4Audio(track, func(pts int64, aus [][]byte) error {
				audio = append(audio, pesAudio{pts, aus})
				return nil
			})
		}
	}
	for {
		if err := ts.Read(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
	}
	if broken != nil {
		return nil, broken
	}
	if len(m.Video) < 2 {
		return nil, errors.New("no H264 or H265 video in it")
	}
	m.findParameterSets()
	zero := m.Video[0].DTS
	for i := range m.Video {
		m.Video[i].DTS -= zero
		m.Video[i].PTS -= zero
	}
	last := m.Video[len(m.Video)-1].DTS
	m.period = last + last/int64(len(m.Video)-1) // every frame lasts as long as the mean one
	return &m, m.addAudio(audio, zero)
}

// addVideo takes one access unit as MPEG-TS has it. Clips are short: their
// 33-bit clock does not wrap.
func (m *Media) addVideo(pts, dts int64, au [][]byte) error {
	copied := make([][]byte, len(au))
	for i, nalu := range au {
		copied[i] = bytes.Clone(nalu)
	}
	m.Video = append(m.Video, VideoUnit{PTS: pts, DTS: dts, AU: copied})
	return nil
}

// pesAudio is one PES packet: several access units and the time of the first.
type pesAudio struct {
	pts int64
	aus [][]byte
}

// addAudio numbers the samples through from the first packet on. 90 kHz rounds
// at most sample rates; the count of samples does not.
func (m *Media) addAudio(packets []pesAudio, zero int64) error {
	if len(packets) == 0 {
		m.AudioCodec, m.AudioConfig, m.SampleRate, m.Channels = "", nil, 0, 0
		return nil
	}
	rate := int64(m.SampleRate)
	next := (packets[0].pts - zero) * rate / VideoRate
	var units []AudioUnit
	for _, p := range packets {
		told := (p.pts - zero) * rate / VideoRate
		if d := told - next; d < -samplesPerAU/2 || d > samplesPerAU/2 {
			return fmt.Errorf("sound has a hole or overlap of %d samples", d)
		}
		for _, au := range p.aus {
			units = append(units, AudioUnit{PTS: next, Samples: samplesPerAU, AU: bytes.Clone(au)})
			next += samplesPerAU
		}
	}
	m.setSound(units)
	return nil
}

const samplesPerAU = mpeg4audio.SamplesPerAccessUnit

func (m *Media) findParameterSets() {
	for _, v := range m.Video {
		for _, nalu := range v.AU {
			if p := m.parameterSet(nalu); p != nil && *p == nil {
				*p = nalu
			}
		}
		if m.SPS != nil && m.PPS != nil {
			return
		}
	}
}

// parameterSet returns where a parameter set like nalu belongs, nil for other
// NAL units.
func (m *Media) parameterSet(nalu []byte) *[]byte {
	if len(nalu) == 0 {
		return nil
	}
	if m.Codec == "h265" {
		switch h265.NALUType(nalu[0] >> 1 & 0x3f) {
		case h265.NALUType_VPS_NUT:
			return &m.VPS
		case h265.NALUType_SPS_NUT:
			return &m.SPS
		case h265.NALUType_PPS_NUT:
			return &m.PPS
		}
		return nil
	}
	switch h264.NALUType(nalu[0] & 0x1f) {
	case h264.NALUTypeSPS:
		return &m.SPS
	case h264.NALUTypePPS:
		return &m.PPS
	}
	return nil
}
