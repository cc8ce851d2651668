"""`atlasctl history` and `show`."""

from __future__ import annotations

import json

import pytest

from tests.unit.supervisor.cli.fakes import Played, problem, record, step
from tests.unit.supervisor.cli.support import Call


async def test_history_lists_deploys_with_their_results_and_reasons(
    daemon: Played, atlasctl: Call
) -> None:
    reason = "smoke test 'home answers' failed " + "for a long reason " * 20
    daemon.play(
        "GET",
        "/deploy/history",
        {
            "deploys": [
                record(phase="health", deploy_id="d-3"),
                record(step("smoke", ok=False), result="failed", reason=reason, version=None),
            ]
        },
    )
    outcome = await atlasctl("history")
    assert outcome.code == 0
    header, first, second = outcome.out.splitlines()
    assert header.split() == ["deploy", "started", "result", "version", "took", "reason"]
    assert first.split()[0] == "d-3"
    assert "health" in first
    assert reason.strip() in second
    assert daemon.asked[0].query == {"limit": "20"}


async def test_took_excludes_steps_after_the_result(daemon: Played, atlasctl: Call) -> None:
    steps = [step("launch", duration_ms=500), step("guard", duration_ms=60_000)]
    daemon.play("GET", "/deploy/history", {"deploys": [record(*steps, result="switched")]})
    assert "500 ms" in (await atlasctl("history")).out


async def test_an_empty_history_says_so(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/history", {"deploys": []})
    outcome = await atlasctl("history", "--limit", "5")
    assert outcome.out == "no deploys yet\n"
    assert daemon.asked[0].query == {"limit": "5"}


async def test_a_limit_out_of_bounds_is_wrong_usage(daemon: Played, atlasctl: Call) -> None:
    assert (await atlasctl("history", "--limit", "0")).code == 2
    assert daemon.asked == []


async def test_show_has_every_step_with_its_time_checks_and_other_fields(
    daemon: Played, atlasctl: Call
) -> None:
    check = {"name": "home", "kind": "http", "ok": True, "duration_ms": 3.2}
    probe = {"verdict": "pass", "duration_ms": 3.6, "message": "/health: answered 200"}
    steps = [
        step("launch", duration_ms=840.0, message="ready on port 8792", pid=77),
        step("health", message="1 of 1 probes passed", probes=[probe]),
        step("smoke", message="1 of 1 passed", checks=[check]),
        step("switch", duration_ms=0.06, message="flipped", rescued={"n": 0}),
    ]
    daemon.play(
        "GET",
        "/deploy/d-42",
        record(*steps, result="switched", dry_run=True, ended_ts="2025-11-23T06:05:00Z"),
    )
    outcome = await atlasctl("show", "d-42")
    assert outcome.code == 0
    assert "d-42  release v2  dry run\n" in outcome.out
    assert "✓ launch       840 ms  ready on port 8792\n    pid 77\n" in outcome.out
    assert "    ✓ home http 3 ms\n" in outcome.out
    assert "    ✓ /health: answered 200 4 ms\n" in outcome.out
    assert '    rescued {"n": 0}\n' in outcome.out
    assert "0.06 ms" in outcome.out
    assert "ended" in outcome.out


async def test_show_of_a_failed_deploy_is_itself_no_failure(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/d-42", record(result="failed", reason="it died"))
    outcome = await atlasctl("show", "d-42")
    assert outcome.code == 0
    assert "✗ failed\n  it died\n" in outcome.out


async def test_an_unknown_deploy_is_refused_by_the_daemon(daemon: Played, atlasctl: Call) -> None:
    refused = problem("unknown_deploy", "There is no deploy x.", "See history.")
    daemon.play("GET", "/deploy/x", refused, status=404)
    outcome = await atlasctl("show", "x")
    assert outcome.code == 1
    assert "There is no deploy x." in outcome.err


@pytest.mark.parametrize("deploy_id", ["..", "a/b", "a?b=c", "", "%2e%2e", "a b", "x\n"])
async def test_an_invalid_deploy_id_is_wrong_usage_and_sends_no_request(
    daemon: Played, atlasctl: Call, deploy_id: str
) -> None:
    assert (await atlasctl("show", deploy_id)).code == 2
    assert daemon.asked == []


async def test_show_with_json_is_the_unchanged_record(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/d-42", record(result="failed"))
    outcome = await atlasctl("show", "d-42", "--json")
    assert json.loads(outcome.out) == record(result="failed")
