"""`atlasctl hold`; with a command it is called in tests/integration/test_hold.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.supervisor.cli.fakes import Played, problem, status
from tests.unit.supervisor.cli.support import Call

HELD: dict[str, Any] = {
    "hold_id": "5f0c2d9a",
    "since": "2026-01-05T09:30:00Z",
    "until": "2026-01-05T09:30:30Z",
    "by": "uid:0",
    "waiting": 12,
}


async def test_it_holds_and_says_how_that_is_ended(daemon: Played, atlasctl: Call) -> None:
    daemon.play("POST", "/traffic/hold", HELD)
    outcome = await atlasctl("hold", "--max", "5")
    assert (outcome.code, outcome.err) == (0, "")
    assert "new connections wait, for 5 s at most (hold 5f0c2d9a)" in outcome.out
    assert "atlasctl hold --release" in outcome.out
    as_json = await atlasctl("hold", "--json")
    assert (as_json.code, json.loads(as_json.out)) == (0, HELD)


async def test_it_releases_and_says_what_waited(daemon: Played, atlasctl: Call) -> None:
    daemon.play("POST", "/traffic/release", HELD)
    outcome = await atlasctl("hold", "--release")
    assert outcome.code == 0
    assert "released: 12 connections waited and were handed on" in outcome.out


async def test_a_refusal_is_shown_with_its_hint(daemon: Played, atlasctl: Call) -> None:
    daemon.play("POST", "/traffic/hold", problem("already_held", "Held.", "Wait."), status=409)
    outcome = await atlasctl("hold")
    assert (outcome.code, outcome.err) == (1, "✗ Held.\n  Wait.\n")


@pytest.mark.parametrize(
    "arguments", [("--max", "0"), ("--max", "301"), ("--release", "--", "true")]
)
async def test_wrong_usage_exits_with_2(atlasctl: Call, arguments: tuple[str, ...]) -> None:
    assert (await atlasctl("hold", *arguments)).code == 2


async def test_the_status_names_a_hold(daemon: Played, atlasctl: Call) -> None:
    traffic = {**status()["traffic"], "held": HELD}
    daemon.play("GET", "/deploy/status", status(traffic=traffic))
    outcome = await atlasctl("status")
    assert "by uid:0  12 connections wait  blue 100 %" in outcome.out
