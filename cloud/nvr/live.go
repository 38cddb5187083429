package nvr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// liveSession is what is known of a session now. It outlives its connection:
// what the hub holds is pending until it says otherwise. NVR.mu guards it.
type liveSession struct {
	Session
	link     StreamLink   // nil while the hub is away
	lost     time.Time    // since when it is
	at       *workerState // that it is assigned to; nil: none, and it may be waiting
	order    order        // what it waits for
	assigned bool         // an assignment of this generation was sent
	ticketed time.Time    // when the last ticket was written
	moved    time.Time    // when it went to another worker last
	epoch    vms.Epoch    // what the agent writes, as far as it told; 0: nothing yet
	held     []wire.HeldRange
	state    wire.StreamState
}

// delivers reports whether the session only brings what its hub holds: somebody
// has stopped its stream, and no camera runs for it.
func (ls *liveSession) delivers() bool {
	return ls.State == SessionEnded || ls.state.State == wire.StateStopped
}

// liveStream is what workers and agents say of a channel now. NVR.mu guards it.
type liveStream struct {
	sessions map[vms.SID]*liveSession
	lanes    map[vms.Lane]lane // those that are up
	// before is where the live lane was before it came to where it is, or was at
	// last: who looks on there is told. It may be up still, until its successor
	// has taken over.
	before before
}

// before is a live lane that was.
type before struct {
	vms.StreamEvent
	up   bool
	told bool // its worker was told that it is elsewhere
}

// lane is a lane that is up at a worker.
type lane struct {
	vms.StreamEvent
	account vms.AccountID
	came    time.Time // when we heard of it
}

// stream returns the channel's entry. n.mu is held.
func (n *NVR) stream(ch vms.ChannelID) *liveStream {
	st := n.streams[ch]
	if st == nil {
		st = &liveStream{sessions: make(map[vms.SID]*liveSession), lanes: make(map[vms.Lane]lane)}
		n.streams[ch] = st
	}
	return st
}

// attach makes link the connection of session s, unless a newer generation is
// there. The older one is told to go.
func (n *NVR) attach(s Session, hello *wire.SessionHello, link StreamLink) (*liveSession, error) {
	n.mu.Lock()
	ls := n.sessions[s.SID]
	if ls == nil {
		ls = &liveSession{Session: s}
		n.sessions[s.SID] = ls
		n.stream(s.Channel).sessions[s.SID] = ls
	}
	if ls.Session.Generation > s.Generation {
		n.mu.Unlock()
		return nil, fmt.Errorf("session %s: %w: a newer connection is there", s.SID, vms.ErrConflict)
	}
	old := ls.link
	n.seat(ls, nil)
	ls.Session, ls.link, ls.assigned, ls.state = s, link, false, wire.StreamState{}
	ls.epoch, ls.held = hello.Epoch, hello.Holding
	n.mu.Unlock()
	if old != nil && old != link {
		old.Replace()
	}
	return ls, nil
}

// Detach says that link is closed. What the hub holds stays pending.
func (n *NVR) Detach(s Session, link StreamLink) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ls := n.sessions[s.SID]
	if ls == nil || ls.link != link {
		return
	}
	n.seat(ls, nil)
	ls.link, ls.lost, ls.state = nil, n.now(), wire.StreamState{}
	if len(ls.held) == 0 {
		n.forget(s.SID)
	}
}

// forget drops a live session. n.mu is held.
func (n *NVR) forget(sid vms.SID) {
	ls := n.sessions[sid]
	if ls == nil {
		return
	}
	n.seat(ls, nil)
	delete(n.sessions, sid)
	if st := n.streams[ls.Channel]; st != nil {
		delete(st.sessions, sid)
		n.tidy(ls.Channel)
	}
}

// tidy drops a channel of which nothing is known any more. n.mu is held.
func (n *NVR) tidy(ch vms.ChannelID) {
	if st := n.streams[ch]; st != nil && len(st.sessions) == 0 && len(st.lanes) == 0 {
		delete(n.streams, ch)
	}
}

