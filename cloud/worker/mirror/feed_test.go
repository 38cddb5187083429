package mirror_test

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mp4/codecs"

	"github.com/zipato/vms/cloud/worker/mirror"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

// feed is a clip as an agent sends it: one epoch of chunks of a fifth of a
// second, each of which begins at a keyframe if it holds one.
type feed struct {
	init   *vms.Init
	chunks []vms.Chunk
	clip   string
	length time.Duration
}

// began is the UTC of a feed's first chunk.
var began = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// makeFeed makes a clip and cuts it.
func makeFeed(t testing.TB, spec vmstest.ClipSpec) *feed {
	t.Helper()
	f := &feed{clip: vmstest.MakeClip(t, spec)}
	path := filepath.Join(t.TempDir(), "clip.mp4")
	args := []string{"-hide_banner", "-loglevel", "error", "-nostdin", "-i", f.clip, "-c", "copy", "-bsf:a", "aac_adtstoasc", "-video_track_timescale", "90000"}
	if spec.Codec == "h265" {
		args = append(args, "-tag:v", "hvc1")
	}
	vmstest.FFmpeg(t, append(args, "-movflags", "delay_moov+default_base_moof+frag_keyframe", path)...)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var head fmp4.Init
	var parts fmp4.Parts
	if err := head.Unmarshal(bytes.NewReader(file)); err != nil {
		t.Fatal(err)
	}
	if err := parts.Unmarshal(file[bytes.Index(file, []byte("moof"))-4 : bytes.LastIndex(file, []byte("mfra"))-4]); err != nil {
		t.Fatal(err)
	}
	var v cmaf.VideoParams
	var a *cmaf.AudioParams
	for _, tr := range head.Tracks {
		switch c := tr.Codec.(type) {
		case *codecs.H264:
			v = cmaf.VideoParams{Codec: "h264", SPS: c.SPS, PPS: c.PPS}
		case *codecs.H265:
			v = cmaf.VideoParams{Codec: "h265", VPS: c.VPS, SPS: c.SPS, PPS: c.PPS}
		case *codecs.MPEG4Audio:
			config, err := c.Config.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			a = &cmaf.AudioParams{Config: config, SampleRate: c.Config.SampleRate, Channels: int(c.Config.ChannelConfig)}
		}
	}
	ts := cmaf.Timescale(a)
	seg, tracks, err := cmaf.BuildInit(ts, v, a)
	if err != nil {
		t.Fatal(err)
	}
	f.init = &vms.Init{Epoch: 1, ID: 1, Tracks: tracks, Segment: seg}
	f.cut(t, ts, head, parts)
	return f
}

// at is a sample and its decode time.
type at struct {
	dts uint64
	cmaf.Sample
}

// cut makes chunks of the samples of parts.
func (f *feed) cut(t testing.TB, ts uint32, head fmp4.Init, parts fmp4.Parts) {
	t.Helper()
	samples := map[int][]at{}
	for _, p := range parts {
		for _, tr := range p.Tracks {
			id, scale := cmaf.AudioTrack, uint64(0)
			for _, h := range head.Tracks {
				if h.ID == tr.ID {
					scale = uint64(ts / h.TimeScale)
					if h.Codec.IsVideo() {
						id = cmaf.VideoTrack
					}
				}
			}
			dts := uint64(ts) + tr.BaseTime*scale // not from zero
			for _, s := range tr.Samples {
				samples[id] = append(samples[id], at{dts, cmaf.Sample{
					Duration: s.Duration * uint32(scale), CTS: s.PTSOffset * int32(scale), Sync: isKey(f.init.Tracks[id-1].Codec, s), Raw: s.Payload,
				}})
				dts += uint64(s.Duration) * scale
			}
		}
	}
	pictures, sound := samples[cmaf.VideoTrack], samples[cmaf.AudioTrack]
	zero := pictures[0].dts
	utc := func(dts uint64) time.Time {
		return began.Add(time.Duration(float64(dts-zero) / float64(ts) * float64(time.Second)).Round(time.Millisecond))
	}
	for len(pictures) > 0 {
		n := 1
		for n < len(pictures) && n < 5 && !pictures[n].Sync {
			n++
		}
		last := pictures[n-1]
		end := last.dts + uint64(last.Duration)
		runs := []cmaf.Run{run(cmaf.VideoTrack, pictures[:n])}
		until := end
		if n == len(pictures) {
			until = math.MaxUint64
		}
		m := 0
		for m < len(sound) && sound[m].dts < until {
			m++
		}
		if m > 0 {
			runs = append(runs, run(cmaf.AudioTrack, sound[:m]))
		}
		payload, moofLen, err := cmaf.BuildFragment(uint32(len(f.chunks)+1), runs)
		if err != nil {
			t.Fatal(err)
		}
		c := vms.Chunk{
			Epoch: 1, Seq: uint64(len(f.chunks) + 1), Init: 1, MoofLen: moofLen, Payload: payload,
			Start: utc(pictures[0].dts), End: utc(end),
		}
		if pictures[0].Sync {
			c.Flags |= vms.FlagKey
		}
		f.chunks = append(f.chunks, c)
		f.length = c.End.Sub(began)
		pictures, sound = pictures[n:], sound[m:]
	}
}

