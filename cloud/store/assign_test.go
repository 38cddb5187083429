package store_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// streamLine counts the assignments that an agent hears of.
type streamLine struct{ heard *atomic.Int64 }

func (l *streamLine) Send(m wire.SessionMessage) {
	if _, ok := m.(*wire.Assign); ok {
		l.heard.Add(1)
	}
}
func (*streamLine) Revoke(string) {}
func (*streamLine) Replace()      {}

// assigning is an NVR on a database on disk, with sessions and three workers.
func assigning(b *testing.B, n int) (*nvrtest.World, []nvr.Session, []*nvrtest.WorkerLink) {
	s := open(b, b.TempDir()+"/vms.db")
	w := nvrtest.New(b, func(c *nvr.Config) { c.Store = s })
	sessions := make([]nvr.Session, n)
	for i := range sessions {
		ch := w.Channel(b, nvrtest.Account, "")
		sessions[i] = nvr.Session{SID: vms.SID(fmt.Sprintf("sid_%d", i)), Account: nvrtest.Account, Channel: ch.ID, State: nvr.SessionOpen, CreatedAt: w.Clock.Now()}
		if err := s.CreateSession(b.Context(), sessions[i]); err != nil {
			b.Fatal(err)
		}
	}
	var links []*nvrtest.WorkerLink
	for i := range 3 {
		links = append(links, w.Worker(b, vms.WorkerInfo{ID: vms.WorkerID(fmt.Sprintf("w%d", i)), Instance: vms.Instance(fmt.Sprintf("i%d", i)), PushURL: "ws://w/push/v1"}))
	}
	return w, sessions, links
}

// BenchmarkAssign is agents that come at once, as they do after an outage: each
// assignment has its generation in the database, synced to disk.
func BenchmarkAssign(b *testing.B) {
	w, sessions, _ := assigning(b, 1000)
	var heard, next atomic.Int64
	b.ResetTimer()
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				a, err := w.Assign(b.Context(), sessions[i%int64(len(sessions))], &wire.SessionHello{}, &streamLine{&heard})
				if err != nil || a == nil {
					b.Errorf("%+v, %v", a, err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "assignments/s")
}

// BenchmarkFailover is a worker that dies with a thousand streams.
func BenchmarkFailover(b *testing.B) {
	w, sessions, links := assigning(b, 1000)
	var heard atomic.Int64
	for _, s := range sessions {
		if _, err := w.Assign(b.Context(), s, &wire.SessionHello{}, &streamLine{&heard}); err != nil {
			b.Fatal(err)
		}
	}
	moved := 0
	for i := 0; b.Loop(); i++ {
		id, instance := vms.WorkerID(fmt.Sprintf("w%d", i%3)), vms.Instance(fmt.Sprintf("i%d", i%3))
		heard.Store(0)
		w.WorkerDown(id, instance, links[i%3])
		w.Clock.Add(2 * time.Second)
		if err := w.TendWorkers(b.Context()); err != nil {
			b.Fatal(err)
		}
		moved += int(heard.Load())
		links[i%3] = w.Worker(b, vms.WorkerInfo{ID: id, Instance: instance, PushURL: "ws://w/push/v1"})
	}
	b.ReportMetric(float64(moved)/b.Elapsed().Seconds(), "assignments/s")
}
