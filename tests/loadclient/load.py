"""Runs traffic against one address until it is told to stop, and keeps the report as it grows."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from random import Random
from types import TracebackType
from typing import Self

from tests.loadclient.eventstream import EventTraffic
from tests.loadclient.report import Report, Tally
from tests.loadclient.session import Session
from tests.loadclient.traffic import Request, Traffic
from tests.loadclient.websocket import WebSocketTraffic
from tests.loadclient.wire import LostError, Reason, Response, Wire

Kind = Traffic | WebSocketTraffic | EventTraffic


class Load:
    """All loops of a mix of traffic, from `async with` on until `stop()` or its end.

    `report` may be read at any moment. Losses are findings, not exceptions; what `stop()` raises
    is a fault of the client itself. Behind a proxy (`proxied`), one connection of a client may be
    answered by several processes.
    """

    def __init__(
        self, host: str, port: int, mix: Sequence[Kind], *, seed: int = 0, proxied: bool = False
    ) -> None:
        self.report = Report({traffic.name: Tally() for traffic in mix})
        self.address = (host, port)
        self._mix = mix
        self._seed = seed
        self._proxied = proxied
        self._stopping = asyncio.Event()
        self._tokens = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._began = 0.0

    async def __aenter__(self) -> Self:
        self._began = asyncio.get_running_loop().time()
        self._tasks = [
            asyncio.create_task(self._client(kind, n))
            for kind in self._mix
            for n in range(kind.loops)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            await self.stop()
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def seconds(self) -> float:
        """The time since the load began, as losses have it."""
        return asyncio.get_running_loop().time() - self._began

    async def stop(self) -> Report:
        """Let every request in flight end, close all connections and return the report."""
        self._stopping.set()
        await asyncio.wait(self._tasks)
        for task in self._tasks:
            task.result()
        return self.report

    async def _client(self, kind: Kind, number: int) -> None:
        session = Session(
            kind.name,
            number,
            *self.address,
            tally=self.report.kinds[kind.name],
            random=Random(f"{self._seed}/{kind.name}/{number}"),  # noqa: S311 - load is no secret
            tokens=self._tokens,
            stopping=self._stopping,
            began=self._began,
        )
        if isinstance(kind, Traffic):
            await http_client(kind, session, proxied=self._proxied)
        else:
            await kind.client(session)


async def http_client(traffic: Traffic, session: Session, *, proxied: bool) -> None:
    """Behave as one client: a request at a time, on one connection as long as it may."""
    tally, random = session.tally, session.random
    wire: Wire | None = None
    who = ""
    try:
        while not session.stopping.is_set():
            if wire is not None and not await wire.reusable():
                tally.idle_closes += 1
                wire.close()
                wire = None
            if wire is None:
                wire, who = Wire(), ""
                tally.connections += 1
            request = traffic.request(session.token(), random)
            try:
                before = "" if proxied else who
                who, closes = await one(traffic, session, request, wire, before)
                tally.announced_closes += closes and traffic.keep_alive
                keep = traffic.keep_alive and not closes
            except LostError as error:
                await session.lose(request.token, error, wire.exchanges)
                keep = False
            if not keep:
                wire.close()
                wire = None
            await session.think(random.uniform(*traffic.think))
    finally:
        if wire is not None:
            wire.close()


async def one(
    traffic: Traffic, session: Session, request: Request, wire: Wire, before: str
) -> tuple[str, bool]:
    """Send one request; return who answered, and whether the connection ends with it."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    session.tally.sent += 1
    try:
        async with asyncio.timeout(traffic.timeout):
            if not wire.connected:
                await wire.connect(session.host, session.port)
            response = await wire.exchange(request.head, request.pieces, request.pause)
    except TimeoutError:
        raise LostError(Reason.TIMEOUT, f"after {traffic.timeout} s") from None
    who = judged(traffic, request, response, before)
    session.answered(who, loop.time() - began)
    return who, response.closes


def judged(traffic: Traffic, request: Request, response: Response, before: str) -> str:
    """Return who gave this right answer; raises `LostError` if it is none.

    A connection ends in one process: an answer from another one on it is somebody else's.
    """
    who = traffic.check(request, response)
    if before and who != before:
        raise LostError(Reason.WRONG_BODY, f"{who} answered on a connection of {before}")
    return who
