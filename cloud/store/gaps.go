package store

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// PutGaps implements nvr.Store.
func (s *Store) PutGaps(ctx context.Context, ch vms.ChannelID, gaps []vms.Gap) (news []vms.GapID, err error) {
	err = s.write(ctx, func(tx *sql.Tx) error {
		news = nil
		if _, err := one(ctx, tx, scalar[string], `SELECT id FROM channels WHERE id = $1 AND deleted_at = 0`, ch); err != nil {
			return err
		}
		for _, g := range gaps {
			var epoch string
			var c vms.ChunkRange
			if g.Chunks != nil {
				epoch, c = g.Chunks.Epoch.String(), *g.Chunks
			}
			if c.First > math.MaxInt64 || c.Last > math.MaxInt64 {
				return fmt.Errorf("gap %s: %w: chunks %s", g.ID, vms.ErrInvalid, c)
			}
			known, err := one(ctx, tx, scalar[int], `SELECT COUNT(*) FROM gaps WHERE channel_id = $1 AND id = $2`, ch, g.ID)
			if err != nil {
				return err
			}
			if _, err := exec(ctx, tx, `INSERT INTO gaps (channel_id, id, start_at, end_at, cause, epoch, first_seq, last_seq)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
				ON CONFLICT (channel_id, id) DO UPDATE SET start_at = excluded.start_at, end_at = excluded.end_at,
					cause = excluded.cause, epoch = excluded.epoch, first_seq = excluded.first_seq, last_seq = excluded.last_seq`,
				ch, g.ID, micros(g.Start), micros(g.End), g.Cause, epoch, c.First, c.Last); err != nil {
				return err
			}
			if known == 0 {
				news = append(news, g.ID)
			}
		}
		return nil
	})
	return news, err
}

// Gaps implements nvr.Store.
func (s *Store) Gaps(ctx context.Context, ch vms.ChannelID, from, to time.Time, limit int) ([]vms.Gap, error) {
	return list(ctx, s.r, func(r scanner) (vms.Gap, error) {
		var g vms.Gap
		var start, end int64
		var epoch string
		var c vms.ChunkRange
		if err := r.Scan(&g.ID, &start, &end, &g.Cause, &epoch, &c.First, &c.Last); err != nil {
			return g, err
		}
		g.Start, g.End = instant(start), instant(end)
		if epoch == "" {
			return g, nil
		}
		var err error
		c.Epoch, err = vms.ParseEpoch(epoch)
		g.Chunks = &c
		return g, err
	}, `SELECT id, start_at, end_at, cause, epoch, first_seq, last_seq FROM gaps
		WHERE channel_id = $1 AND end_at > $2 AND start_at < $3 ORDER BY start_at, id LIMIT $4`, ch, micros(from), micros(to), limit)
}
