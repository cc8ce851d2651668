"""The score, by property: what must hold for every result of the checks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.health.score import DEGRADED_BELOW, UNHEALTHY_BELOW, WEIGHTS, score, status_of
from atlas_supervisor.model.health import CheckStatus, HealthStatus
from atlas_supervisor.probes.health_probe import REPORTED

PASS, WARN, FAIL, SKIPPED = (
    CheckStatus.PASS,
    CheckStatus.WARN,
    CheckStatus.FAIL,
    CheckStatus.SKIPPED,
)
FOUND = st.fixed_dictionaries({}, optional={name: st.sampled_from(CheckStatus) for name in WEIGHTS})
NAME = st.sampled_from(sorted(WEIGHTS))


@given(FOUND, NAME)
def test_a_check_that_is_skipped_is_as_if_it_were_not_there(
    found: dict[str, CheckStatus], name: str
) -> None:
    without = {other: status for other, status in found.items() if other != name}
    assert score({**found, name: SKIPPED}) == score(without)


@given(FOUND, NAME)
def test_a_check_that_is_skipped_never_lowers_the_score(
    found: dict[str, CheckStatus], name: str
) -> None:
    assert score({**found, name: SKIPPED}) >= score(found)


@given(FOUND, NAME)
def test_a_check_that_fails_never_raises_the_score(
    found: dict[str, CheckStatus], name: str
) -> None:
    assert score({**found, name: FAIL}) <= score(found)


@given(FOUND, NAME)
def test_a_warning_lies_between_passing_and_failing(
    found: dict[str, CheckStatus], name: str
) -> None:
    failed, warned, passed = (score({**found, name: status}) for status in (FAIL, WARN, PASS))
    assert failed <= warned <= passed


@given(FOUND)
def test_the_score_is_a_whole_number_of_0_to_100(found: dict[str, CheckStatus]) -> None:
    points = score(found)
    assert isinstance(points, int)
    assert 0 <= points <= 100


@given(FOUND)
def test_it_is_healthy_only_where_nothing_warns_or_fails(found: dict[str, CheckStatus]) -> None:
    troubled = any(found[name] in {WARN, FAIL} for name in found if name != "uptime")
    assert (score(found) == 100) is not troubled
    assert (status_of(score(found)) is HealthStatus.HEALTHY) is not troubled


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(WEIGHTS, st.sampled_from([PASS, SKIPPED]))))
def test_all_that_passes_is_100(found: dict[str, CheckStatus]) -> None:
    assert score(found) == 100


def test_warnings_alone_never_make_it_unhealthy() -> None:
    assert status_of(score(dict.fromkeys(WEIGHTS, WARN))) is HealthStatus.DEGRADED


@pytest.mark.parametrize("name", sorted(WEIGHTS.keys() - {"uptime"}))
def test_each_warning_and_each_failure_shows_and_a_failure_shows_more(name: str) -> None:
    assert score({name: FAIL}) < score({name: WARN}) < 100


@pytest.mark.parametrize("name", ["port_active", "steering"])
def test_checks_that_concern_clients_are_unhealthy_by_themselves(name: str) -> None:
    assert status_of(score({name: FAIL})) is HealthStatus.UNHEALTHY


def test_the_daemons_storage_alone_is_degraded_at_most() -> None:
    assert status_of(score({"database": FAIL, "disk_free": FAIL})) is HealthStatus.DEGRADED


def test_two_parts_of_the_application_that_fail_are_unhealthy() -> None:
    assert status_of(score({"memory": FAIL})) is HealthStatus.DEGRADED
    assert status_of(score({"memory": FAIL, "scheduler": FAIL})) is HealthStatus.UNHEALTHY


def test_a_check_without_a_weight_is_refused() -> None:
    assert set(REPORTED) < set(WEIGHTS)
    with pytest.raises(KeyError):
        score({"weather": PASS})


def test_the_bounds_are_the_first_of_the_better_word() -> None:
    assert status_of(DEGRADED_BELOW) is HealthStatus.HEALTHY
    assert status_of(DEGRADED_BELOW - 1) is HealthStatus.DEGRADED
    assert status_of(UNHEALTHY_BELOW) is HealthStatus.DEGRADED
    assert status_of(UNHEALTHY_BELOW - 1) is HealthStatus.UNHEALTHY