// isKey: mediacommon does not read the flags of a run's first sample.
func isKey(codec string, s *fmp4.Sample) bool {
	au, err := cmaf.NALs(nil, s.Payload)
	if err != nil {
		return false // sound
	}
	if strings.HasPrefix(codec, "hvc1") {
		return h265.IsRandomAccess(au)
	}
	return h264.IsRandomAccess(au)
}

func run(track int, samples []at) cmaf.Run {
	r := cmaf.Run{Track: track, Base: samples[0].dts}
	for _, s := range samples {
		r.Samples = append(r.Samples, s.Sample)
	}
	return r
}

// later is f as an agent sends it that has restarted meanwhile: with the same
// parameters, but in another epoch and with another clock.
func (f *feed) later(t testing.TB, by time.Duration) *feed {
	t.Helper()
	init := *f.init
	init.Epoch++
	g := &feed{init: &init, clip: f.clip, length: f.length}
	for _, c := range f.chunks {
		frag, err := cmaf.ParseFragment(c.Payload)
		if err != nil {
			t.Fatal(err)
		}
		moof, err := frag.Unbase(nil, c.Payload, 1<<40)
		if err != nil {
			t.Fatal(err)
		}
		c.Payload = append(moof, c.Payload[frag.MoofLen:]...)
		c.Epoch++
		c.Start, c.End = c.Start.Add(by), c.End.Add(by)
		g.chunks = append(g.chunks, c)
	}
	return g
}

// publish hands chunks over as they come from a camera. The buffer is used again
// each time, as a worker's is.
func (f *feed) publish(t testing.TB, m *mirror.Mirror, ch vms.ChannelID) {
	t.Helper()
	var buffer []byte
	start := time.Now()
	for _, c := range f.chunks {
		due := c.Start.Sub(f.chunks[0].Start)
		select {
		case <-time.After(due - time.Since(start)): // the camera's pace
		case <-t.Context().Done():
			return
		}
		buffer = append(buffer[:0], c.Payload...)
		c.Payload = buffer
		m.Publish(ch, f.init, &c)
		clear(buffer) // whoever kept it shows it
	}
}

// chunk publishes one chunk at once.
func (f *feed) chunk(m *mirror.Mirror, ch vms.ChannelID, i int) {
	c := f.chunks[i]
	m.Publish(ch, f.init, &c)
}

// pad is a fragment whose first picture is as large.
func pad(t testing.TB, payload []byte, size int) []byte {
	t.Helper()
	frag, err := cmaf.ParseFragment(payload)
	if err != nil {
		t.Fatal(err)
	}
	units, err := frag.Units(nil, payload, cmaf.VideoTrack)
	if err != nil {
		t.Fatal(err)
	}
	r := cmaf.Run{Track: cmaf.VideoTrack, Base: uint64(units[0].DTS)}
	for i, u := range units {
		s := cmaf.Sample{Duration: u.Duration, CTS: int32(u.PTS - u.DTS), Sync: u.Sync, Raw: u.Data}
		if i == 0 {
			s.NALs, s.Raw = [][]byte{append([]byte{0x65}, make([]byte, size)...)}, nil
		}
		r.Samples = append(r.Samples, s)
	}
	b, _, err := cmaf.BuildFragment(1, []cmaf.Run{r})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
