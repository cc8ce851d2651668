"""When a worker is due to be recycled, and when that is tried again. Pure."""

from __future__ import annotations

import pytest

from atlas_supervisor.deploy.recycler import MEASUREMENTS, Patience, Reason


def reason(patience: Patience, age_seconds: float = 0.0) -> Reason | None:
    due = patience.due(age_seconds)
    return due[0] if due else None


def test_without_a_limit_no_worker_is_ever_due() -> None:
    patience = Patience(0, 0)
    for _ in range(10):
        patience.measured(1e9)
    assert reason(patience, 1e9) is None


def test_a_worker_is_due_at_its_greatest_age() -> None:
    patience = Patience(0, 60)
    assert reason(patience, 59.9) is None
    assert reason(patience, 60) is Reason.AGE


def test_only_measurements_in_a_row_count() -> None:
    patience = Patience(100, 0)
    for memory in (*[101] * (MEASUREMENTS - 1), 100, *[101] * (MEASUREMENTS - 1)):
        patience.measured(memory)
        assert reason(patience) is None
    patience.measured(None)  # it could not be measured, which says nothing
    patience.measured(150)
    assert patience.due(1) == (Reason.MEMORY, "the worker has 150 MiB, with WORKER_MAX_RSS_MB=100")


@pytest.mark.parametrize(("attempts", "pause"), [(0, 0), (1, 10), (2, 20), (5, 160), (5000, 3600)])
def test_pauses_grow_up_to_an_hour(attempts: int, pause: float) -> None:
    assert Patience(0, 1, attempts=attempts).pause_seconds == pause
