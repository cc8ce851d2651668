"""`./scripts/simulate`: plays one seed and tells its story, or many and tells what they break."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.fleet import run as fleet
from tests.simulation.run import Played, Player


def _seeds(text: str) -> range:
    first, _, last = text.partition("..")
    return range(int(first), int(last or first) + 1)


def _play(seeds: range) -> list[Played]:
    with Player() as player:
        return [played for seed in seeds if (played := player.play(seed)).broken]


def _play_all(seeds: range, jobs: int) -> Iterator[Played]:
    pieces = [seeds[start : start + 50] for start in range(0, len(seeds), 50)]
    if jobs == 1:
        for piece in pieces:
            yield from _play(piece)
        return
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=8) as pool:
        for found in pool.imap(_play, pieces):
            yield from found


def _play_fleets(seeds: range, jobs: int) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # each etcd is ended, and its folder
    began = time.monotonic()
    counts: Counter[str] = Counter()
    broken = 0
    with ProcessPoolExecutor(jobs) as pool:
        for played in pool.map(fleet.play, seeds):
            print(played.text, flush=True)
            counts += played.counts
            broken += bool(played.broken)
    total = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    print(f"{len(seeds)} seeds, {broken} with a broken promise: {total}")
    print(f"in {time.monotonic() - began:.0f} s ({_cpu_seconds():.0f} s of CPU)")
    return 1 if broken else 0


def _cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="play this one, and print its story")
    which.add_argument("--seeds", type=_seeds, metavar="A..B", help="play all of these")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--fleet", action="store_true", help="play rollouts over a fleet on etcd")
    options = parser.parse_args()
    if options.jobs == 1:  # a pool can't end while one of its processes handles a signal
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the folder in memory is removed
    if options.fleet:
        seeds = options.seeds or range(options.seed, options.seed + 1)
        return _play_fleets(seeds, options.jobs)
    began = time.monotonic()
    if options.seed is not None:
        with Player() as player:
            played = player.play(options.seed)
        print(played.text)
        return 1 if played.broken else 0
    broken = 0
    for played in _play_all(options.seeds, options.jobs):
        broken += 1
        print("\n".join((f"seed {played.seed}", *played.verdict)), flush=True)
    seconds = time.monotonic() - began
    print(
        f"{len(options.seeds)} seeds, {broken} with a broken promise, in {seconds:.0f} s "
        f"({_cpu_seconds():.0f} s of CPU)"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
