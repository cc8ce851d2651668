"""The canary's evidence beside three packages and two oracles, on the same seeded streams.

Ours is the daemon's own `Evidence`: events in, windows, judge, conclusion after each slice. The
packages run in environments of their own (`requirements-peers.lock`), made once and kept in the
user's cache; what can't be installed is left out. The first oracle is an SPRT that knows both
rates; the second knows them too, but its null hypothesis is ours: any rate that both arms share.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from rich.table import Table

from atlas_supervisor.canary.evidence import Evidence, Moment, SavedState
from atlas_supervisor.config import Settings
from atlas_supervisor.model.canary import EpochRow
from atlas_supervisor.model.verdict import Verdict
from atlas_worker.contract.ring import SLICE_SECONDS, EventKind, Outcome, RingEvent
from scripts.benchmarks.canary_streams import (
    ALPHA,
    MARGIN,
    NULL_OF,
    PROMOTE_ALPHA,
    Arm,
    Kind,
    Scenario,
    Slice,
)
from scripts.benchmarks.canary_streams import scenarios as all_scenarios
from scripts.benchmarks.result import Options, Result, quantile
from tests.unit.supervisor.canary.stats.support import most_by_chance

ROOT = Path(__file__).parents[2]
RUNS, CHUNK = 20, 4
METHODS = ("ours", "with past", "gbstats", "savvi", "confseq", "oracle", "any base")
PEERS = ("gbstats", "savvi", "confseq")
WRONG = tuple(NULL_OF.values())
EARLY, LATE, BEHIND = 1.15, 2.5, 1.05
"""Goals: at most so many times the oracle's calls, and those of a peer that is valid."""

_INSTALL_SECONDS = 300.0
_FEATURE = "vision"
_FIRST_SLICE = 100_000


class Found(NamedTuple):
    """Of one run: the canary calls until each method finds, or infinity; None without a method."""

    calls: dict[str, float | None]
    early: frozenset[str]
    """The methods that found something before the last phase, when there was nothing."""


Looks = Callable[[Scenario, list[Slice]], Iterator[bool]]


async def run(options: Options) -> Result:
    runs = options.count or RUNS
    notes: list[str] = []
    pythons = await environments(notes)
    scenarios, loop = all_scenarios(), asyncio.get_running_loop()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            loop.run_in_executor(pool, play, scenario.name, seeds, pythons)
            for scenario in scenarios
            for seeds in chunks(runs)
        ]
        played = [found for chunk in await asyncio.gather(*jobs) for found in chunk]
    rows = {
        scenario.name: summed(scenario, played[at * runs : (at + 1) * runs])
        for at, scenario in enumerate(scenarios)
    }
    kinds = {scenario.name: scenario for scenario in scenarios}
    notes += [
        "found: canary calls until then, median/p90; alike and at the margin: wrong, of all runs",
        f"alpha {ALPHA:.0%} for rollbacks, {PROMOTE_ALPHA:.0%} for promotions; share 10 %",
        "CANARY_MIN_CALLS=1; as shipped (20) no rollback for errors comes before 20 canary calls",
        "with past: 2,000 stable calls in the hour before; found too early counts as wrong",
        *goals(kinds, rows, runs),
    ]
    return Result([table(rows, runs)], {"runs": runs, "rows": rows}, notes)


# One run.


def chunks(runs: int) -> list[range]:
    """Return the seeds, by chunk."""
    return [range(at, min(at + CHUNK, runs)) for at in range(0, runs, CHUNK)]


def play(name: str, seeds: Iterable[int], pythons: tuple[str, ...]) -> list[Found]:
    """Return the findings of each method in some runs."""
    scenario = next(each for each in all_scenarios() if each.name == name)
    streams = {seed: list(scenario.slices(seed)) for seed in seeds}
    by_packages = [peers(python, scenario, list(streams.values())) for python in pythons]
    played = []
    for number, (seed, slices) in enumerate(streams.items()):
        found = {
            "ours": first(ours(scenario, slices)),
            "with past": first(ours(scenario, slices, scenario.past(seed))),
            **by_oracles(scenario, slices),
        }
        for each in by_packages:
            found |= each[number]
        played.append(until(scenario, slices, found))
    return played


def by_oracles(scenario: Scenario, slices: list[Slice]) -> dict[str, int | None]:
    """Return the looks after which the oracles find something that is there."""
    if scenario.kind in WRONG:
        return {}
    threshold = -math.log(scenario.alpha)
    found = {"oracle": first(reaches((each.oracle for each in slices), threshold))}
    if scenario.kind is Kind.ERRORS:
        found["any base"] = first(reaches((each.any_base for each in slices), threshold))
    return found


def first(looks: Iterable[bool]) -> int | None:
    """Return the number of the first look that finds something."""
    return next((at for at, yes in enumerate(looks) if yes), None)


