from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from atlas_supervisor.cli.__main__ import main
from tests.unit.supervisor.cli.played import Played, serve

# What the caller's own environment must not bring into a test.
FOREIGN = (
    "ATLAS_ENV_FILE",
    "ATLAS_TOKEN",
    "ATLAS_CACERT",
    "STATE_DIR",
    "NO_COLOR",
    "FORCE_COLOR",
    "COLUMNS",
)


@dataclass(frozen=True)
class Outcome:
    """How a call of the client ended, and what it printed."""

    code: int
    out: str
    err: str


Call = Callable[..., Awaitable[Outcome]]


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

    async def invoke(*args: str | Path, env: dict[str, str] | None = None) -> Outcome:
        runner = CliRunner(env=dict.fromkeys(FOREIGN) | (env or {}))
        result = await asyncio.to_thread(
            runner.invoke, main, [str(arg) for arg in args], prog_name="atlasctl"
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture
def atlasctl(call: Call, env_file: Path) -> Call:
    """Call the client within this process, on the test's own env file."""

    async def invoke(*args: str, env: dict[str, str] | None = None) -> Outcome:
        return await call("--env-file", env_file, *args, env=env)

    return invoke


def program(*args: str | Path) -> list[str]:
    """Return the command line of the client as a program of its own."""
    return [sys.executable, "-m", "atlas_supervisor.cli", *map(str, args)]


def clean_environment(**extra: str) -> dict[str, str]:
    """Return the environment without what would change the client's ways."""
    root = str(Path(__file__).resolve().parents[4] / "supervisor")
    return {
        **{name: value for name, value in os.environ.items() if name not in FOREIGN},
        "PYTHONPATH": root,
        "TERM": "xterm-256color",
        **extra,
    }


async def run(command: list[str], **env: str) -> Outcome:
    """Run a program to its end in a clean environment, its output in pipes."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(**env),
    )
    out, err = await process.communicate()
    return Outcome(process.returncode or 0, out.decode(), err.decode())
