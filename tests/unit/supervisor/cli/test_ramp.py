"""`atlasctl ramp`, and how a ramp shows in other verbs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from atlas_supervisor.cli.words import ramp_milliseconds, ramp_now
from tests.unit.supervisor.cli.fakes import Played, problem
from tests.unit.supervisor.cli.support import Call

SINCE = "2026-01-05T09:30:02Z"
STEPS = [
    {
        "share": 0.05,
        "since_ts": SINCE,
        "until_ts": "2026-01-05T09:31:02Z",
        "new": {"requests": 154, "failed": 1, "p95_ms": 11.8},
        "old": {"requests": 2921, "failed": 2, "p95_ms": 12.1},
    },
    {"share": 0.25, "since_ts": "2026-01-05T09:31:02Z", "until_ts": None, "new": None},
]
RAMP: dict[str, Any] = {
    "deploy_id": "d1",
    "share": 0.25,
    "step": 2,
    "of": 3,
    "next_share": 1,
    "paused": True,
    "next_ts": None,
    "waits_for": "an operator: it is paused",
    "steps": STEPS,
}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "ramp: 25 % (step 2 of 3), paused"),
        ({"paused": False, "next_ts": SINCE}, "waits for an operator: it is paused"),
        ({"paused": False, "waits_for": ""}, "ramp: 25 % (step 2 of 3)"),
    ],
)
def test_the_present_state_is_one_line(changes: dict[str, Any], line: str) -> None:
    assert line in ramp_now({**RAMP, **changes})


def test_the_time_until_the_next_step_counts_down() -> None:
    due = datetime.now(UTC) + timedelta(seconds=42.5)
    line = ramp_now({**RAMP, "paused": False, "next_ts": due.isoformat()})
    assert line.startswith("ramp: 25 % (step 2 of 3), 100 % in 42")


async def test_an_action_is_sent_and_the_ramp_is_shown(daemon: Played, atlasctl: Call) -> None:
    daemon.play("POST", "/deploy/ramp", RAMP)
    outcome = await atlasctl("ramp", "pause")
    assert outcome.code == 0
    assert json.loads(daemon.asked[-1].body) == {"action": "pause"}
    assert "5 % for 1 min" in outcome.out
    assert "new: 154 requests, 1 failed, p95 11.8 ms" in outcome.out
    assert "new: not counted" in outcome.out
    assert "ramp: 25 % (step 2 of 3), paused" in outcome.out
    assert ramp_milliseconds(RAMP) == 60_000


async def test_without_a_ramp_nothing_is_shown_and_a_refusal_is_reported(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("GET", "/deploy/status", {"last_deploy": {"phase": "warm", "ramp": RAMP}})
    outcome = await atlasctl("ramp")
    assert (outcome.code, "No deploy ramps now." in outcome.err) == (1, True)
    refusal = problem("nothing_to_ramp", "no deploy ramps now", "set TRAFFIC_RAMP")
    daemon.play("POST", "/deploy/ramp", refusal, status=409)
    outcome = await atlasctl("ramp", "advance")
    assert (outcome.code, "no deploy ramps now" in outcome.err) == (1, True)
    assert (await atlasctl("ramp", "fly")).code == 2
