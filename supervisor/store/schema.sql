-- The schema of atlas.db, version 1. Every statement can be run again.

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
