package nvr

import (
	"context"
	"errors"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// hubState is what is known of a hub now. NVR.mu guards it, and whoever changes
// it wakes those who wait (wake). A hub may be here by its control line, by
// MQTT, or both; it is offline when it is neither.
type hubState struct {
	account vms.AccountID

	link HubLink // its control line, or nil
	boot string  // which run of its agent holds it
	told int64   // the revision of the newest document that was sent over it

	mqtt   bool           // its newest report over MQTT says that it is there
	left   bool           // the boot of report has said goodbye over MQTT
	report *wire.Reported // the newest, whichever way it came; nil: none
	seen   int64          // the highest revision it has reported and we have checked

	news chan struct{} // closed and replaced whenever something changes
}

func (st *hubState) online() bool { return st != nil && (st.link != nil || st.mqtt) }

func (st *hubState) wake() {
	close(st.news)
	st.news = make(chan struct{})
}

// hub returns the entry of a hub. n.mu is held.
func (n *NVR) hub(id vms.HubID, acct vms.AccountID) *hubState {
	st := n.hubs[id]
	if st == nil {
		st = &hubState{account: acct, news: make(chan struct{})}
		n.hubs[id] = st
	}
	return st
}

// online reports whether a hub can be told something now.
func (n *NVR) online(id vms.HubID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hubs[id].online()
}

// presence fills in what is known of a hub at this moment.
func (n *NVR) presence(h *Hub) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if st := n.hubs[h.ID]; st != nil {
		h.Online, h.MQTT, h.Reported = st.online(), st.mqtt, st.report
	}
}

// HubConnected notes the control line of a hub, held by the run of its agent
// that boot names, and has the hub told over it what it should do. It replaces
// the line that was there.
func (n *NVR) HubConnected(s Session, boot string, link HubLink) {
	n.mu.Lock()
	st := n.hub(s.Hub, s.Account)
	was := st.online()
	st.link, st.boot, st.told = link, boot, 0
	st.wake()
	n.mu.Unlock()
	if n.Broker != nil {
		b := n.Broker(s.Hub)
		link.Send(&b)
	}
	n.passed(s.Hub, s.Account, was, true)
	n.kicks.add(s.Hub)
}

// HubGone notes that link is closed.
func (n *NVR) HubGone(s Session, link HubLink) {
	n.mu.Lock()
	st := n.hubs[s.Hub]
	if st == nil || st.link != link {
		n.mu.Unlock()
		return
	}
	was := st.online()
	st.link, st.boot = nil, ""
	is := st.online()
	st.wake()
	n.mu.Unlock()
	n.passed(s.Hub, s.Account, was, is)
}

// passed tells that a hub came or went.
func (n *NVR) passed(hub vms.HubID, acct vms.AccountID, was, is bool) {
	switch {
	case is && !was:
		n.Log.Info("hub online", "hub", hub)
		n.publish(Event{Type: EventHubOnline, Account: acct, Hub: hub})
	case was && !is:
		n.Log.Info("hub offline", "hub", hub)
		n.publish(Event{Type: EventHubOffline, Account: acct, Hub: hub})
	}
}

// Reported takes what a hub's topic says of it: the hub's own word, or its last
// will. The caller has made sure that it is the hub's. It may come late, twice
// and, after a reconnect of ours, from long ago.
func (n *NVR) Reported(ctx context.Context, r *wire.Reported) { n.reported(ctx, r, true) }

// HubReported takes what a hub says of itself on its control line.
func (n *NVR) HubReported(ctx context.Context, s Session, r *wire.Reported) {
	if r.Hub == s.Hub {
		n.reported(ctx, r, false)
	}
}

