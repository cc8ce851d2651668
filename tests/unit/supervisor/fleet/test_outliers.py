"""A host is named if its calls fail more often than the others' beyond chance, and only then."""

from __future__ import annotations

import random

from atlas_supervisor.fleet.outliers import outliers
from tests.unit.supervisor.fleet.support import count


def test_a_host_whose_canary_fails_more_often_than_elsewhere_is_named() -> None:
    counts = {"web1": count((200, 2)), "web2": count((200, 31)), "web3": count((200, 1))}

    (found,) = outliers(counts)

    assert (found.host, found.arm, found.calls, found.errors) == ("web2", "canary", 200, 31)
    assert found.others_error_rate == 3 / 400


def test_a_single_host_is_compared_with_no_other() -> None:
    assert outliers({"web1": count((200, 150))}) == []


def test_a_host_without_calls_and_hosts_without_any_errors_are_no_outliers() -> None:
    assert outliers({"web1": count((0, 0), (0, 0)), "web2": count((90, 60), (0, 0))}) == []
    assert outliers({"web1": count((9, 0), (9, 0)), "web2": count((9, 0), (9, 0))}) == []


def test_all_calls_of_one_host_failing_are_found_at_any_size() -> None:
    (found,) = outliers({"web1": count((20, 20)), "web2": count((1_000_000, 10))})
    assert found.host == "web1"


def test_a_small_difference_is_none_however_many_calls_show_it() -> None:
    assert outliers({"web1": count((10**6, 10_000)), "web2": count((10**6, 25_000))}) == []


def test_hosts_that_are_alike_are_hardly_ever_named_however_often_one_looks() -> None:
    """At most one fleet in a hundred; a test of each look by itself named one in thirty."""
    rng, named = random.Random(4), 0  # noqa: S311  # no secret
    for _ in range(100):
        errors = dict.fromkeys(("web1", "web2", "web3"), 0)
        for look in range(1, 101):
            for host in errors:
                errors[host] += sum(rng.random() < 0.2 for _ in range(10))
            hosts = {host: count((10 * look, each), (0, 0)) for host, each in errors.items()}
            if outliers(hosts):
                named += 1
                break

    assert named <= 2
