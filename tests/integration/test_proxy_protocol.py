"""The relay reports the client's address to real servers that require it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness import DaemonProcess, Setting, missing, write_release
from tests.integration.fakes import write_server

SMOKE = """
[[http]]
name = "answers"
path = "/"

[[command]]
name = "answers a program"
run = ["python3", "-c", \
"import os, urllib.request as r; r.urlopen(os.environ['ATLAS_STAGING_URL'], timeout=5)"]
"""


async def address_seen(daemon: DaemonProcess, source: str) -> tuple[str, str]:
    """Return the client's address as the worker sees it, and as it is."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", daemon.public_port, local_addr=(source, 0)
    )
    host, port = writer.get_extra_info("sockname")
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = (await asyncio.wait_for(reader.read(), 5)).decode()
    writer.close()
    return answer.rpartition("\r\n\r\n")[2].strip('"'), f"{host}:{port}"


@pytest.mark.parametrize("server", ["nginx", "haproxy"])
async def test_a_server_that_requires_proxy_protocol_is_deployed_and_sees_the_client(
    tmp_path: Path, server: str
) -> None:
    if missing(server):
        pytest.skip(f"needs {server}")
    smoke = tmp_path / "smoke.toml"
    smoke.write_text(SMOKE)
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": write_server(tmp_path, server),
        "RELAY_PROXY_PROTOCOL": "true",
        "HEALTH_PATH": "/",
        "LIVENESS_INTERVAL_SECONDS": 0.05,
        "SMOKE_FILE": smoke,
    }
    async with DaemonProcess.running(tmp_path, settings) as daemon:
        for version in ("v1", "v2"):
            if version != "v1":
                write_release(daemon.worker_directory, version)
                record = (await daemon.deploy()).json
                assert record["result"] == "switched", record
            seen, own = await address_seen(daemon, "127.0.0.2")
            assert seen == own
        health = (await daemon.request("GET", "/health")).json
        assert health["checks"]["port_active"]["status"] == "pass", health
        assert all(slot["restarts"] == 0 for slot in (await daemon.status())["slots"])
