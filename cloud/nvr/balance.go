package nvr

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// evenOut is the time over which byte rates are evened out. A stream that is
	// moved brings its bytes with its next recording, half a minute later.
	evenOut = 30 * time.Second
	// tolerated is by how much of the mean the fullest worker may have more than the
	// emptiest before streams are moved; one stream is always tolerated.
	tolerated = 0.1
	// roomy is to what share of its capacity a worker should be used, so that the
	// streams of one that dies find room.
	roomy = 0.7
	// slow is a durable lag that says that a worker does not keep up: more than two recordings.
	slow = time.Minute
)

// order is what is wanted of the worker that a session gets.
type order struct {
	// keep takes the stream already: it goes on there if that can be.
	keep vms.Instance
	// avoid are no good, the last of them least of all.
	avoid [2]vms.Instance
	// from loses the stream, if it has it still and there is another. to: to that one only.
	from, to *workerState
	why      string
}

// choose returns the worker for a session, and what its agent hears. Nil: there is
// none, or its own may come back in a moment. n.mu is held.
func (n *NVR) choose(ls *liveSession, o order) (w *workerState, why string) {
	if o.to != nil {
		if o.to.state() != WorkerUp || o.to.full() {
			return nil, o.why
		}
		return o.to, o.why
	}
	if o.keep == "" {
		return n.best(ls, o), o.why
	}
	switch own := n.workerOf(o.keep); {
	case own == nil && n.Clock().Sub(n.started) < n.WorkerSettle, own != nil && own.state() == WorkerLost && !own.dead:
		return nil, o.why
	case own == nil || own.dead:
		return n.best(ls, o), wire.WhyLost
	case own.state() == WorkerDraining:
		if w := n.best(ls, o); w != nil {
			return w, wire.WhyDrain
		}
		return own, o.why
	default:
		return own, o.why
	}
}

// best chooses the worker with the least load, one of the hub's zone if that is
// not full, a full one only if there is no other. n.mu is held.
func (n *NVR) best(ls *liveSession, o order) *workerState {
	s := n.scale()
	var best *workerState
	var rank [3]int
	var load float64
	for _, w := range n.workers {
		if w.state() != WorkerUp || w == o.from {
			continue
		}
		var r [3]int
		r[0] = slices.Index(o.avoid[:], w.info.Instance) + 1
		if w.full() {
			r[1] = 1
		}
		if ls.Zone != "" && ls.Zone != w.info.Zone {
			r[2] = 1
		}
		l := s.load(w) + s.one(w)
		if best == nil || cmp.Or(slices.Compare(r[:], rank[:]), cmp.Compare(l, load), cmp.Compare(w.info.ID, best.info.ID)) < 0 {
			best, rank, load = w, r, l
		}
	}
	return best
}

// scale is by what the loads of workers are compared.
type scale struct {
	streams, bytes float64 // mean capacity of those that say one; 0: none does
	perStream      float64 // mean bytes per second; 0: nothing comes
}

// scale reads it off the workers that are there. n.mu is held.
func (n *NVR) scale() scale {
	var s scale
	var bytes, told float64
	var withStreams, withBytes int
	for _, w := range n.workers {
		if w.state() == WorkerLost {
			continue
		}
		bytes, told = bytes+w.bytes, told+w.told
		if c := w.info.Capacity; w.state() == WorkerUp {
			if c.Streams > 0 {
				s.streams += float64(c.Streams)
				withStreams++
			}
			if c.BytesPerSecond > 0 {
				s.bytes += float64(c.BytesPerSecond)
				withBytes++
			}
		}
	}
	s.streams /= float64(max(withStreams, 1))
	s.bytes /= float64(max(withBytes, 1))
	if told >= 1 {
		s.perStream = bytes / told
	}
	return s
}

// sizes are the capacities of a worker in units of the mean. One that it does not
// say is like the other; of a worker that says none, the mean.
func (s scale) sizes(w *workerState) (streams, bytes float64) {
	c := w.info.Capacity
	if c.Streams > 0 {
		streams = float64(c.Streams) / s.streams
	}
	if c.BytesPerSecond > 0 {
		bytes = float64(c.BytesPerSecond) / s.bytes
	}
	return cmp.Or(streams, bytes, 1), cmp.Or(bytes, streams, 1)
}

// load is how much a worker has to do, in streams of the mean worker: half by
// the number of its streams, half by what they bring, each for its capacity.
func (s scale) load(w *workerState) float64 {
	streams := float64(len(w.seats))
	equal := streams
	if s.perStream > 0 {
		equal = max(w.bytes/s.perStream+streams-w.told, 0)
	}
	sizeS, sizeB := s.sizes(w)
	return streams/sizeS/2 + equal/sizeB/2
}

// one is what a stream more or less is to a worker.
func (s scale) one(w *workerState) float64 {
	sizeS, sizeB := s.sizes(w)
	return 1/sizeS/2 + 1/sizeB/2
}

