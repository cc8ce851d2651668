"""How often a ramp promotes a good canary by evidence, by how many keys call: before it starts.

Each key is a draw at the ramp's first share, and while it is stable's again at each larger one,
with the chance (share - before) / (1 - before). Neither arm is worse: calls fail with the same
rate, which the bets know. A real ramp learns it and is looked at more often: a few points differ.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atlas_supervisor.canary.stats.bets import (
    PROMOTION_WEIGHTS,
    Bet,
    Mixture,
    Outcomes,
    log_factors,
    margin_bets,
)
from atlas_supervisor.canary.stats.counts import MIN_RATE

RUNS = 400
FURTHER = (0.5, 0.75, 0.9)
"""Shares that would make a ramp longer."""

_LOOKS = 20  # at the evidence of the last step
_NORMAL = 50.0  # the variance from which on a count is drawn as a normal one


class Step(NamedTuple):
    """One step of a ramp: the canary's chance at the first calls of keys that are stable's."""

    chance: float
    is_last: bool


def steps_of(shares: Sequence[float]) -> Iterator[Step]:
    """Yield the steps with a larger share than before."""
    before = 0.0
    for share in shares:
        if share > before:
            yield Step((share - before) / (1 - before), share == max(shares))
        before = max(before, share)


def promoted(
    keys: int, shares: Sequence[float], rate: float, *, margin: float, needed: float, seed: int = 1
) -> float:
    """Return the part of RUNS good canaries whose evidence reaches this logarithm."""
    rng = random.Random(seed)  # noqa: S311 - the same question gets the same answer
    steps = [
        (step, margin_bets(step.chance, max(rate, MIN_RATE), margin)) for step in steps_of(shares)
    ]
    return sum(_reaches(rng, keys, steps, rate, needed) for _ in range(RUNS)) / RUNS


def _reaches(
    rng: random.Random,
    keys: int,
    steps: Sequence[tuple[Step, Sequence[Bet]]],
    rate: float,
    needed: float,
) -> bool:
    evidence, left = Mixture(PROMOTION_WEIGHTS), keys
    for step, bets in steps:
        looks = _LOOKS if step.is_last else 1
        before = left
        for look in range(looks):
            drawn = before * (look + 1) // looks - before * look // looks
            canary = _draw(rng, drawn, step.chance)
            failed = _draw(rng, canary, rate), _draw(rng, drawn - canary, rate)
            calls = Outcomes(failed[0], canary - failed[0], failed[1], drawn - canary - failed[1])
            evidence.multiply(log_factors(bets, calls))
            left -= canary
            if step.is_last and evidence.log_e >= needed:
                return True
    return False


def _draw(rng: random.Random, calls: int, rate: float) -> int:
    """Draw a binomial count by the gaps between hits; if they are many, as a normal one."""
    if rate <= 0 or calls <= 0:
        return 0
    variance = calls * rate * (1 - rate)
    if variance > _NORMAL:
        return min(max(round(rng.gauss(calls * rate, math.sqrt(variance))), 0), calls)
    hits, at, log = 0, -1, math.log1p(-rate)
    while True:
        gap = math.log(1 - rng.random()) / log  # infinite for the smallest rates
        if gap >= calls - at - 1:
            return hits
        at += 1 + int(gap)
        hits += 1
