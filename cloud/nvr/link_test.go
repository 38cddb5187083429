package nvr_test

import (
	"crypto/ed25519"
	"encoding/json"
	"slices"
	"sync"
	"testing"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/seal"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// link is a hub or an agent that notes what it is told.
type link struct {
	told chan wire.SessionMessage
	// hears, if set, is called with every message.
	hears func(wire.SessionMessage)

	mu       sync.Mutex
	msgs     []wire.SessionMessage
	revoked  string
	replaced bool
}

var (
	_ nvr.HubLink    = (*link)(nil)
	_ nvr.StreamLink = (*link)(nil)
)

func newLink() *link { return &link{told: make(chan wire.SessionMessage, 100)} }

func (l *link) Send(m wire.SessionMessage) {
	l.mu.Lock()
	l.msgs = append(l.msgs, m)
	l.mu.Unlock()
	l.told <- m
	if l.hears != nil {
		l.hears(m)
	}
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

// online gives a hub a control line.
func online(w *nvrtest.World, hub vms.HubID) *link {
	l := newLink()
	w.HubConnected(nvr.Session{Account: acct, Hub: hub}, "boot_1", l)
	return l
}

// desired is what a hub should do now, which must be valid.
func desired(t *testing.T, w *nvrtest.World, hub vms.HubID) *wire.Desired {
	t.Helper()
	d, err := w.Desired(t.Context(), hub)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wire.EncodeSession(d); err != nil {
		t.Fatalf("not valid: %v", err)
	}
	return d
}

// order is what a hub is told of a channel, or nil.
func order(d *wire.Desired, ch vms.ChannelID) *wire.DesiredStream {
	for i := range d.Streams {
		if d.Streams[i].Channel == ch {
			return &d.Streams[i]
		}
	}
	return nil
}

// camera opens what is sealed to a hub.
func camera(t *testing.T, key ed25519.PrivateKey, s *wire.DesiredStream) (cam vms.Camera) {
	t.Helper()
	plain, err := seal.Open(key, "camera/"+string(s.Channel), s.Camera)
	if err == nil {
		err = json.Unmarshal(plain, &cam)
	}
	if err != nil {
		t.Fatal(err)
	}
	return cam
}

// start starts a channel whose hub is online, and returns its session.
func start(t *testing.T, w *nvrtest.World, ch nvr.Channel) nvr.Session {
	t.Helper()
	if _, err := w.StartChannel(t.Context(), acct, ch.ID, nvr.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := w.Store.Session(t.Context(), order(desired(t, w, ch.Hub), ch.ID).SID)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func stop(t *testing.T, w *nvrtest.World, ch vms.ChannelID) {
	t.Helper()
	if _, err := w.StopChannel(t.Context(), acct, ch, nvr.StartOptions{}); err != nil {
		t.Fatal(err)
	}
}
