"""Is this instance well? One request that must be answered, by the right instance and in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
import anyio
from pydantic import BaseModel, ConfigDict
from yarl import URL

from atlas_supervisor.model.probe import ProbeResult
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.http_client import (
    HttpExchangeError,
    HttpResponse,
    exchange,
    open_session,
)
from atlas_worker.contract import INSTANCE_HEADER, PROBE_HEADER

BODY_LIMIT = 64 * 1024
"""Bytes. Health is said in fewer words, and an endless body must end somewhere."""

INCONCLUSIVE_LIMIT = 5
"""How many probes of one gate may come to nothing, through no fault of the worker."""


@dataclass(frozen=True)
class ProbedResponse:
    """A probe together with the answer that it is about."""

    result: ProbeResult
    answer: HttpResponse | None
    """None where no whole answer came from the instance that was asked."""


Complaint = Callable[[HttpResponse], str | None]
"""Returns what an answer itself says is broken, or None."""


class GateResult(BaseModel):
    """What a row of probes found out."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    probes: list[ProbeResult]
    message: str


class HttpProber:
    """Probes workers on this machine; to be used as an async context manager."""

    def __init__(
        self, probed: Callable[[int, ProbeResult], None] = lambda _port, _result: None
    ) -> None:
        self._probed = probed
        """Told the port and the result of every probe."""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = open_session()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def probe(
        self,
        port: int,
        path: str,
        *,
        timeout_seconds: float,
        expect_instance: str | None = None,
        complaint: Complaint | None = None,
    ) -> ProbeResult:
        """Ask the worker on loopback `port`, on a connection of its own; never raises for it.

        Passes on a complete 2xx answer in time. An answer that names another instance than
        `expect_instance` fails: another program has got hold of the port. So does one with a
        `complaint`.
        """
        look = await self.look(
            port,
            path,
            timeout_seconds=timeout_seconds,
            expect_instance=expect_instance,
            complaint=complaint,
        )
        return look.result

    async def look(
        self,
        port: int,
        path: str,
        *,
        timeout_seconds: float,
        expect_instance: str | None = None,
        complaint: Complaint | None = None,
        by: URL | None = None,
    ) -> ProbedResponse:
        """Do what `probe` does, and return the answer besides.

        `by` is another address that leads to the worker; it gets the same request there.
        """
        if self._session is None:
            raise RuntimeError("HttpProber is used outside of its context")
        status, answer, excerpt = None, None, None
        own = f"127.0.0.1:{port}"
        started = time.perf_counter()
        try:
            answer = await exchange(
                self._session,
                "GET",
                f"{by.origin() if by else f'http://{own}'}{path}",
                headers={"Host": own, PROBE_HEADER: "1"},
                timeout_seconds=timeout_seconds,
                limit=BODY_LIMIT,
            )
            status = answer.status
            verdict, message = _judge(answer, complaint)
            if wrong := _wrong_instance(answer, expect_instance):
                verdict, message = Verdict.FAIL, wrong
            if verdict is not Verdict.PASS:
                excerpt = answer.excerpt or None
            if wrong:
                answer = None
        except HttpExchangeError as error:
            verdict, status, message = error.verdict, error.status, str(error)
        result = ProbeResult(
            verdict=verdict,
            status=status,
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
            message=f"port {by.port if by else port}, {path}: {message}",
            excerpt=excerpt,
        )
        self._probed(port, result)
        return ProbedResponse(result, answer)


def _wrong_instance(answer: HttpResponse, expected: str | None) -> str | None:
    instance = answer.headers.get(INSTANCE_HEADER)
    if instance is None or expected is None or instance == expected:
        return None
    return f"the wrong instance answered: {instance[:80]!r}, expected {expected!r}"


def _judge(answer: HttpResponse, complaint: Complaint | None) -> tuple[Verdict, str]:
    said = complaint(answer) if complaint else None
    if not 200 <= answer.status <= 299:
        why = f": {said}" if said else ""
        return Verdict.FAIL, f"answered {answer.status}, expected 2xx{why}"
    if answer.cut:
        return Verdict.FAIL, f"answered {answer.status} with more than {BODY_LIMIT} bytes of body"
    if said:
        return Verdict.FAIL, f"answered {answer.status}, and says that {said}"
    return Verdict.PASS, f"answered {answer.status}"


async def health_gate(
    prober: HttpProber,
    port: int,
    path: str,
    *,
    probes: int,
    interval_seconds: float,
    timeout_seconds: float,
    expect_instance: str | None = None,
    complaint: Complaint | None = None,
) -> GateResult:
    """Probe until `probes` in a row have passed; the first that fails ends it.

    A probe that came to nothing is no evidence either way and is made again, a few times in all.
    """
    results: list[ProbeResult] = []

    def seen(verdict: Verdict) -> int:
        return sum(result.verdict is verdict for result in results)

    while True:
        result = await prober.probe(
            port,
            path,
            timeout_seconds=timeout_seconds,
            expect_instance=expect_instance,
            complaint=complaint,
        )
        results.append(result)
        passed = seen(Verdict.PASS)
        if result.verdict is Verdict.FAIL:
            message = f"probe {passed + 1} of {probes} failed: {result.message}"
            return GateResult(verdict=Verdict.FAIL, probes=results, message=message)
        if passed == probes:
            message = f"{probes} of {probes} probes passed"
            return GateResult(verdict=Verdict.PASS, probes=results, message=message)
        if seen(Verdict.INCONCLUSIVE) > INCONCLUSIVE_LIMIT:
            message = f"gave up after {passed} of {probes} probes had passed: {result.message}"
            return GateResult(verdict=Verdict.INCONCLUSIVE, probes=results, message=message)
        await anyio.sleep(interval_seconds)
