"""Other packages' sequential tests on streams of counts; run in an environment that has them.

Reads jobs as JSON from standard input and writes, for each, the slice after which each method has
found what it looks for. It imports nothing of the project: its Python may be older.

- gbstats (GrowthBook): its sequential test of the difference, on errors or on the logarithms of
  latencies. The package has a two-sided one: a side of it at twice alpha.
- savvi (Lindon and Malek, arXiv 2011.03567): the arms of the failures against the share.
- confseq (Waudby-Smith and Ramdas, arXiv 2010.09686): the same null hypothesis, by betting.
The last two start anew at each share, and their evidence is multiplied.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Any


def gbstats_looks(job: dict[str, Any]) -> Iterator[bool]:
    tests = importlib.import_module("gbstats.frequentist.tests")
    statistics = importlib.import_module("gbstats.models.statistics")
    config = tests.SequentialConfig(
        alpha=2 * job["alpha"], difference_type="absolute", test_value=job["null"]
    )
    sums = [0.0] * 8
    for _, *counts in job["slices"]:
        sums = [total + count for total, count in zip(sums, counts)]  # noqa: B905 - Python 3.9
        (n, errors, log, squares), (m, others, log_m, squares_m) = sums[:4], sums[4:]
        if n < 2 or m < 2:  # no variance yet
            yield False
            continue
        if job["about"] == "latency":
            canary = statistics.SampleMeanStatistic(n=n, sum=log, sum_squares=squares)
            stable = statistics.SampleMeanStatistic(n=m, sum=log_m, sum_squares=squares_m)
        else:
            canary = statistics.ProportionStatistic(n=n, sum=errors)
            stable = statistics.ProportionStatistic(n=m, sum=others)
        over = canary.mean - stable.mean - job["null"]
        found = tests.SequentialTwoSidedTTest(stable, canary, config).compute_result()
        wanted = over < 0 if job["about"] == "promotion" else over > 0
        yield wanted and found.p_value <= config.alpha and not found.error_message


def savvi_looks(job: dict[str, Any]) -> Iterator[bool]:
    numpy = importlib.import_module("numpy")
    multinomial = importlib.import_module("savvi.multinomial").Multinomial
    evidence = 1.0
    for share, part in groupby(job["slices"], key=lambda each: each[0]):
        test = multinomial(job["alpha"], numpy.array([share, 1 - share]))
        for each in part:
            test.update(numpy.array([int(each[2]), int(each[6])]))
            failed = test.counts.sum()
            more = bool(failed) and test.counts[0] > share * failed
            yield bool(more and evidence * test.odds >= 1 / job["alpha"])
        evidence *= float(test.odds)


def confseq_looks(job: dict[str, Any]) -> Iterator[bool]:
    numpy = importlib.import_module("numpy")
    order = random.Random(1)  # noqa: S311 - a simulation wants a seed, not a secret
    betting_mart = importlib.import_module("confseq.betting").betting_mart
    evidence = 1.0
    for share, part in groupby(job["slices"], key=lambda each: each[0]):
        slices = list(part)
        arms: list[float] = []
        for each in slices:  # in an order that does not depend on the arm
            failed = [0.0] * int(each[6]) + [1.0] * int(each[2])
            order.shuffle(failed)
            arms += failed
        bets = betting_mart(numpy.array(arms), share, alpha=job["alpha"], theta=1) if arms else []
        last, seen = evidence, 0
        for each in slices:
            seen += int(each[2]) + int(each[6])
            if seen:
                last = evidence * float(bets[seen - 1])
            yield last >= 1 / job["alpha"]
        evidence = last


METHODS = {
    "gbstats": (gbstats_looks, ("errors", "latency", "promotion")),
    "savvi": (savvi_looks, ("errors",)),
    "confseq": (confseq_looks, ("errors",)),
}


def main() -> None:
    methods = {name: it for name, it in METHODS.items() if importlib.util.find_spec(name)}
    for line in sys.stdin:
        job = json.loads(line)
        found = {
            name: next((at for at, yes in enumerate(looks(job)) if yes), None)
            for name, (looks, kinds) in methods.items()
            if job["about"] in kinds
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
