"""Simulated versions, whose requests the daemon's own classes count, compare and judge."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any, NamedTuple, cast
from unittest.mock import patch

from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.judgement import ComparisonRules, Judgement
from atlas_supervisor.model.requests import FirstRequests, RequestCounts, RequestTotals
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.requests import comparison as module
from atlas_supervisor.requests.addresses import AddressCounts
from atlas_supervisor.requests.collector import RequestCollector
from atlas_supervisor.requests.comparison import Comparison
from atlas_supervisor.requests.firsts import FirstRequestCounts
from atlas_supervisor.requests.old_record import OldRecord, RecordEvidence, Tally
from atlas_worker.contract import SLOWEST_BUCKET, latency_bucket
from atlas_worker.contract.request_file import ADDRESS_FAILED, latency_class

NEW, OLD = "green-2", "blue-1"
_RULES = ComparisonRules()


class Version(NamedTuple):
    """What a version does with a connection's requests."""

    failing: float
    """The share of connections whose requests fail."""
    median_ms: float = 20.0
    failed_ms: float | None = None
    """The latency of a failure; None for that of others."""


class Outcome(NamedTuple):
    """The end of a connection's requests, of which the first may be evidence."""

    at: float
    name: str
    second: int
    bucket: int
    failed: bool
    requests: int
    evidence: int


_SPREAD = [NormalDist(0, 0.6).inv_cdf((at + 0.5) / 997) for at in range(997)]
"""Logarithms of latencies around the median."""


@dataclass
class World:
    """Clients of both versions.

    `heavy` connections have a hundred requests, others one. All of a connection fail, or none.
    """

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
    rules: ComparisonRules = _RULES
    now: float = 1000.6
    firsts: FirstRequestCounts = field(default_factory=FirstRequestCounts)
    weight: float = 0.0
    leak: float = 0.0
    """The share of connections that get the new version without a draw."""
    uncounted: str = ""
    """The version that counts no first requests."""
    failed: int = 0
    """Users' requests that the new version has failed."""

    def __post_init__(self) -> None:
        self._began = self.now
        self._totals = {name: RequestTotals() for name in (NEW, OLD)}
        self._ends: list[Outcome] = []
        self.living = {NEW, OLD}

    def totals(self, name: str) -> RequestTotals | None:
        """Return everything that a version has counted, as the collector does."""
        return self._totals[name].copy() if name in self._totals else None

    def second(self) -> None:
        """Let clients connect for a second, and read what was counted."""
        rng, second, seconds = self.rng, int(self.now), self.now - self._began
        firsts: dict[str, dict[int, FirstRequests]] = {NEW: {}, OLD: {}}
        begun = dict.fromkeys((NEW, OLD), 0)
        for _ in range(max(int(rng.gauss(self.rate, self.rate**0.5) + 0.5), 0)):
            drawn = rng.random() < self.weight or rng.random() < self.leak
            name, version = (NEW, self.new) if drawn else (OLD, self.old)
            fails = rng.random() < version.failing * self.drift(seconds)
            milliseconds = version.median_ms * math.exp(_SPREAD[int(rng.random() * 997)])
            if fails and version.failed_ms is not None:
                milliseconds = version.failed_ms
            requests = 100 if rng.random() < self.heavy else 1
            evidence = requests if self.every_request else 1
            at = second + rng.random() + milliseconds / 1000
            bucket = latency_bucket(milliseconds)
            heappush(self._ends, Outcome(at, name, second, bucket, fails, requests, evidence))
            begun[name] += requests
            firsts[name].setdefault(second, FirstRequests()).begun += evidence
        self.now += 1
        for name, count in begun.items():
            self._totals[name].add(RequestTotals(RequestCounts(begun=count)))
        while self._ends and self._ends[0].at <= self.now:
            self._end(heappop(self._ends), firsts)
        self.firsts.begin(self.now, self.now, self.living)
        for name, more in firsts.items():
            if name in self.firsts.names and name != self.uncounted:
                self.firsts.add(name, more)

    def _end(self, end: Outcome, firsts: dict[str, dict[int, FirstRequests]]) -> None:
        failed = end.requests * end.failed
        totals = self._totals[end.name]
        totals.counts += RequestCounts(classes=(0, end.requests - failed, 0, 0, failed))
        totals.latency.add(end.bucket, end.requests)
        self.failed += failed * (end.name == NEW)
        if end.bucket < SLOWEST_BUCKET:
            of = firsts[end.name].setdefault(end.second, FirstRequests())
            of.end(latency_class(end.bucket), end.evidence, failed=end.evidence * end.failed)

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
        self.firsts = type(self.firsts)(self.rules.key_id)
        return self.compare(saved)

    def looks(self, comparison: Comparison, seconds: int, every: int = 1) -> Iterator[Judgement]:
        """Look after each second, or every so many."""
        for number in range(seconds):
            self.second()
            if number % every == every - 1:
                yield comparison.look()