// revokeLive closes the connections of sessions that the store has revoked.
func (n *NVR) revokeLive(sids []vms.SID, why string) {
	var links []StreamLink
	n.revokeAtWorkers(sids)
	n.mu.Lock()
	for _, sid := range sids {
		if ls := n.sessions[sid]; ls != nil {
			if ls.link != nil {
				links = append(links, ls.link)
			}
			n.forget(sid)
		}
	}
	n.mu.Unlock()
	for _, l := range links {
		l.Revoke(why)
	}
}

// Holding replaces what is known of the hub's buffer. The answer, if not nil,
// names what is durable of it.
func (n *NVR) Holding(ctx context.Context, s Session, m *wire.Holding) (*wire.Durable, error) {
	n.mu.Lock()
	if ls := n.sessions[s.SID]; ls != nil {
		ls.held = m.Ranges
		var newest time.Time
		for _, h := range m.Ranges {
			if h.End.After(newest) {
				newest, ls.epoch = h.End, h.Chunks.Epoch
			}
		}
	}
	n.mu.Unlock()
	ranges, err := n.durable(ctx, s.Channel, m.Ranges)
	if err != nil || len(ranges) == 0 {
		return nil, err
	}
	return &wire.Durable{Ranges: ranges}, nil
}

// Gaps commits declared gaps and answers which: all, also those that were
// known before.
func (n *NVR) Gaps(ctx context.Context, s Session, m *wire.Gaps) (*wire.Committed, error) {
	out := &wire.Committed{IDs: make([]vms.GapID, 0, len(m.Gaps))}
	var real []vms.Gap
	for _, g := range m.Gaps {
		out.IDs = append(out.IDs, g.ID)
		if g.Duration() >= shortest { // a shorter one is no loss that anybody could see
			g.Start, g.End = g.Start.UTC(), g.End.UTC()
			real = append(real, g)
		}
	}
	if len(real) == 0 {
		return out, nil
	}
	news, err := n.Store.PutGaps(ctx, s.Channel, real)
	if err != nil {
		return nil, fmt.Errorf("commit gaps of channel %s: %w", s.Channel, err)
	}
	isNew := make(map[vms.GapID]bool, len(news))
	for _, id := range news {
		isNew[id] = true
	}
	for i := range real {
		if isNew[real[i].ID] {
			n.publish(Event{Type: EventGap, Account: s.Account, Channel: s.Channel, Hub: s.Hub, Gap: &real[i]})
		}
	}
	return out, nil
}

// State notes how the agent says the stream is.
func (n *NVR) State(ctx context.Context, s Session, m *wire.StreamState) error {
	if !vms.ValidID(m.State) {
		return fmt.Errorf("state of channel %s: %w: no such state", s.Channel, vms.ErrInvalid)
	}
	n.mu.Lock()
	ls := n.sessions[s.SID]
	if ls == nil {
		n.mu.Unlock()
		return nil
	}
	before := ls.state.State
	ls.state = *m
	n.mu.Unlock()
	stopped := m.State == wire.StateStopped
	if before != "" && stopped == (before == wire.StateStopped) {
		return nil
	}
	// The hub may not have heard yet that its session ended: whatever it says, it
	// is not wanted to record.
	if now, err := n.Store.Session(ctx, s.SID); errors.Is(err, vms.ErrNotFound) || err == nil && now.State != SessionOpen {
		return nil
	} else if err != nil {
		return fmt.Errorf("state of channel %s: %w", s.Channel, err)
	}
	// A stream that somebody stopped on the LAN misses nothing. One that the
	// cloud wants does: its agent only ends, to be updated perhaps, or brings
	// what it holds of an earlier session; and the store notes the cloud's own stops.
	if stopped {
		if n.runs(s.Channel) {
			return nil
		}
		row, err := n.Store.Channel(ctx, s.Channel)
		if errors.Is(err, vms.ErrNotFound) || err == nil && row.Wanted {
			return nil
		}
		if err != nil {
			return fmt.Errorf("state of channel %s: %w", s.Channel, err)
		}
	}
	if err := n.Store.SetIdle(ctx, s.Channel, stopped, n.now()); err != nil {
		return fmt.Errorf("state of channel %s: %w", s.Channel, err)
	}
	return nil
}

// runs reports whether a session of the channel is there that does more than
// bring what its hub holds.
func (n *NVR) runs(ch vms.ChannelID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := n.streams[ch]
	if st == nil {
		return false
	}
	for _, ls := range st.sessions {
		if ls.link != nil && !ls.delivers() {
			return true
		}
	}
	return false
}

