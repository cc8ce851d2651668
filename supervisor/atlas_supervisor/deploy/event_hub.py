"""Tells what happens to deploys to everybody who listens, and never waits for one of them.

An event is told when the journal has it, under its id there. Who asks for what came after an id
is subscribed first and then reads the journal, so nothing is missed; what it knows already is
then left out, so nothing is repeated. Who does not take its events in time loses its feed, and
comes again with the last id that it has seen.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio
import structlog

from atlas_supervisor.model.event import DeployEvent, PublishedEvent

log = structlog.get_logger(__name__)

MAX_EVENTS = 256
MAX_BYTES = 1024 * 1024
"""What one listener may leave lying: that many events, of that many bytes in all."""
_PAGE = 16
_UNWRITTEN_KEPT = 256
_WOKEN_AT_ONCE = 2
_WAKE_AGAIN_SECONDS = 0.001


class EventJournal(Protocol):
    """Where events are kept. Reading raises AtlasError."""

    async def newest(self) -> int:
        """Return the id of the last event; 0 if there is none."""

    async def knows(self, transition_id: int) -> bool:
        """Tell whether an event has this id."""

    async def after(
        self, transition_id: int, *, deploy_id: str | None, limit: int
    ) -> list[PublishedEvent]:
        """Return the first events after the id, of one deploy or of all, in order."""


class EventHub:
    """The one place where events are told. To be used in the event loop's thread only."""

    def __init__(
        self, journal: EventJournal, count: Callable[[PublishedEvent], None] = lambda _told: None
    ) -> None:
        self._journal = journal
        self._count = count
        """Told each event once, before any listener."""
        self._listeners: set[_Queue] = set()
        self._unwritten: deque[PublishedEvent] = deque(maxlen=_UNWRITTEN_KEPT)
        self._reading = anyio.Lock()
        """One reads the journal at a time: many who come at once are not to delay a deploy."""
        self._closed = False
        self._asleep: deque[_Queue] = deque()
        """Those who have got an event and are to be woken for it."""
        self._waking = False

    def tell(self, announcement: PublishedEvent, journal_id: int | None) -> None:
        """Tell everybody, with the id that the journal gave it; None: it could not be written.

        To be called without a pause after the journal was written, so that ids are told in order.
        What was told without an id is not told again once it is written.
        """
        announcement.journal_id = journal_id
        if announcement.told:
            if journal_id is not None and announcement in self._unwritten:
                self._unwritten.remove(announcement)
            return
        announcement.told = True
        announcement.id = journal_id
        self._count(announcement)
        if journal_id is None:
            self._unwritten.append(announcement)
        for listener in list(self._listeners):
            if listener.offer(announcement):
                self._asleep.append(listener)
        if self._asleep and not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake_some)

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._listeners)

    def _wake_some(self) -> None:
        """Wake a few listeners, and the next ones a little later.

        All at once they would stand in line before the deploy that they listen to. So they get a
        small share of the loop's time, and find what came meanwhile all together.
        """
        for _ in range(min(_WOKEN_AT_ONCE, len(self._asleep))):
            self._asleep.popleft().wake()
        self._waking = bool(self._asleep)
        if self._waking:
            asyncio.get_running_loop().call_later(_WAKE_AGAIN_SECONDS, self._wake_some)

    def unwritten(self, deploy_id: str) -> list[DeployEvent]:
        """Return what was told of a deploy and is not in the journal yet."""
        events = [each.event for each in self._unwritten]
        return [event for event in events if event.deploy_id == deploy_id]

    async def feed(self, *, after: int | None, deploy_id: str | None) -> Subscription:
        """Return what happens from now on; before it, what the journal has after an id.

        0 stands before the first id. Raises AtlasError if the journal can't be read.
        """
        feed = Subscription(self, deploy_id)
        try:
            await feed.open(after)
        except BaseException:
            feed.close()
            raise
        return feed

    def close(self) -> None:
        """End every feed, once its listener has taken what there is; new ones end at once."""
        self._closed = True
        for listener in list(self._listeners):
            listener.end()
        self._listeners.clear()

    def listen(self, deploy_id: str | None, *, unwritten: bool) -> _Queue:
        """Return a queue of what is told from now on, and of what the journal does not have."""
        queue = _Queue(deploy_id)
        for announcement in self._unwritten if unwritten else ():
            queue.offer(announcement)
        if self._closed:
            queue.end()
        else:
            self._listeners.add(queue)
        return queue

    def forget(self, queue: _Queue) -> None:
        """Tell this one nothing more."""
        self._listeners.discard(queue)

    async def newest(self) -> int:
        """Return the last id of the journal."""
        async with self._reading:
            return await self._journal.newest()

    async def knows(self, transition_id: int) -> bool:
        """Tell whether one can go on after this id."""
        if transition_id == 0:
            return True
        async with self._reading:
            return await self._journal.knows(transition_id)

    async def page(self, transition_id: int, deploy_id: str | None) -> list[PublishedEvent]:
        """Return the next events after an id; fewer than `_PAGE`: these are the last."""
        async with self._reading:
            return await self._journal.after(transition_id, deploy_id=deploy_id, limit=_PAGE)


