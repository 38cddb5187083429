-- The schema, in the subset of SQL that SQLite and PostgreSQL share.
--
-- Conventions: ids are TEXT ([a-z0-9_-], at most 64). Times are BIGINT, unix
-- microseconds in UTC, 0 for "never". Epochs are TEXT, 16 hexadecimal digits:
-- they are unsigned 64-bit numbers, which SQL has not. Bytes are TEXT too, in
-- base64 or hexadecimal, because BLOB and BYTEA differ.

-- +goose Up

-- A device that runs the agent. Rows are never deleted: a revoked hub must be
-- told so when it comes back.
CREATE TABLE hubs (
	id              TEXT    NOT NULL PRIMARY KEY,
	account_id      TEXT    NOT NULL,            -- the tenant who owns it
	name            TEXT    NOT NULL,            -- for people
	public_key      TEXT    NOT NULL DEFAULT '', -- Ed25519, base64; empty before enrolment and after revocation
	code_hash       TEXT,                        -- SHA-256 of the enrolment code, hexadecimal; NULL when spent
	code_expires_at BIGINT  NOT NULL DEFAULT 0,
	created_at      BIGINT  NOT NULL,
	enrolled_at     BIGINT  NOT NULL DEFAULT 0,
	revoked_at      BIGINT  NOT NULL DEFAULT 0
);
-- The pages of an account's list.
CREATE INDEX hubs_by_account ON hubs (account_id, created_at, id);
-- Enrolment finds the hub by its code, and no two hubs have the same.
CREATE UNIQUE INDEX hubs_by_code ON hubs (code_hash);

-- A camera's registration. A deleted channel stays as a tombstone without its
-- camera, so that an object that is registered late is known to be garbage.
CREATE TABLE channels (
	id         TEXT    NOT NULL PRIMARY KEY,
	account_id TEXT    NOT NULL,
	hub_id     TEXT    REFERENCES hubs (id),  -- NULL: no hub was chosen
	name       TEXT    NOT NULL,
	mode       TEXT    NOT NULL,              -- 'on_demand' or 'continuous'
	camera     TEXT    NOT NULL,              -- vms.Camera as JSON, never with a password
	secret     TEXT    NOT NULL DEFAULT '',   -- the password, sealed by the NVR, base64
	wanted     BOOLEAN NOT NULL DEFAULT FALSE,-- the cloud wants the stream to run
	sid        TEXT    NOT NULL DEFAULT '',   -- the session that the cloud declared for it; no key: it may be pruned
	generation BIGINT  NOT NULL DEFAULT 0,    -- the last one issued to any session of this channel
	created_at BIGINT  NOT NULL,
	deleted_at BIGINT  NOT NULL DEFAULT 0
);
-- The pages of an account's list.
CREATE INDEX channels_by_account ON channels (account_id, created_at, id);
-- What a hub that comes back should run; what a revoked hub loses.
CREATE INDEX channels_by_hub ON channels (hub_id);

-- A stream authorization session.
CREATE TABLE sessions (
	sid        TEXT   NOT NULL PRIMARY KEY,
	account_id TEXT   NOT NULL,
	channel_id TEXT   NOT NULL REFERENCES channels (id),
	hub_id     TEXT   REFERENCES hubs (id), -- NULL until the first hub has proved itself
	state      TEXT   NOT NULL,             -- 'open', 'ended' or 'revoked'
	generation BIGINT NOT NULL DEFAULT 0,   -- the last one issued to this session
	created_at BIGINT NOT NULL
);
-- Deleting a channel revokes its sessions.
CREATE INDEX sessions_by_channel ON sessions (channel_id);
-- Revoking a hub revokes its sessions; pruning looks for those without a hub.
CREATE INDEX sessions_by_hub ON sessions (hub_id, created_at);

-- One object in the bucket. Invariant: the object exists, with this size and
-- checksum. Invariant: recordings of a channel never overlap.
CREATE TABLE recordings (
	object_key     TEXT    NOT NULL PRIMARY KEY,
	channel_id     TEXT    NOT NULL REFERENCES channels (id),
	start_at       BIGINT  NOT NULL, -- the first sample
	end_at         BIGINT  NOT NULL, -- the start of the next chunk in the span; at most an hour later
	epoch          TEXT    NOT NULL,
	first_seq      BIGINT  NOT NULL, -- chunks, both included
	last_seq       BIGINT  NOT NULL,
	number         BIGINT  NOT NULL, -- inside its span
	media_us       BIGINT  NOT NULL, -- duration of the media, microseconds
	bytes          BIGINT  NOT NULL, -- size of the object
	sha256         TEXT    NOT NULL, -- of the object, hexadecimal
	head_len       BIGINT  NOT NULL, -- ftyp + moov + sidx
	init_len       BIGINT  NOT NULL, -- ftyp + moov
	codecs         TEXT    NOT NULL, -- RFC 6381
	dependent      BOOLEAN NOT NULL, -- plays only after its predecessor
	time_uncertain BOOLEAN NOT NULL, -- no clock bridged a reboot of the hub
	registered_at  BIGINT  NOT NULL
);
-- The timeline, its pages and neighbours, and the search for overlaps.
CREATE INDEX recordings_by_time ON recordings (channel_id, start_at, object_key);
-- Which of the chunks that a hub holds are durable.
CREATE INDEX recordings_by_chunk ON recordings (channel_id, epoch, first_seq);
-- Retention takes the oldest first, over all channels.
CREATE INDEX recordings_by_age ON recordings (end_at, object_key);

-- Objects that are to be deleted. While a key is here nothing registers it; the
-- row goes when the object has gone.
CREATE TABLE garbage (
	object_key TEXT   NOT NULL PRIMARY KEY,
	created_at BIGINT NOT NULL
);
-- The sweep takes the oldest first.
CREATE INDEX garbage_by_age ON garbage (created_at, object_key);

-- What a hub declared to be missing, under the id that it chose.
CREATE TABLE gaps (
	channel_id TEXT   NOT NULL REFERENCES channels (id),
	id         TEXT   NOT NULL,
	start_at   BIGINT NOT NULL,
	end_at     BIGINT NOT NULL,
	cause      TEXT   NOT NULL,            -- vms.Cause
	epoch      TEXT   NOT NULL DEFAULT '', -- empty when no chunk was ever muxed
	first_seq  BIGINT NOT NULL DEFAULT 0,
	last_seq   BIGINT NOT NULL DEFAULT 0,
	PRIMARY KEY (channel_id, id)
);
-- The timeline asks for gaps that end after its beginning.
CREATE INDEX gaps_by_time ON gaps (channel_id, end_at);

-- When nobody wanted a channel to record: from a stop to the next start.
CREATE TABLE idle (
	channel_id TEXT   NOT NULL REFERENCES channels (id),
	start_at   BIGINT NOT NULL,
	end_at     BIGINT NOT NULL DEFAULT 0, -- 0: still
	PRIMARY KEY (channel_id, start_at)
);
