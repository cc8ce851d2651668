"""Simulated traffic with known error rates, for the tests of the statistics and the benchmark."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from atlas_supervisor.canary.stats.counts import Arm, CallWindow, Prior, Side, Stratum
from atlas_supervisor.canary.stats.round_evidence import RoundEvidence
from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract import latency_bucket


class Window(NamedTuple):
    """The counts of both arms that were assigned under one share."""

    share: float
    canary: Arm
    stable: Arm


Value = Callable[[RoundEvidence], float]
"""The logarithm of one of a round's tests."""


def errors(evidence: RoundEvidence) -> float:
    return evidence.errors.log_e


def latency(evidence: RoundEvidence) -> float:
    return evidence.latency.log_e


def promotion(evidence: RoundEvidence) -> float:
    return evidence.log_promotion


def new_round(
    prior: Prior | None = None, past: Histogram | None = None, latency_margin: float = 0.1
) -> RoundEvidence:
    return RoundEvidence(0.02, latency_margin, prior, past)


class Feed:
    """Gives closed windows, numbered in order, to a round or a ramp."""

    def __init__(self) -> None:
        self.number = 0

    def window(
        self,
        counts: Window,
        canary: Histogram | None = None,
        stable: Histogram | None = None,
        round_number: int = 1,
    ) -> CallWindow:
        """Return a closed window with these counts and latencies."""
        stratum = Stratum(1, counts.share, round_number)
        window = CallWindow(self.number, stratum, self.number, self.number)
        window.canary = Side(counts.canary.calls, counts.canary.errors, dict(canary or ()))
        window.stable = Side(counts.stable.calls, counts.stable.errors, dict(stable or ()))
        self.number += 1
        return window


def latency_windows(
    rng: random.Random,
    windows: int,
    *,
    calls: int,
    share: float,
    times: float = 1.0,
    canary_times: float = 1.0,
    first: int = 0,
) -> Iterator[CallWindow]:
    """Yield windows of log-normal latencies around 50 ms."""
    feed = Feed()
    feed.number = first
    for _ in range(windows):
        canary = binomial(rng, calls, share)
        counts = Window(share, Arm(canary, 0), Arm(calls - canary, 0))
        both = [
            Histogram((latency_bucket(50 * by * rng.lognormvariate(0, 0.5)), 1) for _ in range(n))
            for n, by in ((canary, times * canary_times), (calls - canary, times))
        ]
        yield feed.window(counts, both[0], both[1])


def update(evidence: RoundEvidence, counts: Window) -> None:
    """Multiply a window without latencies in."""
    evidence.close(Feed().window(counts))


def odds_reached(evidence: RoundEvidence, value: Value, alpha: float) -> bool:
    return value(evidence) >= -math.log(alpha)


@dataclass(frozen=True)
class Moment:
    """The true parameters of one window: the share, and both arms' error rates."""

    share: float
    canary: float
    stable: float


Story = Callable[[float], Moment]
"""The true parameters as a function of time, from 0 to 1."""


def seeded(seed: int) -> random.Random:
    """Return a random generator with a fixed seed."""
    return random.Random(seed)  # noqa: S311 - a simulation wants a seed, not a secret


def binomial(rng: random.Random, calls: int, rate: float) -> int:
    """Draw from a binomial distribution, by the geometric gaps between hits."""
    if rate <= 0 or calls <= 0:
        return 0
    if rate >= 1:
        return calls
    hits, at, log = 0, -1, math.log1p(-rate)
    while True:
        at += 1 + int(math.log(1 - rng.random()) / log)
        if at >= calls:
            return hits
        hits += 1


def draw(rng: random.Random, calls: int, now: Moment) -> Window:
    """Draw one window's counts."""
    canary = binomial(rng, calls, now.share)
    return Window(
        now.share,
        Arm(canary, binomial(rng, canary, now.canary)),
        Arm(calls - canary, binomial(rng, calls - canary, now.stable)),
    )


def even(rate: float, share: float = 0.1) -> Story:
    """Return a constant error rate of both arms."""
    return lambda _: Moment(share, rate, rate)


def worse(canary: float, stable: float, share: float = 0.1) -> Story:
    """Return constant, different error rates."""
    return lambda _: Moment(share, canary, stable)


