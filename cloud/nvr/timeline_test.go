package nvr

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

var zero = time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)

func at(s float64) time.Time { return zero.Add(time.Duration(s * float64(time.Second))) }

func span(from, to float64) vms.TimeRange { return vms.TimeRange{Start: at(from), End: at(to)} }

// recorded makes a recording of an epoch; its chunks are a second each.
func recorded(epoch vms.Epoch, from, to float64, first, last uint64) vms.Recording {
	return vms.Recording{Start: at(from), End: at(to), Chunks: vms.ChunkRange{Epoch: epoch, First: first, Last: last}}
}

// holds is what a hub holds of an epoch.
func holds(epoch vms.Epoch, from, to float64) heldRange {
	return heldRange{span(from, to), vms.ChunkRange{Epoch: epoch, First: 1, Last: 1}}
}

func declared(id vms.GapID, from, to float64) vms.Gap {
	return vms.Gap{ID: id, Cause: vms.CauseCameraOffline, TimeRange: span(from, to)}
}

// show writes a timeline down in seconds.
func show(gaps []vms.Gap, pending []vms.TimeRange) string {
	var out []string
	for _, g := range gaps {
		id := string(g.ID)
		if strings.HasPrefix(id, "derived_") {
			id = "derived"
		}
		chunks := ""
		if g.Chunks != nil {
			chunks = fmt.Sprintf(" %d-%d", g.Chunks.First, g.Chunks.Last)
		}
		out = append(out, fmt.Sprintf("%s %s %g-%g%s", id, g.Cause, g.Start.Sub(zero).Seconds(), g.End.Sub(zero).Seconds(), chunks))
	}
	for _, p := range pending {
		out = append(out, fmt.Sprintf("pending %g-%g", p.Start.Sub(zero).Seconds(), p.End.Sub(zero).Seconds()))
	}
	return strings.Join(out, "; ")
}

