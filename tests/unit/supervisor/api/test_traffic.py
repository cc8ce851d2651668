"""`GET` and `POST /deploy/traffic`."""

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
