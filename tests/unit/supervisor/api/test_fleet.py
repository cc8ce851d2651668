"""`/fleet`: what reads it, what changes it, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor import errors
from atlas_supervisor.api import fleet_examples
from atlas_supervisor.errors import AtlasError
from atlas_supervisor.fleet.documents import UnreadableDocumentError
from atlas_supervisor.fleet.engine import EngineUnavailableError
from atlas_supervisor.model.worker_text import quoted
from tests.unit.supervisor.api.fakes import PlayedFleet
from tests.unit.supervisor.api.support import BEARER, MemoryControl, running

CHANGES: dict[str, dict[str, Any] | None] = {
    "/fleet/rollout": {"release": "1.4.0"},
    "/fleet/rollout/pause": None,
    "/fleet/rollout/resume": None,
    "/fleet/rollout/abort": None,
    "/fleet/rollout/rollback": None,
    "/fleet/break": {"host": "web2", "generation": 17},
    "/fleet/kill": {"feature": "vision"},
    "/fleet/reset": None,
    "/fleet/forget": {"host": "web9"},
}
USER = f"uid:{os.geteuid()}"


def in_a_fleet(refusal: AtlasError | None = None) -> MemoryControl:
    return MemoryControl(fleet=PlayedFleet(refusal=refusal))


async def test_without_a_fleet_every_path_says_so_and_what_to_set(tmp_path: Path) -> None:
    async with running(tmp_path, MemoryControl(fleet=None)) as server:
        answers = [await server.tcp("GET", "/fleet")]
        answers += [await server.unix("POST", path, json=body) for path, body in CHANGES.items()]

    assert {(answer.status, answer.code) for answer in answers} == {(409, "fleet_is_off")}
    assert "FLEET_ETCD_ENDPOINTS" in answers[0].json["error"]["hint"]


async def test_without_the_token_the_fleet_is_read_and_not_changed(tmp_path: Path) -> None:
    async with running(tmp_path, in_a_fleet(), view_token="a-view-token") as server:
        shown = await server.tcp("GET", "/fleet")
        view = {"Authorization": "Bearer a-view-token"}
        seen = await server.tcp("GET", "/fleet", headers=view)
        refused = [
            (await server.tcp("POST", path, json=body, headers=headers)).status
            for path, body in CHANGES.items()
            for headers in (None, view)
        ]
        foreign = await server.tcp(
            "POST", "/fleet/reset", headers={**BEARER, "Origin": "http://elsewhere.example"}
        )

    assert shown.json == seen.json == fleet_examples.FLEET.model_dump(mode="json")
    assert refused == [401, 403] * len(CHANGES)
    assert foreign.status == 403
    assert server.control.fleet
    assert server.control.fleet.asked == []


async def test_a_workers_words_in_a_reason_are_as_secret_as_its_log(tmp_path: Path) -> None:
    reason = f"health: answered {quoted('the vault is open')}"
    rollout = fleet_examples.HALTED.rollout
    assert rollout
    assert rollout.halt
    halt = rollout.halt.model_copy(update={"reason": reason})
    halted = rollout.model_copy(update={"halt": halt})
    shown = fleet_examples.HALTED.model_copy(update={"rollout": halted})
    control = MemoryControl(fleet=PlayedFleet(shown=shown))
    async with running(tmp_path, control) as server:
        unknown = await server.tcp("GET", "/fleet")
        known = await server.tcp("GET", "/fleet", headers=BEARER)

    assert unknown.json["rollout"]["halt"]["reason"] == "health: answered [withheld]"
    assert known.json["rollout"]["halt"]["reason"] == "health: answered the vault is open"


async def test_each_change_is_passed_on_with_its_caller_and_answers_with_the_fleet(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, in_a_fleet()) as server:
        answers = [await server.unix("POST", path, json=body) for path, body in CHANGES.items()]
        await server.unix("POST", "/fleet/kill", json={"feature": None})
        body = {"release": "2", "max_unavailable": 3, "waves": [2, 0.5, 1]}
        await server.tcp("POST", "/fleet/rollout", json=body, headers=BEARER)

    assert {answer.status for answer in answers} == {200}
    assert answers[0].json == fleet_examples.FLEET.model_dump(mode="json")
    assert server.control.fleet
    assert server.control.fleet.asked == [
        ("begin", "1.4.0", 1, [1, 0.1, 1], USER),
        *((action, USER) for action in ("pause", "resume", "abort", "rollback")),
        ("break", "web2", 17, USER),
        ("kill", "vision", USER),
        ("reset", USER),
        ("forget", "web9", USER),
        ("kill", None, USER),
        ("begin", "2", 3, [2, 0.5, 1], "token"),
    ]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("rollout", {}, "release"),
        ("rollout", {"release": "../1"}, "release"),
        ("rollout", {"release": 1}, "release"),
        ("rollout", {"release": "1", "waves": "1,10%"}, "waves"),
        ("rollout", {"release": "1", "waves": []}, "waves"),
        ("rollout", {"release": "1", "waves": [1, "10%", 1]}, "waves.1"),
        ("rollout", {"release": "1", "waves": [True, 1]}, "waves.0"),
        ("rollout", {"release": "1", "waves": [-1, 1]}, "waves.0"),
        ("rollout", {"release": "1", "waves": [0, 1]}, "waves.0"),
        ("rollout", {"release": "1", "waves": [1] * 101}, "waves"),
        ("rollout", {"release": "1", "max_unavailable": 0}, "max_unavailable"),
        ("rollout", {"release": "1", "max_unavailable": 1.5}, "max_unavailable"),
        ("rollout", {"release": "1", "max_unavailable": "1"}, "max_unavailable"),
        ("rollout", {"release": "1", "max": 1}, "max"),
        ("break", {"host": "web2"}, "generation"),
        ("break", {"generation": 3}, "host"),
        ("break", {"host": "web2", "generation": 0}, "generation"),
        ("break", {"host": "web/2", "generation": 1}, "host"),
        ("kill", {}, "feature"),
        ("kill", {"feature": "Vision"}, "feature"),
        ("kill", {"feature": ""}, "feature"),
        ("kill", {"feature": "all"}, "feature"),
        ("forget", {}, "host"),
        ("forget", {"host": ""}, "host"),
    ],
)
async def test_bad_input_names_its_field_and_changes_nothing(
    tmp_path: Path, path: str, body: dict[str, Any], field: str
) -> None:
    async with running(tmp_path, in_a_fleet()) as server:
        answer = await server.unix("POST", f"/fleet/{path}", json=body)

    assert (answer.status, answer.json["error"]["field"]) == (400, field)
    assert server.control.fleet
    assert server.control.fleet.asked == []


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (
            errors.ROLLOUT_IN_PROGRESS.error(rollout_id="r1", release="1.3", state="running"),
            409,
            "rollout_in_progress",
        ),
        (EngineUnavailableError("no endpoint can be reached"), 503, "fleet_unavailable"),
        (
            UnreadableDocumentError("turns/rollout can't be read: order: Field required"),
            503,
            "fleet_document_unreadable",
        ),
    ],
)
async def test_a_refusal_of_the_fleet_or_its_engine_is_named(
    tmp_path: Path, refusal: AtlasError, status: int, code: str
) -> None:
    async with running(tmp_path, in_a_fleet(refusal)) as server:
        answer = await server.unix("POST", "/fleet/rollout", json={"release": "1.4.0"})

    assert (answer.status, answer.code) == (status, code)
    assert str(refusal) in answer.json["error"]["message"]