def until(scenario: Scenario, slices: list[Slice], found: dict[str, int | None]) -> Found:
    """Return the canary calls of the last phase until each method has found what it looks for."""
    begins, calls = scenario.begins, dict.fromkeys(METHODS)
    return Found(
        {
            **calls,
            **{
                name: math.inf
                if at is None
                else sum(each.canary.calls for each in slices[begins : at + 1])
                for name, at in found.items()
            },
        },
        frozenset(name for name, at in found.items() if at is not None and at < begins),
    )


def reaches(growth: Iterable[float], threshold: float) -> Iterator[bool]:
    """Yield whether the sum reaches a threshold, after each part.

    Before a change both hypotheses say the same, so the growth is 0 and an oracle waits for it.
    """
    total = 0.0
    for each in growth:
        total += each
        yield total >= threshold


def ours(scenario: Scenario, slices: list[Slice], past: Iterable[Slice] = ()) -> Iterator[bool]:
    """Yield whether the daemon's evidence reaches the scenario's verdict, after each slice."""
    settings = Settings(
        base_dir=Path("/"),
        state_dir=Path("/"),
        canary_enabled=True,
        canary_features=(_FEATURE,),
        canary_min_calls=1,
        canary_alpha=ALPHA,
        canary_promote_alpha=PROMOTE_ALPHA,
        canary_margin=MARGIN,
        canary_latency_margin=scenario.latency_margin,
    )
    wanted = Verdict.PASS if scenario.kind.promotes else Verdict.FAIL
    evidence = Evidence(settings, SavedState(unix=_at(_FIRST_SLICE).unix))
    now, epoch, ramp, share = _FIRST_SLICE, 0, 0, -1.0
    before = list(past)
    for number, each in enumerate([*before, *slices]):
        if each.share != share:
            epoch, fresh, share = epoch + 1, number in (0, len(before)), each.share
            ramp = epoch if fresh else ramp
            row = EpochRow(epoch, _FEATURE, ramp, share, "2026-01-01", "benchmark")
            evidence.start_epoch(row, fresh=fresh)
            evidence.set_ramps({_FEATURE: ramp} if share else {})
        evidence.add_events("ring", events(each, epoch, now), [], _at(now))
        now += 1
        evidence.advance(_at(now))
        if number >= len(before):
            reached = evidence.conclusion(_FEATURE)
            yield reached is not None and reached.verdict is wanted


def _at(slice_number: int) -> Moment:
    return Moment(slice_number, 1_800_000_000.0 + slice_number * SLICE_SECONDS)


def events(calls: Slice, epoch: int, now: int) -> Counter[RingEvent]:
    """Return the events that a worker writes for these calls, which end at once."""
    found: Counter[RingEvent] = Counter()
    for is_canary, arm in ((True, calls.canary), (False, calls.stable)):
        for (failed, bucket), count in arm.outcomes.items():
            if count:
                begun = RingEvent(EventKind.STARTED, is_canary, 0, epoch, now, 0)
                outcome = Outcome.ERROR if failed else Outcome.OK
                found[begun] += count
                found[RingEvent(EventKind.ENDED, is_canary, outcome, epoch, now, bucket)] += count
    return found


# The packages.


async def environments(notes: list[str]) -> tuple[str, ...]:
    """Return the interpreters that have the packages; what is missing is noted."""
    python310 = shutil.which("python3.10")
    made = []
    for names, python in (("gbstats, savvi", sys.executable), ("confseq", python310)):
        found = await asyncio.to_thread(environment, python) if python else None
        if found:
            made.append(found)
        else:
            notes.append(f"left out: {names} (confseq needs Python 3.10, all a package index)")
    return tuple(made)


def environment(python: str) -> str | None:
    """Return the interpreter of an environment with what the lock file has for this Python."""
    lock = ROOT / "requirements-peers.lock"
    try:
        version = subprocess.run([python, "-VV"], check=True, capture_output=True).stdout
        digest = hashlib.sha256(lock.read_bytes() + version).hexdigest()[:16]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "atlas-supervisor-bench" / f"peers-{digest}"
        made, inside = folder / ".made", str(folder / "bin/python")
        if not made.exists():
            pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            wheels = ["--require-hashes", "--only-binary", ":all:", "--requirement", str(lock)]
            for command in ([python, "-m", "venv", "--clear", str(folder)], [*pip, *wheels]):
                subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
            made.touch()
    except (OSError, subprocess.SubprocessError):
        return None
    return inside


def peers(
    python: str, scenario: Scenario, streams: list[list[Slice]]
) -> list[dict[str, int | None]]:
    """Return the looks after which the packages of one environment find something, by stream."""
    about = {null: kind for kind, null in NULL_OF.items()}.get(scenario.kind, scenario.kind)
    same = {
        "about": about,
        "alpha": scenario.alpha,
        "null": MARGIN if scenario.kind.promotes else math.log1p(scenario.latency_margin),
    }
    program, found = package_program(python), []
    for slices in streams:
        job = {**same, "slices": [counts(each) for each in slices]}
        program.stdin.write(json.dumps(job) + "\n")
        program.stdin.flush()
        found.append(json.loads(program.stdout.readline()))
    return found


