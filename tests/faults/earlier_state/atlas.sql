-- A database of schema version 4 as the supervisor left it that wrote versions apart from their
-- transitions: r1, r2 rolled back, bad failed, a canary's share set, r2 again; killed while warm.
PRAGMA user_version = 4;
BEGIN TRANSACTION;
CREATE TABLE audit (
    id           INTEGER PRIMARY KEY,
    ts           TEXT NOT NULL,
    actor        TEXT NOT NULL,
    origin       TEXT NOT NULL,
    action       TEXT NOT NULL,
    subject      TEXT,
    outcome      TEXT NOT NULL,
    detail       TEXT NOT NULL      -- JSON
, previous_hash TEXT NOT NULL DEFAULT '', hash TEXT NOT NULL DEFAULT '') STRICT;
INSERT INTO "audit" VALUES(1,'2026-12-01T01:21:28.368019+00:00','supervisor','internal','daemon',NULL,'started','{"pid": 12938, "version": "0.1.0"}','0000000000000000000000000000000000000000000000000000000000000000','1041789500b2d748475a789a90fa23d98f1866a96ef8c7b335342e981e7b961c');
INSERT INTO "audit" VALUES(2,'2026-12-01T01:21:28.777361+00:00','uid:0','unix','deploy','20261201-012128-a063e3','begun','{"release": "r1"}','1041789500b2d748475a789a90fa23d98f1866a96ef8c7b335342e981e7b961c','98a2830b9a143f2642eadc954df38d0fb535842071d442f860c7cdbcef32fa35');
INSERT INTO "audit" VALUES(3,'2026-12-01T01:21:28.961223+00:00','supervisor','internal','deploy','20261201-012128-a063e3','switched','{"reason": null, "version": "r1"}','98a2830b9a143f2642eadc954df38d0fb535842071d442f860c7cdbcef32fa35','ac671abde05294e259cf2487c1ed17cb9e14fd14a8e47853d154e7a0e7e370d4');
INSERT INTO "audit" VALUES(4,'2026-12-01T01:21:28.995804+00:00','uid:0','unix','deploy','20261201-012128-ec2cbf','begun','{"release": "r2"}','ac671abde05294e259cf2487c1ed17cb9e14fd14a8e47853d154e7a0e7e370d4','b0a4e98fb5cc7323a98ec0fe70484799ea19b58360332f54c09fca194104efc0');
INSERT INTO "audit" VALUES(5,'2026-12-01T01:21:29.613208+00:00','supervisor','internal','deploy','20261201-012128-ec2cbf','switched','{"reason": null, "version": "r2"}','b0a4e98fb5cc7323a98ec0fe70484799ea19b58360332f54c09fca194104efc0','0ac93d5c0f0866366133ffdee0ab142e914592136d280459a5fa2aa69d5afd73');
INSERT INTO "audit" VALUES(6,'2026-12-01T01:21:29.634704+00:00','supervisor','internal','deploy','20261201-012128-ec2cbf','rolled_back','{"reason": "warm: rollback requested by uid:0", "version": "r2"}','0ac93d5c0f0866366133ffdee0ab142e914592136d280459a5fa2aa69d5afd73','1245f2417520acd87f1d6decfa8d9857f944b5e3ba45aacb63cd5ff640596839');
INSERT INTO "audit" VALUES(7,'2026-12-01T01:21:29.634801+00:00','uid:0','unix','rollback','20261201-012128-ec2cbf','rolled_back','{}','1245f2417520acd87f1d6decfa8d9857f944b5e3ba45aacb63cd5ff640596839','cc91bc9e93198b798f125071254a613ebda5ca232da8614ada591728ae642b9c');
INSERT INTO "audit" VALUES(8,'2026-12-01T01:21:29.990461+00:00','uid:0','unix','deploy','20261201-012129-3477d0','begun','{"release": "bad"}','cc91bc9e93198b798f125071254a613ebda5ca232da8614ada591728ae642b9c','48c1dd936124b4c28bf9a55d85cc2bc4ae50c01825080724e38195ddf841ac3d');
INSERT INTO "audit" VALUES(9,'2026-12-01T01:21:30.219544+00:00','supervisor','internal','rollback','20261201-012129-3477d0','done','{"reason": "health: probe 1 of 1 failed: port 17536, /health: answered 500, expected 2xx", "version": "bad"}','48c1dd936124b4c28bf9a55d85cc2bc4ae50c01825080724e38195ddf841ac3d','288b7982e5d7f3fbe24b9088dd7cf64d8bc395e8222d8ca61c2d7ce280c23982');
INSERT INTO "audit" VALUES(10,'2026-12-01T01:21:30.265285+00:00','supervisor','internal','mode',NULL,'single','{"reason": "health: probe 1 of 1 failed: port 17536, /health: answered 500, expected 2xx"}','288b7982e5d7f3fbe24b9088dd7cf64d8bc395e8222d8ca61c2d7ce280c23982','513dc7bd7754b0c37078e9534e23b5f15c44b8d9835e9f782b6f453a0f77915d');
INSERT INTO "audit" VALUES(11,'2026-12-01T01:21:30.266546+00:00','supervisor','internal','deploy','20261201-012129-3477d0','failed','{"reason": "health: probe 1 of 1 failed: port 17536, /health: answered 500, expected 2xx", "version": "bad"}','513dc7bd7754b0c37078e9534e23b5f15c44b8d9835e9f782b6f453a0f77915d','377f6a46866777666f68df7129ca61cf8056a4f0da73c4395e3b0b86dc8f767b');
INSERT INTO "audit" VALUES(12,'2026-12-01T01:21:30.284403+00:00','uid:0','unix','mode',NULL,'bluegreen','{}','377f6a46866777666f68df7129ca61cf8056a4f0da73c4395e3b0b86dc8f767b','4c4857cba0a55bfab44362e60649d7257fc22118467052691f47b234de1bf269');
INSERT INTO "audit" VALUES(13,'2026-12-01T01:21:30.300505+00:00','uid:0','unix','canary','web','set','{"reason": "set to 80.0 % by uid:0", "share": 0.8}','4c4857cba0a55bfab44362e60649d7257fc22118467052691f47b234de1bf269','62b1f82d174c9c24175be73a8d5c2393bfa3c5f7127074dd057899a07bf3ab82');
INSERT INTO "audit" VALUES(14,'2026-12-01T01:21:30.304004+00:00','uid:0','unix','deploy','20261201-012130-703c96','begun','{"release": "r2"}','62b1f82d174c9c24175be73a8d5c2393bfa3c5f7127074dd057899a07bf3ab82','157207d44e00fa66687df73edc37bbcc91f7a0a398c0cbf79ba7d2c32752c112');
INSERT INTO "audit" VALUES(15,'2026-12-01T01:21:30.527256+00:00','supervisor','internal','deploy','20261201-012130-703c96','switched','{"reason": null, "version": "r2"}','157207d44e00fa66687df73edc37bbcc91f7a0a398c0cbf79ba7d2c32752c112','a049789b14ddd30d53736a0079c7d166a892c8a0c4f9e89e0cc471febe8d79b6');
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
CREATE TABLE canary_epochs (
    epoch        INTEGER PRIMARY KEY,
    feature      TEXT NOT NULL,
    ramp         INTEGER NOT NULL,  -- the first epoch of its evidence
    share        REAL NOT NULL,
    ts           TEXT NOT NULL,
    cause        TEXT NOT NULL
) STRICT;
INSERT INTO "canary_epochs" VALUES(1,'vision',1,0.5,'2026-12-01T01:21:28.442912+00:00','the settings');
INSERT INTO "canary_epochs" VALUES(2,'web',2,0.5,'2026-12-01T01:21:28.442991+00:00','the settings');
INSERT INTO "canary_epochs" VALUES(3,'optimizer',3,0.5,'2026-12-01T01:21:28.443011+00:00','the settings');
INSERT INTO "canary_epochs" VALUES(4,'web',2,0.8,'2026-12-01T01:21:30.291888+00:00','set to 80.0 % by uid:0');
CREATE TABLE canary_keys (
    ramp         INTEGER NOT NULL,
    key          INTEGER NOT NULL,
    PRIMARY KEY (ramp, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE canary_progress (
    name         TEXT PRIMARY KEY,
    value        TEXT NOT NULL
) STRICT;
INSERT INTO "canary_progress" VALUES('boot','"b483cb6f-dd70-4662-8e7f-322c364a8bc7"');
INSERT INTO "canary_progress" VALUES('calls','[]');
INSERT INTO "canary_progress" VALUES('windows','{"ramps": [[1, 6658, []], [2, 6658, []], [3, 6658, []]], "units": [], "late": 0, "overflown": 0}');
INSERT INTO "canary_progress" VALUES('judges','{"vision": {"feature": "vision", "errors": {"alpha": 0.0025, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}, "latency": {"alpha": 0.0008333333333333334, "thresholds": [], "seen": [], "tests": [{"alpha": 0.0008333333333333334, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}, {"alpha": 0.0008333333333333334, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}, {"alpha": 0.0008333333333333334, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}], "highest": 0.0}, "promotion": {"margin": 0.02, "alpha": 0.05, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "log": 0.0, "highest": 0.0}, "totals": [], "assigned": [], "unreported": []}, "web": {"feature": "web", "errors": {"alpha": 0.0025, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}, "latency": {"alpha": 0.0008333333333333334, "thresholds": [], "seen": [], "tests": [{"alpha": 0.0008333333333333334, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}, {"alpha": 0.0008333333333333334, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}, {"alpha": 0.0008333333333333334, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}], "highest": 0.0}, "promotion": {"margin": 0.02, "alpha": 0.05, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "log": 0.0, "highest": 0.0}, "totals": [], "assigned": [], "unreported": []}, "optimizer": {"feature": "optimizer", "errors": {"alpha": 0.0025, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}, "latency": {"alpha": 0.0008333333333333334, "thresholds": [], "seen": [], "tests": [{"alpha": 0.0008333333333333334, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}, {"alpha": 0.0008333333333333334, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}, {"alpha": 0.0008333333333333334, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "canary_calls": 0, "started": 0.9, "logs": [-2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393, -2.0512706647131393], "highest": 0.0}], "highest": 0.0}, "promotion": {"margin": 0.02, "alpha": 0.05, "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 0, "errors": 0}, "log": 0.0, "highest": 0.0}, "totals": [], "assigned": [], "unreported": []}}');
INSERT INTO "canary_progress" VALUES('stable','{"vision": [], "web": [], "optimizer": []}');
INSERT INTO "canary_progress" VALUES('step_calls','[]');
INSERT INTO "canary_progress" VALUES('fallback_told','""');
INSERT INTO "canary_progress" VALUES('features','[{"name": "vision", "stage": "steady", "percentage": 0.5, "own_percentage": false, "step": 0, "step_since": 0.0, "reason": "", "ramp": 1, "epoch": 1}, {"name": "web", "stage": "steady", "percentage": 0.8, "own_percentage": true, "step": 0, "step_since": 0.0, "reason": "", "ramp": 2, "epoch": 4}, {"name": "optimizer", "stage": "steady", "percentage": 0.5, "own_percentage": false, "step": 0, "step_since": 0.0, "reason": "", "ramp": 3, "epoch": 3}]');
CREATE TABLE canary_rings (
    ring         TEXT PRIMARY KEY,
    tail         INTEGER NOT NULL,
    keyed_tail   INTEGER NOT NULL,
    dropped      INTEGER NOT NULL
) STRICT;
CREATE TABLE deploys (
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
, rollback INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO "deploys" VALUES('20261201-012128-a063e3','r1','r1',0,1,24992,17536,'ended','switched',NULL,'2026-12-01T01:21:28.775655+00:00','2026-12-01T01:21:29.342715+00:00',0);
INSERT INTO "deploys" VALUES('20261201-012128-ec2cbf','r2','r2',0,1,24992,17536,'ended','rolled_back','warm: rollback requested by uid:0','2026-12-01T01:21:28.963497+00:00','2026-12-01T01:21:29.966433+00:00',0);
INSERT INTO "deploys" VALUES('20261201-012129-3477d0','bad','bad',0,1,24992,17536,'ended','failed','health: probe 1 of 1 failed: port 17536, /health: answered 500, expected 2xx','2026-12-01T01:21:29.989596+00:00','2026-12-01T01:21:30.276035+00:00',0);
INSERT INTO "deploys" VALUES('20261201-012130-703c96','r2','r2',0,1,17536,24992,'warm','switched',NULL,'2026-12-01T01:21:30.303250+00:00',NULL,0);
CREATE TABLE idempotency_keys (
    key          TEXT PRIMARY KEY,
    ts           TEXT NOT NULL,
    fingerprint  TEXT NOT NULL,     -- of the request
    deploy_id    TEXT REFERENCES deploys (deploy_id) ON DELETE CASCADE,     -- null: it changed the mode
    asked        TEXT               -- the result that a steered deploy was to come to; null: begun
) STRICT;
INSERT INTO "idempotency_keys" VALUES('back','2026-12-01T01:21:29.626393+00:00','a1f7574ec055e78a79ce0fd0a1cc80b66472e14828a85071b682904ef2ab86ad','20261201-012128-ec2cbf','rolled_back');
CREATE TABLE instances (
    instance     TEXT PRIMARY KEY,
    slot         TEXT NOT NULL,
    pid          INTEGER NOT NULL,
    start_ticks  INTEGER NOT NULL,
    boot_id      TEXT NOT NULL,
    started_ts   TEXT NOT NULL
) STRICT;
INSERT INTO "instances" VALUES('green-c1cbfc2327c1d6a4','green',13091,332981,'b483cb6f-dd70-4662-8e7f-322c364a8bc7','2026-12-01T01:21:28.808003+00:00');
INSERT INTO "instances" VALUES('blue-aec328ee1a1e5903','blue',13207,333133,'b483cb6f-dd70-4662-8e7f-322c364a8bc7','2026-12-01T01:21:30.324577+00:00');
CREATE TABLE last_state (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    state        TEXT NOT NULL      -- JSON
) STRICT;
INSERT INTO "last_state" VALUES(1,'{"schema_version":1,"generation":14,"mode":"bluegreen","active_port":17536,"staging_port":24992,"active_release":{"name":"r2","version":"r2"},"last_deploy_ts":"2026-12-01T01:21:30.303250Z","last_switch_ts":"2026-12-01T01:21:30.496148Z","canary_disabled_fallback":false,"canary":{"enabled":true,"salt":"e5eaf48daee61073450adfc37668d648","features":{"vision":{"share":0.5,"epoch":1,"ramp":1,"stage":"steady"},"web":{"share":0.8,"epoch":4,"ramp":2,"stage":"steady"},"optimizer":{"share":0.5,"epoch":3,"ramp":3,"stage":"steady"}},"fallback":null,"counted_from":0}}');
CREATE TABLE steps (
    deploy_id    TEXT NOT NULL REFERENCES deploys (deploy_id),
    position     INTEGER NOT NULL,
    name         TEXT NOT NULL,
    ok           INTEGER NOT NULL,
    duration_ms  REAL NOT NULL,
    detail       TEXT NOT NULL,     -- JSON
    PRIMARY KEY (deploy_id, position)
) STRICT;
INSERT INTO "steps" VALUES('20261201-012128-a063e3',0,'preflight',1,0.748,'{"message": "version r1 can be launched on green", "version": "r1", "waited_ms": 0.641}');
INSERT INTO "steps" VALUES('20261201-012128-a063e3',1,'launch',1,148.404,'{"message": "pid 13091 was ready after 146 ms: it answered", "pid": 13091, "instance": "green-c1cbfc2327c1d6a4", "kit": false}');
INSERT INTO "steps" VALUES('20261201-012128-a063e3',2,'smoke',1,0.341,'{"message": "there are no smoke tests", "checks": []}');
INSERT INTO "steps" VALUES('20261201-012128-a063e3',3,'health',1,1.272,'{"message": "1 of 1 probes passed", "probes": [{"verdict": "pass", "status": 200, "duration_ms": 1.057, "message": "port 24992, /health: answered 200", "excerpt": null}]}');
INSERT INTO "steps" VALUES('20261201-012128-a063e3',4,'switch',1,5.02,'{"message": "green (port 24992) has all new connections", "state_file_ms": 1.235, "landing": "right", "landing_detail": "pid 13091 accepted it", "flip_us": 40.5}');
INSERT INTO "steps" VALUES('20261201-012128-a063e3',5,'guard',1,0.562,'{"message": "not guarded: GUARD_SECONDS is 0", "guarded_seconds": 0}');
INSERT INTO "steps" VALUES('20261201-012128-a063e3',6,'drain',1,336.344,'{"message": "blue finished by itself after 0.3 s", "by_itself": true, "left": null, "cut": null}');
INSERT INTO "steps" VALUES('20261201-012128-ec2cbf',0,'preflight',1,338.561,'{"message": "version r2 can be launched on blue", "version": "r2", "waited_ms": 338.384}');
INSERT INTO "steps" VALUES('20261201-012128-ec2cbf',1,'launch',1,166.232,'{"message": "pid 13132 was ready after 163 ms: it answered", "pid": 13132, "instance": "blue-7f975f25d2eb2fd0", "kit": false}');
INSERT INTO "steps" VALUES('20261201-012128-ec2cbf',2,'smoke',1,0.331,'{"message": "there are no smoke tests", "checks": []}');
INSERT INTO "steps" VALUES('20261201-012128-ec2cbf',3,'health',1,7.03,'{"message": "1 of 1 probes passed", "probes": [{"verdict": "pass", "status": 200, "duration_ms": 6.653, "message": "port 17536, /health: answered 200", "excerpt": null}]}');
INSERT INTO "steps" VALUES('20261201-012128-ec2cbf',4,'switch',1,42.312,'{"message": "blue (port 17536) has all new connections", "state_file_ms": 35.347, "landing": "right", "landing_detail": "pid 13132 accepted it", "flip_us": 53.5}');
INSERT INTO "steps" VALUES('20261201-012128-ec2cbf',5,'guard',1,0.717,'{"message": "not guarded: GUARD_SECONDS is 0", "guarded_seconds": 0}');
INSERT INTO "steps" VALUES('20261201-012128-ec2cbf',6,'drain',1,331.663,'{"message": "blue finished by itself after 0.3 s", "by_itself": true, "left": null, "cut": null}');
INSERT INTO "steps" VALUES('20261201-012129-3477d0',0,'preflight',1,0.613,'{"message": "version bad can be launched on blue", "version": "bad", "waited_ms": 0.521}');
INSERT INTO "steps" VALUES('20261201-012129-3477d0',1,'launch',1,181.137,'{"message": "pid 13183 was ready after 176 ms: it answered", "pid": 13183, "instance": "blue-8afedae551a1474c", "kit": false}');
INSERT INTO "steps" VALUES('20261201-012129-3477d0',2,'smoke',1,0.403,'{"message": "there are no smoke tests", "checks": []}');
INSERT INTO "steps" VALUES('20261201-012129-3477d0',3,'health',0,1.719,'{"message": "probe 1 of 1 failed: port 17536, /health: answered 500, expected 2xx", "probes": [{"verdict": "fail", "status": 500, "duration_ms": 1.425, "message": "port 17536, /health: answered 500, expected 2xx", "excerpt": "{\"status\": \"whatever\"}"}], "output": []}');
INSERT INTO "steps" VALUES('20261201-012130-703c96',0,'preflight',1,0.573,'{"message": "version r2 can be launched on blue", "version": "r2", "waited_ms": 0.487}');
INSERT INTO "steps" VALUES('20261201-012130-703c96',1,'launch',1,157.268,'{"message": "pid 13207 was ready after 152 ms: it answered", "pid": 13207, "instance": "blue-aec328ee1a1e5903", "kit": false}');
INSERT INTO "steps" VALUES('20261201-012130-703c96',2,'smoke',1,0.33,'{"message": "there are no smoke tests", "checks": []}');
INSERT INTO "steps" VALUES('20261201-012130-703c96',3,'health',1,1.85,'{"message": "1 of 1 probes passed", "probes": [{"verdict": "pass", "status": 200, "duration_ms": 1.64, "message": "port 17536, /health: answered 200", "excerpt": null}]}');
INSERT INTO "steps" VALUES('20261201-012130-703c96',4,'switch',1,34.15,'{"message": "blue (port 17536) has all new connections", "state_file_ms": 23.409, "landing": "right", "landing_detail": "pid 13207 accepted it", "flip_us": 43.2}');
INSERT INTO "steps" VALUES('20261201-012130-703c96',5,'guard',1,0.549,'{"message": "not guarded: GUARD_SECONDS is 0", "guarded_seconds": 0}');
CREATE TABLE transitions (
    id           INTEGER PRIMARY KEY,
    deploy_id    TEXT NOT NULL REFERENCES deploys (deploy_id),
    ts           TEXT NOT NULL,
    phase        TEXT NOT NULL,
    event        TEXT NOT NULL,
    target       TEXT NOT NULL,
    cause        TEXT
, duration_ms REAL, step_position INTEGER, outcome TEXT) STRICT;
INSERT INTO "transitions" VALUES(1,'20261201-012128-a063e3','2026-12-01T01:21:28.775655+00:00','','begun','preflight','deploy requested by uid:0',NULL,NULL,'{"result": null, "version": "r1", "active_port": 17536, "staging_port": 24992, "reason": null}');
INSERT INTO "transitions" VALUES(2,'20261201-012128-a063e3','2026-12-01T01:21:28.797273+00:00','preflight','passed','launch','version r1 can be launched on green',0.748,0,'{"result": null, "version": "r1", "active_port": 17536, "staging_port": 24992, "reason": null}');
INSERT INTO "transitions" VALUES(3,'20261201-012128-a063e3','2026-12-01T01:21:28.950360+00:00','launch','passed','smoke','pid 13091 was ready after 146 ms: it answered',148.404,1,'{"result": null, "version": "r1", "active_port": 17536, "staging_port": 24992, "reason": null}');
INSERT INTO "transitions" VALUES(4,'20261201-012128-a063e3','2026-12-01T01:21:28.951868+00:00','smoke','passed','health','there are no smoke tests',0.341,2,'{"result": null, "version": "r1", "active_port": 17536, "staging_port": 24992, "reason": null}');
INSERT INTO "transitions" VALUES(5,'20261201-012128-a063e3','2026-12-01T01:21:28.954379+00:00','health','passed','switch','1 of 1 probes passed',1.272,3,'{"result": null, "version": "r1", "active_port": 17536, "staging_port": 24992, "reason": null}');
INSERT INTO "transitions" VALUES(6,'20261201-012128-a063e3','2026-12-01T01:21:28.960432+00:00','switch','passed','guard','green (port 24992) has all new connections',5.02,4,'{"result": "switched", "version": "r1", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(7,'20261201-012128-a063e3','2026-12-01T01:21:28.961999+00:00','guard','passed','warm','not guarded: GUARD_SECONDS is 0',0.562,5,'{"result": "switched", "version": "r1", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(8,'20261201-012128-ec2cbf','2026-12-01T01:21:28.963497+00:00','','begun','preflight','deploy requested by uid:0',NULL,NULL,'{"result": null, "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(9,'20261201-012128-a063e3','2026-12-01T01:21:29.005714+00:00','warm','superseded','drain','the next deploy has begun',30.478,NULL,'{"result": "switched", "version": "r1", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(10,'20261201-012128-a063e3','2026-12-01T01:21:29.343019+00:00','drain','passed','ended','blue finished by itself after 0.3 s',336.344,6,'{"result": "switched", "version": "r1", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(11,'20261201-012128-ec2cbf','2026-12-01T01:21:29.343541+00:00','preflight','passed','launch','version r2 can be launched on blue',338.561,0,'{"result": null, "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(12,'20261201-012128-ec2cbf','2026-12-01T01:21:29.531978+00:00','launch','passed','smoke','pid 13132 was ready after 163 ms: it answered',166.232,1,'{"result": null, "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(13,'20261201-012128-ec2cbf','2026-12-01T01:21:29.536904+00:00','smoke','passed','health','there are no smoke tests',0.331,2,'{"result": null, "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(14,'20261201-012128-ec2cbf','2026-12-01T01:21:29.563641+00:00','health','passed','switch','1 of 1 probes passed',7.03,3,'{"result": null, "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(15,'20261201-012128-ec2cbf','2026-12-01T01:21:29.611408+00:00','switch','passed','guard','blue (port 17536) has all new connections',42.312,4,'{"result": "switched", "version": "r2", "active_port": 17536, "staging_port": 24992, "reason": null}');
INSERT INTO "transitions" VALUES(16,'20261201-012128-ec2cbf','2026-12-01T01:21:29.614173+00:00','guard','passed','warm','not guarded: GUARD_SECONDS is 0',0.717,5,'{"result": "switched", "version": "r2", "active_port": 17536, "staging_port": 24992, "reason": null}');
INSERT INTO "transitions" VALUES(17,'20261201-012128-ec2cbf','2026-12-01T01:21:29.628069+00:00','warm','rollback_requested','revert','rollback requested by uid:0',1.605,NULL,'{"result": "switched", "version": "r2", "active_port": 17536, "staging_port": 24992, "reason": "warm: rollback requested by uid:0"}');
INSERT INTO "transitions" VALUES(18,'20261201-012128-ec2cbf','2026-12-01T01:21:29.632319+00:00','revert','passed','drain_reverted','green (port 24992) has all new connections',3.144,NULL,'{"result": "rolled_back", "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": "warm: rollback requested by uid:0"}');
INSERT INTO "transitions" VALUES(19,'20261201-012128-ec2cbf','2026-12-01T01:21:29.966695+00:00','drain_reverted','passed','ended','blue finished by itself after 0.3 s',331.663,6,'{"result": "rolled_back", "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": "warm: rollback requested by uid:0"}');
INSERT INTO "transitions" VALUES(20,'20261201-012129-3477d0','2026-12-01T01:21:29.989596+00:00','','begun','preflight','deploy requested by uid:0',NULL,NULL,'{"result": null, "version": "bad", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(21,'20261201-012129-3477d0','2026-12-01T01:21:30.005318+00:00','preflight','passed','launch','version bad can be launched on blue',0.613,0,'{"result": null, "version": "bad", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(22,'20261201-012129-3477d0','2026-12-01T01:21:30.187514+00:00','launch','passed','smoke','pid 13183 was ready after 176 ms: it answered',181.137,1,'{"result": null, "version": "bad", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(23,'20261201-012129-3477d0','2026-12-01T01:21:30.195251+00:00','smoke','passed','health','there are no smoke tests',0.403,2,'{"result": null, "version": "bad", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(24,'20261201-012129-3477d0','2026-12-01T01:21:30.202775+00:00','health','failed','unstage','probe 1 of 1 failed: port 17536, /health: answered 500, expected 2xx',1.719,3,'{"result": "failed", "version": "bad", "active_port": 24992, "staging_port": 17536, "reason": "health: probe 1 of 1 failed: port 17536, /health: answered 500, expected 2xx"}');
INSERT INTO "transitions" VALUES(25,'20261201-012129-3477d0','2026-12-01T01:21:30.276252+00:00','unstage','passed','ended','blue is stopped',9.397,NULL,'{"result": "failed", "version": "bad", "active_port": 24992, "staging_port": 17536, "reason": "health: probe 1 of 1 failed: port 17536, /health: answered 500, expected 2xx"}');
INSERT INTO "transitions" VALUES(26,'20261201-012130-703c96','2026-12-01T01:21:30.303250+00:00','','begun','preflight','deploy requested by uid:0',NULL,NULL,'{"result": null, "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(27,'20261201-012130-703c96','2026-12-01T01:21:30.319228+00:00','preflight','passed','launch','version r2 can be launched on blue',0.573,0,'{"result": null, "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(28,'20261201-012130-703c96','2026-12-01T01:21:30.477433+00:00','launch','passed','smoke','pid 13207 was ready after 152 ms: it answered',157.268,1,'{"result": null, "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(29,'20261201-012130-703c96','2026-12-01T01:21:30.480536+00:00','smoke','passed','health','there are no smoke tests',0.33,2,'{"result": null, "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(30,'20261201-012130-703c96','2026-12-01T01:21:30.486450+00:00','health','passed','switch','1 of 1 probes passed',1.85,3,'{"result": null, "version": "r2", "active_port": 24992, "staging_port": 17536, "reason": null}');
INSERT INTO "transitions" VALUES(31,'20261201-012130-703c96','2026-12-01T01:21:30.526476+00:00','switch','passed','guard','blue (port 17536) has all new connections',34.15,4,'{"result": "switched", "version": "r2", "active_port": 17536, "staging_port": 24992, "reason": null}');
INSERT INTO "transitions" VALUES(32,'20261201-012130-703c96','2026-12-01T01:21:30.528102+00:00','guard','passed','warm','not guarded: GUARD_SECONDS is 0',0.549,5,'{"result": "switched", "version": "r2", "active_port": 17536, "staging_port": 24992, "reason": null}');
CREATE TABLE versions (
    id           INTEGER PRIMARY KEY,
    ts           TEXT NOT NULL,
    slot         TEXT NOT NULL,
    release      TEXT,
    directory    TEXT NOT NULL,
    version      TEXT NOT NULL
) STRICT;
INSERT INTO "versions" VALUES(1,'2026-12-01T01:21:28.491384+00:00','blue',NULL,'/srv/atlas/work','v1');
INSERT INTO "versions" VALUES(2,'2026-12-01T01:21:28.958139+00:00','green','r1','/srv/atlas/releases/r1','r1');
INSERT INTO "versions" VALUES(3,'2026-12-01T01:21:30.519732+00:00','blue','r2','/srv/atlas/releases/r2','r2');
CREATE INDEX deploys_by_start ON deploys (started_ts);
CREATE INDEX transitions_by_deploy ON transitions (deploy_id);
CREATE INDEX idempotency_keys_by_deploy ON idempotency_keys (deploy_id);
CREATE INDEX audit_by_action ON audit (action);
CREATE INDEX audit_by_subject ON audit (subject);
COMMIT;
