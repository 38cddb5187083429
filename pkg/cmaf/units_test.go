package cmaf_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/zipato/vms/pkg/cmaf"
)

// TestUnitsAreWhatWasBuilt: every sample comes back with its times and bytes.
func TestUnitsAreWhatWasBuilt(t *testing.T) {
	runs := twoTracks()
	payload, _ := build(t, runs)
	f, err := cmaf.ParseFragment(payload)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		before := []cmaf.Unit{{Track: 7}}
		units, err := f.Units(before, payload, r.Track)
		if err != nil || len(units) != 1+len(r.Samples) || units[0].Track != 7 {
			t.Fatalf("Units = %d behind one, %v; want %d", len(units), err, len(r.Samples))
		}
		dts := int64(r.Base)
		for i, s := range r.Samples {
			u := units[1+i]
			if u.Track != r.Track || u.DTS != dts || u.PTS != dts+int64(s.CTS) || u.Duration != s.Duration || u.Sync != (s.Sync || r.Track == cmaf.AudioTrack) {
				t.Errorf("track %d sample %d: %+v, want %+v at %d", r.Track, i, u, s, dts)
			}
			dts += int64(s.Duration)
			if r.Track == cmaf.AudioTrack {
				if !bytes.Equal(u.Data, s.Raw) {
					t.Errorf("sound %d: % x, want % x", i, u.Data, s.Raw)
				}
				continue
			}
			nals, err := cmaf.NALs(nil, u.Data)
			if err != nil || !slices.EqualFunc(nals, s.NALs, bytes.Equal) {
				t.Errorf("picture %d: % x, %v; want % x", i, nals, err, s.NALs)
			}
		}
	}
	if none, err := f.Units(nil, payload, 3); err != nil || none != nil {
		t.Errorf("Units of a track that is not there = %v, %v", none, err)
	}
}

// TestUnitsTakeDefaults: what others leave to the tfhd, or say of the first
// sample alone.
func TestUnitsTakeDefaults(t *testing.T) {
	payload := tfdt0(t)
	f, err := cmaf.ParseFragment(payload)
	if err != nil {
		t.Fatal(err)
	}
	units, err := f.Units(nil, payload, 1)
	if err != nil || len(units) != 2 {
		t.Fatalf("Units = %+v, %v", units, err)
	}
	for i, want := range []cmaf.Unit{
		{Track: 1, DTS: 1000, PTS: 1000, Duration: 100, Sync: true, Data: []byte("ABC")},
		{Track: 1, DTS: 1100, PTS: 1100, Duration: 100, Data: []byte("DE")},
	} {
		u := units[i]
		if u.DTS != want.DTS || u.PTS != want.PTS || u.Duration != want.Duration || u.Sync != want.Sync || !bytes.Equal(u.Data, want.Data) || cap(u.Data) != len(u.Data) {
			t.Errorf("unit %d: %+v, want %+v", i, u, want)
		}
	}
}

// TestUnitsRefuseAnotherPayload: a mistake of ours must not read beyond.
func TestUnitsRefuseAnotherPayload(t *testing.T) {
	payload, moofLen := build(t, twoTracks())
	f, err := cmaf.ParseFragment(payload)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := build(t, []cmaf.Run{{Track: 1, Samples: []cmaf.Sample{{Duration: 1, Raw: make([]byte, 400)}}}})
	for name, b := range map[string][]byte{"nothing": nil, "the moof": payload[:moofLen], "cut": payload[:len(payload)-8], "another": other} {
		if units, err := f.Units(make([]cmaf.Unit, 1), b, cmaf.VideoTrack); !isInvalid(err) || len(units) != 1 {
			t.Errorf("%s: Units = %d units, %v", name, len(units), err)
		}
	}
}

func TestNALsRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"half a length": {0, 0, 0}, "too long": {0, 0, 0, 2, 1}, "huge": {0xff, 0xff, 0xff, 0xff, 1}, "second": {0, 0, 0, 1, 1, 0, 0, 0, 1},
	} {
		if nals, err := cmaf.NALs([][]byte{{1}}, b); !isInvalid(err) || len(nals) != 1 {
			t.Errorf("%s: NALs = % x, %v", name, nals, err)
		}
	}
	if nals, err := cmaf.NALs(nil, []byte{0, 0, 0, 0, 0, 0, 0, 1, 9}); err != nil || len(nals) != 1 || nals[0][0] != 9 {
		t.Errorf("an empty NAL unit: % x, %v", nals, err)
	}
}

// FuzzUnits: whatever ParseFragment takes can be read back, and is what it said.
func FuzzUnits(f *testing.F) {
	good, _ := build(f, twoTracks())
	f.Add(good)
	f.Add(tfdt0(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		frag, err := cmaf.ParseFragment(b)
		if err != nil {
			return
		}
		for _, r := range frag.Runs {
			units, err := frag.Units(nil, b, r.Track)
			if err != nil || len(units) != r.Samples {
				t.Fatalf("track %d: %d units of %d, %v", r.Track, len(units), r.Samples, err)
			}
			var size int64
			var duration uint64
			for _, u := range units {
				size, duration = size+int64(len(u.Data)), duration+uint64(u.Duration)
				if u.PTS < r.MinPTS || u.PTS+int64(u.Duration) > r.MaxPTS || u.DTS < int64(r.Base) {
					t.Fatalf("unit %+v in run %+v", u, r)
				}
				if nals, err := cmaf.NALs(nil, u.Data); err == nil && len(nals) > len(u.Data)/4 {
					t.Fatalf("%d NAL units in %d bytes", len(nals), len(u.Data))
				}
			}
			if size != r.Bytes || duration != r.Duration || units[0].Sync != r.Sync {
				t.Fatalf("%d bytes, %d ticks; run %+v", size, duration, r)
			}
		}
	})
}
