"""Runs a program that may hang, flood or fork, and leaves nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

import anyio
from anyio.abc import ByteReceiveStream, Process

from atlas_supervisor.system.account import Account

OUTPUT_LIMIT = 8 * 1024
"""Bytes of output that are kept: the last ones, where programs report errors."""

_LAST_OUTPUT_SECONDS = 0.5
"""How long output is read after the program has ended: a daemon that it started in another session
may never close the pipe."""


@dataclass(frozen=True)
class Finished:
    """How a program ended."""

    exit_code: int | None
    """Negative for the signal that ended it, as usual; None if its time was up."""
    output: str
    """The end of its output on both streams."""


async def run_command(
    run: Sequence[str],
    *,
    env: Mapping[str, str],
    directory: Path,
    timeout_seconds: float,
    account: Account | None = None,
) -> Finished:
    """Run a program in a new session, and end its whole process group with it.

    Also when its time is up and when this call is cancelled. Raises OSError if it can't be started.
    """
    tail = bytearray()
    exit_code = None
    with anyio.move_on_after(timeout_seconds):
        async with (
            _session(run, env, directory, account) as process,
            anyio.create_task_group() as tasks,
        ):
            assert process.stdout is not None  # noqa: S101 - for mypy: it was requested
            tasks.start_soon(_keep_tail, process.stdout, tail)
            exit_code = await process.wait()
            _kill_group(process)
            tasks.cancel_scope.deadline = anyio.current_time() + _LAST_OUTPUT_SECONDS
    return Finished(exit_code, tail.decode(errors="replace"))


@asynccontextmanager
async def _session(
    run: Sequence[str], env: Mapping[str, str], directory: Path, account: Account | None
) -> AsyncIterator[Process]:
    # Shielded: a cancellation during the start would lose the process, not prevent it.
    with anyio.CancelScope(shield=True):
        process = await anyio.open_process(
            run,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            cwd=directory,
            env=env,
            start_new_session=True,
            **(account.privileges if account else {}),
        )
    try:
        yield process
    finally:
        _kill_group(process)
        with anyio.CancelScope(shield=True):
            await process.aclose()


def _kill_group(process: Process) -> None:
    # The group outlives its leader while it has members, and its id is not reused.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _keep_tail(stream: ByteReceiveStream, tail: bytearray) -> None:
    async for chunk in stream:
        tail += chunk
        del tail[:-OUTPUT_LIMIT]
