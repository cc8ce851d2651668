"""Failpoints cost nothing unless they are asked for."""

from __future__ import annotations

import pytest

from atlas_supervisor.system import failpoints


def test_without_the_variable_a_seam_is_the_function_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def function() -> None:
        raise AssertionError

    monkeypatch.setattr(failpoints, "NAMES", [])
    assert failpoints.seam("step")(function) is function
    assert failpoints.seam("phase", ("one", "two"))(function) is function
    names = ("step", "phase-one", "phase-two")
    assert [f"{when}-{name}" for name in names for when in ("before", "after")] == failpoints.NAMES
