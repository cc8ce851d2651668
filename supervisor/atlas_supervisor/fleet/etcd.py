"""The engine that a fleet agrees in: etcd, by the JSON gateway that each of its members has.

Nothing of it is written in the documents' own terms: it stores bytes under keys. Its errors are
those of `engine`, and `outage` keeps the first of those that have not ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
    Headed,
    HeadedRange,
    Header,
    KeyValue,
    Lease,
    Range,
    Status,
    Transaction,
    body,
    condition,
    encoded,
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
        self._leases: dict[float, int] = {}
        self._announcing = asyncio.Lock()
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

    async def commit(self, conditions: Sequence[Unchanged], *writes: Put | Delete) -> int | None:
        """As in `Engine`."""
        content = body(
            {
                "compare": [condition(self._prefix, each) for each in conditions],
                "success": [write(self._prefix, each) for each in writes],
            }
        )

        def revision(answer: bytes) -> int | None:
            done = parsed(Transaction, answer)
            if not done.succeeded:
                return None
            if sum(each.is_write for each in done.responses) != len(writes):
                raise GarbledAnswerError("its transaction has more or fewer answers than writes")
            return done.header.revision

        with self._noted("write"):
            return await self._client.ask("/v3/kv/txn", content, revision, twice=False)

    def watch(self, prefix: str) -> AsyncGenerator[Changes, None]:
        """As in `Engine`."""
        watch = Watch(self._client, self._prefix, prefix, lambda: self._read_all((prefix,)))
        return watch.changes(lambda: self._noted("read"))

    async def announce(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        """As in `Engine`. All keys with one time to live are under one lease."""
        with self._noted("write"):
            async with self._announcing:
                await self._renew_lease(ttl_seconds)
                try:
                    await self._put_leased(key, value, ttl_seconds)
                except RefusedByEngineError as error:
                    if error.code != NOT_FOUND:
                        raise
                    del self._leases[ttl_seconds]  # it ended just now
                    await self._renew_lease(ttl_seconds)
                    await self._put_leased(key, value, ttl_seconds)

    async def members(self) -> dict[str, Status | EngineError]:
        """Ask each endpoint for itself; return its member's status, or its error."""
        return await self._client.each("/v3/maintenance/status", Status)

    async def _put_leased(self, key: str, value: bytes, ttl_seconds: float) -> None:
        content = {
            "key": encoded((self._prefix + key).encode()),
            "value": encoded(value),
            "lease": str(self._leases[ttl_seconds]),
        }
        await self._client.ask("/v3/kv/put", body(content), partial(parsed, Headed), twice=True)

    async def _renew_lease(self, ttl_seconds: float) -> None:
        """Keep the lease, or take a new one if there is none, or the old one has ended."""
        if lease := self._leases.get(ttl_seconds):
            path, content = "/v3/lease/keepalive", body({"ID": str(lease)})
            kept = await self._client.ask(path, content, partial(parsed_line, Lease), twice=True)
            if kept.ttl > 0:
                return
        content = body({"TTL": str(int(ttl_seconds))})
        read = partial(parsed, Lease)
        granted = await self._client.ask("/v3/lease/grant", content, read, twice=True)
        if not granted.id:
            raise GarbledAnswerError("a lease without an ID")
        self._leases[ttl_seconds] = granted.id

    async def _read_all(self, prefixes: Sequence[str]) -> tuple[Header, Snapshot]:
        """Read in one transaction, which makes it one revision.

        A range by itself costs etcd a third less: so is the kill switch read, each second.
        """
        spans = [span((self._prefix + prefix).encode()) for prefix in prefixes]

        def one(answer: bytes) -> tuple[Header, Snapshot]:
            found = parsed(HeadedRange, answer)
            return found.header, self._snapshot(found.header, [found])

        def several(answer: bytes) -> tuple[Header, Snapshot]:
            done = parsed(Transaction, answer)
            ranges = [each.response_range for each in done.responses if each.response_range]
            if len(ranges) != len(prefixes) or not done.succeeded:
                raise GarbledAnswerError("its transaction has more or fewer answers than reads")
            return done.header, self._snapshot(done.header, ranges)

        if len(spans) == 1:
            return await self._client.ask("/v3/kv/range", body({**spans[0]}), one, twice=True)
        content = body({"success": [{"request_range": each} for each in spans]})
        return await self._client.ask("/v3/kv/txn", content, several, twice=True)

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
