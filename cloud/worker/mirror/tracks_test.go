package mirror

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/description"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// Parameter sets as x264 and x265 write them.
var (
	h264Params = cmaf.VideoParams{Codec: "h264", SPS: unhex("6764001facb402802dd808800000030080000019078c1950"), PPS: unhex("68ee0fcb")}
	h265Params = cmaf.VideoParams{
		Codec: "h265", VPS: unhex("40010c01ffff01600000030090000003000003003c959409"),
		SPS: unhex("42010101600000030090000003000003003ca00a080c1f3e595952930bc05a020000030002000003003210"), PPS: unhex("4401c073c189"),
	}
	aacParams = cmaf.AudioParams{Config: unhex("1190"), SampleRate: 48000, Channels: 2}
)

func initOf(t testing.TB, v cmaf.VideoParams, a *cmaf.AudioParams) *vms.Init {
	t.Helper()
	seg, tracks, err := cmaf.BuildInit(cmaf.Timescale(a), v, a)
	if err != nil {
		t.Fatal(err)
	}
	return &vms.Init{Epoch: 1, ID: 1, Tracks: tracks, Segment: seg}
}

func sample(nals ...[]byte) *cmaf.Unit {
	u := &cmaf.Unit{Sync: true}
	for _, n := range nals {
		u.Data = append(append(u.Data, 0, 0, byte(len(n)>>8), byte(len(n))), n...)
	}
	return u
}