func TestTimeline(t *testing.T) {
	for _, tt := range []struct {
		name   string
		window vms.TimeRange
		recs   []vms.Recording
		gaps   []vms.Gap
		idle   []vms.TimeRange
		held   []heldRange
		more   bool // recordings follow
		want   string
	}{
		{name: "abutting recordings leave nothing", recs: []vms.Recording{recorded(1, 0, 30, 1, 30), recorded(1, 30, 60, 31, 60)}},
		{
			name: "below a millisecond there is no hole",
			recs: []vms.Recording{recorded(1, 0, 29.9995, 1, 30), recorded(2, 30, 60, 1, 30)},
		},
		{
			name: "another epoch: the agent restarted",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30), recorded(2, 42, 60, 1, 18)},
			want: "derived agent_restarted 30-42",
		},
		{
			name: "same epoch, missing numbers: unknown",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30), recorded(1, 40, 60, 41, 60)},
			want: "derived unknown 30-40 31-40",
		},
		{
			name: "same epoch, no number missing: unknown still, time is missing",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30), recorded(1, 40, 60, 31, 60)},
			want: "derived unknown 30-40",
		},
		{
			name: "declared beats derived",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30), recorded(2, 42, 60, 1, 18)},
			gaps: []vms.Gap{declared("g1", 30, 42)},
			want: "g1 camera_offline 30-42",
		},
		{
			name: "before an absence that nothing follows yet, too",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30)},
			gaps: []vms.Gap{declared("g1", 42, 60)},
			want: "derived agent_restarted 30-42; g1 camera_offline 42-60",
		},
		{
			name: "an absence that begins where the recording ends leaves nothing over",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30)},
			gaps: []vms.Gap{declared("g1", 30, 60)},
			want: "g1 camera_offline 30-60",
		},
		{
			name: "with recordings to follow, theirs is the word",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30)}, more: true,
			gaps: []vms.Gap{declared("g1", 42, 60)},
			want: "g1 camera_offline 42-60",
		},
		{
			name: "what a declared gap leaves over is derived",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30), recorded(2, 42, 60, 1, 18)},
			gaps: []vms.Gap{declared("g1", 30, 35)},
			want: "g1 camera_offline 30-35; derived agent_restarted 35-42",
		},
		{
			name: "recorded beats gap, and cuts it in two",
			recs: []vms.Recording{recorded(1, 10, 20, 1, 10)},
			gaps: []vms.Gap{declared("g1", 5, 25)},
			want: "g1 camera_offline 5-10; g1-2 camera_offline 20-25",
		},
		{
			name: "recorded revokes a gap wholly",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30)},
			gaps: []vms.Gap{declared("g1", 5, 25)},
		},
		{
			name: "gap beats pending",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30)},
			gaps: []vms.Gap{declared("g1", 40, 50)},
			held: []heldRange{holds(1, 20, 60)},
			want: "g1 camera_offline 40-50; pending 30-40; pending 50-60",
		},
		{
			name: "a hole that is pending is no gap",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30), recorded(1, 60, 90, 61, 90)},
			held: []heldRange{holds(1, 30, 50), holds(1, 50, 58)},
			want: "derived unknown 58-60 31-60; pending 30-58",
		},
		{
			name: "killed: what the old epoch has is pending, only the rest is lost",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30), recorded(2, 100, 130, 1, 30)},
			held: []heldRange{holds(1, 30, 60), holds(2, 130, 140)},
			want: "derived agent_restarted 60-100; pending 30-60; pending 130-140",
		},
		{
			name: "killed, and nothing of the new epoch recorded yet",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30)},
			held: []heldRange{holds(2, 100, 130), holds(1, 30, 60)},
			want: "derived agent_restarted 60-100; pending 30-60; pending 100-130",
		},
		{
			name: "killed twice before anything was recorded",
			held: []heldRange{holds(1, 0, 30), holds(2, 40, 50), holds(3, 50, 60), holds(4, 65, 70)},
			want: "derived agent_restarted 30-40; derived agent_restarted 60-65; pending 0-30; pending 40-60; pending 65-70",
		},
		{
			name: "inside an epoch nothing is told before it is known",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30)},
			held: []heldRange{holds(1, 40, 60), holds(1, 70, 80)},
			want: "pending 40-60; pending 70-80",
		},
		{
			name: "inside an epoch the hub's word comes later",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30), recorded(1, 40, 60, 41, 60)},
			gaps: []vms.Gap{declared("g1", 30, 40)},
			want: "g1 camera_offline 30-40",
		},
		{
			name:   "behind the page others count",
			window: span(0, 30),
			recs:   []vms.Recording{recorded(1, 0, 20, 1, 20), recorded(1, 30, 40, 31, 40)},
			held:   []heldRange{holds(1, 20, 30), holds(2, 100, 130)},
			more:   true,
			want:   "pending 20-30",
		},
		{
			name: "parts that share chunks are recorded once",
			recs: []vms.Recording{recorded(1, 0, 20, 1, 20), recorded(1, 10, 30, 11, 30), recorded(1, 30, 60, 31, 60)},
			held: []heldRange{holds(1, 5, 70)},
			want: "pending 60-70",
		},
		{
			name: "a stop is no gap, nor the seconds around it",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30), recorded(2, 110, 140, 1, 30)},
			idle: []vms.TimeRange{span(32, 100)},
		},
		{
			name: "a restart long after the start is",
			recs: []vms.Recording{recorded(1, 0, 30, 1, 30), recorded(2, 200, 230, 1, 30)},
			idle: []vms.TimeRange{span(32, 100)},
			want: "derived agent_restarted 115-200",
		},
		{
			name: "a restart soon after the start is one too",
			recs: []vms.Recording{recorded(1, 101, 104, 1, 3), recorded(2, 106, 130, 1, 24)},
			idle: []vms.TimeRange{span(32, 100)},
			want: "derived agent_restarted 104-106",
		},
		{
			name: "overlapping gaps are told once",
			gaps: []vms.Gap{declared("g2", 15, 40), declared("g1", 10, 30), declared("g3", 12, 20)},
			want: "g1 camera_offline 10-30; g2 camera_offline 30-40",
		},
		{
			name:   "all is cut at the window",
			window: span(20, 50),
			recs:   []vms.Recording{recorded(1, 0, 10, 1, 10), recorded(2, 30, 35, 1, 5), recorded(3, 70, 80, 1, 10)},
			gaps:   []vms.Gap{declared("g1", 40, 90)},
			want:   "derived agent_restarted 20-30; derived agent_restarted 35-40; g1 camera_offline 40-50",
		},
		{
			name: "a recording inside another makes no hole",
			recs: []vms.Recording{recorded(1, 0, 90, 1, 90), recorded(2, 10, 20, 1, 10), recorded(3, 90, 100, 1, 10)},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := tt.window
			if w == (vms.TimeRange{}) {
				w = span(0, 1000)
			}
			if got := show(timeline(w, tt.recs, !tt.more, tt.gaps, tt.idle, tt.held)); got != tt.want {
				t.Errorf("timeline = %q, want %q", got, tt.want)
			}
		})
	}
}

