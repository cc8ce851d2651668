-- Every statement that the daemon runs, by name.

-- name: begin_deploy
INSERT INTO deploys (deploy_id, release, version, dry_run, auto_switch, rollback, active_port, staging_port,
                     phase, started_ts, directory, identity, version_source, irreversible, deploy_cause)
VALUES (:deploy_id, :release, :version, :dry_run, :auto_switch, :rollback, :active_port, :staging_port,
        :phase, :started_ts, :directory, :identity, :version_source, :irreversible, :cause);

-- name: trim_steps
DELETE FROM steps
WHERE deploy_id IN (SELECT deploy_id FROM deploys ORDER BY rowid DESC LIMIT -1 OFFSET :kept)
AND deploy_id NOT IN (SELECT deploy_id FROM idempotency_keys WHERE ts > :since AND deploy_id IS NOT NULL);

-- name: trim_transitions
DELETE FROM transitions
WHERE deploy_id IN (SELECT deploy_id FROM deploys ORDER BY rowid DESC LIMIT -1 OFFSET :kept)
AND deploy_id NOT IN (SELECT deploy_id FROM idempotency_keys WHERE ts > :since AND deploy_id IS NOT NULL);

-- name: trim_deploys
DELETE FROM deploys
WHERE deploy_id IN (SELECT deploy_id FROM deploys ORDER BY rowid DESC LIMIT -1 OFFSET :kept)
AND deploy_id NOT IN (SELECT deploy_id FROM idempotency_keys WHERE ts > :since AND deploy_id IS NOT NULL);

-- name: add_transition
INSERT INTO transitions (deploy_id, ts, phase, event, target, cause, duration_ms, step_position, outcome)
VALUES (:deploy_id, :ts, :source, :event, :target, :cause, :duration_ms, :step_position, :outcome);

-- name: newest_transition
SELECT coalesce(max(id), 0) AS id FROM transitions;

-- name: transition_known
SELECT 1 FROM transitions WHERE id = :id;

-- name: transitions_after
SELECT transitions.*, deploys.release, deploys.dry_run, deploys.version, deploys.result, deploys.reason,
       deploys.active_port, deploys.staging_port, deploys.deploy_cause,
       steps.name, steps.ok, steps.duration_ms AS step_duration_ms, steps.detail
FROM transitions JOIN deploys USING (deploy_id)
LEFT JOIN steps ON steps.deploy_id = transitions.deploy_id AND steps.position = transitions.step_position
WHERE transitions.id > :id AND (:deploy_id IS NULL OR transitions.deploy_id = :deploy_id)
ORDER BY transitions.id LIMIT :limit;

-- name: flips
-- Of the latest transitions alone: they have no index by time.
SELECT transitions.ts, transitions.phase, deploys.deploy_id, deploys.version, deploys.deploy_cause
FROM transitions JOIN deploys USING (deploy_id)
WHERE transitions.id > (SELECT max(id) FROM transitions) - 5000
AND transitions.phase IN ('switch', 'revert') AND transitions.event = 'passed' AND transitions.ts >= :since
ORDER BY transitions.id;

-- name: transitions_of
SELECT * FROM transitions WHERE deploy_id = :deploy_id ORDER BY id;

-- name: update_deploy
UPDATE deploys
SET version = :version, phase = :phase, result = :result, reason = :reason, ended_ts = :ended_ts,
    active_port = :active_port, staging_port = :staging_port, ramp = :ramp
WHERE deploy_id = :deploy_id;

-- name: save_ramp
UPDATE deploys SET ramp = :ramp WHERE deploy_id = :deploy_id AND phase = 'ramp';

-- name: add_step
INSERT INTO steps (deploy_id, position, name, ok, duration_ms, detail)
SELECT :deploy_id, count(*), :name, :ok, :duration_ms, :detail FROM steps WHERE deploy_id = :deploy_id;

-- name: latest_deploys
-- By sequence, as everywhere: a wall clock may have been set back since.
SELECT deploys.*, (SELECT cause FROM transitions WHERE deploy_id = deploys.deploy_id ORDER BY id LIMIT 1) AS requested
FROM deploys ORDER BY rowid DESC LIMIT :limit;

