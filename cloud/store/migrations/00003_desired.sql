-- +goose Up

-- What a hub should do has a revision: it rises with every change of the hub or
-- of its channels, and a hub obeys the highest it has seen. Whoever publishes it
-- finds the hubs where the two differ.
ALTER TABLE hubs ADD COLUMN desired_revision   BIGINT NOT NULL DEFAULT 0;  -- unix milliseconds of the change, or one more than the one before; 0: nothing was ever said
ALTER TABLE hubs ADD COLUMN published_revision BIGINT NOT NULL DEFAULT 0;  -- the highest that was published, which a restored backup may have forgotten
ALTER TABLE hubs ADD COLUMN time_zone          TEXT   NOT NULL DEFAULT ''; -- IANA name, empty: UTC; schedules are in it
ALTER TABLE hubs ADD COLUMN limits             TEXT   NOT NULL DEFAULT '{}'; -- wire.HubLimits as JSON
-- Hubs that have enrolled already are told what they should do, as all others.
UPDATE hubs SET desired_revision = 1 WHERE public_key <> '';
-- The hubs that are to be told something: few at any time.
CREATE INDEX hubs_dirty ON hubs (id) WHERE desired_revision > published_revision;

-- mode is now also 'scheduled' or 'event'.
ALTER TABLE channels ADD COLUMN schedule     TEXT   NOT NULL DEFAULT ''; -- weekly table (pkg/week), of mode scheduled
ALTER TABLE channels ADD COLUMN pre_roll_s   BIGINT NOT NULL DEFAULT 5;  -- recorded before an event, seconds, in mode event
ALTER TABLE channels ADD COLUMN post_roll_s  BIGINT NOT NULL DEFAULT 30; -- and after it
ALTER TABLE channels ADD COLUMN wanted_until BIGINT NOT NULL DEFAULT 0;  -- mode on_demand: when that ends by itself; 0: when it is stopped
ALTER TABLE channels ADD COLUMN wanted_by    TEXT   NOT NULL DEFAULT ''; -- mode on_demand, while wanted: 'request' or 'viewer'
UPDATE channels SET wanted_by = 'request' WHERE wanted AND mode = 'on_demand';
ALTER TABLE channels ADD COLUMN stopped_revision BIGINT NOT NULL DEFAULT 0; -- desired_revision of its hub with which the owner stopped it last; 0: never since the hub has it
-- The streams on demand that end by themselves are looked for every second.
CREATE INDEX channels_transient ON channels (id) WHERE wanted AND (wanted_by = 'viewer' OR wanted_until <> 0);

-- What a channel was to record: from since_at until the next row. Channels of
-- before this table have none until their mode changes; theirs had no hours.
CREATE TABLE modes (
	channel_id TEXT   NOT NULL REFERENCES channels (id),
	since_at   BIGINT NOT NULL,
	mode       TEXT   NOT NULL, -- as in channels
	schedule   TEXT   NOT NULL, -- as in channels
	time_zone  TEXT   NOT NULL, -- of the channel's hub
	PRIMARY KEY (channel_id, since_at)
);
