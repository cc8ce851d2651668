"""The health probe: one request that the right instance must answer, in time, with 2xx.

The health gate of a deploy is a number of probes in a row.
"""

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
    RequestShape,
    exchange,
    explanation,
    open_session,
)
from atlas_worker.contract import INSTANCE_HEADER, PROBE_HEADER

BODY_LIMIT = 64 * 1024
"""Bytes of body that are read; a health page is shorter."""

INCONCLUSIVE_LIMIT = 5
"""How many probes of one gate may be inconclusive."""


@dataclass(frozen=True)
class ProbedResponse:
    """A probe's result together with the response."""

    result: ProbeResult
    response: HttpResponse | None
    """None where no complete response came from the expected instance."""
    answered: bool = False
    """Whether the expected instance began an HTTP response in time, of whatever status."""


Complaint = Callable[[HttpResponse], str | None]
"""Returns the failures that a response itself reports, or None."""


class GateResult(BaseModel):
    """The result of a row of probes."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    probes: list[ProbeResult]
    message: str


class HttpProber:
    """Probes workers on this machine; to be used as an async context manager."""

    def __init__(
        self,
        observe: Callable[[int, ProbeResult], None] = lambda _port, _result: None,
        shape: RequestShape | None = None,
    ) -> None:
        self._shape = shape or RequestShape()
        self._observe = observe
        """Called with the port and the result of every probe."""
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
        """Probe the worker on loopback `port`, on a new connection; never raises for its fault.

        A complete 2xx response in time passes. A response that names another instance than
        `expect_instance` fails: another program has the port. So does one with a `complaint`.
        """
        probed = await self.probe_response(
            port,
            path,
            timeout_seconds=timeout_seconds,
            expect_instance=expect_instance,
            complaint=complaint,
        )
        return probed.result

    async def probe_response(
        self,
        port: int,
        path: str,
        *,
        timeout_seconds: float,
        expect_instance: str | None = None,
        complaint: Complaint | None = None,
        via: URL | None = None,
    ) -> ProbedResponse:
        """Probe as `probe` does, and return the response as well.

        `via` is another address that leads to the worker; the same request is sent there.
        """
        if self._session is None:
            raise RuntimeError("HttpProber is used outside of its context")
        status, response, excerpt, wrong = None, None, None, None
        base = str(via.origin()) if via else self._shape.base_url(port)
        headers = self._shape.headers_for(port)
        host = headers["Host"]
        headers[PROBE_HEADER] = "1"
        started = time.perf_counter()
        try:
            response = await exchange(
                self._session,
                "GET",
                f"{base}{path}",
                headers=headers,
                timeout_seconds=timeout_seconds,
                limit=BODY_LIMIT,
            )
            status = response.status
            verdict, message = _judge(response, complaint)
            if verdict is Verdict.FAIL and (why := explanation(response, base, host)):
                message = f"{message}; {why}"
            if wrong := _wrong_instance(response, expect_instance):
                verdict, message = Verdict.FAIL, wrong
            if verdict is not Verdict.PASS:
                excerpt = response.excerpt or None
            if wrong:
                response = None
        except HttpExchangeError as error:
            verdict, status, message = error.verdict, error.status, str(error)
        result = ProbeResult(
            verdict=verdict,
            status=status,
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
            message=f"port {via.port if via else port}, {path}: {message}",
            excerpt=excerpt,
        )
        self._observe(port, result)
        return ProbedResponse(result, response, answered=status is not None and not wrong)


def _wrong_instance(response: HttpResponse, expected: str | None) -> str | None:
    instance = response.headers.get(INSTANCE_HEADER)
    if instance is None or expected is None or instance == expected:
        return None
    return f"the wrong instance answered: {instance[:80]!r}, expected {expected!r}"


def _judge(response: HttpResponse, complaint: Complaint | None) -> tuple[Verdict, str]:
    status, failures = response.status, complaint(response) if complaint else None
    if not 200 <= status <= 299:
        why = f": {failures}" if failures else ""
        return Verdict.FAIL, f"answered {status}, expected 2xx{why}"
    if response.cut:
        return Verdict.FAIL, f"answered {status} with more than {BODY_LIMIT} bytes of body"
    if failures:
        return Verdict.FAIL, f"answered {status}, and reports: {failures}"
    return Verdict.PASS, f"answered {status}"


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
    still_starting: Callable[[], bool] = lambda: False,
) -> GateResult:
    """Probe until `probes` in a row have passed; the first that fails ends it.

    An inconclusive probe is no evidence either way and is repeated, a few times in all. Before
    the first that passes, one without an answer is repeated for as long as the worker is
    `still_starting`.
    """
    results: list[ProbeResult] = []

    def count(verdict: Verdict) -> int:
        return sum(result.verdict is verdict for result in results)

    while True:
        result = await prober.probe(
            port,
            path,
            timeout_seconds=timeout_seconds,
            expect_instance=expect_instance,
            complaint=complaint,
        )
        passed, unanswered = count(Verdict.PASS), result.status is None
        if result.verdict is Verdict.FAIL and unanswered and not passed and still_starting():
            await anyio.sleep(interval_seconds)
            continue
        results.append(result)
        passed = count(Verdict.PASS)
        if result.verdict is Verdict.FAIL:
            message = f"probe {passed + 1} of {probes} failed: {result.message}"
            return GateResult(verdict=Verdict.FAIL, probes=results, message=message)
        if passed == probes:
            message = f"{probes} of {probes} probes passed"
            return GateResult(verdict=Verdict.PASS, probes=results, message=message)
        if count(Verdict.INCONCLUSIVE) > INCONCLUSIVE_LIMIT:
            message = f"gave up after {passed} of {probes} probes had passed: {result.message}"
            return GateResult(verdict=Verdict.INCONCLUSIVE, probes=results, message=message)
        await anyio.sleep(interval_seconds)
