"""What the tests of faults do to a daemon."""

from __future__ import annotations

from typing import Any

from tests.harness import DaemonProcess


async def start_again(daemon: DaemonProcess) -> dict[str, Any]:
    """Start the next daemon, and return the last deploy as it now stands."""
    await daemon.start()
    record: dict[str, Any] = (await daemon.status())["last_deploy"]
    return record
