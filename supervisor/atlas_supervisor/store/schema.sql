-- The schema of atlas.db, a section for each version; `migrations.py` runs those that a file has
-- not had yet. A section that was released is never changed: what follows is a new one.

-- version: 1
-- Every statement can be run again: files from before there were versions have all of it.

CREATE TABLE IF NOT EXISTS deploys (
    deploy_id    TEXT PRIMARY KEY,
    release      TEXT,
    version      TEXT,
    dry_run      INTEGER NOT NULL,
    auto_switch  INTEGER NOT NULL,
    active_port  INTEGER NOT NULL,
    staging_port INTEGER NOT NULL,
    phase        TEXT NOT NULL,
    result       TEXT,
    reason       TEXT,
    started_ts   TEXT NOT NULL,
    ended_ts     TEXT
) STRICT;

CREATE INDEX IF NOT EXISTS deploys_by_start ON deploys (started_ts);

CREATE TABLE IF NOT EXISTS steps (
    deploy_id    TEXT NOT NULL REFERENCES deploys (deploy_id),
    position     INTEGER NOT NULL,
    name         TEXT NOT NULL,
    ok           INTEGER NOT NULL,
    duration_ms  REAL NOT NULL,
    detail       TEXT NOT NULL,     -- JSON
    PRIMARY KEY (deploy_id, position)
) STRICT;

-- The journal: every transition, written before its effects are performed.
CREATE TABLE IF NOT EXISTS transitions (
    id           INTEGER PRIMARY KEY,
    deploy_id    TEXT NOT NULL REFERENCES deploys (deploy_id),
    ts           TEXT NOT NULL,
    phase        TEXT NOT NULL,
    event        TEXT NOT NULL,
    target       TEXT NOT NULL,
    cause        TEXT
) STRICT;

CREATE INDEX IF NOT EXISTS transitions_by_deploy ON transitions (deploy_id);

CREATE TABLE IF NOT EXISTS audit (
    id           INTEGER PRIMARY KEY,
    ts           TEXT NOT NULL,
    actor        TEXT NOT NULL,
    origin       TEXT NOT NULL,
    action       TEXT NOT NULL,
    subject      TEXT,
    outcome      TEXT NOT NULL,
    detail       TEXT NOT NULL      -- JSON
) STRICT;

-- Worker processes, so that the next daemon knows which ones this one left behind.
CREATE TABLE IF NOT EXISTS instances (
    instance     TEXT PRIMARY KEY,
    slot         TEXT NOT NULL,
    pid          INTEGER NOT NULL,
    start_ticks  INTEGER NOT NULL,
    boot_id      TEXT NOT NULL,
    started_ts   TEXT NOT NULL
) STRICT;

-- A copy of what deploy_state.json held last, to rebuild it from.
CREATE TABLE IF NOT EXISTS last_state (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    state        TEXT NOT NULL      -- JSON
) STRICT;

-- The versions that had the traffic, the active one last. A switch adds one, a rollback takes it
-- away again: what stands before the last is what a rollback goes back to.
CREATE TABLE IF NOT EXISTS versions (
    id           INTEGER PRIMARY KEY,
    ts           TEXT NOT NULL,
    slot         TEXT NOT NULL,
    release      TEXT,
    directory    TEXT NOT NULL,
    version      TEXT NOT NULL
) STRICT;

-- version: 2
-- A deploy of the version before the active one, because that was no longer warm.
ALTER TABLE deploys ADD COLUMN rollback INTEGER NOT NULL DEFAULT 0;

ALTER TABLE transitions ADD COLUMN duration_ms REAL;        -- of the phase that it ended

ALTER TABLE transitions ADD COLUMN step_position INTEGER;   -- of the step that ended by it, if any

ALTER TABLE transitions ADD COLUMN outcome TEXT;            -- JSON: result, reason, version, ports as of then

-- What was asked for under an Idempotency-Key, and what came of it.
CREATE TABLE idempotency_keys (
    key          TEXT PRIMARY KEY,
    ts           TEXT NOT NULL,
    fingerprint  TEXT NOT NULL,     -- of the request
    deploy_id    TEXT REFERENCES deploys (deploy_id) ON DELETE CASCADE,     -- null: it changed the mode
    asked        TEXT               -- the result that a steered deploy was to come to; null: begun
) STRICT;

CREATE INDEX idempotency_keys_by_deploy ON idempotency_keys (deploy_id);

-- version: 3
-- Every audit entry is chained to the one before it; `audit.py` says how. The hashes of entries
-- from before are filled in by `migrations.py`, because SQLite knows no SHA-256.
ALTER TABLE audit ADD COLUMN previous_hash TEXT NOT NULL DEFAULT '';

ALTER TABLE audit ADD COLUMN hash TEXT NOT NULL DEFAULT '';

CREATE INDEX audit_by_action ON audit (action);

CREATE INDEX audit_by_subject ON audit (subject);

-- version: 4
-- Feature canaries. Counts are kept in spans of a minute, and of an hour for reports of many.
CREATE TABLE canary_epochs (
    epoch        INTEGER PRIMARY KEY,
    feature      TEXT NOT NULL,
    ramp         INTEGER NOT NULL,  -- the first epoch of its evidence
    share        REAL NOT NULL,
    ts           TEXT NOT NULL,
    cause        TEXT NOT NULL
) STRICT;

CREATE TABLE canary_counts (
    span         INTEGER NOT NULL,  -- seconds: 60 or 3600
    start        INTEGER NOT NULL,  -- Unix time
    epoch        INTEGER NOT NULL,
    canary       INTEGER NOT NULL,
    assigned     INTEGER NOT NULL,
    unreported   INTEGER NOT NULL,
    calls        INTEGER NOT NULL,
    errors       INTEGER NOT NULL,
    cancelled    INTEGER NOT NULL,
    latency      BLOB NOT NULL,     -- a histogram
    PRIMARY KEY (span, start, epoch, canary)
) STRICT, WITHOUT ROWID;

