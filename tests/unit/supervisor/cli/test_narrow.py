"""Every table on terminals of 60 and 80 columns: nothing is cut, ids stay whole, reasons wrap."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.unit.supervisor.cli.fakes import (
    FLEET,
    REPORT,
    VIEW,
    Played,
    record,
    slot,
    status,
    step,
    transition,
)
from tests.unit.supervisor.cli.support import Call

ID = "20260105-093000-4f2a11"
OTHER_ID = "20260105-101500-9c03d7"
VERSION = "2026.01.05-build.1841+g0123456789ab"
RELEASE = "shop-frontend-2026-01-05-rc1"
REASON = (
    "smoke: home answers: expected status 200, got 503 from the worker on port 8792 after 3 of 3 "
    "tries; the answer starts with service unavailable"
)
FAILED = record(
    step("preflight", message="release found"),
    step("launch", duration_ms=1234.5, message="ready on port 8792 after 1.2 s, by READY=1"),
    step("smoke", ok=False, message=REASON),
    deploy_id=ID,
    result="failed",
    version=VERSION,
    release=RELEASE,
    reason=REASON,
    ended_ts="2025-11-23T06:00:09Z",
    transitions=[
        transition(1, None, "preflight", cause="requested by uid:0"),
        transition(2, "preflight", "launch", cause="release found"),
        transition(3, "launch", "smoke", cause="ready"),
        transition(4, "smoke", "unstage", event="failed", cause=REASON),
    ],
)
WAITING = record(deploy_id=OTHER_ID, version="1.0", phase="awaiting_switch")
LAST = {"deploy_id": ID, "started_ts": "2025-11-23T06:00:00Z", "result": "failed"}
RELEASES = [
    {"name": RELEASE, "version": VERSION, "slots": ["blue", "green"], "last_deploy": LAST},
    {"name": "1.0", "version": "1.0", "slots": [], "last_deploy": None},
]
ORIGIN = "2001:db8::1234:5678"
ENTRY = {
    "id": 1234567,
    "ts": "2025-11-23T06:00:00Z",
    "actor": "token",
    "origin": ORIGIN,
    "action": "canary_rolled_back",
    "subject": ID,
    "outcome": "rolled_back",
    "detail": {"reason": REASON, "version": VERSION},
}
USED: dict[str, Any] = {"version": VERSION, "memory_mb": 1234.5, "cpu_percent": 187.5}
STATUS = status(
    version=VERSION,
    last_deploy=FAILED,
    slots=[
        slot("blue", 8791, "active", "running", pid=4194303, restarts=3, last_exit=REASON, **USED),
        slot("green", 8792, "staging", "draining", pid=4194302, version="1.0"),
    ],
    draining=[
        {"slot": "green", "pid": 4194301, "left": {"requests": 2, "websockets": 1200}, **USED}
    ],
    fallback_suggestions=[{"code": "x", "message": REASON, "action": "See the log."}],
)
CHECK = {"status": "fail", "value": 12345.6, "unit": "ms", "message": REASON}
HEALTH = {
    "score": 42,
    "status": "degraded",
    "checks": {"db_integrity": CHECK, "uptime": {**CHECK, "status": "pass"}},
    "slot": "green",
    "version": VERSION,
    "age_seconds": 1.2,
}
FLEET_STATUS = {
    **FLEET,
    "hosts": [
        {**FLEET["hosts"][0], "name": "web-eu-1.shop", "version": VERSION},
        {
            **FLEET["hosts"][1],
            "name": "web-eu-2.shop",
            "version": "1.0",
            "part": {"state": "failed", "reason": REASON},
        },
    ],
    "rollout": {**FLEET["rollout"], "rollout_id": ID},
}
CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "status": ("/deploy/status", STATUS, {ID, VERSION, "4194303", "4194302", "4194301", "8791"}),
    "history": ("/deploy/history", {"deploys": [FAILED, WAITING]}, {ID, OTHER_ID, VERSION}),
    "releases": ("/deploy/releases", {"releases": RELEASES}, {RELEASE, VERSION}),
    "audit": ("/deploy/audit", {"entries": [ENTRY]}, {ID, "1234567", VERSION, ORIGIN}),
    f"show {ID}": (f"/deploy/{ID}", FAILED, {ID, VERSION}),
    "health": ("/health", HEALTH, {VERSION, "db_integrity"}),
    "canary status": ("/deploy/canary", VIEW, {"vision"}),
    "fleet status": ("/fleet", FLEET_STATUS, {"web-eu-1.shop", "web-eu-2.shop", VERSION, ID}),
    "canary report --strata": ("/deploy/canary/report", REPORT, {"vision"}),
}
"""What a call asks, its answer, and the words that must stand there unbroken."""


def words(text: str) -> list[str]:
    return re.sub(r"[^\w.:+-]+", " ", text).split()


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
@pytest.mark.parametrize("arguments", CASES)
async def test_every_table_is_readable(
    daemon: Played,
    atlasctl: Call,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    columns: int,
) -> None:
    path, answer, whole = CASES[arguments]
    daemon.play("GET", path, answer)
    daemon.play("GET", "/deploy/status", STATUS)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _stream: True)
    outcome = await atlasctl(*arguments.split(), env={"COLUMNS": str(columns), "TERM": "xterm"})
    assert outcome.code == 0, outcome.err
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", outcome.out)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns
    shown = words(text)
    assert whole - {*shown} == set()
    if REASON in str(answer):  # it may wrap anywhere between two words
        assert " ".join(words(REASON)) in " ".join(shown)
