"""`atlasctl show` on recorded deploys with each result."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from atlas_supervisor.cli.render_deploy import outcome
from atlas_supervisor.cli.render_timeline import timeline
from atlas_supervisor.cli.terminal import Screen
from tests.unit.supervisor.cli.fakes import Played, problem, record, status, step
from tests.unit.supervisor.cli.support import Call

STARTED = datetime(2025, 11, 23, 6, 0, tzinfo=UTC)
SINGLE = {"code": "mode_is_single", "message": "Deploys are disabled.", "action": "fix, then mode"}
BEGUN = (0.0, None, "begun", "deploy requested by uid:0")
LAUNCHED = (0.3, "launch", "passed", "pid 77 was ready")


def transitions_of(*transitions: tuple[float, str | None, str, str]) -> list[dict[str, Any]]:
    """Return transitions from (seconds since the start, source, event, cause)."""
    return [
        {
            "id": number,
            "ts": (STARTED + timedelta(seconds=since)).isoformat(),
            "source": source,
            "event": event,
            "target": "any",
            "cause": cause,
            "duration_ms": None if source is None else 20.0,
        }
        for number, (since, source, event, cause) in enumerate(transitions, start=7)
    ]


async def shown(daemon: Played, atlasctl: Call, deploy: dict[str, Any], **fields: Any) -> str:
    """Return the output of `show` for this deploy."""
    daemon.play("GET", "/deploy/d-42", deploy)
    daemon.play("GET", "/deploy/status", status(**fields))
    result = await atlasctl("show", "d-42")
    assert (result.code, result.err) == (0, "")
    return result.out


def failed_launch(message: str, *output: str) -> dict[str, Any]:
    return record(
        step("launch", ok=False, message=message, output=list(output)),
        result="failed",
        reason=f"launch: {message}",
        transitions=transitions_of(
            BEGUN,
            (0.004, "preflight", "passed", "version 2.0.0 can be launched"),
            (0.3, "launch", "failed", message),
            (0.35, "unstage", "passed", "green is stopped"),
        ),
    )


async def test_the_timeline_has_each_transition_with_time_cause_and_duration(
    daemon: Played, atlasctl: Call
) -> None:
    deploy = record(
        step("launch", message="pid 77 was ready", pid=77),
        step("switch", message="green has all new connections"),
        step("guard", ok=False, message="rollback requested by uid:0"),
        step("drain", message="green finished by itself"),
        result="rolled_back",
        transitions=transitions_of(
            BEGUN,
            LAUNCHED,
            (75, "awaiting_switch", "switch_requested", "switch requested by uid:0"),
            (75.5, "switch", "passed", "green has all new connections"),
            (80, "guard", "rollback_requested", "rollback requested by uid:0"),
            (80.1, "revert", "passed", "blue has all new connections"),
            (81, "drain_reverted", "passed", "green finished by itself"),
        ),
    )
    lines = (await shown(daemon, atlasctl, deploy)).splitlines()
    story_lines = [line for line in lines if "+" in line[:14] or line.startswith("    ")]
    assert story_lines == [
        "·       +0 ms started                    deploy requested by uid:0",
        "✓     +300 ms launch              20 ms  pid 77 was ready",
        "    pid 77",
        "· +1 min 15 s switch requested    20 ms  switch requested by uid:0",
        "✓ +1 min 15 s switched            20 ms  green has all new connections",
        "· +1 min 20 s rollback requested  20 ms  rollback requested by uid:0",
        "✓ +1 min 20 s reverted            20 ms  blue has all new connections",
        "✓ +1 min 21 s new version drained 20 ms  green finished by itself",
    ]


async def test_a_failed_smoke_test_shows_problems_expected_and_actual_values(
    daemon: Played, atlasctl: Call
) -> None:
    check = {
        "name": "notes",
        "kind": "http",
        "ok": False,
        "expected": 'status 200, json {"db": {"up": true}}',
        "got": 'status 302 in 6 ms: <p>\n\x1b[2J{"db": 1}',
        "duration_ms": 6.0,
        "problems": ["status is 302, expected 200", "json.db.up is false, expected true"],
        "headers": {"Location": "/sign-in"},
        "message": "POST /notes: status is 302, expected 200; json.db.up is false, expected true",
    }
    message = f"1 of 2 smoke tests failed: 'notes': {check['message']}"
    deploy = record(
        step("smoke", ok=False, message=message, checks=[check], output=["request /notes"]),
        result="failed",
        reason=f"smoke: {message}",
        transitions=transitions_of(BEGUN, (2, "smoke", "failed", message)),
    )
    out = await shown(daemon, atlasctl, deploy, fallback_suggestions=[SINGLE])
    assert (
        "  1 of 2 smoke tests failed\n"
        "    ✗ notes POST /notes 6 ms\n"
        "      wrong     status is 302, expected 200\n"
        "                json.db.up is false, expected true\n"
        '      expected  status 200, json {"db": {"up": true}}\n'
        "      got       status 302 in 6 ms\n"
        "                Location: /sign-in\n"
        "      body starts with\n"
        "      | <p>\n"
        '      | \\x1b[2J{"db": 1}\n'
        "    last output of the worker\n"
        "    | request /notes\n"
    ) in out
    assert "✗ failed\n  smoke: 1 of 2 smoke tests failed: 'notes'\n" in out
    assert out.endswith("! Deploys are disabled.\n  fix, then mode\n")


async def test_a_failed_command_shows_its_exit_and_its_last_lines(
    daemon: Played, atlasctl: Call
) -> None:
    check = {
        "name": "migrations",
        "kind": "command",
        "ok": False,
        "expected": "exit 0 within 60 s",
        "got": "applied 1\nno such table: notes",
        "duration_ms": 9.0,
        "message": "sh: exit 127",
    }
    message = "1 of 1 smoke tests failed: 'migrations': sh: exit 127"
    deploy = record(step("smoke", ok=False, message=message, checks=[check]), result="failed")
    out = await shown(daemon, atlasctl, deploy)
    assert (
        "    ✗ migrations command 9 ms\n"
        "      wrong     sh: exit 127\n"
        "                127: no such program: check for a typo, the PATH, and a script's `#!` "
        "line\n"
        "      expected  exit 0 within 60 s\n"
        "      its last output\n"
        "      | applied 1\n"
        "      | no such table: notes\n"
    ) in out
    assert out.count("no such program") == 1


@pytest.mark.parametrize("verb", ["show", "deploy"])
async def test_a_failed_probe_shows_the_answer(daemon: Played, atlasctl: Call, verb: str) -> None:
    message = "port 1, /health: answered 503, expected 2xx"
    probe = {"verdict": "fail", "duration_ms": 2, "message": message, "excerpt": "disk\n is full"}
    deploy = record(step("health", ok=False, message=message, probes=[probe]), result="failed")
    daemon.play("POST", "/deploy/bluegreen", record(), status=202)
    daemon.play("GET", "/deploy/d-42", deploy)
    result = await (atlasctl("show", "d-42") if verb == "show" else atlasctl("deploy"))
    assert (
        f"    ✗ {message} 2 ms\n      body starts with\n      | disk\n      |  is full\n"
    ) in result.out


async def test_a_guard_that_reverts_shows_the_probe_that_failed_last(
    daemon: Played, atlasctl: Call
) -> None:
    message = "the new version failed 2 probes in a row: port 1, /health: answered 503"
    probe = {"verdict": "fail", "duration_ms": 2, "message": "answered 503", "excerpt": "no disk"}
    guard = step("guard", ok=False, message=message, probes=9, failed_probe=probe, output=["Oh."])
    out = await shown(daemon, atlasctl, record(guard, result="rolled_back"))
    assert "    ✗ answered 503 2 ms\n      body starts with\n      | no disk\n" in out
    assert "    | Oh.\n" in out


async def test_a_worker_that_exited_at_its_start_shows_its_last_lines(
    daemon: Played, atlasctl: Call
) -> None:
    deploy = failed_launch("it exited with status 1 before it was ready", "Traceback:", "KeyError")
    out = await shown(daemon, atlasctl, deploy)
    assert "    last output of the worker\n    | Traceback:\n    | KeyError\n" in out
    assert "✓ +350 ms staging stopped" in out


async def test_a_killed_worker_without_output_is_explained(daemon: Played, atlasctl: Call) -> None:
    out = await shown(
        daemon, atlasctl, failed_launch("it was ended by SIGKILL before it was ready")
    )
    assert "    SIGKILL: killed from outside, often by the kernel for lack of memory" in out
    assert "    the worker printed nothing\n" in out


async def test_an_exit_outside_of_a_step_is_explained(daemon: Played, atlasctl: Call) -> None:
    cause = "the active instance went down: it was ended by SIGSEGV"
    deploy = record(
        result="rolled_back", transitions=transitions_of((90, "warm", "active_died", cause))
    )
    out = await shown(daemon, atlasctl, deploy)
    assert f"new version died 20 ms  {cause}\n    SIGSEGV: a crash in native code" in out


async def test_waiting_and_failed_switches_show_what_to_do(daemon: Played, atlasctl: Call) -> None:
    waits: dict[str, Any] = {"result": "awaiting_switch", "phase": "awaiting_switch"}
    out = await shown(daemon, atlasctl, record(step("health"), **waits))
    assert "Switch to it with `atlasctl switch`, or abort with `atlasctl abort`." in out
    message = "the state file could not be written: disk full"
    transitions = transitions_of(
        (60, "awaiting_switch", "switch_requested", "switch requested by uid:0"),
        (60.1, "switch", "failed", message),
    )
    switch = step("switch", ok=False, message=message)
    out = await shown(daemon, atlasctl, record(switch, **waits, transitions=transitions))
    assert f"✗ +1 min switch failed    20 ms  {message}\n" in out
    assert "retry with `atlasctl switch`" in out


async def test_an_abort_shows_its_phase_and_its_caller(daemon: Played, atlasctl: Call) -> None:
    cause = "abort requested by uid:0"
    deploy = record(
        step("smoke", ok=False, message=cause),
        result="aborted",
        reason=f"smoke: {cause}",
        transitions=transitions_of(BEGUN, (1.2, "smoke", "abort_requested", cause)),
    )
    out = await shown(daemon, atlasctl, deploy)
    assert f"· +1.2 s abort requested 20 ms  {cause}\n" in out
    assert f"✗ aborted\n  smoke: {cause}\n" in out


async def test_suggestions_are_not_shown_with_an_old_successful_deploy(
    daemon: Played, atlasctl: Call
) -> None:
    fields: dict[str, Any] = {"fallback_suggestions": [SINGLE]}
    other = await shown(
        daemon, atlasctl, record(result="switched"), last_deploy={"deploy_id": "d-43"}, **fields
    )
    assert SINGLE["message"] not in other
    newest = await shown(
        daemon, atlasctl, record(result="switched"), last_deploy={"deploy_id": "d-42"}, **fields
    )
    assert SINGLE["message"] in newest


async def test_a_deploy_is_shown_even_without_the_status(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/d-42", record(result="failed", reason="it died"))
    daemon.play("GET", "/deploy/status", problem("internal_error", "a bug"), status=500)
    result = await atlasctl("show", "d-42")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("✗ failed\n  it died\n")


async def test_long_output_is_bounded_and_malformed_fields_are_harmless(
    daemon: Played, atlasctl: Call
) -> None:
    lines = [f"line {number} " + "x" * 5000 for number in range(5000)]
    odd = [{"ts": 7, "source": 3, "event": None, "cause": None, "duration_ms": "long"}, "no object"]
    steps = [step("launch", ok=False, output=lines, probes=7, checks={}), step("later")]
    deploy = record(*steps, result="failed", transitions=odd)
    out = await shown(daemon, atlasctl, deploy)
    assert "last output of the worker (40 of 5000 lines)\n    | line 4960 x" in out
    assert len(out) < 30_000
    assert "✓ later" in out


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_gets_wrapped_and_not_cut_lines(width: int) -> None:
    message = "the new version failed 3 probes in a row: " + "port 8792 answered 503; " * 5
    deploy = record(
        step("guard", ok=False, message=message, output=["x" * 200]),
        result="rolled_back",
        transitions=transitions_of(BEGUN, (3600 * 26, "guard", "failed", message)),
    )
    screen = Screen(io.StringIO())
    screen.console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    with screen.console.capture() as capture:
        screen.console.print(*timeline(screen, deploy), outcome(screen, deploy, ok=False), sep="\n")
    lines = capture.get().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).count("x") == 200
    assert "".join(capture.get().split()).count("answered503;") == 5
    assert "+1 d 2 h guard failed" in capture.get()
