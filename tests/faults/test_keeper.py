"""Without systemd a keeper has the sockets: if processes die, clients wait and none is refused."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from atlas_supervisor.system import procfs, sockdiag
from tests.faults.support import queued
from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import SCRIPTED, everything_agrees, get, scripted_daemon

BY_PORT: Mapping[str, Setting] = {
    "WORKER_COMMAND": "python -m http.server --bind 127.0.0.1 {port}",
    "HEALTH_PATH": "/",
}
CLIENTS = 20


def keepers(daemon: DaemonProcess) -> set[int]:
    """Return the processes that keep the public port for the daemon."""
    inodes = {each.inode for each in sockdiag.listeners(daemon.public_port)}
    holders = {pid: Path(f"/proc/{pid}/cmdline") for pid in procfs.holders_of(inodes)}
    return {pid for pid, command in holders.items() if b"socket_keeper" in command.read_bytes()}


async def keeper_of(daemon: DaemonProcess) -> int:
    """Return the keeper, for which the daemon does not wait at its start."""
    await eventually(lambda: len(keepers(daemon)) == 1, what="there is one keeper")
    (keeper,) = keepers(daemon)
    return keeper


async def kill_all(daemon: DaemonProcess) -> None:
    """Kill the daemon and its workers at once."""
    for pid in (daemon.pid, *daemon.leftovers()):
        os.kill(pid, signal.SIGKILL)
    assert daemon.process is not None
    await daemon.process.wait()
    await daemon.stop_clients()


@pytest.mark.fault(
    "Processes",
    "the daemon and all workers die at once, without systemd",
    "clients wait for the next daemon, none is refused",
)
@pytest.mark.parametrize("settings", [{"WORKER_COMMAND": SCRIPTED}, BY_PORT])
async def test_all_processes_die_at_once_and_clients_wait_for_the_next_daemon(
    tmp_path: Path, settings: Mapping[str, Setting]
) -> None:
    async with DaemonProcess.running(tmp_path, settings, files={"ok.json": "{}"}) as daemon:
        await kill_all(daemon)
        waiting = [asyncio.create_task(get(daemon.public_port, "/ok.json")) for _ in range(CLIENTS)]
        await eventually(lambda: queued(daemon.public_port) == CLIENTS)
        assert not any(each.done() for each in waiting)
        await daemon.start()
        assert {(await each)[0] for each in waiting} == {200}


@pytest.mark.fault(
    "Processes",
    "the daemon is killed where it relays",
    "its clients' connections are lost, new ones wait for the next daemon",
)
async def test_where_the_daemon_relays_its_death_refuses_no_client(tmp_path: Path) -> None:
    async with DaemonProcess.running(tmp_path, BY_PORT, files={"ok.json": "{}"}) as daemon:
        await daemon.kill()
        waiting = asyncio.create_task(get(daemon.public_port, "/ok.json"))
        await eventually(lambda: queued(daemon.public_port) == 1)
        await daemon.start()
        assert (await waiting)[0] == 200


@pytest.mark.fault(
    "Processes",
    "the keeper of the sockets is killed",
    "the daemon starts another one",
)
async def test_a_keeper_is_no_worker_and_is_replaced_when_it_dies(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        first = await keeper_of(daemon)
        (worker,) = daemon.leftovers()
        os.kill(worker, signal.SIGKILL)
        await eventually(lambda: daemon.leftovers() not in ([], [worker]))
        assert await keeper_of(daemon) == first
        await daemon.kill()
        await daemon.start()
        assert await keeper_of(daemon) == first
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: keepers(daemon) - {first}, what="there is another keeper")
        second = await keeper_of(daemon)
        await kill_all(daemon)
        await daemon.start()
        assert await keeper_of(daemon) == second


async def test_changed_ports_are_not_held_up_by_what_a_keeper_has(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        await kill_all(daemon)
        daemon.settings["PUBLIC_HOST"] = "0.0.0.0"
        await daemon.start()
        (address,) = {each.address for each in sockdiag.listeners(daemon.public_port)}
        assert address == "0.0.0.0"
        await everything_agrees(daemon)
