package store

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

const hubColumns = `id, account_id, name, public_key, created_at, enrolled_at, revoked_at`

func scanHub(r scanner) (nvr.Hub, error) {
	var h nvr.Hub
	var key string
	var created, enrolled, revoked int64
	if err := r.Scan(&h.ID, &h.Account, &h.Name, &key, &created, &enrolled, &revoked); err != nil {
		return nvr.Hub{}, err
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
		if sids, err = list(ctx, tx, scalar[vms.SID], `UPDATE sessions SET state = 'revoked'
			WHERE hub_id = $1 AND state <> 'revoked' RETURNING sid`, id); err != nil {
			return err
		}
		_, err = exec(ctx, tx, `UPDATE channels SET hub_id = NULL, sid = '' WHERE hub_id = $1`, id)
		return err
	})
	return sids, err
}
