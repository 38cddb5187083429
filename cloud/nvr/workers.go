package nvr

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// rivalAfter is for how long an instance that was heard keeps another one from
	// taking its place: two heartbeats. What was killed is not heard any more; two
	// processes with one id would take the streams from each other.
	rivalAfter = 2 * time.Second
	// forgetWorker is how long a dead worker stays on the list.
	forgetWorker = 10 * time.Minute
	// maxMissed bounds the revoked sessions that a worker whose line broke is
	// told of when it comes back.
	maxMissed = 10_000
)

// WorkerState is what the NVR does with a worker.
type WorkerState string

// The states of a worker.
const (
	// WorkerUp takes streams.
	WorkerUp WorkerState = "up"
	// WorkerDraining takes none, and its own are moved away.
	WorkerDraining WorkerState = "draining"
	// WorkerLost is not heard. It takes none, and loses its own when it stays away.
	WorkerLost WorkerState = "lost"
)

// WorkerStatus is a worker as the NVR knows it.
type WorkerStatus struct {
	vms.WorkerInfo
	vms.WorkerLoad // as it said last
	// Assigned is how many streams are assigned to it.
	Assigned int
	// Since is when this instance came up, Seen when it was heard last.
	Since, Seen time.Time
	State       WorkerState
}

// workerState is what is known of a worker. NVR.mu guards it.
type workerState struct {
	info     vms.WorkerInfo
	link     WorkerLink // nil when it broke
	load     vms.WorkerLoad
	since    time.Time
	seen     time.Time
	lost     time.Time // since when it has no link, or was not heard; zero: it is there
	dead     bool      // it was lost for so long that its streams were taken away
	draining bool

	seats map[*liveSession]struct{} // the sessions that are assigned to it
	// bytes is load.BytesPerSecond, evened out, and told the number of seats that
	// it tells of, evened out alike: streams that were just given to it bring
	// nothing yet.
	bytes, told float64
	// quota is how many streams it may still be rid of now, while it drains, and
	// pace how many more each second.
	quota, pace float64

	// What it has to hear when its link is back.
	missed []vms.SID
	moved  map[vms.ChannelID]struct{}
}

func (w *workerState) state() WorkerState {
	switch {
	case !w.lost.IsZero():
		return WorkerLost
	case w.draining:
		return WorkerDraining
	}
	return WorkerUp
}

// full reports whether a worker wants no more streams.
func (w *workerState) full() bool {
	c := w.info.Capacity
	return w.load.Overloaded || c.Streams > 0 && len(w.seats) >= c.Streams || c.BytesPerSecond > 0 && int64(w.bytes) >= c.BytesPerSecond
}

// WorkerUp notes that a worker is there, over link. An older link of the same
// instance is replaced; another instance of the same worker takes the place of
// the one before, whose streams it gets. vms.ErrConflict: that one is there
// still, so that two processes have one id. vms.ErrInvalid: w lacks something.
func (n *NVR) WorkerUp(w vms.WorkerInfo, link WorkerLink) error {
	if err := validWorker(w, link); err != nil {
		return err
	}
	now := n.Clock()
	n.mu.Lock()
	st := n.workers[w.ID]
	if st != nil && st.info.Instance != w.Instance && st.lost.IsZero() && now.Sub(st.seen) < rivalAfter {
		n.mu.Unlock()
		return fmt.Errorf("%w: another process has the worker id %s", vms.ErrConflict, w.ID)
	}
	var told []func()
	switch {
	case st == nil:
		st = &workerState{seats: make(map[*liveSession]struct{}), since: now}
		n.workers[w.ID] = st
	case st.info.Instance == w.Instance:
		if st.dead {
			told = n.announce(n.lanesAt(st), true)
		}
	default:
		told = n.succeed(st, w, now)
	}
	was := st.state()
	fresh := st.info != w
	old, missed, moved := st.link, st.missed, st.moved
	st.info, st.link, st.seen, st.lost, st.dead, st.missed, st.moved = w, link, now, time.Time{}, false, nil, nil
	drain := st.draining
	n.mu.Unlock()
	if old != nil && old != link {
		old.Replace()
	}
	if len(missed) > 0 {
		link.Revoke(missed)
	}
	for ch := range moved {
		link.Moved(ch, n.nowAt(ch))
	}
	if drain {
		link.Drain()
	}
	for _, f := range told {
		f()
	}
	switch {
	case fresh:
		n.Log.Info("worker up", "worker", w.ID, "instance", w.Instance, "zone", w.Zone, "version", w.Version)
	case was == WorkerLost:
		n.Log.Info("worker is back", "worker", w.ID, "instance", w.Instance)
	}
	n.kick()
	return nil
}

// validWorker checks what a worker says of itself.
func validWorker(w vms.WorkerInfo, link WorkerLink) error {
	bad := func(what string) error { return fmt.Errorf("worker %q: %w: %s", w.ID, vms.ErrInvalid, what) }
	isWS := func(s string) bool {
		u, err := url.Parse(s)
		return err == nil && u.Host != "" && (u.Scheme == "ws" || u.Scheme == "wss") && len(s) <= 2000
	}
	switch {
	case link == nil:
		return bad("it has no link")
	case !vms.ValidID(w.ID):
		return bad("its id must be 1 to 64 of a-z, 0-9, - and _")
	case !vms.ValidID(w.Instance):
		return bad("it has no instance")
	case !isWS(w.PushURL):
		return bad("its push URL must begin with ws:// or wss://")
	case w.LiveURL != "" && !isWS(w.LiveURL):
		return bad("its live URL must begin with ws:// or wss://")
	case w.Zone != "" && !vms.ValidID(w.Zone):
		return bad("its zone must be of a-z, 0-9, - and _")
	case w.Capacity.Streams < 0 || w.Capacity.BytesPerSecond < 0 || len(w.Version) > 64:
		return bad("its capacity or version cannot be")
	}
	return nil
}