@dataclass
class AddressWorld(World):
    """Clients whose addresses are drawn. Each connects again some time after its last answer."""

    addresses: int = 600
    pause: float = 20.0
    """Seconds between an answer and the next connection, in the mean."""
    heavy: float = 0.0
    """The part of all requests that one address makes."""
    persistent: bool = False
    """Whether the same addresses fail always, with either version."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rules = self.rules._replace(key_id=1)
        self.firsts = AddressCounts(1)
        self._hashes = [self.rng.random() for _ in range(self.addresses)]
        self._luck = [self.rng.random() for _ in range(self.addresses)]
        self._due = [(self.now + self._pause(), key) for key in range(self.addresses)]
        self._open: list[tuple[float, str, int, int, int, int]] = []
        heapify(self._due)

    def _pause(self) -> float:
        return self.rng.expovariate(1 / self.pause)

    def second(self) -> None:
        """Let clients connect for a second, and read what was listed."""
        second, seconds = int(self.now), self.now - self._began
        listed: dict[str, dict[int, dict[int, int]]] = {NEW: {}, OLD: {}}
        made = 0
        self.now += 1
        while self._due[0][0] < self.now:
            key = heappop(self._due)[1]
            took = self._connect(key, 1, second, seconds, listed)
            heappush(self._due, (self.now + took + self._pause(), key))
            made += 1
        if self.heavy and made:
            count = max(round(made * self.heavy / (1 - self.heavy)), 1)
            self._connect(-1, count, second, seconds, listed)
        while self._open and self._open[0][0] <= self.now:
            _, name, began, key, outcome, bucket = heappop(self._open)
            if bucket < SLOWEST_BUCKET:
                listed[name].setdefault(began, {})[key] = outcome
        self.firsts.begin(self.now, self.now, self.living)
        for name, more in listed.items():
            if name in self.firsts.names and name != self.uncounted:
                self.firsts.add_addresses(name, more)

    def _connect(
        self, key: int, count: int, second: int, seconds: float, listed: dict[str, Any]
    ) -> float:
        rng, drawn = self.rng, self._hashes[key] < self.weight
        name, version = (NEW, self.new) if drawn else (OLD, self.old)
        luck = self._luck[key] if self.persistent else rng.random()
        fails = luck < version.failing * self.drift(seconds)
        milliseconds = version.median_ms * math.exp(_SPREAD[int(rng.random() * 997)])
        if fails and version.failed_ms is not None:
            milliseconds = version.failed_ms
        bucket = latency_bucket(milliseconds)
        totals = self._totals[name]
        totals.counts += RequestCounts(
            begun=count, classes=(0, count * (not fails), 0, 0, count * fails)
        )
        totals.latency.add(bucket, count)
        self.failed += count * fails * drawn
        key += 2
        if key not in listed[name].setdefault(second, {}):
            listed[name][second][key] = 0
            outcome = latency_class(bucket) + 1 + ADDRESS_FAILED * fails
            at = second + rng.random() + milliseconds / 1000
            heappush(self._open, (at, name, second, key, outcome, bucket))
        return milliseconds / 1000


@contextmanager
def clock_of(world: World) -> Iterator[None]:
    """Let comparisons read the world's clock."""
    with patch.object(module, "time", SimpleNamespace(monotonic=lambda: world.now)):
        yield


def ramped(
    world: World, shares: tuple[float, ...], seconds: int, restarts: int = 0, every: int = 1
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
                for last in world.looks(comparison, seconds // (restarts + 1), every):
                    if last.verdict is Verdict.FAIL:
                        return last, int(world.now - began)
        return last, int(world.now - began)


# A version after its switch; `./scripts/bench guard` has longer runs.

ALPHA, MARGIN = 0.01, 0.02
NOTHING = (0, 0, 0, 0)
PER_SECOND = 50


def hour(requests: int, failed: int, latency_ms: float = 20.0) -> RequestTotals:
    """Return the counts of an hour of a version."""
    counts = RequestCounts(begun=requests, classes=(0, requests - failed, 0, 0, failed))
    return RequestTotals(counts, Histogram([(latency_bucket(latency_ms), requests)]))


def record(*hours: RequestTotals, alpha: float = ALPHA) -> OldRecord:
    """Return the record of these hours."""
    return OldRecord.of(hours, alpha=alpha, margin=MARGIN)


def reverted_at(
    known: OldRecord, rate: float, requests: int, seed: int, *, alpha: float = ALPHA, good: int = 0
) -> int | None:
    """Return the request at which a version is reverted; those that are `good` come first."""
    draw = random.Random(seed)  # noqa: S311 - a simulation
    evidence, failed = RecordEvidence(known, alpha, [NOTHING]), 0
    for begun in range(1, requests + 1):
        failed += begun > good and draw.random() < rate
        if begun % 5 == 0:
            tally = Tally(begun, begun, failed, 0)
            evidence.add_start(tally, begun / PER_SECOND)
            if evidence.odds(tally) >= evidence.needed:
                return begun
    return None