-- How far the rings of worker processes are accounted for in all of these tables.
CREATE TABLE canary_rings (
    ring         TEXT PRIMARY KEY,
    tail         INTEGER NOT NULL,
    keyed_tail   INTEGER NOT NULL,
    dropped      INTEGER NOT NULL
) STRICT;

-- Keys that have had their first call in a ramp that goes on.
CREATE TABLE canary_keys (
    ramp         INTEGER NOT NULL,
    key          INTEGER NOT NULL,
    PRIMARY KEY (ramp, key)
) STRICT, WITHOUT ROWID;

-- What else there is to go on with after a restart, by name: JSON.
CREATE TABLE canary_progress (
    name         TEXT PRIMARY KEY,
    value        TEXT NOT NULL
) STRICT;

-- version: 5
-- What a release is besides its name: its real path, that very folder, and its version's source.
-- Null in rows from before: such a release is looked up by its name.
ALTER TABLE versions ADD COLUMN identity TEXT;

ALTER TABLE versions ADD COLUMN version_source TEXT;

ALTER TABLE deploys ADD COLUMN directory TEXT;

ALTER TABLE deploys ADD COLUMN identity TEXT;

ALTER TABLE deploys ADD COLUMN version_source TEXT;

-- version: 6
-- Whether the worker has reported that it runs the kit; it does so once, to the daemon of that time.
ALTER TABLE instances ADD COLUMN kit INTEGER NOT NULL DEFAULT 0;

-- version: 7
-- The listening sockets that workers inherit. A process that has one of them open is ours.
CREATE TABLE listeners (
    inode        INTEGER NOT NULL,
    boot_id      TEXT NOT NULL
) STRICT;

-- No query used it.
DROP INDEX IF EXISTS deploys_by_start;

-- version: 8
-- What is known of a key's hash: an interval, in one round of a ramp. Of keys from before only that
-- they have counted is known: the interval is empty, so they count again in the next round.
ALTER TABLE canary_keys ADD COLUMN round INTEGER NOT NULL DEFAULT 1;

ALTER TABLE canary_keys ADD COLUMN low REAL NOT NULL DEFAULT 0;

ALTER TABLE canary_keys ADD COLUMN high REAL NOT NULL DEFAULT 0;

-- version: 9
-- The worker's life so far (JSON): with it the next daemon goes on with the worker as its own.
ALTER TABLE instances ADD COLUMN life TEXT;

-- version: 10
-- Users' requests of each instance since its first one, as they were when this was written.
CREATE TABLE request_instances (
    instance     TEXT PRIMARY KEY,
    slot         TEXT NOT NULL,
    version      TEXT NOT NULL,
    minute       INTEGER NOT NULL,
    counts       TEXT NOT NULL,
    latency      BLOB NOT NULL
) STRICT;

-- The cells of the request files that are contained in that.
CREATE TABLE request_files (
    file         TEXT PRIMARY KEY,
    instance     TEXT NOT NULL,
    cells        BLOB NOT NULL
) STRICT;

-- What was read in a minute, by version; of a minute in which a daemon was started, in two rows.
CREATE TABLE request_minutes (
    minute       INTEGER NOT NULL,
    slot         TEXT NOT NULL,
    version      TEXT NOT NULL,
    counts       TEXT NOT NULL,
    latency      BLOB NOT NULL
) STRICT;

CREATE INDEX request_minutes_by_version ON request_minutes (version, minute);

-- version: 11
-- What a deploy was started for: `requested`, or `recycled`.
ALTER TABLE deploys ADD COLUMN deploy_cause TEXT NOT NULL DEFAULT 'requested';

-- version: 12
-- `versions` keeps those that were taken away: they served, so one can go back to them by name. Those
-- with `undone` 0 are the stack: its last one is active, the one before is a rollback's.
ALTER TABLE versions ADD COLUMN undone INTEGER NOT NULL DEFAULT 0;

ALTER TABLE versions ADD COLUMN until_ts TEXT;      -- when it lost the traffic; null while it has it, or unknown

ALTER TABLE versions ADD COLUMN complaint TEXT;     -- what spoke against it while it served

ALTER TABLE versions ADD COLUMN irreversible INTEGER NOT NULL DEFAULT 0;

ALTER TABLE deploys ADD COLUMN irreversible INTEGER NOT NULL DEFAULT 0;

-- version: 13
-- The ramp so far (JSON), with what the next daemon needs to go on with it.
ALTER TABLE deploys ADD COLUMN ramp TEXT;

-- version: 14
-- The evidence about a deploy's version, as JSON: what the next daemon goes on with.
CREATE TABLE deploy_evidence (
    deploy_id    TEXT PRIMARY KEY REFERENCES deploys (deploy_id) ON DELETE CASCADE,
    saved        TEXT NOT NULL
) STRICT;

-- version: 15
-- What is known of a key in the first round of its ramp, and in the present one.
CREATE TABLE canary_key_rounds (
    ramp         INTEGER NOT NULL,
    key          INTEGER NOT NULL,
    round        INTEGER NOT NULL,
    low          REAL NOT NULL,
    high         REAL NOT NULL,
    PRIMARY KEY (ramp, key, round)
) STRICT, WITHOUT ROWID;

INSERT INTO canary_key_rounds (ramp, key, round, low, high) SELECT ramp, key, round, low, high FROM canary_keys;

DROP TABLE canary_keys;
