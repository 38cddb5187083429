package camera

import (
	"bytes"
	"errors"
	"testing"

	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"
	"github.com/pion/rtp"
)

func session1(formats ...format.Format) *description.Session {
	var desc description.Session
	for _, f := range formats {
		desc.Medias = append(desc.Medias, &description.Media{Formats: []format.Format{f}})
	}
	return &desc
}

func TestVideoIsPulledBeforePictures(t *testing.T) {
	jpeg, h264, h265 := &format.MJPEG{}, &format.H264{PayloadTyp: 96, PacketizationMode: 1}, &format.H265{PayloadTyp: 97}
	for _, c := range []struct {
		offered []format.Format
		want    string
	}{
		{[]format.Format{jpeg}, "mjpeg"},
		{[]format.Format{jpeg, h264, h265}, "h264"},
		{[]format.Format{jpeg, h265, h264}, "h265"},
		{[]format.Format{&format.Opus{PayloadTyp: 96, ChannelCount: 2}, jpeg}, "mjpeg"},
	} {
		v, err := chooseVideo(session1(c.offered...))
		if err != nil || v.Codec != c.want {
			t.Errorf("%+v, %v; want %s", v, err, c.want)
		}
	}
	none := session1(jpeg)
	none.Medias[0].IsBackChannel = true
	if v, err := chooseVideo(none); err == nil {
		t.Errorf("%+v of a back channel", v)
	}
}

func TestBestSoundIsPulled(t *testing.T) {
	aac := &format.MPEG4Audio{PayloadTyp: 96, SizeLength: 13, IndexLength: 3, IndexDeltaLength: 3, Config: &mpeg4audio.AudioSpecificConfig{
		Type: mpeg4audio.ObjectTypeAACLC, SampleRate: 16000, ChannelConfig: 1,
	}}
	lpcm := &format.LPCM{PayloadTyp: 97, BitDepth: 16, SampleRate: 16000, ChannelCount: 1}
	mulaw := &format.G711{PayloadTyp: 0, MULaw: true, SampleRate: 8000, ChannelCount: 1}
	alaw := &format.G711{PayloadTyp: 8, SampleRate: 8000, ChannelCount: 1}
	for _, c := range []struct {
		offered []format.Format
		want    string
	}{
		{[]format.Format{alaw, lpcm, aac}, "aac"},
		{[]format.Format{mulaw, lpcm, alaw}, "lpcm"},
		{[]format.Format{mulaw, alaw}, "pcmu"},
		{[]format.Format{&format.Opus{PayloadTyp: 98, ChannelCount: 2}, alaw, mulaw}, "pcma"},
		{[]format.Format{&format.LPCM{BitDepth: 16, SampleRate: 16000, ChannelCount: 9}, alaw}, "pcma"},
		{[]format.Format{&format.LPCM{BitDepth: 16, SampleRate: 1 << 30, ChannelCount: 1}, alaw}, "pcma"},
		{[]format.Format{&format.LPCM{BitDepth: 20, SampleRate: 16000, ChannelCount: 1}, alaw}, "pcma"},
	} {
		if a := chooseAudio(session1(c.offered...)); a == nil || a.Codec != c.want {
			t.Errorf("%+v, want %s", a, c.want)
		}
	}
	if a := chooseAudio(session1(&format.Opus{PayloadTyp: 98, ChannelCount: 2})); a != nil {
		t.Errorf("%+v of Opus", a)
	}
}

func TestSamplesAreWhole(t *testing.T) {
	a := chooseAudio(session1(&format.LPCM{PayloadTyp: 97, BitDepth: 24, SampleRate: 16000, ChannelCount: 2}))
	for payload, want := range map[string]string{"abcdef": "abcdef", "abcdefg": "abcdef", "abcde": "", "": ""} {
		got, err := a.units(&rtp.Packet{Payload: []byte(payload)})
		if (err == nil) != (want == payload && want != "") || err != nil && !errors.Is(err, errNoSamples) {
			t.Errorf("%q: err = %v", payload, err)
		}
		if joined := bytes.Join(got, nil); string(joined) != want {
			t.Errorf("%q: %q, want %q", payload, joined, want)
		}
	}
}
