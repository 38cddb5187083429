package hubctl

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// maxReplies bounds the answers that wait for the rules. Past it answers are
	// dropped: who waits for one asks again.
	maxReplies = 1024
	// complainEvery spaces what is said of messages that make no sense.
	complainEvery = 10 * time.Second
)

// inbox hands what hubs say to the rules, one after the other. Of the reports of
// a hub it keeps the newest, so that receive need not wait for the rules.
type inbox struct {
	nvr      Rules
	log      *slog.Logger
	reported func(*wire.Reported) // is shown what hubs say now
	now      func() time.Time

	mu      sync.Mutex
	reports map[vms.HubID]message
	order   []vms.HubID // of reports
	replies []reply
	ring    chan struct{} // one place: there is something
	said    time.Time     // the last complaint
	unsaid  int

	presence presence // of run
}

type message struct {
	*wire.Reported
	retained bool
}

type reply struct {
	*wire.CommandReply
	hub vms.HubID
}

func newInbox(nvr Rules, log *slog.Logger, reported func(*wire.Reported)) *inbox {
	return &inbox{
		nvr: nvr, log: log, reported: reported, now: time.Now,
		reports: make(map[vms.HubID]message), ring: make(chan struct{}, 1), presence: make(presence),
	}
}

// receive takes a message. It does not block.
func (b *inbox) receive(topic string, payload []byte, retained bool) {
	levels := strings.Split(topic, "/")
	if len(levels) != 3 || !vms.ValidID(levels[1]) {
		b.complain("no hub's", levels[0], nil)
		return
	}
	hub, leaf := vms.HubID(levels[1]), levels[2]
	if len(payload) == 0 {
		return // what was retained is cleared
	}
	if len(payload) > wire.MaxControl {
		b.complain("too long", string(hub), nil)
		return
	}
	m, err := wire.DecodeSession(payload)
	if err != nil {
		b.complain("malformed", string(hub), err)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch m := m.(type) {
	case *wire.Reported:
		if leaf != wire.LeafReported || m.Hub != hub {
			break
		}
		if _, waits := b.reports[hub]; !waits {
			b.order = append(b.order, hub)
		}
		b.reports[hub] = message{m, retained}
		b.wake()
		return
	case *wire.CommandReply:
		if leaf != wire.LeafReply {
			break
		}
		if len(b.replies) >= maxReplies {
			b.log.Warn("an answer to a command was dropped: too many come at once", "hub", hub)
			return
		}
		b.replies = append(b.replies, reply{m, hub})
		b.wake()
		return
	}
	b.log.Debug("a message of a hub has no place on its topic", "hub", hub, "leaf", leaf)
}

func (b *inbox) wake() {
	select {
	case b.ring <- struct{}{}:
	default:
	}
}

// complain logs that a message makes no sense, now and then.
func (b *inbox) complain(why, who string, err error) {
	b.mu.Lock()
	now := b.now()
	if now.Sub(b.said) < complainEvery {
		b.unsaid++
		b.mu.Unlock()
		return
	}
	unsaid := b.unsaid
	b.said, b.unsaid = now, 0
	b.mu.Unlock()
	b.log.Warn("a message on MQTT was dropped", "why", why, "of", who, "err", err, "unsaid", unsaid)
}

// run hands out until ctx ends. A hub that has said nothing for gone is offline,
// whatever the broker has retained: when a broker ends, it says nobody's last will.
func (b *inbox) run(ctx context.Context, gone time.Duration) error {
	tick := time.NewTicker(gone / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			for _, r := range b.presence.silent(b.now(), gone) {
				b.log.Info("a hub has said nothing over MQTT for too long", "hub", r.Hub)
				b.nvr.Reported(ctx, r)
			}
		case <-b.ring:
		}
		reports, replies := b.take()
		for _, r := range replies { // somebody waits
			b.nvr.CommandReplied(r.CommandReply, r.hub)
		}
		for _, m := range reports {
			if !b.presence.hear(m, b.now(), gone) {
				continue
			}
			b.reported(m.Reported)
			b.nvr.Reported(ctx, m.Reported)
		}
	}
}

func (b *inbox) take() (reports []message, replies []reply) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, hub := range b.order {
		reports = append(reports, b.reports[hub])
	}
	replies = b.replies
	clear(b.reports)
	b.order, b.replies = nil, nil
	return reports, replies
}

// presence is when hubs were heard.
type presence map[vms.HubID]sign

// sign is a hub's sign of life.
type sign struct {
	at     time.Time // ours
	boot   string
	serial int64
	online bool
}

// hear notes a report, and reports whether it says something of today: what is
// retained may be the last word of a hub that has been dead for a year.
func (p presence) hear(m message, now time.Time, gone time.Duration) bool {
	old, known := p[m.Hub]
	if m.retained && m.Online {
		if known && !old.online && old.boot == m.Boot && old.serial >= m.Serial {
			return false
		}
		if c := m.Clock; c != nil && c.ErrorMS >= 0 && !m.At.IsZero() && now.Sub(m.At) > gone+time.Duration(c.ErrorMS)*time.Millisecond {
			return false
		}
	}
	s := sign{now, m.Boot, m.Serial, m.Online}
	if known && old.boot == s.boot {
		s.serial = max(s.serial, old.serial) // a last will has none
	}
	p[m.Hub] = s
	return true
}

// silent returns last wills for those that were not heard for gone.
func (p presence) silent(now time.Time, gone time.Duration) []*wire.Reported {
	var wills []*wire.Reported
	for hub, s := range p {
		if s.online && now.Sub(s.at) >= gone {
			s.online = false
			p[hub] = s
			wills = append(wills, &wire.Reported{Hub: hub, Boot: s.boot})
		}
	}
	return wills
}
