"""Publishes the events of deploys, and never waits for a subscriber.

1. Each transition is published once. Normally that is when the journal has it, with its id there;
   if the disk fails, it is published without an id (`id: null`) and its id is noted when it is
   written. It is not published again then.
2. Events are published in the order of their ids: the writer of the journal publishes each event
   before it gives up its turn in the event loop. Events without an id are in the order in which
   they happened.
3. A subscriber that resumes after an id misses no event and gets none twice. The order of steps is
   what makes it so: first subscribe to what is published from now on, then add the events that are
   pending (published, not written), then read the journal after the id. An event that comes both
   ways is dropped from the queue, because its id is not above the last one that was read. While
   pages of the journal are read the queue may overflow; it is made anew before each page.
4. No subscriber delays a deploy, or another subscriber. What one has not taken is bounded in events
   and bytes; beyond that its subscription ends, and it resumes with the last id that it has seen.
   Subscribers are woken a few at a time, and the journal is read for one at a time.
5. `close` ends every subscription after what was published before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import anyio
import structlog

from atlas_supervisor.model.deploy import PublishedEvent

log = structlog.get_logger(__name__)

MAX_EVENTS = 256
MAX_BYTES = 1024 * 1024
"""What one subscriber may leave untaken: that many events, of that many bytes in all."""
_PAGE = 16
_WOKEN_AT_ONCE = 2
_WAKE_AGAIN_SECONDS = 0.001


class EventJournal(Protocol):
    """Where events are kept. Reading raises AtlasError."""

    def pending(self) -> Sequence[PublishedEvent]:
        """Return the events that are published and not written yet, in order."""

    async def newest(self) -> int:
        """Return the id of the last event; 0 if there is none."""

    async def knows(self, transition_id: int) -> bool:
        """Return whether an event has this id."""

    async def after(
        self, transition_id: int, *, deploy_id: str | None, limit: int
    ) -> list[PublishedEvent]:
        """Return the first events after the id, of one deploy or of all, in order."""


class EventHub:
    """The one place where events are published. To be used in the event loop's thread only."""

    def __init__(
        self, journal: EventJournal, count: Callable[[PublishedEvent], None] = lambda _event: None
    ) -> None:
        self._journal = journal
        self._count = count
        """Called with each event once, before any subscriber has it."""
        self._queues: set[_Queue] = set()
        self._reading = anyio.Lock()
        """One subscriber reads the journal at a time: many that come at once delay no deploy."""
        self._closed = False
        self._asleep: deque[_Queue] = deque()
        """Queues with events whose readers are to be woken."""
        self._waking = False

    def publish(self, event: PublishedEvent, journal_id: int | None) -> None:
        """Publish an event once, with the id that the journal gave it; None: it is not written yet.

        To be called without a pause after the journal was written, so that ids are in order. Of an
        event that was published without an id, the id is noted as soon as it is written.
        """
        event.journal_id = journal_id
        if event.is_published:
            return
        event.is_published = True
        event.id = journal_id
        self._count(event)
        for queue in list(self._queues):
            if queue.offer(event):
                self._asleep.append(queue)
        if self._asleep and not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake_some)

    @property
    def listeners(self) -> int:
        """How many subscribers there are."""
        return len(self._queues)

    def _wake_some(self) -> None:
        """Wake a few subscribers, and the next ones a little later.

        All at once they would delay the deploy that they follow. So they get a small share of the
        loop's time, and find everything that came meanwhile.
        """
        for _ in range(min(_WOKEN_AT_ONCE, len(self._asleep))):
            self._asleep.popleft().wake()
        self._waking = bool(self._asleep)
        if self._waking:
            asyncio.get_running_loop().call_later(_WAKE_AGAIN_SECONDS, self._wake_some)

    async def subscribe(self, *, after: int | None, deploy_id: str | None) -> Subscription:
        """Subscribe to what happens from now on; before it, to what the journal has after an id.

        0 stands before the first id. Raises AtlasError if the journal can't be read.
        """
        subscription = Subscription(self, deploy_id)
        try:
            await subscription.open(after)
        except BaseException:
            subscription.close()
            raise
        return subscription

    def close(self) -> None:
        """End every subscription after its last event; new ones end at once."""
        self._closed = True
        for queue in list(self._queues):
            queue.end()
        self._queues.clear()

    def open_queue(self, deploy_id: str | None, *, pending: bool) -> _Queue:
        """Return a queue of what is published from now on, after what is pending if wanted."""
        queue = _Queue(deploy_id)
        for event in self._journal.pending() if pending else ():
            queue.offer(event)
        if self._closed:
            queue.end()
        else:
            self._queues.add(queue)
        return queue

    def forget(self, queue: _Queue) -> None:
        """Put nothing more into this queue."""
        self._queues.discard(queue)

    async def newest(self) -> int:
        """Return the last id of the journal."""
        async with self._reading:
            return await self._journal.newest()

    async def knows(self, transition_id: int) -> bool:
        """Return whether a subscription can resume after this id."""
        if transition_id == 0:
            return True
        async with self._reading:
            return await self._journal.knows(transition_id)

    async def page(self, transition_id: int, deploy_id: str | None) -> list[PublishedEvent]:
        """Return the next events after an id; fewer than `_PAGE`: these are the last."""
        async with self._reading:
            return await self._journal.after(transition_id, deploy_id=deploy_id, limit=_PAGE)