-- name: latest_requested_deploy
SELECT deploys.*, (SELECT cause FROM transitions WHERE deploy_id = deploys.deploy_id ORDER BY id LIMIT 1) AS requested
FROM deploys WHERE deploy_cause = :cause ORDER BY rowid DESC LIMIT 1;

-- name: latest_answered_deploy
SELECT deploys.*, (SELECT cause FROM transitions WHERE deploy_id = deploys.deploy_id ORDER BY id LIMIT 1) AS requested
FROM deploys WHERE deploy_cause = :cause AND dry_run = 0 AND result IS NOT NULL ORDER BY rowid DESC LIMIT 1;

-- name: deploy
SELECT deploys.*, (SELECT cause FROM transitions WHERE deploy_id = deploys.deploy_id ORDER BY id LIMIT 1) AS requested
FROM deploys WHERE deploy_id = :deploy_id;

-- name: unfinished_deploys
SELECT deploys.*, (SELECT cause FROM transitions WHERE deploy_id = deploys.deploy_id ORDER BY id LIMIT 1) AS requested
FROM deploys WHERE ended_ts IS NULL ORDER BY rowid;

-- name: steps
SELECT * FROM steps WHERE deploy_id = :deploy_id ORDER BY position;

-- name: add_audit
INSERT INTO audit (id, ts, actor, origin, action, subject, outcome, detail, previous_hash, hash)
VALUES (:id, :ts, :actor, :origin, :action, :subject, :outcome, :detail, :previous_hash, :hash);

-- name: newest_audit
SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1;

-- name: audit_hash
SELECT hash FROM audit WHERE id = :id;

-- name: audit_known
SELECT 1 FROM audit WHERE subject = :subject AND action = :action AND outcome = :outcome LIMIT 1;

-- name: last_outcome
SELECT outcome FROM audit WHERE action = :action ORDER BY id DESC LIMIT 1;

-- name: audit_ids_from
SELECT id FROM audit WHERE id BETWEEN :id AND :until ORDER BY id LIMIT :limit;

-- name: audit_ids
SELECT id FROM audit WHERE id < :before ORDER BY id DESC LIMIT :limit;

-- name: audit_ids_of_action
SELECT id FROM audit WHERE action = :action AND id < :before ORDER BY id DESC LIMIT :limit;

-- name: audit_ids_of_subject
SELECT id FROM audit
WHERE subject = :subject AND (:action IS NULL OR action = :action) AND id < :before
ORDER BY id DESC LIMIT :limit;

-- name: audit_rows
-- Texts as bytes: after tampering they may be no valid text.
SELECT id, CAST(ts AS BLOB), CAST(actor AS BLOB), CAST(origin AS BLOB), CAST(action AS BLOB),
       CAST(subject AS BLOB), CAST(outcome AS BLOB), CAST(detail AS BLOB),
       CAST(previous_hash AS BLOB), CAST(hash AS BLOB)
FROM audit WHERE id IN (SELECT value FROM json_each(:ids)) ORDER BY id;

-- name: push_version
INSERT INTO versions (ts, slot, release, directory, version, identity, version_source, irreversible)
VALUES (:ts, :slot, :release, :directory, :version, :identity, :version_source, :irreversible);

-- name: trim_versions
DELETE FROM versions WHERE id IN (
    SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY undone ORDER BY id DESC) AS place FROM versions)
    WHERE place > :kept
);

-- name: replace_version
-- What follows is the end of the last version's time.
UPDATE versions SET until_ts = coalesce(until_ts, :ts), complaint = coalesce(complaint, :complaint)
WHERE id = (SELECT max(id) FROM versions WHERE NOT undone);

-- name: forget_version
DELETE FROM versions WHERE id = (SELECT max(id) FROM versions WHERE NOT undone);

-- name: undo_version
UPDATE versions SET undone = 1 WHERE id = (SELECT max(id) FROM versions WHERE NOT undone);

