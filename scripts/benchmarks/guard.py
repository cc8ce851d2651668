"""How soon the guard reverts a version that fails, and how often one that is as good as the old.

Simulated requests with known rates, passed to the daemon's own class. The seeds are fixed, so two
runs of the same length give the same numbers.
"""

from __future__ import annotations

import statistics

from rich.table import Table

from scripts.benchmarks.result import Options, Result
from tests.unit.supervisor.requests.support import ALPHA, MARGIN, hour, record, reverted_at

RUNS = 100
REQUESTS = 3_000
"""What a guard of a minute sees at 50 requests/s."""
RECORDS = {"none": (0, 0), "0 of 250": (250, 0), "15 of 3,000": (3_000, 15)}
RECORDS["900 of 180,000"] = (180_000, 900)
RATES = (0.5, 0.2, 0.1, 0.05)


async def run(options: Options) -> Result:
    runs = options.count or RUNS
    found = Table(
        "record",
        "allowed",
        *(f"{rate:.0%} fail" for rate in RATES),
        "as good",
        "at the margin",
        title=f"requests until the revert (median, slowest of {runs}); good versions reverted",
        title_justify="left",
    )
    data: dict[str, dict[str, object]] = {}
    for name, (requests, failed) in RECORDS.items():
        known = record(hour(requests, failed))
        cells: dict[str, object] = {"allowed": round(known.allowed, 4)}
        for rate in RATES:
            at = [reverted_at(known, rate, REQUESTS, seed) or REQUESTS + 1 for seed in range(runs)]
            cells[f"{rate:g}"] = f"{_shown(statistics.median_low(at))}, {_shown(max(at))}"
        for label, rate in (("as good", failed / max(requests, 1)), ("margin", known.allowed)):
            seeds = range(1_000, 1_000 + runs)
            cells[label] = sum(
                reverted_at(known, rate, REQUESTS, seed) is not None for seed in seeds
            )
        data[name] = cells
        found.add_row(name, *map(str, cells.values()))
    note = f"{REQUESTS:,} requests each; alpha {ALPHA:g}, margin {MARGIN:g}"
    return Result([found], data, [note])


def _shown(at: int) -> str:
    return f"{at:,}" if at <= REQUESTS else "not"
