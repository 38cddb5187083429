package objstore_test

import (
	"encoding/hex"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/pkg/vms"
)

func sample() (vms.Recording, objstore.Object) {
	start := time.Date(2026, 3, 4, 5, 6, 7, 89012000, time.UTC)
	r := vms.Recording{
		Channel: "ch_0123456789abcdef",
		Chunks:  vms.ChunkRange{Epoch: 0xfedcba9876543210, First: 18446744073709551000, Last: 18446744073709551614},
		Number:  4294967295,
		Start:   start,
		End:     start.Add(30*time.Second + 33*time.Millisecond),
		Media:   30*time.Second + 33366666*time.Nanosecond,
		Bytes:   9_000_000,
		SHA256:  [32]byte{1, 2, 3, 31: 9},
		HeadLen: 1500,
		InitLen: 1200,
		Codecs:  "avc1.64001f,mp4a.40.2",

		TimeUncertain: true,
	}
	r.Key = vms.RecordingKey(r.Channel, r.Start, r.Number)
	return r, objstore.Object{
		Key: r.Key, Size: r.Bytes, SHA256: r.SHA256, HasSHA256: true,
		Metadata: objstore.RecordingMetadata(r),
	}
}

func TestRecordingMetadataRoundTrip(t *testing.T) {
	for _, change := range []func(*vms.Recording){
		func(*vms.Recording) {},
		func(r *vms.Recording) { r.Dependent = true },
		func(r *vms.Recording) { r.TimeUncertain = false },
		func(r *vms.Recording) { r.Dependent, r.TimeUncertain = true, false },
		func(r *vms.Recording) { r.Start = r.Start.Truncate(time.Second) },
		func(r *vms.Recording) { r.Number, r.Chunks.First, r.Chunks.Last = 0, 1, 1 },
	} {
		r, o := sample()
		change(&r)
		r.Key = vms.RecordingKey(r.Channel, r.Start, r.Number)
		o.Metadata = objstore.RecordingMetadata(r)
		if err := objstore.CheckMetadata(o.Metadata); err != nil {
			t.Errorf("CheckMetadata: %v", err)
		}
		if err := objstore.CheckKey(r.Key); err != nil {
			t.Errorf("CheckKey: %v", err)
		}
		got, err := objstore.ParseRecording(r.Key, o)
		if err != nil {
			t.Fatal(err)
		}
		if got != r {
			t.Errorf("came back as\n%+v, want\n%+v", got, r)
		}
	}
}

// The metadata of format version 1, as it stands in buckets: it never changes.
func TestRecordingMetadataGolden(t *testing.T) {
	r, _ := sample()
	r.Dependent = true
	want := map[string]string{
		"vms-format":   "1",
		"vms-channel":  "ch_0123456789abcdef",
		"vms-epoch":    "fedcba9876543210",
		"vms-chunks":   "18446744073709551000-18446744073709551614",
		"vms-number":   "4294967295",
		"vms-start":    "2026-03-04T05:06:07.089012Z",
		"vms-end":      "2026-03-04T05:06:37.122012Z",
		"vms-media-ns": "30033366666",
		"vms-head":     "1500",
		"vms-init":     "1200",
		"vms-codecs":   "avc1.64001f,mp4a.40.2",
		"vms-flags":    "dependent,time-uncertain",
	}
	if got := objstore.RecordingMetadata(r); !maps.Equal(got, want) {
		t.Errorf("metadata is\n%v, want\n%v", got, want)
	}
}

// A part says the same of itself, under a key that its chunks give it.
func TestParsePart(t *testing.T) {
	r, o := sample()
	r.Key = vms.PartKey(r.Channel, r.Chunks, r.Number)
	if err := objstore.CheckKey(r.Key); err != nil {
		t.Errorf("CheckKey: %v", err)
	}
	got, err := objstore.ParseRecording(r.Key, o)
	if err != nil || got != r || !got.Provisional() {
		t.Errorf("ParseRecording = %+v, %v, want %+v", got, err, r)
	}
	for _, key := range []string{
		vms.PartKey(r.Channel, vms.ChunkRange{Epoch: r.Chunks.Epoch, First: 1, Last: 2}, r.Number),
		vms.PartKey(r.Channel, r.Chunks, 7),
		vms.PartKey("ch_other", r.Chunks, r.Number),
		"parts/" + strings.TrimPrefix(vms.RecordingKey(r.Channel, r.Start, r.Number), "recordings/"),
		strings.Replace(r.Key, "parts/", "recordings/", 1),
	} {
		if got, err := objstore.ParseRecording(key, o); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("ParseRecording(%s) = %+v, %v, want vms.ErrInvalid", key, got, err)
		}
	}
}

// TestParseRecordingWithoutTheStoresChecksum: an object that came in parts, or by
// a program that leaves none, says it in its metadata.
func TestParseRecordingWithoutTheStoresChecksum(t *testing.T) {
	r, o := sample()
	r.SHA256[5] = 0xab // a digit that has a case
	o.SHA256 = r.SHA256
	text := hex.EncodeToString(r.SHA256[:])
	for name, c := range map[string]struct {
		has  bool
		says string
		ok   bool
	}{
		"metadata alone": {false, text, true},
		"both, the same": {true, text, true},
		"both, another":  {true, strings.Repeat("00", 32), false},
		"upper case":     {false, strings.ToUpper(text), false},
		"short":          {false, text[:62], false},
		"no number":      {false, strings.Repeat("x", 64), false},
		"empty":          {false, "", false},
	} {
		o := o
		o.Metadata = maps.Clone(o.Metadata)
		o.Metadata[objstore.MetaSHA256] = c.says
		if o.HasSHA256 = c.has; !c.has {
			o.SHA256 = [32]byte{}
		}
		got, err := objstore.ParseRecording(r.Key, o)
		if c.ok && (err != nil || got != r) || !c.ok && !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("%s: ParseRecording = %+v, %v", name, got, err)
		}
	}
}

