package store

import (
	"context"
	"database/sql"
	"time"
)

// Expire implements nvr.Store.
func (s *Store) Expire(ctx context.Context, cutoff time.Time, maxBytes int64, now time.Time, limit int) (n int, err error) {
	err = s.write(ctx, func(tx *sql.Tx) error {
		n = 0
		var excess int64
		if maxBytes > 0 {
			total, err := one(ctx, tx, scalar[int64], `SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM recordings`)
			if err != nil {
				return err
			}
			excess = total - maxBytes
		}
		type victim struct {
			key        string
			end, bytes int64
		}
		oldest, err := list(ctx, tx, func(r scanner) (v victim, err error) {
			err = r.Scan(&v.key, &v.end, &v.bytes)
			return v, err
		}, `SELECT object_key, end_at, bytes FROM recordings ORDER BY end_at, object_key LIMIT $1`, limit)
		if err != nil {
			return err
		}
		for _, v := range oldest {
			if excess <= 0 && (cutoff.IsZero() || v.end >= micros(cutoff)) {
				break
			}
			if err := discard(ctx, tx, v.key, now, 0); err != nil {
				return err
			}
			excess -= v.bytes
			n++
		}
		return nil
	})
	return n, err
}

// Forget implements nvr.Store.
func (s *Store) Forget(ctx context.Context, cutoff, unclaimed time.Time) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		if !cutoff.IsZero() {
			if _, err := exec(ctx, tx, `DELETE FROM gaps WHERE end_at < $1`, micros(cutoff)); err != nil {
				return err
			}
			if _, err := exec(ctx, tx, `DELETE FROM idle WHERE end_at <> 0 AND end_at < $1`, micros(cutoff)); err != nil {
				return err
			}
			// A mode ends where the next one begins.
			if _, err := exec(ctx, tx, `DELETE FROM modes WHERE EXISTS (SELECT 1 FROM modes AS n
				WHERE n.channel_id = modes.channel_id AND n.since_at > modes.since_at AND n.since_at < $1)`, micros(cutoff)); err != nil {
				return err
			}
		}
		if _, err := exec(ctx, tx, `DELETE FROM sessions WHERE hub_id IS NULL AND created_at < $1`, micros(unclaimed)); err != nil {
			return err
		}
		_, err := exec(ctx, tx, `UPDATE hubs SET code_hash = NULL WHERE code_hash IS NOT NULL AND code_expires_at < $1`, micros(unclaimed))
		return err
	})
}

// Discard implements nvr.Store.
func (s *Store) Discard(ctx context.Context, key string, now, notBefore time.Time) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		_, err := exec(ctx, tx, `INSERT INTO garbage (object_key, created_at, not_before) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
			key, micros(now), micros(notBefore))
		return err
	})
}

// Garbage implements nvr.Store.
func (s *Store) Garbage(ctx context.Context, now time.Time, limit int) ([]string, error) {
	return list(ctx, s.r, scalar[string], `SELECT object_key FROM garbage WHERE not_before <= $1
		ORDER BY not_before, created_at, object_key LIMIT $2`, micros(now), limit)
}

// GarbageGone implements nvr.Store.
func (s *Store) GarbageGone(ctx context.Context, key string) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		_, err := exec(ctx, tx, `DELETE FROM garbage WHERE object_key = $1`, key)
		return err
	})
}
