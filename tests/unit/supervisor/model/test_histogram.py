from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract import (
    LATENCY_BUCKETS,
    SLOWEST_BUCKET,
    bucket_milliseconds,
    latency_bucket,
)

BUCKETS = st.integers(0, LATENCY_BUCKETS - 1)
COUNTS = st.lists(st.tuples(BUCKETS, st.integers(1, 10**9)), max_size=20)


# The buckets of the contract.


@settings(deadline=None)
@given(st.floats(0.001, 60_000))
def test_the_middle_of_its_bucket_is_within_1_percent_of_a_latency(milliseconds: float) -> None:
    middle = bucket_milliseconds(latency_bucket(milliseconds))

    assert middle == pytest.approx(milliseconds, rel=0.01)


@settings(deadline=None)
@given(st.floats(0, math.inf), st.floats(0, math.inf))
def test_a_slower_latency_is_never_in_a_faster_bucket(one: float, other: float) -> None:
    quick, slow = sorted((one, other))

    assert latency_bucket(quick) <= latency_bucket(slow)


@pytest.mark.parametrize("milliseconds", [0, -1, 0.001, 1e-9, math.nan, -math.inf])
def test_an_invalid_latency_is_in_the_fastest_bucket(milliseconds: float) -> None:
    assert latency_bucket(milliseconds) == 0


@pytest.mark.parametrize("milliseconds", [60_001, math.inf, 1e300])
def test_a_latency_above_a_minute_counts_as_a_minute(milliseconds: float) -> None:
    assert latency_bucket(milliseconds) == SLOWEST_BUCKET
    assert bucket_milliseconds(SLOWEST_BUCKET) == pytest.approx(60_000, rel=0.01)


def test_the_middle_of_a_bucket_is_in_that_bucket() -> None:
    buckets = range(SLOWEST_BUCKET + 1)
    assert [latency_bucket(bucket_milliseconds(b)) for b in buckets] == list(buckets)


# Histograms.


@settings(deadline=None)
@given(COUNTS, st.floats(0, 1))
def test_a_quantile_is_that_of_all_calls_in_order(counts: list[tuple[int, int]], q: float) -> None:
    few = [(bucket, count % 7 + 1) for bucket, count in counts]
    calls = sorted(bucket for bucket, count in few for _ in range(count))
    histogram = Histogram(few)

    assert histogram.count == len(calls)
    if calls:
        rank = max(1, math.ceil(q * len(calls)))
        assert histogram.quantiles(q) == [bucket_milliseconds(calls[rank - 1])]


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_histograms_add_up(some: list[tuple[int, int]], more: list[tuple[int, int]]) -> None:
    merged = Histogram(some)
    merged.merge(Histogram(more))

    assert merged == Histogram(some + more)


@settings(deadline=None)
@given(COUNTS)
def test_packing_and_unpacking_preserves_a_histogram(counts: list[tuple[int, int]]) -> None:
    histogram = Histogram(counts)

    assert Histogram.from_bytes(histogram.to_bytes()) == histogram


def test_a_histogram_of_typical_latencies_packs_into_few_bytes() -> None:
    histogram = Histogram((latency_bucket(1 + number / 10), 40) for number in range(100))

    assert len(histogram.to_bytes()) <= 2 + 2 * 100


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_a_histogram_or_are_refused(packed: bytes) -> None:
    try:
        histogram = Histogram.from_bytes(packed)
    except ValueError:
        return
    assert Histogram.from_bytes(histogram.to_bytes()) == histogram


@pytest.mark.parametrize("packed", [b"\x80", b"\x01", b"\x01\x02\x03", b"\xff\xff\x7f\x01"])
def test_damaged_bytes_are_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a packed|no latency bucket"):
        Histogram.from_bytes(packed)


def test_an_empty_histogram_has_no_mean_and_no_quantiles() -> None:
    empty = Histogram()

    assert (empty.count, empty.mean_ms, empty.quantiles(0.5)) == (0, None, [None])


def test_the_mean_is_within_1_percent() -> None:
    histogram = Histogram((latency_bucket(ms), 1) for ms in (10, 20, 60))

    assert histogram.mean_ms == pytest.approx(30, rel=0.01)


@pytest.mark.parametrize(("bucket", "count"), [(-1, 1), (2048, 1), (0, -1)])
def test_an_invalid_bucket_or_count_is_refused(bucket: int, count: int) -> None:
    with pytest.raises(ValueError, match="bucket"):
        Histogram().add(bucket, count)


def test_a_quantile_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match="quantile"):
        Histogram().quantiles(1.5)
