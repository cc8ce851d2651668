"""Looks at the active instance: on its own port, through the public port, and at what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio
from yarl import URL

from supervisor.clock import Stopwatch
from supervisor.config import Settings
from supervisor.health.reading import complaint, read, skipped
from supervisor.model.health import Check, CheckStatus
from supervisor.model.slot import SlotName
from supervisor.model.verdict import Verdict
from supervisor.probes.http import HttpProber, Look
from supervisor.traffic.listeners import loopback_of


@dataclass(frozen=True)
class Subject:
    """The active slot at one moment, and who is in it."""

    slot: SlotName
    port: int
    instance: str | None
    """None: nobody there that serves."""
    version: str | None = None
    absence: str = ""
    """Why nobody serves, in words."""

    def is_same(self, other: Subject) -> bool:
        """Tell whether it is the same instance in the same slot."""
        return (self.slot, self.instance) == (other.slot, other.instance)


@dataclass(frozen=True)
class InstanceLook:
    """What was seen of one instance."""

    subject: Subject
    own: Look | None = None
    """None: nobody was there to be asked."""
    public: Look | None = None
    """None: there is no public port."""
    age: Stopwatch = field(default_factory=Stopwatch)


class InstanceLooks:
    """Asks an instance on both ways at once, each in `HEALTH_TIMEOUT_SECONDS` at most."""

    def __init__(self, settings: Settings, prober: HttpProber) -> None:
        self._settings = settings
        self._prober = prober
        self._public = public_url(str(settings.public_host), settings.public_port)

    async def look(self, subject: Subject) -> InstanceLook:
        """Look once; never raises for what the instance does."""
        if subject.instance is None:
            return InstanceLook(subject)
        found: dict[str, Look] = {}

        async def ask(way: str, by: URL | None) -> None:
            found[way] = await self._prober.look(
                subject.port,
                self._settings.health_path,
                timeout_seconds=self._settings.health_timeout_seconds,
                expect_instance=subject.instance,
                by=by,
            )

        async with anyio.create_task_group() as both:
            both.start_soon(ask, "own", None)
            if self._public is not None:
                both.start_soon(ask, "public", self._public)
        return InstanceLook(subject, found["own"], found.get("public"))


def public_url(host: str, port: int) -> URL | None:
    """Return where this machine reaches the public port; None if there is none."""
    return URL.build(scheme="http", host=loopback_of(host), port=port) if port else None


def worker_checks(look: InstanceLook) -> dict[str, Check]:
    """Return what the instance tells of itself."""
    if look.own is None:
        return skipped("there is no instance to ask")
    if look.own.answer is None:
        return skipped("the active instance did not answer")
    return read(look.own.answer)


def port_active(look: InstanceLook) -> Check:
    """Tell whether the active instance answers on its own port and through the public port."""
    if look.own is None:
        return _port(CheckStatus.FAIL, look.subject.absence)
    ways = [way for way in (look.own, look.public) if way is not None]
    slowest = max(way.result.duration_ms for way in ways)
    for way in ways:
        if way.answer is None:
            unsure = way.result.verdict is Verdict.INCONCLUSIVE
            return _port(CheckStatus.WARN if unsure else CheckStatus.FAIL, way.result.message)
    own = look.own
    if own.result.verdict is not Verdict.PASS:
        # What it tells of itself says more than its status: that check fails, and this one warns.
        told = own.answer is not None and complaint(own.answer)
        return _port(CheckStatus.WARN if told else CheckStatus.FAIL, own.result.message, slowest)
    where = "on its own port and the public one" if look.public else "on its own port; no other"
    return _port(CheckStatus.PASS, f"{look.subject.slot} answers {where}", slowest)


def not_seen_yet(seconds: float) -> Check:
    """Return the check of an instance that has not answered the first look yet."""
    return _port(CheckStatus.WARN, f"the active instance has not answered yet, for {seconds:.1f} s")


def _port(status: CheckStatus, message: str, value: float | None = None) -> Check:
    return Check(status=status, value=value, unit="ms", message=message)
