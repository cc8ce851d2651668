"""`atlasctl switch`, `abort`, `rollback` and `mode`."""

from __future__ import annotations

import json

import pytest

from tests.unit.supervisor.cli.fakes import Played, problem, record, status, step
from tests.unit.supervisor.cli.support import Call


@pytest.mark.parametrize(
    ("verb", "result", "said"),
    [
        ("switch", "switched", "✓ switched to 2.0.0 on port 8791"),
        ("abort", "aborted", "✓ aborted"),
        ("rollback", "rolled_back", "✓ rolled back"),
    ],
)
async def test_a_completed_action_is_a_success(
    daemon: Played, atlasctl: Call, verb: str, result: str, said: str
) -> None:
    daemon.play("POST", f"/deploy/{verb}", record(step("switch"), result=result, reason="by uid:0"))
    outcome = await atlasctl(verb)
    assert outcome.code == 0
    assert said in outcome.out
    assert "by uid:0" in outcome.out


async def test_a_rollback_shows_the_version_that_has_the_traffic(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("POST", "/deploy/rollback", record(result="rolled_back", reason="by uid:0"))
    daemon.play("GET", "/deploy/status", status(version="1.9.0", active_port=8791))
    outcome = await atlasctl("rollback")
    assert outcome.out.endswith("  1.9.0 on port 8791 has all the traffic\n")


@pytest.mark.parametrize("verb", ["switch", "abort", "rollback"])
async def test_an_action_without_a_deploy_is_refused(
    daemon: Played, atlasctl: Call, verb: str
) -> None:
    refused = problem("nothing_to_do", "There is no deploy.", "Begin one.")
    daemon.play("POST", f"/deploy/{verb}", refused, status=409)
    outcome = await atlasctl(verb)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "✗ There is no deploy.\n  Begin one.\n"


async def test_a_failed_switch_shows_its_step_and_the_hint(daemon: Played, atlasctl: Call) -> None:
    failed = record(step("launch"), step("switch", ok=False, message="no space left"))
    refused = problem("switch_failed", "The switch could not be done.", "Make room; switch again.")
    daemon.play("POST", "/deploy/switch", failed | refused, status=503)
    outcome = await atlasctl("switch")
    assert outcome.code == 1
    assert "✗ switch" in outcome.out
    assert "no space left" in outcome.out
    assert "launch" not in outcome.out
    assert outcome.err == "✗ The switch could not be done.\n  Make room; switch again.\n"


async def test_with_json_a_refusal_is_the_api_s_own_answer_and_exit_1(
    daemon: Played, atlasctl: Call
) -> None:
    refused = problem("nothing_waits", "No.", "")
    daemon.play("POST", "/deploy/switch", refused, status=409)
    outcome = await atlasctl("switch", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out) == refused
    assert outcome.err == ""


async def test_the_mode_is_set_and_shown(daemon: Played, atlasctl: Call) -> None:
    daemon.play("POST", "/deploy/mode", status(mode="single"))
    outcome = await atlasctl("mode", "single")
    assert outcome.code == 0
    assert outcome.out == "✓ mode is single: deploys are disabled\n"
    assert json.loads(daemon.asked[0].body) == {"mode": "single"}


async def test_an_unknown_mode_is_wrong_usage_and_sends_no_request(
    daemon: Played, atlasctl: Call
) -> None:
    outcome = await atlasctl("mode", "purple")
    assert outcome.code == 2
    assert daemon.asked == []


async def test_a_refusal_without_a_message_shows_the_status(daemon: Played, atlasctl: Call) -> None:
    daemon.play("POST", "/deploy/abort", {}, status=500)
    outcome = await atlasctl("abort")
    assert outcome.code == 1
    assert "HTTP 500" in outcome.err
