package store

import (
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

const channelColumns = `id, account_id, hub_id, name, mode, camera, secret, wanted, sid, created_at,
	schedule, pre_roll_s, post_roll_s, wanted_until, wanted_by, stopped_revision`

func scanChannel(r scanner) (nvr.ChannelRow, error) {
	var c nvr.ChannelRow
	var hub sql.NullString
	var camera, secret string
	var created, until int64
	if err := r.Scan(&c.ID, &c.Account, &hub, &c.Name, &c.Mode, &camera, &secret, &c.Wanted, &c.SID, &created,
		&c.Schedule, &c.PreRoll, &c.PostRoll, &until, &c.WantedBy, &c.StoppedRevision); err != nil {
		return nvr.ChannelRow{}, err
	}
	c.Hub, c.CreatedAt, c.WantedUntil = vms.HubID(hub.String), instant(created), fromMicros(until)
	if err := json.Unmarshal([]byte(camera), &c.Camera); err != nil {
		return nvr.ChannelRow{}, fmt.Errorf("camera of channel %s: %w", c.ID, err)
	}
	var err error
	if c.Secret, err = base64.StdEncoding.DecodeString(secret); err != nil {
		return nvr.ChannelRow{}, fmt.Errorf("secret of channel %s: %w", c.ID, err)
	}
	return c, nil
}

// encodeCamera refuses a password: it belongs into the sealed secret.
func encodeCamera(c nvr.ChannelRow) (string, error) {
	if c.Camera.Password != "" {
		return "", fmt.Errorf("%w: camera of channel %s has a password in clear", vms.ErrInvalid, c.ID)
	}
	b, err := json.Marshal(c.Camera)
	return string(b), err
}

// CreateChannel implements nvr.Store.
func (s *Store) CreateChannel(ctx context.Context, c nvr.ChannelRow) error {
	camera, err := encodeCamera(c)
	if err != nil {
		return err
	}
	return s.write(ctx, func(tx *sql.Tx) error {
		if err := hasHub(ctx, tx, c.Account, c.Hub); err != nil {
			return err
		}
		_, err := exec(ctx, tx, `INSERT INTO channels (`+channelColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
			c.ID, c.Account, nullable(c.Hub), c.Name, c.Mode, camera, base64.StdEncoding.EncodeToString(c.Secret), c.Wanted, c.SID, micros(c.CreatedAt),
			c.Schedule, c.PreRoll, c.PostRoll, micros(c.WantedUntil), c.WantedBy, c.StoppedRevision)
		if err != nil {
			return err
		}
		return follow(ctx, tx, nvr.ChannelRow{}, &c, c.CreatedAt)
	})
}

// follow does what a change of a channel, which is written, means for the rest.
func follow(ctx context.Context, tx *sql.Tx, before nvr.ChannelRow, after *nvr.ChannelRow, now time.Time) error {
	e := nvr.EffectsOf(before, *after)
	var revision int64 // of after's hub
	for _, hub := range e.Hubs {
		h, err := raised(ctx, tx, hub, now)
		if err != nil {
			return err
		}
		if hub == after.Hub {
			revision = h.Revision
		}
	}
	if e.Stopped {
		after.StoppedRevision = revision
		if _, err := exec(ctx, tx, `UPDATE channels SET stopped_revision = $1 WHERE id = $2`, revision, after.ID); err != nil {
			return err
		}
	}
	if e.End != "" {
		if err := endSession(ctx, tx, e.End); err != nil {
			return err
		}
	}
	if e.Open != "" {
		s := nvr.Session{SID: e.Open, Account: after.Account, Channel: after.ID, Hub: after.Hub, State: nvr.SessionOpen, CreatedAt: now}
		if err := createSession(ctx, tx, s); err != nil {
			return err
		}
	}
	if e.BeginIdle || e.EndIdle {
		if err := setIdle(ctx, tx, after.ID, e.BeginIdle, now); err != nil {
			return err
		}
	}
	if e.Mode {
		return putModes(ctx, tx, `id`, string(after.ID), now)
	}
	return nil
}

// putModes goes on with the history of modes of the channels whose column has that
// value, with what they have now.
func putModes(ctx context.Context, tx *sql.Tx, column, value string, now time.Time) error {
	_, err := exec(ctx, tx, `INSERT INTO modes (channel_id, since_at, mode, schedule, time_zone)
		SELECT id, $1, mode, schedule, COALESCE((SELECT time_zone FROM hubs WHERE hubs.id = channels.hub_id), '') FROM channels
		WHERE `+column+` = $2 AND deleted_at = 0
		ON CONFLICT (channel_id, since_at) DO UPDATE
		SET mode = excluded.mode, schedule = excluded.schedule, time_zone = excluded.time_zone`, micros(now), value)
	return err
}

// hasHub returns vms.ErrNotFound unless the hub is none or the account's.
func hasHub(ctx context.Context, tx *sql.Tx, acct vms.AccountID, hub vms.HubID) error {
	if hub == "" {
		return nil
	}
	_, err := one(ctx, tx, scalar[string], `SELECT id FROM hubs WHERE id = $1 AND account_id = $2 AND revoked_at = 0`, hub, acct)
	return err
}

// Channel implements nvr.Store.
func (s *Store) Channel(ctx context.Context, id vms.ChannelID) (nvr.ChannelRow, error) {
	return one(ctx, s.r, scanChannel, `SELECT `+channelColumns+` FROM channels WHERE id = $1 AND deleted_at = 0`, id)
}

// Channels implements nvr.Store.
func (s *Store) Channels(ctx context.Context, acct vms.AccountID, after nvr.Cursor, limit int) ([]nvr.ChannelRow, error) {
	return list(ctx, s.r, scanChannel, `SELECT `+channelColumns+` FROM channels
		WHERE account_id = $1 AND deleted_at = 0 AND (created_at > $2 OR (created_at = $2 AND id > $3))
		ORDER BY created_at, id LIMIT $4`, acct, micros(after.At), after.ID, limit)
}

// transientChannels is a query that the index channels_transient answers.
const transientChannels = `SELECT ` + channelColumns + ` FROM channels
	WHERE wanted AND (wanted_by = 'viewer' OR wanted_until <> 0) AND deleted_at = 0 ORDER BY id`

// Transient implements nvr.Store.
func (s *Store) Transient(ctx context.Context) ([]nvr.ChannelRow, error) {
	return list(ctx, s.r, scanChannel, transientChannels)
}

// UpdateChannel implements nvr.Store.
func (s *Store) UpdateChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, now time.Time, change func(*nvr.ChannelRow) error) (c nvr.ChannelRow, err error) {
	err = s.write(ctx, func(tx *sql.Tx) error {
		if err := lockChannel(ctx, tx, id); err != nil {
			return err
		}
		c, err = one(ctx, tx, scanChannel, `SELECT `+channelColumns+` FROM channels
			WHERE id = $1 AND account_id = $2 AND deleted_at = 0`, id, acct)
		if err != nil {
			return err
		}
		before := c
		if err := change(&c); err != nil {
			return err
		}
		camera, err := encodeCamera(c)
		if err != nil {
			return err
		}
		if err := hasHub(ctx, tx, acct, c.Hub); err != nil {
			return err
		}
		if _, err := exec(ctx, tx, `UPDATE channels SET hub_id = $1, name = $2, mode = $3, camera = $4, secret = $5, wanted = $6, sid = $7,
			schedule = $8, pre_roll_s = $9, post_roll_s = $10, wanted_until = $11, wanted_by = $12, stopped_revision = $13 WHERE id = $14`,
			nullable(c.Hub), c.Name, c.Mode, camera, base64.StdEncoding.EncodeToString(c.Secret), c.Wanted, c.SID,
			c.Schedule, c.PreRoll, c.PostRoll, micros(c.WantedUntil), c.WantedBy, c.StoppedRevision, id); err != nil {
			return err
		}
		return follow(ctx, tx, before, &c, now)
	})
	if err != nil {
		return nvr.ChannelRow{}, err
	}
	return c, nil
}

