"""The figures of the last minute."""

from __future__ import annotations

from atlas_supervisor.model.requests import RequestCounts, RequestTotals
from atlas_supervisor.requests.figures import InstanceCounts


def totals(begun: int) -> RequestTotals:
    return RequestTotals(RequestCounts(begun=begun, classes=(0, begun, 0, 0, 0)))


def test_requests_from_while_no_daemon_looked_are_no_rate_of_now() -> None:
    counts = InstanceCounts("blue", "1.0", totals(1000), since=100.0)
    for _ in range(2):  # a file of each of its processes
        counts.add(totals(600), now=100.1)
    counts.add(totals(20), now=101.1)

    assert counts.totals.counts.begun == 2220
    assert counts.figures(102.0).per_second == 10


def test_a_fresh_instance_is_counted_from_its_first_request_on() -> None:
    counts = InstanceCounts("blue", "1.0", totals(0), since=100.0)
    counts.add(totals(20), now=100.1)

    assert counts.figures(102.0).per_second == 10
