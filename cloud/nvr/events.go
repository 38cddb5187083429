package nvr

import (
	"context"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// EventType is a word of the API.
type EventType string

// The events.
const (
	EventStreamingStarted EventType = "streaming_started"
	EventStreamingEnded   EventType = "streaming_ended"
	EventRecording        EventType = "recording"
	EventGap              EventType = "gap"
	EventHubOnline        EventType = "hub_online"
	EventHubOffline       EventType = "hub_offline"
)

// Event is something that happened to an account.
type Event struct {
	Type    EventType
	Account vms.AccountID
	At      time.Time
	Channel vms.ChannelID  // of a stream, recording or gap
	Hub     vms.HubID      // of a stream or hub
	Cause   string         // why a stream ended
	Rec     *vms.Recording // of EventRecording
	Gap     *vms.Gap       // of EventGap
}

// eventBuffer is how many events a subscriber may lag behind. A page that
// stands still for that long reloads what it shows anyway.
const eventBuffer = 256

// bus hands events to whoever listens now. It keeps nothing: a subscriber that
// was away asks for the state it missed.
type bus struct {
	mu   sync.Mutex
	subs map[*subscriber]struct{}
}

type subscriber struct {
	account vms.AccountID
	ch      chan Event
}

// Subscribe returns the events of an account from now on. The channel closes
// when ctx ends, and when the subscriber is so slow that it would miss one: it
// then subscribes again and reads the state anew.
func (n *NVR) Subscribe(ctx context.Context, acct vms.AccountID) <-chan Event {
	s := &subscriber{account: acct, ch: make(chan Event, eventBuffer)}
	n.bus.mu.Lock()
	if n.bus.subs == nil {
		n.bus.subs = make(map[*subscriber]struct{})
	}
	n.bus.subs[s] = struct{}{}
	n.bus.mu.Unlock()
	context.AfterFunc(ctx, func() {
		n.bus.mu.Lock()
		defer n.bus.mu.Unlock()
		n.bus.drop(s)
	})
	return s.ch
}

// publish never blocks.
func (n *NVR) publish(e Event) {
	if e.At.IsZero() {
		e.At = n.now()
	}
	n.bus.mu.Lock()
	defer n.bus.mu.Unlock()
	for s := range n.bus.subs {
		if s.account != e.Account {
			continue
		}
		select {
		case s.ch <- e:
		default:
			n.bus.drop(s)
		}
	}
}

// drop ends a subscription once. b.mu is held.
func (b *bus) drop(s *subscriber) {
	if _, ok := b.subs[s]; ok {
		delete(b.subs, s)
		close(s.ch)
	}
}
