"""Calls of the client: within the test, as a program of its own, and on a terminal."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import sys
import termios
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from atlas_supervisor.cli.verbs import main

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


async def call_client(*args: str | Path, env: dict[str, str] | None = None) -> Outcome:
    """Call the client within this process, with its arguments as they are."""
    runner = CliRunner(env=dict.fromkeys(FOREIGN) | (env or {}))
    result = await asyncio.to_thread(
        runner.invoke, main, [str(arg) for arg in args], prog_name="atlasctl"
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


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


def read_all(descriptor: int) -> bytes:
    """Read a terminal until no process has it open any more, which Linux reports as EIO."""
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks)


async def on_terminal(*args: str | Path, **env: str) -> str:
    """Return all that the client writes to a terminal of 80 columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        process = await asyncio.create_subprocess_exec(
            *program(*args),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=clean_environment(**env),
        )
        os.close(theirs)
        written = await asyncio.to_thread(read_all, ours)
        await process.wait()
        return written.decode()
    finally:
        os.close(ours)
