"""The fewest canary calls, in the mean, that any test with the same promise can need.

Not a simulation: each number is a computed bound. A test that is wrong with a probability of at
most alpha stops at a random time T. For every price `wrong` of a false alarm

    E1[T]  >=  min over all stopping times of (E1[T] + wrong · P0(T < infinity))  -  wrong · alpha

The minimum is a problem of optimal stopping, whose state is the likelihood ratio z of the calls so
far. Under the null hypothesis the cost of one more call is z, and that of stopping `wrong`, so

    V(z) = min(wrong, z + E0 V(z · ratio of the next call))

V is concave, and is computed on a grid, with straight lines between its points and from 0 upwards:
both make it smaller, so the bound holds. Both hypotheses are single points that the test knows.

- Early, the canary fails r times as often as stable. The null hypothesis is the nearest one of the
  daemon's: both arms have the pooled rate. (A test for any rate is one for this rate.)
- Late, the canary has been good until one of its first 10,000 calls, all equally probable, and
  stable's rate is known. Then z + 1 takes the place of z before each of them: a change may be next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table

from atlas_supervisor.canary.stats.bets import STARTED_AT_FIRST
from atlas_supervisor.canary.stats.decision import ERRORS_PART, FIRST_ROUND
from scripts.benchmarks.result import Options, Result

ALPHA, SHARE = 0.01, 0.1
EARLY = ERRORS_PART * STARTED_AT_FIRST * FIRST_ROUND
LATE = ERRORS_PART * (1 - STARTED_AT_FIRST) * FIRST_ROUND
"""The parts of alpha that errors have from the first call on, and for later ones."""
LATE_CALLS = 10_000

_STEP = 0.02
_LOWEST = -5.0
_HORIZON = 4  # times the calls that evidence takes without chance


class Outcome(NamedTuple):
    """An outcome of a call: its chance under the null hypothesis, and its ratio's logarithm."""

    chance: float
    log_ratio: float


async def run(options: Options) -> Result:
    table = Table(title="mean of canary calls, share 10 %, alpha 1 %", title_justify="left")
    columns = ("", "oracle", "any test", "times", f"with {EARLY:.0%} of alpha", "times")
    for name in columns:
        table.add_column(name, justify="right" if name else "left")
    rows: dict[str, Any] = {}
    for base in (0.01, 0.05):  # a tenth of a percent takes ten times as long, and gives the same
        for times in (5, 15):
            known = oracle(base, times)
            found = [early(base, times, part * ALPHA) for part in (1.0, EARLY)]
            rows[f"{base:.1%} x{times}"] = [known, *found]
    known = oracle(0.01, 5)
    found = [late(0.01, 5, part * ALPHA) for part in (1.0, LATE)]
    rows[f"1 % x5, late (with {LATE:.0%} of alpha)"] = [known, *found]
    for name, (known, *found) in rows.items():
        both = [text for each in found for text in (f"{each:,.1f}", f"{each / known:.2f}")]
        table.add_row(name, f"{known:,.1f}", *both)
    notes = ["the oracle is an SPRT that knows both rates and that stable's is given"]
    return Result([table], rows, notes)


def early(base: float, times: float, alpha: float) -> float:
    """Return a bound of the mean canary calls until a canary that was always bad is found."""
    pooled = SHARE * times * base + (1 - SHARE) * base
    calls = [
        Outcome(part * null, math.log(truth / null))
        for part, rate in ((SHARE, times * base), (1 - SHARE, base))
        for truth, null in ((rate, pooled), (1 - rate, 1 - pooled))
    ]
    return SHARE * bound(calls, alpha, steps=round(_HORIZON * math.log(1 / alpha) / growth(calls)))


def late(base: float, times: float, alpha: float) -> float:
    """Return a bound of the mean canary calls from a change until it is found."""
    return bound(known_base(base, times), alpha, LATE_CALLS + 1_500, LATE_CALLS)


def known_base(base: float, times: float) -> list[Outcome]:
    """Return the outcomes of a canary call if stable's rate is known."""
    bad = times * base
    return [
        Outcome(base, math.log(bad / base)),
        Outcome(1 - base, math.log1p(-bad) - math.log1p(-base)),
    ]


def bound(calls: Sequence[Outcome], alpha: float, steps: int, changes: int = 0) -> float:
    """Return the bound by one price, which is near the best one."""
    price = 1 / (growth(calls) * alpha)
    return least_cost(calls, price, steps, changes) - price * alpha


def growth(calls: Sequence[Outcome]) -> float:
    """Return the mean growth of the ratio's logarithm by a call, if the canary is bad."""
    return sum(each.chance * math.exp(each.log_ratio) * each.log_ratio for each in calls)


def least_cost(calls: Sequence[Outcome], wrong: float, steps: int, changes: int) -> float:
    """Return V at the beginning, after so many calls at most; what may follow is not counted."""
    highest = math.log(wrong * max(changes, 1)) + 1
    grid = [math.exp(at * _STEP) for at in range(int(_LOWEST / _STEP), int(highest / _STEP) + 1)]
    size, per_call = len(grid), 1 / max(changes, 1)
    value = [0.0] * size
    reached = [[(each.chance, *place(grid, z, each.log_ratio)) for each in calls] for z in grid]
    changing = [
        [(each.chance, *place(grid, z + 1, each.log_ratio)) for each in calls] for z in grid
    ]
    for left in range(1, steps + 1):
        new = steps - left < changes
        value = [
            min(
                wrong,
                (z + new) * per_call
                + sum([p * (value[at] * low + value[at + 1] * high) for p, at, low, high in moves]),
            )
            for z, moves in zip(grid, changing if new else reached, strict=True)
        ]
    return value[0] if changes else value[-int(_LOWEST / _STEP)]


def place(grid: Sequence[float], z: float, log_ratio: float) -> tuple[int, float, float]:
    """Return where a ratio is after a call: a point of the grid, its weight and the next one's.

    Below the grid the line leads to V(0) = 0; above it V is that of its end.
    """
    reached = math.exp(math.log(z) + log_ratio)
    at = math.floor(math.log(reached / grid[0]) / _STEP)
    if at < 0:
        return 0, reached / grid[0], 0.0
    if at >= len(grid) - 1:
        return len(grid) - 2, 0.0, 1.0
    high = (reached - grid[at]) / (grid[at + 1] - grid[at])
    return at, 1 - high, high


def oracle(base: float, times: float) -> float:
    """Return the mean canary calls of an SPRT that knows both rates."""
    bad, worked = known_base(base, times)
    rate, calls, mean = times * base, 0, 0.0
    chances = {0: 1.0}
    while (going := sum(chances.values())) > 1e-9:
        mean, calls = mean + going, calls + 1
        after: dict[int, float] = {}
        for failed, chance in chances.items():
            for more, by in ((0, 1 - rate), (1, rate)):
                log = (failed + more) * bad.log_ratio + (calls - failed - more) * worked.log_ratio
                if log < -math.log(ALPHA):
                    after[failed + more] = after.get(failed + more, 0.0) + chance * by
        chances = after
    return mean
