package segment_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)

// clip is a real picture, five frames a chunk, a keyframe every second, whose
// decode times begin at base.
func clip(t *testing.T, base uint64) (vms.Init, []vms.Chunk) {
	t.Helper()
	ts := vmstest.MakeClip(t, vmstest.ClipSpec{Duration: 4 * time.Second, GOP: 25})
	stream := vmstest.FFmpeg(t, "-hide_banner", "-loglevel", "error", "-i", ts, "-c", "copy", "-f", "h264", "-")
	v := cmaf.VideoParams{Codec: "h264"}
	var samples []cmaf.Sample
	for _, nal := range nals(stream) {
		switch nal[0] & 0x1f {
		case 7:
			v.SPS = nal
		case 8:
			v.PPS = nal
		case 1, 5:
			samples = append(samples, cmaf.Sample{Duration: 3600, Sync: nal[0]&0x1f == 5, NALs: [][]byte{nal}})
		}
	}
	seg, tracks, err := cmaf.BuildInit(cmaf.VideoClock, v, nil)
	if err != nil {
		t.Fatal(err)
	}
	var chunks []vms.Chunk
	for i := 0; i < len(samples); i += 5 {
		c := chunk(t, uint64(len(chunks)+1), cmaf.Run{Track: 1, Base: base + uint64(i)*3600, Samples: samples[i : i+5]})
		c.Start, c.End = t0.Add(time.Duration(i)*40*time.Millisecond), t0.Add(time.Duration(i+5)*40*time.Millisecond)
		if samples[i].Sync {
			c.Flags = vms.FlagKey
		}
		chunks = append(chunks, c)
	}
	chunks[0].Flags |= vms.FlagFirst
	if len(chunks) != 20 {
		t.Fatalf("%d chunks, want 20", len(chunks))
	}
	return vms.Init{Epoch: 1, ID: 1, Tracks: tracks, Segment: seg}, chunks
}

func chunk(t testing.TB, seq uint64, runs ...cmaf.Run) vms.Chunk {
	t.Helper()
	p, n, err := cmaf.BuildFragment(uint32(seq), runs)
	if err != nil {
		t.Fatal(err)
	}
	return vms.Chunk{Epoch: 1, Seq: seq, Recording: 7, Init: 1, MoofLen: n, Payload: p, Start: t0, End: t0.Add(time.Second)}
}

// nals splits an Annex B stream.
func nals(b []byte) (out [][]byte) {
	for _, p := range bytes.Split(b, []byte{0, 0, 1})[1:] {
		out = append(out, bytes.TrimRight(p, "\x00"))
	}
	return out
}

