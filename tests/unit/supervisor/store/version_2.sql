-- A database as version 2 of the schema had it: a deploy under a key, a failed one, and two resets.
PRAGMA user_version = 2;
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
) STRICT;
INSERT INTO "audit" VALUES(1,'2026-11-26T23:48:13.866742+00:00','uid:0','unix','deploy','20261126-234813-351d5d','begun','{"release": null}');
INSERT INTO "audit" VALUES(2,'2026-11-26T23:48:14.710636+00:00','uid:0','unix','deploy','20261126-234814-d9d01a','begun','{"release": null}');
INSERT INTO "audit" VALUES(3,'2026-11-26T23:48:15.123147+00:00','supervisor','internal','rollback','20261126-234814-d9d01a','done','{"reason": "health: probe 1 of 1 failed: port 12864, /health: answered 500, expected 2xx", "version": "v3"}');
INSERT INTO "audit" VALUES(4,'2026-11-26T23:48:15.158215+00:00','supervisor','internal','mode',NULL,'single','{"reason": "health: probe 1 of 1 failed: port 12864, /health: answered 500, expected 2xx"}');
INSERT INTO "audit" VALUES(5,'2026-11-26T23:48:15.261333+00:00','uid:0','unix','mode',NULL,'bluegreen','{}');
INSERT INTO "audit" VALUES(6,'2026-11-26T23:48:15.295784+00:00','uid:0','unix','mode',NULL,'single','{}');
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
INSERT INTO "deploys" VALUES('20261126-234813-351d5d',NULL,'v2',0,1,21008,12864,'ended','switched',NULL,'2026-11-26T23:48:13.863230+00:00','2026-11-26T23:48:14.671636+00:00',0);
INSERT INTO "deploys" VALUES('20261126-234814-d9d01a',NULL,'v3',0,1,21008,12864,'ended','failed','health: probe 1 of 1 failed: port 12864, /health: answered 500, expected 2xx','2026-11-26T23:48:14.705767+00:00','2026-11-26T23:48:15.222702+00:00',0);
CREATE TABLE idempotency_keys (
    key          TEXT PRIMARY KEY,
    ts           TEXT NOT NULL,
    fingerprint  TEXT NOT NULL,     -- of the request
    deploy_id    TEXT REFERENCES deploys (deploy_id) ON DELETE CASCADE,     -- null: it changed the mode
    asked        TEXT               -- the result that a steered deploy was to come to; null: begun
) STRICT;
INSERT INTO "idempotency_keys" VALUES('first','2026-11-26T23:48:13.863437+00:00','53bfac5b766ef60db42f3e4932e04375f40bc43f6ce7f0741493a6d50db66ca0','20261126-234813-351d5d',NULL);
CREATE TABLE instances (
    instance     TEXT PRIMARY KEY,
    slot         TEXT NOT NULL,
    pid          INTEGER NOT NULL,
    start_ticks  INTEGER NOT NULL,
    boot_id      TEXT NOT NULL,
    started_ts   TEXT NOT NULL
) STRICT;
CREATE TABLE last_state (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    state        TEXT NOT NULL      -- JSON
) STRICT;
INSERT INTO "last_state" VALUES(1,'{"schema_version":1,"generation":8,"mode":"single","active_port":21008,"staging_port":12864,"active_release":{"name":null,"version":"v2"},"last_deploy_ts":"2026-11-26T23:48:14.705767Z","last_switch_ts":"2026-11-26T23:48:14.232298Z","canary_disabled_fallback":false}');
CREATE TABLE steps (
    deploy_id    TEXT NOT NULL REFERENCES deploys (deploy_id),
    position     INTEGER NOT NULL,
    name         TEXT NOT NULL,
    ok           INTEGER NOT NULL,
    duration_ms  REAL NOT NULL,
    detail       TEXT NOT NULL,     -- JSON
    PRIMARY KEY (deploy_id, position)
) STRICT;
INSERT INTO "steps" VALUES('20261126-234813-351d5d',0,'preflight',1,2.474,'{"message": "version v2 can be launched on green", "version": "v2", "waited_ms": 2.0}');
INSERT INTO "steps" VALUES('20261126-234813-351d5d',1,'launch',1,316.936,'{"message": "pid 29969 was ready after 303 ms: it answered", "pid": 29969, "instance": "green-74855e4060d3bea8", "kit": false}');
INSERT INTO "steps" VALUES('20261126-234813-351d5d',2,'smoke',1,1.091,'{"message": "there are no smoke tests", "checks": []}');
INSERT INTO "steps" VALUES('20261126-234813-351d5d',3,'health',1,4.004,'{"message": "1 of 1 probes passed", "probes": [{"verdict": "pass", "status": 200, "duration_ms": 3.344, "message": "port 21008, /health: answered 200", "excerpt": null}]}');
INSERT INTO "steps" VALUES('20261126-234813-351d5d',4,'switch',1,15.002,'{"message": "green (port 21008) has all new connections", "state_file_ms": 9.819, "landing": "right", "landing_detail": "pid 29969 accepted it", "flip_us": 97.8}');
INSERT INTO "steps" VALUES('20261126-234813-351d5d',5,'guard',1,1.557,'{"message": "not guarded: GUARD_SECONDS is 0", "guarded_seconds": 0}');
INSERT INTO "steps" VALUES('20261126-234813-351d5d',6,'drain',1,415.475,'{"message": "blue finished by itself after 0.4 s", "by_itself": true, "left": null, "cut": null}');
INSERT INTO "steps" VALUES('20261126-234814-d9d01a',0,'preflight',1,4.101,'{"message": "version v3 can be launched on blue", "version": "v3", "waited_ms": 3.771}');
INSERT INTO "steps" VALUES('20261126-234814-d9d01a',1,'launch',1,349.222,'{"message": "pid 29985 was ready after 338 ms: it answered", "pid": 29985, "instance": "blue-457afae3205e6103", "kit": false}');
INSERT INTO "steps" VALUES('20261126-234814-d9d01a',2,'smoke',1,0.951,'{"message": "there are no smoke tests", "checks": []}');
INSERT INTO "steps" VALUES('20261126-234814-d9d01a',3,'health',0,13.554,'{"message": "probe 1 of 1 failed: port 12864, /health: answered 500, expected 2xx", "probes": [{"verdict": "fail", "status": 500, "duration_ms": 12.453, "message": "port 12864, /health: answered 500, expected 2xx", "excerpt": "{\"status\": \"whatever\"}"}], "output": []}');
CREATE TABLE transitions (
    id           INTEGER PRIMARY KEY,
    deploy_id    TEXT NOT NULL REFERENCES deploys (deploy_id),
    ts           TEXT NOT NULL,
    phase        TEXT NOT NULL,
    event        TEXT NOT NULL,
    target       TEXT NOT NULL,
    cause        TEXT
, duration_ms REAL, step_position INTEGER, outcome TEXT) STRICT;
INSERT INTO "transitions" VALUES(1,'20261126-234813-351d5d','2026-11-26T23:48:13.863230+00:00','','begun','preflight','deploy requested by uid:0',NULL,NULL,'{"result": null, "version": "v2", "active_port": 12864, "staging_port": 21008, "reason": null}');
INSERT INTO "transitions" VALUES(2,'20261126-234813-351d5d','2026-11-26T23:48:13.890263+00:00','preflight','passed','launch','version v2 can be launched on green',2.474,0,'{"result": null, "version": "v2", "active_port": 12864, "staging_port": 21008, "reason": null}');
INSERT INTO "transitions" VALUES(3,'20261126-234813-351d5d','2026-11-26T23:48:14.215786+00:00','launch','passed','smoke','pid 29969 was ready after 303 ms: it answered',316.936,1,'{"result": null, "version": "v2", "active_port": 12864, "staging_port": 21008, "reason": null}');
INSERT INTO "transitions" VALUES(4,'20261126-234813-351d5d','2026-11-26T23:48:14.220611+00:00','smoke','passed','health','there are no smoke tests',1.091,2,'{"result": null, "version": "v2", "active_port": 12864, "staging_port": 21008, "reason": null}');
INSERT INTO "transitions" VALUES(5,'20261126-234813-351d5d','2026-11-26T23:48:14.227909+00:00','health','passed','switch','1 of 1 probes passed',4.004,3,'{"result": null, "version": "v2", "active_port": 12864, "staging_port": 21008, "reason": null}');
INSERT INTO "transitions" VALUES(6,'20261126-234813-351d5d','2026-11-26T23:48:14.245642+00:00','switch','passed','guard','green (port 21008) has all new connections',15.002,4,'{"result": "switched", "version": "v2", "active_port": 21008, "staging_port": 12864, "reason": null}');
INSERT INTO "transitions" VALUES(7,'20261126-234813-351d5d','2026-11-26T23:48:14.249991+00:00','guard','passed','warm','not guarded: GUARD_SECONDS is 0',1.557,5,'{"result": "switched", "version": "v2", "active_port": 21008, "staging_port": 12864, "reason": null}');
INSERT INTO "transitions" VALUES(8,'20261126-234813-351d5d','2026-11-26T23:48:14.253363+00:00','warm','passed','drain','the warm time is over',0.423,NULL,'{"result": "switched", "version": "v2", "active_port": 21008, "staging_port": 12864, "reason": null}');
INSERT INTO "transitions" VALUES(9,'20261126-234813-351d5d','2026-11-26T23:48:14.672298+00:00','drain','passed','ended','blue finished by itself after 0.4 s',415.475,6,'{"result": "switched", "version": "v2", "active_port": 21008, "staging_port": 12864, "reason": null}');
INSERT INTO "transitions" VALUES(10,'20261126-234814-d9d01a','2026-11-26T23:48:14.705767+00:00','','begun','preflight','deploy requested by uid:0',NULL,NULL,'{"result": null, "version": "v3", "active_port": 21008, "staging_port": 12864, "reason": null}');
INSERT INTO "transitions" VALUES(11,'20261126-234814-d9d01a','2026-11-26T23:48:14.727943+00:00','preflight','passed','launch','version v3 can be launched on blue',4.101,0,'{"result": null, "version": "v3", "active_port": 21008, "staging_port": 12864, "reason": null}');
INSERT INTO "transitions" VALUES(12,'20261126-234814-d9d01a','2026-11-26T23:48:15.082327+00:00','launch','passed','smoke','pid 29985 was ready after 338 ms: it answered',349.222,1,'{"result": null, "version": "v3", "active_port": 21008, "staging_port": 12864, "reason": null}');
INSERT INTO "transitions" VALUES(13,'20261126-234814-d9d01a','2026-11-26T23:48:15.091817+00:00','smoke','passed','health','there are no smoke tests',0.951,2,'{"result": null, "version": "v3", "active_port": 21008, "staging_port": 12864, "reason": null}');
INSERT INTO "transitions" VALUES(14,'20261126-234814-d9d01a','2026-11-26T23:48:15.113291+00:00','health','failed','unstage','probe 1 of 1 failed: port 12864, /health: answered 500, expected 2xx',13.554,3,'{"result": "failed", "version": "v3", "active_port": 21008, "staging_port": 12864, "reason": "health: probe 1 of 1 failed: port 12864, /health: answered 500, expected 2xx"}');
INSERT INTO "transitions" VALUES(15,'20261126-234814-d9d01a','2026-11-26T23:48:15.223469+00:00','unstage','passed','ended','blue is stopped',59.835,NULL,'{"result": "failed", "version": "v3", "active_port": 21008, "staging_port": 12864, "reason": "health: probe 1 of 1 failed: port 12864, /health: answered 500, expected 2xx"}');
CREATE TABLE versions (
    id           INTEGER PRIMARY KEY,
    ts           TEXT NOT NULL,
    slot         TEXT NOT NULL,
    release      TEXT,
    directory    TEXT NOT NULL,
    version      TEXT NOT NULL
) STRICT;
INSERT INTO "versions" VALUES(1,'2026-11-26T23:48:13.410704+00:00','blue',NULL,'/srv/atlas/work','v1');
INSERT INTO "versions" VALUES(2,'2026-11-26T23:48:14.242326+00:00','green',NULL,'/srv/atlas/work','v2');
CREATE INDEX deploys_by_start ON deploys (started_ts);
CREATE INDEX transitions_by_deploy ON transitions (deploy_id);
CREATE INDEX idempotency_keys_by_deploy ON idempotency_keys (deploy_id);
COMMIT;
