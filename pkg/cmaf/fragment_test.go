package cmaf_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4"

	"github.com/zipato/vms/pkg/cmaf"
)

// twoTracks is a fragment with reordered pictures and sound that begins before them.
func twoTracks() []cmaf.Run {
	return []cmaf.Run{
		{Track: cmaf.VideoTrack, Base: 1<<33 + 7, Samples: []cmaf.Sample{
			{Duration: 3600, CTS: 0, Sync: true, NALs: [][]byte{{0x65, 1, 2, 3}, {0x06, 9}}},
			{Duration: 3601, CTS: -3600, NALs: [][]byte{{0x41, 4}}},
			{Duration: 3599, CTS: 7200, NALs: [][]byte{{0x41}}},
		}},
		{Track: cmaf.AudioTrack, Base: 1<<33 - 5, Samples: []cmaf.Sample{
			{Duration: 1024, Raw: []byte{0x21, 0x10}}, {Duration: 1024, Raw: []byte{0x22}},
		}},
	}
}

func build(t testing.TB, runs []cmaf.Run) ([]byte, int) {
	t.Helper()
	b, n, err := cmaf.BuildFragment(42, runs)
	if err != nil {
		t.Fatal(err)
	}
	return b, n
}

func TestFragmentRoundTrip(t *testing.T) {
	payload, moofLen := build(t, twoTracks())
	f, err := cmaf.ParseFragment(payload)
	if err != nil {
		t.Fatal(err)
	}
	if f.MoofLen != moofLen || int(binary.BigEndian.Uint32(payload)) != moofLen {
		t.Errorf("moof of %d bytes, BuildFragment said %d", f.MoofLen, moofLen)
	}
	v, a := f.Run(cmaf.VideoTrack), f.Run(cmaf.AudioTrack)
	if v == nil || a == nil || f.Run(3) != nil || len(f.Runs) != 2 {
		t.Fatalf("runs %+v", f.Runs)
	}
	base := int64(1<<33 + 7)
	if v.Base != uint64(base) || v.Samples != 3 || v.Duration != 10800 || !v.Sync || v.Bytes != 4+4+4+2+4+2+4+1 ||
		v.MinPTS != base || v.MaxPTS != base+7201+7200+3599 {
		t.Errorf("video %+v", *v)
	}
	if a.Base != 1<<33-5 || a.Samples != 2 || a.Duration != 2048 || a.Bytes != 3 || a.MinPTS != 1<<33-5 {
		t.Errorf("audio %+v", *a)
	}
	if z := f.Zero(); z != 1<<33-5 {
		t.Errorf("Zero = %d, want the sound's beginning", z)
	}
	again, _ := build(t, twoTracks())
	if !bytes.Equal(payload, again) {
		t.Error("the same arguments gave other bytes")
	}
}

// TestFragmentIsWhatMediacommonReads: another implementation is the judge.
func TestFragmentIsWhatMediacommonReads(t *testing.T) {
	runs := twoTracks()
	payload, _ := build(t, runs)
	var parts fmp4.Parts
	if err := parts.Unmarshal(payload); err != nil {
		t.Fatal(err)
	}
	if len(parts) != 1 || parts[0].SequenceNumber != 42 || len(parts[0].Tracks) != 2 {
		t.Fatalf("parts %+v", parts)
	}
	for i, track := range parts[0].Tracks {
		r := runs[i]
		if track.ID != r.Track || track.BaseTime != r.Base || len(track.Samples) != len(r.Samples) {
			t.Fatalf("track %d at %d with %d samples", track.ID, track.BaseTime, len(track.Samples))
		}
		for j, s := range track.Samples {
			want := r.Samples[j].Raw
			for _, n := range r.Samples[j].NALs {
				want = append(binary.BigEndian.AppendUint32(want, uint32(len(n))), n...)
			}
			wantSync := r.Track == cmaf.AudioTrack || r.Samples[j].Sync
			if s.Duration != r.Samples[j].Duration || s.PTSOffset != r.Samples[j].CTS || s.IsNonSyncSample == wantSync || !bytes.Equal(s.Payload, want) {
				t.Errorf("track %d sample %d: %+v", track.ID, j, s)
			}
		}
	}
}

