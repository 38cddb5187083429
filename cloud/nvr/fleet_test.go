package nvr_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// fleet is workers that live, and streams that go to them.
type fleet struct {
	*nvrtest.World
	t       *testing.T
	workers map[vms.WorkerID]*node
	streams []*agent
	passed  time.Duration
}

// node is a worker. Its load is what it says with each heartbeat.
type node struct {
	info vms.WorkerInfo
	link *nvrtest.WorkerLink
	load vms.WorkerLoad
	mute bool // it says nothing
	runs int
}

// agent is one stream of a hub: where it was told to push.
type agent struct {
	f  *fleet
	ch vms.ChannelID
	s  nvr.Session
	// holds: its hub has chunks that are not in the cloud.
	holds bool

	mu      sync.Mutex
	got     []*wire.Assign
	heard   []time.Time // when each of got came
	revoked bool
}

var _ nvr.StreamLink = (*agent)(nil)

func (a *agent) Send(m wire.SessionMessage) {
	if m, ok := m.(*wire.Assign); ok {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.got, a.heard = append(a.got, m), append(a.heard, a.f.Clock.Now())
	}
}

func (a *agent) Revoke(string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked = true
}

func (a *agent) Replace() {}

// at is the assignment that the agent obeys: of the highest generation.
func (a *agent) at() wire.Assign {
	a.mu.Lock()
	defer a.mu.Unlock()
	var best wire.Assign
	for _, m := range a.got {
		if m.Generation > best.Generation {
			best = *m
		}
	}
	return best
}

// join opens the stream's session. It names the worker instance that it pushes to, if any.
func (a *agent) join(worker vms.Instance) {
	a.f.t.Helper()
	hello := &wire.SessionHello{Worker: worker}
	if a.holds {
		at := a.f.Clock.Now()
		hello.Holding = []wire.HeldRange{{Chunks: vms.ChunkRange{Epoch: 1, First: 1, Last: 2}, Start: at.Add(-time.Second), End: at}}
	}
	m, err := a.f.Assign(a.f.t.Context(), a.s, hello, a)
	if err != nil {
		a.f.t.Fatal(err)
	}
	if m != nil {
		a.Send(m)
	}
}

func (a *agent) leave() { a.f.Detach(a.s, a) }

// want asks for another worker.
func (a *agent) want(instance vms.Instance) {
	a.f.t.Helper()
	m, err := a.f.WantWorker(a.f.t.Context(), a.s, &wire.WantWorker{Instance: instance, Why: "test"}, a)
	if err != nil {
		a.f.t.Fatal(err)
	}
	if m != nil {
		a.Send(m)
	}
}

func newFleet(t *testing.T, change func(*nvr.Config)) *fleet {
	return &fleet{World: nvrtest.New(t, change), t: t, workers: make(map[vms.WorkerID]*node)}
}

// up starts a worker, or starts it again.
func (f *fleet) up(id vms.WorkerID, change func(*vms.WorkerInfo)) *node {
	f.t.Helper()
	n := f.workers[id]
	if n == nil {
		n = &node{}
		f.workers[id] = n
	}
	n.runs++
	n.mute, n.load = false, vms.WorkerLoad{}
	n.info = vms.WorkerInfo{ID: id, Instance: vms.Instance(fmt.Sprintf("%s-%d", id, n.runs)),
		PushURL: "ws://" + string(id) + "/push/v1", LiveURL: "ws://" + string(id) + "/live/v1/mse"}
	if change != nil {
		change(&n.info)
	}
	n.link = f.Worker(f.t, n.info)
	return n
}

// kill ends a worker's process: its line breaks.
func (f *fleet) kill(id vms.WorkerID) {
	n := f.workers[id]
	n.mute = true
	f.WorkerDown(id, n.info.Instance, n.link)
}

// stream makes a channel with a session, of a hub in a zone, which has not joined yet.
func (f *fleet) stream(zone string) *agent {
	f.t.Helper()
	i := len(f.streams)
	a := &agent{f: f, ch: vms.ChannelID(fmt.Sprintf("ch_%d", i))}
	hub := vms.HubID(fmt.Sprintf("hub_%d", i))
	a.s = nvr.Session{SID: vms.SID(fmt.Sprintf("sid_%d", i)), Account: acct, Channel: a.ch, Hub: hub, State: nvr.SessionOpen, CreatedAt: f.Clock.Now(), Zone: zone}
	ctx := f.t.Context()
	for _, err := range []error{
		f.Store.CreateHub(ctx, nvr.Hub{ID: hub, Account: acct, Name: "Hub", Zone: zone, CreatedAt: f.Clock.Now()}, nvr.CodeHash{byte(i), byte(i >> 8), 1}, f.Clock.Now()),
		f.Store.CreateChannel(ctx, nvr.ChannelRow{ID: a.ch, Account: acct, Hub: hub, CreatedAt: f.Clock.Now()}),
		f.Store.CreateSession(ctx, a.s),
	} {
		if err != nil {
			f.t.Fatal(err)
		}
	}
	f.streams = append(f.streams, a)
	return a
}

// joined makes streams that have joined.
func (f *fleet) joined(n int, zone string) []*agent {
	f.t.Helper()
	out := make([]*agent, n)
	for i := range out {
		out[i] = f.stream(zone)
		out[i].join("")
	}
	return out
}

// pass lets time pass as it does while Run runs, with a heartbeat every second.
func (f *fleet) pass(d time.Duration) {
	f.t.Helper()
	const step = 200 * time.Millisecond
	for range d / step {
		f.Clock.Add(step)
		if f.passed += step; f.passed%time.Second == 0 {
			for id, n := range f.workers {
				if !n.mute {
					f.WorkerAlive(id, n.info.Instance, n.load)
				}
			}
		}
		if err := f.TendWorkers(f.t.Context()); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := f.CheckSeats(); err != nil {
		f.t.Fatal(err)
	}
}

// counts says how many of the agents obey each worker.
func counts(agents []*agent) map[vms.WorkerID]int {
	out := make(map[vms.WorkerID]int)
	for _, a := range agents {
		out[a.at().Worker]++
	}
	return out
}

// want compares how many streams are where.
func (f *fleet) want(what string, agents []*agent, want map[vms.WorkerID]int) {
	f.t.Helper()
	if got := counts(agents); !maps.Equal(got, want) {
		f.t.Errorf("%s: streams at %v, want %v", what, got, want)
	}
}

// status returns what is known of a worker.
func (f *fleet) status(id vms.WorkerID) nvr.WorkerStatus {
	all := f.Workers()
	i, ok := slices.BinarySearchFunc(all, id, func(s nvr.WorkerStatus, id vms.WorkerID) int { return cmp.Compare(s.ID, id) })
	if !ok {
		return nvr.WorkerStatus{}
	}
	return all[i]
}

// laneUp tells that a stream's live lane is up where it was assigned last.
func (f *fleet) laneUp(a *agent) vms.StreamEvent {
	f.t.Helper()
	as := a.at()
	e := vms.StreamEvent{Channel: a.ch, SID: a.s.SID, Hub: a.s.Hub, Generation: as.Generation, Worker: as.Worker,
		Instance: f.workers[as.Worker].info.Instance, Lane: vms.LaneLive, At: f.Clock.Now()}
	if err := f.StreamStarted(f.t.Context(), e); err != nil {
		f.t.Fatal(err)
	}
	return e
}
