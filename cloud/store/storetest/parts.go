package storetest

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

// part is a provisional recording of chunks first to last.
func part(ch vms.ChannelID, epoch vms.Epoch, first, last uint64) vms.Recording {
	r := rec(ch, epoch, first, last)
	r.Key = vms.PartKey(ch, r.Chunks, r.Number)
	return r
}

func keys(rs []vms.Recording) []string {
	out := make([]string, 0, len(rs))
	for _, r := range rs {
		out = append(out, r.Key)
	}
	return out
}

func wholeAndParts(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	p1, p2, other := part("c1", 1, 1, 10), part("c1", 1, 11, 25), part("c1", 1, 31, 40)
	for _, p := range []vms.Recording{p2, p1, other} {
		f.news(p)
	}
	if got := f.recordings("c1"); len(got) != 3 || !reflect.DeepEqual(got[0], p1) {
		f.Fatalf("Recordings = %+v, want the parts", got)
	}
	if v := f.put(p1); v != (nvr.Verdict{}) {
		f.Errorf("a part that is known = %+v, want no news", v)
	}
	whole := rec("c1", 1, 1, 30)
	f.news(whole)
	if got := keys(f.recordings("c1")); !slices.Equal(got, []string{whole.Key, other.Key}) {
		f.Errorf("Recordings = %v, want the whole and the part of another", got)
	}
	if got := f.garbageAt(t0.Add(keep - time.Microsecond)); len(got) != 0 {
		f.Errorf("garbage while there may be URLs: %v", got)
	}
	if got := f.garbageAt(t0.Add(keep)); !slices.Equal(sorted(got), sorted([]string{p1.Key, p2.Key})) {
		f.Errorf("garbage = %v, want both parts", got)
	}
	if v := f.put(p2); v != (nvr.Verdict{}) || len(f.recordings("c1")) != 2 {
		f.Errorf("a part that comes again = %+v", v)
	}
	late := part("c1", 1, 5, 12)
	if v := f.put(late); v != (nvr.Verdict{}) || !slices.Contains(f.garbageAt(t0), late.Key) {
		f.Errorf("a part that comes after its whole = %+v, garbage %v: nobody ever had a URL", v, f.garbageAt(t0))
	}
	same := rec("c1", 1, 31, 40) // nothing came of it but what the part has
	f.news(same)
	if got := keys(f.recordings("c1")); !slices.Equal(got, []string{whole.Key, same.Key}) || !slices.Contains(f.garbage(), other.Key) {
		f.Errorf("Recordings = %v, garbage %v, want the whole in the place of the part with the same chunks", got, f.garbage())
	}
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

func largerPart(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	small, large, tiny := part("c1", 1, 1, 10), part("c1", 1, 1, 20), part("c1", 1, 3, 4)
	f.news(small)
	f.news(large)
	if v := f.put(tiny); v != (nvr.Verdict{}) {
		f.Errorf("a smaller part = %+v, want no news", v)
	}
	if got := keys(f.recordings("c1")); !slices.Equal(got, []string{large.Key}) || !slices.Equal(sorted(f.garbage()), sorted([]string{small.Key, tiny.Key})) {
		f.Errorf("Recordings = %v, garbage %v, want the largest", got, f.garbage())
	}
	// What was taken for the end of a recording was not: its hub came back.
	early, more := rec("c1", 1, 31, 40), part("c1", 1, 31, 50)
	f.news(early)
	f.news(more)
	if got := keys(f.recordings("c1")); !slices.Equal(got, []string{large.Key, more.Key}) || !slices.Contains(f.garbage(), early.Key) {
		f.Errorf("Recordings = %v, garbage %v, want the part that has more than the whole", got, f.garbage())
	}
}

// Two workers store parts that share chunks: no rule was broken, and neither
// goes before its chunks are all elsewhere.
func partsOverlap(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	a, b := part("c1", 1, 1, 20), part("c1", 1, 11, 30)
	f.news(a)
	f.news(b)
	for range 2 { // told of again: nothing new, no alarm
		if v := f.put(b); v != (nvr.Verdict{}) {
			f.Errorf("again = %+v", v)
		}
	}
	if got := keys(f.recordings("c1")); !slices.Equal(got, []string{a.Key, b.Key}) {
		f.Errorf("Recordings = %v, want both", got)
	}
	between := part("c1", 1, 8, 25) // both together have it
	if v := f.put(between); v != (nvr.Verdict{}) || !slices.Contains(f.garbage(), between.Key) {
		f.Errorf("a part that others have = %+v, garbage %v", v, f.garbage())
	}
	c := part("c1", 1, 19, 40) // now b is in a and c
	f.news(c)
	if got := keys(f.recordings("c1")); !slices.Equal(got, []string{a.Key, c.Key}) {
		f.Errorf("Recordings = %v, want %v", got, []string{a.Key, c.Key})
	}
	short := rec("c1", 1, 1, 30)
	f.news(short)
	if got := keys(f.recordings("c1")); !slices.Equal(got, []string{short.Key, c.Key}) {
		f.Errorf("Recordings = %v, want the whole, and the part that reaches beyond it", got)
	}
	other := part("c1", 2, 35, 50) // the same time, other chunks: that is an alarm, once
	if v := f.put(other); v != (nvr.Verdict{News: true, Conflict: c.Key}) {
		f.Errorf("another epoch at the same time = %+v", v)
	}
	if v := f.put(other); v != (nvr.Verdict{}) {
		f.Errorf("the same again = %+v", v)
	}
}

// A recording was closed before its end, and a part has more of it: the part
// goes when what the closed one lacks is in another, in whatever order they come.
func restOfAPart(_ *testing.T, f *fixture) {
	closed, p, rest := rec("c1", 1, 1, 16), part("c1", 1, 11, 30), rec("c1", 1, 17, 30)
	for i, order := range [][]vms.Recording{{closed, p, rest}, {p, closed, rest}, {closed, rest, p}, {rest, closed, p}} {
		ch := vms.ChannelID(fmt.Sprintf("c%d", i))
		f.channel("a", ch, "")
		var want []string
		for j := range order {
			r := order[j]
			r.Channel = ch
			r.Key = vms.RecordingKey(ch, r.Start, r.Number)
			if order[j].Provisional() {
				r.Key = vms.PartKey(ch, r.Chunks, r.Number)
			} else {
				want = append(want, r.Key)
			}
			if v := f.put(r); v.Conflict != "" {
				f.Errorf("order %d: %s conflicts with %s", i, r.Key, v.Conflict)
			}
			if got := f.recordings(ch); j == 1 && len(got) != 2 {
				f.Errorf("order %d: after two there are %v", i, keys(got))
			}
		}
		if got := keys(f.recordings(ch)); !slices.Equal(got, sorted(want)) {
			f.Errorf("order %d: Recordings = %v, want %v", i, got, sorted(want))
		}
	}
	// Whole recordings that do not have all of a part leave it.
	f.channel("a", "c9", "")
	p, rest = part("c9", 1, 11, 30), rec("c9", 1, 18, 29)
	f.news(p)
	f.news(rec("c9", 1, 1, 16))
	if v := f.put(rest); v != (nvr.Verdict{}) || !slices.Contains(keys(f.recordings("c9")), p.Key) {
		f.Errorf("a whole inside a part = %+v, Recordings = %v", v, keys(f.recordings("c9")))
	}
}

// Whatever comes in whatever order: each chunk that was accepted is in a
// recording that is there, one in a whole stays in a whole, and every object is
// either there or garbage.
func partsInAnyOrder(_ *testing.T, f *fixture) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		ch := vms.ChannelID(fmt.Sprintf("c%d", seed))
		f.channel("a", ch, "")
		var accepted, wholes vms.ChunkSet
		all := make(map[string]bool)
		for range 20 {
			first := 1 + rnd.Uint64N(45)
			r := part(ch, 1, first, min(45, first+rnd.Uint64N(12)))
			if rnd.IntN(6) == 0 {
				first = 1 + 15*rnd.Uint64N(3)
				r = rec(ch, 1, first, first+14)
				wholes.Add(r.Chunks)
			}
			if v := f.put(r); v.Conflict != "" {
				f.Errorf("seed %d: %s conflicts with %s", seed, r.Key, v.Conflict)
			}
			accepted.Add(r.Chunks)
			all[r.Key] = true
		}
		var have, inWholes vms.ChunkSet
		rs := f.recordings(ch)
		for _, r := range rs {
			have.Add(r.Chunks)
			if !r.Provisional() {
				inWholes.Add(r.Chunks)
			}
			delete(all, r.Key)
		}
		if !reflect.DeepEqual(have.Ranges(), accepted.Ranges()) || !reflect.DeepEqual(inWholes.Ranges(), wholes.Ranges()) {
			f.Errorf("seed %d: accepted %v, in wholes %v; there are %v", seed, accepted.Ranges(), wholes.Ranges(), keys(rs))
		}
		garbage := f.garbage()
		for key := range all {
			if !slices.Contains(garbage, key) {
				f.Errorf("seed %d: object %s is nowhere", seed, key)
			}
		}
	}
}

