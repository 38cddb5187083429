package spool

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// fate is what became of a chunk, as far as anybody was told.
type fate int

const (
	held fate = iota
	durable
	lost
)

// world is one spool, the camera that fills it, the worker that empties it and
// the NVR that hears of the gaps; and what each of them may rely on.
type world struct {
	t   *testing.T
	rnd *rand.Rand
	s   *Spool

	epoch  vms.Epoch
	seq    uint64
	initID uint32
	ended  bool
	all    map[vms.ChunkRange]*vms.Chunk // by range of one
	order  []vms.ChunkRange
	fates  map[vms.ChunkRange]fate

	// The worker: what this instance has, and the number that must come next.
	have vms.ChunkSet
	cur  *Cursor
	at   vms.Epoch
	next uint64

	declared map[vms.GapID]vms.Gap
	asked    []vms.GapID
}

func one(e vms.Epoch, seq uint64) vms.ChunkRange {
	return vms.ChunkRange{Epoch: e, First: seq, Last: seq}
}

func newWorld(t *testing.T, rnd *rand.Rand, s *Spool) *world {
	w := &world{t: t, rnd: rnd, s: s, all: map[vms.ChunkRange]*vms.Chunk{}, fates: map[vms.ChunkRange]fate{}, declared: map[vms.GapID]vms.Gap{}}
	w.restart()
	w.connect()
	return w
}

// restart begins another epoch.
func (w *world) restart() {
	w.epoch, w.seq, w.initID, w.ended = vms.Epoch(w.rnd.Uint64()|1), 0, 0, true
}

func (w *world) append() {
	w.seq++
	c := vms.Chunk{Epoch: w.epoch, Seq: w.seq, Payload: make([]byte, 100+w.rnd.IntN(900))}
	if w.ended || w.rnd.IntN(5) == 0 {
		c.Flags = vms.FlagKey
		if w.initID == 0 || w.rnd.IntN(8) == 0 {
			w.initID++
			w.s.PutInit(vms.Init{Epoch: w.epoch, ID: w.initID})
		}
	}
	w.ended = false
	c.Init = w.initID
	c.Start = time.Unix(1_800_000_000+int64(len(w.order)), 0).UTC()
	c.End = c.Start.Add(time.Second)
	k := one(c.Epoch, c.Seq)
	w.all[k], w.fates[k] = &c, held
	w.order = append(w.order, k)
	w.s.Append(c)
}

// connect is a new connection of the lane; fresh: to another instance.
func (w *world) connect() {
	if w.rnd.IntN(3) == 0 {
		w.have = vms.ChunkSet{}
	}
	w.cur, w.at, w.next = w.s.NewCursor(w.have.Ranges()), 0, 0
}

// pull takes what the cursor hands out and checks that it follows.
func (w *world) pull() {
	item, _ := w.cur.try()
	switch {
	case item.Chunk != nil:
		c := item.Chunk
		w.follow(c.Epoch, c.Seq, "chunk")
		if _, ok := w.s.Init(c.Epoch, c.Init); !ok {
			w.t.Errorf("chunk %d is handed out and its init %d is gone", c.Seq, c.Init)
		}
		if w.all[one(c.Epoch, c.Seq)].Start != c.Start {
			w.t.Errorf("chunk %d is another one than was appended", c.Seq)
		}
		w.have.Add(one(c.Epoch, c.Seq))
		w.at, w.next = c.Epoch, c.Seq+1
	case item.Gap != nil:
		r := item.Gap.Chunks
		if r.First > r.Last {
			w.t.Errorf("gap over no chunks: %s", r)
		}
		w.follow(r.Epoch, r.First, "gap")
		for seq := r.First; seq <= r.Last; seq++ {
			if w.s.holds(r.Epoch, seq) {
				w.t.Errorf("chunk %d is held, and the lane says that it will not come (%s)", seq, r)
			}
		}
		w.at, w.next = r.Epoch, r.Last+1
	case item.End != nil:
		if item.End.Epoch == w.at && item.End.Seq+1 != w.next {
			w.t.Errorf("end after %d, chunk %d was handed out last", item.End.Seq, w.next-1)
		}
	}
}

// follow checks that nothing was jumped over without a word.
func (w *world) follow(e vms.Epoch, seq uint64, what string) {
	want := w.next
	if e != w.at {
		want = 0 // the first of an epoch on this connection
		for _, r := range w.have.Ranges() {
			if r.Epoch == e && r.Last < seq {
				want = r.Last + 1
			}
		}
		if want == 0 {
			return // a worker that has nothing of it takes it from anywhere
		}
	}
	if seq != want {
		w.t.Errorf("%s at %d follows %d", what, seq, want-1)
	}
}

