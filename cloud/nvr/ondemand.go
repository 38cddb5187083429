package nvr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// linger is how long a stream that a viewer started goes on without any: who
	// reloads a page, or goes from one channel to the next and back, finds it running.
	linger = 30 * time.Second
	// endEvery is how often channels are looked for that nobody wants any more.
	endEvery = time.Second
)

// ErrStarting says that a stream is on its way: to ask again in a second is of
// use. It is a vms.ErrUnavailable.
var ErrStarting = fmt.Errorf("%w: the stream is starting", vms.ErrUnavailable)

// Viewers says how many look on at a channel's live picture at some worker. A
// worker says it when it changes, and again and again while it is not 0: after a
// restart we know no better.
func (n *NVR) Viewers(_ context.Context, ch vms.ChannelID, viewers int) error {
	if viewers < 0 {
		return fmt.Errorf("viewers of channel %s: %w: %d", ch, vms.ErrInvalid, viewers)
	}
	n.looked(ch) // also when the last one leaves: until now there was one
	return nil
}

// looked notes that somebody looks at a channel, or wants to.
func (n *NVR) looked(ch vms.ChannelID) {
	now := n.now()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.viewed[ch] = now
}

// lastLook is when somebody looked at a channel last. After a start nobody has
// told us yet.
func (n *NVR) lastLook(ch vms.ChannelID) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	if at := n.viewed[ch]; at.After(n.started) {
		return at
	}
	return n.started
}

// awaken starts a channel on demand for a viewer who found it idle, and says why
// there is no picture yet.
func (n *NVR) awaken(ctx context.Context, row ChannelRow, start bool) error {
	asleep := row.Mode == ModeOnDemand && row.Hub != "" && !row.Wanted
	if asleep && start && n.online(row.Hub) {
		_, _, err := n.update(ctx, row.Account, row.ID, n.now(), func(r *ChannelRow) error {
			if r.Mode == ModeOnDemand && r.Hub != "" && !r.Wanted { // nobody was faster
				want(r, WantedByViewer, time.Time{})
			}
			return nil
		})
		if err != nil {
			return err
		}
		n.Log.Info("stream started for a viewer", "channel", row.ID, "hub", row.Hub)
		return ErrStarting
	}
	switch c := n.channel(row); {
	case asleep && start:
		return fmt.Errorf("%w: the hub is offline", vms.ErrUnavailable)
	case row.Wanted && c.Problem != "":
		return fmt.Errorf("%w: %s", vms.ErrUnavailable, c.Problem)
	case row.Wanted && c.State == wire.StateStarting:
		return ErrStarting
	}
	return fmt.Errorf("%w: it does not stream at this moment", vms.ErrUnavailable)
}

// EndTransient ends the streams whose time is over, and those that were started
// for viewers who have been gone for a while.
func (n *NVR) EndTransient(ctx context.Context) error {
	rows, err := n.Store.Transient(ctx)
	if err != nil {
		return fmt.Errorf("streams on demand: %w", err)
	}
	now := n.now()
	n.mu.Lock()
	for ch, at := range n.viewed {
		if now.Sub(at) > linger {
			delete(n.viewed, ch)
		}
	}
	n.mu.Unlock()
	var errs []error
	for _, row := range rows {
		at, why := n.over(&row, now)
		if why == "" {
			continue
		}
		var ended string
		_, _, err := n.update(ctx, row.Account, row.ID, at, func(r *ChannelRow) error {
			if _, ended = n.over(r, now); ended != "" { // still
				unwant(r)
			}
			return nil
		})
		switch {
		case errors.Is(err, vms.ErrNotFound): // deleted meanwhile
		case err != nil:
			errs = append(errs, fmt.Errorf("end channel %s: %w", row.ID, err))
		case ended != "":
			n.Log.Info("stream on demand ended", "channel", row.ID, "hub", row.Hub, "why", ended)
		}
	}
	return errors.Join(errs...)
}

// over says why nobody wants a channel on demand any more, and since when; an
// empty why is that somebody does.
func (n *NVR) over(r *ChannelRow, now time.Time) (at time.Time, why string) {
	switch {
	case !r.Wanted || r.Mode != ModeOnDemand:
		return time.Time{}, ""
	case !r.WantedUntil.IsZero() && !now.Before(r.WantedUntil):
		return r.WantedUntil, "its time is over" // the hub did not wait for us
	case r.WantedBy == WantedByViewer && now.Sub(n.lastLook(r.ID)) > linger:
		return now, "nobody looks on"
	}
	return time.Time{}, ""
}