// TestKeyframeBringsItsParameters: whoever comes in the middle of a session can
// decode from any keyframe on; what the camera sends itself stays as it is.
func TestKeyframeBringsItsParameters(t *testing.T) {
	idr, slice := []byte{0x65, 1, 2}, []byte{0x41, 3, 4}
	aud, sps := []byte{0x09, 0xf0}, []byte{0x67, 1, 2, 3}
	irap, aud5 := []byte{0x26, 1, 9}, []byte{0x46, 1, 0x50}
	v, w := h264Params, h265Params
	for name, tt := range map[string]struct {
		v    cmaf.VideoParams
		in   *cmaf.Unit
		want [][]byte
	}{
		"keyframe":           {v, sample(idr), [][]byte{v.SPS, v.PPS, idr}},
		"behind a delimiter": {v, sample(aud, idr), [][]byte{aud, v.SPS, v.PPS, idr}},
		"SPS of its own":     {v, sample(sps, idr), [][]byte{v.PPS, sps, idr}},
		"no keyframe":        {v, &cmaf.Unit{Data: sample(slice).Data}, [][]byte{slice}},
		"H265":               {w, sample(aud5, irap), [][]byte{aud5, w.VPS, w.SPS, w.PPS, irap}},
		"not of a picture":   {v, sample([]byte{24, 0, 1, 9}, idr, []byte{0x7c, 1}), [][]byte{v.SPS, v.PPS, idr}},
		"nor of H265":        {w, &cmaf.Unit{Data: sample([]byte{48 << 1, 1, 0, 1, 9, 9}, []byte{0x26}, irap).Data}, [][]byte{irap}},
		"nothing at all":     {v, sample([]byte{24, 0, 1, 9, 9}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			tracks, _, err := tracksOf(initOf(t, tt.v, nil))
			if err != nil {
				t.Fatal(err)
			}
			packets, err := tracks[0].packets(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(tracks[0].nals, tt.want, bytes.Equal) || (len(packets) == 0) != (tt.want == nil) {
				t.Errorf("%d packets of %x, want %x", len(packets), tracks[0].nals, tt.want)
			}
		})
	}
}

// TestTimelineGoesOn: a session's time never goes back, whatever the agent's does.
func TestTimelineGoesOn(t *testing.T) {
	zero := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	type step struct {
		epoch vms.Epoch
		utc   time.Duration // since zero
		base  int64         // of the fragment, in s
		want  int64         // in the session, in s
	}
	for name, steps := range map[string][]step{
		"in a row":             {{1, 0, 100, 1}, {1, 2 * time.Second, 102, 3}, {1, 4 * time.Second, 104, 5}},
		"chunks missing":       {{1, 0, 100, 1}, {1, 20 * time.Second, 120, 21}},
		"UTC drifts":           {{1, 0, 100, 1}, {1, 2*time.Second + 500*time.Millisecond, 102, 3}},
		"UTC is put right":     {{1, 0, 100, 1}, {1, 12 * time.Second, 102, 13}},
		"UTC steps back":       {{1, 0, 100, 1}, {1, -time.Hour, 102, 3}},
		"the agent restarts":   {{1, 0, 100, 1}, {2, 7 * time.Second, 0, 8}, {2, 9 * time.Second, 2, 10}},
		"clock starts anew":    {{1, 0, 100, 1}, {1, 2 * time.Second, 0, 3}},
		"woke up in 1970":      {{1, -56 * 365 * 24 * time.Hour, 5, 1}, {1, 0, 7, 3}},
		"sent before, by time": {{1, 0, 100, 1}, {1, -2 * time.Second, 98, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			l := timeline{scale: 90000}
			for i, s := range steps {
				c := &vms.Chunk{Epoch: s.epoch, Start: zero.Add(s.utc), End: zero.Add(s.utc + 2*time.Second)}
				l.place(c, s.base*90000, (s.base+2)*90000)
				if got := s.base*90000 + l.shift; got != s.want*90000 {
					t.Errorf("step %d is at %d ms, want %d s", i, got/90, s.want)
				}
			}
		})
	}
}

func TestRTPTimeIsExact(t *testing.T) {
	year := int64(720_000) * 86400 * 365
	for ticks, want := range map[int64]uint32{8: 1, 720_000: 90_000, year: uint32(90_000 * 86400 * 365 % (1 << 32)), year*10 + 8: uint32((90_000*86400*3650 + 1) % (1 << 32))} {
		if got := (&track{scale: 720_000, clock: 90_000}).rtpTime(ticks); got != want {
			t.Errorf("rtpTime(%d) = %d, want %d", ticks, got, want)
		}
	}
}

func TestTracksLeaveOutWhatRTPCannotCarry(t *testing.T) {
	info := unhex("0200020000000000000001f400f0" + strings.Repeat("00", 20))
	flac := &cmaf.AudioParams{Codec: "flac", Config: info, SampleRate: 8000, Channels: 1}
	mjpeg := cmaf.VideoParams{Codec: "mjpeg", Width: 640, Height: 480}
	for name, tt := range map[string]struct {
		v     cmaf.VideoParams
		a     *cmaf.AudioParams
		want  int
		lacks []string
	}{
		"H264 and AAC":   {h264Params, &aacParams, 2, nil},
		"H265 alone":     {h265Params, nil, 1, nil},
		"H264 and FLAC":  {h264Params, flac, 1, []string{"flac"}},
		"MJPEG and AAC":  {mjpeg, &aacParams, 1, []string{"mp4v.6C"}},
		"MJPEG and FLAC": {mjpeg, flac, 0, []string{"mp4v.6C", "flac"}},
	} {
		t.Run(name, func(t *testing.T) {
			tracks, lacks, err := tracksOf(initOf(t, tt.v, tt.a))
			if len(tracks) != tt.want || (err != nil) != (tt.want == 0) || !slices.Equal(lacks, tt.lacks) {
				t.Errorf("%d tracks, %q left out, %v; want %d, %q", len(tracks), lacks, err, tt.want, tt.lacks)
			}
		})
	}
}

// FuzzPackets: what a hub sends as media goes through parsers that are not ours,
// in a process that records for many.
func FuzzPackets(f *testing.F) {
	for _, u := range []*cmaf.Unit{sample([]byte{0x65, 1, 2}), sample([]byte{48 << 1, 1, 0, 1, 9, 9}), sample(make([]byte, 3000), []byte{9})} {
		f.Add(true, h264Params.SPS, h264Params.PPS, u.Data)
		f.Add(false, h265Params.SPS, h265Params.PPS, u.Data)
	}
	f.Fuzz(func(t *testing.T, avc bool, sps, pps, data []byte) {
		v := cmaf.VideoParams{Codec: "h265", VPS: h265Params.VPS, SPS: sps, PPS: pps}
		if avc {
			v.Codec = "h264"
		}
		seg, tracks, err := cmaf.BuildInit(720_000, v, &aacParams)
		if err != nil {
			return
		}
		ts, _, err := tracksOf(&vms.Init{Tracks: tracks, Segment: seg})
		if err != nil || len(ts) != 2 {
			t.Fatalf("%d tracks, %v", len(ts), err)
		}
		desc := &description.Session{Medias: []*description.Media{ts[0].media, ts[1].media}}
		if _, err := desc.Marshal(); err != nil {
			t.Fatal(err)
		}
		for _, tr := range ts {
			packets, err := tr.packets(&cmaf.Unit{Data: data, Sync: true})
			if err != nil {
				continue
			}
			for _, p := range packets {
				if p.Timestamp != 0 || len(p.Payload) == 0 || len(p.Payload) > 1460 {
					t.Fatalf("packet of %d bytes at %d", len(p.Payload), p.Timestamp)
				}
				tr.media.Formats[0].PTSEqualsDTS(p)
			}
		}
	})
}
