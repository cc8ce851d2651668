"""Every test of a fault ends with the invariants: `DaemonProcess.running` checks them."""

from __future__ import annotations

import pytest

from tests.harness import DaemonProcess
from tests.invariants import invariants_hold


@pytest.fixture(autouse=True)
def _invariants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DaemonProcess, "check_at_end", staticmethod(invariants_hold))
