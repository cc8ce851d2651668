"""The three tests of one round: a rollback by errors, one by latency, and a promotion.

Order. Windows are multiplied in one after the other (`windows` says in which order). Before a
window's first call everything that its factors depend on is fixed as its `Terms`: the pooled error
rate, the part of the money that bets, and the latency quantiles. They come from the calls of
earlier windows that have an outcome by then.

Invariants
- Terms never change, also not over a restart: they are saved with the window.
- `extend` multiplies by a lower bound of the window's factor: each call without an outcome counts
  as it is worst for the test. Once all calls have ended the bound is the factor. So what reaches
  1/alpha with open calls also does when they have ended, and no verdict waits for a slow call.
- A canary call that is never reported counts as it is worst for the test, too: left out, stable's
  calls alone would be evidence.
- A closed window is multiplied into the round for good; the open ones into a copy, at each poll.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from atlas_supervisor.canary.stats.bets import (
    PROMOTION_WEIGHTS,
    RISK_RATIOS,
    STARTED_AT_FIRST,
    Bet,
    Mixture,
    Outcomes,
    arm_bets,
    log_factors,
    margin_bets,
    rate_bets,
    share_started,
)
from atlas_supervisor.canary.stats.counts import Baseline, CallWindow, Prior, is_drawn
from atlas_supervisor.canary.stats.latency_evidence import (
    LEAST_CALLS,
    LEVELS,
    LatencyBets,
    Placement,
    place,
)
from atlas_supervisor.canary.stats.latency_evidence import WEIGHTS as LATENCY_WEIGHTS
from atlas_supervisor.canary.stats.windows import SLICES_PER_SECOND
from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract import latency_bucket

ERROR_WEIGHTS = tuple(part / 2 for part in RISK_RATIOS.values()) * 2
"""The money of the bets on rates, and of those on a failure's arm."""


class Terms(NamedTuple):
    """What a window's factors depend on besides its calls."""

    rate: float
    """The pooled error rate m."""
    started: float
    """The part of the money that bets."""
    placement: Placement | None

    def to_list(self) -> list[Any]:
        """Return them as JSON values."""
        placed = self.placement and self.placement.to_list()
        return [self.rate, self.started, placed]

    @classmethod
    def from_list(cls, saved: Sequence[Any]) -> Terms:
        """Return the terms that `to_list` has saved."""
        rate, started, placed, *_ = saved  # an earlier version had rates of slow calls
        return cls(rate, started, Placement.from_list(placed))


@dataclass
class _Cache:
    """What a window's terms and its calls with an outcome lead to."""

    errors: list[Bet]
    promotion: list[Bet]
    latency: LatencyBets | None
    by_errors: Sequence[float] = ()
    by_promotion: Sequence[float] = ()
    by_latency: Sequence[float] = ()
    """The logarithms of each test's factors."""
    levels: tuple[list[int], list[int]] = ([], [])
    """Calls with an outcome by latency level, canary and stable."""
    canary_so_far: list[int] = field(default_factory=list)
    """Canary calls by level, with those that are open: they have taken so long already."""
    worst_levels: tuple[list[int], list[int]] | None = None
    counts_canary: bool = False


class Slow(NamedTuple):
    """Calls of each arm by latency level, since the levels were placed."""

    canary: tuple[int, ...] = (0,) * LEVELS
    stable: tuple[int, ...] = (0,) * LEVELS


