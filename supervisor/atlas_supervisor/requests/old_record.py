"""A version that has all the traffic, judged by the record of the version before it. Pure.

Theory (docs/how-to/after-a-switch.md has the guarantees and what they don't cover). After a switch
no other version serves at the same time, so all that there is to compare with is the past. Null
hypothesis: a request of the new version fails with a probability of at most

    allowed = bound(failed, requests of the old version) + margin

with `bound` the upper confidence bound of Clopper and Pearson (1934). Against it several bets are
made (`canary.stats.bets`), each on a failure rate a = min(r * allowed, 0.999): a failed request
multiplies it by a/allowed, any other one by (1-a)/(1-allowed). While the null is true the weighted
mean is a supermartingale, so by Ville's inequality it ever reaches 1/alpha with a probability of at
most alpha, however often it is looked at. A regression that comes late would find these bets poor:
so a part of the money begins at later moments (`starts`), which is one mixture more.

The product depends on numbers of requests alone, not on their order. So a daemon that was killed
goes on from the totals and the saved starts as if nothing had happened.

Invariants
- A request counts from its beginning. Without an outcome, and if its client left, it counts as
  good: a lower bound. Else a version that fails fast and works slowly would look worse than it is.
- Record and margin are fixed before the first look; a fifth of alpha is for the record's bound.
- Latency is the same test on "slower than `slow_ms`", with a margin of its own, a fifth of alpha,
  and without the first start: a process that has just begun is slow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from pydantic import BaseModel

from atlas_supervisor.canary.stats.bets import RISK_RATIOS, exponential, log_sum
from atlas_supervisor.canary.stats.counts import MAX_RATE
from atlas_supervisor.canary.stats.explain import amount, odds, percent
from atlas_supervisor.model.requests import RequestTotals
from atlas_worker.contract import bucket_milliseconds, latency_bucket

MIN_RECORD = 100
"""Requests of an hour that make it a record. Without such an hour, what there is of both is filled
up to this number with requests that worked."""
MIN_REQUESTS, MIN_BAD = 20, 5
"""With fewer requests, or fewer bad ones, nothing is shown: one client may have sent them all."""
SLOWER, SLOW_FLOOR_MS, SLOW_MARGIN = 3.0, 250.0, 0.25
"""A request is slow beyond this multiple of the record's p95, and beyond this time; how much larger
the share of slow ones must be."""
WARM_UP_SECONDS = 10.0
"""Latency does not count before."""
_ERRORS_PART, _RECORD_PART = 0.8, 0.2
_FIRST_START = 0.8
_START_GROWTH = 1.5


class Tally(NamedTuple):
    """What an instance has counted by a moment."""

    begun: int
    settled: int
    """Requests with an outcome, or left by their clients."""
    failed: int
    slow: int

    @classmethod
    def of(cls, totals: RequestTotals, slow_ms: float | None) -> Self:
        """Return the tally of these totals; none is slow if `slow_ms` is None."""
        counts = totals.counts
        bound = math.inf if slow_ms is None else latency_bucket(slow_ms)
        slow = sum(count for bucket, count in totals.latency if bucket > bound)
        return cls(counts.begun, counts.ended + counts.left, counts.failed, slow)


class OldRecord(BaseModel, frozen=True):
    """What is known of the old version, and what follows for the new one."""

    requests: int
    """With an outcome."""
    failed: int
    known: bool
    """Whether there is enough of it; else it is filled up."""
    allowed: float
    """The highest failure rate that counts as no worse, 0 to 1."""
    slow_ms: float | None = None
    """None if too little is known to judge latencies."""
    allowed_slow: float = 1.0

    @classmethod
    def of(cls, hours: Iterable[RequestTotals], *, alpha: float, margin: float) -> Self:
        """Return the worst of these hours, or all of them together if none has enough requests."""
        every = list(hours)
        if not (known := [each for each in every if each.counts.ended >= MIN_RECORD]):
            both = RequestTotals()
            for each in every:
                both.add(each)
            every = [both]
        part = alpha * _ERRORS_PART * _RECORD_PART
        bounds = [
            upper_bound(each.counts.failed, max(each.counts.ended, MIN_RECORD), part)
            for each in known or every
        ]
        worst = bounds.index(max(bounds))
        counts = (known or every)[worst].counts
        slow_ms, allowed_slow = _slow(known, alpha * (1 - _ERRORS_PART) * _RECORD_PART)
        return cls(
            requests=counts.ended,
            failed=counts.failed,
            known=bool(known),
            allowed=min(bounds[worst] + margin, 1.0),
            slow_ms=slow_ms,
            allowed_slow=allowed_slow,
        )

    @property
    def error_rate(self) -> float | None:
        """The failed part of its requests; None without any."""
        return self.failed / self.requests if self.requests else None

    @property
    def in_words(self) -> str:
        """The record, and what is allowed by it."""
        text = f"{amount(self.failed)} of {amount(self.requests)}"
        if not self.known:
            text += f", too few to go by: {MIN_RECORD} are assumed"
        return f"the old version's record is {text}; up to {percent(self.allowed)} is no worse"


def _slow(hours: Sequence[RequestTotals], alpha: float) -> tuple[float | None, float]:
    """Return when a request is slow, and the share of slow ones that counts as no worse."""
    p95s = [each.latency.quantile_buckets([0.95])[0] for each in hours if each.latency.count]
    if not (found := [each for each in p95s if each is not None]):
        return None, 1.0
    slow_ms = max(SLOWER * bucket_milliseconds(max(found)), SLOW_FLOOR_MS)
    shares = [
        upper_bound(Tally.of(each, slow_ms).slow, each.latency.count, alpha)
        for each in hours
        if each.latency.count
    ]
    return slow_ms, min(max(shares) + SLOW_MARGIN, 1.0)


class RecordEvidence:
    """The bets against a version."""

    def __init__(self, record: OldRecord, alpha: float, starts: Iterable[Sequence[int]]) -> None:
        """Bet from these starts on; the first is the moment of the switch."""
        self.record = record
        self._alpha = alpha
        self.starts = [Tally(*each) for each in starts]
        tested = 1 - _RECORD_PART
        self.needed = 1 / (alpha * _ERRORS_PART * tested)
        """The odds at which errors revert it."""
        self.needed_slow = 1 / (alpha * (1 - _ERRORS_PART) * tested)
        self._next_start = WARM_UP_SECONDS * _START_GROWTH ** max(len(self.starts) - 1, 0)

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Self:
        """Return the evidence that `saved` is of. Raises LookupError, ValueError or TypeError."""
        return cls(OldRecord.model_validate(saved["record"]), saved["alpha"], saved["starts"])

    def saved(self) -> dict[str, Any]:
        """Return everything that it goes by, as JSON's types."""
        starts = [list(each) for each in self.starts]
        return {"record": self.record.model_dump(), "alpha": self._alpha, "starts": starts}

    def add_start(self, tally: Tally, seconds: float) -> bool:
        """Let bets start now, if it is time for that and there is anything new to go by."""
        if seconds < self._next_start or tally.begun == self.starts[-1].begun:
            return False
        while self._next_start <= seconds:
            self._next_start *= _START_GROWTH
        self.starts.append(tally)
        return True

    def since_switch(self, tally: Tally) -> tuple[int, int]:
        """Return the requests since the switch, and how many of them failed."""
        first = self.starts[0]
        return tally.begun - first.settled, tally.failed - first.failed

    def in_words(self, tally: Tally, seconds: float) -> str:
        """Return in words what it goes by, and how strong that is."""
        requests, failed = self.since_switch(tally)
        return (
            f"{amount(failed)} of {amount(requests)} requests failed in {seconds:.1f} s "
            f"({percent(failed / max(requests, 1))}), {self.record.in_words}: "
            f"odds against chance are {odds(self.odds(tally))}"
        )

    def slower_in_words(self, tally: Tally) -> str:
        """Return in words why it is slower."""
        requests, slow = tally.begun - self.starts[1].settled, tally.slow - self.starts[1].slow
        return (
            f"{amount(slow)} of {amount(requests)} requests took longer than "
            f"{self.record.slow_ms or 0:,.0f} ms ({percent(slow / max(requests, 1))}); by the old "
            f"version's record up to {percent(self.record.allowed_slow)} is no slower: odds "
            f"against chance are {odds(self.slow_odds(tally))}"
        )

    def odds(self, tally: Tally) -> float:
        """Return how strongly failures speak against the version, to 1."""
        failed = [(tally.begun - each.settled, tally.failed - each.failed) for each in self.starts]
        return _odds(failed, self.record.allowed)

    def slow_odds(self, tally: Tally) -> float:
        """Return how strongly its slow requests speak against it, to 1."""
        if self.record.slow_ms is None:
            return 1.0
        starts = self.starts[1:]
        slow = [(tally.begun - each.settled, tally.slow - each.slow) for each in starts]
        return _odds(slow, self.record.allowed_slow)


