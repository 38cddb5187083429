package nvr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// CreateChannel registers a camera. A continuous channel of a hub that is
// online starts at once, beside this call.
func (n *NVR) CreateChannel(ctx context.Context, acct vms.AccountID, spec ChannelSpec) (Channel, error) {
	if spec.Mode == "" {
		spec.Mode = ModeOnDemand
	}
	if err := validName("name", spec.Name); err != nil {
		return Channel{}, err
	}
	if err := validMode(spec.Mode); err != nil {
		return Channel{}, err
	}
	cam, err := cleanCamera(spec.Camera)
	if err != nil {
		return Channel{}, err
	}
	if err := n.checkHub(ctx, acct, spec.Hub); err != nil {
		return Channel{}, err
	}
	row := ChannelRow{ID: vms.NewID[vms.ChannelID]("ch"), Account: acct, Hub: spec.Hub, Name: spec.Name, Mode: spec.Mode,
		Wanted: spec.Mode == ModeContinuous, CreatedAt: n.now()}
	n.setCamera(&row, cam)
	if err := n.Store.CreateChannel(ctx, row); err != nil {
		return Channel{}, fmt.Errorf("create channel: %w", err)
	}
	if row.Wanted {
		n.kick(row.Hub)
	}
	return n.channel(row), nil
}

// Channels lists the channels of an account, oldest first.
func (n *NVR) Channels(ctx context.Context, acct vms.AccountID, cursor string, limit int) ([]Channel, string, error) {
	after, limit, err := page(cursor, limit)
	if err != nil {
		return nil, "", err
	}
	rows, err := n.Store.Channels(ctx, acct, after, limit+1)
	if err != nil {
		return nil, "", fmt.Errorf("list channels: %w", err)
	}
	next := ""
	if len(rows) > limit {
		rows = rows[:limit]
		next = Cursor{rows[limit-1].CreatedAt, string(rows[limit-1].ID)}.String()
	}
	out := make([]Channel, 0, len(rows))
	for _, r := range rows {
		out = append(out, n.channel(r))
	}
	return out, next, nil
}

// Channel returns one channel of an account.
func (n *NVR) Channel(ctx context.Context, acct vms.AccountID, id vms.ChannelID) (Channel, error) {
	row, err := n.row(ctx, acct, id)
	if err != nil {
		return Channel{}, err
	}
	return n.channel(row), nil
}

// UpdateChannel changes a channel. The hub learns of a new camera at once if
// it is online, else when it comes back. A new hub means a new session: the
// old hub's ends, so that it may only bring what it still holds.
func (n *NVR) UpdateChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, p ChannelPatch) (Channel, error) {
	if p.Hub != nil {
		if err := n.checkHub(ctx, acct, *p.Hub); err != nil {
			return Channel{}, err
		}
	}
	var before ChannelRow
	row, err := n.Store.UpdateChannel(ctx, acct, id, func(r *ChannelRow) error {
		before = *r
		return n.applyPatch(r, p)
	})
	if err != nil {
		return Channel{}, fmt.Errorf("update channel %s: %w", id, err)
	}
	if before.Hub != row.Hub {
		n.stopQuietly(ctx, before)
	}
	if row.Wanted && (p.Camera != nil || p.Mode != nil || p.Hub != nil) {
		n.kick(row.Hub)
	}
	return n.channel(row), nil
}

func (n *NVR) applyPatch(r *ChannelRow, p ChannelPatch) error {
	if p.Name != nil {
		if err := validName("name", *p.Name); err != nil {
			return err
		}
		r.Name = *p.Name
	}
	if p.Mode != nil {
		if err := validMode(*p.Mode); err != nil {
			return err
		}
		if *p.Mode == ModeContinuous && r.Mode != ModeContinuous {
			r.Wanted = true
		}
		r.Mode = *p.Mode
	}
	if p.Hub != nil && *p.Hub != r.Hub {
		r.Hub, r.SID = *p.Hub, ""
	}
	if p.Camera == nil {
		return nil
	}
	cam, err := cleanCamera(*p.Camera)
	if err != nil {
		return err
	}
	secret := r.Secret
	same := cam.URL == r.Camera.URL && cam.Host == r.Camera.Host && cam.Username == r.Camera.Username
	n.setCamera(r, cam)
	if cam.Password == "" && same {
		r.Secret = secret
	}
	return nil
}

// DeleteChannel ends a channel for good: its stream stops, its sessions are
// revoked, and the sweep takes its recordings.
func (n *NVR) DeleteChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID) error {
	row, err := n.row(ctx, acct, id)
	if err != nil {
		return err
	}
	sids, err := n.Store.DeleteChannel(ctx, acct, id, n.now())
	if err != nil {
		return fmt.Errorf("delete channel %s: %w", id, err)
	}
	n.revokeLive(sids, "the channel was deleted")
	n.stopQuietly(ctx, row)
	n.Log.Info("channel deleted", "channel", id, "account", acct)
	return nil
}

// stopQuietly ends the declared session of a channel that was taken from its
// hub, and asks the hub to stop. If it does not hear, it learns by the next
// handshake.
func (n *NVR) stopQuietly(ctx context.Context, row ChannelRow) {
	if row.Hub == "" {
		return
	}
	if row.SID != "" {
		if err := n.Store.EndSession(ctx, row.SID); err != nil && !errors.Is(err, vms.ErrNotFound) {
			n.Log.Warn("session not ended", "sid", row.SID, "channel", row.ID, "err", err)
		}
	}
	n.mu.Lock()
	link := n.hubs[row.Hub]
	n.mu.Unlock()
	if link == nil {
		return
	}
	stop := func(id string, deadline time.Time) wire.SessionMessage {
		return &wire.Stop{ID: id, Deadline: deadline, Channel: row.ID}
	}
	if err := n.command(ctx, link, 2*time.Second, stop); err != nil {
		n.Log.Warn("hub did not stop a channel that it lost", "hub", row.Hub, "channel", row.ID, "err", err)
	}
}

// row reads a channel and hides those of other accounts.
func (n *NVR) row(ctx context.Context, acct vms.AccountID, id vms.ChannelID) (ChannelRow, error) {
	row, err := n.Store.Channel(ctx, id)
	if err == nil && row.Account != acct {
		err = vms.ErrNotFound
	}
	if err != nil {
		return ChannelRow{}, fmt.Errorf("channel %s: %w", id, err)
	}
	return row, nil
}

func (n *NVR) checkHub(ctx context.Context, acct vms.AccountID, id vms.HubID) error {
	if id == "" {
		return nil
	}
	_, err := n.Hub(ctx, acct, id)
	if errors.Is(err, vms.ErrNotFound) {
		return fieldError("hub_id", "names no hub of this account")
	}
	return err
}

func (n *NVR) setCamera(r *ChannelRow, cam vms.Camera) {
	r.Secret = n.seal(r.ID, cam.Password)
	cam.Password = ""
	r.Camera = cam
}

// channel is a row as its account sees it.
func (n *NVR) channel(r ChannelRow) Channel {
	c := Channel{ID: r.ID, Account: r.Account, Name: r.Name, Hub: r.Hub, Mode: r.Mode, Camera: r.Camera,
		HasPassword: len(r.Secret) > 0, Wanted: r.Wanted, CreatedAt: r.CreatedAt}
	n.describe(&c)
	return c
}

func isKind(err error, kinds ...error) bool {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}
