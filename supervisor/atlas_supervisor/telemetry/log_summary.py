"""Sums up log events that any client can cause without limit.

Each event is one line; a flood of them would wash everything else out of the log's bounded files.
So the first of its kind is logged at once, and those that follow within a second are one line, with
their number and the fields of the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SECONDS = 1.0
"""At most one line of a kind is logged in this time."""

Write = Callable[..., Any]


@dataclass
class _Kind:
    timer: asyncio.TimerHandle
    count: int = 0
    """Events since the last line."""
    last: Callable[[int], Any] | None = None
    """Logs the last of them, with a count."""


class LogSummary:
    """Logs repeated events once a second. To be used in the event loop's thread."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, object], _Kind] = {}

    def add(self, write: Write, event: str, kind: object, **fields: Any) -> None:
        """Log an event by `write` (a logger's method), or count it.

        `kind` distinguishes events that are not summed up together; it must have few values.
        """
        known = self._kinds.get((event, kind))
        if known is None:
            write(event, **fields)
            self._kinds[event, kind] = _Kind(self._after_a_second(event, kind))
            return
        known.count += 1
        known.last = lambda count: write(event, count=count, **fields)

    def flush(self) -> None:
        """Log everything that is counted."""
        kinds = list(self._kinds.values())
        self._kinds.clear()
        for each in kinds:
            each.timer.cancel()
            _report(each)

    def _after_a_second(self, event: str, kind: object) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(SECONDS, self._next, event, kind)

    def _next(self, event: str, kind: object) -> None:
        known = self._kinds.pop((event, kind))
        if _report(known):
            self._kinds[event, kind] = _Kind(self._after_a_second(event, kind))


def _report(kind: _Kind) -> bool:
    """Log what was counted; return whether there was anything."""
    if kind.last is None:
        return False
    kind.last(kind.count)
    return True
