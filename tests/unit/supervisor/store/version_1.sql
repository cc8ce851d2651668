-- A database as the code wrote it before its schema had a version: a rollback, then a failed deploy.
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
INSERT INTO "audit" VALUES(1,'2026-11-23T10:13:31.409322+00:00','uid:0','unix','deploy','20261123-101331-09a09d','begun','{"release": "r1"}');
INSERT INTO "audit" VALUES(2,'2026-11-23T10:13:32.011171+00:00','uid:0','unix','deploy','20261123-101332-685fc4','begun','{"release": "r2"}');
INSERT INTO "audit" VALUES(3,'2026-11-23T10:13:32.592207+00:00','uid:0','unix','rollback','20261123-101332-79d712','begun','{"release": "r1"}');
INSERT INTO "audit" VALUES(4,'2026-11-23T10:13:33.141657+00:00','uid:0','unix','deploy','20261123-101333-7ea106','begun','{"release": "r2"}');
INSERT INTO "audit" VALUES(5,'2026-11-23T10:13:33.288077+00:00','supervisor','internal','rollback','20261123-101333-7ea106','done','{"reason": "health: probe 1 of 3 failed: port 8791, /health: answered 500, expected 2xx", "version": "r2"}');
INSERT INTO "audit" VALUES(6,'2026-11-23T10:13:33.292047+00:00','supervisor','internal','mode',NULL,'single','{"reason": "health: probe 1 of 3 failed: port 8791, /health: answered 500, expected 2xx"}');
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
) STRICT;
INSERT INTO "deploys" VALUES('20261123-101332-79d712','r1','r1',0,1,8792,8791,'ended','switched',NULL,'2026-11-23T10:13:32.590554+00:00','2026-11-23T10:13:33.134894+00:00');
INSERT INTO "deploys" VALUES('20261123-101333-7ea106','r2','r2',0,1,8792,8791,'ended','failed','health: probe 1 of 3 failed: port 8791, /health: answered 500, expected 2xx','2026-11-23T10:13:33.138728+00:00','2026-11-23T10:13:33.314249+00:00');
CREATE TABLE instances (
    instance     TEXT PRIMARY KEY,
    slot         TEXT NOT NULL,
    pid          INTEGER NOT NULL,
    start_ticks  INTEGER NOT NULL,
    boot_id      TEXT NOT NULL,
    started_ts   TEXT NOT NULL
) STRICT;
INSERT INTO "instances" VALUES('green-8e867a43f6528de4','green',1168,1215819,'00000000-0000-0000-0000-000000000000','2026-11-23T10:13:32.604620+00:00');
CREATE TABLE last_state (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    state        TEXT NOT NULL      -- JSON
) STRICT;
INSERT INTO "last_state" VALUES(1,'{"schema_version":1,"generation":9,"mode":"single","active_port":8792,"staging_port":8791,"last_deploy_ts":"2026-11-23T10:13:33.138728Z","last_switch_ts":"2026-11-23T10:13:32.824263Z","canary_disabled_fallback":false}');
CREATE TABLE steps (
    deploy_id    TEXT NOT NULL REFERENCES deploys (deploy_id),
    position     INTEGER NOT NULL,
    name         TEXT NOT NULL,
    ok           INTEGER NOT NULL,
    duration_ms  REAL NOT NULL,
    detail       TEXT NOT NULL,     -- JSON
    PRIMARY KEY (deploy_id, position)
) STRICT;
INSERT INTO "steps" VALUES('20261123-101332-79d712',0,'preflight',1,1.878,'{"message": "version r1 can be launched on green", "version": "r1", "waited_ms": 1.565}');
INSERT INTO "steps" VALUES('20261123-101332-79d712',1,'launch',1,109.528,'{"message": "pid 1168 was ready after 104 ms: it answered", "pid": 1168, "instance": "green-8e867a43f6528de4", "kit": false}');
INSERT INTO "steps" VALUES('20261123-101332-79d712',2,'smoke',1,0.658,'{"message": "there are no smoke tests", "checks": []}');
INSERT INTO "steps" VALUES('20261123-101332-79d712',3,'health',1,107.861,'{"message": "3 of 3 probes passed", "probes": [{"verdict": "pass", "status": 200, "duration_ms": 1.497, "message": "port 8792, /health: answered 200"}, {"verdict": "pass", "status": 200, "duration_ms": 3.088, "message": "port 8792, /health: answered 200"}, {"verdict": "pass", "status": 200, "duration_ms": 1.92, "message": "port 8792, /health: answered 200"}]}');
INSERT INTO "steps" VALUES('20261123-101332-79d712',4,'switch',1,4.539,'{"message": "green (port 8792) has all new connections", "state_file_ms": 1.508, "landing": "right", "landing_detail": "pid 1168 accepted it", "flip_us": 128.8}');
INSERT INTO "steps" VALUES('20261123-101332-79d712',5,'guard',1,1.982,'{"message": "not guarded: GUARD_SECONDS is 0", "guarded_seconds": 0}');
INSERT INTO "steps" VALUES('20261123-101332-79d712',6,'drain',1,297.972,'{"message": "blue finished by itself after 0.3 s", "by_itself": true}');
INSERT INTO "steps" VALUES('20261123-101333-7ea106',0,'preflight',1,1.349,'{"message": "version r2 can be launched on blue", "version": "r2", "waited_ms": 1.155}');
INSERT INTO "steps" VALUES('20261123-101333-7ea106',1,'launch',1,129.543,'{"message": "pid 1177 was ready after 126 ms: it answered", "pid": 1177, "instance": "blue-ee837f6e5a6e4f65", "kit": false}');
INSERT INTO "steps" VALUES('20261123-101333-7ea106',2,'smoke',1,0.684,'{"message": "there are no smoke tests", "checks": []}');
INSERT INTO "steps" VALUES('20261123-101333-7ea106',3,'health',0,2.818,'{"message": "probe 1 of 3 failed: port 8791, /health: answered 500, expected 2xx", "probes": [{"verdict": "fail", "status": 500, "duration_ms": 2.226, "message": "port 8791, /health: answered 500, expected 2xx"}], "output": []}');
CREATE TABLE transitions (
    id           INTEGER PRIMARY KEY,
    deploy_id    TEXT NOT NULL REFERENCES deploys (deploy_id),
    ts           TEXT NOT NULL,
    phase        TEXT NOT NULL,
    event        TEXT NOT NULL,
    target       TEXT NOT NULL,
    cause        TEXT
) STRICT;
INSERT INTO "transitions" VALUES(17,'20261123-101332-79d712','2026-11-23T10:13:32.597343+00:00','preflight','passed','launch','version r1 can be launched on green');
INSERT INTO "transitions" VALUES(18,'20261123-101332-79d712','2026-11-23T10:13:32.709024+00:00','launch','passed','smoke','pid 1168 was ready after 104 ms: it answered');
INSERT INTO "transitions" VALUES(19,'20261123-101332-79d712','2026-11-23T10:13:32.711904+00:00','smoke','passed','health','there are no smoke tests');
INSERT INTO "transitions" VALUES(20,'20261123-101332-79d712','2026-11-23T10:13:32.821749+00:00','health','passed','switch','3 of 3 probes passed');
INSERT INTO "transitions" VALUES(21,'20261123-101332-79d712','2026-11-23T10:13:32.828179+00:00','switch','passed','guard','green (port 8792) has all new connections');
INSERT INTO "transitions" VALUES(22,'20261123-101332-79d712','2026-11-23T10:13:32.832312+00:00','guard','passed','warm','not guarded: GUARD_SECONDS is 0');
INSERT INTO "transitions" VALUES(23,'20261123-101332-79d712','2026-11-23T10:13:32.835286+00:00','warm','passed','drain','the warm time is over');
INSERT INTO "transitions" VALUES(24,'20261123-101332-79d712','2026-11-23T10:13:33.135507+00:00','drain','passed','ended','blue finished by itself after 0.3 s');
INSERT INTO "transitions" VALUES(25,'20261123-101333-7ea106','2026-11-23T10:13:33.146377+00:00','preflight','passed','launch','version r2 can be launched on blue');
INSERT INTO "transitions" VALUES(26,'20261123-101333-7ea106','2026-11-23T10:13:33.279248+00:00','launch','passed','smoke','pid 1177 was ready after 126 ms: it answered');
INSERT INTO "transitions" VALUES(27,'20261123-101333-7ea106','2026-11-23T10:13:33.282163+00:00','smoke','passed','health','there are no smoke tests');
INSERT INTO "transitions" VALUES(28,'20261123-101333-7ea106','2026-11-23T10:13:33.286721+00:00','health','failed','unstage','probe 1 of 3 failed: port 8791, /health: answered 500, expected 2xx');
INSERT INTO "transitions" VALUES(29,'20261123-101333-7ea106','2026-11-23T10:13:33.314638+00:00','unstage','passed','ended','blue is stopped');
CREATE TABLE versions (
    id           INTEGER PRIMARY KEY,
    ts           TEXT NOT NULL,
    slot         TEXT NOT NULL,
    release      TEXT,
    directory    TEXT NOT NULL,
    version      TEXT NOT NULL
) STRICT;
INSERT INTO "versions" VALUES(1,'2026-11-23T10:13:31.248389+00:00','blue',NULL,'/srv/atlas/work','v1');
INSERT INTO "versions" VALUES(2,'2026-11-23T10:13:31.687504+00:00','green','r1','/srv/atlas/releases/r1','r1');
CREATE INDEX deploys_by_start ON deploys (started_ts);
CREATE INDEX transitions_by_deploy ON transitions (deploy_id);
COMMIT;
