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

const (
	// handOver is how long a live lane that moves stays with its old worker at the
	// most: until then the picture is there.
	handOver = 45 * time.Second
	// causeLost is why a stream ended whose worker is dead.
	causeLost = "worker_lost"
)

// StreamStarted notes that a lane of a stream is up at a worker. It is said once
// more for every lane when a worker's link comes up: after a restart we know of none.
func (n *NVR) StreamStarted(ctx context.Context, e vms.StreamEvent) error {
	row, err := n.Store.Channel(ctx, e.Channel)
	if err != nil {
		return fmt.Errorf("stream started on channel %s: %w", e.Channel, err)
	}
	if err := n.checkRevoked(ctx, e); err != nil {
		return err
	}
	n.mu.Lock()
	st := n.stream(e.Channel)
	was, up := st.lanes[e.Lane]
	if up && was.Generation > e.Generation { // late: a newer connection is there
		n.mu.Unlock()
		return nil
	}
	news := !up || !n.stands(was)
	if !news {
		e.At = was.At // it streams since then
	}
	st.lanes[e.Lane] = lane{e, row.Account, n.Clock()}
	tell := false
	if e.Lane == vms.LaneLive {
		if up && was.Instance != e.Instance {
			st.before = before{StreamEvent: was.StreamEvent, up: true}
		}
		if st.before.Instance == e.Instance {
			st.before = before{}
		}
		tell = st.before.Instance != "" && !st.before.told
		st.before.told = true
	}
	from := st.before.StreamEvent
	n.mu.Unlock()
	if tell {
		n.sendAway(from)
	}
	if e.Lane == vms.LaneLive && news {
		n.publish(Event{Type: EventStreamingStarted, Account: row.Account, At: e.At, Channel: e.Channel, Hub: e.Hub})
	}
	return nil
}