def ramp(of: Story) -> Story:
    """Return a share that grows in five steps."""
    shares = (0.01, 0.05, 0.1, 0.25, 0.5)

    def at(when: float) -> Moment:
        now = of(when)
        return Moment(shares[min(int(when * len(shares)), 4)], now.canary, now.stable)

    return at


def drift(when: float) -> Moment:
    """Vary both arms' rate between 0.5 % and 5.5 %, three times."""
    rate = 0.03 + 0.025 * math.sin(6 * math.pi * when)
    return Moment(0.1, rate, rate)


def outage(when: float) -> Moment:
    """Raise both arms' rate from 1 % to 40 % for a fifth of the time."""
    rate = 0.4 if 0.4 < when < 0.6 else 0.01
    return Moment(0.1, rate, rate)


ALIKE: dict[str, Story] = {
    **{f"base rate {rate * 100:g} %": even(rate) for rate in (0.001, 0.01, 0.05, 0.1, 0.3)},
    "ramp at 2 %": ramp(even(0.02)),
    "drift": drift,
    "ramp with drift": ramp(drift),
    "outage": outage,
    "ramp with outage": ramp(outage),
}
"""Stories in which the canary is no worse: every rollback is a false alarm."""


def errs(
    rng: random.Random, test: tuple[Value, float], story: Story, windows: int, calls: int
) -> bool:
    """Return whether a test, with its alpha, reaches 1/alpha after any window of a story."""
    evidence, (value, alpha) = new_round(), test
    for number in range(windows):
        update(evidence, draw(rng, calls, story(number / windows)))
        if odds_reached(evidence, value, alpha):
            return True
    return False


def calls_until_found(
    rng: random.Random,
    truth: Moment,
    prior: Prior | None = None,
    after: RoundEvidence | None = None,
    calls: int = 20,
) -> int:
    """Return the canary calls until a worse canary is detected, at alpha 0.01."""
    evidence = after or new_round(prior)
    seen = 0
    while not odds_reached(evidence, errors, 0.01) and seen < 50_000:
        window = draw(rng, calls, truth)
        update(evidence, window)
        seen += window.canary.calls
    return seen


@dataclass(frozen=True, order=True)
class Call:
    """A call: when it ends, in seconds, and its place in order of assignment."""

    ends: float
    place: int
    is_canary: bool
    failed: bool


def unequal_calls(rng: random.Random, calls: int, rate: float, share: float) -> Iterator[Call]:
    """Yield ten calls a second; good canary calls end much later, and none fails more often."""
    for place in range(calls):
        is_canary, failed = rng.random() < share, rng.random() < rate
        takes = rng.expovariate(1.0) * (60 if is_canary and not failed else 1)
        yield Call(place / 10 + takes, place, is_canary, failed)


def in_order(calls: list[Call], share: float, size: int) -> Iterator[Window]:
    """Yield windows by assignment, each when its calls and all older ones have ended."""
    open_calls, next_window = Counter(call.place // size for call in calls), 0
    for call in sorted(calls):
        open_calls[call.place // size] -= 1
        while next_window < len(calls) // size and not open_calls[next_window]:
            yield counted(calls[next_window * size : (next_window + 1) * size], share)
            next_window += 1


def as_they_end(calls: list[Call], share: float, size: int) -> Iterator[Window]:
    """Yield windows by completion: the mistake that `in_order` avoids."""
    ordered = sorted(calls)
    for begins in range(0, len(ordered) - size + 1, size):
        yield counted(ordered[begins : begins + size], share)


def counted(calls: list[Call], share: float) -> Window:
    """Sum calls up to a window."""
    canary = [call.failed for call in calls if call.is_canary]
    stable = [call.failed for call in calls if not call.is_canary]
    return Window(share, Arm(len(canary), sum(canary)), Arm(len(stable), sum(stable)))


def most_by_chance(runs: int, rate: float, surely: float = 1e-6) -> int:
    """Return the quantile `surely` of a binomial count with this rate."""
    tail, count = 1.0, -1
    while tail > surely:
        count += 1
        log = math.lgamma(runs + 1) - math.lgamma(count + 1) - math.lgamma(runs - count + 1)
        tail -= math.exp(log + count * math.log(rate) + (runs - count) * math.log1p(-rate))
    return count