// even takes a heartbeat's byte rate, some time after the one before.
func (w *workerState) even(l vms.WorkerLoad, since time.Duration) {
	share := 1 - math.Exp(-since.Seconds()/evenOut.Seconds())
	w.bytes += (float64(l.BytesPerSecond) - w.bytes) * share
	w.told += (float64(len(w.seats)) - w.told) * share
}

// rebalance lists the streams that are to be moved so that workers have alike:
// first those that are not in the zone of their hub, then from the fullest to the
// emptiest. n.mu is held.
func (n *NVR) rebalance(now time.Time) []move {
	p := plan{n: n, now: now, scale: n.scale(), loads: make(map[*workerState]float64), going: make(map[*liveSession]bool)}
	var sum float64
	for _, w := range n.workers {
		if w.state() == WorkerUp {
			p.workers = append(p.workers, w)
			p.loads[w] = p.scale.load(w)
			sum += p.loads[w]
		}
	}
	if len(p.workers) < 2 {
		return nil
	}
	limit := max(tolerated*sum/float64(len(p.workers)), 1)
	p.home()
	for len(p.moves) < n.RebalanceBatch && p.level(limit) {
	}
	return p.moves
}

// plan is moves that are not made yet, and the loads after them.
type plan struct {
	n       *NVR
	now     time.Time
	scale   scale
	workers []*workerState
	loads   map[*workerState]float64
	going   map[*liveSession]bool
	moves   []move
}

// sort puts the fullest first.
func (p *plan) sort() {
	slices.SortFunc(p.workers, func(a, b *workerState) int {
		return cmp.Or(cmp.Compare(p.loads[b], p.loads[a]), cmp.Compare(a.info.ID, b.info.ID))
	})
}

func (p *plan) add(ls *liveSession, from, to *workerState) {
	p.going[ls] = true
	p.loads[from] -= p.scale.one(from)
	p.loads[to] += p.scale.one(to)
	p.moves = append(p.moves, ls.move(order{from: from, to: to, why: wire.WhyRebalance}))
}

// rests reports whether a stream is to stay where it is for now.
func (p *plan) rests(ls *liveSession) bool {
	return p.going[ls] || !ls.moved.IsZero() && p.now.Sub(ls.moved) < p.n.RebalanceRest
}

// home moves streams to the zone of their hub, where that has room again.
func (p *plan) home() {
	for _, from := range p.workers {
		for ls := range from.seats {
			if len(p.moves) == p.n.RebalanceBatch {
				return
			}
			if ls.Zone == "" || ls.Zone == from.info.Zone || p.rests(ls) {
				continue
			}
			var to *workerState
			for _, w := range p.workers {
				if w.info.Zone == ls.Zone && !w.full() && (to == nil || p.loads[w] < p.loads[to]) {
					to = w
				}
			}
			if to != nil {
				p.add(ls, from, to)
			}
		}
	}
}

// level moves one stream from the fullest worker that has one to give to the
// emptiest that may take it, and reports whether there was one.
func (p *plan) level(limit float64) bool {
	p.sort()
	for _, from := range p.workers {
		for _, to := range slices.Backward(p.workers) {
			if p.loads[from]-p.loads[to] <= limit {
				break
			}
			if to.full() {
				continue
			}
			for ls := range from.seats {
				if !p.rests(ls) && (ls.Zone == "" || ls.Zone != from.info.Zone || ls.Zone == to.info.Zone) {
					p.add(ls, from, to)
					return true
				}
			}
		}
	}
	return false
}

// WorkersWanted is how many workers there should be, for whoever starts and
// stops them: such that streams, bytes and tmpfs fill seven tenths of what those
// that are up have on the average, and one or some more while some do not keep up.
// If none keeps up, it is the object store, and more workers would not help.
func (n *NVR) WorkersWanted() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.scale()
	streams, bytes := float64(len(n.waiting)), 0.0
	var used, limit float64
	up, behind := 0, 0
	for _, w := range n.workers {
		streams += float64(len(w.seats))
		if w.state() == WorkerLost {
			continue
		}
		bytes += w.bytes
		used += float64(w.load.TmpfsUsed)
		if w.state() != WorkerUp {
			continue
		}
		up++
		limit += float64(w.load.TmpfsLimit)
		if w.load.Overloaded || w.load.Lag > slow {
			behind++
		}
	}
	want := 1
	for _, of := range [][2]float64{{streams, s.streams}, {bytes, s.bytes}, {used, limit / float64(max(up, 1))}} {
		if of[1] > 0 {
			want = max(want, int(math.Ceil(of[0]/of[1]/roomy)))
		}
	}
	if behind > 0 && (behind < up || up == 1) {
		want = max(want, up+(behind+1)/2)
	}
	return want
}
