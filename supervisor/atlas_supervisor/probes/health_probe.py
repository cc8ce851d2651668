"""The health probe: one request that the right instance must answer, in time, with 2xx.

The health gate of a deploy is a number of probes in a row. There it counts, too, what the worker
reports in its answer: ADR 0006. Any program may answer, so a reported check that can't be
understood is skipped.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
import anyio
from pydantic import BaseModel
from yarl import URL

from atlas_supervisor.model.health import Check, CheckStatus
from atlas_supervisor.model.probe import ProbeResult
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.model.worker_text import quoted
from atlas_supervisor.probes.http_client import (
    HttpExchangeError,
    HttpResponse,
    RequestShape,
    exchange,
    explanation,
    open_session,
    printable,
)
from atlas_worker.contract import INSTANCE_HEADER, PROBE_HEADER

BODY_LIMIT = 64 * 1024
"""Bytes of body that are read; a health page is shorter."""

INCONCLUSIVE_LIMIT = 5
"""How many probes of one gate may be inconclusive."""

REPORTED = ("llm_latency", "scheduler", "memory", "db_integrity")
"""Checks that only the worker can make; nothing else of its answer is read."""

GATE_CHECKS = ("scheduler", "memory", "db_integrity")
"""Checks whose failure fails a deploy: ADR 0006."""

MESSAGE_LIMIT = 200
"""Characters that are kept of a worker's text."""
_UNIT = re.compile(r"[A-Za-z%µ°/]{1,8}")


@dataclass(frozen=True)
class ProbedResponse:
    """A probe's result together with the response."""

    result: ProbeResult
    response: HttpResponse | None
    """None where no complete response came from the expected instance."""
    answered: bool = False
    """Whether the expected instance began an HTTP response in time, of any status."""


class GateResult(BaseModel, frozen=True):
    """The result of a row of probes."""

    verdict: Verdict
    probes: list[ProbeResult]
    message: str


class HttpProber:
    """Probes workers on this machine; to be used as an async context manager."""

    def __init__(
        self,
        observe: Callable[[int, ProbeResult], None] = lambda _port, _result: None,
        *,
        shape: RequestShape | None = None,
        reach: Callable[[int], int] = lambda port: port,
    ) -> None:
        self._shape = shape or RequestShape()
        self._observe = observe
        """Called with the port and the result of every probe."""
        self._reach = reach
        """Returns the port to connect to for a worker's own port."""
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
        gate: bool = False,
    ) -> ProbeResult:
        """Probe the worker on loopback `port`, on a new connection; never raises for its fault.

        A complete 2xx response in time passes. A response that names another instance than
        `expect_instance` fails: another program has the port. At the `gate`,
        so does one that reports a failed check.
        """
        probed = await self.probe_response(
            port,
            path,
            timeout_seconds=timeout_seconds,
            expect_instance=expect_instance,
            gate=gate,
        )
        return probed.result

    async def probe_response(
        self,
        port: int,
        path: str,
        *,
        timeout_seconds: float,
        expect_instance: str | None = None,
        gate: bool = False,
        via: URL | None = None,
    ) -> ProbedResponse:
        """Probe as `probe` does, and return the response as well.

        `via` is another address that leads to the worker; the same request is sent there.
        """
        if self._session is None:
            raise RuntimeError("HttpProber is used outside of its context")
        status, response, excerpt, wrong = None, None, None, None
        base = str(via.origin()) if via else self._shape.base_url(self._reach(port))
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
            verdict, message = _judge(response, complaint(response) if gate else None)
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
    shown = quoted(repr(printable(instance)[:80]))
    return f"the wrong instance answered: {shown}, expected {expected!r}"


def _judge(response: HttpResponse, failures: str | None) -> tuple[Verdict, str]:
    status = response.status
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
            gate=True,
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


# The worker's own checks.


def reported_checks(answer: HttpResponse) -> dict[str, Check]:
    """Return every check of `REPORTED`; those that are missing in the answer are skipped."""
    reported = _checks(answer)
    return {name: _check(name, reported.get(name)) for name in REPORTED}


def complaint(answer: HttpResponse) -> str | None:
    """Return the failed checks of `GATE_CHECKS` that the answer reports, in words; None if none."""
    found = reported_checks(answer)
    failed = [name for name in GATE_CHECKS if found[name].status is CheckStatus.FAIL]
    return "; ".join(f"{name} failed: {found[name].message}" for name in failed) or None


def skipped(why: str) -> dict[str, Check]:
    """Return every check of `REPORTED` as skipped, for this reason."""
    return {name: Check(status=CheckStatus.SKIPPED, message=why) for name in REPORTED}


def _checks(answer: HttpResponse) -> dict[str, Any]:
    if answer.cut:
        return {}
    try:
        # NaN and infinities are not JSON, but many programs write them; here they are no value.
        body = json.loads(answer.body, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {}
    checks = body.get("checks") if isinstance(body, dict) else None
    return checks if isinstance(checks, dict) else {}


def _check(name: str, reported: Any) -> Check:
    if reported is None:
        return Check(status=CheckStatus.SKIPPED, message="not reported by the worker")
    word = reported.get("status") if isinstance(reported, dict) else None
    if not isinstance(word, str) or word not in set(CheckStatus):
        why = f"the worker's answer has no readable {name}"
        return Check(status=CheckStatus.SKIPPED, message=why)
    message = _line(reported.get("message"), MESSAGE_LIMIT)
    return Check(
        status=CheckStatus(word),
        value=_number(reported.get("value")),
        unit=_unit(reported.get("unit")),
        message=quoted(message) if message else "",
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _unit(text: Any) -> str | None:
    """Return a unit; None for anything longer, which is shown to callers that may not read logs."""
    return text if isinstance(text, str) and _UNIT.fullmatch(text) else None


def _line(text: Any, limit: int) -> str:
    """Return the text's beginning as one printable line; an empty one for anything but text."""
    if not isinstance(text, str):
        return ""
    line = printable(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"
