package store

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

const hubColumns = `id, account_id, name, public_key, created_at, enrolled_at, revoked_at, desired_revision, time_zone, zone, limits`

func scanHub(r scanner) (nvr.Hub, error) {
	var h nvr.Hub
	var key, limits string
	var created, enrolled, revoked int64
	if err := r.Scan(&h.ID, &h.Account, &h.Name, &key, &created, &enrolled, &revoked, &h.Revision, &h.TimeZone, &h.Zone, &limits); err != nil {
		return nvr.Hub{}, err
	}
	if err := json.Unmarshal([]byte(limits), &h.Limits); err != nil {
		return nvr.Hub{}, fmt.Errorf("limits of hub %s: %w", h.ID, err)
	}
	h.CreatedAt, h.EnrolledAt, h.RevokedAt = instant(created), fromMicros(enrolled), fromMicros(revoked)
	if key != "" {
		b, err := base64.StdEncoding.DecodeString(key)
		if err != nil {
			return nvr.Hub{}, fmt.Errorf("public key of hub %s: %w", h.ID, err)
		}
		h.PublicKey = b
	}
	return h, nil
}

// CreateHub implements nvr.Store.
func (s *Store) CreateHub(ctx context.Context, h nvr.Hub, code nvr.CodeHash, expires time.Time) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		_, err := exec(ctx, tx, `INSERT INTO hubs (id, account_id, name, code_hash, code_expires_at, created_at)
			VALUES ($1, $2, $3, $4, $5, $6)`,
			h.ID, h.Account, h.Name, hex.EncodeToString(code[:]), micros(expires), micros(h.CreatedAt))
		return err
	})
}

// EnrolHub implements nvr.Store.
func (s *Store) EnrolHub(ctx context.Context, code nvr.CodeHash, key ed25519.PublicKey, name string, now time.Time) (h nvr.Hub, err error) {
	hash := hex.EncodeToString(code[:])
	err = s.write(ctx, func(tx *sql.Tx) error {
		h, err = one(ctx, tx, scanHub, `UPDATE hubs
			SET public_key = $1, enrolled_at = $2, code_hash = NULL, name = CASE WHEN name = '' THEN $3 ELSE name END
			WHERE code_hash = $4 AND code_expires_at > $2 AND revoked_at = 0
			RETURNING `+hubColumns,
			base64.StdEncoding.EncodeToString(key), micros(now), name, hash)
		if err == nil { // what it should do is sealed to its key from now on
			h, err = raised(ctx, tx, h.ID, now)
		}
		if !errors.Is(err, vms.ErrNotFound) {
			return err
		}
		n, err := one(ctx, tx, scalar[int], `SELECT COUNT(*) FROM hubs WHERE code_hash = $1`, hash)
		if err != nil {
			return err
		}
		if n > 0 {
			return vms.ErrExpired
		}
		return vms.ErrNotFound
	})
	return h, err
}

// Hub implements nvr.Store.
func (s *Store) Hub(ctx context.Context, id vms.HubID) (nvr.Hub, error) {
	return one(ctx, s.r, scanHub, `SELECT `+hubColumns+` FROM hubs WHERE id = $1`, id)
}

// Hubs implements nvr.Store.
func (s *Store) Hubs(ctx context.Context, acct vms.AccountID, after nvr.Cursor, limit int) ([]nvr.Hub, error) {
	return list(ctx, s.r, scanHub, `SELECT `+hubColumns+` FROM hubs
		WHERE account_id = $1 AND revoked_at = 0 AND (created_at > $2 OR (created_at = $2 AND id > $3))
		ORDER BY created_at, id LIMIT $4`, acct, micros(after.At), after.ID, limit)
}

// UpdateHub implements nvr.Store.
func (s *Store) UpdateHub(ctx context.Context, acct vms.AccountID, id vms.HubID, now time.Time, change func(*nvr.Hub) error) (h nvr.Hub, err error) {
	err = s.write(ctx, func(tx *sql.Tx) error {
		h, err = one(ctx, tx, scanHub, `UPDATE hubs SET name = name
			WHERE id = $1 AND account_id = $2 AND revoked_at = 0 RETURNING `+hubColumns, id, acct)
		if err != nil {
			return err
		}
		before := h
		if err := change(&h); err != nil {
			return err
		}
		limits, err := json.Marshal(h.Limits)
		if err != nil {
			return fmt.Errorf("limits of hub %s: %w", id, err)
		}
		if _, err := exec(ctx, tx, `UPDATE hubs SET name = $1, time_zone = $2, zone = $3, limits = $4 WHERE id = $5`, h.Name, h.TimeZone, h.Zone, string(limits), id); err != nil {
			return err
		}
		revision, modes := nvr.HubEffectsOf(before, h)
		if modes {
			if err := putModes(ctx, tx, `hub_id`, string(id), now); err != nil {
				return err
			}
		}
		if revision {
			h, err = raised(ctx, tx, id, now)
		}
		return err
	})
	if err != nil {
		return nvr.Hub{}, err
	}
	return h, nil
}

