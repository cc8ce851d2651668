"""`POST /supervisor/reload`."""

from __future__ import annotations

from pathlib import Path

from atlas_supervisor import errors
from atlas_supervisor.api import examples
from tests.unit.supervisor.api.support import MemoryControl, running


async def test_an_accepted_reload_is_answered_with_what_is_about_to_change(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        answer = await server.unix("POST", "/supervisor/reload")

    assert answer.status == 202
    assert answer.json == examples.RELOAD.model_dump(mode="json")
    assert [what for what, *_ in server.control.asked] == ["reload"]


async def test_a_refused_reload_has_its_faults_as_lines(tmp_path: Path) -> None:
    lines = ["PUBLIC_PORT=8795: a reload can't change it; it is 8790", "SMOKE_FILE=...: no tests"]
    refusal = errors.RELOAD_REFUSED.error(problem="; ".join(lines), extra={"lines": lines})
    async with running(tmp_path, MemoryControl(refusal=refusal)) as server:
        answer = await server.unix("POST", "/supervisor/reload")

    assert answer.status == 422
    assert answer.code == "reload_refused"
    assert answer.json["error"]["lines"] == lines
    assert list(answer.json) == ["error"]


async def test_a_reload_needs_the_token_over_tcp(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        answer = await server.tcp("POST", "/supervisor/reload")

    assert answer.status == 401
    assert not server.control.asked