// TestFragmentGolden: chunks that were muxed by an older agent, and recordings
// that were made of them, must go on meaning the same. The file never changes.
func TestFragmentGolden(t *testing.T) {
	path := filepath.Join("testdata", "golden", "fragment.hex")
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := build(t, twoTracks())
	if s := wrap(hex.EncodeToString(got)); s != string(want) {
		t.Errorf("BuildFragment gives\n%swant\n%s", s, want)
	}
}

func wrap(s string) string {
	var b strings.Builder
	for len(s) > 64 {
		b.WriteString(s[:64] + "\n")
		s = s[64:]
	}
	return b.String() + s + "\n"
}

func TestBuildFragmentRefusesNothing(t *testing.T) {
	for _, runs := range [][]cmaf.Run{nil, {{Track: 1}}, {{Track: 1}, {Track: 2}}} {
		if b, _, err := cmaf.BuildFragment(1, runs); err == nil {
			t.Errorf("BuildFragment(%v) = %d bytes", runs, len(b))
		}
	}
}

// TestRebaseMovesTimeAndNothingElse: only the decode times may differ, by
// exactly the one offset, in both widths; the payload is shared and not touched.
func TestRebaseMovesTimeAndNothingElse(t *testing.T) {
	for name, payload := range map[string][]byte{"version 1": first(build(t, twoTracks())), "version 0": tfdt0(t)} {
		t.Run(name, func(t *testing.T) {
			f, err := cmaf.ParseFragment(payload)
			if err != nil {
				t.Fatal(err)
			}
			before := bytes.Clone(payload)
			zero := f.Zero()
			moof, err := f.Rebase([]byte("in front"), payload, zero)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before, payload) {
				t.Error("Rebase wrote to the payload")
			}
			moof, ok := bytes.CutPrefix(moof, []byte("in front"))
			if !ok || len(moof) != f.MoofLen {
				t.Fatalf("moof of %d bytes behind what was there, want %d", len(moof), f.MoofLen)
			}
			g, err := cmaf.ParseFragment(append(moof, payload[f.MoofLen:]...))
			if err != nil {
				t.Fatal(err)
			}
			for i := range f.Runs {
				a, b := f.Runs[i], g.Runs[i]
				if b.Base != a.Base-zero || b.MinPTS != a.MinPTS-int64(zero) || b.Duration != a.Duration || b.Samples != a.Samples {
					t.Errorf("run %d: %+v became %+v with zero %d", i, a, b, zero)
				}
			}
			if g.Zero() != 0 {
				t.Errorf("Zero = %d after Rebase to zero", g.Zero())
			}
			if back, err := g.Unbase([]byte("in front"), append(moof, payload[f.MoofLen:]...), zero); err != nil || !bytes.Equal(back[8:], payload[:f.MoofLen]) {
				t.Errorf("Unbase did not undo Rebase (%v)", err)
			}
			for _, far := range []uint64{math.MaxUint64, math.MaxUint64 - f.Runs[0].Base + 1} {
				if _, err := f.Unbase(nil, payload, far); !isInvalid(err) {
					t.Errorf("Unbase by %d = %v", far, err)
				}
			}
			if back, err := f.Rebase(nil, payload, 0); err != nil || !bytes.Equal(back, payload[:f.MoofLen]) {
				t.Errorf("Rebase by nothing changed the moof (%v)", err)
			}
		})
	}
}

