package nvr

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// liveSession is what is known of a session now. It outlives its connection:
// what the hub holds is pending until it says otherwise. NVR.mu guards it.
type liveSession struct {
	Session
	link     StreamLink // nil while the hub is away
	lost     time.Time  // since when it is
	worker   vms.WorkerID
	ticketed time.Time // when the last ticket was written
	epoch    vms.Epoch // what the agent writes, as far as it told; 0: nothing yet
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
	lanes    map[vms.Lane]vms.StreamEvent // those that are up
}

// stream returns the channel's entry. n.mu is held.
func (n *NVR) stream(ch vms.ChannelID) *liveStream {
	st := n.streams[ch]
	if st == nil {
		st = &liveStream{sessions: make(map[vms.SID]*liveSession), lanes: make(map[vms.Lane]vms.StreamEvent)}
		n.streams[ch] = st
	}
	return st
}

// attach makes link the connection of session s, unless a newer generation is
// there. The older one is told to go.
func (n *NVR) attach(s Session, hello *wire.SessionHello, link StreamLink) error {
	n.mu.Lock()
	ls := n.sessions[s.SID]
	if ls == nil {
		ls = &liveSession{Session: s}
		n.sessions[s.SID] = ls
		n.stream(s.Channel).sessions[s.SID] = ls
	}
	if ls.Session.Generation > s.Generation {
		n.mu.Unlock()
		return fmt.Errorf("session %s: %w: a newer connection is there", s.SID, vms.ErrConflict)
	}
	old := ls.link
	ls.Session, ls.link, ls.worker, ls.state = s, link, "", wire.StreamState{}
	ls.epoch, ls.held = hello.Epoch, hello.Holding
	n.mu.Unlock()
	if old != nil && old != link {
		old.Replace()
	}
	return nil
}

// Detach says that link is closed. What the hub holds stays pending.
func (n *NVR) Detach(s Session, link StreamLink) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ls := n.sessions[s.SID]
	if ls == nil || ls.link != link {
		return
	}
	ls.link, ls.lost, ls.worker, ls.state = nil, n.now(), "", wire.StreamState{}
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
	if n.Revoked != nil {
		n.Revoked(sids)
	}
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

// StreamStarted notes that a lane of a stream is up at a worker.
func (n *NVR) StreamStarted(ctx context.Context, e vms.StreamEvent) error {
	row, err := n.Store.Channel(ctx, e.Channel)
	if err != nil {
		return fmt.Errorf("stream started on channel %s: %w", e.Channel, err)
	}
	n.mu.Lock()
	st := n.stream(e.Channel)
	was, up := st.lanes[e.Lane]
	if up && was.Generation > e.Generation { // late: a newer connection is there
		n.mu.Unlock()
		return nil
	}
	if up {
		e.At = was.At // it streams since then
	}
	st.lanes[e.Lane] = e
	n.mu.Unlock()
	if e.Lane == vms.LaneLive && !up {
		n.publish(Event{Type: EventStreamingStarted, Account: row.Account, At: e.At, Channel: e.Channel, Hub: e.Hub})
	}
	return nil
}

// StreamEnded notes that a lane went down. One of an older generation than
// the lane that is up came late and changes nothing.
func (n *NVR) StreamEnded(ctx context.Context, e vms.StreamEvent) error {
	n.mu.Lock()
	st := n.streams[e.Channel]
	if st == nil {
		n.mu.Unlock()
		return nil
	}
	was, up := st.lanes[e.Lane]
	if !up || was.Generation > e.Generation || (was.Generation == e.Generation && was.Instance != e.Instance) {
		n.mu.Unlock()
		return nil
	}
	delete(st.lanes, e.Lane)
	n.tidy(e.Channel)
	n.mu.Unlock()
	if e.Lane != vms.LaneLive {
		return nil
	}
	row, err := n.Store.Channel(ctx, e.Channel)
	if errors.Is(err, vms.ErrNotFound) {
		return nil // deleted: nobody waits for this
	}
	if err != nil {
		return fmt.Errorf("stream ended on channel %s: %w", e.Channel, err)
	}
	n.publish(Event{Type: EventStreamingEnded, Account: row.Account, At: e.At, Channel: e.Channel, Hub: e.Hub, Cause: e.Cause})
	return nil
}

// Live returns where to watch a channel now. vms.ErrUnavailable: it does not
// stream at this moment; ErrStarting: it soon will. With start, a channel on
// demand that is idle is started, and runs on while somebody looks on.
func (n *NVR) Live(ctx context.Context, acct vms.AccountID, id vms.ChannelID, start bool) (LiveURLs, error) {
	row, err := n.row(ctx, acct, id)
	if err != nil {
		return LiveURLs{}, err
	}
	n.looked(id)
	n.mu.Lock()
	var w vms.WorkerInfo
	if st := n.streams[id]; st != nil {
		w = n.workers[st.lanes[vms.LaneLive].Worker]
	}
	n.mu.Unlock()
	if w.ID == "" || w.LiveURL == "" {
		return LiveURLs{}, fmt.Errorf("channel %s: %w", id, n.awaken(ctx, row, start))
	}
	expires := n.now().Add(n.ViewTTL).Truncate(time.Second)
	ticket, err := n.Tokens.SignView(token.View{Worker: w.ID, Channel: id, Expires: expires})
	if err != nil {
		return LiveURLs{}, fmt.Errorf("view ticket for channel %s: %w", id, err)
	}
	sep := "?"
	if strings.Contains(w.LiveURL, "?") {
		sep = "&"
	}
	return LiveURLs{MSE: w.LiveURL + sep + "ticket=" + url.QueryEscape(ticket), ExpiresAt: expires}, nil
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
	if e, ok := st.lanes[vms.LaneLive]; ok {
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
