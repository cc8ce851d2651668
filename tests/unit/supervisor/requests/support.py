"""Two simulated versions under load, whose requests the daemon's own classes count and compare."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple, cast
from unittest.mock import patch

from atlas_supervisor.model.judgement import ComparisonRules, Judgement
from atlas_supervisor.model.requests import FirstRequests, RequestCounts, RequestTotals
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.requests import comparison as module
from atlas_supervisor.requests.collector import RequestCollector
from atlas_supervisor.requests.comparison import Comparison
from atlas_supervisor.requests.firsts import FirstRequestCounts
from atlas_worker.contract import latency_bucket
from atlas_worker.contract.request_file import latency_class

NEW, OLD = "green-2", "blue-1"


class Version(NamedTuple):
    """What a version does with a connection's requests."""

    failing: float
    """The share of connections all of whose requests fail, but for `burst`."""
    median_ms: float = 20.0
    failed_ms: float | None = None
    """The latency of a failure; None for that of others."""


class Outcome(NamedTuple):
    """The end of a request."""

    at: float
    name: str
    second: int
    milliseconds: float
    failed: bool
    first: bool


@dataclass
class World:
    """Clients of both versions. `heavy` connections have a hundred requests, others one."""

    rng: random.Random
    new: Version
    old: Version
    rate: float = 30.0
    """Connections a second."""
    heavy: float = 0.0
    drift: Callable[[float], float] = lambda _seconds: 1.0
    """What the error rates of both are multiplied by, after so many seconds."""
    every_request: bool = False
    """Whether each request counts as evidence: wrong, to see what it costs."""
    rules: ComparisonRules = ComparisonRules()
    now: float = 1000.6
    firsts: FirstRequestCounts = field(default_factory=FirstRequestCounts)
    weight: float = 0.0
    leak: float = 0.0
    """The share of connections that get the new version without a draw."""
    failed: int = 0
    """Users' requests that the new version has failed."""

    def __post_init__(self) -> None:
        self._began = self.now
        self._totals = {name: RequestTotals() for name in (NEW, OLD)}
        self._ends: list[Outcome] = []
        self.living = {NEW, OLD}

    def totals(self, name: str) -> RequestTotals:
        """Return everything that a version has counted, as the collector does."""
        return self._totals[name].copy()

    def second(self) -> None:
        """Let clients connect for a second, and read what was counted."""
        second, seconds = int(self.now), self.now - self._began
        firsts: dict[str, dict[int, FirstRequests]] = {NEW: {}, OLD: {}}
        count = int(self.rng.gauss(self.rate, self.rate**0.5) + 0.5)
        for _ in range(max(count, 0)):
            drawn = self.rng.random() < self.weight or self.rng.random() < self.leak
            name, version = (NEW, self.new) if drawn else (OLD, self.old)
            fails = self.rng.random() < version.failing * self.drift(seconds)
            for number in range(100 if self.rng.random() < self.heavy else 1):
                self._request(name, version, second, fails=fails, number=number)
                if not number or self.every_request:
                    firsts[name].setdefault(second, FirstRequests()).begun += 1
        self.now += 1
        while self._ends and self._ends[0].at <= self.now:
            self._end(heapq.heappop(self._ends), firsts)
        self.firsts.begin(self.now, self.now, self.living)
        for name, more in firsts.items():
            if self.firsts.wants(name):
                self.firsts.add(name, more)

    def _request(
        self, name: str, version: Version, second: int, *, fails: bool, number: int
    ) -> None:
        milliseconds = version.median_ms * self.rng.lognormvariate(0, 0.6)
        if fails and version.failed_ms is not None:
            milliseconds = version.failed_ms
        at = self.now + self.rng.random() + milliseconds / 1000 - 0.6
        first = not number or self.every_request
        heapq.heappush(self._ends, Outcome(at, name, second, milliseconds, fails, first))
        self._totals[name].add(RequestTotals(RequestCounts(begun=1)))

    def _end(self, end: Outcome, firsts: dict[str, dict[int, FirstRequests]]) -> None:
        bucket = latency_bucket(end.milliseconds)
        classes = (0, int(not end.failed), 0, 0, int(end.failed))
        totals = RequestTotals(RequestCounts(classes=classes))
        totals.latency.add(bucket)
        self._totals[end.name].add(totals)
        self.failed += end.failed and end.name == NEW
        if end.first and end.milliseconds < 60_000:
            of = firsts[end.name].setdefault(end.second, FirstRequests())
            of.end(latency_class(bucket), failed=int(end.failed))

    # The daemon's side.

    def compare(self, saved: dict[str, Any] | None = None) -> Comparison:
        """Return a comparison; what is saved goes through JSON."""
        saved = json.loads(json.dumps(saved)) if saved else None
        return Comparison(cast("RequestCollector", self), new=NEW, old=OLD, saved=saved)

    def restart(self, comparison: Comparison, away: int = 3) -> Comparison:
        """Let the daemon be away for some seconds; return the next one's comparison."""
        saved = comparison.saved()
        for _ in range(away):
            self.second()
        self.firsts = FirstRequestCounts()
        return self.compare(saved)

    def looks(self, comparison: Comparison, seconds: int) -> Iterator[Judgement]:
        """Look after each second."""
        for _ in range(seconds):
            self.second()
            yield comparison.look()


@contextmanager
def clock_of(world: World) -> Iterator[None]:
    """Let comparisons read the world's clock."""
    with patch.object(module, "time", SimpleNamespace(monotonic=lambda: world.now)):
        yield


def ramped(
    world: World, shares: tuple[float, ...], seconds: int, restarts: int = 0
) -> tuple[Judgement, int]:
    """Ramp through the shares until there is a verdict; return the last look and its second.

    A `pass` does not end it, as the ramp has its steps. With `restarts`, that often on each step.
    """
    with clock_of(world):
        for _ in range(60):  # a past
            world.second()
        comparison, began = world.compare(), world.now
        last = comparison.look()
        for share in shares:
            world.weight = share
            comparison.set_weight(share)
            for part in range(restarts + 1):
                if part:
                    comparison = world.restart(comparison)
                for last in world.looks(comparison, seconds // (restarts + 1)):
                    if last.verdict is Verdict.FAIL:
                        return last, int(world.now - began)
        return last, int(world.now - began)