def _odds(counts: Sequence[tuple[int, int]], allowed: float) -> float:
    """Return the money of all bets; `counts` has requests and bad ones since each start."""
    if not 0 < allowed < MAX_RATE or not counts:
        return 1.0
    requests, bad = counts[0]
    if requests < MIN_REQUESTS or bad < MIN_BAD:
        return 1.0
    logs = []
    for number, (requests, bad) in enumerate(counts):
        later = (1 - _FIRST_START) / (number * (number + 1)) if number else _FIRST_START
        for ratio, weight in RISK_RATIOS.items():
            rate = min(ratio * allowed, MAX_RATE)
            logs.append(
                math.log(later * weight)
                + bad * math.log(rate / allowed)
                + (requests - bad) * math.log((1 - rate) / (1 - allowed))
            )
    return exponential(log_sum(logs))


def upper_bound(bad: int, requests: int, alpha: float) -> float:
    """Return Clopper and Pearson's bound of a rate: it is too low with probability `alpha`."""
    if bad >= requests:
        return 1.0
    low, high = bad / requests, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(bad, requests, middle) > alpha else (low, middle)
    return high


def _at_most(bad: int, requests: int, rate: float) -> float:
    """Return the probability of so many bad requests or fewer; the rate is above their share."""
    log = math.lgamma(requests + 1) - math.lgamma(bad + 1) - math.lgamma(requests - bad + 1)
    log += bad * math.log(rate) + (requests - bad) * math.log1p(-rate)
    term = total = 1.0  # in units of the last one: the others fall off before it
    for count in range(bad, 0, -1):
        term *= count / (requests - count + 1) * (1 - rate) / rate
        total += term
        if term < 1e-12 * total:
            break
    return min(math.exp(log) * total, 1.0)
