"""The figures of the last minute, and of the last five."""

from __future__ import annotations

from atlas_supervisor.model.requests import RequestCounts, RequestTotals
from atlas_supervisor.requests.figures import InstanceCounts, RecentCounts


def totals(begun: int) -> RequestTotals:
    return RequestTotals(RequestCounts(begun=begun, classes=(0, begun, 0, 0, 0)))


def test_requests_from_while_no_daemon_looked_are_no_rate_of_now() -> None:
    counts = InstanceCounts("blue", "1.0", totals(1000), since=100.0)
    for _ in range(2):  # a file of each of its processes
        assert not counts.add(totals(600), now=100.1)
    assert counts.add(totals(20), now=101.1)

    assert counts.totals.counts.begun == 2220
    assert counts.figures(102.0).per_second == 10


def test_a_fresh_instance_is_counted_from_its_first_request_on() -> None:
    counts = InstanceCounts("blue", "1.0", totals(0), since=100.0)
    counts.add(totals(20), now=100.1)

    assert counts.figures(102.0).per_second == 10


def test_the_last_five_minutes_are_those_of_all_instances_and_no_more_than_is_known() -> None:
    recent = RecentCounts(since=100.0)
    for now in (101.0, 101.0, 250.0):
        recent.add(RequestCounts(begun=10, classes=(0, 8, 0, 0, 2)), now)

    young, whole, later = (recent.view(now) for now in (140.0, 400.0, 402.0))
    assert (young.seconds, young.requests, young.failed) == (40, 30, 6)
    assert (whole.seconds, whole.requests, whole.failed) == (300, 30, 6)
    assert (later.requests, later.failed) == (10, 2)
