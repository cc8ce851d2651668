"""`atlasctl show --follow`: the timeline so far, then new transitions up to the end."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

from atlas_supervisor.cli.show import already
from tests.unit.supervisor.cli.fakes import (
    STAY,
    Played,
    event,
    problem,
    record,
    status,
    step,
    transition,
)
from tests.unit.supervisor.cli.support import Call, clean_environment, program

BEGUN = transition(0, None, "preflight", cause="by uid:0")
READY = transition(1, "preflight", "launch", cause="can be launched")
FLIPPED = transition(2, "switch", "guard", cause="green has all")
GUARDED = transition(3, "guard", "warm", cause="watched")
DRAINED = transition(4, "drain", "ended", cause="gone")
STEPS = [step("preflight", message="can be launched"), step("switch", message="green has all")]
SO_FAR = record(*STEPS[:1], phase="launch", transitions=[BEGUN, READY])
SWITCHED = record(*STEPS, result="switched", phase="guard", transitions=[BEGUN, READY, FLIPPED])
WATCHED = SWITCHED | {
    "phase": "warm",
    "steps": [*STEPS, step("guard", message="watched")],
    "transitions": [BEGUN, READY, FLIPPED, GUARDED],
}
OVER = WATCHED | {
    "phase": "ended",
    "steps": [*WATCHED["steps"], step("drain", message="gone")],
    "transitions": [*WATCHED["transitions"], DRAINED],
}


async def test_past_transitions_are_printed_and_then_each_new_one_once(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("GET", "/deploy/d-42", SO_FAR, SO_FAR, SWITCHED, WATCHED, OVER)
    daemon.play("GET", "/deploy/status", status())
    daemon.play_events((event(7), event(8), event(9), STAY))
    outcome = await atlasctl("show", "-f", "d-42")
    assert outcome.code == 0
    told_of = ["d-42", "by uid:0", "can be launched", "green has all", "✓ switched to 2.0.0"]
    told_of += ["watched", "gone"]
    found = [outcome.out.find(words) for words in told_of]
    assert found == sorted(found)
    assert [outcome.out.count(words) for words in told_of] == [1] * len(told_of)


async def test_both_results_of_a_reverted_deploy_are_printed(
    daemon: Played, atlasctl: Call
) -> None:
    back = OVER | {"result": "rolled_back", "reason": "guard: it died"}
    daemon.play("GET", "/deploy/d-42", SWITCHED, SWITCHED, back)
    daemon.play_events((event(7), STAY))
    outcome = await atlasctl("show", "--follow", "d-42")
    assert outcome.code == 0
    assert outcome.out.index("✓ switched to") < outcome.out.index("✗ rolled back")


async def test_an_ended_deploy_is_printed_without_waiting(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/d-42", OVER)
    daemon.play_events((STAY,))
    outcome = await atlasctl("show", "-f", "d-42")
    assert outcome.code == 0
    assert "gone" in outcome.out
    assert "✓ switched to" in outcome.out


async def test_with_json_the_record_is_printed_once_it_has_ended(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("GET", "/deploy/d-42", SO_FAR, SWITCHED, OVER)
    daemon.play_events((event(7), STAY))
    outcome = await atlasctl("show", "-f", "d-42", "--json")
    assert json.loads(outcome.out) == OVER


async def test_with_json_an_unknown_deploy_is_refused_in_json(
    daemon: Played, atlasctl: Call
) -> None:
    refused = problem("deploy_not_found", "There is none.")
    daemon.play("GET", "/deploy/d-42", refused, status=404)
    outcome = await atlasctl("show", "-f", "d-42", "--json")
    assert (outcome.code, json.loads(outcome.out), outcome.err) == (1, refused, "")


async def test_show_without_an_id_shows_the_last_deploy(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/history", {"deploys": [record(result="failed")]})
    daemon.play("GET", "/deploy/d-42", record(result="failed", reason="it died"))
    outcome = await atlasctl("show")
    assert outcome.code == 0
    assert "it died" in outcome.out
    assert daemon.asked[0].query == {"limit": "1"}


async def test_show_without_an_id_and_without_deploys_fails(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/history", {"deploys": []})
    outcome = await atlasctl("show")
    assert outcome.code == 1
    assert outcome.err == "✗ There are no deploys yet.\n  `atlasctl deploy` starts one.\n"


async def test_ctrl_c_stops_watching_only(daemon: Played, env_file: Path) -> None:
    daemon.play("GET", "/deploy/d-42", SO_FAR)
    daemon.play_events((STAY,))
    process = await asyncio.create_subprocess_exec(
        *program("--env-file", env_file, "show", "-f", "d-42"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    assert process.stdout is not None
    while b"can be launched" not in await process.stdout.readline():
        assert process.returncode is None
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert err.decode() == "The deploy continues; `atlasctl show -f d-42` watches it again.\n"
    assert {asked.method for asked in daemon.asked} == {"GET"}


def test_the_time_of_a_phase_counts_from_its_start_and_is_never_negative() -> None:
    began = datetime.now(UTC) - timedelta(seconds=90)
    assert 90 <= already({"transitions": [{"ts": "x"}, {"ts": began.isoformat()}]}) < 100
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert already({"transitions": [{"ts": later.isoformat()}]}) == 0
    assert already({}) == 0
