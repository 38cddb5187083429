package nvr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// errOvertaken says that a newer connection or assignment is there.
var errOvertaken = fmt.Errorf("%w: a newer connection or assignment is there", vms.ErrConflict)

// fresh is for how long an agent that complains of a worker may not have heard of
// the one that it has since.
const fresh = 2 * time.Second

// Assign begins a session over link: it fences whatever connection this
// session had, notes what the hub holds, and says where to push. Nil without
// an error means that there is no worker for it now; the assignment follows over
// link when there is. A worker instance that the agent pushes to already is kept
// as long as it is up. A *Refusal means the session ended meanwhile.
func (n *NVR) Assign(ctx context.Context, s Session, hello *wire.SessionHello, link StreamLink) (*wire.Assign, error) {
	var err error
	if s.Generation, err = n.raise(ctx, s.SID); err != nil {
		return nil, err
	}
	ls, err := n.attach(s, hello, link)
	if err != nil {
		return nil, err
	}
	durable, err := n.durable(ctx, s.Channel, hello.Holding)
	if err != nil {
		return nil, err
	}
	a, err := n.place(ls, link, s.Generation, order{keep: hello.Worker, why: wire.WhyStart})
	if err != nil {
		return nil, err
	}
	switch {
	case a != nil:
		a.Durable = durable
	case len(durable) > 0:
		link.Send(&wire.Durable{Ranges: durable})
	}
	return a, nil
}

// WantWorker answers an agent whose worker is no good. Nil as in Assign.
func (n *NVR) WantWorker(ctx context.Context, s Session, m *wire.WantWorker, link StreamLink) (*wire.Assign, error) {
	now := n.now()
	n.mu.Lock()
	ls := n.sessions[s.SID]
	if ls == nil || ls.link != link { // it must not fence the one that replaced it
		n.mu.Unlock()
		return nil, fmt.Errorf("session %s: %w: a newer connection is there", s.SID, vms.ErrConflict)
	}
	o := order{avoid: [2]vms.Instance{m.Instance}, why: wire.WhyRequested}
	if w := ls.at; w != nil && (m.Instance == "" || now.Sub(ls.ticketed) >= fresh) {
		o.avoid[1] = w.info.Instance // it never got there; what it names is where it was before
	}
	n.mu.Unlock()
	n.Log.Info("agent asks for another worker", "channel", s.Channel, "hub", s.Hub, "instance", m.Instance, "why", m.Why)
	gen, err := n.raise(ctx, s.SID)
	if err != nil {
		return nil, err
	}
	a, err := n.place(ls, link, gen, o)
	if errors.Is(err, errOvertaken) && n.current(ls, link) {
		return nil, nil // another assignment is on its way
	}
	return a, err
}

// current reports whether link is the connection of session ls.
func (n *NVR) current(ls *liveSession, link StreamLink) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sessions[ls.SID] == ls && ls.link == link
}

// place gives the session of link, whose generation was raised to gen, the
// worker that o asks for, and writes the ticket. Nil: it waits for one; or, when
// it was to leave another, it stays where it is. errOvertaken: link or gen is not
// the newest.
func (n *NVR) place(ls *liveSession, link StreamLink, gen vms.Generation, o order) (*wire.Assign, error) {
	now := n.now()
	n.mu.Lock()
	if n.sessions[ls.SID] != ls || ls.link != link || ls.Generation > gen || ls.Generation == gen && ls.assigned {
		n.mu.Unlock()
		return nil, fmt.Errorf("session %s: %w", ls.SID, errOvertaken)
	}
	w, why := n.choose(ls, o)
	if o.from != nil && (w == nil || ls.at != o.from) {
		n.mu.Unlock()
		return nil, nil
	}
	ls.Generation = gen
	if w == nil {
		n.seat(ls, nil)
		n.wait(ls, o)
		n.mu.Unlock()
		return nil, nil
	}
	if why != wire.WhyStart {
		ls.moved = n.Clock()
	}
	n.seat(ls, w)
	ls.assigned, ls.ticketed = true, now
	s, info := ls.Session, w.info
	n.mu.Unlock()
	if why != wire.WhyStart {
		n.Log.Info("stream goes to another worker", "channel", s.Channel, "worker", info.ID, "generation", gen, "why", why)
	}
	return n.assignment(s, info, why, now)
}

