"""`atlasctl traffic`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.supervisor.cli.fakes import Played, problem
from tests.unit.supervisor.cli.support import Call

SPLIT: dict[str, Any] = {
    "deploy_id": "d1",
    "version": "2.0.0",
    "active_version": "1.9.0",
    "staging_slot": "green",
    "staging_weight": 0.1,
    "weights": {"blue": 0.9, "green": 0.1},
    "sticky": "address",
    "testers": ["10.1.0.0/16"],
}


async def test_the_split_is_shown(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", "/deploy/traffic", SPLIT)
    outcome = await atlasctl("traffic")
    assert outcome.code == 0
    assert "0.1  2.0.0 on green (new)" in outcome.out
    assert "0.9  1.9.0 (active)" in outcome.out
    assert "a client address keeps its version" in outcome.out
    assert "10.1.0.0/16 always get 2.0.0" in outcome.out


async def test_a_share_is_sent_and_json_is_the_answer_itself(
    daemon: Played, atlasctl: Call
) -> None:
    daemon.play("POST", "/deploy/traffic", SPLIT)
    outcome = await atlasctl("traffic", "0.1", "--json")
    assert (outcome.code, json.loads(outcome.out)) == (0, SPLIT)


@pytest.mark.parametrize("weight", ["1.5", "-1", "half", "nan"])
async def test_a_weight_out_of_range_is_wrong_usage(atlasctl: Call, weight: str) -> None:
    outcome = await atlasctl("traffic", "--", weight)
    assert outcome.code == 2


async def test_a_refusal_is_shown_with_its_hint(daemon: Played, atlasctl: Call) -> None:
    refused = problem("nothing_to_split", "No deploy waits.", "Deploy first.")
    daemon.play("POST", "/deploy/traffic", refused, status=409)
    outcome = await atlasctl("traffic", "0.5")
    assert outcome.code == 1
    assert outcome.err == "✗ No deploy waits.\n  Deploy first.\n"
