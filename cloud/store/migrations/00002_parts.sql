-- +goose Up

-- Parts, provisional recordings with a key under parts/, are superseded by
-- their whole. Their objects are kept for as long as somebody may have a URL.
ALTER TABLE garbage ADD COLUMN not_before BIGINT NOT NULL DEFAULT 0; -- the object may go from then on; 0: at once

-- The sweep takes what may go, the oldest first.
DROP INDEX garbage_by_age;
CREATE INDEX garbage_by_age ON garbage (not_before, created_at, object_key);

-- The parts that nothing has superseded: there are few of them at any time.
CREATE INDEX recordings_parts ON recordings (channel_id, epoch, first_seq) WHERE substr(object_key, 1, 6) = 'parts/';