-- name: undo_versions_after
-- None, if the one that is gone back to is not among them: it was taken away before.
UPDATE versions SET undone = 1 WHERE NOT undone AND id > (
    SELECT max(id) FROM versions
    WHERE NOT undone AND release IS :release AND version = :version AND (directory = :directory OR identity IS NULL)
    AND id < (SELECT max(id) FROM versions WHERE NOT undone)
);

-- name: push_version_again
INSERT INTO versions (ts, slot, release, directory, version, identity, version_source, irreversible)
SELECT :ts, :slot, :release, :directory, :version, :identity, :version_source, :irreversible
WHERE NOT EXISTS (
    SELECT 1 FROM versions
    WHERE release IS :release AND version = :version AND (directory = :directory OR identity IS NULL)
    AND id = (SELECT max(id) FROM versions WHERE NOT undone)
);

-- name: resume_version
UPDATE versions SET until_ts = NULL, complaint = NULL WHERE id = (SELECT max(id) FROM versions WHERE NOT undone);

-- name: move_version
UPDATE versions SET slot = :slot WHERE id = (SELECT max(id) FROM versions WHERE NOT undone);

-- name: versions
SELECT * FROM versions ORDER BY id DESC;

-- name: save_state
INSERT INTO last_state (id, state) VALUES (1, :state)
ON CONFLICT (id) DO UPDATE SET state = excluded.state;

-- name: last_state
SELECT state FROM last_state;

-- name: add_instance
INSERT OR REPLACE INTO instances (instance, slot, pid, start_ticks, boot_id, kit, started_ts, life)
VALUES (:instance, :slot, :pid, :start_ticks, :boot_id, :kit, :started_ts, :life);

-- name: remove_instance
DELETE FROM instances WHERE instance = :instance;

-- name: instances
SELECT instance, slot, pid, start_ticks, boot_id, kit, life FROM instances;

-- name: forget_listeners
DELETE FROM listeners;

-- name: add_listener
INSERT INTO listeners (inode, boot_id) VALUES (:inode, :boot_id);

-- name: listeners
SELECT inode FROM listeners WHERE boot_id = :boot_id;

-- name: last_transition
SELECT phase, event FROM transitions WHERE deploy_id = :deploy_id AND phase <> '' ORDER BY id DESC LIMIT 1;

-- name: last_cause
SELECT event FROM transitions WHERE deploy_id = :deploy_id AND target = :target ORDER BY id DESC LIMIT 1;

-- name: last_deploys_by_release
SELECT release, deploy_id, started_ts, result, max(rowid) FROM deploys
WHERE release IS NOT NULL GROUP BY release;

-- name: add_key
INSERT INTO idempotency_keys (key, ts, fingerprint, deploy_id, asked)
VALUES (:key, :ts, :fingerprint, :deploy_id, :asked);

-- name: key
SELECT fingerprint, deploy_id FROM idempotency_keys WHERE key = :key;

-- name: forget_key
DELETE FROM idempotency_keys WHERE key = :key;

-- name: forget_undone_keys
DELETE FROM idempotency_keys WHERE asked IS NOT NULL
-- A ramp that goes on was begun by a switch, or goes on to it.
AND asked IS NOT (SELECT CASE WHEN phase IN ('switch', 'revert') OR (phase = 'ramp' AND asked = 'switched')
    THEN idempotency_keys.asked ELSE result END
    FROM deploys WHERE deploys.deploy_id = idempotency_keys.deploy_id)
-- A step of a ramp is done if its event is in the journal.
AND NOT EXISTS (SELECT 1 FROM transitions WHERE transitions.deploy_id = idempotency_keys.deploy_id
    AND transitions.event = idempotency_keys.asked AND transitions.ts >= idempotency_keys.ts);

-- name: trim_keys
-- The newest stay however old they look: a wall clock may have been set a day forth.
DELETE FROM idempotency_keys WHERE deploy_id IS NULL AND ts <= :since
AND rowid NOT IN (SELECT rowid FROM idempotency_keys ORDER BY rowid DESC LIMIT :kept);

