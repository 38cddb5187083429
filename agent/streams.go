package agent

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/agent/reconcile"
	"github.com/zipato/vms/agent/state"
	"github.com/zipato/vms/agent/stream"
	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// originSpool: nobody asked for the stream; what an earlier run of the agent left
// is brought. The other origins are those of package wire.
const originSpool = "spool"

// entry is one channel's stream.
type entry struct {
	id      vms.StreamID
	stream  *stream.Stream
	camera  vms.Camera
	channel vms.ChannelID
	session state.Stream
	origin  string
	mode    wire.Mode
	// place is where in the time of a recording its recordings begin.
	place int
	kill  context.CancelFunc // ends it at once; what it holds stays in the spool
	done  chan struct{}
	since time.Time

	// Under Agent.mu:
	stopping bool      // somebody asked it to end
	ended    time.Time // zero while it runs or delivers
}

// pulls reports whether the entry has its camera, or is about to. a.mu is held.
func (e *entry) pulls() bool {
	return e.ended.IsZero() && !e.stopping && e.origin != originSpool
}

// runner is the Agent as reconcile sees it: it starts, replaces and stops streams.
type runner struct{ *Agent }

// Start implements reconcile.Runner. A camera is pulled once: the stream of the
// same channel ends, and what it held is the new one's to send.
func (a runner) Start(t reconcile.Target) error {
	if !a.id.SameOrigin(t.NVRURL) {
		return fmt.Errorf("%w: the stream is for another NVR than the one this hub is enrolled with", vms.ErrForbidden)
	}
	if err := checkCamera(t.Camera); err != nil {
		return err
	}
	a.mu.Lock()
	old, full := a.entries[t.Channel], a.full(t.Channel)
	a.mu.Unlock()
	if full != nil {
		return full
	}
	if old != nil {
		old.kill()
		<-old.stream.Released()
	}
	if err := a.launch(t, old); err != nil {
		return err
	}
	a.remember(t.Channel, nil)
	return nil
}

// Stop implements reconcile.Runner: it returns at once; what the stream holds is
// brought meanwhile, and then it leaves the list.
func (a runner) Stop(ch vms.ChannelID) error {
	if err := a.stopChannel(ch); !errors.Is(err, vms.ErrNotFound) {
		return err
	}
	return nil
}

// State implements reconcile.Runner.
func (a runner) State(ch vms.ChannelID) reconcile.State {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.entries[ch]
	if e == nil || e.origin == originSpool {
		return reconcile.State{}
	}
	st := e.stream.Status()
	return reconcile.State{Running: e.pulls(), Recording: e.pulls() && e.stream.Recording(), Stream: st.State, Problem: st.Problem}
}

// launch runs t in the place of old.
func (a *Agent) launch(t reconcile.Target, old *entry) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx == nil {
		return fmt.Errorf("%w: the agent is stopping", vms.ErrUnavailable)
	}
	if e := a.entries[t.Channel]; e != nil && e != old && e.ended.IsZero() {
		return fmt.Errorf("%w: the stream of this channel was just started by somebody else", vms.ErrConflict)
	}
	if err := a.full(t.Channel); err != nil && t.Origin != originSpool {
		return err
	}
	ctx, kill := context.WithCancel(a.ctx)
	e := &entry{
		id: vms.NewID[vms.StreamID]("str"), channel: t.Channel, camera: t.Camera, origin: t.Origin, mode: t.Mode,
		session: state.Stream{Channel: t.Channel, SID: t.SID, NVRURL: t.NVRURL},
		place:   a.freePlace(t.Channel), kill: kill, done: make(chan struct{}), since: a.clock.Now(),
	}
	var after <-chan struct{}
	if old != nil {
		after = old.done
	}
	log := a.cfg.Log.With("channel", t.Channel)
	where := cameraHost(t.Camera)
	e.stream = stream.New(stream.Config{
		ID: e.id, Channel: t.Channel, SID: t.SID, Token: t.Token, NVRURL: t.NVRURL,
		Deliver: t.Origin == originSpool, Camera: t.Camera, Mode: t.Mode, PreRoll: t.PreRoll, PostRoll: t.PostRoll,
		Known: a.known[where], Remember: func(t string) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.known[where] = t
		},
		Spool: a.store.Spool(t.Channel), After: after, Clock: a.clock, Client: a.client, Credential: a.credential(), Agent: a.name, Boot: a.boot,
		Phase: share(e.place), Governor: a.governor, NewestFirst: a.cfg.NewestFirst, Pressure: a.store.Pressure,
		Log: log, OnState: func(stream.Status) { a.reconciler.Kick() }, OnRecording: a.reconciler.Kick,
	})
	a.entries[t.Channel] = e
	a.wg.Go(func() {
		defer a.reconciler.Kick()
		defer close(e.done)
		defer kill()
		err := e.stream.Run(ctx)
		if err != nil {
			log.Warn("stream ended", "err", err)
		}
		if err == nil { // all is brought, or the agent ends
			a.remember(e.channel, e)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		e.ended = time.Now()
		if err == nil && a.entries[e.channel] == e {
			delete(a.entries, e.channel)
		}
	})
	return nil
}

