package cmaf_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"

	"github.com/zipato/vms/pkg/cmaf"
)

// checkReadBack checks that ReadInit finds v and a in segment.
func checkReadBack(t *testing.T, segment []byte, v cmaf.VideoParams, a *cmaf.AudioParams) {
	t.Helper()
	tracks, err := cmaf.ReadInit(segment)
	if err != nil {
		t.Fatalf("ReadInit: %v", err)
	}
	want := 1
	if a != nil {
		want = 2
	}
	if len(tracks) != want {
		t.Fatalf("%d tracks, want %d", len(tracks), want)
	}
	switch v.Codec { // what the codec has no use for is not written
	case "h264":
		v.VPS, v.Width, v.Height = nil, 0, 0
	case "h265":
		v.Width, v.Height = 0, 0
	}
	if got := tracks[0].Video; got == nil || !got.Equal(v) || tracks[0].ID != cmaf.VideoTrack || tracks[0].Timescale == 0 {
		t.Errorf("picture %+v, want %+v", got, v)
	}
	if a == nil {
		return
	}
	got := tracks[1].Audio
	if got == nil || tracks[1].Video != nil || tracks[1].ID != cmaf.AudioTrack {
		t.Fatalf("sound %+v", tracks[1])
	}
	if a.Codec == "flac" {
		if got.Codec != "flac" || !bytes.Equal(got.Config, a.Config) || got.SampleRate != a.SampleRate || got.Channels != a.Channels {
			t.Errorf("sound %+v, want %+v", got, a)
		}
		return
	}
	var have, like mpeg4audio.AudioSpecificConfig // which some write with extensions that are as good as none
	if have.Unmarshal(got.Config) != nil || like.Unmarshal(a.Config) != nil || have.SampleRate != like.SampleRate || have.Type != like.Type || have.ChannelConfig != like.ChannelConfig {
		t.Errorf("AAC configuration %x, want %x", got.Config, a.Config)
	}
	if got.Codec != "aac" || got.SampleRate != like.SampleRate || got.Channels < 1 {
		t.Errorf("sound %+v, want %+v", got, a)
	}
}

// TestReadInitLeavesOutWhatItDoesNotKnow: the other tracks can be read all the same.
func TestReadInitLeavesOutWhatItDoesNotKnow(t *testing.T) {
	seg, _, err := cmaf.BuildInit(720000, h264(), aac())
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(bytes.Clone(seg), []byte("mp4a"), []byte("Opus"), 1)
	tracks, err := cmaf.ReadInit(other)
	if err != nil || len(tracks) != 2 || tracks[0].Video == nil || tracks[1].Entry != "Opus" || tracks[1].Audio != nil || tracks[1].Timescale != 720000 {
		t.Errorf("ReadInit = %+v, %v", tracks, err)
	}
	at := bytes.LastIndex(seg, []byte("esds")) + 4 + 4 + 5 + 3 + 5 // behind the descriptors' heads
	other = bytes.Clone(seg)
	if other[at] != 0x40 {
		t.Fatalf("object type %#x", other[at])
	}
	other[at] = 0x6b // MP3
	if tracks, err := cmaf.ReadInit(other); err != nil || len(tracks) != 2 || tracks[1].Audio != nil {
		t.Errorf("ReadInit of MP3 = %+v, %v", tracks, err)
	}
}

func TestReadInitRefuses(t *testing.T) {
	good, _, err := cmaf.BuildInit(720000, h264(), aac())
	if err != nil {
		t.Fatal(err)
	}
	hevc, _, err := cmaf.BuildInit(90000, cmaf.VideoParams{Codec: "h265", VPS: h265VPS, SPS: h265SPS, PPS: h265PPS}, nil)
	if err != nil {
		t.Fatal(err)
	}
	free := []byte("free")
	edit := func(b []byte, name string, offset int, to ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[bytes.Index(b, []byte(name))+4+offset:], to)
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":          nil,
		"a fragment":       first(build(t, twoTracks())),
		"no tkhd":          edit(good, "tkhd", -4, free...),
		"no mdhd":          edit(good, "mdhd", -4, free...),
		"no stsd":          edit(good, "stsd", -4, free...),
		"no avcC":          edit(good, "avcC", -4, free...),
		"no esds":          edit(good, "esds", -4, free...),
		"no track id":      edit(good, "tkhd", 12, 0, 0, 0, 0),
		"huge track id":    edit(good, "tkhd", 12, 0xff),
		"tkhd version 2":   edit(good, "tkhd", 0, 2),
		"no timescale":     edit(good, "mdhd", 12, 0, 0, 0, 0),
		"short lengths":    edit(good, "avcC", 4, 0xfc),
		"long SPS":         edit(good, "avcC", 6, 0xff),
		"no SPS":           edit(good, "avcC", 5, 0xe0),
		"stream flags":     edit(good, "esds", 4+5+2, 0x80),
		"no decoder":       edit(good, "esds", 4+5+3, 5),
		"no AAC":           edit(good, "esds", 4+5+3+5+13, 6),
		"HEVC lengths":     edit(hevc, "hvcC", 21, 0),
		"HEVC arrays":      edit(hevc, "hvcC", 22, 4),
		"HEVC no VPS":      edit(hevc, "hvcC", 23, 0x27),
		"HEVC long VPS":    edit(hevc, "hvcC", 26, 0xff),
		"HEVC without any": edit(hevc, "hvcC", 22, 0),
	} {
		if tracks, err := cmaf.ReadInit(b); !isInvalid(err) || tracks != nil {
			t.Errorf("%s: ReadInit = %+v, %v", name, tracks, err)
		}
	}
	// More tracks than anybody needs.
	at := bytes.Index(good, []byte("trak")) - 4
	trak := good[at : at+int(binary.BigEndian.Uint32(good[at:]))]
	many := append(bytes.Clone(good[:at]), append(bytes.Repeat(trak, 8), good[at:]...)...)
	moov := bytes.Index(many, []byte("moov")) - 4
	binary.BigEndian.PutUint32(many[moov:], uint32(len(many)-moov))
	if _, err := cmaf.ReadInit(many); !isInvalid(err) {
		t.Errorf("ten tracks: %v", err)
	}
}

// FuzzReadInit: an init segment comes from outside.
func FuzzReadInit(f *testing.F) {
	for _, v := range []cmaf.VideoParams{h264(), {Codec: "h265", VPS: h265VPS, SPS: h265SPS, PPS: h265PPS}, {Codec: "mjpeg", Width: 640, Height: 480}} {
		for _, a := range []*cmaf.AudioParams{nil, aac(), {Codec: "flac", Config: streamInfo(8000, 1, 16), SampleRate: 8000, Channels: 1}} {
			seg, _, err := cmaf.BuildInit(cmaf.Timescale(a), v, a)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(seg)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tracks, err := cmaf.ReadInit(b)
		if err != nil && (!isInvalid(err) || tracks != nil) {
			t.Fatalf("ReadInit = %v, %v", tracks, err)
		}
		for _, tr := range tracks {
			if tr.ID <= 0 || tr.Timescale == 0 || tr.Video != nil && tr.Audio != nil {
				t.Fatalf("track %+v", tr)
			}
			if v := tr.Video; v != nil { // what is wrong with it, BuildInit says
				_, _, _ = cmaf.BuildInit(tr.Timescale, *v, nil)
			}
		}
	})
}
