"""`./scripts/bench NAME`: runs one benchmark and prints the machine, its tables and its notes."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from atlas_supervisor.output import unfailing_output
from scripts.benchmarks import (
    acceptance,
    attack,
    canary,
    canary_adversaries,
    canary_bounds,
    canary_daemon,
    canary_peers,
    canary_statistics,
    dashboard,
    events,
    fleet,
    footprint,
    guard,
    health,
    hold,
    hop,
    logs,
    recycle,
    relay,
    reload,
    requests,
    rescue,
    rollback,
    split,
    start,
    switch,
    versions,
)
from scripts.benchmarks.machine import machine
from scripts.benchmarks.result import Benchmark, CannotRunError, Options

BENCHMARKS: Mapping[str, tuple[Benchmark, str]] = {
    "acceptance": (acceptance.run, "deploys and rollbacks under every kind of load, each worker"),
    "hop": (hop.run, "requests/s and latency of the public port beside the slot's, HAProxy, nginx"),
    "relay": (relay.run, "the relay plane beside HAProxy in TCP mode and socat, and its memory"),
    "switch": (
        switch.run,
        "the flip, a deploy's own overhead, the longest request with and without",
    ),
    "dashboard": (
        dashboard.run,
        "first paint of the dashboard, its size, and what 20 open ones cost",
    ),
    "events": (events.run, "what 200 watchers cost a deploy and the daemon, 20 of them stuck"),
    "fleet": (fleet.run, "a thousand hosts on one etcd: kill switch, rollout, and etcd's faults"),
    "guard": (guard.run, "how soon the guard reverts a bad version, and how often a good one"),
    "health": (health.run, "answers of health, status and metrics while deploys run under load"),
    "hold": (hold.run, "clients that connect during a hold: refused, lost or overtaken"),
    "logs": (logs.run, "what a worker that floods its log costs in disk, memory and time"),
    "recycle": (recycle.run, "a leaking worker replaced again and again under wrk: what is lost"),
    "reload": (
        reload.run,
        "the daemon reloaded again and again under load: what is lost, and what grows",
    ),
    "requests": (
        requests.run,
        "what the counting of a request costs: the counter, and a server beside one without it",
    ),
    "rollback": (rollback.run, "the time of a warm rollback"),
    "split": (
        split.run,
        "shares and addresses of a split traffic, and its throughput beside without one",
    ),
    "versions": (
        versions.run,
        "how often two versions are judged wrongly by users' requests, how soon a bad one is found",
    ),
    "rescue": (
        rescue.run,
        "what is lost when the active worker or the daemon is killed under load",
    ),
    "canary-bounds": (canary_bounds.run, "the fewest canary calls that any test can need"),
    "canary-adversaries": (
        canary_adversaries.run,
        "how often a canary is judged wrongly by services that break simpler ways of counting",
    ),
    "canary-daemon": (
        canary_daemon.run,
        "feature canaries: the daemon's CPU, how fast they go off, a day's report",
    ),
    "canary-peers": (
        canary_peers.run,
        "the canary's evidence beside gbstats, savvi, confseq and an oracle, on the same calls",
    ),
    "canary-statistics": (
        canary_statistics.run,
        "how often the canary's evidence errs, and how soon it finds what is bad",
    ),
    "canary": (canary.run, "a feature canary's decision, record and call beside three flag SDKs"),
    "start": (start.run, "the time and CPU until the daemon is ready"),
    "attack": (attack.run, "honest API clients beside 256 to 4,000 hostile connections, six kinds"),
    "footprint": (footprint.run, "the daemon's memory, CPU, descriptors, files over many deploys"),
}


def arguments() -> argparse.Namespace:
    listed = "\n".join(f"  {name:17} {what}" for name, (_, what) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures on this machine. Benchmarks:\n" + listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    parser.add_argument("--count", type=int, help="how many deploys, reloads, hosts or runs")
    parser.add_argument("--rounds", type=int, help="how many rounds (hop)")
    parser.add_argument("--seconds", type=float, help="length of one measurement")
    parsed = parser.parse_args()
    if parsed.name is None:
        parser.print_help()
    return parsed


def main() -> int:
    chosen = arguments()
    if chosen.name is None:
        return 0
    benchmark, _ = BENCHMARKS[chosen.name]
    console = Console()
    where, began = machine(), time.monotonic()
    console.print("  ".join(f"{key}: {value}" for key, value in where.items()), highlight=False)
    try:
        result = asyncio.run(benchmark(Options(chosen.count, chosen.rounds, chosen.seconds)))
    except CannotRunError as error:
        print(f"bench {chosen.name}: {error}", file=sys.stderr)
        return 1
    for table in result.tables:
        console.print(table)
    for note in result.notes:
        console.print(note, highlight=False)
    console.print(f"took {time.monotonic() - began:.0f} s", highlight=False)
    if chosen.json is not None:
        document = {"benchmark": chosen.name, "machine": where, **result.data}
        chosen.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


with unfailing_output("scripts/bench"):
    sys.exit(main())
