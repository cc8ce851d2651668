"""A version that waits for its switch gets a part of the traffic, and loses it in time."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import (
    SCRIPTED,
    ask_to_die,
    everything_agrees,
    release,
    rows,
    scripted_daemon,
    slot,
    state_file,
    until_phase,
)

WAITS: dict[str, Setting] = {"AUTO_SWITCH_ON_HEALTH": "false"}
APP = Path(__file__).parents[1] / "acceptance" / "apps" / "asgi_app.py"
COMMANDS = {
    "kernel": SCRIPTED,
    "relay": "uvicorn asgi_app:app --log-level warning --port {port}",
}
SITES = [f"127.1.{number}.1" for number in range(40)]
TESTER, STRANGER = "127.9.3.4", "127.10.0.1"


async def version_for(daemon: DaemonProcess, source: str, path: str = "/") -> str:
    """Return the version that a client of this address gets on a new connection."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", daemon.public_port, local_addr=(source, 0)
    )
    try:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.split()[1] == b"200", head
        text = body.decode()
        return str(json.loads(text)["version"]) if text.startswith("{") else text.split()[-1]
    finally:
        writer.close()


async def versions(daemon: DaemonProcess, sources: Iterable[str]) -> list[str]:
    return await asyncio.gather(*(version_for(daemon, source) for source in sources))


async def with_v2(daemon: DaemonProcess) -> set[str]:
    """Return the sites that get the waiting version."""
    found = await versions(daemon, SITES)
    return {site for site, version in zip(SITES, found, strict=True) if version == "v2"}


async def share(daemon: DaemonProcess, weight: Any) -> Any:
    return await daemon.request("POST", "/deploy/traffic", json={"staging_weight": weight})


async def reload(daemon: DaemonProcess) -> None:
    before = (await daemon.status())["daemon"]
    assert (await daemon.request("POST", "/supervisor/reload")).status == 202
    async with asyncio.timeout(30):
        while True:
            try:
                if (await daemon.status())["daemon"] != before:
                    return
            except (aiohttp.ClientConnectionError, AssertionError):
                pass
            await asyncio.sleep(0.02)


async def test_addresses_keep_their_version_over_growth_kill_and_reload_until_an_abort(
    tmp_path: Path,
) -> None:
    settings: dict[str, Setting] = {
        **WAITS,
        "TRAFFIC_STICKY": "address",
        "TRAFFIC_TESTERS": "127.9.0.0/16",
    }
    async with scripted_daemon(tmp_path, settings) as daemon:
        refused = await share(daemon, 0.5)
        assert (refused.status, refused.json["error"]["code"]) == (409, "nothing_to_split")
        assert (await daemon.request("GET", "/deploy/traffic")).status == 409
        assert await version_for(daemon, TESTER) == "v1"
        release(daemon, "v2")
        waiting = (await daemon.deploy()).json
        assert waiting["result"] == "awaiting_switch"
        assert await versions(daemon, [TESTER, STRANGER]) == ["v2", "v1"]
        assert await with_v2(daemon) == set()

        for bad in (-0.1, 1.1, "half", None, True):
            answer = await share(daemon, bad)
            assert (answer.status, answer.json["error"]["field"]) == (400, "staging_weight"), bad
        answer = await share(daemon, 0.3)
        assert answer.status == 200, answer
        assert (answer.json["staging_weight"], answer.json["version"]) == (0.3, "v2")
        few = await with_v2(daemon)
        assert 0 < len(few) < len(SITES) / 2 + 8
        assert await with_v2(daemon) == few
        assert (await share(daemon, 0.7)).status == 200
        many = await with_v2(daemon)
        assert few < many < set(SITES)

        await daemon.kill()
        assert await with_v2(daemon) == many
        await daemon.start()
        await until_phase(daemon, "awaiting_switch")
        assert await with_v2(daemon) == many
        await reload(daemon)
        assert await with_v2(daemon) == many
        view = (await daemon.request("GET", "/deploy/traffic")).json
        assert (view["staging_weight"], view["testers"]) == (0.7, ["127.9.0.0/16"])
        status = await daemon.status()
        assert status["traffic"]["weights"][slot(status, "staging")["slot"]] == 0.7
        assert state_file(daemon)["staging_weight"] == 0.7
        assert rows(daemon, "SELECT COUNT(*) FROM audit WHERE action = 'steering'") == [(0,)]

        in_flight = asyncio.create_task(version_for(daemon, TESTER, "/held"))
        await eventually((daemon.worker_directory / "held").exists)
        abort = asyncio.create_task(daemon.request("POST", "/deploy/abort"))
        await until_phase(daemon, "unstage")
        (daemon.worker_directory / "let_go").touch()
        assert await in_flight == "v2"
        assert (await abort).json["result"] == "aborted"
        assert await versions(daemon, [TESTER, *SITES]) == ["v1"] * (len(SITES) + 1)
        assert state_file(daemon)["staging_weight"] == 0
        await everything_agrees(daemon)
        causes = rows(daemon, "SELECT cause FROM transitions WHERE event = 'split_requested'")
        assert [cause for (cause,) in causes] == [
            f"green gets {percent} % of client addresses, requested by uid:{os.geteuid()}"
            for percent in (30, 70)
        ]
        audited = rows(daemon, "SELECT outcome, subject FROM audit WHERE action = 'traffic'")
        assert audited == [("split", waiting["deploy_id"])] * 2


@pytest.mark.parametrize("plane", COMMANDS)
async def test_connections_are_drawn_and_the_switch_ends_the_split(
    tmp_path: Path, plane: str
) -> None:
    settings: dict[str, Setting] = {**WAITS, "WORKER_COMMAND": COMMANDS[plane]}
    async with scripted_daemon(tmp_path, settings, files={APP.name: APP.read_text()}) as daemon:
        assert (await daemon.status())["traffic"]["plane"] == plane
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "awaiting_switch"
        assert (await share(daemon, 0.5)).status == 200
        found = Counter(await versions(daemon, [STRANGER] * 100))
        assert found["v1"] + found["v2"] == 100
        assert 20 < found["v2"] < 80
        assert (await share(daemon, 1)).status == 200
        assert set(await versions(daemon, [STRANGER] * 10)) == {"v2"}
        assert (await share(daemon, 0)).status == 200
        assert set(await versions(daemon, [STRANGER] * 10)) == {"v1"}
        assert (await share(daemon, 0.2)).status == 200
        assert (await daemon.request("POST", "/deploy/switch")).json["result"] == "switched"
        assert set(await versions(daemon, [STRANGER] * 20)) == {"v2"}
        assert state_file(daemon)["staging_weight"] == 0


async def test_a_waiting_version_that_dies_loses_its_share_and_no_client(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, WAITS) as daemon:
        release(daemon, "v2", die_on="/die")
        waiting = (await daemon.deploy()).json
        assert (await share(daemon, 0.5)).status == 200
        await ask_to_die(slot(await daemon.status(), "staging")["port"])
        assert set(await versions(daemon, [STRANGER] * 40)) == {"v1"}
        record = await daemon.ended(waiting["deploy_id"])
        assert record["result"] == "failed"
        assert state_file(daemon)["staging_weight"] == 0
        await everything_agrees(daemon)