class Subscription:
    """The events of one subscriber: first from the journal, if it resumes, then as they happen."""

    def __init__(self, events: EventHub, deploy_id: str | None) -> None:
        self._events = events
        self._deploy_id = deploy_id
        self._queue = events.open_queue(deploy_id, pending=False)
        self._page: deque[PublishedEvent] = deque()
        self._replaying = False
        self._closed = False
        self._known = 0
        """The journal's events up to this id were returned, or are not wanted."""
        self.resumes_at: int | None = None
        self.reset: str | None = None

    async def open(self, after: int | None) -> None:
        """Find out where it begins, and read the first page. Raises AtlasError."""
        if after is not None and await self._events.knows(after):
            self.resumes_at = self._known = after
            self._replaying = True
            await self._read_page()
            return
        if after is not None:
            self.reset = (
                f"the journal does not have event {after}, so what followed it is unknown; "
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
            event = await self._queue.next()
            if event is None:
                return None
            if self._is_new(event):
                return event
        return None

    def ready(self) -> PublishedEvent | None:
        """Take the next event if it is there already."""
        if self._closed or self._replaying:
            return None
        if self._page:
            return self._page.popleft()
        while (event := self._queue.ready()) is not None:
            if self._is_new(event):
                return event
        return None

    def _is_new(self, event: PublishedEvent) -> bool:
        return event.journal_id is None or event.journal_id > self._known

    async def _read_page(self) -> None:
        """Start a new queue, then read: the old one may have overflowed meanwhile."""
        self._events.forget(self._queue)
        self._queue = self._events.open_queue(self._deploy_id, pending=True)
        page = await self._events.page(self._known, self._deploy_id)
        if page:
            self._known = page[-1].journal_id or self._known
        self._page.extend(page)
        self._replaying = len(page) == _PAGE

    def close(self) -> None:
        """End it; a call of `next` that waits returns None."""
        self._closed = True
        self._page.clear()
        self._events.forget(self._queue)
        self._queue.drop()


class _Queue:
    """Events that were published and not taken yet, up to the bounds. It has one reader."""

    def __init__(self, deploy_id: str | None) -> None:
        self._deploy_id = deploy_id
        self._waiting: deque[PublishedEvent] = deque()
        self._bytes = 0
        self._over = False
        self._news = anyio.Event()

    def offer(self, event: PublishedEvent) -> bool:
        """Add an event; return whether the reader is to be woken for it.

        If there is no room for it, drop all and end.
        """
        if self._over or self._deploy_id not in (None, event.event.deploy_id):
            return False
        size = len(event.data)
        if self._waiting and (len(self._waiting) >= MAX_EVENTS or self._bytes + size > MAX_BYTES):
            log.info("event_subscription_dropped", events=len(self._waiting), bytes=self._bytes)
            self.drop()
            return False
        self._waiting.append(event)
        self._bytes += size
        return len(self._waiting) == 1

    def wake(self) -> None:
        """Wake the reader."""
        self._news.set()

    def ready(self) -> PublishedEvent | None:
        """Take the next event if it is there already."""
        if not self._waiting:
            return None
        event = self._waiting.popleft()
        self._bytes -= len(event.data)
        return event

    async def next(self) -> PublishedEvent | None:
        """Wait for an event and take it; None: there is no more."""
        while (event := self.ready()) is None:
            if self._over:
                return None
            self._news = anyio.Event()
            await self._news.wait()
        return event

    def end(self) -> None:
        """End after what is in the queue."""
        self._over = True
        self._news.set()

    def drop(self) -> None:
        """End at once, without what is in the queue."""
        self._waiting.clear()
        self._bytes = 0
        self.end()