func TestParseRecordingRefuses(t *testing.T) {
	set := func(k, v string) func(*string, *objstore.Object) {
		return func(_ *string, o *objstore.Object) { o.Metadata[k] = v }
	}
	cases := map[string]func(key *string, o *objstore.Object){
		"another key":           func(key *string, _ *objstore.Object) { *key = strings.Replace(*key, "05-06-07", "05-06-08", 1) },
		"a clip":                func(key *string, _ *objstore.Object) { *key = strings.Replace(*key, "recordings/", "clips/", 1) },
		"no metadata":           func(_ *string, o *objstore.Object) { o.Metadata = nil },
		"no checksum":           func(_ *string, o *objstore.Object) { o.HasSHA256 = false },
		"an empty object":       func(_ *string, o *objstore.Object) { o.Size = 0 },
		"only a head":           func(_ *string, o *objstore.Object) { o.Size = 1500 },
		"a later format":        set("vms-format", "2"),
		"a channel with a path": set("vms-channel", "../etc"),
		"another channel":       set("vms-channel", "ch_other"),
		"no epoch":              set("vms-epoch", "0000000000000000"),
		"a short epoch":         set("vms-epoch", "12"),
		"chunks backwards":      set("vms-chunks", "9-3"),
		"chunks from zero":      set("vms-chunks", "0-3"),
		"chunks with a sign":    set("vms-chunks", "+1-3"),
		"one chunk number":      set("vms-chunks", "3"),
		"chunks overflow":       set("vms-chunks", "1-18446744073709551616"),
		"number overflow":       set("vms-number", "4294967296"),
		"number negative":       set("vms-number", "-1"),
		"number with zeros":     set("vms-number", "007"),
		"start not UTC":         set("vms-start", "2026-03-04T06:06:07.089012+01:00"),
		"start before 1970":     set("vms-start", "1969-03-04T06:06:07.089012Z"),
		"end before start":      set("vms-end", "2026-03-04T05:06:07.089012Z"),
		"end a year later":      set("vms-end", "2027-03-04T05:06:07.089012Z"),
		"media zero":            set("vms-media-ns", "0"),
		"media a year":          set("vms-media-ns", "31536000000000000"),
		"head negative":         set("vms-head", "-5"),
		"init beyond head":      set("vms-init", "1501"),
		"codecs with quote":     set("vms-codecs", `avc1"; x="`),
		"codecs with a hole":    set("vms-codecs", "avc1,,mp4a"),
		"codecs endless":        set("vms-codecs", strings.Repeat("a", 201)),
		"an unknown flag":       set("vms-flags", "dependent,sparkling"),
		"a flag twice":          set("vms-flags", "dependent,dependent"),
		"an empty flag":         set("vms-flags", ""),
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			r, o := sample()
			key := r.Key
			spoil(&key, &o)
			if got, err := objstore.ParseRecording(key, o); !errors.Is(err, vms.ErrInvalid) {
				t.Errorf("ParseRecording = %+v, %v, want vms.ErrInvalid", got, err)
			}
		})
	}
	_, o := sample()
	for k := range o.Metadata {
		if k == "vms-flags" {
			continue
		}
		t.Run("without "+k, func(t *testing.T) {
			r, o := sample()
			delete(o.Metadata, k)
			if _, err := objstore.ParseRecording(r.Key, o); !errors.Is(err, vms.ErrInvalid) {
				t.Errorf("ParseRecording = %v, want vms.ErrInvalid", err)
			}
		})
	}
}

// What ParseRecording accepts, it writes back the same: one recording has one
// description, whatever a stranger wrote into the bucket.
func FuzzParseRecording(f *testing.F) {
	r, o := sample()
	m := o.Metadata
	f.Add(r.Key, m["vms-channel"], m["vms-epoch"], m["vms-chunks"], m["vms-number"], m["vms-start"], m["vms-end"], m["vms-media-ns"], m["vms-head"], m["vms-init"], m["vms-codecs"], m["vms-flags"], o.Size)
	f.Add("recordings/a/1970-01-01/00-00-00.000000Z.0.mp4", "a", "0000000000000001", "1-1", "0", "1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z", "1", "1", "1", "avc1", "dependent", int64(2))
	f.Fuzz(func(t *testing.T, key, channel, epoch, chunks, number, start, end, media, head, initLen, codecs, flags string, size int64) {
		m := map[string]string{
			"vms-format": "1", "vms-channel": channel, "vms-epoch": epoch, "vms-chunks": chunks, "vms-number": number, "vms-start": start, "vms-end": end,
			"vms-media-ns": media, "vms-head": head, "vms-init": initLen, "vms-codecs": codecs, "vms-flags": flags,
		}
		o := objstore.Object{Key: key, Size: size, HasSHA256: true, Metadata: m}
		r, err := objstore.ParseRecording(key, o)
		if err != nil {
			return
		}
		o.Metadata = objstore.RecordingMetadata(r)
		again, err := objstore.ParseRecording(key, o)
		if err != nil || again != r {
			t.Errorf("%+v came back as %+v, %v", r, again, err)
		}
		if vms.RecordingKey(r.Channel, r.Start, r.Number) != key || r.HeadLen >= r.Bytes || r.InitLen > r.HeadLen || !r.End.After(r.Start) {
			t.Errorf("accepted %+v", r)
		}
	})
}
