"""The daemon can't open a single descriptor for some seconds: no file, no socket, no process."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from tests.faults.support import limited, under_load
from tests.integration.support import public_version, release, scripted_daemon

BACKGROUND_SECONDS = 2.5
"""Longer than the pauses of the daemon's background tasks, which all try meanwhile."""


@pytest.mark.fault(
    "Ports and connections",
    "no descriptor left for the daemon (EMFILE)",
    "it goes on, changes are refused, and no request is lost",
)
async def test_a_daemon_that_can_open_nothing_for_a_while_goes_on(tmp_path: Path) -> None:
    settings = {"CANARY_ENABLED": "true"}
    async with scripted_daemon(tmp_path, settings) as daemon, under_load(daemon) as load:
        asked = {"json": {"mode": "single"}}
        with limited(daemon.pid, resource.RLIMIT_NOFILE, 8):
            refused = await daemon.request("POST", "/deploy/mode", **asked)
            assert (refused.status, refused.json["error"]["code"]) == (503, "not_durable")
            await asyncio.sleep(BACKGROUND_SECONDS)  # nothing tells when all have tried
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "switched"
        assert await public_version(daemon) == "v2"
        assert not load.report.losses