// seat assigns a session to a worker; nil: to none. n.mu is held.
func (n *NVR) seat(ls *liveSession, w *workerState) {
	if ls.at != nil {
		delete(ls.at.seats, ls)
	}
	delete(n.waiting, ls)
	if ls.at = w; w != nil {
		w.seats[ls] = struct{}{}
	}
}

// wait has a session that is assigned to none get a worker when there is one. n.mu is held.
func (n *NVR) wait(ls *liveSession, o order) {
	if ls.link != nil {
		n.waiting[ls], ls.order = struct{}{}, o
	}
}

// move makes an order for a session one that can be carried out. n.mu is held.
func (ls *liveSession) move(o order) move {
	return move{ls: ls, link: ls.link, sid: ls.SID, gen: ls.Generation, raise: ls.assigned, order: o}
}

// assignment writes the ticket of session s for worker w.
func (n *NVR) assignment(s Session, w vms.WorkerInfo, why string, now time.Time) (*wire.Assign, error) {
	expires := now.Add(n.TicketTTL)
	ticket, err := n.Tokens.SignPush(token.Push{Worker: w.ID, Channel: s.Channel, SID: s.SID, Hub: s.Hub, Generation: s.Generation, Expires: expires})
	if err != nil {
		return nil, fmt.Errorf("push ticket for channel %s: %w", s.Channel, err)
	}
	return &wire.Assign{
		SID: s.SID, Channel: s.Channel, Generation: s.Generation,
		Worker: w.ID, WorkerURL: w.PushURL, Ticket: ticket, TicketExpires: expires,
		Why: why, Segment: n.Segment, RetentionSeconds: int64(n.Retention.Age.Seconds()), ServerTime: now,
	}, nil
}

// renewTickets sends the sessions that are there a new ticket when half the life
// of the old one is over, so that a lane which breaks opens again without us.
// Nothing else changes: the worker and the generation are the same.
func (n *NVR) renewTickets(context.Context) error {
	type renewal struct {
		Session
		link   StreamLink
		worker vms.WorkerInfo
	}
	now := n.now()
	var due []renewal
	n.mu.Lock()
	for _, w := range n.workers {
		for ls := range w.seats {
			if now.Sub(ls.ticketed) >= n.TicketTTL/2 {
				ls.ticketed = now
				due = append(due, renewal{ls.Session, ls.link, w.info})
			}
		}
	}
	n.mu.Unlock()
	for _, r := range due {
		a, err := n.assignment(r.Session, r.worker, wire.WhyRenew, now)
		if err != nil {
			return err // it is the signer that fails: the others would fare no better
		}
		r.link.Send(a)
	}
	return nil
}

// durable says which of the held chunks are in S3 already.
func (n *NVR) durable(ctx context.Context, ch vms.ChannelID, held []wire.HeldRange) ([]vms.ChunkRange, error) {
	// One query per epoch over all that is held of it: a hub that restarts
	// every minute for a day must not cost more than these.
	const maxEpochs, maxRows = 64, 4096
	hull := make(map[vms.Epoch]vms.ChunkRange)
	for _, h := range held {
		c, ok := hull[h.Chunks.Epoch]
		if !ok && len(hull) == maxEpochs {
			continue // not said to be durable now; the worker's acks will
		}
		if !ok {
			c = h.Chunks
		}
		c.First, c.Last = min(c.First, h.Chunks.First), max(c.Last, h.Chunks.Last)
		hull[c.Epoch] = c
	}
	var recorded vms.ChunkSet
	for _, r := range hull {
		rs, err := n.Store.RecordedChunks(ctx, ch, r, maxRows)
		if err != nil {
			return nil, fmt.Errorf("durable chunks of channel %s: %w", ch, err)
		}
		for _, c := range rs {
			recorded.Add(c)
		}
	}
	var both vms.ChunkSet
	for _, r := range recorded.Ranges() {
		for _, h := range held {
			if h.Chunks.Epoch == r.Epoch && h.Chunks.First <= r.Last && r.First <= h.Chunks.Last {
				both.Add(vms.ChunkRange{Epoch: r.Epoch, First: max(r.First, h.Chunks.First), Last: min(r.Last, h.Chunks.Last)})
			}
		}
	}
	out := both.Ranges()
	return out[:min(len(out), wire.MaxRanges)], nil
}
