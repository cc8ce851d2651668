"""An ASGI application of one's own, served by the runner under a real daemon."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.harness import DaemonProcess, Setting
from tests.integration.support import get, public_version, slot, until_phase

APP = Path(__file__).parents[1] / "acceptance" / "apps" / "asgi_kit_app.py"


def settings(folder: Path) -> dict[str, Setting]:
    """Make a worker directory with the application, and have the runner serve it."""
    worker_directory = folder / "application"
    worker_directory.mkdir()
    shutil.copy(APP, worker_directory)
    (worker_directory / "VERSION").write_text("v1")
    runner = "env ATLAS_IDLE_GRACE_SECONDS=0.5 python -m atlas_worker.asgi asgi_kit_app:app"
    return {
        "WORKER_DIRECTORY": worker_directory,
        "WORKER_COMMAND": runner,
        "KEEP_WARM_SECONDS": 60,
        "STOP_TIMEOUT_SECONDS": 5,
    }


@pytest.mark.timeout(90)
async def test_it_is_deployed_kept_warm_and_rolled_back_at_once(tmp_path: Path) -> None:
    async with DaemonProcess.running(tmp_path, settings(tmp_path)) as daemon:
        assert await public_version(daemon) == "v1"
        old = (await get(daemon.public_port))[1]["instance"]
        async with connect(f"ws://127.0.0.1:{daemon.public_port}/ws") as websocket:
            await websocket.send("hello")
            assert json.loads(await websocket.recv()) == {"message": "hello", "version": "v1"}
            (tmp_path / "application" / "VERSION").write_text("v2")
            deploy = await daemon.deploy()
            assert (deploy.status, deploy.json["result"]) == (200, "switched")
            assert await public_version(daemon) == "v2"
            async with asyncio.timeout(10):
                with pytest.raises(ConnectionClosed) as closed:
                    await websocket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        await until_phase(daemon, "warm")
        assert slot(await daemon.status(), "staging")["state"] == "warm"
        back = await daemon.request("POST", "/deploy/rollback")
        assert (back.status, back.json["result"]) == (200, "rolled_back")
        assert (await get(daemon.public_port))[1]["instance"] == old
        record = await daemon.ended(deploy.json["deploy_id"])
        assert record["result"] == "rolled_back"
