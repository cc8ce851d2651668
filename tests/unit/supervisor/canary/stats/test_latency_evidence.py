"""The placement of the latency thresholds."""

from __future__ import annotations

import pytest

from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.latency_evidence import LEAST_CALLS, LatencyEvidence
from atlas_worker.contract import bucket_milliseconds, latency_bucket


def thresholds_of(milliseconds: float, calls: int = LEAST_CALLS) -> list[float]:
    evidence = LatencyEvidence(0.01)
    evidence.fix_thresholds(Histogram([(latency_bucket(milliseconds), calls)]))
    return [bucket_milliseconds(each) for each in evidence.thresholds]


@pytest.mark.parametrize("usual", [0.04, 0.5, 3.0])
def test_a_call_that_is_slower_by_less_than_a_millisecond_is_not_slow(usual: float) -> None:
    assert all(usual + 1 < each < 1.1 * (usual + 1) for each in thresholds_of(usual))


@pytest.mark.parametrize("usual", [20.0, 80.0, 5000.0])
def test_a_call_that_is_slower_by_less_than_a_tenth_is_not_slow(usual: float) -> None:
    assert all(1.1 * usual < each < 1.16 * usual for each in thresholds_of(usual))


def test_without_enough_stable_calls_nothing_is_slow() -> None:
    assert thresholds_of(10, LEAST_CALLS - 1) == []
