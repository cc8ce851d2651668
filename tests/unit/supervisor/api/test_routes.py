"""The answers of each route, and the log of requests."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import structlog

from atlas_supervisor.api import examples
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.deploy import Mode, Result
from tests.unit.supervisor.api.support import BEARER, MemoryControl, Server, running, with_result

USER = Actor(name=f"uid:{os.geteuid()}", origin="unix")


async def test_the_status_is_the_daemons_own(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        answer = await server.tcp("GET", "/deploy/status")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json == examples.STATUS.model_dump(mode="json")
    assert answer.json["slots"][0]["started_ts"] == "2026-01-05T09:30:00Z"


async def test_a_deploy_request_passes_on_its_parameters_and_caller(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        await server.unix("POST", "/deploy/bluegreen?dry_run=true", json={"release": "1.4.0"})
        await server.tcp("POST", "/deploy/bluegreen", headers=BEARER)
    assert server.control.asked == [
        ("deploy", ("1.4.0", True), USER),
        ("deploy", (None, False), Actor(name="token", origin="127.0.0.1")),
    ]


@pytest.mark.parametrize("result", [Result.SWITCHED, Result.AWAITING_SWITCH, Result.DRY_RUN_PASSED])
async def test_a_deploy_that_passed_answers_200_with_its_record(
    tmp_path: Path, result: Result
) -> None:
    record = with_result(result)
    async with running(tmp_path, MemoryControl(outcome=record)) as server:
        answer = await server.unix("POST", "/deploy/bluegreen")
    assert (answer.status, answer.json) == (200, record.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("result", "status", "code"),
    [
        (Result.FAILED, 422, "release_did_not_pass"),
        (Result.ROLLED_BACK, 422, "release_did_not_pass"),
        (Result.ABORTED, 409, "deploy_aborted"),
    ],
)
async def test_a_deploy_that_did_not_pass_answers_its_record_and_an_error(
    tmp_path: Path, result: Result, status: int, code: str
) -> None:
    record = with_result(result)
    async with running(tmp_path, MemoryControl(outcome=record)) as server:
        answer = await server.unix("POST", "/deploy/bluegreen")
    body = answer.json
    error = body.pop("error")
    assert (answer.status, error["code"]) == (status, code)
    assert "so it is" in error["message"]
    assert set(error) == {"code", "message", "hint"}
    assert body == record.model_dump(mode="json")


@pytest.mark.parametrize("path", ["/deploy/bluegreen", "/deploy/switch", "/deploy/rollback"])
async def test_a_failed_switch_answers_503_with_the_record(tmp_path: Path, path: str) -> None:
    refusal = RefusedError(
        "switch_failed",
        "no space left on device",
        status=503,
        hint="try again",
        extra=dict(examples.SWITCH_FAILED),
    )
    async with running(tmp_path, MemoryControl(refusal=refusal)) as server:
        answer = await server.unix("POST", path)
    assert (answer.status, answer.code) == (503, "switch_failed")
    assert answer.json["deploy_id"] == examples.SWITCH_FAILED.deploy_id
    assert answer.json["started_ts"] == "2026-01-05T09:30:00Z"


async def test_wait_false_answers_202_with_a_location(
    tmp_path: Path,
) -> None:
    control = MemoryControl()
    control.go_on.clear()
    async with running(tmp_path, control) as server:
        answer = await server.unix("POST", "/deploy/bluegreen?wait=false")
    assert answer.status == 202
    assert answer.headers["Location"] == examples.STARTED.deploy_id
    assert answer.json["result"] is None


async def test_a_refused_deploy_has_message_and_hint(tmp_path: Path) -> None:
    refusal = RefusedError("mode_is_single", "deploys are off", status=409, hint="look first")
    async with running(tmp_path, MemoryControl(refusal=refusal)) as server:
        answer = await server.unix("POST", "/deploy/bluegreen")
    assert answer.status == 409
    assert answer.json == {
        "error": {"code": "mode_is_single", "message": "deploys are off", "hint": "look first"}
    }


@pytest.mark.parametrize(
    ("verb", "result", "status"),
    [
        ("switch", Result.SWITCHED, 200),
        ("switch", Result.FAILED, 422),
        ("switch", Result.ABORTED, 409),
        ("abort", Result.ABORTED, 200),
        ("abort", Result.SWITCHED, 409),
        ("rollback", Result.ROLLED_BACK, 200),
        ("rollback", Result.FAILED, 422),
    ],
)
async def test_steering_answers_200_for_the_requested_result_only(
    tmp_path: Path, verb: str, result: Result, status: int
) -> None:
    async with running(tmp_path, MemoryControl(outcome=with_result(result))) as server:
        answer = await server.unix("POST", f"/deploy/{verb}")
    assert (answer.status, answer.json["result"]) == (status, result)
    assert ("error" in answer.json) == (status != 200)
    assert server.control.asked == [(verb, None, USER)]


async def test_a_rollback_takes_a_version_and_whether_it_is_fast(tmp_path: Path) -> None:
    async with running(tmp_path, MemoryControl(outcome=with_result(Result.SWITCHED))) as server:
        for body, asked in (
            ({"version": "1.1", "fast": True}, ("1.1", True)),
            ({"fast": True}, (None, True)),
            ({"version": None}, None),
        ):
            answer = await server.unix("POST", "/deploy/rollback", json=body)
            assert answer.status == 200
            assert server.control.asked[-1] == ("rollback", asked, USER)
        for wrong in ({"version": 1}, {"version": ""}, {"fast": "yes"}, {"to": "1"}, ["1"]):
            answer = await server.unix("POST", "/deploy/rollback", json=wrong)
            assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_body")
        assert (await server.unix("GET", "/deploy/rollback")).json["active_version"] == "1.4.0"


@pytest.mark.parametrize("path", ["/deploy/bluegreen", "/deploy/switch"])
async def test_a_started_action_continues_when_the_client_leaves(tmp_path: Path, path: str) -> None:
    control = MemoryControl()
    control.go_on.clear()
    async with running(tmp_path, control) as server:
        request = asyncio.create_task(server.unix("POST", path))
        await control.started.wait()
        request.cancel()
        await asyncio.wait([request])
        assert (await server.unix("GET", "/livez")).status == 200  # it noticed, and goes on
        control.go_on.set()
        await control.ended.wait()


async def test_a_deploy_may_take_longer_than_the_request_timeout(tmp_path: Path) -> None:
    control = MemoryControl()
    control.go_on.clear()
    async with running(tmp_path, control, receive_seconds=0.4) as server:
        request = asyncio.create_task(server.unix("POST", "/deploy/bluegreen"))
        await control.started.wait()
        asyncio.get_running_loop().call_later(0.8, control.go_on.set)
        assert (await request).status == 200


async def test_stopping_does_not_wait_for_a_deploy_without_an_end(tmp_path: Path) -> None:
    control = MemoryControl()
    control.go_on.clear()
    async with asyncio.timeout(5):
        async with running(tmp_path, control) as server:
            request = asyncio.create_task(server.unix("POST", "/deploy/bluegreen"))
            await control.started.wait()
        await asyncio.wait([request])
    assert request.exception() is not None


async def test_the_mode_is_set_and_the_status_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        answer = await server.unix("POST", "/deploy/mode", json={"mode": "single"})
    assert (answer.status, answer.json["mode"]) == (200, "single")
    assert server.control.asked == [("mode", Mode.SINGLE, USER)]


async def test_the_history_has_the_requested_length(tmp_path: Path) -> None:
    records = {
        f"d{n}": examples.SWITCHED.model_copy(update={"deploy_id": f"d{n}"}) for n in range(60)
    }
    async with running(tmp_path, MemoryControl(records=records)) as server:
        answers = [
            (await server.tcp("GET", f"/deploy/history{query}")).json["deploys"]
            for query in ("", "?limit=1", "?limit=1000")
        ]
    assert [len(answer) for answer in answers] == [50, 1, 60]
    assert answers[1][0]["deploy_id"] == "d0"


async def test_git_is_run_for_the_list_of_releases_if_the_caller_is_known(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        known = await server.unix("GET", "/deploy/releases")
        unknown = await server.tcp("GET", "/deploy/releases")
    assert known.json["releases"][0]["version"] == "git"
    assert unknown.json["releases"][0]["version"] is None


async def test_one_deploy_is_shown_by_its_id(tmp_path: Path) -> None:
    async with running(tmp_path, MemoryControl(records={"d1": examples.FAILED})) as server:
        found = await server.tcp("GET", "/deploy/d1")
        missing = await server.tcp("GET", "/deploy/d2")
    story = examples.FAILED.model_dump(mode="json")
    story["transitions"] = [examples.TRANSITION.model_dump(mode="json")]
    assert (found.status, found.json) == (200, story)
    assert (missing.status, missing.code) == (404, "deploy_not_found")


async def test_readiness_follows_the_active_worker_and_liveness_the_daemon(tmp_path: Path) -> None:
    control = MemoryControl(is_ready=False)
    async with running(tmp_path, control) as server:
        assert (await server.tcp("GET", "/livez")).status == 200
        refused = await server.tcp("GET", "/readyz")
        assert (refused.status, refused.code) == (503, "not_ready")
        control.is_ready = True
        assert (await server.tcp("GET", "/readyz")).status == 200


async def test_head_answers_as_get_without_the_body(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        answer = await server.tcp("HEAD", "/deploy/status")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 100


@pytest.mark.parametrize(
    "path", ["/nope", "/deploy", "/deploy/", "/deploy/d1/steps", "/healthz", "//"]
)
async def test_an_unknown_path_is_404_in_the_common_shape(tmp_path: Path, path: str) -> None:
    async with running(tmp_path) as server:
        answer = await server.tcp("GET", path)
    assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/deploy/bluegreen", "POST"),
        ("GET", "/deploy/switch", "POST"),
        ("DELETE", "/deploy/status", "GET,HEAD"),
        ("POST", "/deploy/some-id", "GET,HEAD"),
        ("PUT", "/livez", "GET,HEAD"),
        ("OPTIONS", "/deploy/mode", "POST"),
    ],
)
async def test_an_unsupported_method_is_405_with_the_supported_ones(
    tmp_path: Path, method: str, path: str, allow: str
) -> None:
    async with running(tmp_path) as server:
        answer = await server.tcp(method, path)
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == allow


async def test_a_bug_is_shown_in_the_log_only(tmp_path: Path) -> None:
    control = MemoryControl(bug=ZeroDivisionError("a secret of the inside"))
    async with running(tmp_path, control) as server:
        with structlog.testing.capture_logs() as logs:
            answer = await server.tcp("GET", "/deploy/status")
    assert (answer.status, answer.code) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert b"ZeroDivision" not in answer.body
    assert [entry["event"] for entry in logs] == ["api_failed"]
    assert logs[0]["exc_info"] is control.bug


async def logged(server: Server, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
    with structlog.testing.capture_logs() as logs:
        await server.tcp(method, path, **kwargs)
    assert len(logs) == 1, logs
    return dict(logs[0])


async def test_changes_and_refusals_are_logged_and_reads_are_not(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        changed = await logged(server, "POST", "/deploy/switch", headers=BEARER)
        refused = await logged(server, "POST", "/deploy/switch")
        with structlog.testing.capture_logs() as logs:
            await server.tcp("GET", "/deploy/status")
    assert (changed["event"], changed["actor"], changed["status"]) == ("api_changed", "token", 200)
    assert (refused["event"], refused["code"]) == ("api_refused", "token_required")
    assert (refused["path"], refused["origin"]) == ("/deploy/switch", "127.0.0.1")
    assert logs == []


async def test_log_lines_can_not_be_forged_and_never_contain_the_token(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        entry = await logged(
            server,
            "GET",
            "/nope%0a%1b[2J\u2028?token=x",
            headers={"Authorization": "Bearer s3cret"},
        )
    assert "s3cret" not in str(entry)
    assert entry["path"].isprintable()
    assert entry["path"].isascii()
