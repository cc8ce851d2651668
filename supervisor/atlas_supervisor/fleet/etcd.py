"""The engine that a fleet agrees in: etcd, by the JSON gateway that each of its members has.

Nothing of it is written in the documents' own terms: it stores bytes under keys. Its errors are
those of `engine`, and `outage` keeps the first of those that have not ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Self

from atlas_supervisor.config import Settings
from atlas_supervisor.fleet.engine import (
    Changes,
    Delete,
    EngineError,
    GarbledAnswerError,
    Outage,
    Put,
    RefusedByEngineError,
    Snapshot,
    Unchanged,
)
from atlas_supervisor.fleet.etcd_client import Credentials, EtcdClient, Tls
from atlas_supervisor.fleet.etcd_messages import (
    NOT_FOUND,
    HeadedRange,
    Header,
    KeyValue,
    Lease,
    Range,
    Status,
    Transaction,
    body,
    condition,
    parsed,
    parsed_line,
    span,
    write,
)
from atlas_supervisor.fleet.etcd_watch import Watch, entry
from atlas_supervisor.system import clock
from atlas_supervisor.system.secret_file import Secret, read_secret
from atlas_supervisor.system.text import keep_secret

__all__ = ["Credentials", "EtcdEngine", "Tls", "engine_of"]

_PASSWORD = Secret("password", "give the user of etcd another one")


def engine_of(settings: Settings) -> EtcdEngine:
    """Return the engine that the settings name, not yet open; they must name one.

    Raises EngineError if the password can't be read.
    """
    files = settings.fleet_etcd_ca, settings.fleet_etcd_cert, settings.fleet_etcd_key
    credentials = None
    if settings.fleet_etcd_password_file is not None:
        password = _password(settings.fleet_etcd_password_file)
        credentials = Credentials(settings.fleet_etcd_user, password)
    prefix = f"/atlas/{settings.fleet_name}/"
    return EtcdEngine(settings.fleet_etcd_endpoints, prefix, Tls(*files), credentials)


def _password(file: Path) -> str:
    """Return the password, which is masked in all logs from now on. Raises EngineError."""
    try:
        text, fault = read_secret(file, _PASSWORD)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise EngineError(f"FLEET_ETCD_PASSWORD_FILE: {file} can't be used: {reason}") from None
    if fault is not None:
        raise EngineError(f"FLEET_ETCD_PASSWORD_FILE: {file} {fault}")
    password = text.strip()
    if not password or not password.isprintable():
        raise EngineError(f"FLEET_ETCD_PASSWORD_FILE: {file} must have one line, the password")
    keep_secret([password])
    return password


@dataclass
class _Lease:
    id: int
    kept_at: float
    """By the monotonic clock, before etcd was asked: it ends no earlier than that tells."""


class EtcdEngine:
    """A cluster of etcd, of which only the keys under a prefix are used.

    `async with` opens it and connects to nothing yet, so it opens while etcd is away.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        prefix: str,
        tls: Tls | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """`prefix` ends with a slash; `endpoints` are URLs of one or more members."""
        self._client = EtcdClient(endpoints, tls=tls, credentials=credentials)
        self._prefix = prefix
        self._leases: dict[float, _Lease] = {}
        """By their time to live."""
        self._leasing = asyncio.Lock()
        self._outages: dict[str, Outage] = {}

    async def __aenter__(self) -> Self:
        """Read the certificates. Raises EngineError."""
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all connections. What was announced lapses by itself, and survives a restart."""
        await self._client.__aexit__(kind, error, trace)

    @property
    def outage(self) -> Outage | None:
        """As in `Engine`. A read does not end the outage of writes: a full etcd can be read."""
        return min(self._outages.values(), default=None)

    async def read(self, *prefixes: str) -> Snapshot:
        """As in `Engine`."""
        with self._noted("read"):
            _, snapshot = await self._read_all(prefixes)
        return snapshot

    async def read_again(self, earlier: Snapshot, *prefixes: str) -> Snapshot:
        """As in `Engine`: a thousand keys of which a few have changed cost a tenth."""
        newer = {"min_mod_revision": str(earlier.revision + 1)}
        spans = [{**span((self._prefix + prefix).encode()), **newer} for prefix in prefixes]
        content = body({"success": [{"request_range": each} for each in spans]})

        def read(answer: bytes) -> Snapshot | None:
            header, ranges = _ranges(answer, len(prefixes))
            changed = self._snapshot(header, ranges)
            counts = [each.count for each in ranges]
            return merged(earlier, changed, dict(zip(prefixes, counts, strict=True)))

        if earlier.revision:
            with self._noted("read"):
                found = await self._client.ask("/v3/kv/txn", content, read, twice=True)
            if found is not None:
                return found
        return await self.read(*prefixes)

    async def count(self, prefix: str) -> int:
        """As in `Engine`."""
        content = body({**span((self._prefix + prefix).encode()), "count_only": True})
        with self._noted("read"):
            found = await self._client.ask(
                "/v3/kv/range", content, partial(parsed, HeadedRange), twice=True
            )
        return found.count

    async def commit(self, conditions: Sequence[Unchanged], *writes: Put | Delete) -> int | None:
        """As in `Engine`."""
        with self._noted("write"):
            return await self._transact(conditions, [write(self._prefix, each) for each in writes])

    def watch(self, prefix: str) -> AsyncGenerator[Changes, None]:
        """As in `Engine`."""
        watch = Watch(self._client, self._prefix, prefix, lambda: self._read_all((prefix,)))
        return watch.changes(lambda: self._noted("read"))

    async def claim(
        self, key: str, value: bytes, *, revision: int, ttl_seconds: float
    ) -> int | None:
        """As in `Engine`. All keys with one time to live are under one lease."""
        with self._noted("write"):
            async with self._leasing:
                for is_last in (False, True):
                    lease = await self._living_lease(ttl_seconds)
                    wanted = write(self._prefix, Put(key, value), lease)
                    try:
                        return await self._transact([Unchanged(key, revision)], [wanted])
                    except RefusedByEngineError as error:
                        if is_last or error.code != NOT_FOUND:
                            raise
                    del self._leases[ttl_seconds]  # it ended just now
        raise AssertionError

    async def keep(self, *, ttl_seconds: float) -> bool:
        """As in `Engine`. It writes nothing, so a full etcd does it, too."""
        with self._noted("read"):
            async with self._leasing:
                return await self._keep_lease(ttl_seconds)

    async def members(self) -> dict[str, Status | EngineError]:
        """Ask each endpoint for itself; return its member's status, or its error."""
        return await self._client.each("/v3/maintenance/status", Status)

    async def _transact(
        self, conditions: Sequence[Unchanged], writes: Sequence[dict[str, dict[str, str]]]
    ) -> int | None:
        """Do all writes if all conditions hold; return the revision, or None if one did not."""
        compare = [condition(self._prefix, each) for each in conditions]

        def revision(answer: bytes) -> int | None:
            done = parsed(Transaction, answer)
            if not done.succeeded:
                return None
            if sum(each.is_write for each in done.responses) != len(writes):
                raise GarbledAnswerError("its transaction has more or fewer answers than writes")
            return done.header.revision

        content = body({"compare": compare, "success": writes})
        return await self._client.ask("/v3/kv/txn", content, revision, twice=False)

    async def _living_lease(self, ttl_seconds: float) -> int:
        """Return a lease that has at least half of its time left."""
        lease = self._leases.get(ttl_seconds)
        is_fresh = lease is not None and time.monotonic() - lease.kept_at < ttl_seconds / 2
        if not is_fresh and not await self._keep_lease(ttl_seconds):
            asked_at, content = time.monotonic(), body({"TTL": str(int(ttl_seconds))})
            read = partial(parsed, Lease)
            granted = await self._client.ask("/v3/lease/grant", content, read, twice=True)
            if not granted.id:
                raise GarbledAnswerError("a lease without an ID")
            self._leases[ttl_seconds] = _Lease(granted.id, asked_at)
        return self._leases[ttl_seconds].id

    async def _keep_lease(self, ttl_seconds: float) -> bool:
        """Begin a lease's time anew; return False if there is none, or not any more."""
        lease = self._leases.get(ttl_seconds)
        if lease is None:
            return False
        asked_at, content = time.monotonic(), body({"ID": str(lease.id)})
        read = partial(parsed_line, Lease)
        kept = await self._client.ask("/v3/lease/keepalive", content, read, twice=True)
        if kept.ttl <= 0:
            del self._leases[ttl_seconds]
            return False
        lease.kept_at = asked_at
        return True

    async def _read_all(self, prefixes: tuple[str, ...]) -> tuple[Header, Snapshot]:
        """Read all of one revision."""

        def one(answer: bytes) -> tuple[Header, Snapshot]:
            found = parsed(HeadedRange, answer)
            return found.header, self._snapshot(found.header, [found])

        def several(answer: bytes) -> tuple[Header, Snapshot]:
            header, ranges = _ranges(answer, len(prefixes))
            return header, self._snapshot(header, ranges)

        path, content = _reading(self._prefix, prefixes)
        read = one if len(prefixes) == 1 else several
        return await self._client.ask(path, content, read, twice=True)

    def _snapshot(self, header: Header, ranges: Sequence[Range]) -> Snapshot:
        """Return all that the ranges have; they may overlap. Raises GarbledAnswerError."""
        found: dict[bytes, KeyValue] = {kv.key: kv for part in ranges for kv in part.kvs}
        entries = tuple(entry(self._prefix, found[key]) for key in sorted(found))
        return Snapshot(header.revision, entries)

    @contextmanager
    def _noted(self, kind: str) -> Iterator[None]:
        """Note that the engine does what it is asked, or since when and why it does not."""
        try:
            yield
        except EngineError as error:
            since = self._outages[kind].since_ts if kind in self._outages else clock.now()
            self._outages[kind] = Outage(since, str(error))
            raise
        self._outages.pop(kind, None)
        if kind == "write":
            self._outages.clear()