// lockChannel makes transactions about one channel wait for each other where
// the database has more than one writer. vms.ErrNotFound when there never was
// such a channel.
func lockChannel(ctx context.Context, tx *sql.Tx, id vms.ChannelID) error {
	n, err := exec(ctx, tx, `UPDATE channels SET generation = generation WHERE id = $1`, id)
	if err == nil && n == 0 {
		return vms.ErrNotFound
	}
	return err
}

// DeleteChannel implements nvr.Store.
func (s *Store) DeleteChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, now time.Time) (sids []vms.SID, err error) {
	err = s.write(ctx, func(tx *sql.Tx) error {
		hub, err := one(ctx, tx, scalar[sql.NullString], `SELECT hub_id FROM channels WHERE id = $1 AND account_id = $2 AND deleted_at = 0`, id, acct)
		if err == nil && hub.Valid {
			err = raise(ctx, tx, vms.HubID(hub.String), now)
		}
		if err != nil {
			return err
		}
		n, err := exec(ctx, tx, `UPDATE channels
			SET deleted_at = $1, name = '', camera = '{}', secret = '', wanted = FALSE, sid = '', hub_id = NULL,
				schedule = '', wanted_until = 0, wanted_by = '', stopped_revision = 0
			WHERE id = $2 AND account_id = $3 AND deleted_at = 0`, micros(now), id, acct)
		if err != nil {
			return err
		}
		if n == 0 {
			return vms.ErrNotFound
		}
		if sids, err = list(ctx, tx, scalar[vms.SID], `UPDATE sessions SET state = 'revoked'
			WHERE channel_id = $1 AND state <> 'revoked' RETURNING sid`, id); err != nil {
			return err
		}
		if _, err := exec(ctx, tx, `INSERT INTO garbage (object_key, created_at)
			SELECT object_key, $1 FROM recordings WHERE channel_id = $2 ON CONFLICT DO NOTHING`, micros(now), id); err != nil {
			return err
		}
		for _, prefix := range []string{"recordings/", "parts/"} { // superseded, and kept for those who have a URL
			prefix += string(id) + "/"
			if _, err := exec(ctx, tx, `UPDATE garbage SET not_before = 0 WHERE not_before <> 0 AND substr(object_key, 1, $1) = $2`,
				len(prefix), prefix); err != nil {
				return err
			}
		}
		for _, q := range []string{
			`DELETE FROM recordings WHERE channel_id = $1`,
			`DELETE FROM gaps WHERE channel_id = $1`,
			`DELETE FROM idle WHERE channel_id = $1`,
			`DELETE FROM modes WHERE channel_id = $1`,
		} {
			if _, err := exec(ctx, tx, q, id); err != nil {
				return err
			}
		}
		return nil
	})
	return sids, err
}

