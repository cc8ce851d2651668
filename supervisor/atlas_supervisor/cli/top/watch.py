"""What `atlasctl top` knows of the daemon: its latest answers, how old they are, and what failed.

One event stream says when something has happened; the answers themselves are read, at least once
a second. Only what is shown is asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import aclosing, suppress

from rich.text import Text

from atlas_supervisor.cli.client import ApiResponse
from atlas_supervisor.cli.errors import FailedError, NoDaemonError
from atlas_supervisor.cli.follow import events
from atlas_supervisor.cli.logs import GAP, OWN, SOURCES, once, own_line
from atlas_supervisor.cli.session import Session, refusal
from atlas_supervisor.cli.sse import EventReader
from atlas_supervisor.cli.terminal import safe
from atlas_supervisor.cli.words import Record, mapping, objects

STATUS, HEALTH, HISTORY = "/deploy/status", "/health", "/deploy/history"
CANARY, REPORT, AUDIT = "/deploy/canary", "/deploy/canary/report", "/deploy/audit"

POLL_SECONDS = 1.0
_SPACING_SECONDS = 0.25
"""Between two rounds at least, however many events there are."""
_PERIODS = {STATUS: 0.0, HEALTH: 2.0, HISTORY: 10.0, CANARY: 2.0, REPORT: 10.0, AUDIT: 5.0}
"""How old an answer may become, in seconds, while nothing happens."""
_AT_EVENTS = (STATUS, HISTORY, AUDIT)
"""What a transition of a deploy changes."""
_MOST_LINES = 1000
_FIRST_LINES = "200"


class Watch:
    """Keeps the latest answers, and calls `changed` after each round of reading."""

    def __init__(self, session: Session, status: Record, changed: Callable[[], None]) -> None:
        self.answers: dict[str, Record] = {STATUS: status}
        self.refusals: dict[str, FailedError] = {}
        """Why something may not be read; it is asked for again once it is opened again."""
        self.fault: FailedError | None = None
        """Why the last round failed."""
        self.deploy: Record = {}
        """The last deploy, with its transitions."""
        self.chosen: Record = {}
        """The deploy that was chosen from the history; empty without one."""
        self.log = LogTail()
        self.wanted: Collection[str] = ()
        """What is shown besides the status, the health, the deploy and who made the last change."""
        self.wants_log = False
        self._session = session
        self._changed = changed
        self._read_at: dict[str, float] = {}
        self._answered_at = time.monotonic()
        self._wake, self._opened = asyncio.Event(), asyncio.Event()
        self._deploy_changed = True

    @property
    def status(self) -> Record:
        """Return the latest status."""
        return self.answers[STATUS]

    @property
    def age_seconds(self) -> float:
        """Return how old the status is."""
        return time.monotonic() - self._answered_at

    def show(self, wanted: Collection[str], *, log: bool) -> None:
        """Read these as well from now on, and at once; those that were refused are tried again."""
        self.wanted, self.wants_log = wanted, log
        for path in (*wanted, self.log.path):
            self.refusals.pop(path, None)
        self._opened.set()
        self.look()

    def look(self) -> None:
        """Read now, not only when it is due."""
        self._wake.set()

    async def run(self) -> None:
        """Read without an end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._tail())
            while True:
                try:
                    await self._round()
                    self.fault = None
                except FailedError as error:
                    self.fault = error
                self._changed()
                await asyncio.sleep(_SPACING_SECONDS)
                await _until(self._wake, POLL_SECONDS - _SPACING_SECONDS)

    async def choose(self, deploy_id: str) -> None:
        """Read the deploy that is to be shown. Raises FailedError."""
        answer = await self._session.daemon.get(f"/deploy/{deploy_id}")
        self.chosen = self._session.expect(answer, "deploy_id")

    async def _listen(self) -> None:
        while True:
            with suppress(FailedError):  # the rounds say why
                await self._until_broken()
            await asyncio.sleep(POLL_SECONDS)

    async def _until_broken(self) -> None:
        async with aclosing(events(self._session.daemon)) as happenings:
            async for event in happenings:
                if event is None:  # a read is due anyway, once a second
                    continue
                for path in _AT_EVENTS:
                    self._read_at.pop(path, None)
                self._deploy_changed = True
                self.look()

    async def _round(self) -> None:
        await self._read(STATUS)
        await self._read_deploy()
        for path in (HEALTH, AUDIT, *self.wanted):
            await self._read(path)

    async def _tail(self) -> None:
        """Read the log while it is shown."""
        while True:
            path = self.log.path
            try:
                if self.wants_log and path not in self.refusals:
                    await self.log.read(self._session)
                    self._changed()
            except NoDaemonError:
                pass  # the rounds say so
            except FailedError as error:
                self.refusals[path] = error
            await _until(self._opened, POLL_SECONDS)

    async def _read(self, path: str) -> None:
        """Read an answer if it is due. Raises FailedError if there is none of a daemon."""
        now = time.monotonic()
        read_at = self._read_at.get(path)
        if path in self.refusals or (read_at is not None and now - read_at < _PERIODS[path]):
            return
        answer = await self._session.daemon.get(path)
        if answer.ok or _is_unhealthy(answer):
            self.answers[path] = answer.data
            self._read_at[path] = now
            if path == STATUS:
                self._answered_at = time.monotonic()
        elif path == STATUS or answer.status >= 500:
            raise refusal(answer)
        else:
            self.refusals[path] = refusal(answer)

    async def _read_deploy(self) -> None:
        """Read the last deploy until it has ended, and the chosen one likewise."""
        last = mapping(self.status.get("last_deploy"))
        is_other = self.deploy.get("deploy_id") != last.get("deploy_id")
        if last and (is_other or self._deploy_changed or _goes_on(self.deploy)):
            self._deploy_changed = False
            answer = await self._session.daemon.get(f"/deploy/{last.get('deploy_id')}")
            self.deploy = answer.data if answer.ok else last
        if self.chosen and _goes_on(self.chosen):
            await self.choose(str(self.chosen["deploy_id"]))

    def entries(self) -> list[Record]:
        """Return the audit trail, newest first, as far as it may be read."""
        return objects(mapping(self.answers.get(AUDIT)).get("entries"))