func parts(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	f.channel("a", "c2", "")
	const e1, e2 = vms.Epoch(0xfedcba9876543210), vms.Epoch(7)
	put := func(r vms.Recording, at time.Time) {
		f.Helper()
		_, err := f.s.PutRecording(f.Context(), r, at, keep)
		f.ok(err)
	}
	a, b, c, d := part("c1", e1, 11, 20), part("c1", e1, 1, 10), part("c1", e2, 31, 40), part("c2", e1, 1, 5)
	put(a, t0.Add(time.Second))
	put(b, t0.Add(3*time.Second))
	put(c, t0.Add(2*time.Second))
	put(d, t0)
	put(rec("c1", 9, 101, 120), t0)
	for _, tt := range []struct {
		epochs []vms.Epoch
		want   []string
	}{
		{nil, []string{}},
		{[]vms.Epoch{9, 8}, []string{}},
		{[]vms.Epoch{e1}, []string{b.Key, a.Key}},
		{[]vms.Epoch{e1, 8, e2, e1}, []string{c.Key, b.Key, a.Key}},
	} {
		got, err := f.s.Parts(f.Context(), "c1", tt.epochs)
		f.ok(err)
		if !slices.Equal(keys(got), tt.want) {
			f.Errorf("Parts(%v) = %v, want %v", tt.epochs, keys(got), tt.want)
		}
	}
	many := make([]vms.Epoch, 2000)
	for i := range many {
		many[i] = vms.Epoch(i + 1)
	}
	if got, err := f.s.Parts(f.Context(), "c1", append(many, e1)); err != nil || !slices.Equal(keys(got), []string{c.Key, b.Key, a.Key}) {
		f.Errorf("Parts of many epochs = %v, %v", keys(got), err)
	}
	got, err := f.s.PartEpochs(f.Context())
	f.ok(err)
	want := []nvr.PartEpoch{
		{Channel: "c1", Epoch: e2, End: c.End, Registered: t0.Add(2 * time.Second)},
		{Channel: "c1", Epoch: e1, End: a.End, Registered: t0.Add(3 * time.Second)},
		{Channel: "c2", Epoch: e1, End: d.End, Registered: t0},
	}
	if !reflect.DeepEqual(got, want) {
		f.Errorf("PartEpochs = %+v, want %+v", got, want)
	}
	f.news(rec("c1", e1, 1, 30))
	if got, err := f.s.Parts(f.Context(), "c1", []vms.Epoch{e1}); err != nil || len(got) != 0 {
		f.Errorf("Parts after the whole = %v, %v", got, err)
	}
}

func deletionIsNow(_ *testing.T, f *fixture) {
	for _, ch := range []vms.ChannelID{"c_1", "cx1"} { // one is a pattern for the other in SQL
		f.channel("a", ch, "")
		f.news(part(ch, 1, 1, 10))
		f.news(rec(ch, 1, 1, 30))
	}
	if got := f.garbageAt(t0); len(got) != 0 {
		f.Fatalf("garbage = %v", got)
	}
	_, err := f.s.DeleteChannel(f.Context(), "a", "c_1", t0)
	f.ok(err)
	want := []string{part("c_1", 1, 1, 10).Key, rec("c_1", 1, 1, 30).Key}
	if got := f.garbageAt(t0); !slices.Equal(sorted(got), sorted(want)) {
		f.Errorf("garbage = %v, want %v", got, want)
	}
}