// SetIdle implements nvr.Store.
func (s *Store) SetIdle(ctx context.Context, ch vms.ChannelID, idle bool, at time.Time) error {
	return s.write(ctx, func(tx *sql.Tx) error { return setIdle(ctx, tx, ch, idle, at) })
}

func setIdle(ctx context.Context, tx *sql.Tx, ch vms.ChannelID, idle bool, at time.Time) error {
	if !idle {
		_, err := exec(ctx, tx, `UPDATE idle SET end_at = CASE WHEN start_at > $1 THEN start_at ELSE $1 END
			WHERE channel_id = $2 AND end_at = 0`, micros(at), ch)
		return err
	}
	// The SELECT yields no row for a channel that is gone or idle already.
	_, err := exec(ctx, tx, `INSERT INTO idle (channel_id, start_at)
		SELECT id, $1 FROM channels WHERE id = $2 AND deleted_at = 0
			AND NOT EXISTS (SELECT 1 FROM idle WHERE channel_id = $2 AND end_at = 0)
		ON CONFLICT DO NOTHING`, micros(at), ch)
	return err
}

// Modes implements nvr.Store.
func (s *Store) Modes(ctx context.Context, ch vms.ChannelID, from, to time.Time) ([]nvr.ModeChange, error) {
	return list(ctx, s.r, func(r scanner) (nvr.ModeChange, error) {
		var m nvr.ModeChange
		var since int64
		err := r.Scan(&since, &m.Mode, &m.Schedule, &m.TimeZone)
		m.Since = instant(since)
		return m, err
	}, `SELECT since_at, mode, schedule, time_zone FROM modes WHERE channel_id = $1 AND since_at < $2
		AND since_at >= COALESCE((SELECT MAX(since_at) FROM modes WHERE channel_id = $1 AND since_at <= $3), $3)
		ORDER BY since_at`, ch, micros(to), micros(from))
}

// Idle implements nvr.Store.
func (s *Store) Idle(ctx context.Context, ch vms.ChannelID, from, to time.Time) ([]vms.TimeRange, error) {
	return list(ctx, s.r, func(r scanner) (vms.TimeRange, error) {
		var start, end int64
		err := r.Scan(&start, &end)
		if end == 0 {
			end = micros(to)
		}
		return vms.TimeRange{Start: instant(start), End: instant(end)}, err
	}, `SELECT start_at, end_at FROM idle WHERE channel_id = $1 AND start_at < $2 AND (end_at > $3 OR end_at = 0)
		ORDER BY start_at`, ch, micros(to), micros(from))
}
