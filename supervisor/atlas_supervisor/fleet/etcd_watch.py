"""A watch that loses no change, however often its connection ends.

    read all (anew) --> stream from revision + 1 --> changes, or progress: the revision grows
          ^                        |
          |                        | ended, refused, silent although there are changes
          |                        v
          +-- another store, <-- ask for the revision, linearizably
              or compacted         (with growing pauses while etcd is away)

It is another store if its cluster is another one, or if its revision or raft's term is lower than
before: etcd itself would wait without a word until its revision has grown to ours. A store restored
from a backup that has grown further meanwhile looks like the old one; documents therefore have
epochs and generations of their own.

A stream may be silent because nothing changes, or because it is broken. So after some seconds of
silence the store is asked how many keys there are, and which are newer than the last change: if a
change is then still not delivered, the stream is given up. That works with each version of etcd,
while progress notifications come every ten minutes unless etcd is configured otherwise.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from functools import partial

from atlas_supervisor.fleet.engine import (
    Changes,
    EngineError,
    EngineUnavailableError,
    Entry,
    GarbledAnswerError,
    Snapshot,
)
from atlas_supervisor.fleet.etcd_client import REQUEST_SECONDS, EtcdClient, Stream
from atlas_supervisor.fleet.etcd_messages import (
    HeadedRange,
    Header,
    KeyValue,
    Watched,
    body,
    parsed,
    span,
)

SILENT_SECONDS = 30.0
"""After this much silence, half more or less, the store is asked for changes."""
GRACE_SECONDS = 1.0
"""How long a change that the store knows of may take to be delivered."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


class _BeginAnewError(EngineError):
    """What changed since the last change can't be had from the history."""


@dataclass
class _Place:
    """How far a watch has come, and in which store."""

    header: Header
    revision: int
    keys: int

    def is_in(self, header: Header) -> bool:
        """Return whether an answer that is newer than the place is from the same store."""
        return (
            header.cluster_id == self.header.cluster_id
            and header.revision >= self.revision
            and header.raft_term >= self.header.raft_term
        )


class Watch:
    """A watch of the keys with one prefix."""

    def __init__(
        self,
        client: EtcdClient,
        root: str,
        prefix: str,
        read: Callable[[], Awaitable[tuple[Header, Snapshot]]],
    ) -> None:
        """`root` is left out of the keys that are yielded; `read` reads all entries."""
        self._client = client
        self._root = root
        self._span = span((root + prefix).encode())
        self._read = read
        self._place: _Place | None = None

    async def changes(
        self, noted: Callable[[], AbstractContextManager[None]]
    ) -> AsyncGenerator[Changes, None]:
        """Yield a snapshot, then changes; `noted` notes how each attempt to begin went."""
        pause = _SHORTEST_PAUSE
        while True:
            try:
                with noted():
                    place, anew = await self._begin()
                if anew is not None:
                    yield anew
                async with aclosing(self._stream(place)) as stream:
                    async for changes in stream:
                        pause = _SHORTEST_PAUSE
                        yield changes
            except _BeginAnewError:
                self._place = None
            except EngineError:
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _begin(self) -> tuple[_Place, Changes | None]:
        """Return the place to go on from, with all entries if it is not the last one."""
        if self._place is not None:
            now = await self._newer_than(self._place)
            if self._place.is_in(now.header):
                return self._place, None
        header, snapshot = await self._read()
        self._place = _Place(header, snapshot.revision, len(snapshot.entries))
        return self._place, Changes(snapshot.revision, snapshot.entries, anew=True)

    async def _stream(self, place: _Place) -> AsyncGenerator[Changes, None]:
        """Yield what changes from the place on, until the stream ends. Raises EngineError."""
        wanted = {**self._span, "start_revision": str(place.revision + 1), "progress_notify": True}
        async with self._client.stream("/v3/watch", body({"create_request": wanted})) as stream:
            seconds = REQUEST_SECONDS
            while True:
                message = await stream.message(Watched, within=seconds)
                if message is None and seconds == REQUEST_SECONDS:
                    raise EngineUnavailableError("a watch was not begun in time")
                if message is None:
                    message = await self._after_silence(stream, place)
                if message is not None and (changes := self._take(place, message)):
                    yield changes
                seconds = SILENT_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - jitter

    async def _after_silence(self, stream: Stream, place: _Place) -> Watched | None:
        """Return the next message if the store has changes; None if it has none.

        A stream is kept while the store can't be asked: it may be busy, and the stream works.
        """
        try:
            now = await self._newer_than(place)
        except EngineError:
            return None
        if not place.is_in(now.header):
            raise EngineUnavailableError("the store was replaced")
        if not now.kvs and now.count == place.keys:
            return None
        message = await stream.message(Watched, within=GRACE_SECONDS)
        if message is not None:
            return message
        if now.kvs:
            raise EngineUnavailableError("a watch was silent about a change")
        raise _BeginAnewError("a watch was silent about a key that is gone")

    async def _newer_than(self, place: _Place) -> HeadedRange:
        """Ask how many keys there are, and for one that is newer than the place."""
        newer = {"min_mod_revision": str(place.revision + 1), "limit": "1", "keys_only": True}
        content = body({**self._span, **newer})
        read = partial(parsed, HeadedRange)
        return await self._client.ask("/v3/kv/range", content, read, twice=True)

    def _take(self, place: _Place, message: Watched) -> Changes | None:
        """Move the place on; return the changes, None if the message has none."""
        if message.compact_revision:
            raise _BeginAnewError
        if message.canceled:
            raise EngineUnavailableError(f"a watch was cancelled: {message.cancel_reason}")
        if message.header.cluster_id != place.header.cluster_id:
            raise GarbledAnswerError("a watch answers from another cluster")
        if message.created:
            return None
        if not message.events:
            place.revision = max(place.revision, message.header.revision)
            return None
        place.header = message.header
        place.revision = max(each.kv.mod_revision for each in message.events)
        entries: dict[str, Entry] = {}
        removed: set[str] = set()
        for event in message.events:
            changed = entry(self._root, event.kv)
            if event.type == "DELETE":
                place.keys -= 1
                entries.pop(changed.key, None)
                removed.add(changed.key)
            else:
                place.keys += event.kv.version == 1
                removed.discard(changed.key)
                entries[changed.key] = changed
        return Changes(place.revision, tuple(entries.values()), tuple(sorted(removed)))


def entry(root: str, kv: KeyValue) -> Entry:
    """Return a key of etcd with its value. Raises GarbledAnswerError."""
    key = kv.key.decode(errors="replace")
    if not key.startswith(root):
        raise GarbledAnswerError(f"a key that was not asked for: {key!r}")
    return Entry(key.removeprefix(root), kv.value, kv.mod_revision)
