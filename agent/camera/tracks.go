package camera

import (
	"errors"
	"fmt"
	"strings"

	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"
	"github.com/pion/rtp"
)

const videoRate = 90000 // RFC 6184 and RFC 7798 allow no other

// videoTrack is the video that is pulled.
type videoTrack struct {
	VideoFormat
	media *description.Media
	forma format.Format
	// nalus is the depacketizer of H264 and H265; mjpeg has one of its own.
	nalus func(*rtp.Packet) ([][]byte, error)
}

// audioTrack is the sound that is pulled.
type audioTrack struct {
	AudioFormat
	media *description.Media
	forma format.Format
	units func(*rtp.Packet) ([][]byte, error)
	// samples is how many ticks one access unit of AAC lasts. A packet of PCM is
	// one unit.
	samples int64
}

// chooseVideo takes the first video that can be recorded, one of single pictures
// only where there is no other. Cameras list the best one first.
func chooseVideo(desc *description.Session) (*videoTrack, error) {
	var pictures *videoTrack
	for _, m := range desc.Medias {
		if m.IsBackChannel {
			continue
		}
		for _, f := range m.Formats {
			t := &videoTrack{media: m, forma: f}
			switch f := f.(type) {
			case *format.H264:
				d, err := f.CreateDecoder()
				if err != nil {
					return nil, fmt.Errorf("h264: %w", err)
				}
				t.nalus = d.Decode
				t.VideoFormat = VideoFormat{Codec: "h264", SPS: f.SPS, PPS: f.PPS}
				return t, nil
			case *format.H265:
				d, err := f.CreateDecoder()
				if err != nil {
					return nil, fmt.Errorf("h265: %w", err)
				}
				t.nalus = d.Decode
				t.VideoFormat = VideoFormat{Codec: "h265", VPS: f.VPS, SPS: f.SPS, PPS: f.PPS}
				return t, nil
			case *format.MJPEG:
				if pictures == nil {
					t.VideoFormat = VideoFormat{Codec: "mjpeg"}
					pictures = t
				}
			}
		}
	}
	if pictures == nil {
		return nil, &noVideoError{offered: offered(desc)}
	}
	return pictures, nil
}

// chooseAudio takes the first AAC, else the first LPCM, else the first G711, or
// nil where there is none: in the order of how much there is to hear.
func chooseAudio(desc *description.Session) *audioTrack {
	var best [3]*audioTrack
	for _, m := range desc.Medias {
		if m.IsBackChannel {
			continue
		}
		for _, f := range m.Formats {
			var t *audioTrack
			rank := 0
			switch f := f.(type) {
			case *format.MPEG4Audio:
				t = newAAC(m, f)
			case *format.LPCM:
				rank = 1
				t = newPCM(m, f, AudioFormat{Codec: "lpcm", SampleRate: f.SampleRate, Channels: f.ChannelCount, BitDepth: f.BitDepth})
			case *format.G711:
				rank = 2
				codec := "pcma"
				if f.MULaw {
					codec = "pcmu"
				}
				t = newPCM(m, f, AudioFormat{Codec: codec, SampleRate: f.SampleRate, Channels: f.ChannelCount})
			}
			if t != nil && best[rank] == nil {
				best[rank] = t
			}
		}
	}
	for _, t := range best {
		if t != nil {
			return t
		}
	}
	return nil
}

// Limits of PCM. FLAC, which carries it, has no more channels (RFC 9639, section
// 9.1.3), and no camera samples faster.
const (
	maxChannels   = 8
	maxSampleRate = 192000
)

var errNoSamples = errors.New("packet without whole samples")

// newPCM returns nil for a sound that cannot be.
func newPCM(m *description.Media, f format.Format, a AudioFormat) *audioTrack {
	width := a.Channels
	switch a.BitDepth {
	case 0, 8: // G711 has one byte a sample
	case 16, 24:
		width *= a.BitDepth / 8
	default:
		return nil
	}
	if a.Channels < 1 || a.Channels > maxChannels || a.SampleRate < 1 || a.SampleRate > maxSampleRate {
		return nil
	}
	return &audioTrack{
		AudioFormat: a, media: m, forma: f,
		units: func(pkt *rtp.Packet) ([][]byte, error) {
			whole := pkt.Payload[:len(pkt.Payload)/width*width]
			if len(whole) == 0 {
				return nil, errNoSamples
			}
			var err error
			if len(whole) < len(pkt.Payload) {
				err = errNoSamples
			}
			return [][]byte{whole}, err
		},
	}
}

// newAAC returns nil for an AAC that cannot be described in MP4 as it is.
func newAAC(m *description.Media, f *format.MPEG4Audio) *audioTrack {
	config, err := f.Config.Marshal()
	if err != nil || f.Config.SampleRate <= 0 {
		return nil
	}
	d, err := f.CreateDecoder()
	if err != nil {
		return nil
	}
	channels := int(f.Config.ChannelConfig)
	switch {
	case channels == 0 || channels > 7: // the layout stands inside the audio
		return nil
	case channels == 7: // 7.1
		channels = 8
	case f.Config.ExtensionType == mpeg4audio.ObjectTypePS:
		channels = 2
	}
	// HE-AAC that says so runs at the rate after the extension, and so does its
	// RTP clock (RFC 3640, section 4.1).
	rate := f.Config.SampleRate
	samples := int64(mpeg4audio.SamplesPerAccessUnit)
	if f.Config.FrameLengthFlag {
		samples = 960
	}
	if ext := f.Config.ExtensionSampleRate; ext > 0 {
		samples = samples * int64(ext) / int64(rate)
		rate = ext
	}
	return &audioTrack{
		AudioFormat: AudioFormat{Codec: "aac", Config: config, SampleRate: rate, Channels: channels},
		media:       m, forma: f, units: d.Decode, samples: samples,
	}
}

// offered lists what the camera has, for people.
func offered(desc *description.Session) string {
	var names []string
	for _, m := range desc.Medias {
		for _, f := range m.Formats {
			if len(names) < 8 { // more than any camera has
				names = append(names, codecName(f))
			}
		}
	}
	if len(names) == 0 {
		return "nothing"
	}
	return "only " + strings.Join(names, " and ")
}

// codecName is what SDP calls the codec, without what a hostile camera might
// put there.
func codecName(f format.Format) string {
	switch f.(type) {
	case *format.MPEG4Audio, *format.MPEG4AudioLATM:
		return "AAC"
	case *format.MJPEG:
		return "M-JPEG"
	case *format.G711:
		return "G711"
	}
	name, _, _ := strings.Cut(f.RTPMap(), "/")
	name = strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return -1
	}, name)
	if name == "" || len(name) > 32 {
		return "something unknown"
	}
	return name
}