class Subscription:
    """What one listener gets: first from the journal, if asked for, then as it happens."""

    def __init__(self, events: EventHub, deploy_id: str | None) -> None:
        self._events = events
        self._deploy_id = deploy_id
        self._queue = events.listen(deploy_id, unwritten=False)
        self._page: deque[PublishedEvent] = deque()
        self._replaying = False
        self._closed = False
        self._known = 0
        """What the journal has up to this id was given, or is not wanted."""
        self.resumes_at: int | None = None
        self.reset: str | None = None

    async def open(self, after: int | None) -> None:
        """Find out where it begins, and read the first of it. Raises AtlasError."""
        if after is not None and await self._events.knows(after):
            self.resumes_at = self._known = after
            self._replaying = True
            await self._read_page()
            return
        if after is not None:
            self.reset = (
                f"the journal does not have event {after}, so what followed it can't be told; "
                "GET /deploy/history has the deploys"
            )
        self.resumes_at = self._known = await self._events.newest()

    async def next(self) -> PublishedEvent | None:
        """Wait for the next event; None: there is no more. Raises AtlasError."""
        while not self._closed:
            if self._page:
                return self._page.popleft()
            if self._replaying:
                await self._read_page()
                continue
            told = await self._queue.next()
            if told is None:
                return None
            if self._is_new(told):
                return told
        return None

    def ready(self) -> PublishedEvent | None:
        """Take the next event if it is there already."""
        if self._closed or self._replaying:
            return None
        if self._page:
            return self._page.popleft()
        while (told := self._queue.ready()) is not None:
            if self._is_new(told):
                return told
        return None

    def _is_new(self, told: PublishedEvent) -> bool:
        return told.journal_id is None or told.journal_id > self._known

    async def _read_page(self) -> None:
        """Listen anew, then read: a queue that filled up meanwhile is of no use to anybody."""
        self._events.forget(self._queue)
        self._queue = self._events.listen(self._deploy_id, unwritten=True)
        page = await self._events.page(self._known, self._deploy_id)
        if page:
            self._known = page[-1].journal_id or self._known
        self._page.extend(page)
        self._replaying = len(page) == _PAGE

    def close(self) -> None:
        """End it; whoever waits for the next event is told at once."""
        self._closed = True
        self._page.clear()
        self._events.forget(self._queue)
        self._queue.drop()


class _Queue:
    """What was told and not taken yet, up to its bounds. One reads, and nobody waits to write."""

    def __init__(self, deploy_id: str | None) -> None:
        self._deploy_id = deploy_id
        self._waiting: deque[PublishedEvent] = deque()
        self._bytes = 0
        self._over = False
        self._news = anyio.Event()

    def offer(self, told: PublishedEvent) -> bool:
        """Add an event, and tell whether who reads is to be woken for it.

        If there is no room for it, drop all and end.
        """
        if self._over or self._deploy_id not in (None, told.event.deploy_id):
            return False
        size = len(told.data)
        if self._waiting and (len(self._waiting) >= MAX_EVENTS or self._bytes + size > MAX_BYTES):
            log.info("events_not_taken_in_time", events=len(self._waiting), bytes=self._bytes)
            self.drop()
            return False
        self._waiting.append(told)
        self._bytes += size
        return len(self._waiting) == 1

    def wake(self) -> None:
        """Let who reads see that there is something."""
        self._news.set()

    def ready(self) -> PublishedEvent | None:
        """Take the next event if it is there already."""
        if not self._waiting:
            return None
        told = self._waiting.popleft()
        self._bytes -= len(told.data)
        return told

    async def next(self) -> PublishedEvent | None:
        """Wait for an event and take it; None: there is no more."""
        while (told := self.ready()) is None:
            if self._over:
                return None
            self._news = anyio.Event()
            await self._news.wait()
        return told

    def end(self) -> None:
        """Let what is there be taken, and then no more."""
        self._over = True
        self._news.set()

    def drop(self) -> None:
        """Forget what is there, and end."""
        self._waiting.clear()
        self._bytes = 0
        self.end()
