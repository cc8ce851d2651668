"""Checks the active worker: on its own port, through the public port, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
from yarl import URL

from atlas_supervisor.config import Settings
from atlas_supervisor.model.health import Check, CheckStatus
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import (
    HttpProber,
    ProbedResponse,
    complaint,
    reported_checks,
    skipped,
)
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.traffic.listeners import loopback_of


@dataclass(frozen=True)
class ActiveWorker:
    """The active slot at one moment, and its worker."""

    slot: SlotName
    port: int
    instance: str | None
    """None if no worker serves."""
    version: str | None = None
    absence: str = ""
    """Why no worker serves, in words."""
    problem: str | None = None
    """Why it is not what was deployed, in words."""

    def is_same(self, other: ActiveWorker) -> bool:
        """Return whether it is the same instance in the same slot."""
        return (self.slot, self.instance) == (other.slot, other.instance)


@dataclass(frozen=True)
class WorkerReading:
    """The result of checking one instance; reports repeat it until the next check."""

    subject: ActiveWorker
    checks: dict[str, Check]
    age: Stopwatch | None = None
    """None if there was no worker to check."""


class WorkerChecks:
    """Requests the health page on both ways at once, each in `HEALTH_TIMEOUT_SECONDS` at most."""

    def __init__(self, settings: Settings, prober: HttpProber) -> None:
        self._settings = settings
        self._prober = prober
        self._public = public_url(
            settings.health_scheme, str(settings.public_host), settings.public_port
        )

    async def check(
        self, subject: ActiveWorker, *, held: bool = False, split: bool = False
    ) -> WorkerReading:
        """Check once; never raises for what the instance does.

        While new connections are `held`, its own port shows all that can be seen. While they are
        `split`, either instance may answer on the public port.
        """
        if subject.instance is None:
            return no_worker(subject)
        found: dict[str, ProbedResponse] = {}

        async def ask(way: str, via: URL | None) -> None:
            found[way] = await self._prober.probe_response(
                subject.port,
                self._settings.health_path,
                timeout_seconds=self._settings.health_timeout_seconds,
                expect_instance=None if split and via is not None else subject.instance,
                via=via,
            )

        async with anyio.create_task_group() as both:
            both.start_soon(ask, "own", None)
            if self._public is not None and not held:
                both.start_soon(ask, "public", self._public)
        own, public = found["own"], found.get("public")
        if own.response:
            reported = reported_checks(own.response)
        else:
            reported = skipped("the active instance did not answer")
        checks = {**reported, "port_active": port_active(subject, own, public, held=held)}
        return WorkerReading(subject, checks, Stopwatch())


def public_url(scheme: str, host: str, port: int) -> URL | None:
    """Return where this machine reaches the public port; None if there is none."""
    return URL.build(scheme=scheme, host=loopback_of(host), port=port) if port else None


def no_worker(subject: ActiveWorker) -> WorkerReading:
    """Return the result where no worker serves."""
    checks = skipped("there is no instance to ask")
    return WorkerReading(
        subject, {**checks, "port_active": _port(CheckStatus.FAIL, subject.absence)}
    )


def not_checked_yet(subject: ActiveWorker, seconds: float, *, fresh: bool) -> WorkerReading:
    """Return the result for an instance whose first check is still running.

    A `fresh` instance became ready a moment ago, so that is not held against it.
    """
    status = CheckStatus.SKIPPED if fresh else CheckStatus.WARN
    checks = skipped("the active instance has not been checked yet")
    message = f"the active instance has not answered yet, for {seconds:.1f} s"
    return WorkerReading(subject, {**checks, "port_active": _port(status, message)})


def port_active(
    subject: ActiveWorker,
    own: ProbedResponse,
    public: ProbedResponse | None,
    *,
    held: bool = False,
) -> Check:
    """Return whether the active worker answers on its own port and through the public port.

    `public` is None where there is no public port, or while new connections are held.
    """
    ways = [way for way in (own, public) if way is not None]
    slowest = max(way.result.duration_ms for way in ways)
    for way in ways:
        if way.response is None:
            unsure = way.result.verdict is Verdict.INCONCLUSIVE
            return _port(CheckStatus.WARN if unsure else CheckStatus.FAIL, way.result.message)
    if own.result.verdict is not Verdict.PASS:
        # The checks that it reports say more than its status: they fail, and this one warns.
        explained = own.response is not None and complaint(own.response)
        status = CheckStatus.WARN if explained else CheckStatus.FAIL
        return _port(status, own.result.message, slowest)
    if subject.problem is not None:
        return _port(CheckStatus.WARN, subject.problem, slowest)
    where = "on its own port and the public one" if public else "on its own port; no other"
    if held:
        where = "on its own port; new connections are held"
    return _port(CheckStatus.PASS, f"{subject.slot} answers {where}", slowest)


def _port(status: CheckStatus, message: str, value: float | None = None) -> Check:
    return Check(status=status, value=value, unit="ms", message=message)