// deliverRest brings what an earlier run of the agent left on flash.
func (a *Agent) deliverRest() {
	a.keepMu.Lock()
	holding := make(map[vms.ChannelID]bool)
	for ch := range a.kept {
		a.store.Spool(ch) // perhaps it has gaps, and nothing on flash
	}
	for _, ch := range a.store.Channels() {
		holding[ch] = true
	}
	var deliver []state.Stream
	var forget []vms.ChannelID
	for ch, s := range a.kept {
		switch {
		case !holding[ch]:
			forget = append(forget, ch)
		case a.id.SameOrigin(s.NVRURL):
			deliver = append(deliver, s)
			delete(holding, ch)
		}
	}
	a.keepMu.Unlock()
	for _, ch := range forget {
		a.remember(ch, nil)
	}
	for _, s := range deliver {
		if err := a.launch(reconcile.Target{Channel: s.Channel, SID: s.SID, NVRURL: s.NVRURL, Origin: originSpool}, nil); err != nil {
			a.cfg.Log.Error("cannot bring what is on flash", "channel", s.Channel, "err", err)
		}
	}
	for ch := range holding {
		a.cfg.Log.Warn("footage on flash belongs to no session with this cloud; it stays until the channel is started, or space is needed", "channel", ch)
	}
}

// remember keeps with which session a channel's footage can be brought, for as
// long as there is a stream, other than the one that has ended, or footage.
func (a *Agent) remember(ch vms.ChannelID, ended *entry) {
	a.keepMu.Lock()
	defer a.keepMu.Unlock()
	a.mu.Lock()
	e := a.entries[ch]
	a.mu.Unlock()
	was, known := a.kept[ch]
	var err error
	switch st := a.store.Spool(ch).Stats(); {
	case e != nil && e != ended && e.session == was:
	case e != nil && e != ended:
		if err = a.state.PutStream(e.session); err == nil {
			a.kept[ch] = e.session
		}
	case known && st.Chunks == 0 && st.Gaps == 0:
		if err = a.state.DropStream(ch); err == nil {
			delete(a.kept, ch)
		}
	}
	if err != nil {
		a.cfg.Log.Error("cannot keep the session of a channel; what it holds could not be brought after a restart", "channel", ch, "err", err)
	}
}

// freePlace returns the least place that no other stream with a camera has. a.mu is held.
func (a *Agent) freePlace(ch vms.ChannelID) int {
	for place := 0; ; place++ {
		taken := false
		for _, e := range a.entries {
			taken = taken || e.place == place && e.channel != ch && e.pulls()
		}
		if !taken {
			return place
		}
	}
}

// share spreads places evenly over the time of a recording, so that the streams
// of a hub do not upload, and need their most memory, at the same moment: 0,
// 1/2, 1/4, 3/4, 1/8, ... (van der Corput's sequence) is even for any number.
func share(place int) float64 {
	return float64(bits.Reverse32(uint32(place))) / (1 << 32)
}

func (a *Agent) credential() uplink.Credential {
	return uplink.Credential{Hub: a.id.Hub, Key: a.id.Key}
}