func TestRebaseRefusesTimeBeforeZero(t *testing.T) {
	payload, _ := build(t, twoTracks())
	f, err := cmaf.ParseFragment(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.Rebase([]byte("x"), payload, f.Zero()+1)
	if !isInvalid(err) || string(out) != "x" {
		t.Errorf("Rebase = %d bytes, %v", len(out), err)
	}
}

// TestZeroIsTheEarliestOfAllTracks: also when a picture is shown before its
// decode time says; but never below zero, where nothing could be subtracted.
func TestZeroIsTheEarliestOfAllTracks(t *testing.T) {
	run := func(track int, base uint64, cts ...int32) cmaf.Run {
		r := cmaf.Run{Track: track, Base: base}
		for _, c := range cts {
			r.Samples = append(r.Samples, cmaf.Sample{Duration: 100, CTS: c, Raw: []byte{1}})
		}
		return r
	}
	for _, tt := range []struct {
		runs []cmaf.Run
		want uint64
	}{
		{[]cmaf.Run{run(1, 1000, 0)}, 1000},
		{[]cmaf.Run{run(1, 1000, 200, 0)}, 1000}, // decode time counts: tfdt cannot be negative
		{[]cmaf.Run{run(1, 1000, 0, -300)}, 800},
		{[]cmaf.Run{run(1, 1000, 0), run(2, 990)}, 1000},
		{[]cmaf.Run{run(1, 1000, 0), run(2, 990, 0)}, 990},
		{[]cmaf.Run{run(1, 5, -300)}, 5},
	} {
		payload, _ := build(t, tt.runs)
		f, err := cmaf.ParseFragment(payload)
		if err != nil {
			t.Fatal(err)
		}
		if z := f.Zero(); z != tt.want {
			t.Errorf("Zero(%+v) = %d, want %d", tt.runs, z, tt.want)
		}
	}
}

func TestParseFragmentRefuses(t *testing.T) {
	good, moofLen := build(t, twoTracks())
	at := func(name string) int { return bytes.Index(good, []byte(name)) } // of the name; its size stands 4 before
	edit := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	put := binary.BigEndian.PutUint32
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"cut in the moof":     good[:moofLen-1],
		"without mdat":        good[:moofLen],
		"cut in the mdat":     good[:len(good)-1],
		"bytes after":         append(bytes.Clone(good), 0),
		"mdat first":          append(bytes.Clone(good[moofLen:]), good[:moofLen]...),
		"size zero":           edit(func(b []byte) { put(b, 0) }),
		"64-bit size":         edit(func(b []byte) { put(b, 1) }),
		"inner box too large": edit(func(b []byte) { put(b[at("tfhd")-4:], math.MaxUint32) }),
		"inner box too small": edit(func(b []byte) { put(b[at("tfhd")-4:], 7) }),
		"no track id":         edit(func(b []byte) { put(b[at("tfhd")+8:], 0) }),
		"huge track id":       edit(func(b []byte) { put(b[at("tfhd")+8:], 1<<31) }),
		"base data offset":    edit(func(b []byte) { b[at("tfhd")+7] |= 1 }),
		"tfdt version 2":      edit(func(b []byte) { b[at("tfdt")+4] = 2 }),
		"time out of range":   edit(func(b []byte) { b[at("tfdt")+8] = 0xff }),
		"no tfdt":             edit(func(b []byte) { copy(b[at("tfdt"):], "free") }),
		"two tfhd":            edit(func(b []byte) { copy(b[at("tfdt"):], "tfhd") }),
		"no trun":             edit(func(b []byte) { copy(b[at("trun"):], "free") }),
		"no samples":          edit(func(b []byte) { put(b[at("trun")+8:], 0) }),
		"too many samples":    edit(func(b []byte) { put(b[at("trun")+8:], 100_001) }),
		"more samples":        edit(func(b []byte) { put(b[at("trun")+8:], 4) }),
		"data before mdat":    edit(func(b []byte) { put(b[at("trun")+12:], uint32(moofLen)) }),
		"data before moof":    edit(func(b []byte) { put(b[at("trun")+12:], math.MaxUint32) }),
		"sample too large":    edit(func(b []byte) { put(b[at("trun")+20:], 1<<30) }),
		"same track twice":    edit(func(b []byte) { put(b[bytes.LastIndex(b, []byte("tfhd"))+8:], 1) }),
		"no traf":             []byte("\x00\x00\x00\x08moof\x00\x00\x00\x08mdat"),
	} {
		t.Run(name, func(t *testing.T) {
			if f, err := cmaf.ParseFragment(b); !isInvalid(err) {
				t.Errorf("ParseFragment = %+v, %v; want an invalid fragment", f, err)
			}
		})
	}
}