// checkRevoked has a lane cut off whose session was revoked while we, or the
// link to its worker, were away.
func (n *NVR) checkRevoked(ctx context.Context, e vms.StreamEvent) error {
	n.mu.Lock()
	known := n.sessions[e.SID] != nil
	var link WorkerLink
	if w := n.workers[e.Worker]; w != nil && w.info.Instance == e.Instance {
		link = w.link
	}
	n.mu.Unlock()
	if known || link == nil {
		return nil
	}
	s, err := n.Store.Session(ctx, e.SID)
	switch {
	case errors.Is(err, vms.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("stream started on channel %s: %w", e.Channel, err)
	case s.State == SessionRevoked:
		link.Revoke([]vms.SID{e.SID})
	}
	return nil
}

// sendAway tells the worker where the live lane was where it is now.
func (n *NVR) sendAway(from vms.StreamEvent) {
	n.mu.Lock()
	w := n.workers[from.Worker]
	if w == nil || w.info.Instance != from.Instance {
		n.mu.Unlock()
		return // its viewers are gone with it
	}
	link := w.link
	if link == nil {
		if w.moved == nil {
			w.moved = make(map[vms.ChannelID]struct{})
		}
		w.moved[from.Channel] = struct{}{}
	}
	n.mu.Unlock()
	if link != nil {
		link.Moved(from.Channel, n.nowAt(from.Channel))
	}
}

// nowAt returns where the live picture of a channel is now, or nothing.
func (n *NVR) nowAt(ch vms.ChannelID) string {
	n.mu.Lock()
	var w vms.WorkerInfo
	if st := n.streams[ch]; st != nil {
		w = n.laneAt(st.lanes[vms.LaneLive].StreamEvent)
	}
	n.mu.Unlock()
	if w.LiveURL == "" {
		return ""
	}
	u, err := n.liveURL(w, ch, n.viewExpiry())
	if err != nil {
		n.Log.Error("viewers are not told where a stream is now", "channel", ch, "err", err)
	}
	return u
}

// StreamEnded notes that a lane went down. One of an older generation than
// the lane that is up came late and changes nothing.
func (n *NVR) StreamEnded(_ context.Context, e vms.StreamEvent) error {
	n.mu.Lock()
	st := n.streams[e.Channel]
	if st == nil {
		n.mu.Unlock()
		return nil
	}
	if e.Lane == vms.LaneLive && st.before.Instance == e.Instance {
		st.before.up = false
	}
	was, up := st.lanes[e.Lane]
	if !up || was.Generation > e.Generation || (was.Generation == e.Generation && was.Instance != e.Instance) {
		n.mu.Unlock()
		return nil
	}
	stood := n.stands(was)
	delete(st.lanes, e.Lane)
	if e.Lane == vms.LaneLive {
		st.before = before{StreamEvent: was.StreamEvent}
	}
	n.tidy(e.Channel)
	n.mu.Unlock()
	if e.Lane == vms.LaneLive && stood {
		n.publish(Event{Type: EventStreamingEnded, Account: was.account, At: e.At, Channel: e.Channel, Hub: e.Hub, Cause: e.Cause})
	}
	return nil
}

// stands reports whether a lane that was told to be up still can be: its worker
// is not dead. Of one that we never heard of we know no better. n.mu is held.
func (n *NVR) stands(l lane) bool {
	w := n.workers[l.Worker]
	return w == nil || w.info.Instance == l.Instance && !w.dead
}

// laneAt returns the worker that has a lane, while it can be reached. n.mu is held.
func (n *NVR) laneAt(e vms.StreamEvent) vms.WorkerInfo {
	if w := n.workers[e.Worker]; w != nil && w.info.Instance == e.Instance && !w.dead {
		return w.info
	}
	return vms.WorkerInfo{}
}

// lanesAt lists the lanes of a worker's instance. n.mu is held.
func (n *NVR) lanesAt(w *workerState) (out []lane) {
	for _, st := range n.streams {
		for _, l := range st.lanes {
			if l.Worker == w.info.ID && l.Instance == w.info.Instance {
				out = append(out, l)
			}
		}
	}
	return out
}

// dropLanes forgets the lanes of a worker that will not come back. n.mu is held.
func (n *NVR) dropLanes(w *workerState) {
	for _, l := range n.lanesAt(w) {
		delete(n.streams[l.Channel].lanes, l.Lane)
		n.tidy(l.Channel)
	}
}

// announce says of lanes whose worker died, or was found alive, that their
// streams ended or started. What it returns is to be called without n.mu.
func (n *NVR) announce(lanes []lane, up bool) (told []func()) {
	for _, l := range lanes {
		if l.Lane != vms.LaneLive {
			continue
		}
		e := Event{Type: EventStreamingEnded, Account: l.account, Channel: l.Channel, Hub: l.Hub, Cause: causeLost}
		if up {
			e.Type, e.Cause = EventStreamingStarted, ""
		}
		told = append(told, func() { n.publish(e) })
	}
	return told
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
	w := n.picture(id)
	n.mu.Unlock()
	if w.LiveURL == "" {
		return LiveURLs{}, fmt.Errorf("channel %s: %w", id, n.awaken(ctx, row, start))
	}
	expires := n.viewExpiry()
	u, err := n.liveURL(w, id, expires)
	if err != nil {
		return LiveURLs{}, err
	}
	return LiveURLs{MSE: u, ExpiresAt: expires}, nil
}

// picture returns the worker that shows a channel. n.mu is held.
func (n *NVR) picture(id vms.ChannelID) vms.WorkerInfo {
	st := n.streams[id]
	if st == nil {
		return vms.WorkerInfo{}
	}
	l, ok := st.lanes[vms.LaneLive]
	if ok && st.before.up && n.Clock().Sub(l.came) < handOver {
		// The next recording has not begun, perhaps. Who comes too late here is sent on at once.
		if w := n.laneAt(st.before.StreamEvent); w.LiveURL != "" {
			return w
		}
	}
	if ok {
		return n.laneAt(l.StreamEvent)
	}
	// After a restart of ours the worker may not have said it yet, but the agent
	// says that its chunks are taken.
	for _, ls := range st.sessions {
		if ls.at != nil && !ls.at.dead && ls.state.State == wire.StateStreaming && !ls.delivers() {
			return ls.at.info
		}
	}
	return vms.WorkerInfo{}
}

func (n *NVR) viewExpiry() time.Time { return n.now().Add(n.ViewTTL).Truncate(time.Second) }

// liveURL is where a channel's live picture is at a worker, with a ticket.
func (n *NVR) liveURL(w vms.WorkerInfo, id vms.ChannelID, expires time.Time) (string, error) {
	ticket, err := n.Tokens.SignView(token.View{Worker: w.ID, Channel: id, Expires: expires})
	if err != nil {
		return "", fmt.Errorf("view ticket for channel %s: %w", id, err)
	}
	sep := "?"
	if strings.Contains(w.LiveURL, "?") {
		sep = "&"
	}
	return w.LiveURL + sep + "ticket=" + url.QueryEscape(ticket), nil
}
