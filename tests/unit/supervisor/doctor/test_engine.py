"""Checks of the fleet's engine: its versions; one real etcd is looked at in tests/integration."""

from __future__ import annotations

import pytest

from atlas_supervisor.doctor import engine
from atlas_supervisor.doctor.finding import Level


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("3.4.23", Level.WARN),
        ("3.5.0", Level.FAIL),
        ("3.5.2", Level.FAIL),
        ("3.5.3", Level.WARN),
        ("3.5.32", Level.WARN),
        ("3.5.33", Level.OK),
        ("3.6.13", Level.WARN),
        ("3.6.14", Level.OK),
        ("3.7.0", Level.WARN),
        ("3.7.1", Level.OK),
        ("3.7.0-rc.0", Level.WARN),
        ("3.8.0", Level.OK),
        ("4.0.0", Level.OK),
        ("unknown", Level.WARN),
    ],
)
def test_an_etcd_that_corrupts_data_fails_and_an_old_one_is_a_warning(
    version: str, level: Level
) -> None:
    found = engine.version("http://a:2379", version)

    assert found.status is level
    assert found.message.startswith(f"http://a:2379: etcd {version}")
    assert (found.mend is None) is (level is Level.OK)
