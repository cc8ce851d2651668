"""Seeded streams of canary calls with known truth, for methods that are compared on the same calls.

A stream is a list of slices. Methods look after each slice, so differences of less than one are not
seen. Every slice also has the evidence of an oracle, which knows both arms' true rates in it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import NormalDist
from typing import NamedTuple

from atlas_worker.contract import latency_bucket
from tests.unit.supervisor.canary.stats.support import (
    Moment,
    Story,
    binomial,
    drift,
    even,
    outage,
    ramp,
    seeded,
    worse,
)

ALPHA, PROMOTE_ALPHA, MARGIN = 0.01, 0.05, 0.02
SIGMA = 0.7
"""The standard deviation of the logarithm of a latency."""
_MEDIAN_MS = 50.0
_NORMAL = NormalDist()
_P90, _P99 = _NORMAL.inv_cdf(0.9), _NORMAL.inv_cdf(0.99)
_STRETCH = math.log(2) / (_P99 - _P90)  # so that p99 is doubled, and p90 is not changed


class Kind(StrEnum):
    """What a scenario asks about."""

    ALIKE = "alike"
    """Every rollback is wrong."""
    ERRORS = "errors"
    LATENCY_ALIKE = "latency alike"
    """The same for latencies."""
    LATENCY = "latency"
    MARGIN = "margin"
    """Every promotion is wrong."""
    PROMOTION = "promotion"

    @property
    def is_latency(self) -> bool:
        return self in (Kind.LATENCY, Kind.LATENCY_ALIKE)

    @property
    def promotes(self) -> bool:
        return self in (Kind.PROMOTION, Kind.MARGIN)


NULL_OF = {
    Kind.ERRORS: Kind.ALIKE,
    Kind.LATENCY: Kind.LATENCY_ALIKE,
    Kind.PROMOTION: Kind.MARGIN,
}
"""The kind in which what a kind looks for is wrong."""


class Arm(NamedTuple):
    """The calls of one arm in one slice."""

    outcomes: dict[tuple[bool, int], int]
    """By failure and latency bucket."""
    log_sum: float = 0.0
    log_squares: float = 0.0

    @property
    def calls(self) -> int:
        return sum(self.outcomes.values())

    @property
    def errors(self) -> int:
        return sum(count for (failed, _), count in self.outcomes.items() if failed)


class Slice(NamedTuple):
    """The calls that begin at one moment, and the growth of the oracles' evidence by them."""

    share: float
    canary: Arm
    stable: Arm
    oracle: float
    any_base: float
    """Of an oracle whose null hypothesis is that both arms have the same rate, whichever."""


Latency = Callable[[float], float]
"""The logarithm of a canary's latency, in units of the median, by a standard normal draw."""


class Phase(NamedTuple):
    """So many slices of so many calls."""

    slices: int
    calls: int
    story: Story


@dataclass(frozen=True)
class Scenario:
    """A service and its canary. What is found counts from the beginning of the last phase."""

    name: str
    kind: Kind
    phases: tuple[Phase, ...]
    canary_latency: Latency | None = None
    latency_margin: float = 0.0
    latency: Latency = lambda draw: SIGMA * draw
    """Of stable, and of a canary that is as fast."""
    rises: float = 0.0
    """What both arms' logarithms grow by while the share grows from 0 to 1, as under load."""

    @property
    def alpha(self) -> float:
        return PROMOTE_ALPHA if self.kind.promotes else ALPHA

    @property
    def begins(self) -> int:
        """The slice that the last phase begins with."""
        return sum(phase.slices for phase in self.phases[:-1])

    def slices(self, seed: int) -> Iterator[Slice]:
        """Yield a run's slices."""
        rng = seeded(seed)
        for phase in self.phases:
            for number in range(phase.slices):
                yield self.drawn(rng, phase.calls, phase.story(number / phase.slices))

    def past(self, seed: int) -> Iterator[Slice]:
        """Yield slices of stable alone, from before the canary."""
        rng = seeded(seed + 1_000_000)
        now = self.phases[0].story(0.0)
        for _ in range(20):
            yield self.drawn(rng, 100, replace(now, share=0.0))

    def drawn(self, rng: random.Random, calls: int, now: Moment) -> Slice:
        """Draw the calls of a slice."""
        count = binomial(rng, calls, now.share)
        rise = self.rises * now.share
        canary, ratio = self._arm(rng, count, now.canary, self.canary_latency, rise)
        stable, _ = self._arm(rng, calls - count, now.stable, None, rise)
        if self.kind.is_latency:
            return Slice(now.share, canary, stable, ratio, ratio)
        return Slice(now.share, canary, stable, *oracles(self.kind, now, canary, stable))

    def _arm(
        self, rng: random.Random, calls: int, rate: float, latency: Latency | None, rise: float
    ) -> tuple[Arm, float]:
        """Draw an arm; without latencies of interest all calls take equally long."""
        errors = binomial(rng, calls, rate)
        if not self.kind.is_latency:
            bucket = latency_bucket(_MEDIAN_MS)
            return Arm({(True, bucket): errors, (False, bucket): calls - errors}), 0.0
        outcomes: Counter[tuple[bool, int]] = Counter()
        total = squares = ratio = 0.0
        for call in range(calls):
            draw = rng.gauss(0, 1)
            log = (latency or self.latency)(draw) + rise
            outcomes[call < errors, latency_bucket(_MEDIAN_MS * math.exp(log))] += 1
            total, squares = total + log, squares + log * log
            ratio += log_ratio(latency, draw, log, self.latency_margin) if latency else 0.0
        return Arm(dict(outcomes), total, squares), ratio


