"""A WSGI application of one's own, served by gunicorn with the kit under a real daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import get, slot, until_phase
from tests.loadclient import Load, Traffic, echoes_token

APP = """
import json, os

def app(environ, start_response):
    token, version = environ.get("HTTP_X_REQUEST_ID", "-"), os.environ["ATLAS_VERSION"]
    body = f"{token} {version}"
    if environ["PATH_INFO"] == "/instance":
        body = json.dumps(os.environ["ATLAS_INSTANCE"])
    headers = [("Content-Length", str(len(body))), ("X-Atlas-Version", version)]
    start_response("200 OK", headers)
    return [body.encode()]
"""
SETTINGS: dict[str, Setting] = {
    "WORKER_COMMAND": "gunicorn --config python:atlas_worker.gunicorn --workers 2 kit_app:app",
    "KEEP_WARM_SECONDS": 60,
    "STOP_TIMEOUT_SECONDS": 5,
}


@pytest.mark.timeout(90)
async def test_it_is_kept_warm_and_rolled_back_at_once_and_no_request_is_lost(
    tmp_path: Path,
) -> None:
    mix = [
        Traffic("keep-alive GET", 2, echoes_token, think=(0.0, 0.02)),
        Traffic("one GET per connection", 2, echoes_token, keep_alive=False, think=(0.0, 0.02)),
    ]
    files = {"kit_app.py": APP}
    async with DaemonProcess.running(tmp_path, SETTINGS, files=files) as daemon:
        old = (await get(daemon.public_port, "/instance"))[1]
        async with Load("127.0.0.1", daemon.public_port, mix) as load:
            deploy = await daemon.deploy()
            assert (deploy.status, deploy.json["result"]) == (200, "switched")
            assert (await get(daemon.public_port, "/instance"))[1] != old
            await until_phase(daemon, "warm")
            assert slot(await daemon.status(), "staging")["state"] == "warm"
            kept_alive = load.report.kinds["keep-alive GET"]
            await eventually(lambda: kept_alive.announced_closes > 0, what="an announced close")
            back = await daemon.request("POST", "/deploy/rollback")
            assert (back.status, back.json["result"]) == (200, "rolled_back")
            assert (await get(daemon.public_port, "/instance"))[1] == old
            record = await daemon.ended(deploy.json["deploy_id"])
            report = await load.stop()
        assert record["result"] == "rolled_back"
        assert [str(loss) for kind in report.kinds.values() for loss in kind.losses] == []


async def test_plain_gunicorn_with_a_slow_import_is_deployed(tmp_path: Path) -> None:
    """It sends READY=1 before its processes can answer, here for longer than a probe may take."""
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": "gunicorn --no-control-socket --worker-class gthread slow_app:app",
        "HEALTH_TIMEOUT_SECONDS": 0.5,
        "STOP_TIMEOUT_SECONDS": 5,
    }
    files = {"slow_app.py": f"import time\ntime.sleep(1.2)\n{APP}"}
    async with DaemonProcess.running(tmp_path, settings, files=files) as daemon:
        assert (await get(daemon.public_port, "/instance"))[0] == 200
        deploy = await daemon.deploy()
        assert (deploy.status, deploy.json["result"]) == (200, "switched"), deploy.json
        launch = next(step for step in deploy.json["steps"] if step["name"] == "launch")
        assert launch["duration_ms"] > 1200
        assert "worker reported ready and answered" in launch["detail"]["message"]