def _ranges(answer: bytes, number: int) -> tuple[Header, list[Range]]:
    """Return the parts of a transaction that has so many reads. Raises GarbledAnswerError."""
    done = parsed(Transaction, answer)
    ranges = [each.response_range for each in done.responses if each.response_range]
    if len(ranges) != number or not done.succeeded:
        raise GarbledAnswerError("its transaction has more or fewer answers than reads")
    return done.header, ranges


def merged(earlier: Snapshot, changed: Snapshot, counts: Mapping[str, int]) -> Snapshot | None:
    """Return a snapshot with what was changed since; None if keys were removed, or it is older.

    `counts` has the number of all keys under each of its prefixes.
    """
    if changed.revision < earlier.revision:
        return None
    entries = {entry.key: entry for entry in (*earlier.entries, *changed.entries)}
    for prefix, count in counts.items():
        if sum(key.startswith(prefix) for key in entries) != count:
            return None
    return Snapshot(changed.revision, tuple(entries[key] for key in sorted(entries)))


@lru_cache(maxsize=64)
def _reading(root: str, prefixes: tuple[str, ...]) -> tuple[str, bytes]:
    """Return the path and the body of a request for all under the prefixes, in one transaction.

    A range by itself costs etcd a third less: so is the kill switch read, each second.
    """
    spans = [span((root + prefix).encode()) for prefix in prefixes]
    if len(spans) == 1:
        return "/v3/kv/range", body(spans[0])
    return "/v3/kv/txn", body({"success": [{"request_range": each} for each in spans]})
