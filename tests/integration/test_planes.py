"""Both planes on every kind of address and with every kind of worker, by the real daemon.

The same is asked of each: which plane it is, that the public port reaches the active instance
and each slot's own port the instance in it, and that a deploy moves all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.harness import DaemonProcess, Setting, write_release
from tests.integration.support import SCRIPTED, slot, until_phase

APP = Path(__file__).parent.parent / "acceptance" / "apps" / "asgi_app.py"
COMMANDS = {
    "activation": SCRIPTED,
    "fd": f"env LISTEN_FDS=1 {SCRIPTED} {{fd}}",
    "port": f"{SCRIPTED} --port {{port}}",
    "uvicorn": "uvicorn asgi_app:app --log-level warning --port {port}",
}
WARM: dict[str, Setting] = {"KEEP_WARM_FOREIGN": "true", "KEEP_WARM_SECONDS": 60}


@asynccontextmanager
async def daemon_with(
    folder: Path, worker: str, **settings: Setting
) -> AsyncIterator[DaemonProcess]:
    """A daemon whose foreign worker takes its socket in this way."""
    settings = {
        "WORKER_COMMAND": COMMANDS[worker],
        "HEALTH_PROBES": 1,
        "DRAIN_TIMEOUT_SECONDS": 5,
        **settings,
    }
    files = {APP.name: APP.read_text()}
    async with DaemonProcess.running(folder, settings, files=files) as daemon:
        yield daemon


async def version_at(host: str, port: int) -> str:
    """Return the version that answers here, on a connection of its own."""
    at = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
        session.get(at) as answer,
    ):
        assert answer.status == 200
        if answer.content_type == "application/json":
            return str((await answer.json())["version"])
        return (await answer.text()).split()[-1]


async def refused_or_closed(port: int) -> bool:
    """Tell whether whoever asks here is sent away at once."""
    try:
        await asyncio.wait_for(version_at("127.0.0.1", port), 5)
    except aiohttp.ClientError:
        return True
    return False


async def own_versions(status: dict[str, Any]) -> dict[str, str]:
    """Return which version answers on the active and on the staging port."""
    return {
        role: await version_at("127.0.0.1", status[f"{role}_port"])
        for role in ("active", "staging")
    }


@pytest.mark.parametrize(
    ("host", "clients", "worker", "plane"),
    [
        ("127.0.0.1", ["127.0.0.1"], "fd", "kernel"),
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2"], "activation", "kernel"),
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2"], "port", "relay"),
        ("::1", ["::1"], "activation", "kernel"),
        ("::1", ["::1"], "fd", "relay"),
        ("::1", ["::1"], "port", "relay"),
        ("::", ["127.0.0.1", "::1"], "activation", "kernel"),
        ("::", ["127.0.0.1", "::1"], "fd", "kernel"),
        ("::", ["127.0.0.1", "::1"], "port", "relay"),
    ],
)
async def test_the_public_port_reaches_the_active_one_and_each_own_port_its_instance(
    tmp_path: Path, host: str, clients: list[str], worker: str, plane: str
) -> None:
    waiting = {"AUTO_SWITCH_ON_HEALTH": "false"}
    async with daemon_with(tmp_path, worker, PUBLIC_HOST=host, **waiting, **WARM) as daemon:
        before = await daemon.status()
        assert before["traffic"]["plane"] == plane
        assert before["public_port"] == daemon.public_port
        assert await refused_or_closed(before["staging_port"])
        write_release(daemon.worker_directory, "v2")
        assert (await daemon.deploy()).json["result"] == "awaiting_switch"
        assert await own_versions(before) == {"active": "v1", "staging": "v2"}
        assert [await version_at(each, daemon.public_port) for each in clients] == ["v1"] * len(
            clients
        )
        switched = await daemon.request("POST", "/deploy/switch")
        assert switched.json["result"] == "switched", switched
        after = await daemon.status()
        assert after["active_port"] == before["staging_port"]
        assert await own_versions(after) == {"active": "v2", "staging": "v1"}  # v1 is warm
        assert [await version_at(each, daemon.public_port) for each in clients] == ["v2"] * len(
            clients
        )


@pytest.mark.parametrize("worker", ["activation", "fd", "port"])
async def test_without_a_public_port_clients_follow_the_active_port(
    tmp_path: Path, worker: str
) -> None:
    async with daemon_with(tmp_path, worker, PUBLIC_PORT=0) as daemon:
        before = await daemon.status()
        assert before["public_port"] is None
        assert before["traffic"]["plane"] == "none"
        assert await version_at("127.0.0.1", before["active_port"]) == "v1"
        write_release(daemon.worker_directory, "v2")
        record = (await daemon.deploy()).json
        assert record["result"] == "switched"
        assert record["active_port"] == before["staging_port"]
        assert await version_at("127.0.0.1", record["active_port"]) == "v2"
        await daemon.ended(record["deploy_id"])
        # Whoever has not followed is told so, and not answered by the other slot.
        assert await refused_or_closed(record["staging_port"])
        assert (await daemon.status())["public_port"] is None


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection and see by an answer that it has reached a worker."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(len("- v2"))
    return reader, writer


async def kill(pid: int) -> None:
    """Kill a worker, and wait until it has let go of its sockets."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        await asyncio.to_thread(select.select, [handle], [], [], 5)
    finally:
        os.close(handle)