// Whatever hubs and workers say: between two recordings every second has
// exactly one place, and which one follows from the order recorded, gap, pending.
func TestTimelineCoversEverySecondOnce(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		const length = 120
		var recs []vms.Recording
		var gaps []vms.Gap
		var held []heldRange
		for s := 0; s < length; {
			d := 1 + rnd.IntN(10)
			recs = append(recs, recorded(vms.Epoch(1+rnd.IntN(2)), float64(s), float64(s+d), uint64(s+1), uint64(s+d)))
			s += d + rnd.IntN(12)
		}
		random := func() vms.TimeRange {
			s := rnd.IntN(length)
			return span(float64(s), float64(s+rnd.IntN(20)))
		}
		for i := range rnd.IntN(6) {
			gaps = append(gaps, vms.Gap{ID: vms.GapID(fmt.Sprint("g", i)), Cause: vms.CauseBufferFull, TimeRange: random()})
		}
		for range rnd.IntN(6) {
			held = append(held, heldRange{random(), vms.ChunkRange{Epoch: vms.Epoch(1 + rnd.IntN(3)), First: 1, Last: 1}})
		}
		w := vms.TimeRange{Start: at(0), End: recs[len(recs)-1].End}
		before := fmt.Sprint(recs, gaps, held)
		outGaps, pending := timeline(w, recs, true, gaps, nil, held)
		if after := fmt.Sprint(recs, gaps, held); after != before {
			t.Fatalf("seed %d: timeline changed what it was given", seed)
		}
		in := func(s int, r vms.TimeRange) bool {
			return r.Overlaps(vms.TimeRange{Start: at(float64(s)), End: at(float64(s) + 1)})
		}
		for s := range int(w.Duration().Seconds()) {
			want := "derived"
			for _, h := range held {
				if in(s, h.TimeRange) {
					want = "pending"
				}
			}
			for _, g := range gaps {
				if in(s, g.TimeRange) {
					want = "declared"
				}
			}
			for _, r := range recs {
				if in(s, vms.TimeRange{Start: r.Start, End: r.End}) {
					want = "recorded"
				}
			}
			var got []string
			for _, r := range recs {
				if in(s, vms.TimeRange{Start: r.Start, End: r.End}) {
					got = append(got, "recorded")
				}
			}
			for _, g := range outGaps {
				if in(s, g.TimeRange) {
					kind := "declared"
					if strings.HasPrefix(string(g.ID), "derived_") {
						kind = "derived"
					}
					got = append(got, kind)
				}
			}
			for _, p := range pending {
				if in(s, p) {
					got = append(got, "pending")
				}
			}
			if !reflect.DeepEqual(got, []string{want}) {
				t.Fatalf("seed %d: second %d is %v, want %s", seed, s, got, want)
			}
		}
	}
}
