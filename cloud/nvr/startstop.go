package nvr

import (
	"context"
	"fmt"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// maxTimeout bounds for how long a channel on demand is started at once.
const maxTimeout = 366 * 24 * time.Hour

// StartChannel has the channel's hub run its stream, from now on and after every
// reboot: in mode on_demand until it is stopped or o.Timeout is over, otherwise
// whenever its mode says so. Starting what runs is no error; a new timeout, or
// none, takes the place of the one before.
//
// vms.ErrConflict with the cause, and nothing changed, when there is no hub, or
// it is offline and o.Queue is not set. With o.Wait also vms.ErrConflict when
// the hub says that it cannot, and context.DeadlineExceeded when it has said
// nothing in time: the order then stands, and the hub goes on trying.
func (n *NVR) StartChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, o StartOptions) (StartResult, error) {
	if o.Timeout < 0 || o.Timeout > maxTimeout {
		return StartResult{}, fieldError("timeout_s", "must be 0 to %d", int(maxTimeout.Seconds()))
	}
	at := n.now()
	res, err := n.command(ctx, acct, id, o, at, func(r *ChannelRow) error {
		if o.Timeout > 0 && r.Mode != ModeOnDemand {
			return fieldError("timeout_s", "is for channels of mode %q only", ModeOnDemand)
		}
		var until time.Time
		if o.Timeout > 0 {
			until = at.Add(o.Timeout)
		}
		want(r, WantedByRequest, until)
		return nil
	})
	if err != nil {
		return res, fmt.Errorf("start channel %s: %w", id, err)
	}
	return res, nil
}

// StopChannel has the hub end the stream, with the errors of StartChannel. It
// holds until the next start, whatever the mode. The session ends; the hub may
// still bring what it holds. It also ends what was started on the LAN, so that
// the hub is told of it even if the cloud did not want the channel to run.
func (n *NVR) StopChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, o StartOptions) (StartResult, error) {
	if o.Timeout != 0 {
		return StartResult{}, fieldError("timeout_s", "is for a start only")
	}
	res, err := n.command(ctx, acct, id, o, n.now(), func(r *ChannelRow) error {
		unwant(r)
		r.StoppedRevision = StoppedNow
		return nil
	})
	if err != nil {
		return res, fmt.Errorf("stop channel %s: %w", id, err)
	}
	return res, nil
}

// want makes a channel one that should run.
func want(r *ChannelRow, by WantedBy, until time.Time) {
	r.Wanted = true
	if r.SID == "" && r.Hub != "" {
		r.SID = newSID()
	}
	r.WantedBy, r.WantedUntil = WantedByMode, time.Time{}
	if r.Mode == ModeOnDemand {
		r.WantedBy, r.WantedUntil = by, until
	}
}

// unwant makes a channel one that should not.
func unwant(r *ChannelRow) {
	r.Wanted, r.SID, r.WantedBy, r.WantedUntil = false, "", WantedByMode, time.Time{}
}

// command changes whether a channel is wanted, and waits for its hub if it is asked to.
func (n *NVR) command(ctx context.Context, acct vms.AccountID, id vms.ChannelID, o StartOptions, at time.Time, change func(*ChannelRow) error) (StartResult, error) {
	var res StartResult
	_, row, err := n.update(ctx, acct, id, at, func(r *ChannelRow) error {
		if r.Hub == "" {
			return fmt.Errorf("%w: the channel has no hub", vms.ErrConflict)
		}
		if res.HubOnline = n.online(r.Hub); !res.HubOnline && !o.Queue {
			return fmt.Errorf("%w: the hub is offline", vms.ErrConflict)
		}
		return change(r)
	})
	if err != nil {
		return res, err
	}
	h, err := n.Store.Hub(ctx, row.Hub)
	if err != nil {
		return res, err
	}
	res.Revision = h.Revision
	if o.Wait > 0 {
		res.Report, err = n.await(ctx, row, res.Revision, o.Wait)
	}
	return res, err
}

// await waits until the hub of a channel has done what a revision asks for.
func (n *NVR) await(ctx context.Context, row ChannelRow, revision int64, wait time.Duration) (*wire.ReportedItem, error) {
	patience := time.NewTimer(wait)
	defer patience.Stop()
	for {
		n.mu.Lock()
		st := n.hub(row.Hub, row.Account)
		news, report, online := st.news, st.report, st.online()
		n.mu.Unlock()
		if online && report != nil && report.Revision >= revision {
			if item, done, err := outcome(report, row); done {
				return item, err
			}
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-patience.C:
			err := fmt.Errorf("the hub did not answer within %s; the order stands: %w", wait, context.DeadlineExceeded)
			if online && report != nil && report.Problem != "" { // of the document before, or of this one: it says which
				err = fmt.Errorf("%w (it says: %s)", err, report.Problem)
			}
			return nil, err
		}
	}
}

// outcome reads how a channel fares from a report of a document that has it.
func outcome(r *wire.Reported, row ChannelRow) (item *wire.ReportedItem, done bool, err error) {
	item = itemOf(r, row.ID)
	switch {
	case item != nil && item.State == wire.Failed:
		return item, true, fmt.Errorf("%w: the hub cannot: %s", vms.ErrConflict, item.Problem)
	case item == nil && r.State == wire.Failed:
		return nil, true, fmt.Errorf("%w: the hub refuses: %s", vms.ErrConflict, r.Problem)
	case item == nil && row.Wanted && r.State == wire.InSync:
		return nil, true, fmt.Errorf("%w: the channel was taken from the hub meanwhile", vms.ErrConflict)
	case item == nil && r.State == wire.InSync: // it does not run, and nobody wants it to
		return &wire.ReportedItem{Channel: row.ID, Origin: wire.OriginCloud, Mode: row.Mode, State: wire.InSync}, true, nil
	case item != nil && item.State == wire.InSync:
		return item, true, nil
	}
	return nil, false, nil
}
