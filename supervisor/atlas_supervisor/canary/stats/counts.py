"""The counts that all evidence is computed from: per arm, per share, pooled, and per window.

An `Arm` is a pair of calls and errors. `Strata` adds both arms up by share, `Draws` counts
assignments by share, and `Baseline` is the pooled error rate before the next window. A `CallWindow`
has the calls of some slices, with and without outcome (`windows` has its theory and puts them in
order). All of them only count; the tests are in the modules named `…_evidence`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from atlas_worker.contract.ring import Outcome

MIN_RATE, MAX_RATE = 1e-9, 0.999
"""Bounds of the pooled rate. At 0 or 1 a single call would decide everything."""

MIN_SHARE = 1e-6
"""Below this share, or above its complement, calls are not compared."""


@dataclass(frozen=True)
class Arm:
    """Calls of one arm, and how many of them failed.

    Raises ValueError for impossible counts.
    """

    calls: int = 0
    errors: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.errors <= self.calls:
            raise ValueError(f"an arm can't have {self.errors} errors in {self.calls} calls")

    def __add__(self, other: Arm) -> Arm:
        return Arm(self.calls + other.calls, self.errors + other.errors)

    @property
    def rate(self) -> float | None:
        """The error rate; None without calls."""
        return self.errors / self.calls if self.calls else None


def is_drawn(share: float) -> bool:
    """Return whether both arms get calls at this share, so that they can be compared."""
    return MIN_SHARE <= share <= 1 - MIN_SHARE


@dataclass
class Strata:
    """The calls of both arms in one ramp, by share.

    Only calls of the same share are compared. If the error rate of both arms rises while the
    canary's share rises too, the canary has more of the bad hours, and its pooled rate is higher
    although it is no worse (Simpson's paradox).
    """

    by_share: dict[float, tuple[Arm, Arm]] = field(default_factory=dict)
    last_share: float | None = None

    def add(self, share: float, canary: Arm, stable: Arm) -> None:
        """Add calls of both arms, unless they were not drawn at random."""
        if is_drawn(share):
            before = self.by_share.get(share, (Arm(), Arm()))
            self.by_share[share] = (before[0] + canary, before[1] + stable)
            self.last_share = share

    @property
    def canary(self) -> Arm:
        """All canary calls."""
        return sum((canary for canary, _ in self.by_share.values()), Arm())

    @property
    def stable(self) -> Arm:
        """All stable calls."""
        return sum((stable for _, stable in self.by_share.values()), Arm())

    @property
    def stable_rate(self) -> float | None:
        """Stable's error rate, each share weighted by its canary calls; None without calls."""
        both = [(canary.calls, stable) for canary, stable in self.by_share.values() if canary.calls]
        weighted = [(calls, stable.rate) for calls, stable in both if stable.rate is not None]
        calls = sum(calls for calls, _ in weighted)
        return sum(calls * rate for calls, rate in weighted) / calls if calls else None

    def to_list(self) -> list[list[float]]:
        """Return the strata as JSON values, without loss; the last share comes last."""
        order = sorted(self.by_share, key=lambda share: share == self.last_share)
        return [
            [share, canary.calls, canary.errors, stable.calls, stable.errors]
            for share, (canary, stable) in ((share, self.by_share[share]) for share in order)
        ]

    @classmethod
    def from_list(cls, saved: list[list[float]]) -> Strata:
        """Return the strata that `to_list` has saved."""
        strata = cls()
        for share, *counts in saved:
            cc, ce, sc, se = (int(each) for each in counts)
            strata.add(share, Arm(cc, ce), Arm(sc, se))
        return strata


@dataclass
class Draws:
    """Assignments to the canary and to stable, by share. A key is drawn once, by its first call."""

    by_share: dict[float, tuple[int, int]] = field(default_factory=dict)

    def add(self, share: float, count: int, *, canary: bool) -> None:
        """Add assignments to one arm, unless they were not drawn at random."""
        if is_drawn(share):
            to_canary, to_stable = self.by_share.get(share, (0, 0))
            self.by_share[share] = (
                (to_canary + count, to_stable) if canary else (to_canary, to_stable + count)
            )

    def to_list(self) -> list[list[float]]:
        """Return the counts as JSON values."""
        return [[share, *counts] for share, counts in self.by_share.items()]

    @classmethod
    def from_list(cls, saved: Iterable[Iterable[float]]) -> Draws:
        """Return the counts that `to_list` has saved."""
        return cls({share: (int(canary), int(stable)) for share, canary, stable in saved})


@dataclass(frozen=True)
class Prior:
    """An error rate assumed before the first call, and the number of calls that it weighs.

    Raises ValueError for a rate outside (0, 1) or a weight that is not positive.
    """

    mean: float = 0.02
    weight: float = 2.0

    def __post_init__(self) -> None:
        if not (0 < self.mean < 1 and self.weight > 0):
            raise ValueError(f"not a prior: rate {self.mean}, weight {self.weight}")


class Baseline(NamedTuple):
    """Pooled error rate of both arms before the next window (m in docs/canary.md).

    Evidence is valid only if this rate is fixed before the window's first call.
    """

    prior: Prior
    calls: int = 0
    errors: int = 0

    @property
    def rate(self) -> float:
        """The pooled error rate, within [MIN_RATE, MAX_RATE]."""
        errors = self.prior.mean * self.prior.weight + self.errors
        return min(max(errors / (self.prior.weight + self.calls), MIN_RATE), MAX_RATE)

    def after(self, calls: int, errors: int) -> Baseline:
        """Return the baseline with more calls."""
        return Baseline(self.prior, self.calls + calls, self.errors + errors)

    def to_list(self) -> list[float]:
        """Return the counts as JSON values."""
        return [self.prior.mean, self.prior.weight, self.calls, self.errors]

    @classmethod
    def from_list(cls, saved: Iterable[Any]) -> Baseline:
        """Return the counts that `to_list` has saved."""
        mean, weight, calls, errors = saved
        return cls(Prior(mean, weight), calls, errors)


class CallKey(NamedTuple):
    """A call with a key: the ring of its process, the key's hash, and the call's serial."""

    ring: str
    key: int
    serial: int
    """0 in rings of an earlier kit, which does not name the call that ends: not evidence."""


class Group(NamedTuple):
    """Calls assigned alike: under one epoch, in one slice, to one arm."""

    epoch: int
    slice: int
    canary: bool


class Ended(NamedTuple):
    """Calls of one group that have ended alike."""

    outcome: int
    """An `Outcome` of the ring."""
    bucket: int
    calls: int = 1


def first_of(ended: Iterable[Ended], most: int) -> Iterator[Ended]:
    """Yield the first calls that have ended, at most so many."""
    for each in ended:
        if most <= 0:
            return
        yield each if each.calls <= most else each._replace(calls=most)
        most -= each.calls


class Stratum(NamedTuple):
    """Calls whose arm was drawn alike: with this share, given the past."""

    epoch: int
    share: float
    round: int = 1
    recorded: bool = False
    twice: bool = False
    """Whether its calls are also in a later round, where they are counted for readers."""


@dataclass
class Side:
    """The calls of one arm in a window that have an outcome."""

    calls: int = 0
    errors: int = 0
    latency: dict[int, int] = field(default_factory=dict)
    """Number of calls by latency bucket."""

    def add(self, ended: Ended) -> None:
        """Add calls that have ended."""
        outcome, bucket, count = ended
        self.calls += count
        self.errors += count if outcome == Outcome.ERROR else 0
        self.latency[bucket] = self.latency.get(bucket, 0) + count

    @property
    def arm(self) -> Arm:
        """The counts alone."""
        return Arm(self.calls, self.errors)

    def to_list(self) -> list[Any]:
        """Return it as JSON values."""
        return [self.calls, self.errors, list(self.latency.items())]

    @classmethod
    def from_list(cls, saved: Iterable[Any]) -> Side:
        """Return the side that `to_list` has saved."""
        calls, errors, latency = saved
        return cls(calls, errors, dict(map(tuple, latency)))


class OpenCalls(NamedTuple):
    """Calls without an outcome: `asked` ones may never get one."""

    slice: int
    canary: bool
    asked: bool


@dataclass
class CallWindow:
    """A window. `terms` is what its tests have fixed before its first call (`round_evidence`)."""

    number: int
    stratum: Stratum
    since: int
    """The first slice."""
    latest: int
    assigned: int = 0
    canary: Side = field(default_factory=Side)
    stable: Side = field(default_factory=Side)
    open: dict[OpenCalls, int] = field(default_factory=dict)
    unreported: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    """Calls that were never reported, by arm (True: canary)."""
    terms: Any = None
    bets: Any = None
    """What the tests have computed from the terms."""
    changed: bool = True
    """Whether calls were assigned or have ended since the tests have counted them."""

    def side(self, *, canary: bool) -> Side:
        """Return one arm."""
        return self.canary if canary else self.stable

    def opened(self, *, canary: bool) -> int:
        """Return the number of calls of an arm without an outcome."""
        return sum([count for calls, count in self.open.items() if calls.canary is canary])

    def close(self, calls: OpenCalls, count: int) -> int:
        """Take calls out of the open ones; return how many were."""
        left = self.open.get(calls, 0)
        if count < left:
            self.open[calls] = left - count
            return count
        self.open.pop(calls, None)
        return left

    def is_complete(self, before: int) -> bool:
        """Return whether all calls have ended, and no more of these slices are to be expected."""
        return not self.open and self.latest < before

    def to_list(self) -> list[Any]:
        """Return it as JSON values."""
        return [
            self.number,
            list(self.stratum),
            [self.since, self.latest, self.assigned],
            self.canary.to_list(),
            self.stable.to_list(),
            [[*calls, count] for calls, count in self.open.items()],
            [self.unreported[True], self.unreported[False]],
            self.terms.to_list() if self.terms is not None else None,
        ]

    @classmethod
    def from_list(cls, saved: Iterable[Any]) -> CallWindow:
        """Return the window that `to_list` has saved."""
        number, stratum, counts, canary, stable, opened, (lost, others), terms = saved
        since, latest, assigned = counts
        return cls(
            number,
            Stratum(*stratum),
            since,
            latest,
            assigned,
            Side.from_list(canary),
            Side.from_list(stable),
            {OpenCalls(*calls): count for *calls, count in opened},
            {True: lost, False: others},
            terms,
        )