class LogTail:
    """The last lines of one log, read piece by piece."""

    def __init__(self) -> None:
        self.source = OWN
        self.lines: deque[Text] = deque(maxlen=_MOST_LINES)
        self._reader = EventReader()

    @property
    def path(self) -> str:
        """Return where the log is read."""
        return f"/deploy/logs/{self.source}"

    def turn(self) -> None:
        """Go to the next log."""
        following = SOURCES.index(self.source) + 1
        self.source = SOURCES[following % len(SOURCES)]
        self.lines.clear()
        self._reader = EventReader()

    async def read(self, session: Session) -> None:
        """Read the lines since the last time. Raises FailedError."""
        self._reader = EventReader(self._reader.last_id)
        source = self.source
        query = {"events": "true", "lines": _FIRST_LINES}
        async with aclosing(once(session, self.path, query, self._reader)) as happenings:
            async for event in happenings:
                if event is not None and source == self.source:
                    self.lines.extend(self._parsed(event.kind, event.data))

    def _parsed(self, kind: str, data: str) -> Iterable[Text]:
        if kind == GAP:
            return [safe(f"! {data}", "yellow")]
        return own_line(data) if self.source == OWN else [safe(data)]


async def _until(woken: asyncio.Event, seconds: float) -> None:
    """Wait until it is set, for so long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await woken.wait()
    woken.clear()


def _is_unhealthy(answer: ApiResponse) -> bool:
    """Return whether this is the health of an unhealthy worker, which has an error's status."""
    return isinstance(answer.data.get("checks"), dict)


def _goes_on(record: Record) -> bool:
    return record.get("phase") != "ended"
