from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.requests import RequestCounts, RequestTotals

NUMBERS = st.integers(0, 10**6)
COUNTS = st.builds(
    RequestCounts,
    begun=NUMBERS,
    classes=st.tuples(*[NUMBERS] * 5),
    left=NUMBERS,
    cut=NUMBERS,
)
TOTALS = st.builds(
    RequestTotals,
    COUNTS,
    st.builds(Histogram, st.lists(st.tuples(st.integers(0, 900), NUMBERS), max_size=5)),
)


def test_server_errors_and_cut_requests_failed_and_a_client_that_left_is_no_failure() -> None:
    counts = RequestCounts(begun=110, classes=(1, 70, 2, 3, 4), left=8, cut=20)

    assert counts.ended == 100
    assert counts.failed == 24
    assert counts.error_share == 0.24
    assert counts.open == 2


def test_share_of_errors_is_unknown_without_ended_requests() -> None:
    assert RequestCounts(begun=3, left=1).error_share is None


@given(COUNTS, COUNTS)
def test_difference_of_two_totals_is_what_was_added(
    first: RequestCounts, more: RequestCounts
) -> None:
    assert (first + more) - first == more
    assert RequestCounts.sum([first, more]) == first + more


@given(TOTALS, TOTALS)
def test_totals_since_an_earlier_copy_are_what_was_added(
    totals: RequestTotals, more: RequestTotals
) -> None:
    before = totals.copy()

    totals.add(more)

    assert totals.since(before) == more
