package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

const sessionColumns = `sid, account_id, channel_id, hub_id, state, generation, created_at`

func scanSession(r scanner) (nvr.Session, error) {
	var s nvr.Session
	var hub sql.NullString
	var created int64
	if err := r.Scan(&s.SID, &s.Account, &s.Channel, &hub, &s.State, &s.Generation, &created); err != nil {
		return nvr.Session{}, err
	}
	s.Hub, s.CreatedAt = vms.HubID(hub.String), instant(created)
	return s, nil
}

// CreateSession implements nvr.Store.
func (s *Store) CreateSession(ctx context.Context, n nvr.Session) error {
	return s.write(ctx, func(tx *sql.Tx) error { return createSession(ctx, tx, n) })
}

func createSession(ctx context.Context, tx *sql.Tx, n nvr.Session) error {
	rows, err := exec(ctx, tx, `INSERT INTO sessions (sid, account_id, channel_id, hub_id, state, created_at)
		SELECT $1, account_id, id, $2, $3, $4 FROM channels WHERE id = $5 AND account_id = $6 AND deleted_at = 0`,
		n.SID, nullable(n.Hub), n.State, micros(n.CreatedAt), n.Channel, n.Account)
	if err == nil && rows == 0 {
		return vms.ErrNotFound
	}
	return err
}

// Session implements nvr.Store.
func (s *Store) Session(ctx context.Context, sid vms.SID) (nvr.Session, error) {
	return one(ctx, s.r, scanSession, `SELECT `+sessionColumns+` FROM sessions WHERE sid = $1`, sid)
}

// BindSession implements nvr.Store.
func (s *Store) BindSession(ctx context.Context, sid vms.SID, hub vms.HubID) (out nvr.Session, err error) {
	err = s.write(ctx, func(tx *sql.Tx) error {
		out, err = one(ctx, tx, scanSession, `UPDATE sessions SET hub_id = $1
			WHERE sid = $2 AND (hub_id IS NULL OR hub_id = $1) AND state = 'open'
			RETURNING `+sessionColumns, hub, sid)
		if !errors.Is(err, vms.ErrNotFound) {
			return err
		}
		if _, err := one(ctx, tx, scanSession, `SELECT `+sessionColumns+` FROM sessions WHERE sid = $1`, sid); err != nil {
			return err
		}
		return vms.ErrConflict
	})
	return out, err
}

// EndSession implements nvr.Store.
func (s *Store) EndSession(ctx context.Context, sid vms.SID) error {
	return s.write(ctx, func(tx *sql.Tx) error { return endSession(ctx, tx, sid) })
}

func endSession(ctx context.Context, tx *sql.Tx, sid vms.SID) error {
	_, err := exec(ctx, tx, `UPDATE sessions SET state = 'ended' WHERE sid = $1 AND state = 'open'`, sid)
	return err
}

// NextGenerations implements nvr.Store.
func (s *Store) NextGenerations(ctx context.Context, sids []vms.SID) (gens []vms.Generation, err error) {
	gens = make([]vms.Generation, len(sids))
	err = s.write(ctx, func(tx *sql.Tx) error {
		raise, err := tx.PrepareContext(ctx, `UPDATE channels SET generation = generation + 1
			WHERE id = (SELECT channel_id FROM sessions WHERE sid = $1 AND state <> 'revoked') AND deleted_at = 0
			RETURNING generation`)
		if err != nil {
			return err
		}
		defer raise.Close()
		note, err := tx.PrepareContext(ctx, `UPDATE sessions SET generation = $1 WHERE sid = $2`)
		if err != nil {
			return err
		}
		defer note.Close()
		for i, sid := range sids {
			err := raise.QueryRowContext(ctx, sid).Scan(&gens[i])
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			if err == nil {
				_, err = note.ExecContext(ctx, gens[i], sid)
			}
			if err != nil {
				return fmt.Errorf("session %s: %w", sid, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return gens, nil
}
