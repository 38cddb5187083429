package agent

import (
	"context"
	"fmt"
	"math/bits"
	"time"

	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/agent/state"
	"github.com/zipato/vms/agent/stream"
	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/pkg/vms"
)

// Who asked for a stream.
const (
	originLAN   = "lan"   // an app, with a token
	originCloud = "cloud" // the NVR
	originSpool = "spool" // nobody: what an earlier run of the agent left is brought
)

// entry is one channel's stream.
type entry struct {
	id      vms.StreamID
	stream  *stream.Stream
	camera  vms.Camera
	channel vms.ChannelID
	session state.Stream
	origin  string
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

// request is a stream that somebody wants.
type request struct {
	channel vms.ChannelID
	sid     vms.SID
	nvrURL  string
	token   string
	camera  vms.Camera
	origin  string
}

// start begins a stream, or replaces the one of the same channel: a camera is
// pulled once. What the old one held is the new one's to send.
func (a *Agent) start(r request) (*entry, error) {
	if !a.id.SameOrigin(r.nvrURL) {
		return nil, fmt.Errorf("%w: the token is for another NVR than the one this hub is enrolled with", vms.ErrForbidden)
	}
	if err := checkCamera(r.camera); err != nil {
		return nil, err
	}
	a.mu.Lock()
	old := a.entries[r.channel]
	if old != nil && r.origin == originLAN && old.origin == originCloud && old.pulls() {
		a.mu.Unlock()
		return nil, fmt.Errorf("%w: the cloud runs the stream of this channel; stop it there first", vms.ErrConflict)
	}
	if (old == nil || !old.pulls()) && a.pulling() >= maxStreams {
		a.mu.Unlock()
		return nil, fmt.Errorf("%w: this hub runs %d streams already", vms.ErrUnavailable, maxStreams)
	}
	a.mu.Unlock()
	if old != nil {
		old.kill()
		<-old.stream.Released()
	}
	e, err := a.launch(r, old)
	if err != nil {
		return nil, err
	}
	a.remember(r.channel, nil)
	return e, nil
}

// launch runs what r asks for in the place of old.
func (a *Agent) launch(r request, old *entry) (*entry, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx == nil {
		return nil, fmt.Errorf("%w: the agent is stopping", vms.ErrUnavailable)
	}
	if e := a.entries[r.channel]; e != nil && e != old && e.ended.IsZero() {
		return nil, fmt.Errorf("%w: the stream of this channel was just started by somebody else", vms.ErrConflict)
	}
	ctx, kill := context.WithCancel(a.ctx)
	e := &entry{
		id: vms.NewID[vms.StreamID]("str"), channel: r.channel, camera: r.camera, origin: r.origin,
		session: state.Stream{Channel: r.channel, SID: r.sid, NVRURL: r.nvrURL},
		place:   a.freePlace(r.channel), kill: kill, done: make(chan struct{}), since: a.clock.Now(),
	}
	var after <-chan struct{}
	if old != nil {
		after = old.done
	}
	log := a.cfg.Log.With("channel", r.channel)
	where := cameraHost(r.camera)
	e.stream = stream.New(stream.Config{
		ID: e.id, Channel: r.channel, SID: r.sid, Token: r.token, NVRURL: r.nvrURL,
		Deliver: r.origin == originSpool, Camera: r.camera,
		Known: a.known[where], Remember: func(t string) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.known[where] = t
		},
		Spool: a.store.Spool(r.channel), After: after, Clock: a.clock, Credential: a.credential(), Agent: a.name, Boot: a.boot,
		Phase: share(e.place), Governor: a.governor, NewestFirst: a.cfg.NewestFirst, Pressure: a.store.Pressure,
		Log: log, OnState: func(stream.Status) {},
	})
	a.entries[r.channel] = e
	a.wg.Go(func() {
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
	return e, nil
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
		_, err := a.launch(request{channel: s.Channel, sid: s.SID, nvrURL: s.NVRURL, origin: originSpool}, nil)
		if err != nil {
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

// runs returns the stream of a channel if it runs under sid from cam, else nil.
func (a *Agent) runs(ch vms.ChannelID, sid vms.SID, cam vms.Camera) *entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.entries[ch]
	if e == nil || !e.pulls() || a.ctx == nil || e.session.SID != sid || !sameCamera(e.camera, cam) {
		return nil
	}
	return e
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

// pulling counts the streams with a camera. a.mu is held.
func (a *Agent) pulling() int {
	n := 0
	for _, e := range a.entries {
		if e.pulls() {
			n++
		}
	}
	return n
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
	e := a.runs(t.Channel, t.SID, cam) // a second tap on the same button must not interrupt what it started
	if e == nil {
		e, err = a.start(request{channel: t.Channel, sid: t.SID, nvrURL: t.NVR, token: tok, camera: cam, origin: originLAN})
	}
	if err != nil {
		return lan.Stream{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.describe(e), nil
}

// Stop implements lan.Agent.
func (a *Agent) Stop(id vms.StreamID) error {
	a.mu.Lock()
	var ch vms.ChannelID
	declared := false
	for _, e := range a.entries {
		if e.id == id {
			ch, declared = e.channel, e.origin == originCloud && e.pulls()
		}
	}
	a.mu.Unlock()
	if declared {
		return fmt.Errorf("%w: the cloud runs this stream; stop it there", vms.ErrForbidden)
	}
	if ch == "" {
		return fmt.Errorf("%w: no stream %s", vms.ErrNotFound, id)
	}
	return a.stopChannel(ch)
}
