package agent

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/zipato/vms/agent/control"
	"github.com/zipato/vms/agent/reconcile"
	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// refusedWait is how long the control line waits after the NVR refused the hub
// itself: somebody must act first, but nobody should have to come here for it.
const refusedWait = 5 * time.Minute

// askTime is how often the NVR is asked what time it is.
const askTime = time.Minute

const docBroker = "broker"

// The cloud reaches a hub in two ways: over MQTT, and over the control line, a
// session without a stream. Either is enough, and both may say the same.

// newLine makes the control line.
func (a *Agent) newLine() *uplink.Session {
	return &uplink.Session{
		URL: a.id.NVRURL, Credential: a.credential(), Client: a.client, Log: a.cfg.Log.With("session", "control"),
		Hello: func() *wire.SessionHello { return &wire.SessionHello{Agent: a.name, Boot: a.boot} },
		OnMessage: func(m wire.SessionMessage) {
			switch m := m.(type) {
			case *wire.TimeAnswer:
				a.learnTime(m)
			case *wire.Desired:
				a.obey(m)
			case *wire.Command:
				a.commands.take(m)
			case *wire.Broker:
				a.setBroker(m)
			}
		},
		OnState: a.setControl,
	}
}

// newMQTT makes the connection to the broker that the cloud named last.
func (a *Agent) newMQTT() *control.Client {
	c := control.New(control.Config{
		Hub: a.id.Hub, Boot: a.boot, TLS: a.tls, Insecure: a.cfg.Insecure, Log: a.cfg.Log.With("session", "mqtt"),
		OnDesired: a.obey, OnCommand: func(m *wire.Command) { a.commands.take(m) },
	})
	if b := a.broker(); b != nil {
		c.SetBroker(*b)
	}
	return c
}

// broker returns the broker that is kept, or nil.
func (a *Agent) broker() *wire.Broker {
	b, err := keptBroker(a.state, a.id.Hub)
	if err != nil {
		a.cfg.Log.Error("where the MQTT broker is cannot be read; the NVR will say it again", "err", err)
	}
	return b
}

// keptBroker returns the broker that the cloud named to this hub, or nil.
func keptBroker(docs documents, hub vms.HubID) (*wire.Broker, error) {
	data, err := docs.Document(docBroker)
	if err != nil || data == nil {
		return nil, err
	}
	var b wire.Broker
	if json.Unmarshal(data, &b) != nil { // its error may repeat the password
		return nil, errors.New("the MQTT broker that the cloud named")
	}
	if b.Username != string(hub) {
		return nil, nil // the hub was enrolled anew
	}
	return &b, nil
}

// setBroker takes what the NVR says, and keeps it for the time when it is away.
func (a *Agent) setBroker(b *wire.Broker) {
	a.mqtt.SetBroker(*b)
	data, err := json.Marshal(b)
	if err == nil {
		err = a.state.PutDocument(docBroker, data)
	}
	if err != nil {
		a.cfg.Log.Error("cannot keep where the MQTT broker is; after a restart the NVR has to be asked", "err", err)
	}
}

// runControl keeps the control line up. A hub that was revoked may be enrolled
// again by its owner under the same key, so even that is asked again, slowly.
func (a *Agent) runControl(ctx context.Context) error {
	for {
		err := a.line.Run(ctx)
		if err == nil {
			return nil
		}
		a.cfg.Log.Error("the NVR refuses this hub", "err", err, "wait", refusedWait)
		if !retry.Sleep(ctx, refusedWait) {
			return nil
		}
	}
}

// obey takes what the cloud wants. It is on flash when this returns.
func (a *Agent) obey(m *wire.Desired) {
	err := a.reconciler.Desired(m)
	switch {
	case errors.Is(err, reconcile.ErrOld):
		a.cfg.Log.Debug("desired document ignored", "err", err)
		a.tellReport() // who sent it again may not know that it was heard
	case err != nil:
		a.cfg.Log.Error("desired document refused", "err", err)
	}
}

// reply answers a command both ways: who asked takes the first.
func (a *Agent) reply(r *wire.CommandReply) {
	a.mqtt.Reply(r)
	if err := a.line.Send(r); err != nil {
		a.cfg.Log.Debug("answer not sent over the control line", "id", r.ID, "err", err)
	}
}

// background runs f until the agent ends, unless it is ending.
func (a *Agent) background(f func(context.Context)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx != nil {
		ctx := a.working
		a.wg.Go(func() { f(ctx) })
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
	_ = a.line.Send(&wire.TimeQuery{Sent: now.UnixMicro()})
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

func (a *Agent) setControl(err error) {
	a.controlMu.Lock()
	a.controlUp, a.controlErr = err == nil, err
	a.controlMu.Unlock()
	switch {
	case err == nil:
		a.park("")
		a.askTime()
		a.tellReport()
	case problem.TypeOf(err) == wire.ProblemRival:
		a.park("Another agent is connected with the identity of this hub. Give this one an enrolment of its own.")
	}
}

// park leaves cameras and broker to another agent with this hub's identity,
// which the NVR has met first, until the NVR takes this one. Two would pull each
// camera twice, run each command twice and throw each other off the broker.
func (a *Agent) park(why string) {
	a.controlMu.Lock()
	changed := a.parked != why
	a.parked = why
	a.controlMu.Unlock()
	if !changed {
		return
	}
	a.reconciler.Suspend(why)
	var b wire.Broker
	if why == "" {
		if kept := a.broker(); kept != nil {
			b = *kept
		}
	}
	a.mqtt.SetBroker(b)
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
