package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// refusedWait is how long the control line waits after the NVR refused the hub
// itself: somebody must act first, but nobody should have to come here for it.
const refusedWait = 5 * time.Minute

// askTime is how often the NVR is asked what time it is.
const askTime = time.Minute

// newControl makes the control line: a session without a stream, over which the
// NVR starts and stops streams.
func (a *Agent) newControl() *uplink.Session {
	return &uplink.Session{
		URL: a.id.NVRURL, Credential: a.credential(), Log: a.cfg.Log.With("session", "control"),
		Hello:     func() *wire.SessionHello { return &wire.SessionHello{Agent: a.name, Boot: a.boot} },
		OnMessage: a.command,
		OnState:   a.setControl,
	}
}

// runControl keeps the control line up. A hub that was revoked may be enrolled
// again by its owner under the same key, so even that is asked again, slowly.
func (a *Agent) runControl(ctx context.Context) error {
	for {
		err := a.control.Run(ctx)
		if err == nil {
			return nil
		}
		a.cfg.Log.Error("the NVR refuses this hub", "err", err, "wait", refusedWait)
		if !retry.Sleep(ctx, refusedWait) {
			return nil
		}
	}
}

// command carries out what the NVR asks. Starting waits for an old stream to
// end, so it must not hold up the control line.
func (a *Agent) command(m wire.SessionMessage) {
	switch m := m.(type) {
	case *wire.TimeAnswer:
		a.learnTime(m)
	case *wire.Start:
		a.background(func() { a.reply(m.ID, a.startFromCloud(m)) })
	case *wire.Stop:
		a.background(func() { a.reply(m.ID, a.stopFromCloud(m)) })
	}
}

// background runs f until the agent ends, unless it is ending.
func (a *Agent) background(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx != nil {
		a.wg.Go(f)
	}
}

// askTime asks the NVR what time it is: before any stream runs, the control
// line is the only one that can.
func (a *Agent) askTime() {
	now := time.Now()
	a.controlMu.Lock()
	a.asked = now
	a.controlMu.Unlock()
	// When the line is down, it is asked as soon as it is up.
	_ = a.control.Send(&wire.TimeQuery{Sent: now.UnixMicro()})
}

func (a *Agent) learnTime(m *wire.TimeAnswer) {
	now := time.Now()
	a.controlMu.Lock()
	asked := a.asked
	a.controlMu.Unlock()
	if asked.UnixMicro() == m.Sent && a.clock.Learn(asked, now, m.ServerTime) {
		a.cfg.Log.Warn("the hub's clock made a step", "server_time", m.ServerTime)
	}
}

// keepTime asks from time to time.
func (a *Agent) keepTime(ctx context.Context) error {
	t := time.NewTicker(askTime)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			a.askTime()
		}
	}
}

// late reports whether a deadline has passed. A hub that does not know the time
// obeys.
func (a *Agent) late(deadline time.Time) bool {
	return a.clock.Known() && a.clock.Now().After(deadline)
}

func (a *Agent) startFromCloud(m *wire.Start) error {
	if a.late(m.Deadline) {
		return errors.New("the command came too late")
	}
	if a.runs(m.Channel, m.SID, m.Camera) != nil {
		return nil // as asked
	}
	_, err := a.start(request{channel: m.Channel, sid: m.SID, nvrURL: m.NVRURL, camera: m.Camera, origin: originCloud})
	return err
}

func (a *Agent) stopFromCloud(m *wire.Stop) error {
	if a.late(m.Deadline) {
		return errors.New("the command came too late")
	}
	if err := a.stopChannel(m.Channel); !errors.Is(err, vms.ErrNotFound) {
		return err
	}
	return nil // it does not run: as asked
}

func (a *Agent) reply(id string, err error) {
	r := &wire.Reply{ID: id, OK: err == nil}
	if err != nil {
		r.Problem = err.Error()
		r.Problem = strings.ToValidUTF8(r.Problem[:min(len(r.Problem), 1000)], "")
	}
	if err := a.control.Send(r); err != nil {
		a.cfg.Log.Warn("cannot answer a command", "id", id, "err", err)
	}
}

func (a *Agent) setControl(err error) {
	a.controlMu.Lock()
	a.controlUp, a.controlErr = err == nil, err
	a.controlMu.Unlock()
	if err == nil {
		a.askTime()
	}
}

func (a *Agent) controlState() (state, problem string) {
	a.controlMu.Lock()
	defer a.controlMu.Unlock()
	switch {
	case a.controlUp:
		return "online", ""
	case a.controlErr != nil:
		return "offline", a.controlErr.Error()
	}
	return "connecting", ""
}
