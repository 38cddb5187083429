package segment_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// stamped gives chunks the checksum that an agent computes.
func stamped(cs []vms.Chunk) []vms.Chunk {
	for i := range cs {
		cs[i].CRC = wire.Checksum(cs[i].Payload)
		cs[i].Start, cs[i].End = cs[i].Start.UTC(), cs[i].End.UTC()
	}
	return cs
}

func open(t *testing.T, dir string, init vms.Init, cs []vms.Chunk) *segment.Writer {
	t.Helper()
	w, err := segment.Create(dir, "ch_1", init, &cs[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range cs[1:] {
		if err := w.Append(&cs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// part makes the object of the chunks behind after up to last.
func part(t *testing.T, w *segment.Writer, after, last uint64) (vms.Recording, []byte) {
	t.Helper()
	p := w.Part(after, last)
	f, err := p.Build()
	if err != nil {
		t.Fatal(err)
	}
	if p.Chunks() != f.Chunks {
		t.Errorf("the part of %s is %s", p.Chunks(), f.Chunks)
	}
	file, err := os.Open(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	body, err := io.ReadAll(io.NewSectionReader(f.View(file), 0, 1<<40))
	if err != nil {
		t.Fatal(err)
	}
	obj := append(bytes.Clone(f.Head), body...)
	if int64(len(obj)) != f.Bytes || sha256.Sum256(obj) != f.SHA256 {
		t.Errorf("%d bytes and its checksum do not describe the part of %d bytes", f.Bytes, len(obj))
	}
	return f.Recording, obj
}

func chunks(t *testing.T, row vms.Recording, obj []byte) (r *segment.PartReader, cs []vms.Chunk) {
	t.Helper()
	r, err := segment.OpenPart(bytes.NewReader(obj), &row)
	if err != nil {
		t.Fatal(err)
	}
	for {
		c, err := r.Next()
		if errors.Is(err, io.EOF) {
			return r, cs
		}
		if err != nil {
			t.Fatal(err)
		}
		cs = append(cs, c)
	}
}

// TestAPartGivesItsChunksBack: byte for byte, header and payload, whatever run
// of them it is.
func TestAPartGivesItsChunksBack(t *testing.T) {
	init, cs := clip(t, 1<<40+123)
	stamped(cs)
	cs[3].Flags |= vms.FlagTimeUncertain
	cs[4].CameraTime = t0
	w := open(t, t.TempDir(), init, cs)
	defer func() {
		if err := w.Discard(); err != nil {
			t.Error(err)
		}
	}()
	for after := range uint64(20) {
		for last := after + 1; last <= 20; last++ {
			row, obj := part(t, w, after, last)
			want := vms.Recording{
				Channel: "ch_1", Chunks: vms.ChunkRange{Epoch: 1, First: after + 1, Last: last}, Number: 7,
				Start: cs[after].Start, End: cs[last-1].End, Media: cs[last-1].End.Sub(cs[after].Start),
				Bytes: row.Bytes, SHA256: row.SHA256, HeadLen: row.HeadLen, InitLen: int64(len(init.Segment)),
				Codecs: cmaf.Codecs(init.Tracks), Dependent: after%5 != 0, TimeUncertain: after < 4 && last >= 4,
			}
			want.Key = vms.PartKey("ch_1", want.Chunks, 7)
			if row != want {
				t.Fatalf("part\n%+v, want\n%+v", row, want)
			}
			r, got := chunks(t, row, obj)
			if r.Begin != 1 || r.Init.Epoch != 1 || r.Init.ID != 1 || !bytes.Equal(r.Init.Segment, init.Segment) || cmaf.Codecs(r.Init.Tracks) != want.Codecs {
				t.Fatalf("part of %s: begin %d, init %+v", row.Chunks, r.Begin, r.Init)
			}
			if len(got) != int(last-after) {
				t.Fatalf("%d chunks of %s", len(got), row.Chunks)
			}
			for i := range got {
				if !bytes.Equal(wire.EncodeChunk(&got[i]), wire.EncodeChunk(&cs[int(after)+i])) {
					t.Fatalf("chunk %d is not what it was", got[i].Seq)
				}
			}
		}
	}
}

// TestAPartBeginsAtZero: at the least time of all its chunks, as sound of a
// later one may begin first, and with boxes of both widths.
func TestAPartBeginsAtZero(t *testing.T) {
	video := func(base uint64) cmaf.Run {
		return cmaf.Run{Track: 1, Base: base, Samples: []cmaf.Sample{{Duration: 3600, Sync: true, NALs: [][]byte{{0x65, 1}}}}}
	}
	sound := func(base uint64) cmaf.Run {
		return cmaf.Run{Track: 2, Base: base, Samples: []cmaf.Sample{{Duration: 9000, Raw: []byte{1}}}}
	}
	init, _ := clip(t, 0)
	init.Tracks = append(init.Tracks, vms.Track{ID: 2, Kind: "audio", Codec: "mp4a.40.2", Timescale: 90000})
	cs := stamped([]vms.Chunk{
		chunk(t, 1, video(1000), sound(1000)),
		chunk(t, 2, video(9600)),
		chunk(t, 3, video(13200), sound(9100)), // before the picture of chunk 2
	})
	for i := range cs {
		cs[i].Flags = vms.FlagKey
	}
	cs[0].Flags |= vms.FlagFirst
	stamped(cs)
	w := open(t, t.TempDir(), init, cs)
	defer w.Discard()
	row, obj := part(t, w, 1, 3)
	_, got := chunks(t, row, obj)
	for i, c := range got {
		if !bytes.Equal(c.Payload, cs[i+1].Payload) {
			t.Errorf("chunk %d is not what it was", c.Seq)
		}
	}
	least := uint64(1 << 63)
	for b := obj[row.HeadLen:]; len(b) > 0; b = b[chunkLen(b):] {
		f, err := cmaf.ParseFragment(b[:chunkLen(b)])
		if err != nil {
			t.Fatal(err)
		}
		least = min(least, f.Zero())
	}
	if least != 0 {
		t.Errorf("the part begins at %d", least)
	}
	if earliest := binary.BigEndian.Uint64(obj[row.HeadLen-int64(cmaf.SidxLen(2))+20:]); earliest != 500 {
		t.Errorf("the picture begins at %d, want 500", earliest)
	}
}

// TestAPartPlays: by itself, box and all.
func TestAPartPlays(t *testing.T) {
	init, cs := clip(t, 1<<40+123)
	w := open(t, t.TempDir(), init, stamped(cs))
	defer w.Discard()
	row, obj := part(t, w, 5, 15)
	path := filepath.Join(t.TempDir(), "p.mp4")
	if err := os.WriteFile(path, obj, 0o600); err != nil {
		t.Fatal(err)
	}
	out := string(vmstest.FFprobe(t, "-v", "error", "-count_frames", "-show_entries", "format=start_time,duration:stream=nb_read_frames", "-of", "default=nk=1:nw=1", path))
	if f := strings.Fields(out); len(f) != 3 || f[0] != "50" || f[1] != "0.000000" || f[2] != "2.000000" {
		t.Errorf("ffprobe says %q of %+v", out, row)
	}
}

// TestARecordingGrowsWhileItsPartIsMade: and ends as if there had been none.
func TestARecordingGrowsWhileItsPartIsMade(t *testing.T) {
	init, cs := clip(t, 77)
	stamped(cs)
	want := write(t, t.TempDir(), init, cs)
	w := open(t, t.TempDir(), init, cs[:8])
	p := w.Part(2, 8)
	for i := range cs[8:] {
		if err := w.Append(&cs[8+i]); err != nil {
			t.Fatal(err)
		}
	}
	if f, err := p.Build(); err != nil || f.Chunks != (vms.ChunkRange{Epoch: 1, First: 3, Last: 8}) {
		t.Errorf("Build = %+v, %v", f, err)
	}
	f, err := w.Finish()
	if err != nil || f.SHA256 != want.SHA256 {
		t.Errorf("Finish = %v, or another object", err)
	}
}

func TestPendingSaysWhatAPartIsWorth(t *testing.T) {
	init, cs := clip(t, 77)
	w := open(t, t.TempDir(), init, cs[:13])
	defer w.Discard()
	size := func(from, to int) (n int64) {
		for _, c := range cs[from:to] {
			n += int64(len(c.Payload))
		}
		return n
	}
	for _, tt := range []struct {
		after, cut uint64
		from, to   int
	}{{0, 10, 0, 10}, {3, 10, 3, 10}, {5, 10, 5, 10}, {10, 0, 0, 0}, {12, 0, 0, 0}, {13, 0, 0, 0}} {
		bytes, cut, cutBytes := w.Pending(tt.after)
		if bytes != size(int(tt.after), 13) || cut != tt.cut || cutBytes != size(tt.from, tt.to) {
			t.Errorf("Pending(%d) = %d, %d, %d", tt.after, bytes, cut, cutBytes)
		}
	}
}

// TestABrokenPartIsFound: wherever a byte changed, and where it ends early. What
// no check inside finds, the checksum of the whole does.
func TestABrokenPartIsFound(t *testing.T) {
	init, cs := clip(t, 77)
	w := open(t, t.TempDir(), init, stamped(cs))
	defer w.Discard()
	row, obj := part(t, w, 5, 12)
	read := func(obj []byte, row vms.Recording) error {
		r, err := segment.OpenPart(bytes.NewReader(obj), &row)
		for err == nil {
			_, err = r.Next()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := bytes.Clone(obj)
		at := int(row.HeadLen) + rng.IntN(len(b)-int(row.HeadLen))
		b[at] ^= 1 << rng.IntN(8)
		if err := read(b, row); !errors.Is(err, segment.ErrBroken) {
			t.Fatalf("byte %d changed: %v", at, err)
		}
		if err := read(obj[:rng.IntN(len(obj))], row); !errors.Is(err, segment.ErrBroken) {
			t.Fatalf("cut: %v", err)
		}
	}
	for name, f := range map[string]func(r *vms.Recording){
		"range": func(r *vms.Recording) { r.Chunks.First++ }, "epoch": func(r *vms.Recording) { r.Chunks.Epoch++ },
		"number": func(r *vms.Recording) { r.Number++ }, "head": func(r *vms.Recording) { r.HeadLen -= 100 },
		"init": func(r *vms.Recording) { r.InitLen++ }, "size": func(r *vms.Recording) { r.Bytes++ },
		"a huge head": func(r *vms.Recording) { r.HeadLen = 1 << 40 },
	} {
		other := row
		f(&other)
		if err := read(obj, other); !errors.Is(err, segment.ErrBroken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzOpenPart: objects come from a bucket that others may write to.
func FuzzOpenPart(f *testing.F) {
	init := vms.Init{Epoch: 1, ID: 1, Segment: []byte("\x00\x00\x00\x08ftyp\x00\x00\x00\x08moov"), Tracks: []vms.Track{{ID: 1, Kind: "video", Codec: "x", Timescale: 90000}}}
	c := chunk(f, 1, cmaf.Run{Track: 1, Base: 1000, Samples: []cmaf.Sample{{Duration: 3600, Sync: true, NALs: [][]byte{{0x65, 1}}}}})
	c.Flags = vms.FlagFirst | vms.FlagKey
	cs := stamped([]vms.Chunk{c})
	w, err := segment.Create(f.TempDir(), "ch", init, &cs[0])
	if err != nil {
		f.Fatal(err)
	}
	fin, err := w.Part(0, 1).Build()
	if err != nil {
		f.Fatal(err)
	}
	body, err := os.ReadFile(fin.Path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(bytes.Clone(fin.Head), body...), fin.HeadLen, fin.InitLen)
	f.Fuzz(func(t *testing.T, obj []byte, head, initLen int64) {
		row := vms.Recording{Chunks: vms.ChunkRange{Epoch: 1, First: 1, Last: 1}, Number: 7, HeadLen: head, InitLen: initLen, Bytes: int64(len(obj))}
		r, err := segment.OpenPart(bytes.NewReader(obj), &row)
		for err == nil {
			var c vms.Chunk
			if c, err = r.Next(); err == nil && wire.Checksum(c.Payload) != c.CRC {
				t.Fatal("a chunk that is not what was muxed")
			}
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, segment.ErrBroken) {
			t.Fatal(err)
		}
	})
}
