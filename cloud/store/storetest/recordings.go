package storetest

import (
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

func recordingTwice(_ *testing.T, f *fixture) {
	r := rec("c1", 0xfedcba9876543210, 1, 30) // an epoch above 2^63
	_, err := f.s.PutRecording(f.Context(), r, t0, 0)
	f.want(err, vms.ErrNotFound)
	f.channel("a", "c1", "")
	f.news(r)
	if v := f.put(r); v != (nvr.Verdict{}) {
		f.Errorf("the same again = %+v, want no news", v)
	}
	if got := f.recordings("c1"); len(got) != 1 || !reflect.DeepEqual(got[0], r) {
		f.Errorf("Recordings = %+v, want %+v", got, r)
	}
	other := r
	other.SHA256[0]++
	if v := f.put(other); v != (nvr.Verdict{Conflict: r.Key}) {
		f.Errorf("same key, other content = %+v, want a conflict", v)
	}
	for key, want := range map[string]bool{r.Key: true, "recordings/c1/x": false} {
		if has, err := f.s.HasRecording(f.Context(), key); err != nil || has != want {
			f.Errorf("HasRecording(%s) = %v, %v", key, has, err)
		}
	}
}

func recordingRace(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	var mu sync.Mutex
	news := 0
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			first := uint64(i%4)*30 + 1
			v, err := f.s.PutRecording(f.Context(), rec("c1", 1, first, first+29), t0, 0)
			if err != nil || v.Conflict != "" {
				f.Errorf("PutRecording = %+v, %v", v, err)
			}
			if v.News {
				mu.Lock()
				news++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n := len(f.recordings("c1")); n != 4 || news != 4 {
		f.Errorf("%d rows and %d times news, want 4 and 4", n, news)
	}
}

func supersede(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	small, large := rec("c1", 1, 1, 10), rec("c1", 1, 1, 30)
	f.news(small)
	f.news(large) // the same key
	if got := f.recordings("c1"); len(got) != 1 || !reflect.DeepEqual(got[0], large) {
		f.Errorf("Recordings = %+v, want the larger", got)
	}
	larger := rec("c1", 1, 1, 60)
	larger.Number, larger.Key = 4, vms.RecordingKey("c1", larger.Start, 4)
	f.news(larger)
	if got := f.recordings("c1"); len(got) != 1 || got[0].Key != larger.Key || !slices.Equal(f.garbage(), []string{large.Key}) {
		f.Errorf("Recordings = %+v, garbage %v, want the largest and the smaller one's key", got, f.garbage())
	}
	beside := rec("c1", 1, 1, 90) // stored under the next free key: the beginning had its own
	beside.Start = beside.Start.Add(time.Microsecond)
	beside.Key = vms.RecordingKey("c1", beside.Start, 4)
	f.news(beside)
	if got := f.recordings("c1"); len(got) != 1 || got[0].Key != beside.Key || !slices.Contains(f.garbage(), larger.Key) {
		f.Errorf("Recordings = %+v, garbage %v, want the whole that was stored beside its beginning", got, f.garbage())
	}
	late := rec("c1", 1, 1, 5)
	late.Number, late.Key = 5, vms.RecordingKey("c1", late.Start, 5)
	if v := f.put(late); v != (nvr.Verdict{}) || len(f.recordings("c1")) != 1 || !slices.Contains(f.garbage(), late.Key) {
		f.Errorf("a smaller one that came late = %+v, garbage %v", v, f.garbage())
	}
}

func overlap(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	a, b, c := rec("c1", 1, 1, 30), rec("c1", 2, 20, 40), rec("c1", 2, 41, 50)
	f.news(a)
	if v := f.put(b); v != (nvr.Verdict{News: true, Conflict: a.Key}) {
		f.Errorf("an overlap = %+v, want news and the other key", v)
	}
	f.news(c) // abuts
	if n := len(f.recordings("c1")); n != 3 {
		f.Errorf("%d rows, want 3", n)
	}
}

func garbageStays(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	r := rec("c1", 1, 1, 30)
	f.news(r)
	n, err := f.s.Expire(f.Context(), r.End.Add(time.Microsecond), 0, t0, 10)
	f.ok(err)
	if n != 1 || len(f.recordings("c1")) != 0 || !slices.Equal(f.garbage(), []string{r.Key}) {
		f.Fatalf("Expire took %d, garbage %v", n, f.garbage())
	}
	if v := f.put(r); v != (nvr.Verdict{}) || len(f.recordings("c1")) != 0 {
		f.Errorf("garbage was resurrected: %+v", v)
	}
	if has, err := f.s.HasRecording(f.Context(), r.Key); err != nil || !has {
		f.Errorf("HasRecording of garbage = %v, %v, want true", has, err)
	}
	for range 2 {
		f.ok(f.s.GarbageGone(f.Context(), r.Key))
	}
	if len(f.garbage()) != 0 {
		f.Errorf("garbage = %v, want none", f.garbage())
	}
}

func recordingsByTime(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	f.channel("a", "c2", "")
	var all []vms.Recording
	for i := range uint64(6) {
		all = append(all, rec("c1", 1, i*30+1, i*30+30))
	}
	for _, i := range []int{3, 0, 5, 1, 4, 2} { // notices come in any order
		f.news(all[i])
	}
	f.news(rec("c2", 2, 1, 30))
	keys := func(from, to time.Time, first nvr.Cursor, limit int) (out []string) {
		rs, err := f.s.Recordings(f.Context(), "c1", from, to, first, limit)
		f.ok(err)
		for _, r := range rs {
			out = append(out, r.Key)
		}
		return out
	}
	want := func(i, j int) (out []string) {
		for _, r := range all[i:j] {
			out = append(out, r.Key)
		}
		return out
	}
	us := time.Microsecond
	for _, tt := range []struct {
		name     string
		from, to time.Time
		first    nvr.Cursor
		limit    int
		want     []string
	}{
		{"all", all[0].Start, all[5].End, nvr.Cursor{}, 10, want(0, 6)},
		{"limit", all[0].Start, all[5].End, nvr.Cursor{}, 2, want(0, 2)},
		{"cursor is included", all[0].Start, all[5].End, nvr.Cursor{At: all[2].Start, ID: all[2].Key}, 2, want(2, 4)},
		{"inside one", all[1].Start.Add(us), all[1].End.Add(-us), nvr.Cursor{}, 10, want(1, 2)},
		{"end is not in it", all[1].End, all[2].End, nvr.Cursor{}, 10, want(2, 3)},
		{"to is not in it", all[1].Start, all[2].Start, nvr.Cursor{}, 10, want(1, 2)},
		{"one microsecond of each", all[1].End.Add(-us), all[2].Start.Add(us), nvr.Cursor{}, 10, want(1, 3)},
		{"before all", all[0].Start.Add(-time.Hour), all[0].Start, nvr.Cursor{}, 10, nil},
	} {
		if got := keys(tt.from, tt.to, tt.first, tt.limit); !slices.Equal(got, tt.want) {
			f.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func neighbours(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	a, b, c := rec("c1", 1, 1, 30), rec("c1", 1, 31, 60), rec("c1", 1, 91, 120)
	f.news(a)
	f.news(b)
	f.news(c)
	before, after, err := f.s.Neighbours(f.Context(), "c1", b.End, c.Start)
	f.ok(err)
	if before == nil || before.Key != b.Key || after == nil || after.Key != c.Key {
		f.Errorf("around the hole: %v, %v", before, after)
	}
	before, after, err = f.s.Neighbours(f.Context(), "c1", a.Start, c.End)
	f.ok(err)
	if before != nil || after != nil {
		f.Errorf("around all: %v, %v, want none", before, after)
	}
}

func recordedChunks(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	f.news(rec("c1", 7, 1, 30))
	f.news(rec("c1", 7, 31, 60))
	f.news(rec("c1", 8, 91, 120))
	for _, tt := range []struct {
		ask  vms.ChunkRange
		want []vms.ChunkRange
	}{
		{vms.ChunkRange{Epoch: 7, First: 30, Last: 31}, []vms.ChunkRange{{Epoch: 7, First: 1, Last: 30}, {Epoch: 7, First: 31, Last: 60}}},
		{vms.ChunkRange{Epoch: 7, First: 61, Last: 1 << 63}, nil},
		{vms.ChunkRange{Epoch: 8, First: 1, Last: 1<<64 - 1}, []vms.ChunkRange{{Epoch: 8, First: 91, Last: 120}}},
		{vms.ChunkRange{Epoch: 9, First: 1, Last: 100}, nil},
	} {
		got, err := f.s.RecordedChunks(f.Context(), "c1", tt.ask, 10)
		f.ok(err)
		if !slices.Equal(got, tt.want) {
			f.Errorf("RecordedChunks(%s) = %v, want %v", tt.ask, got, tt.want)
		}
	}
}

func gaps(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	f.channel("a", "c2", "")
	at := func(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }
	g1 := vms.Gap{ID: "g1", Cause: vms.CauseCameraOffline, TimeRange: vms.TimeRange{Start: at(10), End: at(20)}}
	g2 := vms.Gap{ID: "g2", Cause: vms.CauseBufferFull, TimeRange: vms.TimeRange{Start: at(5), End: at(40)},
		Chunks: &vms.ChunkRange{Epoch: 0xfedcba9876543210, First: 3, Last: 9}}
	_, err := f.s.PutGaps(f.Context(), "none", []vms.Gap{g1})
	f.want(err, vms.ErrNotFound)
	news, err := f.s.PutGaps(f.Context(), "c1", []vms.Gap{g1})
	f.ok(err)
	if !slices.Equal(news, []vms.GapID{"g1"}) {
		f.Errorf("news = %v, want g1", news)
	}
	news, err = f.s.PutGaps(f.Context(), "c1", []vms.Gap{g1, g2})
	f.ok(err)
	if !slices.Equal(news, []vms.GapID{"g2"}) {
		f.Errorf("news = %v, want g2", news)
	}
	got, err := f.s.Gaps(f.Context(), "c1", at(0), at(100), 10)
	f.ok(err)
	if !reflect.DeepEqual(got, []vms.Gap{g2, g1}) {
		f.Errorf("Gaps = %+v, want g2 and g1", got)
	}
	if got, err := f.s.Gaps(f.Context(), "c1", at(20), at(30), 10); err != nil || len(got) != 1 {
		f.Errorf("Gaps from the end of g1 on = %+v, %v, want g2", got, err)
	}
	if got, err := f.s.Gaps(f.Context(), "c2", at(0), at(100), 10); err != nil || len(got) != 0 {
		f.Errorf("Gaps of another channel = %+v, %v", got, err)
	}
	poison := vms.Gap{ID: "g3", Cause: vms.CauseUnknown, TimeRange: g1.TimeRange, Chunks: &vms.ChunkRange{Epoch: 1, First: 1, Last: 1 << 63}}
	_, err = f.s.PutGaps(f.Context(), "c1", []vms.Gap{{ID: "g4", TimeRange: g1.TimeRange}, poison})
	f.want(err, vms.ErrInvalid)
	if got, _ := f.s.Gaps(f.Context(), "c1", at(0), at(100), 10); len(got) != 2 {
		f.Errorf("half of a refused list was kept: %+v", got)
	}
}

func idle(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	at := func(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }
	f.ok(f.s.SetIdle(f.Context(), "none", true, at(0)))
	f.ok(f.s.SetIdle(f.Context(), "c1", false, at(5)))
	for _, s := range []int{10, 15} { // the second changes nothing
		f.ok(f.s.SetIdle(f.Context(), "c1", true, at(s)))
	}
	for _, s := range []int{20, 25} {
		f.ok(f.s.SetIdle(f.Context(), "c1", false, at(s)))
	}
	f.ok(f.s.SetIdle(f.Context(), "c1", true, at(50)))
	got, err := f.s.Idle(f.Context(), "c1", at(0), at(60))
	f.ok(err)
	if want := []vms.TimeRange{{Start: at(10), End: at(20)}, {Start: at(50), End: at(60)}}; !slices.Equal(got, want) {
		f.Errorf("Idle = %v, want %v", got, want)
	}
	if got, err := f.s.Idle(f.Context(), "c1", at(20), at(50)); err != nil || len(got) != 0 {
		f.Errorf("Idle between = %v, %v, want none", got, err)
	}
}

func expire(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	var all []vms.Recording
	for i := range uint64(6) {
		r := rec("c1", 1, i*30+1, i*30+30)
		all = append(all, r)
		f.news(r)
	}
	take := func(cutoff time.Time, maxBytes int64, limit int) int {
		f.Helper()
		n, err := f.s.Expire(f.Context(), cutoff, maxBytes, t0, limit)
		f.ok(err)
		return n
	}
	if n := take(time.Time{}, 0, 10); n != 0 {
		f.Errorf("without limits Expire took %d", n)
	}
	if n := take(all[1].End, 0, 10); n != 1 {
		f.Errorf("by age Expire took %d, want 1: the next ends at the cutoff, not before", n)
	}
	if n := take(time.Time{}, 3000, 1); n != 1 {
		f.Errorf("by size with a limit Expire took %d, want 1", n)
	}
	if n := take(time.Time{}, 3000, 10); n != 1 {
		f.Errorf("by size Expire took %d, want 1", n)
	}
	if got := f.recordings("c1"); len(got) != 3 || got[0].Key != all[3].Key {
		f.Errorf("left are %+v, want the newest 3", got)
	}
	if want := []string{all[0].Key, all[1].Key, all[2].Key}; !slices.Equal(f.garbage(), want) {
		f.Errorf("garbage = %v, want %v", f.garbage(), want)
	}
}

func forget(_ *testing.T, f *fixture) {
	f.hub("a", "h1")
	f.channel("a", "c1", "h1")
	f.session("s1", "c1", "h1")
	f.session("s2", "c1", "")
	_, err := f.s.PutGaps(f.Context(), "c1", []vms.Gap{{ID: "g1", Cause: vms.CauseUnknown, TimeRange: vms.TimeRange{Start: t0, End: t0.Add(time.Second)}}})
	f.ok(err)
	f.ok(f.s.CreateHub(f.Context(), nvr.Hub{ID: "h2", Account: "a", CreatedAt: t0}, nvr.CodeHash{1}, t0.Add(time.Minute)))
	f.ok(f.s.Forget(f.Context(), time.Time{}, t0))
	if _, err := f.s.Session(f.Context(), "s2"); err != nil {
		f.Errorf("a young session is gone: %v", err)
	}
	f.ok(f.s.Forget(f.Context(), t0.Add(time.Minute), t0.Add(time.Hour)))
	_, err = f.s.Session(f.Context(), "s2")
	f.want(err, vms.ErrNotFound)
	if _, err := f.s.Session(f.Context(), "s1"); err != nil {
		f.Errorf("a session that has a hub is gone: %v", err)
	}
	if got, err := f.s.Gaps(f.Context(), "c1", t0, t0.Add(time.Hour), 10); err != nil || len(got) != 0 {
		f.Errorf("old gaps are kept: %v, %v", got, err)
	}
	_, err = f.s.EnrolHub(f.Context(), nvr.CodeHash{1}, make([]byte, 32), "", t0)
	f.want(err, vms.ErrNotFound)
}
