package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

const recordingColumns = `object_key, channel_id, start_at, end_at, epoch, first_seq, last_seq, number, media_us, bytes,
	sha256, head_len, init_len, codecs, dependent, time_uncertain`

func scanRecording(row scanner) (vms.Recording, error) {
	var r vms.Recording
	var start, end, media int64
	var epoch, sum string
	if err := row.Scan(&r.Key, &r.Channel, &start, &end, &epoch, &r.Chunks.First, &r.Chunks.Last, &r.Number, &media, &r.Bytes,
		&sum, &r.HeadLen, &r.InitLen, &r.Codecs, &r.Dependent, &r.TimeUncertain); err != nil {
		return vms.Recording{}, err
	}
	r.Start, r.End, r.Media = instant(start), instant(end), time.Duration(media)*time.Microsecond
	var err error
	if r.Chunks.Epoch, err = vms.ParseEpoch(epoch); err != nil {
		return vms.Recording{}, fmt.Errorf("recording %s: %w", r.Key, err)
	}
	if n, err := hex.Decode(r.SHA256[:], []byte(sum)); err != nil || n != len(r.SHA256) {
		return vms.Recording{}, fmt.Errorf("recording %s: checksum %q", r.Key, sum)
	}
	return r, nil
}

// PutRecording implements nvr.Store.
func (s *Store) PutRecording(ctx context.Context, r vms.Recording, now time.Time, keep time.Duration) (v nvr.Verdict, err error) {
	if r.Chunks.Last > math.MaxInt64 {
		return v, fmt.Errorf("%w: chunk %d", vms.ErrInvalid, r.Chunks.Last)
	}
	err = s.write(ctx, func(tx *sql.Tx) error {
		v = nvr.Verdict{}
		if err := lockChannel(ctx, tx, r.Channel); err != nil {
			return err
		}
		doomed, err := isGarbage(ctx, tx, r, now)
		if err != nil || doomed {
			return err
		}
		old, err := one(ctx, tx, scanRecording, `SELECT `+recordingColumns+` FROM recordings WHERE object_key = $1`, r.Key)
		switch {
		case err == nil && old.Chunks == r.Chunks && old.SHA256 == r.SHA256:
			return nil
		case err == nil && (!r.Chunks.Contains(old.Chunks) || r.Chunks == old.Chunks):
			v.Conflict = old.Key // the object has one content, the row says another
			return nil
		case err != nil && !errors.Is(err, vms.ErrNotFound):
			return err
		}
		v, err = place(ctx, tx, r, now, keep)
		if err != nil || !v.News {
			return err
		}
		return insertRecording(ctx, tx, r, now)
	})
	return v, err
}

// isGarbage reports whether the object is to go. That of a deleted channel
// becomes garbage here.
func isGarbage(ctx context.Context, tx *sql.Tx, r vms.Recording, now time.Time) (bool, error) {
	n, err := one(ctx, tx, scalar[int], `SELECT COUNT(*) FROM garbage WHERE object_key = $1`, r.Key)
	if err != nil || n > 0 {
		return n > 0, err
	}
	deleted, err := one(ctx, tx, scalar[int64], `SELECT deleted_at FROM channels WHERE id = $1`, r.Channel)
	if err != nil || deleted == 0 {
		return false, err
	}
	return true, discard(ctx, tx, r.Key, now, 0)
}

// place puts r among the recordings that it overlaps, and clears those away
// that it supersedes.
func place(ctx context.Context, tx *sql.Tx, r vms.Recording, now time.Time, keep time.Duration) (nvr.Verdict, error) {
	near := func(t vms.TimeRange) ([]vms.Recording, error) {
		return list(ctx, tx, scanRecording, `SELECT `+recordingColumns+` FROM recordings
			WHERE channel_id = $1 AND start_at < $2 AND start_at >= $3 AND end_at > $4 AND object_key <> $5
			ORDER BY start_at, object_key`,
			r.Channel, micros(t.End), micros(t.Start.Add(-nvr.MaxRecording)), micros(t.Start), r.Key)
	}
	own := vms.TimeRange{Start: r.Start, End: r.End}
	others, err := near(own)
	if err != nil {
		return nvr.Verdict{}, err
	}
	if t := nvr.Reach(r, others); t != own { // most often there are no parts
		if others, err = near(t); err != nil {
			return nvr.Verdict{}, err
		}
	}
	p := nvr.Place(r, others)
	if p.Drop {
		return nvr.Verdict{}, discard(ctx, tx, r.Key, now, 0)
	}
	for _, key := range p.Superseded {
		if err := discard(ctx, tx, key, now, keep); err != nil {
			return nvr.Verdict{}, err
		}
	}
	return nvr.Verdict{News: true, Conflict: p.Conflict}, nil
}

// insertRecording adds the row, or writes it over a smaller one of the same key.
func insertRecording(ctx context.Context, tx *sql.Tx, r vms.Recording, now time.Time) error {
	_, err := exec(ctx, tx, `INSERT INTO recordings (`+recordingColumns+`, registered_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
		ON CONFLICT (object_key) DO UPDATE SET end_at = excluded.end_at, first_seq = excluded.first_seq, last_seq = excluded.last_seq,
			media_us = excluded.media_us, bytes = excluded.bytes, sha256 = excluded.sha256, head_len = excluded.head_len,
			init_len = excluded.init_len, codecs = excluded.codecs, dependent = excluded.dependent,
			time_uncertain = excluded.time_uncertain, registered_at = excluded.registered_at`,
		r.Key, r.Channel, micros(r.Start), micros(r.End), r.Chunks.Epoch.String(), r.Chunks.First, r.Chunks.Last, r.Number,
		r.Media.Microseconds(), r.Bytes, hex.EncodeToString(r.SHA256[:]), r.HeadLen, r.InitLen, r.Codecs, r.Dependent, r.TimeUncertain, micros(now))
	return err
}

