"""The integrity of a database: SQLite's quick check, in a thread, as often as its cost allows."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 0.5
"""How long an answer waits for a running check, before it has the result of the last one."""
REST = 100
"""A check that took a second is repeated after so many seconds at the earliest."""
_QUICK_SECONDS = 0.05  # a check this quick is done each time
_BUSY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class IntegrityResult:
    """The result of a check. `problem` is None if the database is intact."""

    problem: str | None
    made: float
    seconds: float


class Integrity:
    """Checks one file; concurrent callers share one check."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._last: IntegrityResult | None = None
        self._checking: asyncio.Task[None] | None = None

    async def finding(self) -> IntegrityResult | None:
        """Return the last result within `PATIENCE_SECONDS`; None without one."""
        if self._due() and (self._checking is None or self._checking.done()):
            self._checking = asyncio.create_task(self._check(), name="integrity")
        if self._checking is not None and not self._checking.done():
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await asyncio.shield(self._checking)
        return self._last

    async def stop(self) -> None:
        """Wait for the running check; a thread can't be stopped."""
        if self._checking is not None:
            await asyncio.wait({self._checking})

    def age(self, finding: IntegrityResult) -> float:
        """Return its age in seconds."""
        return self._clock() - finding.made

    def _due(self) -> bool:
        last = self._last
        if last is None or last.seconds <= _QUICK_SECONDS:
            return True
        return self.age(last) >= REST * last.seconds

    async def _check(self) -> None:
        begun = self._clock()
        problem = await asyncio.to_thread(quick_check, self._path)
        self._last = IntegrityResult(problem, self._clock(), self._clock() - begun)


def quick_check(path: Path) -> str | None:
    """Return the first problem of a SQLite file, or None. It reads the whole file."""
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
        ) as db:
            (word,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        return str(error)
    return None if word == "ok" else str(word)
