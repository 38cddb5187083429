package worker_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// twoLanes is an agent with both lanes: everything held before the boundary is
// brought by backfill, the rest by live.
type twoLanes struct {
	hub
	back     *agent
	backHave vms.ChunkSet
	newest   bool // backfill goes from the newest recording to the oldest
	captured int
	boundary int // index of the first chunk of live's region
	sent     []bool
}

// open connects both lanes to r.
func (h *twoLanes) open(r *rig, jump bool) {
	h.connect(r)
	h.next = h.boundary
	if jump {
		for _, c := range h.cs[max(0, h.captured-2):h.captured] {
			h.a.chunks(preview(c))
		}
		for h.captured%10 != 0 {
			h.captured++
		}
		h.boundary, h.next = h.captured, h.captured
	}
	if h.back != nil {
		h.freed(h.back)
		h.back.hangUp()
	}
	h.back = nil
	a, _, err := r.dial(r.ticket("ch", h.gen), wire.PushProtocol)
	if err != nil {
		h.t.Fatal(err)
	}
	a.send(&wire.Hello{Agent: "test", Lane: vms.LaneBackfill, Epochs: []vms.Epoch{1}})
	w, ok := (<-a.in).(*wire.Welcome)
	if !ok {
		a.hangUp() // it comes again later
		return
	}
	a.init(1, 1)
	h.back, h.backHave, h.sent = a, vms.ChunkSet{}, make([]bool, len(h.cs))
	for _, x := range w.Have {
		h.backHave.Add(x)
	}
}

func (h *twoLanes) freed(a *agent) {
	a.take()
	for _, x := range a.durable.Ranges() {
		h.durable.Add(x)
	}
}

// order lists the chunks of backfill's region as it brings them.
func (h *twoLanes) order() (is []int) {
	var runs [][]int
	for i := range h.boundary {
		if i%10 == 0 {
			runs = append(runs, nil)
		}
		runs[len(runs)-1] = append(runs[len(runs)-1], i)
	}
	if h.newest {
		slices.Reverse(runs)
	}
	return slices.Concat(runs...)
}

// fill sends up to n chunks on the backfill lane.
func (h *twoLanes) fill(n int) {
	if h.back == nil {
		return
	}
	pos := uint64(0)
	for _, i := range h.order() {
		c := h.cs[i]
		if h.sent[i] || h.backHave.Has(1, c.Seq) {
			pos = c.Seq
			continue
		}
		if h.durable.Has(1, c.Seq) || n == 0 {
			continue
		}
		if hole := span(1, pos+1, c.Seq-1); pos > 0 && hole.First <= hole.Last {
			if data, err := wire.EncodePush(&wire.GapMessage{ID: "durable", Chunks: hole, Cause: wire.CauseDurable}); err == nil {
				_ = h.back.c.Write(h.t.Context(), 1, data)
			}
		}
		h.back.chunks(c)
		h.sent[i], pos = true, c.Seq
		n--
	}
	synctest.Wait()
}

// TestTwoLanesAtRandom: live jumps ahead time and again, backfill follows in
// either order, both lose their links and change workers, which may be killed and
// start again, parts are made.
func TestTwoLanesAtRandom(t *testing.T) {
	cs := tape(t, 1, 1, 130, 200)
	want := alone(t, cs)
	runs := 40
	if testing.Short() {
		runs = 10
	}
	seed := rand.Uint64()
	if v, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed, runs = v, 1
	}
	for i := range runs {
		t.Run(fmt.Sprintf("seed %d", seed+uint64(i)), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed+uint64(i), 2))
			inBubble(t, func(r *rig) {
				workers := []*rig{r}
				h := &twoLanes{hub: hub{t: r.t, cs: cs}, newest: rng.IntN(2) == 0}
				h.open(r, false)
				for range 25 {
					switch rng.IntN(9) {
					case 0, 1:
						h.captured = min(h.captured+rng.IntN(8), 110)
						h.push(h.captured)
					case 2, 3:
						h.fill(rng.IntN(25))
					case 4:
						h.pressure()
					case 5: // an outage; short or long
						time.Sleep(time.Duration(rng.IntN(40)) * time.Second)
						h.captured = min(h.captured+rng.IntN(25), 110)
						h.open(h.r, rng.IntN(2) == 0 && h.captured <= 110)
						h.push(h.captured)
					case 6:
						if rng.IntN(2) == 0 {
							workers = append(workers, r.another())
						}
						h.open(workers[rng.IntN(len(workers))], rng.IntN(3) == 0)
						h.push(h.captured)
					case 7:
						h.learn()
					case 8:
						i := rng.IntN(len(workers))
						old := workers[i]
						workers[i] = old.restart(rng.IntN(2) == 0, time.Duration(rng.IntN(3)*rng.IntN(90))*time.Second)
						if h.r == old {
							h.open(workers[i], rng.IntN(2) == 0)
							h.push(h.captured)
						}
					}
				}
				h.captured = len(cs)
				for range 30 {
					h.open(workers[len(workers)-1], false)
					h.push(h.captured)
					h.fill(len(cs))
					h.tell(stopped(1, uint64(len(cs))))
					time.Sleep(100 * time.Second)
					h.take()
					if h.back != nil {
						h.freed(h.back)
					}
					if h.durable.Covers(span(1, 1, uint64(len(cs)))) {
						break
					}
				}
				if !h.durable.Covers(span(1, 1, uint64(len(cs)))) {
					r.t.Errorf("durable %v", h.durable.Ranges())
				}
				h.leave()
				if h.back != nil {
					h.back.hangUp()
				}
				defer workers[0].shutdown()
				for _, w := range workers[1:] {
					w.shutdown()
				}
				// What was complete only in parts is left to the janitor.
				r.nvr.set(func(n *nvr) { n.gone = true })
				time.Sleep(time.Hour)
				r.covered(want)
			})
		})
	}
}

// covered checks that the index has every chunk once, in objects that hold them
// as they came.
func (r *rig) covered(want map[string][]byte) {
	r.t.Helper()
	r.nvr.mu.Lock()
	defer r.nvr.mu.Unlock()
	var all vms.ChunkSet
	whole := 0
	for k, row := range r.nvr.rows {
		if row.Provisional() {
			r.t.Errorf("%s has no whole", k)
		}
		for _, x := range all.Ranges() {
			if x.First <= row.Chunks.Last && row.Chunks.First <= x.Last {
				// The set merges what touches: look for real overlaps.
				for k2, o := range r.nvr.rows {
					if k2 != k && o.Chunks.First <= row.Chunks.Last && row.Chunks.First <= o.Chunks.Last {
						r.t.Errorf("%s and %s overlap", row.Chunks, o.Chunks)
					}
				}
			}
		}
		all.Add(row.Chunks)
		if want[k] != nil && slices.Equal(r.store.bodies[k], want[k]) {
			whole++
		}
	}
	if !all.Covers(span(1, 1, 130)) || all.Len() != 1 {
		r.t.Errorf("the index has %v", all.Ranges())
	}
	r.t.Logf("%d of %d recordings whole", whole, len(want))
	if whole != len(want) {
		r.t.Errorf("only %d of %d recordings are whole", whole, len(want))
	}
}