async def test_on_the_relay_a_killed_worker_s_connections_are_cut_and_new_ones_reach_the_warm_one(
    tmp_path: Path,
) -> None:
    # With a server that keeps a connection open.
    async with daemon_with(tmp_path, "uvicorn", **WARM) as daemon:
        write_release(daemon.worker_directory, "v2")
        deploy_id = (await daemon.deploy()).json["deploy_id"]
        await until_phase(daemon, "warm")
        status = await daemon.status()
        assert status["traffic"]["plane"] == "relay"
        reader, writer = await connected(daemon.public_port)
        await kill(slot(status, "active")["pid"])
        # Asked at once, they meet a port on which nobody listens any more: the relay tries again.
        answers = await asyncio.gather(
            *(version_at("127.0.0.1", daemon.public_port) for _ in range(20))
        )
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        record = await daemon.ended(deploy_id)
        assert record["result"] == "rolled_back"
        assert set(answers) == {"v1"}
        after = await daemon.status()
        assert after["active_port"] == status["staging_port"]
        assert await refused_or_closed(after["staging_port"])


async def test_on_the_relay_clients_wait_for_a_killed_worker_that_has_no_heir(
    tmp_path: Path,
) -> None:
    async with daemon_with(tmp_path, "port") as daemon:
        await kill(slot(await daemon.status(), "active")["pid"])
        answers = await asyncio.gather(
            *(version_at("127.0.0.1", daemon.public_port) for _ in range(20))
        )
        assert set(answers) == {"v1"}
        assert slot(await daemon.status(), "active")["restarts"] == 1


async def test_a_descriptor_worker_on_the_relay_leaves_its_queue_to_the_warm_one(
    tmp_path: Path,
) -> None:
    async with daemon_with(tmp_path, "fd", PUBLIC_HOST="::1", **WARM) as daemon:
        write_release(daemon.worker_directory, "v2")
        deploy_id = (await daemon.deploy()).json["deploy_id"]
        await until_phase(daemon, "warm")
        status = await daemon.status()
        pid = slot(status, "active")["pid"]
        os.kill(pid, signal.SIGSTOP)  # so that connections stay in its queue
        waiting = [asyncio.create_task(version_at("::1", daemon.public_port)) for _ in range(20)]
        own = asyncio.create_task(refused_or_closed(status["active_port"]))
        await asyncio.wait([*waiting, own], timeout=0.3)
        os.kill(pid, signal.SIGKILL)
        assert set(await asyncio.gather(*waiting)) == {"v1"}
        assert (await daemon.ended(deploy_id))["steps"][-1]["detail"]["rescued"] >= 20
        assert await refused_or_closed(status["active_port"])
        own.cancel()
