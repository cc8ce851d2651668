"""How often two versions are judged wrongly by users' requests, and how soon a bad one is found.

Simulated clients of both versions, with the daemon's own counts and comparison. The seeds are
fixed, so two runs of the same length give the same numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from atlas_supervisor.model.verdict import Verdict
from scripts.benchmarks.result import Options, Result
from tests.unit.supervisor.canary.stats.support import most_by_chance, seeded
from tests.unit.supervisor.requests.support import AddressWorld, Version, World, ramped

RUNS = 100
SHARES, SECONDS = (0.05, 0.25, 0.5), 60
GOOD = Version(0.01)
ADDRESSES: Mapping[str, Any] = {"world": AddressWorld}
MANY: Mapping[str, Any] = {**ADDRESSES, "addresses": 6000, "pause": 100.0}
ALIKE: Mapping[str, Mapping[str, Any]] = {
    "alike": {},
    "one connection in 20 has 100 requests": {"heavy": 0.05},
    "(the same, each request as evidence)": {"heavy": 0.05, "every_request": True},
    "error rate times 1 to 7 each minute": {"drift": lambda seconds: 1 + seconds % 60 / 10},
    "old failures take 5 s, new ones 1 ms": {
        "new": Version(0.05, 20.0, 1.0),
        "old": Version(0.05, 20.0, 5000.0),
    },
    "new is slower by 9 %": {"new": Version(0.01, 21.8)},
    "the daemon restarts 4 times on each step": {"restarts": 4},
    "600 addresses": ADDRESSES,
    "600 addresses, one has half of all requests": {**ADDRESSES, "heavy": 0.5},
    "600 addresses, one has 95 % of all requests": {**ADDRESSES, "heavy": 0.95},
    "200 addresses every 2 s": {**ADDRESSES, "addresses": 200, "pause": 2.0},
    "6,000 addresses": MANY,
    "600 addresses, times 1 to 7": {**ADDRESSES, "drift": lambda seconds: 1 + seconds % 60 / 10},
    "the same addresses fail always": {**ADDRESSES, "persistent": True},
    "the same addresses fail, old 5 s, new 1 ms": {
        **ADDRESSES,
        "persistent": True,
        "addresses": 300,
        "pause": 1.0,
        "new": Version(0.1, 20.0, 1.0),
        "old": Version(0.1, 20.0, 5000.0),
    },
    "600 addresses, slower by 9 %": {**ADDRESSES, "new": Version(0.01, 21.8)},
    "600 addresses, 3 restarts on each step": {**ADDRESSES, "restarts": 3},
}
WORSE: Mapping[str, tuple[Version, Version, Mapping[str, Any]]] = {
    "5 % beside 0.5 %": (Version(0.05), Version(0.005), {}),
    "20 % beside 0.5 %": (Version(0.2), Version(0.005), {}),
    "2 % beside 0.5 %": (Version(0.02), Version(0.005), {}),
    "latency times 1.5": (Version(0.01, 30.0), GOOD, {}),
    "5 % beside 0.5 %, 6,000 addresses": (Version(0.05), Version(0.005), MANY),
    "the same, one has half of all": (Version(0.05), Version(0.005), {**MANY, "heavy": 0.5}),
    "5 % beside 0.5 %, 600 addresses": (Version(0.05), Version(0.005), ADDRESSES),
    "50 % beside 0.5 %, 200 addresses": (
        Version(0.5),
        Version(0.005),
        {**ADDRESSES, "addresses": 200, "pause": 2.0},
    ),
}


async def run(options: Options) -> Result:
    runs = options.count or RUNS
    wrong = {name: alike(story, runs) for name, story in ALIKE.items()}
    found = {name: worse(*versions, runs) for name, versions in WORSE.items()}
    return Result(
        [wrong_table(wrong, runs), found_table(found, runs)],
        {"runs": runs, "alike": wrong, "worse": found},
        [
            f"30 connections a second, shares {SHARES}, {SECONDS} s on each; 1 % of both fail",
            f"alpha is 1 %: up to {most_by_chance(runs, 0.01, 0.001)} of {runs} by chance",
        ],
    )


def alike(story: Mapping[str, Any], runs: int) -> dict[str, int]:
    """Return how many versions that are no worse are reverted, and how many are found so."""
    counts = dict.fromkeys(("reverted", "no worse"), 0)
    for seed in range(runs):
        options = {"new": GOOD, "old": GOOD, **story}
        restarts, world = options.pop("restarts", 0), options.pop("world", World)
        last, _ = ramped(world(seeded(seed), **options), SHARES, SECONDS, restarts, every=2)
        counts["reverted"] += last.verdict is Verdict.FAIL
        counts["no worse"] += last.verdict is Verdict.PASS
    return counts


def worse(new: Version, old: Version, more: Mapping[str, Any], runs: int) -> dict[str, float]:
    """Return how many worse versions are found, and medians of what it took."""
    seconds, requests, failed = [], [], []
    for seed in range(runs):
        options = dict(more)
        world = options.pop("world", World)(seeded(seed), new, old, **options)
        last, took = ramped(world, SHARES, SECONDS)
        if last.verdict is Verdict.FAIL and last.new is not None:
            seconds.append(took)
            requests.append(last.new.requests)
            failed.append(world.failed)
    medians = (statistics.median(each or [0]) for each in (seconds, requests, failed))
    names = ("seconds", "requests", "failed requests")
    most = {"failed requests at most": float(max(failed, default=0))}
    return {"found": float(len(failed)), **dict(zip(names, medians, strict=True)), **most}


def wrong_table(rows: Mapping[str, dict[str, int]], runs: int) -> Table:
    shown = Table(title=f"a version that is no worse, {runs} ramps each", title_justify="left")
    shown.add_column("")
    for column in ("reverted", "no worse"):
        shown.add_column(column, justify="right")
    for name, row in rows.items():
        shown.add_row(name, *map(str, row.values()))
    return shown


def found_table(rows: Mapping[str, dict[str, float]], runs: int) -> Table:
    shown = Table(title=f"a version that is worse, {runs} ramps each", title_justify="left")
    shown.add_column("new beside old")
    for column in ("found", "after s", "its requests", "of them failed", "failed at most"):
        shown.add_column(column, justify="right")
    for name, row in rows.items():
        shown.add_row(name, *(f"{each:.0f}" for each in row.values()))
    return shown
