package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"
)

// MakeOld makes a database file as the release with schema version wrote it.
func MakeOld(ctx context.Context, path string, version int64, queries ...string) (err error) {
	db, err := sql.Open("sqlite", dsn(path, "_txlock=immediate"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	p, err := provider(db)
	if err != nil {
		return err
	}
	if _, err := p.UpTo(ctx, version); err != nil {
		return err
	}
	for _, q := range queries {
		if _, err := db.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

// PartQueries are as Parts and PartEpochs ask.
var PartQueries = []string{
	`SELECT bytes FROM recordings WHERE ` + isPart + ` AND channel_id = 'c' AND epoch IN ('a', 'b') ORDER BY epoch, first_seq, last_seq`,
	`SELECT channel_id, epoch, MAX(end_at), MAX(registered_at) FROM recordings WHERE ` + isPart + ` GROUP BY channel_id, epoch ORDER BY channel_id, epoch`,
}

// HubQueries are asked every second, or with every change.
var HubQueries = map[string]string{"hubs_dirty": dirtyHubs, "channels_transient": transientChannels}

// Plan says how a query is run.
func Plan(ctx context.Context, s *Store, query string) (string, error) {
	steps, err := list(ctx, s.r, func(r scanner) (string, error) {
		var id, parent, unused int
		var detail string
		err := r.Scan(&id, &parent, &unused, &detail)
		return detail, err
	}, `EXPLAIN QUERY PLAN `+query)
	return strings.Join(steps, "; "), err
}

// Exec runs SQL that no method has.
func Exec(ctx context.Context, s *Store, query string) error {
	_, err := s.w.ExecContext(ctx, query)
	return err
}

// Pragma reads a setting of the writing connection.
func Pragma(ctx context.Context, s *Store, name string) (v string, err error) {
	err = s.w.QueryRowContext(ctx, "PRAGMA "+name).Scan(&v)
	return v, err
}
