package agent

import (
	"context"
	"sync"
	"time"

	"github.com/zipato/vms/agent/reconcile"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// gatherReports is how long a change waits for others that come with it, and
	// spaceReports how far reports are apart: a broker keeps each of them.
	gatherReports = 20 * time.Millisecond
	spaceReports  = 200 * time.Millisecond
	// everyReport is how often the cloud hears of a hub where nothing changes: how
	// well it knows the time.
	everyReport = time.Minute
)

// reports says to the cloud how the hub is.
type reports struct {
	ring chan struct{}

	mu     sync.Mutex
	now    reconcile.Report
	serial int64
}

// setReport takes what reconcile says.
func (a *Agent) setReport(r reconcile.Report) {
	a.reports.mu.Lock()
	a.reports.now = r
	a.reports.mu.Unlock()
	a.tellReport()
}

// tellReport has the cloud told soon.
func (a *Agent) tellReport() {
	select {
	case a.reports.ring <- struct{}{}:
	default: // it will be
	}
}

// runReports tells the cloud of every change.
func (a *Agent) runReports(ctx context.Context) error {
	every := time.NewTicker(everyReport)
	defer every.Stop()
	wait := time.NewTimer(0)
	defer wait.Stop()
	<-wait.C
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		case <-a.reports.ring:
			wait.Reset(max(gatherReports, spaceReports-time.Since(last)))
			select {
			case <-ctx.Done():
				return nil
			case <-wait.C:
			}
		}
		last = time.Now()
		r := a.report()
		a.mqtt.Report(r)
		// A line that is down is told when it is up.
		_ = a.line.Send(r)
	}
}

// report makes the next one.
func (a *Agent) report() *wire.Reported {
	a.reports.mu.Lock()
	defer a.reports.mu.Unlock()
	a.reports.serial++
	now := a.reports.now
	return &wire.Reported{
		Hub: a.id.Hub, Boot: a.boot, Online: true, Serial: a.reports.serial, Agent: a.name, At: a.clock.Now(),
		Revision: now.Revision, State: now.State, Problem: now.Problem, Streams: now.Streams, Clock: a.clock.Reported(),
	}
}
