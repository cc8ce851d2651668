"""The kinds of jobs. A kind checks its payload when the job is posted, and runs it later.

A job must be idempotent, because its instance may be killed between its change and the record of
it: `remember` ties its note to the job.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from atlas_worker.app.errors import RequestError, bad_field
from atlas_worker.app.memory import NOTE_CHARACTERS, Memory
from atlas_worker.app.requests import is_number, text_field

Payload = dict[str, Any]
TEXT_CHARACTERS = 256 * 1024
WAIT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job: its id, its payload, and whether its changes are kept."""

    job_id: str
    payload: Payload
    memory: Memory | None
    keep: bool = True


@dataclass(frozen=True, slots=True)
class JobKind:
    """A kind of job. `check` raises `RequestError`; `run` returns what JSON can hold."""

    check: Callable[[Payload], None]
    run: Callable[[Run], Awaitable[Any]]
    needs_memory: bool = False


async def _checksum(run: Run) -> Any:
    text = run.payload["text"].encode()
    digest = await asyncio.to_thread(lambda: hashlib.sha256(text).hexdigest())
    return {"sha256": digest, "bytes": len(text)}


async def _remember(run: Run) -> Any:
    note = await _memory(run).remember(
        run.payload["text"], source=f"job:{run.job_id}", keep=run.keep
    )
    return {"note": note["id"]}


async def _reindex(run: Run) -> Any:
    return {"updated": await _memory(run).reindex(keep=run.keep)}


async def _wait(run: Run) -> Any:
    await asyncio.sleep(run.payload["seconds"])
    return {"waited_seconds": run.payload["seconds"]}


def _check_text(limit: int) -> Callable[[Payload], None]:
    def check(payload: Payload) -> None:
        _only(payload, "text")
        text_field(payload, "text", limit=limit)

    return check


def _check_wait(payload: Payload) -> None:
    _only(payload, "seconds")
    seconds = payload.get("seconds")
    if not is_number(seconds) or not 0 <= seconds <= WAIT_SECONDS:
        raise bad_field(
            "payload.seconds", "is missing or out of range", f"a number from 0 to {WAIT_SECONDS}"
        )


def _only(payload: Payload, *names: str) -> None:
    unknown = payload.keys() - set(names)
    if unknown:
        known = ", ".join(names) or "none"
        raise bad_field("payload", f"has unknown fields: {min(unknown)[:80]!r}", known)


def _memory(run: Run) -> Memory:
    if run.memory is None:
        raise RequestError(
            "module_off", "the memory is disabled", hint="set MEMORY_ENABLED=true", status=404
        )
    return run.memory


KINDS: dict[str, JobKind] = {
    "checksum": JobKind(_check_text(TEXT_CHARACTERS), _checksum),
    "remember": JobKind(_check_text(NOTE_CHARACTERS), _remember, needs_memory=True),
    "reindex": JobKind(_only, _reindex, needs_memory=True),
    "wait": JobKind(_check_wait, _wait),
}
