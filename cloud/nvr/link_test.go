package nvr_test

import (
	"context"
	"slices"
	"sync"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/wire"
)

// link is a hub or an agent that notes what it is told. It answers commands.
type link struct {
	ok     bool // what it answers
	silent bool // it does not
	told   chan wire.SessionMessage

	mu       sync.Mutex
	msgs     []wire.SessionMessage
	revoked  string
	replaced bool
}

var (
	_ nvr.HubLink    = (*link)(nil)
	_ nvr.StreamLink = (*link)(nil)
)

func newLink(ok bool) *link { return &link{ok: ok, told: make(chan wire.SessionMessage, 100)} }

func (l *link) Command(ctx context.Context, m wire.SessionMessage) (wire.Reply, error) {
	l.Send(m)
	if l.silent {
		<-ctx.Done()
		return wire.Reply{}, ctx.Err()
	}
	return wire.Reply{OK: l.ok, Problem: "no room"}, nil
}

func (l *link) Send(m wire.SessionMessage) {
	l.mu.Lock()
	l.msgs = append(l.msgs, m)
	l.mu.Unlock()
	l.told <- m
}

func (l *link) Revoke(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revoked = why
}

func (l *link) Replace() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replaced = true
}

func (l *link) sent() []wire.SessionMessage {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.msgs)
}

func (l *link) ended() (revoked string, replaced bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.revoked, l.replaced
}