func write(t *testing.T, dir string, init vms.Init, chunks []vms.Chunk) *segment.Finished {
	t.Helper()
	w, err := segment.Create(dir, "ch_1", init, &chunks[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range chunks[1:] {
		if err := w.Append(&chunks[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	f, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func object(t *testing.T, f *segment.Finished) []byte {
	t.Helper()
	body, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	return append(bytes.Clone(f.Head), body...)
}

func TestRecordingPlaysByItselfFromZero(t *testing.T) {
	init, chunks := clip(t, 1<<40+123)
	f := write(t, t.TempDir(), init, chunks)
	obj := object(t, f)
	if f.Bytes != int64(len(obj)) || f.SHA256 != sha256.Sum256(obj) {
		t.Errorf("%d bytes and its checksum do not describe the object of %d bytes", f.Bytes, len(obj))
	}
	want := vms.Recording{
		Channel: "ch_1", Key: "recordings/ch_1/2026-01-02/03-04-05.678901Z.7.mp4", Chunks: vms.ChunkRange{Epoch: 1, First: 1, Last: 20},
		Number: 7, Start: t0, End: t0.Add(4 * time.Second), Media: 4 * time.Second, Bytes: f.Bytes, SHA256: f.SHA256,
		InitLen: int64(len(init.Segment)), HeadLen: int64(len(init.Segment) + cmaf.SidxLen(20)), Codecs: cmaf.Codecs(init.Tracks),
	}
	if f.Recording != want {
		t.Errorf("recording\n%+v, want\n%+v", f.Recording, want)
	}
	path := filepath.Join(t.TempDir(), "r.mp4")
	if err := os.WriteFile(path, obj, 0o600); err != nil {
		t.Fatal(err)
	}
	var probe struct {
		Format struct {
			Start    string `json:"start_time"`
			Duration string `json:"duration"`
		}
		Streams []struct {
			Codec  string `json:"codec_name"`
			Start  string `json:"start_time"`
			Frames string `json:"nb_read_frames"`
		}
	}
	if err := json.Unmarshal(vmstest.FFprobe(t, "-v", "error", "-count_frames", "-show_format", "-show_streams", "-of", "json", path), &probe); err != nil {
		t.Fatal(err)
	}
	d, _ := strconv.ParseFloat(probe.Format.Duration, 64)
	if start, _ := strconv.ParseFloat(probe.Format.Start, 64); start != 0 || math.Abs(d-4) > 0.001 || len(probe.Streams) != 1 ||
		probe.Streams[0].Codec != "h264" || probe.Streams[0].Frames != "100" {
		t.Errorf("ffprobe says %+v", probe)
	}
	// Every reference of the index is a chunk's, those of keyframes say so, and together they are the file.
	sidx := obj[f.InitLen:f.HeadLen]
	at, n := f.HeadLen, int(binary.BigEndian.Uint16(sidx[38:]))
	if string(sidx[4:8]) != "sidx" || n != 20 {
		t.Fatalf("index %x", sidx)
	}
	for i := range n {
		ref := sidx[40+12*i:]
		frag, err := cmaf.ParseFragment(obj[at : at+int64(chunkLen(obj[at:]))])
		if err != nil {
			t.Fatal(err)
		}
		key := ref[8]&0x80 != 0
		if r := frag.Run(1); key != r.Sync || key != (i%5 == 0) || r.Base != uint64(i)*18000 || binary.BigEndian.Uint32(ref[4:]) != 18000 {
			t.Errorf("reference %d begins with %+v, lasts %d and is of a keyframe: %v", i, r, binary.BigEndian.Uint32(ref[4:]), key)
		}
		at += int64(binary.BigEndian.Uint32(ref))
	}
	if at != f.Bytes {
		t.Errorf("the references end at %d of %d bytes", at, f.Bytes)
	}
}

// chunkLen is the length of the moof and the mdat that b begins with.
func chunkLen(b []byte) uint32 {
	moof := binary.BigEndian.Uint32(b)
	return moof + binary.BigEndian.Uint32(b[moof:])
}

func TestSameChunksSameObject(t *testing.T) {
	init, chunks := clip(t, 5)
	a := write(t, t.TempDir(), init, chunks)
	b := write(t, t.TempDir(), init, chunks)
	if a.Recording != b.Recording || !bytes.Equal(object(t, a), object(t, b)) {
		t.Error("two writers made two objects of the same chunks")
	}
}

// TestFilesAreNeverShared: the chunks of a recording that still waits for its
// upload may come again; its file must not be truncated by that.
func TestFilesAreNeverShared(t *testing.T) {
	init, chunks := clip(t, 5)
	dir := t.TempDir()
	a := write(t, dir, init, chunks)
	want := object(t, a)
	w, err := segment.Create(dir, "ch_1", init, &chunks[0])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(object(t, a), want) {
		t.Error("a finished recording changed when its first chunk came again")
	}
	if err := w.Discard(); err != nil {
		t.Error(err)
	}
}

func TestFlagsOfTheRecording(t *testing.T) {
	init, chunks := clip(t, 5)
	chunks[0].Flags = vms.FlagFirst | vms.FlagDependent
	chunks[3].Flags |= vms.FlagTimeUncertain
	f := write(t, t.TempDir(), init, chunks)
	if !f.Dependent || !f.TimeUncertain {
		t.Errorf("recording %+v", f.Recording)
	}
}

// TestEmptyStampsGetALength: an object that ends when it starts would be stored
// and never registered.
func TestEmptyStampsGetALength(t *testing.T) {
	init, chunks := clip(t, 5)
	for name, end := range map[string]time.Time{"no duration": t0, "end before start": t0.Add(-time.Hour)} {
		c := chunks[0]
		c.End = end
		f := write(t, t.TempDir(), init, []vms.Chunk{c})
		if want := t0.Add(200 * time.Millisecond); !f.End.Equal(want) {
			t.Errorf("%s: ends %v, want start + media time", name, f.End)
		}
	}
}

func empty(t *testing.T, dir string) {
	t.Helper()
	if fs, err := os.ReadDir(dir); err != nil || len(fs) > 0 {
		t.Errorf("left on tmpfs: %v, %v", fs, err)
	}
}

func TestWhatIsNoFragmentLeavesNothing(t *testing.T) {
	init, chunks := clip(t, 1000)
	bad := func(f func(c *vms.Chunk)) *vms.Chunk {
		c := chunks[1]
		c.Payload = bytes.Clone(c.Payload)
		f(&c)
		return &c
	}
	for name, c := range map[string]*vms.Chunk{
		"garbage":          bad(func(c *vms.Chunk) { copy(c.Payload[4:], "free") }),
		"wrong moof":       bad(func(c *vms.Chunk) { c.MoofLen++ }),
		"longer than hour": bad(func(c *vms.Chunk) { c.End = t0.Add(2 * time.Hour) }),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := segment.Create(dir, "ch_1", init, c); !errors.Is(err, cmaf.ErrInvalid) {
				t.Errorf("Create = %v", err)
			}
			empty(t, dir)
			w, err := segment.Create(dir, "ch_1", init, &chunks[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Append(c); !errors.Is(err, cmaf.ErrInvalid) {
				t.Errorf("Append = %v", err)
			}
			// ErrInvalid changed nothing: the recording can go on.
			if err := w.Append(&chunks[1]); err != nil {
				t.Error(err)
			}
			f, err := w.Finish()
			if err != nil {
				t.Fatal(err)
			}
			want := write(t, t.TempDir(), init, chunks[:2])
			if f.SHA256 != want.SHA256 {
				t.Error("a refused chunk is in the object")
			}
		})
	}
	t.Run("media time", func(t *testing.T) {
		w, err := segment.Create(t.TempDir(), "ch_1", init, &chunks[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []cmaf.Run{
			{Track: 1, Base: 1000 + 3601*90000, Samples: []cmaf.Sample{{Duration: 1, Raw: []byte{1}}}},
			{Track: 1, Base: 1000, Samples: []cmaf.Sample{{Duration: math.MaxUint32, Raw: []byte{1}}}},
		} {
			c := chunk(t, 2, r)
			if err := w.Append(&c); !errors.Is(err, cmaf.ErrInvalid) {
				t.Errorf("Append of %d ticks at %d = %v", r.Samples[0].Duration, r.Base, err)
			}
		}
		if _, err := w.Finish(); err != nil {
			t.Error(err)
		}
	})
	t.Run("before zero", func(t *testing.T) {
		w, err := segment.Create(t.TempDir(), "ch_1", init, &chunks[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Append(&chunks[0]); !errors.Is(err, cmaf.ErrInvalid) {
			t.Errorf("Append of an earlier fragment = %v", err)
		}
		if err := w.Discard(); err != nil {
			t.Error(err)
		}
	})
}

// TestAFullDiskIsReported: no recording pretends to hold what was not written,
// and nothing stays behind.
func TestAFullDiskIsReported(t *testing.T) {
	init, chunks := clip(t, 1000)
	t.Run("file cut behind our back", func(t *testing.T) {
		dir := t.TempDir()
		w, err := segment.Create(dir, "ch_1", init, &chunks[0])
		if err != nil {
			t.Fatal(err)
		}
		names, _ := filepath.Glob(filepath.Join(dir, "*.body"))
		if len(names) != 1 {
			t.Fatalf("files %v", names)
		}
		if err := os.Truncate(names[0], 10); err != nil {
			t.Fatal(err)
		}
		if f, err := w.Finish(); err == nil {
			t.Errorf("Finish = %+v", f.Recording)
		}
		empty(t, dir)
	})
	t.Run("no directory", func(t *testing.T) {
		if _, err := segment.Create(filepath.Join(t.TempDir(), "gone"), "ch_1", init, &chunks[0]); err == nil || errors.Is(err, cmaf.ErrInvalid) {
			t.Errorf("Create = %v, want an error of the disk's", err)
		}
	})
	t.Run("no space", func(t *testing.T) {
		dir := tinyDisk(t, 64<<10)
		big := chunk(t, 1, cmaf.Run{Track: 1, Base: 1, Samples: []cmaf.Sample{{Duration: 1, Sync: true, Raw: make([]byte, 30<<10)}}})
		big.Flags = vms.FlagFirst | vms.FlagKey
		w, err := segment.Create(dir, "ch_1", init, &big)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			err = w.Append(&big)
			if w.Bytes() > 64<<10 {
				t.Fatal("more was written than there is room")
			}
		}
		if errors.Is(err, cmaf.ErrInvalid) {
			t.Errorf("Append = %v, want an error of the disk's", err)
		}
		if err := w.Discard(); err != nil {
			t.Error(err)
		}
		empty(t, dir)
	})
}

func TestRecordingsAreBounded(t *testing.T) {
	init, _ := clip(t, 1000)
	c := chunk(t, 1, cmaf.Run{Track: 1, Base: 1, Samples: []cmaf.Sample{{Duration: 1, Sync: true, Raw: make([]byte, segment.MaxBytes/4)}}})
	w, err := segment.Create(t.TempDir(), "ch_1", init, &c)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Append(&c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Append(&c); !errors.Is(err, cmaf.ErrInvalid) || w.Bytes() > segment.MaxBytes {
		t.Errorf("Append = %v at %d bytes", err, w.Bytes())
	}
	if err := w.Discard(); err != nil {
		t.Error(err)
	}
}

func TestCheckInit(t *testing.T) {
	good, _ := clip(t, 0)
	sound := vms.Track{ID: 2, Kind: "audio", Codec: "mp4a.40.2", Timescale: 90000}
	with := func(f func(i *vms.Init)) vms.Init {
		i := good
		i.Tracks = append(append([]vms.Track(nil), good.Tracks...), sound)
		f(&i)
		return i
	}
	ok := with(func(*vms.Init) {})
	if err := segment.CheckInit(&ok); err != nil {
		t.Error(err)
	}
	for name, i := range map[string]vms.Init{
		"no tracks":    with(func(i *vms.Init) { i.Tracks = nil }),
		"no picture":   with(func(i *vms.Init) { i.Tracks = i.Tracks[1:] }),
		"two clocks":   with(func(i *vms.Init) { i.Tracks[1].Timescale = 48000 }),
		"same id":      with(func(i *vms.Init) { i.Tracks[1].ID = 1 }),
		"long codecs":  with(func(i *vms.Init) { i.Tracks[1].Codec = string(bytes.Repeat([]byte("a"), 200)) }),
		"no moov":      with(func(i *vms.Init) { i.Segment = i.Segment[:20] }),
		"bytes behind": with(func(i *vms.Init) { i.Segment = append(bytes.Clone(i.Segment), 0) }),
	} {
		if err := segment.CheckInit(&i); !errors.Is(err, cmaf.ErrInvalid) {
			t.Errorf("%s: CheckInit = %v", name, err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	c := chunk(b, 1, cmaf.Run{Track: 1, Base: 1, Samples: []cmaf.Sample{{Duration: 3600, Sync: true, Raw: make([]byte, 50_000)}}})
	init := vms.Init{Tracks: []vms.Track{{ID: 1, Kind: "video", Timescale: 90000}}}
	dir := b.TempDir()
	var w *segment.Writer
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%150 == 0 {
			if w != nil {
				if err := w.Discard(); err != nil {
					b.Fatal(err)
				}
			}
			var err error
			if w, err = segment.Create(dir, "ch", init, &c); err != nil {
				b.Fatal(err)
			}
		} else if err := w.Append(&c); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Discard(); err != nil {
		b.Fatal(err)
	}
}
