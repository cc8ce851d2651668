"""All logs of one daemon, and the feeds of those who read them.

Reading takes threads, of which there are few: a client that asks for much makes other readers
wait, and nobody else.
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
    LONGEST_OWN_LINE,
    LONGEST_WORKER_LINE,
    LogReader,
    show_own_line,
    show_worker_line,
)
from atlas_supervisor.logs.rotation import RenamedLog, RotatingLog, TruncatedLog
from atlas_supervisor.model.log import LogFeed, LogLine, LogSource, WantedLines
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.workers.output import WorkerLog

LOOK_SECONDS = 0.2
"""How often a log is looked at for those who follow it."""
SILENCE_SECONDS = 15.0
"""After so long without a line, a feed says that it is still there."""

_THREADS = 2
_TOGETHER_CHARACTERS = 64 * 1024
_LOST = "lines are missing here: they were gone before they could be read"

T = TypeVar("T")


class LogUnreadableError(AtlasError):
    """A log can't be read; the text says why."""


class LogService:
    """The daemon's own log at `path`, and those of the slots."""

    def __init__(self, path: Path, workers: Mapping[SlotName, WorkerLog]) -> None:
        self._path = path
        self._workers = workers
        self._limiter = anyio.CapacityLimiter(_THREADS)

    async def read(
        self, source: LogSource, wanted: WantedLines, *, lines: int, follow: bool, after: str | None
    ) -> LogFeed:
        """Return the last lines, or those after a place, and with `follow` what comes then.

        Raises LogUnreadableError.
        """
        trail, reader = self._reader(source, wanted)
        unread = follow or after is not None
        feed = _Feed(trail, reader, self._limiter, follow=follow, unread=unread)
        if after is None:
            await feed.begin(partial(reader.last, lines, unfinished=not follow))
        else:
            await feed.begin(partial(reader.resume, after))
        return feed

    def _reader(self, source: LogSource, wanted: WantedLines) -> tuple[RotatingLog, LogReader]:
        if source is LogSource.SUPERVISOR:
            own = RenamedLog(self._path)
            gap = f'{{"ts": null, "level": "warning", "event": "log_lines_lost", "why": "{_LOST}"}}'
            show = show_own_line(wanted)
            return own, LogReader(own, show, longest=LONGEST_OWN_LINE, gap=gap)
        trail = TruncatedLog(self._workers[SlotName(source.value)])
        gap = f"[atlas-supervisor] {_LOST}"
        show = show_worker_line(wanted)
        return trail, LogReader(trail, show, longest=LONGEST_WORKER_LINE, gap=gap)


class _Feed:
    """Looks at a log again and again for one client."""

    def __init__(
        self,
        trail: RotatingLog,
        reader: LogReader,
        limiter: anyio.CapacityLimiter,
        *,
        follow: bool,
        unread: bool,
    ) -> None:
        self._trail = trail
        self._reader = reader
        self._limiter = limiter
        self._follow = follow
        self._waiting: deque[LogLine] = deque()
        self._unread = unread
        self._seen: object = None
        self._closed = anyio.Event()

    @property
    def place(self) -> str:
        return self._reader.place

    def close(self) -> None:
        self._closed.set()

    async def begin(self, read: Callable[[], list[LogLine]]) -> None:
        self._waiting.extend(await self._in_thread(read))

    async def next(self) -> list[LogLine] | None:
        quiet = Stopwatch()
        while not self._closed.is_set():
            if self._waiting:
                return self._some()
            if quiet.seconds > SILENCE_SECONDS:
                return []
            if self._unread or (self._follow and self._has_changed()):
                lines, self._unread = await self._in_thread(self._reader.more)
                self._waiting.extend(lines)
            elif not self._follow:
                return None
            else:
                with anyio.move_on_after(LOOK_SECONDS):
                    await self._closed.wait()
        return None

    def _some(self) -> list[LogLine]:
        """Return lines that wait, as many as are well sent at once."""
        some, room = [], _TOGETHER_CHARACTERS
        while self._waiting and room > 0:
            some.append(self._waiting.popleft())
            room -= len(some[-1].text)
        return some

    def _has_changed(self) -> bool:
        """Tell whether there may be something new, which costs no thread."""
        try:
            status = self._trail.path.stat()
        except OSError:
            return False
        before, self._seen = self._seen, (status.st_ino, status.st_size, status.st_mtime_ns)
        return self._seen != before

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise LogUnreadableError(f"the log can't be read: {error}") from error