-- name: add_canary_epoch
INSERT OR REPLACE INTO canary_epochs (epoch, feature, ramp, share, ts, cause)
VALUES (:epoch, :feature, :ramp, :share, :ts, :cause);

-- name: canary_epochs
SELECT epoch, feature, ramp, share, ts, cause FROM canary_epochs WHERE epoch IN (
    SELECT epoch FROM canary_counts WHERE start + span > :since UNION SELECT max(epoch) FROM canary_epochs GROUP BY feature
) ORDER BY epoch;

-- name: put_canary_counts
INSERT OR REPLACE INTO canary_counts (span, start, epoch, canary, assigned, unreported, calls, errors, cancelled, latency)
VALUES (:span, :start, :epoch, :canary, :assigned, :unreported, :calls, :errors, :cancelled, :latency);

-- name: canary_counts
SELECT span, start, epoch, canary, assigned, unreported, calls, errors, cancelled, latency FROM canary_counts
WHERE span = :span AND start >= :since AND start < :until ORDER BY start;

-- name: trim_canary_counts
DELETE FROM canary_counts WHERE (span = 60 AND start < :since - 60) OR (span = 3600 AND start < :since - 3600);

-- name: trim_canary_epochs
DELETE FROM canary_epochs WHERE ts < :before AND epoch NOT IN (SELECT epoch FROM canary_counts)
AND epoch NOT IN (SELECT max(epoch) FROM canary_epochs GROUP BY feature);

-- name: put_canary_ring
INSERT OR REPLACE INTO canary_rings (ring, tail, keyed_tail, dropped) VALUES (:ring, :tail, :keyed_tail, :dropped);

-- name: forget_canary_ring
DELETE FROM canary_rings WHERE ring = :ring;

-- name: canary_rings
SELECT ring, tail, keyed_tail, dropped FROM canary_rings;

-- name: put_canary_key
INSERT OR REPLACE INTO canary_key_rounds (ramp, key, round, low, high) VALUES (:ramp, :key, :round, :low, :high);

-- name: forget_canary_rounds
DELETE FROM canary_key_rounds WHERE ramp = :ramp AND round > 1 AND round < :round;

-- name: forget_canary_keys
DELETE FROM canary_key_rounds WHERE ramp NOT IN (SELECT value FROM json_each(:ramps));

-- name: canary_keys
SELECT ramp, key, round, low, high FROM canary_key_rounds;

-- name: put_canary_progress
INSERT OR REPLACE INTO canary_progress (name, value) VALUES (:name, :value);

-- name: canary_progress
SELECT name, value FROM canary_progress;

-- name: put_request_instance
INSERT OR REPLACE INTO request_instances (instance, slot, version, minute, counts, latency)
VALUES (:instance, :slot, :version, :minute, :counts, :latency);

-- name: request_instances
SELECT instance, slot, version, counts, latency FROM request_instances;

-- name: put_request_file
INSERT OR REPLACE INTO request_files (file, instance, cells) VALUES (:file, :instance, :cells);

-- name: forget_request_file
DELETE FROM request_files WHERE file = :file;

-- name: request_files
SELECT file, cells FROM request_files;

-- name: add_request_minute
INSERT INTO request_minutes (minute, slot, version, counts, latency) VALUES (:minute, :slot, :version, :counts, :latency);

-- name: request_minutes
SELECT minute, slot, version, counts, latency FROM request_minutes
WHERE (:version IS NULL OR version = :version) AND minute >= :since AND minute < :until ORDER BY minute;

-- name: put_deploy_evidence
INSERT OR REPLACE INTO deploy_evidence (deploy_id, saved) VALUES (:deploy_id, :saved);

-- name: deploy_evidence
SELECT saved FROM deploy_evidence WHERE deploy_id = :deploy_id;

-- name: trim_request_minutes
DELETE FROM request_minutes WHERE minute < :before;

-- name: trim_request_instances
DELETE FROM request_instances WHERE minute < :before;