// discard makes garbage of a key, whose object may go after keep, and takes its
// row away if it has one.
func discard(ctx context.Context, tx *sql.Tx, key string, now time.Time, keep time.Duration) error {
	var notBefore time.Time
	if keep > 0 {
		notBefore = now.Add(keep)
	}
	if _, err := exec(ctx, tx, `INSERT INTO garbage (object_key, created_at, not_before) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		key, micros(now), micros(notBefore)); err != nil {
		return err
	}
	_, err := exec(ctx, tx, `DELETE FROM recordings WHERE object_key = $1`, key)
	return err
}

// Recordings implements nvr.Store.
func (s *Store) Recordings(ctx context.Context, ch vms.ChannelID, from, to time.Time, first nvr.Cursor, limit int) ([]vms.Recording, error) {
	// The lower bound on start_at lets the index skip all that is older.
	low := max(micros(from.Add(-nvr.MaxRecording)), micros(first.At))
	return list(ctx, s.r, scanRecording, `SELECT `+recordingColumns+` FROM recordings
		WHERE channel_id = $1 AND start_at >= $2 AND start_at < $3 AND end_at > $4 AND (start_at > $5 OR object_key >= $6)
		ORDER BY start_at, object_key LIMIT $7`, ch, low, micros(to), micros(from), micros(first.At), first.ID, limit)
}

// Neighbours implements nvr.Store.
func (s *Store) Neighbours(ctx context.Context, ch vms.ChannelID, from, to time.Time) (before, after *vms.Recording, err error) {
	get := func(query string, args ...any) (*vms.Recording, error) {
		r, err := one(ctx, s.r, scanRecording, query, args...)
		if errors.Is(err, vms.ErrNotFound) {
			return nil, nil
		}
		return &r, err
	}
	before, err = get(`SELECT `+recordingColumns+` FROM recordings
		WHERE channel_id = $1 AND start_at < $2 AND end_at <= $2 ORDER BY start_at DESC, object_key DESC LIMIT 1`, ch, micros(from))
	if err != nil {
		return nil, nil, err
	}
	after, err = get(`SELECT `+recordingColumns+` FROM recordings
		WHERE channel_id = $1 AND start_at >= $2 ORDER BY start_at, object_key LIMIT 1`, ch, micros(to))
	if err != nil {
		return nil, nil, err
	}
	return before, after, nil
}

// RecordedChunks implements nvr.Store.
func (s *Store) RecordedChunks(ctx context.Context, ch vms.ChannelID, c vms.ChunkRange, limit int) ([]vms.ChunkRange, error) {
	return list(ctx, s.r, func(r scanner) (vms.ChunkRange, error) {
		out := vms.ChunkRange{Epoch: c.Epoch}
		err := r.Scan(&out.First, &out.Last)
		return out, err
	}, `SELECT first_seq, last_seq FROM recordings
		WHERE channel_id = $1 AND epoch = $2 AND first_seq <= $3 AND last_seq >= $4 ORDER BY first_seq LIMIT $5`,
		ch, c.Epoch.String(), int64(min(c.Last, math.MaxInt64)), int64(min(c.First, math.MaxInt64)), limit)
}

// isPart is the condition of the index recordings_parts, word for word.
const isPart = `substr(object_key, 1, 6) = 'parts/'`

// Parts implements nvr.Store.
func (s *Store) Parts(ctx context.Context, ch vms.ChannelID, epochs []vms.Epoch) ([]vms.Recording, error) {
	const batch = 500 // parameters of one query
	epochs = slices.Clone(epochs)
	slices.Sort(epochs) // as their texts do
	var out []vms.Recording
	for some := range slices.Chunk(slices.Compact(epochs), batch) {
		args, marks := []any{ch}, make([]string, 0, len(some))
		for _, e := range some {
			args = append(args, e.String())
			marks = append(marks, fmt.Sprintf("$%d", len(args)))
		}
		rs, err := list(ctx, s.r, scanRecording, `SELECT `+recordingColumns+` FROM recordings
			WHERE `+isPart+` AND channel_id = $1 AND epoch IN (`+strings.Join(marks, ", ")+`) ORDER BY epoch, first_seq, last_seq`, args...)
		if err != nil {
			return nil, err
		}
		out = append(out, rs...)
	}
	return out, nil
}

// PartEpochs implements nvr.Store.
func (s *Store) PartEpochs(ctx context.Context) ([]nvr.PartEpoch, error) {
	return list(ctx, s.r, func(r scanner) (nvr.PartEpoch, error) {
		var p nvr.PartEpoch
		var epoch string
		var end, registered int64
		if err := r.Scan(&p.Channel, &epoch, &end, &registered); err != nil {
			return p, err
		}
		p.End, p.Registered = instant(end), instant(registered)
		var err error
		p.Epoch, err = vms.ParseEpoch(epoch)
		return p, err
	}, `SELECT channel_id, epoch, MAX(end_at), MAX(registered_at) FROM recordings
		WHERE `+isPart+` GROUP BY channel_id, epoch ORDER BY channel_id, epoch`)
}

// HasRecording implements nvr.Store.
func (s *Store) HasRecording(ctx context.Context, key string) (bool, error) {
	n, err := one(ctx, s.r, scalar[int], `SELECT (SELECT COUNT(*) FROM recordings WHERE object_key = $1)
		+ (SELECT COUNT(*) FROM garbage WHERE object_key = $1)`, key)
	return n > 0, err
}
