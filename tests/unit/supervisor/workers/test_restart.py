from __future__ import annotations

import pytest

from atlas_supervisor.workers.restarts import CrashCount, RestartPolicy

POLICY = RestartPolicy(delays_seconds=(0.0, 1.0, 5.0), stable_seconds=10.0)


def test_each_short_life_in_a_row_waits_longer_and_then_it_is_given_up() -> None:
    crashes, delays = CrashCount(), []
    for _ in range(4):
        crashes = crashes.after(0.1, POLICY)
        delays.append(crashes.delay_seconds(POLICY))
    assert delays == [0.0, 1.0, 5.0, None]


@pytest.mark.parametrize("short_lives", [1, 3, 100])
def test_a_long_life_begins_a_new_row(short_lives: int) -> None:
    after = CrashCount(short_lives).after(10.0, POLICY)
    assert after == CrashCount(1)
    assert after.delay_seconds(POLICY) == 0.0


def test_the_first_start_does_not_wait() -> None:
    assert CrashCount().delay_seconds(POLICY) == 0.0


def test_the_defaults_start_at_once_and_end_some_time() -> None:
    policy = RestartPolicy()
    assert policy.delays_seconds[0] == 0.0
    assert list(policy.delays_seconds) == sorted(policy.delays_seconds)
    assert CrashCount(len(policy.delays_seconds) + 1).delay_seconds(policy) is None
