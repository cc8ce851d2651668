"""`GET /health`: status codes, checks, and the same score in the status."""

from __future__ import annotations

from pathlib import Path

from atlas_supervisor.api import examples
from tests.unit.supervisor.api.support import MemoryControl, running


async def test_healthy_and_degraded_are_answered_with_200(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        over_tcp, over_unix = (
            await server.tcp("GET", "/health"),
            await server.unix("GET", "/health"),
        )
    assert over_tcp.json == over_unix.json == examples.HEALTH.model_dump(mode="json")
    assert (over_tcp.status, over_tcp.json["status"]) == (200, "degraded")
    assert over_tcp.headers["Cache-Control"] == "no-store"


async def test_unhealthy_is_answered_with_503_and_all_its_checks(tmp_path: Path) -> None:
    async with running(tmp_path, MemoryControl(health=examples.UNHEALTHY)) as server:
        answer = await server.tcp("GET", "/health")
    assert (answer.status, answer.json["status"], answer.json["score"]) == (503, "unhealthy", 0)
    assert answer.json["checks"]["port_active"]["status"] == "fail"


async def test_a_check_has_all_four_fields_even_if_empty(tmp_path: Path) -> None:
    async with running(tmp_path, MemoryControl(health=examples.UNHEALTHY)) as server:
        answer = await server.tcp("GET", "/health")
    for check in answer.json["checks"].values():
        assert set(check) == {"status", "value", "unit", "message"}


async def test_the_status_waits_for_the_first_health_check(tmp_path: Path) -> None:
    looks = []

    class Waits(MemoryControl):
        async def first_checks(self) -> None:
            looks.append(True)

    async with running(tmp_path, Waits()) as server:
        answer = await server.tcp("GET", "/deploy/status")
    assert looks == [True]
    assert answer.json["health_score"] == examples.HEALTH.score