func (n *NVR) reported(ctx context.Context, r *wire.Reported, mqtt bool) {
	n.mu.Lock()
	st := n.hubs[r.Hub]
	var acct vms.AccountID
	if st != nil {
		acct = st.account
	}
	n.mu.Unlock()
	if acct == "" {
		h, err := n.Store.Hub(ctx, r.Hub)
		if errors.Is(err, vms.ErrNotFound) || err == nil && !h.RevokedAt.IsZero() {
			return // a retained message of a hub that is no more
		}
		if err != nil {
			n.Log.Error("a hub's report is not taken; its next one will be", "hub", r.Hub, "err", err)
			return
		}
		acct = h.Account
	}
	n.mu.Lock()
	st = n.hub(r.Hub, acct)
	was := st.online()
	took := st.take(r, mqtt)
	is := st.online()
	check := took && r.Online && r.Revision > st.seen
	nonsense := check && r.Revision > n.now().Add(maxAhead).UnixMilli()
	if check = check && !nonsense; check {
		st.seen = r.Revision
	}
	if took {
		st.wake()
	}
	n.mu.Unlock()
	n.passed(r.Hub, acct, was, is)
	switch {
	case nonsense:
		n.Log.Error("a hub reports a revision that nobody can have issued", "hub", r.Hub, "revision", r.Revision)
	case check:
		n.checkRevision(ctx, r.Hub, r.Revision)
	}
}

// take notes a report, and says whether it was news. Serials order the reports
// of one boot; boots have no order, so of two the one on the control line is the
// present one, else the one whose predecessor has said goodbye, else the one
// whose clock is ahead: a retained message may be of a boot that is long gone.
func (st *hubState) take(r *wire.Reported, mqtt bool) bool {
	if st.link != nil && st.boot != "" && r.Boot != st.boot {
		return false
	}
	cur := st.report
	same := cur != nil && cur.Boot == r.Boot
	switch {
	case !r.Online && same: // a goodbye or last will. It says nothing else, and what was said stands
		if !mqtt || st.left || r.Serial > 0 && r.Serial < cur.Serial {
			return false
		}
		st.mqtt, st.left = false, true
		return true
	case !r.Online:
		return false // of a boot that another has followed, or that was never heard of
	case same && r.Serial < cur.Serial:
		return false
	case cur != nil && !same && !st.left && (st.link == nil || st.boot != r.Boot) && !r.At.After(cur.At):
		return false
	}
	switch {
	case mqtt:
		st.mqtt, st.left = true, false
	case !same: // what MQTT says is of the boot before: its will is on the way, or lost
		st.mqtt, st.left = false, false
	}
	st.report = r
	return true
}

// maxAhead bounds the revision that is believed: it is the time when something
// changed, and no clock is wrong by more.
const maxAhead = 10 * 365 * 24 * time.Hour

// checkRevision raises a hub's revision when the hub has seen a higher one: the
// database is older than the hub, and what it says would not be obeyed.
func (n *NVR) checkRevision(ctx context.Context, hub vms.HubID, seen int64) {
	raised, err := n.Store.RaiseRevision(ctx, hub, seen, n.now())
	if err != nil {
		n.mu.Lock()
		if st := n.hubs[hub]; st != nil && st.seen == seen {
			st.seen = 0 // its next report is checked again
		}
		n.mu.Unlock()
		n.Log.Error("a hub's revision was not compared; its next report will be", "hub", hub, "err", err)
		return
	}
	if raised {
		n.Log.Warn("a hub has seen a newer revision than this database has; was it restored?", "hub", hub, "revision", seen)
		n.tell(hub)
	}
}

// forgetHub drops what is known of a hub that is revoked, and returns its line.
func (n *NVR) forgetHub(id vms.HubID) HubLink {
	n.mu.Lock()
	st := n.hubs[id]
	delete(n.hubs, id)
	var link HubLink
	was := st.online()
	if st != nil {
		link = st.link
		st.wake()
	}
	n.mu.Unlock()
	if was {
		n.passed(id, st.account, true, false)
	}
	return link
}

// item returns what a hub says of a channel, while it is there. n.mu is held.
func (n *NVR) item(hub vms.HubID, ch vms.ChannelID) *wire.ReportedItem {
	st := n.hubs[hub]
	if !st.online() || st.report == nil {
		return nil
	}
	return itemOf(st.report, ch)
}

func itemOf(r *wire.Reported, ch vms.ChannelID) *wire.ReportedItem {
	for i := range r.Streams {
		if r.Streams[i].Channel == ch {
			return &r.Streams[i]
		}
	}
	return nil
}
