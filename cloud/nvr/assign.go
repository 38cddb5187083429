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

// RegisterWorker makes a worker known, or replaces what was known of it.
// Sessions that wait for a worker are assigned to it.
func (n *NVR) RegisterWorker(w vms.WorkerInfo) {
	n.mu.Lock()
	known := n.workers[w.ID] == w
	n.workers[w.ID] = w
	var waiting []*liveSession
	for _, ls := range n.sessions {
		if ls.link != nil && ls.worker == "" {
			waiting = append(waiting, ls)
		}
	}
	n.mu.Unlock()
	if !known {
		n.Log.Info("worker registered", "worker", w.ID, "instance", w.Instance)
	}
	for _, ls := range waiting {
		n.assignWaiting(ls)
	}
}

// assignWaiting sends a session the assignment that it could not get before.
func (n *NVR) assignWaiting(ls *liveSession) {
	n.mu.Lock()
	s, link := ls.Session, ls.link
	n.mu.Unlock()
	if link == nil {
		return // it went meanwhile
	}
	a, err := n.assign(s, link, "", "", "start")
	if err != nil {
		n.Log.Error("no assignment for a waiting session", "sid", s.SID, "channel", s.Channel, "err", err)
		return
	}
	if a != nil {
		link.Send(a)
	}
}

// UnregisterWorker forgets a worker's instance: no stream is assigned to it any more.
func (n *NVR) UnregisterWorker(id vms.WorkerID, instance vms.Instance) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.workers[id].Instance == instance {
		delete(n.workers, id)
	}
}

// Assign begins a session over link: it fences whatever connection this
// session had, notes what the hub holds, and says where to push. Nil without
// an error means that there is no worker; the assignment follows over link when
// one registers. A worker instance that the agent pushes to already is kept as
// long as it is registered. A *Refusal means the session ended meanwhile.
func (n *NVR) Assign(ctx context.Context, s Session, hello *wire.SessionHello, link StreamLink) (*wire.Assign, error) {
	var err error
	if s.Generation, err = n.raise(ctx, s.SID); err != nil {
		return nil, err
	}
	if err := n.attach(s, hello, link); err != nil {
		return nil, err
	}
	durable, err := n.durable(ctx, s.Channel, hello.Holding)
	if err != nil {
		return nil, err
	}
	a, err := n.assign(s, link, hello.Worker, "", "start")
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

// WantWorker answers an agent whose worker is no good.
func (n *NVR) WantWorker(ctx context.Context, s Session, m *wire.WantWorker, link StreamLink) (*wire.Assign, error) {
	if !n.current(s, link) { // it must not fence the one that replaced it
		return nil, fmt.Errorf("session %s: %w: a newer connection is there", s.SID, vms.ErrConflict)
	}
	var err error
	if s.Generation, err = n.raise(ctx, s.SID); err != nil {
		return nil, err
	}
	n.mu.Lock()
	if ls := n.sessions[s.SID]; ls != nil && ls.link == link {
		ls.Session.Generation = s.Generation
	}
	n.mu.Unlock()
	n.Log.Info("agent asks for another worker", "channel", s.Channel, "hub", s.Hub, "instance", m.Instance, "why", m.Why)
	return n.assign(s, link, "", m.Instance, "requested")
}

// current reports whether link is the connection of session s.
func (n *NVR) current(s Session, link StreamLink) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	ls := n.sessions[s.SID]
	return ls != nil && ls.link == link
}

func (n *NVR) raise(ctx context.Context, sid vms.SID) (vms.Generation, error) {
	g, err := n.Store.NextGeneration(ctx, sid)
	if errors.Is(err, vms.ErrNotFound) {
		return 0, refuse(wire.ProblemRevoked, vms.ErrRevoked, "This session was revoked.")
	}
	if err != nil {
		return 0, fmt.Errorf("raise generation of session %s: %w", sid, err)
	}
	return g, nil
}

// assign picks a worker, prefers keep, avoids avoid unless there is no other,
// and writes the ticket. Nil: there is none.
func (n *NVR) assign(s Session, link StreamLink, keep, avoid vms.Instance, why string) (*wire.Assign, error) {
	now := n.now()
	n.mu.Lock()
	w, ok := n.pick(keep, avoid)
	ls := n.sessions[s.SID]
	if ls != nil && ls.link == link {
		ls.worker, ls.ticketed = w.ID, now
	}
	n.mu.Unlock()
	if !ok {
		return nil, nil
	}
	return n.assignment(s, w, why, now)
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
	for _, ls := range n.sessions {
		w, ok := n.workers[ls.worker]
		if ls.link != nil && ok && now.Sub(ls.ticketed) >= n.TicketTTL/2 {
			ls.ticketed = now
			due = append(due, renewal{ls.Session, ls.link, w})
		}
	}
	n.mu.Unlock()
	for _, r := range due {
		a, err := n.assignment(r.Session, r.worker, "renew", now)
		if err != nil {
			return err // it is the signer that fails: the others would fare no better
		}
		r.link.Send(a)
	}
	return nil
}

// pick chooses the worker with the fewest sessions. n.mu is held.
func (n *NVR) pick(keep, avoid vms.Instance) (vms.WorkerInfo, bool) {
	load := make(map[vms.WorkerID]int, len(n.workers))
	for _, ls := range n.sessions {
		if ls.link != nil {
			load[ls.worker]++
		}
	}
	var best vms.WorkerInfo
	better := func(w vms.WorkerInfo) bool {
		switch {
		case best.ID == "":
			return true
		case (w.Instance == avoid) != (best.Instance == avoid):
			return best.Instance == avoid
		case load[w.ID] != load[best.ID]:
			return load[w.ID] < load[best.ID]
		}
		return w.ID < best.ID
	}
	for _, w := range n.workers {
		if keep != "" && w.Instance == keep {
			return w, true
		}
		if better(w) {
			best = w
		}
	}
	return best, best.ID != ""
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