def shifted(by: float) -> Latency:
    """Return latencies that are all longer by this factor."""
    return lambda draw: SIGMA * draw + math.log(by)


def long_tail(draw: float) -> float:
    """Return latencies that grow beyond p90, to twice the p99."""
    return SIGMA * draw + _STRETCH * max(draw - _P90, 0.0)


def at_once(draw: float) -> float:
    """Return latencies that are nearly alike, but for one call in a hundred that ends at once."""
    return 0.05 * draw - (math.log(100) if draw < -_P99 else 0.0)


def log_ratio(latency: Latency, draw: float, log: float, margin: float) -> float:
    """Return the log-likelihood ratio of one canary latency against stable's plus the margin."""
    slope = SIGMA + (_STRETCH if latency is long_tail and draw > _P90 else 0.0)
    null = (log - math.log1p(margin)) / SIGMA
    return (null * null - draw * draw) / 2 - math.log(slope / SIGMA)


def oracles(kind: Kind, now: Moment, canary: Arm, stable: Arm) -> tuple[float, float]:
    """Return the growth of both oracles' log-likelihood ratios."""
    null = now.stable + MARGIN if kind.promotes else now.stable
    simple = _log_likelihood(canary, now.canary, null)
    if kind.promotes:
        return simple, simple
    pooled = now.share * now.canary + (1 - now.share) * now.stable
    any_base = _log_likelihood(canary, now.canary, pooled)
    return simple, any_base + _log_likelihood(stable, now.stable, pooled)


def _log_likelihood(arm: Arm, rate: float, null: float) -> float:
    errors, calls = arm.errors, arm.calls
    return errors * math.log(rate / null) + (calls - errors) * (
        math.log1p(-rate) - math.log1p(-null)
    )


def rising(when: float) -> Moment:
    """Raise both arms' rate from 1 % to 10 %."""
    return Moment(0.1, 0.01 + 0.09 * when, 0.01 + 0.09 * when)


def falling(when: float) -> Moment:
    """Lower both arms' rate from 10 % to 1 %."""
    return rising(1 - when)


def scenarios() -> list[Scenario]:
    """Return all of them."""
    return [*_alike(), *_early(), *_late(), *_latency(), *_promotion()]


def _alike() -> Iterator[Scenario]:
    stories = {
        "0.1 %": even(0.001),
        "1 %": even(0.01),
        "10 %": even(0.1),
        "ramp, base rises": ramp(rising),
        "ramp, base falls": ramp(falling),
        "waves": drift,
        "ramp, waves": ramp(drift),
        "outage": outage,
        "ramp, outage": ramp(outage),
    }
    for name, story in stories.items():
        yield Scenario(f"alike: {name}", Kind.ALIKE, (Phase(400, 50, story),))


def _early() -> Iterator[Scenario]:
    for base, sizes in ((0.001, (1000, 100, 20)), (0.01, (100, 20, 10)), (0.05, (20, 10, 10))):
        for times, calls in zip((2, 5, 15), sizes, strict=True):
            phase = Phase(1_000, calls, worse(base * times, base))
            yield Scenario(f"{base:.1%} x{times}", Kind.ERRORS, (phase,))


def _late() -> Iterator[Scenario]:
    for good in (10_000, 100_000):
        phases = Phase(good // 500, 500, even(0.01)), Phase(1_500, 20, worse(0.05, 0.01))
        yield Scenario(f"1 % x5 after {good:,}", Kind.ERRORS, phases)


def _latency() -> Iterator[Scenario]:
    alike = (Phase(400, 20, even(0.01)),)
    yield Scenario("alike: latency", Kind.LATENCY_ALIKE, alike)
    yield Scenario("alike: 1 % end at once", Kind.LATENCY_ALIKE, alike, latency=at_once)
    steps = (Phase(400, 20, ramp(even(0.01))),)
    yield Scenario("alike: ramp, slower", Kind.LATENCY_ALIKE, steps, rises=math.log(4))
    slower = shifted(1.09)
    yield Scenario("+9 %, margin 10 %", Kind.LATENCY_ALIKE, alike, slower, 0.1)
    for name, latency, margin in (
        ("+20 %", shifted(1.2), 0.0),
        ("p99 x2", long_tail, 0.0),
        ("+50 %, margin 10 %", shifted(1.5), 0.1),
    ):
        phase = Phase(1_000, 20, even(0.01))
        yield Scenario(f"latency {name}", Kind.LATENCY, (phase,), latency, margin)


def _promotion() -> Iterator[Scenario]:
    for base in (0.001, 0.01, 0.05):
        phase = Phase(400, 50, worse(base + MARGIN, base))
        yield Scenario(f"at the margin, {base:.1%}", Kind.MARGIN, (phase,))
    for canary, stable in ((0.01, 0.01), (0.05, 0.05), (0.02, 0.05)):
        phase = Phase(2_000, 20 if stable < 0.02 else 50, worse(canary, stable))
        yield Scenario(f"promote {stable:.0%} to {canary:.0%}", Kind.PROMOTION, (phase,))
