"""The documented examples are consistent with the code."""

from __future__ import annotations

import pytest

from atlas_supervisor.api import examples
from atlas_supervisor.health.score import WEIGHTS, score, status_of
from atlas_supervisor.model.health import Health


@pytest.mark.parametrize("health", [examples.HEALTH, examples.UNHEALTHY])
def test_an_example_has_the_score_of_its_checks(health: Health) -> None:
    assert set(health.checks) == set(WEIGHTS)
    assert health.score == score({name: each.status for name, each in health.checks.items()})
    assert health.status == status_of(health.score)
