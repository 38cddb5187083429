package nvr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// CreateChannel registers a camera. One that records of itself is wanted from
// now on: its hub starts it as soon as it hears of it, beside this call.
func (n *NVR) CreateChannel(ctx context.Context, acct vms.AccountID, spec ChannelSpec) (Channel, error) {
	if spec.Mode == "" {
		spec.Mode = ModeOnDemand
	}
	if err := validName("name", spec.Name); err != nil {
		return Channel{}, err
	}
	cam, err := cleanCamera(spec.Camera)
	if err != nil {
		return Channel{}, err
	}
	if err := n.checkHub(ctx, acct, spec.Hub); err != nil {
		return Channel{}, err
	}
	if err := n.fits(ctx, spec.Hub); err != nil {
		return Channel{}, fmt.Errorf("create channel: %w", err)
	}
	row := ChannelRow{ID: vms.NewID[vms.ChannelID]("ch"), Account: acct, Hub: spec.Hub, Name: spec.Name, Mode: spec.Mode,
		Schedule: spec.Schedule, PreRoll: DefaultPreRoll, PostRoll: DefaultPostRoll, CreatedAt: n.now()}
	set(&row.PreRoll, spec.PreRoll)
	set(&row.PostRoll, spec.PostRoll)
	if err := validModes(&row); err != nil {
		return Channel{}, err
	}
	if row.Mode != ModeOnDemand {
		want(&row, WantedByMode, time.Time{})
	}
	n.setCamera(&row, cam)
	if err := n.Store.CreateChannel(ctx, row); err != nil {
		return Channel{}, fmt.Errorf("create channel: %w", err)
	}
	n.tell(row.Hub)
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

// UpdateChannel changes a channel. The hub learns of it at once if it is online,
// else when it comes back. A new hub means a new session: the old hub's ends, so
// that it may only bring what it still holds.
func (n *NVR) UpdateChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, p ChannelPatch) (Channel, error) {
	if p.Hub != nil {
		if err := n.checkHub(ctx, acct, *p.Hub); err != nil {
			return Channel{}, err
		}
		row, err := n.row(ctx, acct, id)
		if err != nil {
			return Channel{}, err
		}
		if *p.Hub != row.Hub {
			if err := n.fits(ctx, *p.Hub); err != nil {
				return Channel{}, fmt.Errorf("update channel %s: %w", id, err)
			}
		}
	}
	_, row, err := n.update(ctx, acct, id, n.now(), func(r *ChannelRow) error { return n.applyPatch(r, p) })
	if err != nil {
		return Channel{}, fmt.Errorf("update channel %s: %w", id, err)
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
	if p.Hub != nil && *p.Hub != r.Hub {
		r.Hub, r.SID, r.StoppedRevision = *p.Hub, "", 0 // a session is one hub's, and so is a revision
		if r.Wanted && r.Hub != "" {
			r.SID = newSID()
		}
	}
	set(&r.Schedule, p.Schedule)
	set(&r.PreRoll, p.PreRoll)
	set(&r.PostRoll, p.PostRoll)
	if p.Mode != nil && *p.Mode != r.Mode {
		r.Mode = *p.Mode
		if r.Mode != ModeOnDemand || r.Wanted {
			// A mode that records of itself does so from now on, also when the
			// channel was stopped. What runs when it comes to be on demand goes on.
			want(r, WantedByRequest, time.Time{})
		}
	}
	if err := validModes(r); err != nil {
		return err
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
	n.tell(row.Hub)
	n.Log.Info("channel deleted", "channel", id, "account", acct)
	return nil
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
		Schedule: r.Schedule, PreRoll: r.PreRoll, PostRoll: r.PostRoll,
		HasPassword: len(r.Secret) > 0, Wanted: r.Wanted, WantedBy: r.WantedBy, WantedUntil: r.WantedUntil, CreatedAt: r.CreatedAt}
	n.describe(&c)
	return c
}

// set applies one field of a patch.
func set[T any](dst *T, v *T) {
	if v != nil {
		*dst = *v
	}
}

func isKind(err error, kinds ...error) bool {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}
