package cloud

import (
	"context"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

// heartbeat is how often a worker tells the NVR that it lives.
const heartbeat = time.Second

// localLink is the line from the NVR to the worker of the same process: plain calls.
type localLink Cloud

var _ nvr.WorkerLink = (*localLink)(nil)

// Revoke implements nvr.WorkerLink.
func (l *localLink) Revoke(sids []vms.SID) { l.worker.Revoke(sids) }

// Moved implements nvr.WorkerLink.
func (l *localLink) Moved(ch vms.ChannelID, liveURL string) { l.worker.Moved(ch, liveURL) }

// Drain implements nvr.WorkerLink.
func (l *localLink) Drain() { (*Cloud)(l).orderDrain() }

// Replace implements nvr.WorkerLink: nobody else has a line to this worker.
func (l *localLink) Replace() {}

// beat tells the NVR that the worker of this process lives, until ctx ends.
func (c *Cloud) beat(ctx context.Context) error {
	t := time.NewTicker(heartbeat)
	defer t.Stop()
	for {
		c.nvr.WorkerAlive(c.info.ID, c.info.Instance, c.load())
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