// describe fills in what is known of a channel at this moment.
func (n *NVR) describe(c *Channel) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c.State = StateIdle
	if c.Wanted {
		c.State = wire.StateStarting
		switch {
		case c.Hub == "":
			c.Problem = "The channel has no hub."
		case !n.hubs[c.Hub].online():
			c.Problem = "The hub is offline."
		}
	}
	item := n.item(c.Hub, c.ID)
	if item != nil {
		describeItem(c, item)
	}
	n.describeStream(c)
	if item != nil && c.Mode == ModeEvent && c.State == wire.StateStreaming && !c.Streaming && !item.Recording {
		c.State = StateWaiting // the camera is pulled, and nothing happens
	}
}

// describeItem says what the hub says of a channel.
func describeItem(c *Channel, item *wire.ReportedItem) {
	c.Sync, c.Recording = item.State, item.Recording
	switch {
	case item.Stream != "" && (item.Running || item.State == wire.Failed):
		c.State = item.Stream
	case c.Wanted && !item.Running && item.State == wire.InSync && c.Mode != ModeOnDemand:
		c.State = StateWaiting
	}
	if item.Problem != "" {
		c.Problem = item.Problem
	}
}

// describeStream says what the worker and the stream's own session say of a
// channel: they know it first. n.mu is held.
func (n *NVR) describeStream(c *Channel) {
	st := n.streams[c.ID]
	if st == nil {
		return
	}
	if e, ok := st.lanes[vms.LaneLive]; ok && n.stands(e) {
		c.State, c.Problem = wire.StateStreaming, ""
		c.Streaming, c.StreamingSince, c.Worker = true, e.At, e.Worker
	}
	// What its agent says of the stream that runs; of one that has stopped only
	// when none does. A hub that brings old footage says nothing of the channel.
	var newest *liveSession
	for _, ls := range st.sessions {
		switch {
		case ls.link == nil || ls.state.State == "" || ls.Session.State == SessionEnded:
		case newest == nil, newest.delivers() && !ls.delivers(),
			newest.delivers() == ls.delivers() && ls.Generation > newest.Generation:
			newest = ls
		}
	}
	if newest != nil && (!newest.delivers() || !c.Streaming) {
		c.State, c.Problem = newest.state.State, newest.state.Problem
	}
	if newest != nil && !newest.delivers() && !c.Streaming && newest.at == nil && n.nobody() && recordable[c.State] {
		c.Problem = noWorker
	}
}

// noWorker is what a channel's people read while there is none.
const noWorker = "No worker is there to record; the hub keeps the footage."

// recordable are the states of a stream whose pictures come.
var recordable = map[string]bool{wire.StateStarting: true, wire.StateStreaming: true, wire.StateBuffering: true}

// nobody reports whether no worker is there. n.mu is held.
func (n *NVR) nobody() bool {
	for _, w := range n.workers {
		if w.state() != WorkerLost {
			return false
		}
	}
	return true
}

// rezone gives the sessions of a hub another zone.
func (n *NVR) rezone(hub vms.HubID, zone string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, ls := range n.sessions {
		if ls.Hub == hub {
			ls.Zone = zone
		}
	}
}

// heldRange is what a hub holds, on the timeline.
type heldRange struct {
	vms.TimeRange
	chunks vms.ChunkRange
}

// pending lists what the hubs of a channel hold, and what those hold that have
// been away for too long.
func (n *NVR) pending(ch vms.ChannelID) (held, unreachable []heldRange) {
	now := n.now()
	n.mu.Lock()
	defer n.mu.Unlock()
	st := n.streams[ch]
	if st == nil {
		return nil, nil
	}
	for _, ls := range st.sessions {
		away := ls.link == nil && now.Sub(ls.lost) > n.UnreachableAfter
		for _, h := range ls.held {
			r := heldRange{vms.TimeRange{Start: h.Start.UTC(), End: h.End.UTC()}, h.Chunks}
			if away {
				unreachable = append(unreachable, r)
			} else {
				held = append(held, r)
			}
		}
	}
	return held, unreachable
}
