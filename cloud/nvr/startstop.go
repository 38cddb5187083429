package nvr

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// retryStarts is how often a hub that is online is asked again for streams
// that are wanted and have no session.
const retryStarts = 30 * time.Second

// StartChannel asks the channel's hub to stream it and waits at most wait (0:
// Config.CommandTimeout) for the answer. From then on the stream is wanted: a
// hub that comes back is asked again by itself. vms.ErrConflict with the cause
// when there is no hub, it is offline, or it says no; context.DeadlineExceeded
// when it did not answer; vms.ErrUnavailable when its line broke meanwhile.
func (n *NVR) StartChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, wait time.Duration) error {
	row, err := n.row(ctx, acct, id)
	if err != nil {
		return err
	}
	link, err := n.link(row)
	if err != nil {
		return fmt.Errorf("start channel %s: %w", id, err)
	}
	if row, err = n.start(ctx, link, row, wait); err != nil {
		return fmt.Errorf("start channel %s: %w", id, err)
	}
	_, err = n.Store.UpdateChannel(ctx, acct, id, func(r *ChannelRow) error {
		if r.SID == row.SID {
			r.Wanted = true
		}
		return nil
	})
	if err == nil {
		err = n.Store.SetIdle(ctx, id, false, n.now())
	}
	if err != nil {
		return fmt.Errorf("start channel %s: %w", id, err)
	}
	return nil
}

// StopChannel asks the hub to end the stream, with the errors of StartChannel.
// The session ends; the hub may still bring what it holds.
func (n *NVR) StopChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, wait time.Duration) error {
	row, err := n.row(ctx, acct, id)
	if err != nil {
		return err
	}
	link, err := n.link(row)
	if err != nil {
		return fmt.Errorf("stop channel %s: %w", id, err)
	}
	err = n.command(ctx, link, wait, func(cmd string, deadline time.Time) wire.SessionMessage {
		return &wire.Stop{ID: cmd, Deadline: deadline, Channel: id}
	})
	if err != nil {
		return fmt.Errorf("stop channel %s: %w", id, err)
	}
	var sid vms.SID
	_, err = n.Store.UpdateChannel(ctx, acct, id, func(r *ChannelRow) error {
		sid = r.SID
		r.Wanted, r.SID = false, ""
		return nil
	})
	if err == nil && sid != "" {
		err = n.Store.EndSession(ctx, sid)
	}
	if err == nil {
		err = n.Store.SetIdle(ctx, id, true, n.now())
	}
	if err != nil {
		return fmt.Errorf("stop channel %s: %w", id, err)
	}
	return nil
}

// link finds the control line of a channel's hub.
func (n *NVR) link(row ChannelRow) (HubLink, error) {
	if row.Hub == "" {
		return nil, fmt.Errorf("%w: the channel has no hub", vms.ErrConflict)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.hubs[row.Hub]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("%w: the hub is offline", vms.ErrConflict)
}

// start declares a session for the channel, unless it has one, and sends the
// camera to its hub. It returns the row with the session.
func (n *NVR) start(ctx context.Context, link HubLink, row ChannelRow, wait time.Duration) (ChannelRow, error) {
	row, err := n.declare(ctx, row)
	if err != nil {
		return row, err
	}
	cam, err := n.cameraOf(row)
	if err != nil {
		return row, err
	}
	return row, n.command(ctx, link, wait, func(cmd string, deadline time.Time) wire.SessionMessage {
		return &wire.Start{ID: cmd, Deadline: deadline, Channel: row.ID, SID: row.SID, NVRURL: n.NVRURL, Camera: cam}
	})
}

// declare makes sure that the channel has an open session of its hub. Two that
// declare at once agree: the one that writes the row second uses the first's.
func (n *NVR) declare(ctx context.Context, row ChannelRow) (ChannelRow, error) {
	if row.SID != "" {
		s, err := n.Store.Session(ctx, row.SID)
		if err == nil && s.State == SessionOpen && s.Hub == row.Hub {
			return row, nil
		}
		if err != nil && !errors.Is(err, vms.ErrNotFound) {
			return row, fmt.Errorf("session %s: %w", row.SID, err)
		}
	}
	s := Session{SID: vms.NewID[vms.SID]("sid"), Account: row.Account, Channel: row.ID, Hub: row.Hub, State: SessionOpen, CreatedAt: n.now()}
	if err := n.Store.CreateSession(ctx, s); err != nil {
		return row, fmt.Errorf("declare session: %w", err)
	}
	old := row.SID
	row, err := n.Store.UpdateChannel(ctx, row.Account, row.ID, func(r *ChannelRow) error {
		if r.SID == old && r.Hub == s.Hub {
			r.SID = s.SID
		}
		return nil
	})
	if err != nil {
		return row, fmt.Errorf("declare session: %w", err)
	}
	if row.SID != s.SID {
		if err := n.Store.EndSession(ctx, s.SID); err != nil {
			return row, fmt.Errorf("declare session: %w", err)
		}
	}
	if row.Hub != s.Hub || row.SID == "" {
		return row, fmt.Errorf("%w: the channel moved to another hub at this moment", vms.ErrConflict)
	}
	return row, nil
}

// cameraOf is the camera with its password, for the hub only. A camera given
// by URL carries its credentials in both places.
func (n *NVR) cameraOf(row ChannelRow) (vms.Camera, error) {
	cam := row.Camera
	var err error
	if cam.Password, err = n.unseal(row.ID, row.Secret); err != nil {
		return cam, err
	}
	if cam.URL != "" && cam.Username != "" {
		u, err := url.Parse(cam.URL)
		if err != nil {
			return cam, fmt.Errorf("camera URL of channel %s is stored broken", row.ID)
		}
		u.User = url.UserPassword(cam.Username, cam.Password)
		cam.URL = u.String()
	}
	return cam, nil
}

// command sends what build makes and reads the reply.
func (n *NVR) command(ctx context.Context, link HubLink, wait time.Duration, build func(id string, deadline time.Time) wire.SessionMessage) error {
	if wait <= 0 {
		wait = n.CommandTimeout
	}
	waitCtx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	reply, err := link.Command(waitCtx, build(vms.NewID[string]("cmd"), n.now().Add(wait)))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case waitCtx.Err() != nil:
		return fmt.Errorf("the hub did not answer within %s: %w", wait, context.DeadlineExceeded)
	case err != nil:
		return err
	case !reply.OK:
		return fmt.Errorf("%w: the hub refuses: %s", vms.ErrConflict, reply.Problem)
	}
	return nil
}

