package mux

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/bluenviron/mediacommon/v2/pkg/formats/mpegts"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mpegts/codecs"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vmstest"
)

// TestRealStreams feeds what real encoders make; the tests of the whole path
// prove the same frame by frame.
func TestRealStreams(t *testing.T) {
	for name, spec := range map[string]vmstest.ClipSpec{
		"h264 B-frames":       {BFrames: 2, Audio: "aac", Duration: 3200 * time.Millisecond, GOP: 20},
		"h265 open GOP":       {Codec: "h265", OpenGOP: true, BFrames: 2, Audio: "aac", Duration: 3200 * time.Millisecond, GOP: 20},
		"h264, no reordering": {Duration: 3200 * time.Millisecond, GOP: 20},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(vmstest.MakeClip(t, spec))
			if err != nil {
				t.Fatal(err)
			}
			reader := &mpegts.Reader{R: bytes.NewReader(data)}
			if err := reader.Initialize(); err != nil {
				t.Fatal(err)
			}
			r := newRig(t, Config{Recording: time.Second, Phase: 500 * time.Millisecond})
			video, pictures, samples := cmaf.VideoParams{Codec: "h264"}, 0, 0
			var audio *Sound
			picture := func(pts, dts int64, au [][]byte) error {
				pictures++
				r.m.Video(pts, t0.Add(toDuration(dts, 90000)), false, time.Time{}, au)
				return nil
			}
			for _, track := range reader.Tracks() {
				switch c := track.Codec.(type) {
				case *codecs.H264:
					reader.OnDataH264(track, picture)
				case *codecs.H265:
					video.Codec = "h265"
					reader.OnDataH265(track, picture)
				case *codecs.MPEG4Audio:
					config, err := c.Config.Marshal()
					if err != nil {
						t.Fatal(err)
					}
					audio = &Sound{Config: config, SampleRate: c.SampleRate, Channels: 1}
					reader.OnDataMPEG4Audio(track, func(pts int64, aus [][]byte) error {
						for i, au := range aus {
							samples++
							at := pts*int64(c.SampleRate)/90000 + int64(i)*1024
							r.m.Audio(at, t0.Add(toDuration(at, uint32(c.SampleRate))), au)
						}
						return nil
					})
				}
			}
			r.open(video, audio)
			for reader.Read() == nil {
			}
			r.m.Flush()
			o := r.check()
			if o.pictures != pictures || pictures != 80 || o.samples+int(r.m.Stats().SoundDropped) != samples || r.m.Stats().SoundDropped > 10 {
				t.Errorf("%d of %d pictures, %d of %d sound samples", o.pictures, pictures, o.samples, samples)
			}
			if o.spans != 1 || o.recordings != 3 {
				t.Errorf("%d recordings in %d spans, want 3 in one", o.recordings, o.spans)
			}
		})
	}
}
