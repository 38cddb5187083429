package nvr

import (
	"context"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// whyLost is what an agent hears when there is nobody to hand over from.
const whyLost = wire.WhyLost

// leastDrain is how many streams a second a worker that drains is rid of at least.
const leastDrain = 10

// move is a stream that is to go to another worker.
type move struct {
	ls    *liveSession
	link  StreamLink
	sid   vms.SID
	gen   vms.Generation
	raise bool // an assignment of gen was sent
	order order
}

// kick has the workers tended now.
func (n *NVR) kick() {
	select {
	case n.kicked <- struct{}{}:
	default:
	}
}

// tendLoop tends the workers until ctx ends: ten times in the shortest time that decides
// anything, and whenever something has changed.
func (n *NVR) tendLoop(ctx context.Context) {
	t := time.NewTicker(max(min(n.WorkerGrace, n.WorkerSilence)/10, time.Millisecond))
	defer t.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-n.kicked:
		}
		err := n.TendWorkers(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failed: // the next turn tries again
			n.Log.Error("streams wait for a worker: they cannot be assigned", "err", err)
		case err == nil && failed:
			n.Log.Info("streams are assigned again")
		}
		failed = err != nil
	}
}

// TendWorkers is one turn of what Run does for workers: it notices the dead,
// gives streams that wait a worker, moves those of a worker that drains, and now
// and then some from the fullest to the emptiest.
func (n *NVR) TendWorkers(ctx context.Context) error {
	now := n.Clock()
	n.mu.Lock()
	passed := now.Sub(n.tended)
	if n.tended.IsZero() {
		passed = 0
	}
	n.tended = now
	told := n.judge(now, passed)
	moves := n.assignable()
	moves = append(moves, n.drains(passed)...)
	if now.Sub(n.balanced) >= n.RebalanceEvery {
		n.balanced = now
		moves = append(moves, n.rebalance(now)...)
	}
	n.mu.Unlock()
	for _, f := range told {
		f()
	}
	for len(moves) > 0 {
		batch := moves[:min(len(moves), maxRaise)]
		if err := n.moveAll(ctx, batch); err != nil {
			return err
		}
		moves = moves[len(batch):]
	}
	return nil
}

// judge finds out which workers are dead. n.mu is held; what it returns is to
// be called without.
func (n *NVR) judge(now time.Time, passed time.Duration) (told []func()) {
	if passed > n.WorkerSilence/2 { // we were stopped ourselves: nobody could be heard
		for _, w := range n.workers {
			w.seen = w.seen.Add(passed)
			if !w.lost.IsZero() && !w.dead {
				w.lost = w.lost.Add(passed)
			}
		}
	}
	for _, w := range n.workers {
		silent := w.link != nil && now.Sub(w.seen) >= n.WorkerSilence
		if silent && w.lost.IsZero() {
			w.lost = now
		}
		switch {
		case w.lost.IsZero():
		case w.dead && now.Sub(w.lost) >= forgetWorker && w.link == nil:
			told = append(told, n.forgetWorker(w)...)
		case !w.dead && (silent || now.Sub(w.lost) >= n.WorkerGrace):
			told = append(told, n.bury(w)...)
		}
	}
	return told
}

// bury takes the streams of a dead worker away. n.mu is held; what it returns is
// to be called without.
func (n *NVR) bury(w *workerState) []func() {
	w.dead = true
	streams := len(w.seats)
	for ls := range w.seats {
		n.seat(ls, nil)
		n.wait(ls, order{why: whyLost})
	}
	id, instance, silent := w.info.ID, w.info.Instance, w.link != nil
	return append(n.announce(n.lanesAt(w), false), func() {
		n.Log.Error("a worker is dead, its streams go to others", "worker", id, "instance", instance, "silent", silent, "streams", streams)
	})
}

// assignable lists the sessions without a worker for which there is one. n.mu is held.
func (n *NVR) assignable() (moves []move) {
	for ls := range n.waiting {
		if w, _ := n.choose(ls, ls.order); w != nil {
			moves = append(moves, ls.move(ls.order))
		}
	}
	return moves
}

// drain begins to move the streams of w away. n.mu is held.
func (w *workerState) drain() { w.draining, w.quota, w.pace = true, 0, 0 }

// drains lists the streams of draining workers that are to go now: all within
// Config.DrainOver, so that not everybody dials the others in one moment,
// and each is handed over where its next recording begins. n.mu is held.
func (n *NVR) drains(passed time.Duration) (moves []move) {
	for _, w := range n.workers {
		if w.state() != WorkerDraining || len(w.seats) == 0 {
			continue
		}
		if w.pace == 0 {
			w.pace = max(leastDrain, float64(len(w.seats))/n.DrainOver.Seconds())
			w.quota = 1
		}
		w.quota = min(w.quota+w.pace*passed.Seconds(), w.pace) // what was missed is not made up for at once
		o := order{from: w, why: wire.WhyDrain}
		for ls := range w.seats {
			if w.quota < 1 {
				break
			}
			if to, _ := n.choose(ls, o); to == nil {
				w.quota = 1
				break // nobody else is there
			}
			moves = append(moves, ls.move(o))
			w.quota--
		}
	}
	return moves
}

// moveAll gives sessions a worker, and tells their agents. An error is the
// store's: those that were not moved are found again.
func (n *NVR) moveAll(ctx context.Context, moves []move) error {
	var raise []vms.SID
	for _, m := range moves {
		if m.raise {
			raise = append(raise, m.sid)
		}
	}
	var gens []vms.Generation
	if len(raise) > 0 {
		within, cancel := context.WithTimeout(ctx, raiseWithin)
		defer cancel()
		var err error
		if gens, err = n.Store.NextGenerations(within, raise); err != nil {
			return err
		}
	}
	for _, m := range moves {
		if m.raise {
			m.gen, gens = gens[0], gens[1:]
			if m.gen == 0 {
				continue // revoked: its line is told of it in this moment
			}
		}
		a, err := n.place(m.ls, m.link, m.gen, m.order)
		switch {
		case err != nil: // a newer connection or order was faster
			n.Log.Debug("a stream is not moved", "sid", m.sid, "why", m.order.why, "err", err)
		case a != nil:
			m.link.Send(a)
		}
	}
	return nil
}
