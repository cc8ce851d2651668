"""Simulated versions and the evidence against them; `./scripts/bench guard` has longer runs."""

from __future__ import annotations

import random

from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.requests import RequestCounts, RequestTotals
from atlas_supervisor.requests.old_record import OldRecord, RecordEvidence, Tally
from atlas_worker.contract import latency_bucket

ALPHA, MARGIN = 0.01, 0.02
NOTHING = (0, 0, 0, 0)
PER_SECOND = 50


def hour(requests: int, failed: int, latency_ms: float = 20.0) -> RequestTotals:
    """Return what an hour of a version has counted."""
    counts = RequestCounts(begun=requests, classes=(0, requests - failed, 0, 0, failed))
    return RequestTotals(counts, Histogram([(latency_bucket(latency_ms), requests)]))


def record(*hours: RequestTotals, alpha: float = ALPHA) -> OldRecord:
    """Return the record of these hours."""
    return OldRecord.of(hours, alpha=alpha, margin=MARGIN)


def reverted_at(
    known: OldRecord, rate: float, requests: int, seed: int, *, alpha: float = ALPHA, good: int = 0
) -> int | None:
    """Return the request at which a version is reverted; those that are `good` come first."""
    draw = random.Random(seed)  # noqa: S311 - a simulation
    evidence, failed = RecordEvidence(known, alpha, [NOTHING]), 0
    for begun in range(1, requests + 1):
        failed += begun > good and draw.random() < rate
        if begun % 5 == 0:
            tally = Tally(begun, begun, failed, 0)
            evidence.add_start(tally, begun / PER_SECOND)
            if evidence.odds(tally) >= evidence.needed:
                return begun
    return None
