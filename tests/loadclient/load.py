"""Runs traffic against one address until it is told to stop, and keeps the report as it grows."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from random import Random
from types import TracebackType
from typing import Self

from tests.loadclient.report import Loss, Report, Tally
from tests.loadclient.traffic import Request, Traffic
from tests.loadclient.wire import LostError, Reason, Response, Wire

# A client that is refused does not hammer; the server is given this long, in seconds.
PAUSE_AFTER_LOSS = 0.01


class Load:
    """All loops of a mix of traffic, from `async with` on until `stop()` or its end.

    `report` may be read at any moment. Losses are findings, not exceptions; what `stop()` raises
    is a fault of the client itself.
    """

    def __init__(self, host: str, port: int, mix: Sequence[Traffic], *, seed: int = 0) -> None:
        self.report = Report({traffic.name: Tally() for traffic in mix})
        self._address = (host, port)
        self._mix = mix
        self._seed = seed
        self._stopping = asyncio.Event()
        self._tokens = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._began = 0.0

    async def __aenter__(self) -> Self:
        self._began = asyncio.get_running_loop().time()
        self._tasks = [
            asyncio.create_task(self._client(traffic, self._random(f"{traffic.name}/{n}")))
            for traffic in self._mix
            for n in range(traffic.loops)
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

    async def stop(self) -> Report:
        """Let every request in flight end, close all connections and return the report."""
        self._stopping.set()
        await asyncio.wait(self._tasks)
        for task in self._tasks:
            task.result()
        return self.report

    def _random(self, client: str) -> Random:
        return Random(f"{self._seed}/{client}")  # noqa: S311 - load is no secret

    async def _client(self, traffic: Traffic, random: Random) -> None:
        """Behave as one client: a request at a time, on one connection as long as it may."""
        tally = self.report.kinds[traffic.name]
        wire: Wire | None = None
        who = ""
        try:
            while not self._stopping.is_set():
                if wire is not None and not await wire.reusable():
                    tally.idle_closes += 1
                    wire.close()
                    wire = None
                if wire is None:
                    wire, who = Wire(), ""
                    tally.connections += 1
                request = traffic.request(f"t{next(self._tokens)}", random)
                try:
                    who, closes = await self._one(traffic, tally, request, wire, who)
                    tally.announced_closes += closes and traffic.keep_alive
                    keep = traffic.keep_alive and not closes
                except LostError as error:
                    now = asyncio.get_running_loop().time() - self._began
                    loss = (request.token, error.reason, error.detail, wire.exchanges)
                    tally.losses.append(Loss(now, traffic.name, *loss))
                    keep = False
                    await asyncio.sleep(PAUSE_AFTER_LOSS)
                if not keep:
                    wire.close()
                    wire = None
                await self._think(random.uniform(*traffic.think))
        finally:
            if wire is not None:
                wire.close()

    async def _one(
        self, traffic: Traffic, tally: Tally, request: Request, wire: Wire, before: str
    ) -> tuple[str, bool]:
        """Send one request; return who answered, and whether the connection ends with it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        tally.sent += 1
        try:
            async with asyncio.timeout(traffic.timeout):
                if not wire.connected:
                    await wire.connect(*self._address)
                response = await wire.exchange(request.head, request.pieces, request.pause)
        except TimeoutError:
            raise LostError(Reason.TIMEOUT, f"after {traffic.timeout} s") from None
        who = judged(traffic, request, response, before)
        tally.answered += 1
        tally.answered_by[who] += 1
        tally.latencies.append((loop.time() - began) * 1000)
        return who, response.closes

    async def _think(self, seconds: float) -> None:
        if not seconds:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


def judged(traffic: Traffic, request: Request, response: Response, before: str) -> str:
    """Return who gave this right answer; raises `LostError` if it is none.

    A connection ends in one process: an answer from another one on it is somebody else's.
    """
    who = traffic.check(request, response)
    if before and who != before:
        raise LostError(Reason.WRONG_BODY, f"{who} answered on a connection of {before}")
    return who
