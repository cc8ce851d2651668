"""The outbox: what has happened and is still to be written, in one order.

Some facts are true before the disk knows them: a worker has died, the traffic has moved, a release
was rejected. They can't be refused when the disk fails; they are written as soon as it works.

1. There is one order. Entries are written as they were put in, one at a time, and each is durable
   before the next one begins. So the journal never has an event without those before it.
2. No entry is lost while the daemon runs. One that can't be written stays first and is tried again
   every second. Two exceptions, both logged: an entry that can never be written (a bug, or a value
   that the database refuses) is dropped, because it would block all others; and of audit entries,
   which any client can cause, the oldest are dropped beyond a limit (`audit.AuditStore`).
3. No caller waits for a failing disk: `flush` raises at the first failure, `attempt` returns. Every
   entry is then marked as delayed, once and in order; a transition is published without an id.
4. A daemon that is killed loses its pending entries. That is safe, because the journal then says
   less than was done, never more: recovery goes by the state file and the journal.

What must be durable before it may happen is no matter for the outbox: the beginning of a deploy
and an entry that a request waits for are written directly, after everything that is pending, and
a failure refuses the request. The intent to switch is pending like any transition, but the runner
does not switch before it is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator

import anyio
import structlog

from atlas_supervisor.errors import AtlasError
from atlas_supervisor.store.statements import StoreError, UnstorableError

log = structlog.get_logger(__name__)

Write = Callable[[], Awaitable[None]]
"""Writes an entry. Raises AtlasError or OSError if it can't be written now; may be repeated."""

_RETRY_SECONDS = 1.0


def _ignore_delay() -> None:
    """Do nothing about a delay."""


class PendingWrite:
    """An entry of the outbox."""

    def __init__(self, write: Write, on_delay: Callable[[], None]) -> None:
        self.write = write
        self._on_delay = on_delay
        self._delayed = False
        self._done = anyio.Event()

    @property
    def written(self) -> bool:
        """Whether it is on the disk."""
        return self._done.is_set()

    async def wait(self) -> None:
        """Wait until it is on the disk, however long that takes."""
        await self._done.wait()

    def complete(self) -> None:
        """Note that it is on the disk."""
        self._done.set()

    def delay(self) -> None:
        """Note that it can't be written now; once."""
        if not self._delayed:
            self._delayed = True
            self._on_delay()


class Outbox:
    """Writes entries in order. To be used in the event loop's thread only."""

    def __init__(self) -> None:
        self._entries: deque[PendingWrite] = deque()
        self._writing = anyio.Lock()
        self._filled = anyio.Event()
        self._failures = 0
        self._failure = ""

    def __iter__(self) -> Iterator[PendingWrite]:
        """Yield what is pending, in order."""
        return iter(self._entries)

    @property
    def pending(self) -> bool:
        """Whether anything is still to be written."""
        return bool(self._entries)

    @property
    def waiting(self) -> list[PendingWrite]:
        """The entries whose writing has not begun, in order."""
        return list(self._entries)[1 if self._writing.locked() else 0 :]

    def put(self, write: Write, on_delay: Callable[[], None] = _ignore_delay) -> PendingWrite:
        """Add an entry; `on_delay` is called once, should the disk not take it at once."""
        entry = PendingWrite(write, on_delay)
        self._entries.append(entry)
        self._filled.set()
        return entry

    async def run(self) -> None:
        """Write what is pending as soon as the disk takes it; never returns."""
        while True:
            if not self._entries:
                self._filled = anyio.Event()
                await self._filled.wait()
            if not await self.attempt():
                await anyio.sleep(_RETRY_SECONDS)

    async def attempt(self, until: PendingWrite | None = None) -> bool:
        """Write what is pending, as `flush` does; return whether that succeeded."""
        try:
            await self.flush(until)
        except StoreError:
            return False
        return True

    async def flush(self, until: PendingWrite | None = None) -> None:
        """Write what is pending now, up to `until` if given. Raises StoreError if that fails."""
        if until is None:
            until = self._entries[-1] if self._entries else None
        failures = self._failures
        with anyio.CancelScope(shield=True):  # an entry is written and taken out, or neither
            while until is not None and not until.written:
                async with self._writing:
                    if self._failures != failures:  # while we waited: one attempt is enough
                        raise StoreError(self._failure)
                    if not until.written:
                        await self._write_first()

    async def _write_first(self) -> None:
        entry = self._entries[0]
        try:
            await entry.write()
        except UnstorableError as error:
            log.critical("write_dropped", why=str(error))
            entry.delay()
        except (AtlasError, OSError) as error:
            log.error("write_delayed", pending=len(self._entries), why=str(error))
            self._failures += 1
            self._failure = str(error)
            for each in list(self._entries):
                each.delay()
            raise StoreError(self._failure) from error
        except Exception:
            log.exception("write_dropped")  # a bug: trying again would not help
            entry.delay()
        self._entries.popleft()
        entry.complete()
