"""A real server on real sockets, in front of a daemon in memory."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anyio.lowlevel

from atlas_supervisor.api import audit, examples
from atlas_supervisor.api.options import ApiOptions
from atlas_supervisor.api.ports import Control
from atlas_supervisor.api.server import bind, serve
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.logs.log_service import LogService
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.audit import AuditEntry, Verification
from atlas_supervisor.model.deploy import (
    DeployRecord,
    EventFeed,
    Mode,
    PublishedEvent,
    Result,
    Transition,
)
from atlas_supervisor.model.health import Health
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.ramp import RampAction, RampView
from atlas_supervisor.model.release import EarlierVersions, ReleaseView
from atlas_supervisor.model.requests import RequestHour
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.status import HoldView, ReloadView, SplitView, Status
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.workers.output import WorkerLog
from tests.harness import free_ports
from tests.unit.supervisor.api.fakes import PlayedCanaries, PlayedFleet

TOKEN = "a-token-hard-to-guess"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class MemoryFeed:
    """A feed that the test fills."""

    after: int | None
    deploy_id: str | None
    resumes_at: int | None = 7
    reset: str | None = None
    waiting: asyncio.Queue[PublishedEvent | Exception | None] = field(default_factory=asyncio.Queue)
    closed: bool = False

    def tell(self, transition_id: int | None, **changes: Any) -> None:
        event = examples.EVENT.model_copy(update=changes)
        self.waiting.put_nowait(PublishedEvent(event, id=transition_id))

    async def next(self) -> PublishedEvent | None:
        recorded = None if self.closed else await self.waiting.get()
        if isinstance(recorded, Exception):
            raise recorded
        return recorded

    def ready(self) -> PublishedEvent | None:
        return None  # each event comes by itself

    def close(self) -> None:
        self.closed = True
        self.waiting.put_nowait(None)


@dataclass
class MemoryControl:
    """A daemon without workers that records requests and answers as the test sets it up."""

    outcome: DeployRecord = examples.SWITCHED
    refusal: RefusedError | None = None
    bug: Exception | None = None
    is_ready: bool = True
    mode: Mode | None = None
    health: Health = examples.HEALTH
    asked: list[tuple[str, Any, Actor]] = field(default_factory=list)
    keys: list[IdempotencyKey | None] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    records: dict[str, DeployRecord] = field(default_factory=dict)
    feeds: list[MemoryFeed] = field(default_factory=list)
    prepare: Callable[[MemoryFeed], None] | None = None
    canaries: PlayedCanaries = field(default_factory=PlayedCanaries)
    fleet: PlayedFleet | None = field(default_factory=PlayedFleet)

    def __post_init__(self) -> None:
        self.go_on.set()

    def status(self) -> Status:
        if self.bug:
            raise self.bug
        return examples.STATUS.model_copy(update={"mode": self.mode} if self.mode else {})

    async def first_checks(self) -> None:
        pass

    async def report(self) -> Health:
        return self.health

    def ready(self) -> bool:
        return self.is_ready

    async def deploy(
        self, *, release: str | None, dry_run: bool, actor: Actor, key: IdempotencyKey | None = None
    ) -> DeployRecord:
        self.keys.append(key)
        self.asked.append(("deploy", (release, dry_run), actor))
        if self.refusal and self.refusal.code != "switch_failed":
            raise self.refusal
        return examples.STARTED

    async def settled(self, deploy_id: str) -> DeployRecord:
        return await self._come_out()

    async def switch(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        self.asked.append(("switch", None, actor))
        return await self._come_out()

    async def abort(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        self.asked.append(("abort", None, actor))
        return await self._come_out()

    async def rollback(
        self,
        actor: Actor,
        key: IdempotencyKey | None = None,
        *,
        version: str | None = None,
        fast: bool = False,
    ) -> DeployRecord:
        self.asked.append(("rollback", (version, fast) if version or fast else None, actor))
        return await self._come_out()

    async def earlier(self, *, thorough: bool) -> EarlierVersions:
        return examples.EARLIER

    async def set_mode(self, mode: Mode, actor: Actor, key: IdempotencyKey | None = None) -> None:
        self.asked.append(("mode", mode, actor))
        self.mode = mode

    def view(self) -> SplitView:
        if self.refusal:
            raise self.refusal
        return examples.SPLIT

    async def ramp(
        self, action: RampAction, actor: Actor, _key: IdempotencyKey | None = None
    ) -> RampView:
        self.asked.append(("ramp", action, actor))
        if self.refusal:
            raise self.refusal
        return examples.RAMP

    async def set_weight(self, weight: float, actor: Actor) -> SplitView:
        self.asked.append(("traffic", weight, actor))
        if self.refusal:
            raise self.refusal
        return examples.SPLIT.model_copy(update={"staging_weight": weight})

    async def hold(self, max_seconds: float, actor: Actor) -> HoldView:
        self.asked.append(("hold", max_seconds, actor))
        if self.refusal:
            raise self.refusal
        return examples.HOLD

    async def release(self, actor: Actor, hold_id: str | None = None) -> HoldView:
        self.asked.append(("release", hold_id, actor))
        if self.refusal:
            raise self.refusal
        return examples.HOLD

    async def reload(self, actor: Actor) -> ReloadView:
        self.asked.append(("reload", None, actor))
        if self.refusal:
            raise self.refusal
        return examples.RELOAD

    async def releases(self, *, with_git: bool) -> list[ReleaseView]:
        return [examples.RELEASE.model_copy(update={"version": "git" if with_git else None})]

    async def history(self, limit: int) -> list[DeployRecord]:
        return list(self.records.values())[:limit]

    async def last_hour(self) -> RequestHour:
        return examples.REQUEST_HOUR

    async def transitions(self, deploy_id: str) -> list[Transition]:
        return [examples.TRANSITION]

    async def events(self, *, after: int | None, deploy_id: str | None) -> EventFeed:
        if self.refusal:
            raise self.refusal
        self.feeds.append(MemoryFeed(after=after, deploy_id=deploy_id))
        if self.prepare:
            self.prepare(self.feeds[-1])
        return self.feeds[-1]

    async def find(self, deploy_id: str) -> DeployRecord | None:
        return self.records.get(deploy_id)

    async def _come_out(self) -> DeployRecord:
        self.started.set()
        await self.go_on.wait()
        self.ended.set()
        if self.refusal:
            raise self.refusal
        return self.outcome


@dataclass
class MemoryAudit:
    """An audit trail in memory."""

    written: list[AuditEntry] = field(default_factory=list)
    recorded: list[tuple[Actor, str, str, dict[str, Any]]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    found: Verification = audit.VERIFIED

    async def entries(self, **asked: Any) -> list[AuditEntry]:
        self.asked.append(asked)
        return self.written

    async def verify(self) -> Verification:
        return self.found

    def enqueue(
        self, actor: Actor, action: str, outcome: str, *, subject: str | None = None, **detail: Any
    ) -> None:
        self.recorded.append((actor, action, outcome, detail))

    async def record(self, actor: Actor, action: str, outcome: str, **more: Any) -> None:
        self.recorded.append((actor, action, outcome, more))
        entry = {"actor": actor.name, "action": action, "outcome": outcome, **more}
        self.written.insert(0, audit.ENTRY.model_copy(update=entry))


@dataclass
class MemoryMetrics:
    """Constant metrics that record the counted answers."""

    counted: list[tuple[str, str, int, float | None]] = field(default_factory=list)

    async def text(self) -> bytes:
        return b"atlas_ready 1.0\n"

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        self.counted.append((method, route, status, seconds))


def with_result(result: Result | None) -> DeployRecord:
    return examples.SWITCHED.model_copy(update={"result": result, "reason": "so it is"})


def free_port() -> int:
    (port,) = free_ports(1)
    return port


async def eventually(true: Callable[[], bool]) -> None:
    """Wait until the condition holds; the caller's time-out is the deadline."""
    while not true():  # noqa: ASYNC110 # the condition has no event
        await asyncio.sleep(0.01)