// HubConnected notes the control line of a hub, and has its wanted streams
// started. It replaces the line that was there.
func (n *NVR) HubConnected(s Session, link HubLink) {
	n.mu.Lock()
	_, was := n.hubs[s.Hub]
	n.hubs[s.Hub] = link
	n.mu.Unlock()
	if !was {
		n.Log.Info("hub online", "hub", s.Hub)
		n.publish(Event{Type: EventHubOnline, Account: s.Account, Hub: s.Hub})
	}
	n.kick(s.Hub)
}

// HubGone notes that link is closed.
func (n *NVR) HubGone(s Session, link HubLink) {
	n.mu.Lock()
	is := n.hubs[s.Hub] == link
	if is {
		delete(n.hubs, s.Hub)
	}
	n.mu.Unlock()
	if is {
		n.Log.Info("hub offline", "hub", s.Hub)
		n.publish(Event{Type: EventHubOffline, Account: s.Account, Hub: s.Hub})
	}
}

// kicks are hubs whose wanted streams are to be started now.
type kicks struct {
	mu   sync.Mutex
	hubs map[vms.HubID]bool
	ring chan struct{} // one place: somebody is in hubs
}

func (n *NVR) kick(hub vms.HubID) {
	if hub == "" {
		return
	}
	n.kicks.mu.Lock()
	n.kicks.hubs[hub] = true
	n.kicks.mu.Unlock()
	select {
	case n.kicks.ring <- struct{}{}:
	default:
	}
}

// startLoop sends Start for what is wanted: all of it to a hub that has just
// come, and from time to time what still has no session to one that is there.
func (n *NVR) startLoop(ctx context.Context) {
	const parallel = 16 // hubs at a time; a hub that hangs costs CommandTimeout
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	defer wg.Wait()
	run := func(hub vms.HubID, all bool) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			n.startWanted(ctx, hub, all)
		})
	}
	again := time.NewTicker(retryStarts)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.kicks.ring:
			n.kicks.mu.Lock()
			hubs := n.kicks.hubs
			n.kicks.hubs = make(map[vms.HubID]bool)
			n.kicks.mu.Unlock()
			for hub := range hubs {
				run(hub, true)
			}
		case <-again.C:
			n.mu.Lock()
			var online []vms.HubID
			for hub := range n.hubs {
				online = append(online, hub)
			}
			n.mu.Unlock()
			for _, hub := range online {
				run(hub, false)
			}
		}
	}
}

func (n *NVR) startWanted(ctx context.Context, hub vms.HubID, all bool) {
	rows, err := n.Store.WantedChannels(ctx, hub)
	if err != nil {
		n.Log.Error("wanted channels not read, will try again", "hub", hub, "err", err)
		return
	}
	for _, row := range rows {
		n.mu.Lock()
		ls := n.sessions[row.SID]
		has := ls != nil && ls.link != nil
		n.mu.Unlock()
		if has && !all {
			continue
		}
		link, err := n.link(row)
		if err != nil {
			return // it went; it will be back
		}
		if _, err := n.start(ctx, link, row, 0); err != nil {
			if ctx.Err() != nil {
				return
			}
			n.Log.Warn("hub did not start a wanted channel, will try again", "hub", hub, "channel", row.ID, "in", retryStarts, "err", err)
			if !errors.Is(err, vms.ErrConflict) {
				return // it does not answer: the next one would not fare better
			}
		}
	}
}