func (s *Spool) holds(e vms.Epoch, seq uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.entries, func(en entry) bool { return en.chunk != nil && en.chunk.Epoch == e && en.seq == seq })
}

// store makes a run of chunks that the worker has durable.
func (w *world) store() {
	ranges := w.have.Ranges()
	if len(ranges) == 0 {
		return
	}
	r := ranges[w.rnd.IntN(len(ranges))]
	n := r.Last - r.First + 1
	r.First += w.rnd.Uint64N(n)
	r.Last = r.First + w.rnd.Uint64N(r.Last-r.First+1)
	for seq := r.First; seq <= r.Last; seq++ {
		w.fates[one(r.Epoch, seq)] = durable
	}
	w.s.Durable([]vms.ChunkRange{r})
}

func (w *world) skip() {
	if len(w.order) == 0 {
		return
	}
	k := w.order[max(0, len(w.order)-1-w.rnd.IntN(20))]
	w.s.Skip(k.Epoch, k.First)
	if w.s.holds(k.Epoch, k.First) {
		w.t.Errorf("chunk %s is held after it was refused for ever", k)
	}
}

// report is the session: gaps go out, and are committed, or lost on the way.
func (w *world) report() {
	switch w.rnd.IntN(3) {
	case 0:
		w.s.Resend()
		w.asked = nil
	case 1:
		w.s.Committed(w.asked)
		w.asked = nil
	}
	for _, g := range w.s.Gaps(1 + w.rnd.IntN(4)) {
		if old, ok := w.declared[g.ID]; ok && (*old.Chunks != *g.Chunks || old.TimeRange != g.TimeRange) {
			w.t.Errorf("gap %s was %v and is %v: what was said must not change", g.ID, old, g)
		}
		w.declared[g.ID] = g
		w.asked = append(w.asked, g.ID)
	}
}

// settle checks that each chunk is held, durable or in a gap that was declared.
func (w *world) settle() {
	for {
		gaps := w.s.Gaps(wire.MaxGaps)
		for _, g := range gaps {
			w.declared[g.ID] = g
		}
		if len(gaps) == 0 {
			break
		}
	}
	var gone vms.ChunkSet
	for _, g := range w.declared {
		gone.Add(*g.Chunks)
		first, last := w.all[one(g.Chunks.Epoch, g.Chunks.First)], w.all[one(g.Chunks.Epoch, g.Chunks.Last)]
		if first == nil || last == nil || !g.Start.Equal(first.Start) || !g.End.Equal(last.End) {
			w.t.Errorf("gap %s covers %v to %v, which is not the time of its chunks %s", g.ID, g.Start, g.End, g.Chunks)
		}
	}
	for _, k := range w.order {
		inSpool, inGap := w.s.holds(k.Epoch, k.First), gone.Has(k.Epoch, k.First)
		switch {
		case inSpool && inGap:
			w.t.Errorf("chunk %s is held and declared missing", k)
		case !inSpool && !inGap && w.fates[k] != durable:
			w.t.Errorf("chunk %s is lost without a word", k)
		}
	}
	// Whoever connects now and pulls to the end has all that is held.
	w.connect()
	for range 3 * len(w.order) {
		w.pull()
	}
	for _, k := range w.order {
		if w.s.holds(k.Epoch, k.First) && !w.have.Has(k.Epoch, k.First) {
			w.t.Errorf("chunk %s is held and no cursor hands it out", k)
		}
	}
}

// TestSpoolKeepsItsPromises does random things to two spools that share a
// budget and compares each step with what was promised.
func TestSpoolKeepsItsPromises(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			b := NewBudget(int64(3_000 + rnd.IntN(40_000)))
			worlds := []*world{newWorld(t, rnd, b.NewSpool()), newWorld(t, rnd, b.NewSpool())}
			online := 1 + rnd.IntN(30)
			for range 800 {
				w := worlds[rnd.IntN(2)]
				switch n := rnd.IntN(100); {
				case n < 50:
					w.append()
					if u := b.Used(); u > b.Limit() {
						t.Fatalf("%d bytes held of a budget of %d", u, b.Limit())
					}
				case n < 50+online:
					w.pull()
				case n < 84:
					w.store()
				case n < 86:
					w.skip()
				case n < 92:
					w.connect()
				case n < 96:
					w.report()
				case n < 98 && w.seq > 0:
					w.s.End(w.epoch, w.seq, "test")
					w.ended = true
				case n == 99:
					if w.seq > 0 {
						w.s.End(w.epoch, w.seq, "test")
					}
					w.restart()
				}
				if t.Failed() {
					return
				}
			}
			var sum int64
			for _, w := range worlds {
				w.settle()
				sum += w.s.Stats().Bytes
			}
			if sum != b.Used() {
				t.Errorf("the spools hold %d bytes, the budget counts %d", sum, b.Used())
			}
		})
	}
}
