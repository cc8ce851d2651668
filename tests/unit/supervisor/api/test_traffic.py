"""`/deploy/traffic`, `/traffic/hold` and `/traffic/release`."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_supervisor import errors
from atlas_supervisor.api import examples
from tests.unit.supervisor.api.support import MemoryControl, running


async def test_the_split_is_shown_and_set(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        shown = await server.tcp("GET", "/deploy/traffic")
        unknown = await server.tcp("POST", "/deploy/traffic", json={"staging_weight": 0.5})
        answer = await server.unix("POST", "/deploy/traffic", json={"staging_weight": 1})

    assert shown.json == examples.SPLIT.model_dump(mode="json")
    assert unknown.status == 401
    assert answer.json["staging_weight"] == 1
    assert [(what, weight) for what, weight, _ in server.control.asked] == [("traffic", 1.0)]


@pytest.mark.parametrize(
    "body", [{}, {"staging_weight": 1.01}, {"staging_weight": "0.5"}, {"staging_weight": True}]
)
async def test_a_weight_out_of_range_is_refused_by_its_field(
    tmp_path: Path, body: dict[str, object]
) -> None:
    async with running(tmp_path) as server:
        answer = await server.unix("POST", "/deploy/traffic", json=body)

    assert (answer.status, answer.json["error"]["field"]) == (400, "staging_weight")
    assert not server.control.asked


async def test_without_a_deploy_that_waits_there_is_nothing_to_split(tmp_path: Path) -> None:
    refusal = errors.NOTHING_TO_SPLIT.error(state="no deploy is in progress")
    async with running(tmp_path, MemoryControl(refusal=refusal)) as server:
        for method, body in (("GET", {}), ("POST", {"json": {"staging_weight": 0.1}})):
            answer = await server.unix(method, "/deploy/traffic", **body)
            assert (answer.status, answer.code) == (409, "nothing_to_split")


async def test_a_hold_is_begun_and_ended_by_those_who_may(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        unknown = await server.tcp("POST", "/traffic/hold", json={"max_seconds": 5})
        held = await server.unix("POST", "/traffic/hold", json={"max_seconds": 5})
        by_default = await server.unix("POST", "/traffic/hold")
        named = await server.unix("POST", "/traffic/release", json={"hold_id": "5f0c2d9a"})
        any_hold = await server.unix("POST", "/traffic/release")

    assert unknown.status == 401
    assert held.json == by_default.json == examples.HOLD.model_dump(mode="json")
    assert named.status == any_hold.status == 200
    assert [each[:2] for each in server.control.asked] == [
        ("hold", 5.0),
        ("hold", 30.0),
        ("release", "5f0c2d9a"),
        ("release", None),
    ]


@pytest.mark.parametrize("seconds", [0, 0.99, 300.1, -1, "30", True, None])
async def test_a_hold_too_short_too_long_or_no_number_is_refused(
    tmp_path: Path, seconds: object
) -> None:
    async with running(tmp_path) as server:
        answer = await server.unix("POST", "/traffic/hold", json={"max_seconds": seconds})

    assert answer.status == 400
    assert answer.json["error"]["field"] == "max_seconds"
    assert not server.control.asked


async def test_requests_by_version_are_open_to_read(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        answer = await server.tcp("GET", "/deploy/requests")
        unknown = await server.tcp("GET", "/deploy/requests?minutes=5")

    assert (answer.status, unknown.status) == (200, 400)
    assert answer.json == examples.REQUEST_HOUR.model_dump(mode="json")
