"""Applications that check the `Host`, redirect to TLS or speak it themselves are deployable."""

from __future__ import annotations

import shlex
import shutil
import ssl
from pathlib import Path

import aiohttp
import pytest

from tests.harness import DaemonProcess, Setting, make_certificate
from tests.integration.support import slot

ROOT = Path(__file__).parents[2]
APP = "tests.apps.asgi_apps:behind_tls"
KIT = shlex.join(["python", "-m", "atlas_worker.asgi", "--app-dir", str(ROOT), APP])
QUICK: dict[str, Setting] = {
    "LIVENESS_INTERVAL_SECONDS": 0.1,
    "LIVENESS_FAILURES": 1,
    "STOP_TIMEOUT_SECONDS": 2,
}
SMOKE = """
[[http]]
name = "home answers"
path = "/"
[[command]]
name = "the address"
run = ["sh", "-c", "echo $ATLAS_STAGING_URL | grep -q ^SCHEME://127.0.0.1:"]
"""


def smoke_file(folder: Path, scheme: str) -> Path:
    path = folder / "smoke.toml"
    path.write_text(SMOKE.replace("SCHEME", scheme))
    return path


async def test_a_worker_that_checks_the_host_and_redirects_to_tls_is_deployed(
    tmp_path: Path,
) -> None:
    settings: dict[str, Setting] = {
        **QUICK,
        "WORKER_COMMAND": KIT,
        "HEALTH_HOST": "app.example.org",
        "HEALTH_HEADERS": "X-Forwarded-Proto: https; X-Forwarded-For: 192.0.2.1",
        "SMOKE_FILE": smoke_file(tmp_path, "http"),
    }
    async with DaemonProcess.running(tmp_path, settings) as daemon:
        answer = await daemon.deploy()
        assert (answer.status, answer.json["result"]) == (200, "switched"), answer.json
        await daemon.ended(answer.json["deploy_id"])
        health = await daemon.request("GET", "/health")
        assert health.json["checks"]["port_active"]["status"] == "pass", health.json


async def test_a_refused_host_is_explained_and_no_reason_to_restart(tmp_path: Path) -> None:
    async with DaemonProcess.running(tmp_path, {**QUICK, "WORKER_COMMAND": KIT}) as daemon:
        before = slot(await daemon.status(), "active")["pid"]
        answer = await daemon.deploy()
        assert (answer.status, answer.json["result"]) == (422, "failed")
        staging = slot(await daemon.status(), "staging")["port"]
        assert (
            f"answered 400, expected 2xx; the Host that was sent: 127.0.0.1:{staging}"
            in (answer.json["reason"])
        )
        health = await daemon.request("GET", "/health")
        assert "the Host that was sent: " in health.json["checks"]["port_active"]["message"]
        # Its liveness has been probed several times meanwhile.
        active = slot(await daemon.status(), "active")
        assert (active["pid"], active["restarts"]) == (before, 0)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_a_worker_that_speaks_tls_itself_is_deployed(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    options = ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    command = ["python", "-m", "uvicorn", "--app-dir", str(ROOT), "--fd", "{fd}", *options, APP]
    settings: dict[str, Setting] = {
        **QUICK,
        "WORKER_COMMAND": shlex.join(command),
        "HEALTH_HOST": "app.example.org",
        "HEALTH_SCHEME": "https",
        "SMOKE_FILE": smoke_file(tmp_path, "https"),
    }
    async with DaemonProcess.running(tmp_path, settings) as daemon:
        answer = await daemon.deploy()
        assert (answer.status, answer.json["result"]) == (200, "switched"), answer.json
        trusting = ssl.create_default_context(cafile=str(certificate))
        trusting.check_hostname = False
        async with (
            aiohttp.ClientSession() as session,
            session.get(
                f"https://127.0.0.1:{daemon.public_port}/",
                headers={"Host": "app.example.org"},
                ssl=trusting,
            ) as page,
        ):
            pid = slot(await daemon.status(), "active")["pid"]
            assert (page.status, await page.text()) == (200, str(pid))
        health = await daemon.request("GET", "/health")
        assert health.json["checks"]["port_active"]["status"] == "pass", health.json
        switch = next(step for step in answer.json["steps"] if step["name"] == "switch")
        assert switch["detail"]["landing"] == "right"