// full says why the camera of a channel cannot be pulled beside those that are.
// a.mu is held.
func (a *Agent) full(ch vms.ChannelID) error {
	n := 0
	for _, e := range a.entries {
		if e.channel != ch && e.pulls() {
			n++
		}
	}
	if n >= maxStreams {
		return fmt.Errorf("%w: this hub runs %d streams already", vms.ErrUnavailable, maxStreams)
	}
	return nil
}

// tidy drops streams from the list that ended long ago. a.mu is held.
func (a *Agent) tidy() {
	for ch, e := range a.entries {
		if !e.ended.IsZero() && time.Since(e.ended) > keepEnded {
			delete(a.entries, ch)
		}
	}
}

// stopChannel ends the stream of a channel. It returns at once; what the stream
// holds is brought meanwhile, and then it leaves the list.
func (a *Agent) stopChannel(ch vms.ChannelID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.entries[ch]
	if e == nil {
		return fmt.Errorf("%w: no stream of channel %s", vms.ErrNotFound, ch)
	}
	if a.ctx == nil {
		return nil // everything is being stopped
	}
	e.stopping = true
	e.stream.Stop()
	if !e.ended.IsZero() {
		delete(a.entries, ch)
	}
	return nil
}

// Start implements lan.Agent: the token says which channel, the caller which camera.
func (a *Agent) Start(tok string, cam vms.Camera) (lan.Stream, error) {
	t, err := a.verifier.VerifyStream(tok, a.clock.Now())
	if err != nil {
		return lan.Stream{}, fmt.Errorf("token: %w", err)
	}
	if t.Hub != "" && t.Hub != a.id.Hub {
		return lan.Stream{}, fmt.Errorf("%w: the token is for another hub", vms.ErrForbidden)
	}
	if !a.id.SameOrigin(t.NVR) {
		return lan.Stream{}, fmt.Errorf("%w: the token is for another NVR than the one this hub is enrolled with", vms.ErrForbidden)
	}
	err = a.reconciler.Start(reconcile.Local{Channel: t.Channel, SID: t.SID, NVRURL: t.NVR, Token: tok, Camera: cam})
	if err != nil {
		return lan.Stream{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.entries[t.Channel]
	if e == nil {
		return lan.Stream{}, fmt.Errorf("%w: the stream was stopped again at this moment", vms.ErrConflict)
	}
	return a.describe(e), nil
}

// Stop implements lan.Agent.
func (a *Agent) Stop(id vms.StreamID) error {
	a.mu.Lock()
	var ch vms.ChannelID
	for _, e := range a.entries {
		if e.id == id {
			ch = e.channel
		}
	}
	a.mu.Unlock()
	if ch == "" {
		return fmt.Errorf("%w: no stream %s", vms.ErrNotFound, id)
	}
	if err := a.reconciler.Stop(ch); !errors.Is(err, vms.ErrNotFound) {
		return err
	}
	// Nobody wants it any more: it delivers, or has ended and is still on the list.
	return a.stopChannel(ch)
}

// Event implements lan.Agent: something happens at a channel, or at all that are
// in mode event when it is empty; it is recorded with what came before it.
func (a *Agent) Event(ch vms.ChannelID, preRoll, postRoll *time.Duration) error {
	a.mu.Lock()
	var all []*stream.Stream
	for _, e := range a.entries {
		if (ch == "" || e.channel == ch) && e.pulls() && e.mode == wire.ModeEvent {
			all = append(all, e.stream)
		}
	}
	e := a.entries[ch]
	a.mu.Unlock()
	switch {
	case len(all) > 0:
	case ch == "":
		return fmt.Errorf("%w: no channel of this hub is in mode event and runs", vms.ErrConflict)
	case e == nil:
		return fmt.Errorf("%w: no stream of channel %s", vms.ErrNotFound, ch)
	default:
		return fmt.Errorf("%w: channel %s is not in mode event, or does not run", vms.ErrConflict, ch)
	}
	for _, s := range all {
		s.Event(preRoll, postRoll)
	}
	return nil
}
