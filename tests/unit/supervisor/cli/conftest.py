from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.supervisor.cli.fakes import Played, serve
from tests.unit.supervisor.cli.support import Call, Outcome, call_client


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    path = tmp_path / "atlas.env"
    path.write_text("# all defaults\n")
    return path


@pytest.fixture
async def daemon(env_file: Path) -> AsyncIterator[Played]:
    async with serve(Played(), env_file.parent / "state" / "supervisor.sock") as played:
        yield played


@pytest.fixture
def call() -> Call:
    """Call the client within this process, with its arguments as they are."""

    return call_client


@pytest.fixture
def atlasctl(call: Call, env_file: Path) -> Call:
    """Call the client within this process, on the test's own env file."""

    async def invoke(*args: str, env: dict[str, str] | None = None) -> Outcome:
        return await call("--env-file", env_file, *args, env=env)

    return invoke