// raised raises the revision of what a hub should do, and returns the hub.
func raised(ctx context.Context, tx *sql.Tx, id vms.HubID, now time.Time) (nvr.Hub, error) {
	return one(ctx, tx, scanHub, `UPDATE hubs
		SET desired_revision = CASE WHEN desired_revision >= $1 THEN desired_revision + 1 ELSE $1 END
		WHERE id = $2 RETURNING `+hubColumns, now.UnixMilli(), id)
}

func raise(ctx context.Context, tx *sql.Tx, id vms.HubID, now time.Time) error {
	_, err := raised(ctx, tx, id, now)
	return err
}

// DesiredChannels implements nvr.Store.
func (s *Store) DesiredChannels(ctx context.Context, id vms.HubID) (h nvr.Hub, rows []nvr.ChannelRow, err error) {
	tx, err := s.r.BeginTx(ctx, nil) // its first query chooses the instant
	if err != nil {
		return h, nil, fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	if h, err = one(ctx, tx, scanHub, `SELECT `+hubColumns+` FROM hubs WHERE id = $1`, id); err != nil {
		return h, nil, err
	}
	rows, err = list(ctx, tx, scanChannel, `SELECT `+channelColumns+` FROM channels
		WHERE hub_id = $1 AND deleted_at = 0 ORDER BY created_at, id`, id)
	return h, rows, err
}

// dirtyHubs is a query that the index hubs_dirty answers.
const dirtyHubs = `SELECT id FROM hubs WHERE desired_revision > published_revision AND (public_key <> '' OR revoked_at <> 0) ORDER BY id`

// DirtyHubs implements nvr.Store.
func (s *Store) DirtyHubs(ctx context.Context) ([]vms.HubID, error) {
	return list(ctx, s.r, scalar[vms.HubID], dirtyHubs)
}

// AllHubs implements nvr.Store.
func (s *Store) AllHubs(ctx context.Context) ([]vms.HubID, error) {
	return list(ctx, s.r, scalar[vms.HubID], `SELECT id FROM hubs WHERE public_key <> '' ORDER BY id`)
}

// Published implements nvr.Store.
func (s *Store) Published(ctx context.Context, id vms.HubID, revision int64) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		_, err := exec(ctx, tx, `UPDATE hubs SET published_revision = $1 WHERE id = $2 AND published_revision < $1`, revision, id)
		return err
	})
}

// RaiseRevision implements nvr.Store.
func (s *Store) RaiseRevision(ctx context.Context, id vms.HubID, seen int64, now time.Time) (is bool, err error) {
	h, err := s.Hub(ctx, id) // nearly always all is well, and nobody has to wait for the writer
	if errors.Is(err, vms.ErrNotFound) || err == nil && h.Revision >= seen {
		return false, nil
	}
	err = s.write(ctx, func(tx *sql.Tx) error {
		n, err := exec(ctx, tx, `UPDATE hubs SET desired_revision = $1 WHERE id = $2 AND desired_revision < $1`, seen, id)
		if is = n > 0; err == nil && is {
			err = raise(ctx, tx, id, now)
		}
		return err
	})
	return is && err == nil, err
}

// RevokeHub implements nvr.Store.
func (s *Store) RevokeHub(ctx context.Context, acct vms.AccountID, id vms.HubID, now time.Time) (sids []vms.SID, err error) {
	err = s.write(ctx, func(tx *sql.Tx) error {
		n, err := exec(ctx, tx, `UPDATE hubs SET revoked_at = $1, public_key = '', code_hash = NULL
			WHERE id = $2 AND account_id = $3 AND revoked_at = 0`, micros(now), id, acct)
		if err != nil {
			return err
		}
		if n == 0 {
			return vms.ErrNotFound
		}
		if err := raise(ctx, tx, id, now); err != nil {
			return err
		}
		if sids, err = list(ctx, tx, scalar[vms.SID], `UPDATE sessions SET state = 'revoked'
			WHERE hub_id = $1 AND state <> 'revoked' RETURNING sid`, id); err != nil {
			return err
		}
		_, err = exec(ctx, tx, `UPDATE channels SET hub_id = NULL, sid = '', stopped_revision = 0 WHERE hub_id = $1`, id)
		return err
	})
	return sids, err
}
