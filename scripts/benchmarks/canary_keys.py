"""Verdicts on a canary whose users come back: a part of `./scripts/bench canary-statistics`.

All users call once on each step, in random order, and once on each day after the last one. Their
draws and windows are counted as the daemon does, and given to the daemon's own evidence.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from rich.table import Table

from atlas_supervisor.canary.stats.counts import CallWindow, Side, Stratum
from atlas_supervisor.canary.stats.decision import RampEvidence
from atlas_supervisor.canary.stats.windows import KeyDraws
from tests.unit.supervisor.canary.stats.support import seeded

SHORT, HALF, LONG = (0.05, 0.25), (0.05, 0.25, 0.5), (0.05, 0.25, 0.5, 0.75, 0.9)
ALPHA = 0.01
DAYS = 4
_PART, _MOST = 0.04, 20  # calls of a window: this part of all, at most so many


class Canary(NamedTuple):
    """How a canary's calls fail. `always` is the share of users whose canary calls all do."""

    stable_rate: float = 0.01
    worse: float = 0.0
    bad_from: int = 0
    """The step from which it is worse."""
    always: float = 0.0


class _Call(NamedTuple):
    stratum: Stratum
    canary: bool
    failed: bool


class Ramp:
    """A ramp that the same users call, with its evidence."""

    def __init__(
        self, rng: random.Random, users: int, canary: Canary, *, step_days: bool = False
    ) -> None:
        self.rng, self.canary, self.step_days = rng, canary, step_days
        self.hashes = [rng.random() for _ in range(users)]
        self.evidence = RampEvidence("vision", alpha=ALPHA)
        self.keys, self.today = KeyDraws(), KeyDraws()
        self.day, self.calls, self.windows = 1, 0, 0

    def play(self, shares: Sequence[float], days: int = DAYS) -> tuple[str, int]:
        """Return `promoted`, `rolled back` or `held`, and the day."""
        for step, share in enumerate(shares):
            if self.step_days and step:
                self._start_day()
            if (found := self._judge(share, step, may_promote=step == len(shares) - 1)) is not None:
                return found, self.day
        while self.day < days:
            self._start_day()
            if (found := self._judge(shares[-1], len(shares) - 1, may_promote=True)) is not None:
                return found, self.day
        return "held", self.day

    def _start_day(self) -> None:
        self.day, self.today = self.day + 1, KeyDraws()
        self.evidence.start_round(self.day)

    def _judge(self, share: float, step: int, *, may_promote: bool) -> str | None:
        """Let all users call once, and return the verdict."""
        if may_promote and self.evidence.promotes:
            return "promoted"
        for window in self._windows([*self._called(share, step)]):
            self.evidence.close(window)
            if self.evidence.largest >= -math.log(ALPHA):
                return "rolled back"
            if may_promote and self.evidence.promotes:
                return "promoted"
        return None

    def _called(self, share: float, step: int) -> Iterator[_Call]:
        """Yield the calls that are evidence, in each round."""
        for user in self.rng.sample(range(len(self.hashes)), len(self.hashes)):
            canary = self.hashes[user] < share
            rate = self.canary.stable_rate
            if canary and step >= self.canary.bad_from:
                rate += self.canary.worse
            always = canary and user < self.canary.always * len(self.hashes)
            failed = always or self.rng.random() < rate
            chance = self.keys.draw(share, user, canary=canary)
            again = self.today.draw(share, user, canary=canary) if self.day > 1 else None
            for number, drawn in ((1, chance), (self.day, again)):
                if drawn is not None:
                    yield _Call(Stratum(1, drawn, number), canary, failed)

    def _windows(self, calls: list[_Call]) -> Iterator[CallWindow]:
        """Yield closed windows, each of calls that were drawn alike."""
        while calls:
            size = max(1, min(_MOST, int(_PART * self.calls)))
            now, calls = calls[:size], calls[size:]
            self.calls += size
            for stratum, alike in groupby(sorted(now), key=lambda call: call.stratum):
                counted = Counter((call.canary, call.failed) for call in alike)
                window = CallWindow(self.windows, stratum, self.windows, self.windows)
                window.canary, window.stable = _side(counted, True), _side(counted, False)
                self.windows += 1
                yield window


def _side(counted: Counter[tuple[bool, bool]], canary: bool) -> Side:
    failed = counted[canary, True]
    return Side(counted[canary, False] + failed, failed)


class Case(NamedTuple):
    name: str
    shares: tuple[float, ...]
    canary: Canary
    step_days: bool = False


CASES = (
    *(
        Case(f"good, {rate:.0%}", shares, Canary(rate))
        for rate in (0.0, 0.01, 0.02, 0.05)
        for shares in (SHORT, HALF, LONG)
    ),
    *(Case(f"good, {rate:.0%}, a day a step", LONG, Canary(rate), True) for rate in (0.0, 0.01)),
    Case("at the margin", LONG, Canary(0.01, 0.02)),
    Case("at the margin, a day a step", LONG, Canary(0.01, 0.02), True),
    Case("2 % of users always fail", SHORT, Canary(0.0, always=0.02)),
    Case("2 % of users always fail", LONG, Canary(0.0, always=0.02)),
    Case("five times the errors", LONG, Canary(0.01, 0.04)),
    Case("12 % more from step two on", SHORT, Canary(0.01, 0.12, bad_from=1)),
    Case("12 % more from step two on", LONG, Canary(0.01, 0.12, bad_from=1)),
)


def played(case: Case, users: int, runs: int) -> Counter[str]:
    """Return how often each verdict was reached."""
    found: Counter[str] = Counter()
    for seed in range(runs):
        verdict, _ = Ramp(seeded(seed), users, case.canary, step_days=case.step_days).play(
            case.shares
        )
        found[verdict] += 1
    return found


def table(runs: int, users: Sequence[int] = (100, 300, 1_000)) -> tuple[Table, dict[str, Any]]:
    """Return how often each case reaches each verdict, of so many runs."""
    title = f"users who come back for {DAYS} days: promoted / rolled back, of {runs} runs"
    shown = Table(title=title, title_justify="left")
    data: dict[str, Any] = {}
    shown.add_column("")
    shown.add_column("shares below 1")
    for count in users:
        shown.add_column(f"{count:,} users", justify="right")
    for case in CASES:
        cells = [played(case, count, runs) for count in users]
        shares = ", ".join(f"{share:.0%}" for share in case.shares)
        shown.add_row(
            case.name,
            shares,
            *(f"{each['promoted']} / {each['rolled back']}" for each in cells),
        )
        data[f"{case.name}; {shares}"] = dict(zip(map(str, users), map(dict, cells), strict=True))
    return shown, data
