"""What is known of a simulated fleet: every revision of etcd, and facts that no engine knows."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from atlas_supervisor.fleet.documents import KillSwitch
from atlas_supervisor.fleet.engine import Entry, Snapshot

OPERATOR = "operator"
"""The client of commands that no host sent."""


@dataclass(frozen=True)
class Revision:
    """What one revision wrote; None: removed."""

    number: int
    written: dict[str, bytes | None]


@dataclass(frozen=True)
class Sent:
    """A commit that a client sent, whether it was answered or not."""

    client: str
    writes: dict[str, bytes | None]
    read_at: int
    """The revision of the last reading of all members before it, by which it was decided."""
    deploying: str | None = None
    """The key of the deploy that was in progress on the machine."""
    life: int = 0
    """How many times the machine had died before."""

    def is_in(self, revision: Revision) -> bool:
        """Return whether the revision is this commit."""
        written = {key for key, value in self.writes.items() if value is not None}
        return written <= revision.written.keys() <= self.writes.keys() and all(
            self.writes[key] == value for key, value in revision.written.items()
        )


@dataclass
class Deploy:
    """A deploy that a machine did."""

    host: str
    key: str
    seen: int
    """The newest revision that the host knew when it began."""
    newest_at_end: int | None = None
    passed: bool | None = None


@dataclass
class Death:
    """A machine that died for the n-th time, by the newest revisions that were known then."""

    host: str
    life: int
    died_at: int
    back_at: int | None = None


@dataclass
class Facts:
    """Everything beside the history."""

    sent: list[Sent] = field(default_factory=list)
    deploys: list[Deploy] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    breaks: set[tuple[str, int]] = field(default_factory=set)
    kills: list[tuple[str, KillSwitch | None]] = field(default_factory=list)
    """Which kill switch each machine had in force: as it came up, and later."""


class Recorder:
    """Reads all revisions under a prefix, from the first one on, in a connection of its own."""

    def __init__(self, endpoint: str, prefix: str) -> None:
        self._endpoint, self._prefix = endpoint, prefix
        self.history: list[Revision] = []
        self.state: dict[str, Entry] = {}
        self.newest = 0
        self._grew = asyncio.Event()

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=1)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                with suppress(aiohttp.ClientError, OSError, ValueError):
                    await self._record(session)
                await asyncio.sleep(0.02)

    async def until(self, revision: int) -> None:
        """Wait until a revision has arrived that was written under the prefix."""
        while self.newest < revision:
            await self.grown()

    async def grown(self) -> None:
        """Wait until another revision arrives."""
        self._grew.clear()
        await self._grew.wait()

    def snapshot(self) -> Snapshot:
        """Return all that stands under the prefix."""
        return Snapshot(self.newest, tuple(self.state.values()))

    async def _record(self, session: aiohttp.ClientSession) -> None:
        prefix = self._prefix.encode()
        wanted = {
            "key": _encoded(prefix),
            "range_end": _encoded(prefix[:-1] + bytes([prefix[-1] + 1])),
            "start_revision": self.newest + 1,
        }
        url = f"{self._endpoint}/v3/watch"
        async with session.post(url, json={"create_request": wanted}) as response:
            rest = b""
            async for part in response.content.iter_any():
                *lines, rest = (rest + part).split(b"\n")
                for line in filter(None, lines):
                    self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        result = message.get("result", {})
        assert not result.get("compact_revision"), "the history was compacted before it was read"
        for event in result.get("events", ()):
            kv = event["kv"]
            number = int(kv["mod_revision"])
            if not self.history or self.history[-1].number != number:
                self.history.append(Revision(number, {}))
            key = base64.b64decode(kv["key"]).decode().removeprefix(self._prefix)
            removed = event.get("type") == "DELETE"
            value = None if removed else base64.b64decode(kv.get("value", ""))
            self.history[-1].written[key] = value
            if value is None:
                self.state.pop(key, None)
            else:
                self.state[key] = Entry(key, value, number)
            self.newest = number
        self._grew.set()


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
