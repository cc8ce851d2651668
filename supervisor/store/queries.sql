-- Every statement that the daemon runs, by name.

-- name: begin_deploy
INSERT INTO deploys (deploy_id, release, version, dry_run, auto_switch, active_port, staging_port, phase, started_ts)
VALUES (:deploy_id, :release, :version, :dry_run, :auto_switch, :active_port, :staging_port, :phase, :started_ts);

-- name: trim_steps
DELETE FROM steps WHERE deploy_id IN (SELECT deploy_id FROM deploys ORDER BY rowid DESC LIMIT -1 OFFSET :kept);

-- name: trim_transitions
DELETE FROM transitions WHERE deploy_id IN (SELECT deploy_id FROM deploys ORDER BY rowid DESC LIMIT -1 OFFSET :kept);

-- name: trim_deploys
DELETE FROM deploys WHERE rowid IN (SELECT rowid FROM deploys ORDER BY rowid DESC LIMIT -1 OFFSET :kept);

-- name: add_transition
INSERT INTO transitions (deploy_id, ts, phase, event, target, cause)
VALUES (:deploy_id, :ts, :source, :event, :target, :cause);

-- name: update_deploy
UPDATE deploys
SET version = :version, phase = :phase, result = :result, reason = :reason, ended_ts = :ended_ts,
    active_port = :active_port, staging_port = :staging_port
WHERE deploy_id = :deploy_id;

-- name: add_step
INSERT INTO steps (deploy_id, position, name, ok, duration_ms, detail)
SELECT :deploy_id, count(*), :name, :ok, :duration_ms, :detail FROM steps WHERE deploy_id = :deploy_id;

-- name: latest_deploys
SELECT * FROM deploys ORDER BY started_ts DESC, rowid DESC LIMIT :limit;

-- name: deploy
SELECT * FROM deploys WHERE deploy_id = :deploy_id;

-- name: unfinished_deploys
SELECT * FROM deploys WHERE ended_ts IS NULL ORDER BY rowid;

-- name: steps
SELECT * FROM steps WHERE deploy_id = :deploy_id ORDER BY position;

-- name: add_audit
INSERT INTO audit (ts, actor, origin, action, subject, outcome, detail)
VALUES (:ts, :actor, :origin, :action, :subject, :outcome, :detail);

-- name: push_version
INSERT INTO versions (ts, slot, release, directory, version)
VALUES (:ts, :slot, :release, :directory, :version);

-- name: trim_versions
DELETE FROM versions WHERE id <= (SELECT max(id) FROM versions) - :kept;

-- name: pop_version
DELETE FROM versions WHERE id = (SELECT max(id) FROM versions);

-- name: versions
SELECT * FROM versions ORDER BY id DESC;

-- name: save_state
INSERT INTO last_state (id, state) VALUES (1, :state)
ON CONFLICT (id) DO UPDATE SET state = excluded.state;

-- name: last_state
SELECT state FROM last_state;

-- name: add_instance
INSERT OR REPLACE INTO instances (instance, slot, pid, start_ticks, boot_id, started_ts)
VALUES (:instance, :slot, :pid, :start_ticks, :boot_id, :started_ts);

-- name: remove_instance
DELETE FROM instances WHERE instance = :instance;

-- name: instances
SELECT instance, slot, pid, start_ticks, boot_id FROM instances;

-- name: last_transition
SELECT phase, event FROM transitions WHERE deploy_id = :deploy_id ORDER BY id DESC LIMIT 1;

-- name: last_deploys_by_release
SELECT release, deploy_id, started_ts, result, max(started_ts) FROM deploys
WHERE release IS NOT NULL GROUP BY release;
