"""Serves all logs of one daemon to API clients.

Reading has a small thread pool of its own, so a client that requests much delays only other
readers of logs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio

from atlas_supervisor.errors import AtlasError
from atlas_supervisor.logs.log_reader import (
    MAX_OWN_LINE,
    MAX_WORKER_LINE,
    LogReader,
    show_own_line,
    show_worker_line,
)
from atlas_supervisor.logs.rotation import RenamedLog, RotatingLog, TruncatedLog
from atlas_supervisor.model.log import LogFeed, LogLine, LogSource, WantedLines
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.workers.output import WorkerLog

POLL_SECONDS = 0.2
"""How often a followed log is checked."""
SILENCE_SECONDS = 15.0
"""A feed without a line for this long sends a sign of life."""

_THREADS = 2
_BATCH_CHARACTERS = 64 * 1024
_LOST = "lines are missing here: they were rotated away before they were read"

T = TypeVar("T")


class LogUnreadableError(AtlasError):
    """A log can't be read; the text is the reason."""


class LogService:
    """Opens feeds of the daemon's own log at `path` and of the slots' logs."""

    def __init__(self, path: Path, workers: Mapping[SlotName, WorkerLog]) -> None:
        self._path = path
        self._workers = workers
        self._limiter = anyio.CapacityLimiter(_THREADS)

    async def read(
        self, source: LogSource, wanted: WantedLines, *, lines: int, follow: bool, after: str | None
    ) -> LogFeed:
        """Return a feed of the last lines, or of those after a cursor, and with `follow` new ones.

        Raises LogUnreadableError.
        """
        log, reader = self._reader(source, wanted)
        unread = follow or after is not None
        feed = _Feed(log, reader, self._limiter, follow=follow, unread=unread)
        if after is None:
            await feed.start(partial(reader.last, lines, unfinished=not follow))
        else:
            await feed.start(partial(reader.resume, after))
        return feed

    def _reader(self, source: LogSource, wanted: WantedLines) -> tuple[RotatingLog, LogReader]:
        if source is LogSource.SUPERVISOR:
            own = RenamedLog(self._path)
            gap = f'{{"ts": null, "level": "warning", "event": "log_lines_lost", "why": "{_LOST}"}}'
            show = show_own_line(wanted)
            return own, LogReader(own, show, longest=MAX_OWN_LINE, gap=gap)
        log = TruncatedLog(self._workers[SlotName(source.value)])
        gap = f"[atlas-supervisor] {_LOST}"
        show = show_worker_line(wanted)
        return log, LogReader(log, show, longest=MAX_WORKER_LINE, gap=gap)


class _Feed:
    """The lines of one log for one client."""

    def __init__(
        self,
        log: RotatingLog,
        reader: LogReader,
        limiter: anyio.CapacityLimiter,
        *,
        follow: bool,
        unread: bool,
    ) -> None:
        self._log = log
        self._reader = reader
        self._limiter = limiter
        self._follow = follow
        self._waiting: deque[LogLine] = deque()
        self._unread = unread
        self._seen: object = None
        self._closed = anyio.Event()

    @property
    def cursor(self) -> str:
        return self._reader.cursor

    def close(self) -> None:
        self._closed.set()

    async def start(self, read: Callable[[], list[LogLine]]) -> None:
        self._waiting.extend(await self._in_thread(read))

    async def next(self) -> list[LogLine] | None:
        quiet = Stopwatch()
        while not self._closed.is_set():
            if self._waiting:
                return self._batch()
            if quiet.seconds > SILENCE_SECONDS:
                return []
            if self._unread or (self._follow and self._has_changed()):
                lines, self._unread = await self._in_thread(self._reader.more)
                self._waiting.extend(lines)
            elif not self._follow:
                return None
            else:
                with anyio.move_on_after(POLL_SECONDS):
                    await self._closed.wait()
        return None

    def _batch(self) -> list[LogLine]:
        """Return waiting lines, about _BATCH_CHARACTERS of them."""
        batch, room = [], _BATCH_CHARACTERS
        while self._waiting and room > 0:
            batch.append(self._waiting.popleft())
            room -= len(batch[-1].text)
        return batch

    def _has_changed(self) -> bool:
        """Return whether there may be new lines; needs no thread."""
        try:
            status = self._log.path.stat()
        except OSError:
            return False
        before, self._seen = self._seen, (status.st_ino, status.st_size, status.st_mtime_ns)
        return self._seen != before

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await in_thread(work, limiter=self._limiter)
        except OSError as error:
            raise LogUnreadableError(f"the log can't be read: {error}") from error
