"""The audit routes, and the audit entries of denied requests."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.api import denied_audit
from atlas_supervisor.api.audit import ENTRY
from atlas_supervisor.api.denied_audit import AT_ONCE, SECONDS_EACH, DeniedRequests
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor
from tests.unit.supervisor.api.support import BEARER, MemoryAudit, eventually, running

FOREIGN = {"Origin": "http://evil.example"}


async def test_entries_are_returned_and_the_query_is_passed_on(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as server:
        server.audit.written = [ENTRY]
        answer = await server.unix("GET", "/deploy/audit")
        assert answer.json == {"entries": [ENTRY.model_dump(mode="json")]}
        await server.unix("GET", "/deploy/audit?limit=5&before=9&action=mode&subject=d-1")
        assert server.audit.asked == [
            {"limit": 100, "before": None, "action": None, "subject": None},
            {"limit": 5, "before": 9, "action": "mode", "subject": "d-1"},
        ]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "before=0", "before=9223372036854775808", "action=", "subject=%00"],
)
async def test_invalid_query_values_are_refused_by_name(tmp_path: Path, query: str) -> None:
    async with running(tmp_path) as server:
        answer = await server.unix("GET", f"/deploy/audit?{query}")
        assert (answer.status, answer.code) == (400, "invalid_query")
        assert answer.json["error"]["field"] == query.partition("=")[0]
        assert server.audit.asked == []


@pytest.mark.parametrize("path", ["/deploy/audit", "/deploy/audit/verify"])
async def test_reading_the_trail_needs_more_than_read_permission(tmp_path: Path, path: str) -> None:
    async with running(tmp_path) as server:
        assert (await server.tcp("GET", path)).code == "token_required"
        assert (await server.tcp("GET", path, headers=BEARER)).status == 200
    async with running(tmp_path, own_uid=os.geteuid() + 1) as server:
        allowed = os.geteuid() == 0
        assert (await server.unix("GET", path)).status == (200 if allowed else 403)


async def test_a_broken_trail_is_answered_with_200(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        server.audit.found = server.audit.found.model_copy(update={"ok": False, "broken_id": 5})
        answer = await server.unix("GET", "/deploy/audit/verify")
        assert (answer.status, answer.json["ok"], answer.json["broken_id"]) == (200, False, 5)


@pytest.mark.parametrize(
    ("path", "headers", "actor", "code"),
    [
        ("/deploy/abort", {}, "anonymous", "token_required"),
        ("/deploy/abort", {"Authorization": "Bearer guessed"}, "anonymous", "token_wrong"),
        ("/deploy/mode", {**BEARER, **FOREIGN}, "token", "foreign_origin"),
    ],
)
async def test_denied_changes_are_audited_with_their_request(
    tmp_path: Path, path: str, headers: dict[str, str], actor: str, code: str
) -> None:
    async with running(tmp_path) as server:
        assert (await server.tcp("POST", f"{path}?x=1", headers=headers)).code == code
        assert server.audit.recorded == [
            (
                Actor(name=actor, origin="127.0.0.1"),
                "request",
                "refused",
                {"method": "POST", "path": path, "code": code, "left_out": 0},
            )
        ]


async def test_other_refusals_are_not_audited(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        await server.tcp("GET", "/deploy/audit")
        await server.tcp("GET", "/deploy/status", headers=FOREIGN)
        await server.tcp("POST", "/nowhere")
        await server.tcp("DELETE", "/deploy/abort")
        await server.tcp("POST", "/deploy/mode", headers=BEARER, json={"mode": "x"})
        assert server.audit.recorded == []


async def test_denied_requests_are_audited_at_a_bounded_rate_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, audit = 1000.0, MemoryAudit()
    loop = asyncio.get_running_loop()
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: now)
    denied = DeniedRequests(audit)

    def ask(times: int) -> list[dict[str, Any]]:
        """Ask so often, and return the details of what was written of it."""
        audit.recorded.clear()
        refused = RefusedError("token_wrong", "this is not the token", status=401, hint="")
        for _ in range(times):
            denied.record(Actor(name="anonymous", origin="::1"), "POST", "/deploy/mode", refused)
        return [detail for *_, detail in audit.recorded]

    assert [each["left_out"] for each in ask(500)] == [0] * AT_ONCE
    now += SECONDS_EACH
    assert [each["left_out"] for each in ask(3)] == [500 - AT_ONCE]
    now += 100 * SECONDS_EACH
    assert [each["left_out"] for each in ask(500)] == [2] + [0] * (AT_ONCE - 1)
    monkeypatch.setattr(loop, "time", real)


async def test_denied_requests_that_were_left_out_are_audited_without_a_further_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(denied_audit, "SECONDS_EACH", 0.2)
    audit = MemoryAudit()
    denied = DeniedRequests(audit)
    refused = RefusedError("token_wrong", "this is not the token", status=401, hint="")
    anonymous = Actor(name="anonymous", origin="::1")
    for _ in range(AT_ONCE + 5):
        denied.record(anonymous, "POST", "/deploy/mode", refused)
    async with asyncio.timeout(5):
        await eventually(lambda: len(audit.recorded) > AT_ONCE)
    assert audit.recorded[-1][3]["left_out"] == 4


async def test_a_flood_of_anonymous_requests_hides_no_other_callers_denied_request() -> None:
    audit = MemoryAudit()
    denied = DeniedRequests(audit)
    refused = RefusedError("not_permitted", "not permitted", status=403, hint="")
    for _ in range(1000):
        denied.record(Actor(name="anonymous", origin="::1"), "POST", "/deploy/mode", refused)
    denied.record(Actor(name="uid:1000", origin="unix"), "POST", "/deploy/abort", refused)
    assert len(audit.recorded) == AT_ONCE + 1
    assert audit.recorded[-1][0].name == "uid:1000"
