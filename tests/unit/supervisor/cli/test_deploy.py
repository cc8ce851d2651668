"""`atlasctl deploy`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from atlas_supervisor.cli import client
from tests.unit.supervisor.cli.fakes import Played, problem, record, status, step
from tests.unit.supervisor.cli.support import Call

PASSED = (
    step("preflight", message="ports are free"),
    step("launch", duration_ms=840, message="ready", pid=77),
    step("smoke", message="2 of 2 passed"),
)
BROKEN = step(
    "smoke",
    ok=False,
    duration_ms=1200,
    message="1 of 2 checks failed",
    checks=[
        {
            "name": "home answers",
            "kind": "http",
            "ok": True,
            "expected": "status 200",
            "got": "status 200",
            "duration_ms": 3.0,
            "message": "",
        },
        {
            "name": "notes work",
            "kind": "http",
            "ok": False,
            "expected": {"status": 201},
            "got": "status 500\x1b[2J",
            "duration_ms": 40.0,
            "message": "wrong status",
        },
    ],
)


def begin(daemon: Played, *records: dict[str, Any] | bytes) -> None:
    daemon.play(
        "POST", "/deploy/bluegreen", record(), status=202, headers={"Location": "/deploy/d-42"}
    )
    daemon.play("GET", "/deploy/d-42", *records)
    daemon.play("GET", "/deploy/status", status())


async def test_a_deploy_shows_each_step_once_and_in_order_and_then_its_outcome(
    daemon: Played, atlasctl: Call
) -> None:
    begin(
        daemon,
        record(PASSED[0], phase="launch"),
        record(PASSED[0], phase="launch"),
        record(*PASSED, phase="health"),
        record(*PASSED, result="switched", phase="guard", active_port=8792),
    )
    outcome = await atlasctl("deploy", "v2")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "d-42  release v2",
        "✓ preflight     12 ms  ports are free",
        "✓ launch       840 ms  ready",
        "✓ smoke         12 ms  2 of 2 passed",
        "✓ switched to 2.0.0 on port 8792 in 864 ms",
    ]


async def test_a_deploy_is_posted_without_waiting_with_its_release_and_dry_run(
    daemon: Played, atlasctl: Call
) -> None:
    begin(daemon, record(result="dry_run_passed", dry_run=True))
    outcome = await atlasctl("deploy", "v2", "--dry-run")
    assert outcome.code == 0
    assert "dry run of 2.0.0 passed" in outcome.out
    asked = daemon.asked[0]
    assert asked.query == {"wait": "false", "dry_run": "true"}
    assert json.loads(asked.body) == {"release": "v2"}


async def test_a_deploy_without_a_name_asks_for_no_release(daemon: Played, atlasctl: Call) -> None:
    begin(daemon, record(result="switched", phase="guard"))
    await atlasctl("deploy")
    assert json.loads(daemon.asked[0].body) == {}
    assert daemon.asked[0].query["dry_run"] == "false"


async def test_a_failed_smoke_test_is_shown_with_expected_and_actual_values(
    daemon: Played, atlasctl: Call
) -> None:
    begin(daemon, record(*PASSED[:2], BROKEN, result="failed", reason="smoke: notes work"))
    outcome = await atlasctl("deploy")
    assert outcome.code == 1
    assert "✗ smoke         1.2 s  1 of 2 checks failed\n" in outcome.out
    assert "    ✗ notes work http 40 ms\n" in outcome.out
    assert "      wrong     wrong status\n" in outcome.out
    assert '      expected  {"status": 201}\n' in outcome.out
    assert "      got       status 500\\x1b[2J\n" in outcome.out
    assert "home answers" not in outcome.out
    assert "✗ failed\n  smoke: notes work\n" in outcome.out


async def test_a_launch_that_failed_shows_the_last_lines_of_the_worker(
    daemon: Played, atlasctl: Call
) -> None:
    output = ["Traceback:", '\tFile "a.py"', "\x1b[31mBoom [bold]\x1b[0m\n"]
    launch = step("launch", ok=False, message="it died with exit code 1", output=output)
    begin(daemon, record(launch, result="failed"))
    outcome = await atlasctl("deploy")
    assert outcome.code == 1
    assert (
        "    last output of the worker\n"
        "    | Traceback:\n"
        '    |     File "a.py"\n'
        "    | \\x1b[31mBoom [bold]\\x1b[0m\n"
    ) in outcome.out


async def test_a_failed_deploy_shows_the_daemons_suggestions(
    daemon: Played, atlasctl: Call
) -> None:
    begin(daemon, record(BROKEN, result="failed"))
    suggestion = {"code": "x", "message": "Mode is single now.", "action": "atlasctl mode …"}
    daemon.play("GET", "/deploy/status", status(fallback_suggestions=[suggestion]))
    outcome = await atlasctl("deploy")
    assert "! Mode is single now.\n  atlasctl mode …\n" in outcome.out


async def test_the_result_is_shown_even_without_the_status(daemon: Played, atlasctl: Call) -> None:
    begin(daemon, record(BROKEN, result="failed"))
    daemon.play("GET", "/deploy/status", problem("internal_error", "a bug"), status=500)
    outcome = await atlasctl("deploy")
    assert outcome.code == 1
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ("switched", 0),
        ("awaiting_switch", 0),
        ("dry_run_passed", 0),
        ("failed", 1),
        ("rolled_back", 1),
        ("aborted", 1),
        ("something_of_a_later_version", 1),
    ],
)
async def test_the_exit_code_follows_the_result(
    daemon: Played, atlasctl: Call, result: str, code: int
) -> None:
    begin(daemon, record(PASSED[0], result=result))
    assert (await atlasctl("deploy")).code == code


async def test_a_failed_switch_is_a_failure_although_the_deploy_waits(
    daemon: Played, atlasctl: Call
) -> None:
    switch = step("switch", ok=False, message="deploy_state.json can't be written")
    begin(daemon, record(*PASSED, switch, result="awaiting_switch", phase="awaiting_switch"))
    outcome = await atlasctl("deploy")
    assert outcome.code == 1
    assert "deploy_state.json can't be written" in outcome.out
    assert "retry with `atlasctl switch`" in outcome.out


async def test_a_waiting_deploy_shows_how_to_switch_or_abort(
    daemon: Played, atlasctl: Call
) -> None:
    begin(daemon, record(*PASSED, result="awaiting_switch", phase="awaiting_switch"))
    outcome = await atlasctl("deploy")
    assert outcome.code == 0
    assert "2.0.0 passed its gates and waits on port 8792" in outcome.out
    assert "Switch to it with `atlasctl switch`" in outcome.out


async def test_a_failed_deploy_is_followed_until_staging_is_stopped(
    daemon: Played, atlasctl: Call
) -> None:
    begin(
        daemon,
        record(BROKEN, result="failed", phase="unstage"),
        record(BROKEN, result="failed", phase="unstage"),
        record(BROKEN, result="failed", phase="ended"),
    )
    await atlasctl("deploy")
    assert [a.path for a in daemon.asked].count("/deploy/d-42") == 3


async def test_no_wait_returns_at_once_and_names_the_deploy(daemon: Played, atlasctl: Call) -> None:
    begin(daemon, record())
    outcome = await atlasctl("deploy", "--no-wait")
    assert outcome.code == 0
    assert "atlasctl show d-42" in outcome.out
    assert len(daemon.asked) == 1


async def test_with_json_the_daemon_waits_and_its_answer_is_printed_unchanged(
    daemon: Played, atlasctl: Call
) -> None:
    body = json.dumps(record(BROKEN, result="failed") | problem("did_not_pass", "no")).encode()
    daemon.play("POST", "/deploy/bluegreen", body, status=422)
    outcome = await atlasctl("deploy", "--json")
    assert outcome.code == 1
    assert outcome.out.encode() == body
    assert outcome.err == ""
    assert daemon.asked[0].query["wait"] == "true"


async def test_with_json_and_no_wait_the_202_is_printed(daemon: Played, atlasctl: Call) -> None:
    begin(daemon)
    outcome = await atlasctl("deploy", "--json", "--no-wait")
    assert outcome.code == 0
    assert json.loads(outcome.out) == record()
    assert daemon.asked[0].query["wait"] == "false"


async def test_a_refused_deploy_shows_message_and_hint(daemon: Played, atlasctl: Call) -> None:
    refused = problem("mode_is_single", "Deploys are off.", "atlasctl mode bluegreen")
    daemon.play("POST", "/deploy/bluegreen", refused, status=409)
    outcome = await atlasctl("deploy")
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err == "✗ Deploys are off.\n  atlasctl mode bluegreen\n"


async def test_following_ends_if_the_daemon_forgets_the_deploy(
    daemon: Played, atlasctl: Call
) -> None:
    begin(daemon)
    daemon.play("GET", "/deploy/d-42", problem("unknown_deploy", "no such deploy"), status=404)
    outcome = await atlasctl("deploy")
    assert outcome.code == 1
    assert "no such deploy" in outcome.err


async def test_following_survives_a_restart_of_the_daemon(daemon: Played, atlasctl: Call) -> None:
    begin(daemon, b"half an ans", record(PASSED[0], result="aborted", reason="restarted"))
    outcome = await atlasctl("deploy")
    assert outcome.code == 1
    assert "✗ aborted\n  restarted\n" in outcome.out


async def test_following_gives_up_on_a_daemon_that_stays_away(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RESTART_SECONDS", 0.2)
    begin(daemon, b"not ours")
    outcome = await atlasctl("deploy")
    assert outcome.code == 3
    assert "No daemon at" in outcome.err