@dataclass
class Answer:
    """An answer, as far as tests use it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        code: str = self.json["error"]["code"]
        return code


@dataclass
class Server:
    """A running server, and ways to send requests to it."""

    control: MemoryControl
    options: ApiOptions
    audit: MemoryAudit = field(default_factory=MemoryAudit)
    metrics: MemoryMetrics = field(default_factory=MemoryMetrics)
    sockets: dict[str, socket.socket] = field(default_factory=dict)
    stopped: Callable[[], Awaitable[object]] = anyio.lowlevel.checkpoint
    """Called once the API has stopped, and before its sockets are closed."""

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.options.port}"

    async def tcp(self, method: str, target: str, **kwargs: Any) -> Answer:
        """Send a request over TCP by a real client."""
        async with aiohttp.ClientSession() as session:
            return await _send(session, method, f"http://{self.authority}{target}", **kwargs)

    async def unix(self, method: str, target: str, **kwargs: Any) -> Answer:
        """Send a request over the Unix socket by a real client."""
        connector = aiohttp.UnixConnector(str(self.options.socket_path))
        async with aiohttp.ClientSession(connector=connector) as session:
            return await _send(session, method, f"http://daemon{target}", **kwargs)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes over TCP, and return the whole answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.options.port)
        try:
            writer.write(data)
            return await read_all(reader)
        finally:
            writer.close()

    async def head(self, *lines: str, body: bytes = b"") -> Answer:
        """Send a request of these lines (Host and all are the test's) and return its answer."""
        wire = "\r\n".join([*lines, "Connection: close", "", ""]).encode("utf-8", "surrogateescape")
        return parse(await self.raw(wire + body))


async def _send(session: aiohttp.ClientSession, method: str, url: str, **kwargs: Any) -> Answer:
    async with session.request(method, url, allow_redirects=False, **kwargs) as response:
        return Answer(response.status, dict(response.headers), await response.read())


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Return all bytes up to the end or to a reset."""
    data = bytearray()
    try:
        while chunk := await reader.read(65536):
            data += chunk
    except ConnectionError:
        pass  # an unread request is reset after its answer
    return bytes(data)


def parse(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(status_line.split()[1]), headers, body)


@asynccontextmanager
async def running(
    folder: Path,
    control: MemoryControl | None = None,
    logs: LogService | None = None,
    passed: PassedSockets | None = None,
    **changes: Any,
) -> AsyncIterator[Server]:
    """Run a server on a free port and a socket in `folder`; `changes` are to its options.

    `passed` are sockets of a server before.
    """
    given: dict[str, Any] = {
        "socket_path": folder / "supervisor.sock",
        "token": TOKEN,
        "token_file": folder / "control.token",
        "version": "1.2.3",
        "port": free_port(),
        "shutdown_seconds": 0.5,
        "own_uid": os.geteuid(),
        **changes,
    }
    server = Server(control or MemoryControl(), ApiOptions(**given))
    workers = {name: WorkerLog(folder / f"worker-{name}.log", name) for name in SlotName}
    logs = logs or LogService(folder / "supervisor.jsonl", workers)
    parts = Control(
        deploys=server.control,
        queries=server.control,
        traffic=server.control,
        requests=server.control,
        holds=server.control,
        reloads=server.control,
        canary=server.control.canaries,
        fleet=server.control.fleet,
        health=server.control,
        audit=server.audit,
        trail=server.audit,
        logs=logs,
        metrics=server.metrics,
    )
    async with bind(server.options, passed) as bound:
        server.sockets = bound.sockets
        async with serve(parts, server.options, bound):
            yield server
        await server.stopped()
