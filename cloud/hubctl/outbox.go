package hubctl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// window is how many documents are on their way at once.
	window = 16
	// pace is the time between two windows of documents that the broker probably
	// has: 320 hubs a second, and those with news in between.
	pace = 50 * time.Millisecond
)

// outbox publishes documents. Of one hub never two at a time, so that the broker
// never keeps an older one instead of a newer.
type outbox struct {
	nvr Rules
	log *slog.Logger

	mu   sync.Mutex
	has  map[vms.HubID]issue // what the broker has acknowledged
	lost map[vms.HubID]bool  // hubs that show that they have not got it
	ring chan struct{}       // one place: somebody is in lost
	lag  time.Duration
}

// issue is a document that was published.
type issue struct {
	revision int64
	at       time.Time
}

func newOutbox(nvr Rules, log *slog.Logger) *outbox {
	return &outbox{nvr: nvr, log: log, has: make(map[vms.HubID]issue), lost: make(map[vms.HubID]bool), ring: make(chan struct{}, 1), lag: defaultTiming.lag}
}

// run publishes what is to be published, until ctx ends or the connection fails.
// First come the documents with news, then all others: the broker may have
// forgotten them.
func (o *outbox) run(ctx context.Context, l *link, t *timing) error {
	o.mu.Lock()
	o.lag = t.lag
	o.mu.Unlock()
	p := &publisher{outbox: o, link: l, timing: t, said: make(map[vms.HubID]bool)}
	sweep := time.NewTicker(t.sweep)
	defer sweep.Stop()
	var rest []vms.HubID
	listed := false
	for {
		hubs, err := o.nvr.DirtyHubs(ctx)
		if err != nil && ctx.Err() == nil {
			o.log.Error("cannot list the hubs to be told; trying again", "err", err, "wait", t.sweep)
		}
		if err := p.publish(ctx, append(hubs, o.takeLost()...)); err != nil {
			return err
		}
		if !listed {
			if rest, err = o.nvr.AllHubs(ctx); err != nil && ctx.Err() == nil {
				o.log.Error("cannot list the hubs; trying again", "err", err, "wait", t.sweep)
			}
			listed = err == nil
		}
		var more <-chan time.Time
		if rest, err = p.publishRest(ctx, rest); err != nil {
			return err
		}
		if len(rest) > 0 {
			more = time.After(pace)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.nvr.DesiredChanged():
		case <-o.ring:
		case <-sweep.C:
		case <-more:
		}
	}
}

// reported looks whether a hub has got its document: a broker can lose one that
// it has acknowledged.
func (o *outbox) reported(r *wire.Reported) {
	o.mu.Lock()
	defer o.mu.Unlock()
	has := o.has[r.Hub]
	if !r.Online || r.Revision >= has.revision || time.Since(has.at) < o.lag {
		return
	}
	o.lost[r.Hub] = true
	select {
	case o.ring <- struct{}{}:
	default:
	}
}

func (o *outbox) takeLost() []vms.HubID {
	o.mu.Lock()
	defer o.mu.Unlock()
	hubs := make([]vms.HubID, 0, len(o.lost))
	for h := range o.lost {
		hubs = append(hubs, h)
	}
	clear(o.lost)
	return hubs
}

// publisher publishes over one connection.
type publisher struct {
	*outbox
	link   *link
	timing *timing

	said map[vms.HubID]bool // over this connection, by run
}

// publishRest publishes the next window of hubs that were not told over this
// connection, and returns the others.
func (p *publisher) publishRest(ctx context.Context, hubs []vms.HubID) (rest []vms.HubID, err error) {
	var next []vms.HubID
	for len(hubs) > 0 && len(next) < window {
		if !p.said[hubs[0]] {
			next = append(next, hubs[0])
		}
		hubs = hubs[1:]
	}
	return hubs, p.publish(ctx, next)
}

// publish publishes the documents of hubs. An error is the connection's; what
// went wrong on this side is logged and tried again later.
func (p *publisher) publish(ctx context.Context, hubs []vms.HubID) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(window)
	begun := make(map[vms.HubID]bool, len(hubs))
	for _, hub := range hubs {
		if begun[hub] {
			continue
		}
		begun[hub] = true
		p.said[hub] = true
		g.Go(func() error { return p.publishOne(ctx, hub) })
	}
	return g.Wait()
}

func (p *publisher) publishOne(ctx context.Context, hub vms.HubID) error {
	var revision int64
	var payload []byte
	d, err := p.nvr.Desired(ctx, hub)
	if err == nil {
		revision = d.Revision
		payload, err = wire.EncodeSession(d)
	}
	if errors.Is(err, vms.ErrNotFound) {
		err = nil // an empty message takes the place of the document
	}
	if err != nil {
		if ctx.Err() == nil {
			p.log.Error("cannot tell a hub what to do; trying again", "hub", hub, "err", err, "wait", p.timing.sweep)
			p.mu.Lock()
			p.lost[hub] = true // looked at in the next turn
			p.mu.Unlock()
		}
		return nil
	}
	leaves := []string{wire.LeafDesired}
	if len(payload) == 0 {
		leaves = append(leaves, wire.LeafReported) // what it said last is of no use to anybody
	}
	for _, leaf := range leaves {
		if err := p.link.publish(ctx, wire.Topic(hub, leaf), true, payload, p.timing.ack); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
	p.mu.Lock()
	if revision == 0 {
		delete(p.has, hub)
	} else {
		p.has[hub] = issue{revision, time.Now()}
	}
	p.mu.Unlock()
	// The broker has it: that is to be noted even when we are told to stop now.
	note, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.timing.ack)
	defer cancel()
	if err := p.nvr.Published(note, hub, revision); err != nil {
		p.log.Error("cannot note that a hub was told; it will be told again", "hub", hub, "err", err)
	}
	return nil
}
