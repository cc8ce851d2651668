"""Three machines behind a real HAProxy, with the configuration of docs/how-to/haproxy.md."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.haproxy import MISSING, PROGRAM, HAProxy, haproxy, on_loopback
from tests.harness import DaemonProcess, bundled_worker, free_ports, write_release
from tests.loadclient import Kind, Load, bundled_worker_mix, streams

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/haproxy.md").read_text()

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)


@asynccontextmanager
async def machines(folder: Path) -> AsyncIterator[dict[str, DaemonProcess]]:
    """Three supervisors with two releases each, that answer agent checks."""
    for version in ("1.0", "1.1"):
        write_release(folder / "releases" / version, version)
    agents = free_ports(3)
    async with AsyncExitStack() as stack:
        started = [
            stack.enter_async_context(
                DaemonProcess.running(
                    folder / name,
                    {
                        **bundled_worker(idle_grace=1.0),
                        "WORKER_DIRECTORY": folder / "releases/1.0",
                        "RELEASES_DIR": folder / "releases",
                        "FLEET_AGENT_PORT": agent,
                    },
                )
            )
            for name, agent in zip("abc", agents, strict=True)
        ]
        yield dict(zip("abc", await asyncio.gather(*started), strict=True))


async def test_deploys_a_killed_supervisor_and_a_machine_that_stops_lose_no_request(
    tmp_path: Path,
) -> None:
    [port] = free_ports(1)
    async with machines(tmp_path) as daemons:
        text = on_loopback(PAGE, port, daemons)
        async with haproxy(tmp_path / "haproxy", text) as proxy:
            for name in daemons:
                await proxy.until(name, "UP")
            mix: tuple[Kind, ...] = (*bundled_worker_mix(pause=0.7), *streams())
            async with Load("127.0.0.1", port, mix, proxied=True) as load:
                for daemon in daemons.values():
                    assert (await daemon.deploy("1.1")).status == 200
                await killed(daemons["a"], proxy)
                await stopped(daemons["b"], proxy)
                report = await load.stop()
            assert not report.losses, report.describe()
            assert report.sent > 500


async def killed(daemon: DaemonProcess, proxy: HAProxy) -> None:
    """Kill a supervisor: its workers serve on, and HAProxy sends them requests."""
    await daemon.kill()
    before = int((await proxy.servers())["a"]["stot"])
    async with asyncio.timeout(20):
        while int((await proxy.servers())["a"]["stot"]) < before + 50:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (await proxy.servers())["a"]["status"] == "UP"
    await daemon.start()


async def stopped(daemon: DaemonProcess, proxy: HAProxy) -> None:
    """Stop a machine's supervisor and its workers with it, and start it again."""
    stop = asyncio.create_task(daemon.stop())
    await proxy.until("b", "DRAIN")
    await stop
    await proxy.until("b", "DOWN")
    await daemon.start()
    await proxy.until("b", "UP")