// tfdt0 is a fragment as others write it: tfdt version 0, defaults in tfhd, no
// flags and no offsets per sample.
func tfdt0(t testing.TB) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer("\n", "", " ", "", "\t", "").Replace(`
		00000058 6d6f6f66 00000010 6d666864 00000000 00000001
		00000040 74726166
		00000018 74666864 00020028 00000001 00000064 01010000
		00000010 74666474 00000000 000003e8
		00000010 7472756e 00000000 00000000`))
	if err != nil {
		t.Fatal(err)
	}
	// The trun: data offset, first sample flags and sizes of two samples.
	trun := binary.BigEndian.AppendUint32(nil, 8+4+4+4+4+8)
	trun = append(trun, "trun\x00\x00\x02\x05"...)
	for _, n := range []uint32{2, 0, 0x02000000, 3, 2} {
		trun = binary.BigEndian.AppendUint32(trun, n)
	}
	b = append(b[:len(b)-16], trun...)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	binary.BigEndian.PutUint32(b[24:], uint32(len(b)-24))
	binary.BigEndian.PutUint32(b[len(b)-16:], uint32(len(b)+8))
	return append(b, "\x00\x00\x00\x0dmdatABCDE"...)
}

func TestParseTakesOthersFragments(t *testing.T) {
	f, err := cmaf.ParseFragment(tfdt0(t))
	if err != nil {
		t.Fatal(err)
	}
	r := f.Run(1)
	if r == nil || r.Base != 1000 || r.Duration != 200 || r.Samples != 2 || !r.Sync || r.Bytes != 5 {
		t.Errorf("run %+v", r)
	}
}

func FuzzParseFragment(f *testing.F) {
	good, _ := build(f, twoTracks())
	f.Add(good)
	f.Add(tfdt0(f))
	f.Add([]byte("\x00\x00\x00\x08moof\x00\x00\x00\x08mdat"))
	f.Fuzz(func(t *testing.T, b []byte) {
		frag, err := cmaf.ParseFragment(b)
		if err != nil {
			if !isInvalid(err) {
				t.Fatalf("error %v is not ErrInvalid", err)
			}
			return
		}
		if frag.MoofLen < 8 || frag.MoofLen > len(b)-8 || len(frag.Runs) == 0 || len(frag.Runs) > 8 {
			t.Fatalf("fragment %+v of %d bytes", frag, len(b))
		}
		for _, r := range frag.Runs {
			if r.Track <= 0 || r.Samples < 1 || r.Samples > 100_000 || r.Bytes > int64(len(b)) || r.MinPTS > r.MaxPTS {
				t.Fatalf("run %+v", r)
			}
		}
		moof, err := frag.Rebase(nil, b, frag.Zero())
		if err != nil || len(moof) != frag.MoofLen {
			t.Fatalf("Rebase = %d bytes, %v", len(moof), err)
		}
		again, err := cmaf.ParseFragment(append(moof, b[frag.MoofLen:]...))
		if err != nil {
			t.Fatalf("what Rebase wrote is no fragment: %v", err)
		}
		if back, err := again.Unbase(nil, moof, frag.Zero()); err != nil || !bytes.Equal(back, b[:frag.MoofLen]) {
			t.Fatalf("Unbase did not undo Rebase (%v)", err)
		}
		for i := range frag.Runs {
			if again.Runs[i].Base != frag.Runs[i].Base-frag.Zero() || again.Runs[i].Duration != frag.Runs[i].Duration {
				t.Fatalf("run %+v became %+v", frag.Runs[i], again.Runs[i])
			}
		}
	})
}

func BenchmarkBuildFragment(b *testing.B) {
	nal := make([]byte, 10_000)
	runs := []cmaf.Run{{Track: 1, Base: 1}, {Track: 2, Base: 1}}
	for range 5 {
		runs[0].Samples = append(runs[0].Samples, cmaf.Sample{Duration: 3600, NALs: [][]byte{nal}})
		runs[1].Samples = append(runs[1].Samples, cmaf.Sample{Duration: 1024, Raw: nal[:300]})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := cmaf.BuildFragment(1, runs); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseAndRebase(b *testing.B) {
	payload, _ := build(b, twoTracks())
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		f, err := cmaf.ParseFragment(payload)
		if err != nil {
			b.Fatal(err)
		}
		if dst, err = f.Rebase(dst[:0], payload, f.Zero()); err != nil {
			b.Fatal(err)
		}
	}
}