class Program(NamedTuple):
    """A running `peer_methods.py`; it ends when this process does."""

    stdin: IO[str]
    stdout: IO[str]


@cache
def package_program(python: str) -> Program:
    """Start the packages' program, once for each process: its imports take a second."""
    command = [python, "-W", "ignore", str(Path(__file__).with_name("peer_methods.py"))]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    return Program(cast("IO[str]", child.stdin), cast("IO[str]", child.stdout))


def counts(each: Slice) -> list[float]:
    """Return a slice as the packages get it: its share, and both arms' sums."""
    arms = (each.canary, each.stable)
    return [each.share, *(value for arm in arms for value in sums(arm))]


def sums(arm: Arm) -> tuple[float, ...]:
    return arm.calls, arm.errors, arm.log_sum, arm.log_squares


# All runs.


def summed(scenario: Scenario, played: list[Found]) -> dict[str, Any]:
    """Return each method's summary: [wrong], or [median, p90, wrong before there was anything]."""
    row: dict[str, Any] = {}
    for name in METHODS:
        calls = [each.calls[name] for each in played]
        known = [each for each in calls if each is not None]
        if not known:
            continue
        if scenario.kind in WRONG:
            row[name] = [sum(math.isfinite(each) for each in known)]
        else:
            early = sum(name in each.early for each in played)
            row[name] = [statistics.median(known), quantile(known, 0.9), early]
    return row


def goals(
    scenarios: dict[str, Scenario], rows: dict[str, dict[str, Any]], runs: int
) -> Iterator[str]:
    """Yield a line for each goal."""
    errors = [name for name, each in scenarios.items() if each.kind is Kind.ERRORS]
    late = [name for name in errors if scenarios[name].begins]
    early = [name for name in errors if name.endswith(("x5", "x15"))]
    for method in ("ours", "with past"):
        over = [
            name for name in rows if not is_within(scenarios[name], rows[name].get(method), runs)
        ]
        words = f"not met: {', '.join(over)}" if over else "met"
        yield f"{method}, wrong: at most alpha, or by chance: {words}"
        for title, names, bound in (("early, x5 and x15", early, EARLY), ("late", late, LATE)):
            for oracle in ("oracle", "any base"):
                ratios = {name: ratio(rows[name], method, oracle) for name in names}
                yield goal(f"{method}, {title}: at most {bound:g} times {oracle}", ratios, bound)
        behind = {
            f"{name} ({peer})": ratio(row, method, peer)
            for name, row in rows.items()
            for peer in PEERS
            if scenarios[name].kind not in WRONG
            and peer in row
            and is_valid(peer, scenarios[name].kind, scenarios, rows, runs)
        }
        yield goal(f"{method}: at most {BEHIND:g} times a valid package", behind, BEHIND)


def ratio(row: dict[str, Any], method: str, other: str) -> float:
    """Return a method's median of canary calls by another's; 0 if the other finds nothing."""
    return float(row[method][0] / row[other][0]) if math.isfinite(row[other][0]) else 0.0


def is_within(scenario: Scenario, summary: list[float] | None, runs: int) -> bool:
    """Return whether a method is wrong no more often than alpha and chance allow."""
    return summary is None or summary[-1] <= most_by_chance(runs, scenario.alpha, 0.01)


def is_valid(
    peer: str,
    kind: Kind,
    scenarios: dict[str, Scenario],
    rows: dict[str, dict[str, Any]],
    runs: int,
) -> bool:
    """Return whether a package is within alpha in each scenario that has nothing to find."""
    null = [name for name, each in scenarios.items() if each.kind is NULL_OF[kind]]
    return all(is_within(scenarios[name], rows[name].get(peer), runs) for name in null)


def goal(title: str, ratios: dict[str, float], bound: float) -> str:
    missed = [f"{name} {each:.2f}" for name, each in ratios.items() if each > bound]
    words = f"not met: {', '.join(missed)}" if missed else "met"
    return f"{title}: {words}; largest {max(ratios.values(), default=0):.2f}"


def table(rows: dict[str, dict[str, Any]], runs: int) -> Table:
    shown = Table(title=f"of {runs} runs", title_justify="left")
    shown.add_column("", no_wrap=True)
    for name in METHODS:
        shown.add_column(name, justify="right")
    for name, row in rows.items():
        shown.add_row(name, *(cell(row.get(method)) for method in METHODS))
    return shown


def cell(summary: list[float] | None) -> str:
    if summary is None:
        return ""
    if len(summary) == 1:
        return f"{summary[0]:.0f} wrong"
    median, p90, early = (f"{each:,.0f}" if math.isfinite(each) else "never" for each in summary)
    return f"{median}/{p90}" + (f", {early} early" if early != "0" else "")