// succeed makes st ready for a new instance, which gets the streams of the one
// before: it has what that one left on its disk. n.mu is held; what it returns
// is to be called without.
func (n *NVR) succeed(st *workerState, w vms.WorkerInfo, now time.Time) []func() {
	for ls := range st.seats {
		n.seat(ls, nil)
		n.wait(ls, order{keep: w.Instance, why: whyLost})
	}
	var told []func()
	if !st.dead {
		told = n.announce(n.lanesAt(st), false)
	}
	n.dropLanes(st)
	*st = workerState{seats: st.seats, since: now, link: st.link}
	return told
}

// WorkerAlive notes a heartbeat. A worker says itself when it drains.
func (n *NVR) WorkerAlive(id vms.WorkerID, inst vms.Instance, l vms.WorkerLoad) {
	now := n.Clock()
	n.mu.Lock()
	st := n.workers[id]
	if st == nil || st.info.Instance != inst {
		n.mu.Unlock()
		return
	}
	st.even(l, now.Sub(st.seen))
	st.load, st.seen = l, now
	back := !st.lost.IsZero() && st.link != nil
	var told []func()
	if back {
		if st.dead {
			told = n.announce(n.lanesAt(st), true)
		}
		st.lost, st.dead = time.Time{}, false
	}
	drains := l.Draining && !st.draining
	if drains {
		st.drain()
	}
	n.mu.Unlock()
	for _, f := range told {
		f()
	}
	if back {
		n.Log.Info("worker is heard again", "worker", id, "instance", inst)
	}
	if drains {
		n.Log.Info("worker drains, as it says", "worker", id, "instance", inst)
	}
	if back || drains {
		n.kick()
	}
}

// WorkerDown notes that a worker's link broke. It may come back within
// Config.WorkerGrace; after that it is dead.
func (n *NVR) WorkerDown(id vms.WorkerID, inst vms.Instance, link WorkerLink) {
	n.mu.Lock()
	st := n.workers[id]
	if st == nil || st.info.Instance != inst || st.link != link {
		n.mu.Unlock()
		return
	}
	st.link = nil
	if st.lost.IsZero() {
		st.lost = n.Clock()
	}
	var told []func()
	gone := st.draining && len(st.seats) == 0
	if gone { // as it was to be
		told = n.forgetWorker(st)
	}
	n.mu.Unlock()
	for _, f := range told {
		f()
	}
	if gone {
		n.Log.Info("worker has left", "worker", id, "instance", inst)
	} else {
		n.Log.Warn("lost the line to a worker", "worker", id, "instance", inst)
	}
}

// forgetWorker takes a worker off the list. n.mu is held; what it returns is to
// be called without.
func (n *NVR) forgetWorker(st *workerState) []func() {
	var told []func()
	if !st.dead {
		told = n.announce(n.lanesAt(st), false)
	}
	n.dropLanes(st)
	delete(n.workers, st.info.ID)
	return told
}

// DrainWorker gives a worker no streams any more, for as long as it lives, and
// moves those that it has to others as soon as there are any. vms.ErrNotFound.
func (n *NVR) DrainWorker(_ context.Context, id vms.WorkerID) error {
	n.mu.Lock()
	st := n.workers[id]
	if st == nil {
		n.mu.Unlock()
		return fmt.Errorf("worker %s: %w", id, vms.ErrNotFound)
	}
	link, instance, news := st.link, st.info.Instance, !st.draining
	if news {
		st.drain()
	}
	n.mu.Unlock()
	if link != nil {
		link.Drain()
	}
	if news {
		n.Log.Info("worker drains, as somebody asked for", "worker", id, "instance", instance)
	}
	n.kick()
	return nil
}

// Workers lists the workers by id, with those that were lost a short while ago.
func (n *NVR) Workers() []WorkerStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]WorkerStatus, 0, len(n.workers))
	for _, w := range n.workers {
		out = append(out, WorkerStatus{
			WorkerInfo: w.info, WorkerLoad: w.load, Assigned: len(w.seats),
			Since: w.since.UTC(), Seen: w.seen.UTC(), State: w.state(),
		})
	}
	slices.SortFunc(out, func(a, b WorkerStatus) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// workerOf returns the worker with this instance, or nil. n.mu is held.
func (n *NVR) workerOf(i vms.Instance) *workerState {
	for _, w := range n.workers {
		if w.info.Instance == i {
			return w
		}
	}
	return nil
}

// revokeAtWorkers has the streams of sessions cut off, at every worker: nobody
// knows for sure who has a lane.
func (n *NVR) revokeAtWorkers(sids []vms.SID) {
	if len(sids) == 0 {
		return
	}
	var links []WorkerLink
	n.mu.Lock()
	for _, w := range n.workers {
		if w.link != nil {
			links = append(links, w.link)
			continue
		}
		w.missed = append(w.missed, sids...)
		w.missed = w.missed[max(0, len(w.missed)-maxMissed):]
	}
	n.mu.Unlock()
	for _, l := range links {
		l.Revoke(sids)
	}
}