class RoundEvidence:
    """The evidence of one round. `margin` and `latency_margin` are the settings' margins."""

    def __init__(
        self,
        margin: float,
        latency_margin: float,
        prior: Prior | None = None,
        past: Histogram | None = None,
    ) -> None:
        if not 0 < margin < 1:
            raise ValueError(f"the margin is between 0 and 1, not {margin}")
        if not 0 <= latency_margin < 10:
            raise ValueError(f"the latency margin is between 0 and 10, not {latency_margin}")
        self.margin, self.latency_margin = margin, latency_margin
        self.errors = Mixture(ERROR_WEIGHTS, STARTED_AT_FIRST)
        self.latency = Mixture(LATENCY_WEIGHTS, STARTED_AT_FIRST)
        self.promotion = Mixture(PROMOTION_WEIGHTS)
        self._promotion_bound = 0.0
        """The promotion's logarithm after the last window with a canary call."""
        self._baseline = Baseline(prior or Prior())
        self.canary_calls = 0
        self.canary_errors = 0
        self.placement = place(past, latency_margin) if past is not None else None
        self._seen = Slow()
        """Of closed windows."""
        self._recent = Histogram()
        """Stable's latencies in closed windows since the quantiles were placed."""
        self._recent_calls = 0
        self.extended: list[CallWindow] = []
        """The open windows that were multiplied in, of a copy."""

    def copy(self) -> RoundEvidence:
        """Return a copy to multiply open windows into."""
        other = copy.copy(self)
        other.errors, other.latency = self.errors.copy(), self.latency.copy()
        other.promotion = self.promotion.copy()
        other.extended = []
        return other

    @property
    def rate(self) -> float:
        """The pooled rate that the next window is judged by."""
        return self._baseline.rate

    @property
    def log_promotion(self) -> float:
        """A lower bound of the promotion's logarithm, without what stable alone has added."""
        return min(self.promotion.log_e, self._promotion_bound)

    @property
    def _first(self) -> int:
        """The first window after the quantiles were placed."""
        return self.placement.first if self.placement else 0

    # Windows.

    def close(self, window: CallWindow) -> None:
        """Multiply a window in, all of whose calls have ended."""
        self.extend(window, 0)
        self._seen = self.seen
        self.extended.clear()
        if window.number >= self._first:
            for bucket, count in window.stable.latency.items():
                self._recent.add(bucket, count)

    def extend(self, window: CallWindow, now: int) -> None:
        """Multiply a lower bound of the next window in; `now` is the current slice."""
        if window.terms is None:
            window.terms = self._fix(window.number)
        elif not isinstance(window.terms, Terms):
            window.terms = Terms.from_list(window.terms)
        terms: Terms = window.terms
        if terms.placement is not None and terms.placement != self.placement:
            self._adopt(terms.placement)
        if is_drawn(window.stratum.share):
            self._multiply(window, terms, now)
        canary, stable = window.canary, window.stable
        self._baseline = self._baseline.after(
            canary.calls + stable.calls, canary.errors + stable.errors
        )
        self.canary_calls += canary.calls
        self.canary_errors += canary.errors
        self._recent_calls += stable.calls
        self.extended.append(window)

    def _multiply(self, window: CallWindow, terms: Terms, now: int) -> None:
        cache = self._cache(window, terms, now)
        self.errors.start(terms.started)
        self.errors.multiply(cache.by_errors)
        self.promotion.multiply(cache.by_promotion)
        if cache.counts_canary:
            self._promotion_bound = self.promotion.log_e
        if cache.latency is not None:
            self.latency.start(terms.started)
            self.latency.multiply(cache.by_latency)

    def _cache(self, window: CallWindow, terms: Terms, now: int) -> _Cache:
        """Return the factors of a window; computed only if they may have changed."""
        share, placement = window.stratum.share, terms.placement
        cache: _Cache | None = window.bets
        if cache is None:
            cache = window.bets = _Cache(
                errors=[*rate_bets(share, terms.rate), *arm_bets(share)],
                promotion=margin_bets(share, terms.rate, self.margin),
                latency=LatencyBets.fixed(share, placement) if placement is not None else None,
            )
        changed, window.changed = window.changed, False
        if changed:
            self._count(window, cache)
        if cache.latency is not None and placement is not None:
            if changed:
                _count_levels(window, placement, cache)
            if changed or window.open:
                _count_open_levels(window, placement, cache, now)
                levels = _worst_levels(window, cache)
                if levels != cache.worst_levels:
                    cache.worst_levels = levels
                    cache.by_latency = cache.latency.log_factors(*levels)
        return cache

    @staticmethod
    def _count(window: CallWindow, cache: _Cache) -> None:
        canary, stable = window.canary, window.stable
        canary_open, stable_open = window.opened(canary=True), window.opened(canary=False)
        worst_for_rollback = Outcomes(
            canary.errors,
            canary.calls - canary.errors + canary_open + window.unreported[True],
            stable.errors + stable_open,
            stable.calls - stable.errors,
        )
        cache.by_errors = log_factors(cache.errors, worst_for_rollback)
        worst_for_promotion = Outcomes(
            canary.errors + canary_open + window.unreported[True],
            canary.calls - canary.errors,
            stable.errors,
            stable.calls - stable.errors + stable_open + window.unreported[False],
        )
        cache.by_promotion = log_factors(cache.promotion, worst_for_promotion)
        cache.counts_canary = canary.calls + canary_open + window.unreported[True] > 0

    # Readers.

    @property
    def seen(self) -> Slow:
        """The calls by latency level, since they were placed; stable's only after their end."""
        canary, stable = self._seen
        for window in self.extended:
            if (
                window.bets is not None
                and window.bets.latency is not None
                and (window.terms.placement == self.placement)
            ):
                canary = _sum(canary, window.bets.canary_so_far)
                stable = _sum(stable, window.bets.levels[1])
        return Slow(canary, stable)

    # Terms.

    def _fix(self, number: int) -> Terms:
        """Fix the terms of the next window by the calls of those before it."""
        started = share_started(self.canary_calls)
        placement = self.placement
        if self._recent_calls >= (placement.again if placement else LEAST_CALLS):
            placement = self._place(number) or placement
        if placement is not None and placement != self.placement:
            self._adopt(placement)
        return Terms(self.rate, started, placement)

    def _place(self, number: int) -> Placement | None:
        """Return the quantiles of stable's calls since the last placement."""
        recent = Histogram(self._recent)
        for window in self.extended:
            if self._first <= window.number < number:
                recent.merge(Histogram(window.stable.latency.items()))
        return place(recent, self.latency_margin, number)

    def _adopt(self, placement: Placement) -> None:
        """Rank calls by these quantiles from now on; the evidence stays."""
        self.placement = placement
        self._recent, self._recent_calls = Histogram(), 0
        self._seen = Slow()

    # Saved state.

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, without loss."""
        return {
            "margins": [self.margin, self.latency_margin],
            "errors": self.errors.to_dict(),
            "latency": self.latency.to_dict(),
            "promotion": self.promotion.to_dict(),
            "promotion_bound": self._promotion_bound,
            "baseline": self._baseline.to_list(),
            "canary": [self.canary_calls, self.canary_errors],
            "placement": self.placement and self.placement.to_list(),
            "seen": list(self._seen),
            "recent": list(self._recent),
            "recent_calls": self._recent_calls,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> RoundEvidence:
        """Return the saved state. Raises ValueError if a version with other bets has saved it."""
        evidence = cls(*saved["margins"])
        evidence.errors.restore(saved["errors"])
        evidence.latency.restore(saved["latency"])
        evidence.promotion.restore(saved["promotion"])
        evidence._promotion_bound = saved["promotion_bound"]
        evidence._baseline = Baseline.from_list(saved["baseline"])
        evidence.canary_calls, evidence.canary_errors = saved["canary"]
        evidence.placement = Placement.from_list(saved["placement"])
        canary, stable = saved["seen"]
        evidence._seen = Slow(tuple(canary), tuple(stable))
        evidence._recent = Histogram(saved["recent"])
        evidence._recent_calls = saved["recent_calls"]
        return evidence

    def carry_over(self, saved: Mapping[str, Any]) -> None:
        """Take over the evidence of a version that had single tests, as money of the first bets.

        Its open windows and its latency quantiles are left out.
        """
        errors, tests = saved["errors"], saved["latency"]["tests"]
        logs = [log - math.log(len(tests)) for test in tests for log in test["logs"]]
        self.errors.restore(errors)
        self.latency.restore({"started": tests[0]["started"], "logs": logs})
        self.promotion.restore({"started": 1.0, "logs": [saved["promotion"]["log"]]})
        self._promotion_bound = self.promotion.log_e
        past = errors["past"]
        self._baseline = Baseline(Prior(**past["prior"]), past["calls"], past["errors"])
        self.canary_calls = errors["canary_calls"]


def _count_levels(window: CallWindow, placement: Placement, cache: _Cache) -> None:
    canary = placement.levels(window.canary.latency.items(), canary=True)
    stable = placement.levels(window.stable.latency.items(), canary=False)
    cache.levels, cache.worst_levels = (canary, stable), None


def _count_open_levels(window: CallWindow, placement: Placement, cache: _Cache, now: int) -> None:
    """Add the canary calls that are open, by the time that they have taken so far."""
    cache.canary_so_far = list(cache.levels[0])
    for calls, count in window.open.items():
        if calls.canary and not calls.asked:
            seconds = max(now - calls.slice - 1, 0) / SLICES_PER_SECOND
            level = placement.level(latency_bucket(seconds * 1000), canary=True)
            cache.canary_so_far[level] += count


def _worst_levels(window: CallWindow, cache: _Cache) -> tuple[list[int], list[int]]:
    """Return the calls by level, those without an outcome as they are worst for a rollback."""
    canary, stable = list(cache.canary_so_far), list(cache.levels[1])
    canary[0] += window.unreported[True]
    for calls, count in window.open.items():
        if not calls.canary:
            stable[-1] += count
        elif calls.asked:  # it may never be reported
            canary[0] += count
    return canary, stable


def _sum(one: Iterable[int], other: Iterable[int]) -> tuple[int, ...]:
    return tuple([a + b for a, b in zip(one, other, strict=True)])
