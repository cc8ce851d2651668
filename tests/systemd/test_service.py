"""The service under a real systemd: every line of the unit that promises something."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from atlas_supervisor.system import sockdiag
from tests.harness import answered, bundled_worker, eventually, free_ports, write_release
from tests.loadclient import Load, Reason, bundled_worker_mix
from tests.systemd.support import Machine, machine, missing

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

NAME = "shop"
UNIT = f"atlas-supervisor@{NAME}.service"
IDLE_GRACE_SECONDS = 0.8
WATCHDOG_SECONDS = 3
MIX = bundled_worker_mix(pause=0.7 * IDLE_GRACE_SECONDS)
DROP_IN = f"""
[Service]
WatchdogSec={WATCHDOG_SECONDS}
TimeoutStopSec=2
"""


class Shop:
    """An application with a daemon of its own on the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        ports = free_ports(4)
        self.settings: dict[str, Any] = {
            "DEPLOY_MODE": "bluegreen",
            "ACTIVE_PORT": ports[0],
            "STAGING_PORT": ports[1],
            "PUBLIC_PORT": ports[2],
            "CONTROL_PORT": ports[3],
            "STATE_DIR": f"/var/lib/atlas/{NAME}",
            "RELEASES_DIR": "/srv/my shop/releases",
            "WORKER_DIRECTORY": "/srv/my shop/releases/v1",
            "HEALTH_INTERVAL_SECONDS": 0.05,
            "KEEP_WARM_SECONDS": 0,
            "GUARD_SECONDS": 0,
            "SMOKE_FILE": "",
            "DRAIN_TIMEOUT_SECONDS": 6,
            "STOP_TIMEOUT_SECONDS": 2,
            **bundled_worker(idle_grace=IDLE_GRACE_SECONDS),
        }
        for version in ("v1", "v2", "v3"):
            write_release(machine.disk / "srv/my shop/releases" / version, version)
        self.env_file = machine.disk / f"etc/atlas/{NAME}.env"
        self.env_file.parent.mkdir()
        self.write_settings()

    def write_settings(self, **more: Any) -> None:
        lines = (f'{key}="{value}"\n' for key, value in {**self.settings, **more}.items())
        self.env_file.write_text("".join(lines))

    async def run(self, *command: str) -> str:
        """Run a program on the machine; return its output."""
        return await asyncio.to_thread(self.machine.run, *command)

    async def install(self, *arguments: str, check: bool = True) -> str:
        """Install this application's service."""
        install = partial(self.machine.install, "--name", NAME, *arguments, check=check)
        return await asyncio.to_thread(install)

    async def journal(self, *options: str) -> str:
        """Return the service's part of the journal."""
        return await self.run("journalctl", "--unit", UNIT, *options)

    @property
    def public_port(self) -> int:
        return int(self.settings["PUBLIC_PORT"])

    @property
    def pid(self) -> int:
        """The daemon's pid, 0 if there is none."""
        return self.machine.main_pid(UNIT)

    @property
    def own_tmp(self) -> Path:
        """The service's `/tmp`, as it is out here."""
        return self.machine.disk / f"var/cache/atlas-supervisor@{NAME}/tmp"

    def temporary_files(self) -> list[Path]:
        """Return the files there; not the places of folders that are bound into it."""
        return [path for path in self.own_tmp.rglob("*") if path.is_file()]

    def workers(self) -> set[int]:
        """Return the processes of the service that are Python and not the daemon."""
        others = set(self.machine.of_unit(UNIT)) - {self.pid}
        return {pid for pid in others if b"atlas_worker" in command_line(pid)}

    def show(self, name: str) -> str:
        return self.machine.show(UNIT, name)

    async def until_active(self, *, after: int = 0, within: float = 20) -> None:
        """Wait until systemd has the daemon as ready, and that it is not the one before."""
        await eventually(
            lambda: self.show("ActiveState") == "active" and self.pid not in {0, after},
            within=within,
            what="the service is active again",
        )

    async def refused_after_a_kill(self) -> None:
        """Kill the daemon, and wait until its successor was refused and the next one waits."""
        restarts = int(self.show("NRestarts"))
        os.kill(self.pid, signal.SIGKILL)
        await eventually(
            lambda: (
                int(self.show("NRestarts")) == restarts + 2 and self.show("SubState") == "start-pre"
            ),
            within=20,
        )

    async def request(self, method: str, path: str, **more: Any) -> Any:
        """Ask the control API with the token."""
        token = (self.machine.disk / f"var/lib/atlas/{NAME}/control.token").read_text().strip()
        base = f"http://127.0.0.1:{self.settings['CONTROL_PORT']}"
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession(base, headers=headers) as session:
            answer = await answered(session, method, path, **more)
        assert answer.status == 200, answer
        return answer.json

    async def deploy(self, version: str) -> None:
        answer = await self.request("POST", "/deploy/bluegreen", json={"release": version})
        assert answer["result"] == "switched", answer

    async def served(self) -> str:
        """Return the version that a client gets."""
        url = f"http://127.0.0.1:{self.public_port}/"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return str((await answer.json())["version"])

    def load(self) -> Load:
        return Load("127.0.0.1", self.public_port, MIX)


def uid_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def privileges_of(pid: int) -> tuple[bool, int]:
    """Return whether the process may gain privileges, and the most that it could have."""
    status = Path(f"/proc/{pid}/status").read_text()
    bounding = int(status.partition("\nCapBnd:\t")[2].split()[0], 16)
    return "\nNoNewPrivs:\t1\n" not in status, bounding


def write_temporary(pid: int, name: str) -> None:
    """Create a file in the `/tmp` that the process sees."""
    Path(f"/proc/{pid}/root/tmp", name).touch()


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def privileged_port() -> int:
    """Return a free port below 1024."""
    while True:
        port = random.choice(range(600, 1000))  # noqa: S311 - two runs at once must differ, no more
        with socket.socket() as trial:
            try:
                trial.bind(("", port))
            except OSError:
                continue
        return port


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A machine on which the shop was installed and has started."""
    with machine(tmp_path_factory.mktemp("machine")) as booted:
        made = Shop(booted)
        drop_in = booted.disk / f"etc/systemd/system/{UNIT}.d/test.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(DROP_IN)
        said = booted.install("--name", NAME, "--now")
        assert said.splitlines()[0] == f"made the user atlas-{NAME}"
        assert said.splitlines()[-1].startswith(f"{UNIT} serves")
        yield made


@pytest.fixture
async def running(shop: Shop) -> Shop:
    """The shop, started where the test before has stopped it."""
    if shop.show("ActiveState") != "active":
        await shop.run("systemctl", "start", UNIT)
    return shop


async def test_it_runs_without_privileges_and_deploys_in_its_sandbox(running: Shop) -> None:
    for pid in (running.pid, *running.workers()):
        assert privileges_of(pid) == (False, 0)
        assert uid_of(pid) != 0
    await running.deploy("v2")
    assert await running.served() == "v2"
    await eventually(lambda: running.show("StatusText").startswith("version v2 serves on port "))


async def test_the_sandbox_leaves_little_exposed(running: Shop) -> None:
    said = await running.run("systemd-analyze", "security", "--no-pager", UNIT)
    exposure = float(said.partition("Overall exposure level")[2].partition(": ")[2].split()[0])
    # What is installed in a home makes that much of it visible.
    assert exposure <= (1.7 if running.show("ProtectHome") == "tmpfs" else 1.6), said


async def test_installing_it_again_changes_nothing_and_another_unit_is_not_replaced(
    running: Shop,
) -> None:
    unit = running.machine.disk / f"etc/systemd/system/{UNIT}"
    assert (await running.install("--now")).splitlines() == [
        f"unchanged: /etc/systemd/system/{UNIT}",
        "warning: SMOKE_FILE is empty or missing: the health gate is the only check of a release",
        f"{UNIT} is running",
    ]
    running.env_file.chmod(0o600)
    said = await running.install(check=False)
    assert f"atlas-{NAME} can't read /etc/atlas/{NAME}.env: see its mode and owner" in said
    running.env_file.chmod(0o644)
    text = unit.read_text()
    own = text.replace("UMask=0027", "UMask=0077")
    unit.write_text(own)
    said = await running.install(check=False)
    assert "-UMask=0077\n+UMask=0027\n" in said
    assert "--force" in said
    assert unit.read_text() == own
    unit.write_text(text)


async def test_the_journal_has_what_it_logs_with_priorities(running: Shop) -> None:
    await running.deploy("v1")
    said = await running.journal("--output", "json", "_COMM=python")
    entries = [json.loads(line) for line in said.splitlines()]
    priorities = {entry["MESSAGE"].split()[0]: entry["PRIORITY"] for entry in entries}
    assert priorities["config_warning"] == "4"
    assert priorities["worker_ready"] == priorities["deploy_transition"] == "6"
    assert not any(entry["MESSAGE"].startswith(("<", "[")) for entry in entries)


async def test_a_reload_keeps_the_main_process_its_workers_and_every_request(
    running: Shop,
) -> None:
    await eventually(lambda: len(running.workers()) == 1)
    pid, workers, restarts = running.pid, running.workers(), running.show("NRestarts")
    async with running.load() as load:
        running.write_settings(CHANNEL="beta")
        await running.run("systemctl", "reload", UNIT)
        report = await load.stop()

    assert report.losses == []
    assert (running.pid, running.workers()) == (pid, workers)
    assert (running.show("ActiveState"), running.show("NRestarts")) == ("active", restarts)
    status = await running.request("GET", "/deploy/status")
    assert status["daemon"]["start"] == "reload"
    assert status["channel"] == "beta"
    assert status["daemon"]["settings_pending"]

    running.write_settings(PUBLIC_PORT=1, CHANNEL="stable")
    reload = partial(running.machine.run, "systemctl", "reload", UNIT, check=False)
    assert "failed" in await asyncio.to_thread(reload)
    assert "PUBLIC_PORT=1: a reload can't change it" in await running.journal()
    assert (await running.request("GET", "/deploy/status"))["daemon"] == status["daemon"]
    assert running.show("ActiveState") == "active"

    running.write_settings()
    os.kill(pid, signal.SIGHUP)
    states: set[str] = set()

    def is_reloaded() -> object:
        states.add(running.show("SubState"))
        begun = states & {"reload", "reload-notify"}  # before systemd 253, and since
        return begun and running.show("SubState") == "running"

    await eventually(is_reloaded, within=20, what="systemd sees the reload and its end")
    assert running.pid == pid


@pytest.mark.fault(
    "The daemon", "stopped past its watchdog", "systemd replaces it, and no request is lost"
)
async def test_a_killed_and_a_hung_daemon_are_replaced_and_no_request_is_lost(
    running: Shop,
) -> None:
    async with running.load() as load:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            pid, restarts = running.pid, int(running.show("NRestarts"))
            os.kill(pid, number)
            await running.until_active(after=pid)
            await eventually(lambda: len(running.workers()) == 1)
            assert int(running.show("NRestarts")) == restarts + 1
        report = await load.stop()
    assert not report.losses, report.describe()
    assert "Watchdog timeout" in await running.journal()
    await running.deploy("v1")
    assert await running.served() == "v1"


@pytest.mark.fault(
    "The daemon",
    "killed together with its workers, under systemd",
    "clients wait; only what the dead worker had accepted is lost",
)
async def test_all_processes_die_at_once_and_no_client_is_refused(running: Shop) -> None:
    """systemd has the sockets, so connections wait; what the dead worker had accepted is lost."""
    stored = running.show("NFileDescriptorStore")
    assert stored == "4"
    async with running.load() as load:
        for _ in range(3):
            pid = running.pid
            for each in running.machine.of_unit(UNIT):
                with suppress(ProcessLookupError):  # systemd ends what is left of the unit, too
                    os.kill(each, signal.SIGKILL)
            async with asyncio.timeout(10):  # long before the next worker
                await running.served()
            await running.until_active(after=pid)
            assert running.show("NFileDescriptorStore") == stored
        report = await load.stop()
    assert {loss.reason for loss in report.losses} <= {Reason.RESET, Reason.CLOSED}
    clients = sum(kind.loops for kind in MIX)
    assert len(report.losses) <= 3 * clients, report.describe()
    print(report.describe())  # noqa: T201 - what was measured stands in the output
    await running.deploy("v1")


async def test_a_daemon_with_another_public_address_drops_what_systemd_has_stored(
    running: Shop,
) -> None:
    running.write_settings(PUBLIC_HOST="0.0.0.0")
    pid, restarts = running.pid, int(running.show("NRestarts"))
    os.kill(pid, signal.SIGKILL)
    await running.until_active(after=pid)
    assert int(running.show("NRestarts")) == restarts + 1  # no start was refused
    assert await running.served() == "v1"
    assert running.show("NFileDescriptorStore") == "4"
    (public,) = {each.address for each in sockdiag.listeners(running.public_port)}
    assert public == "0.0.0.0"
    assert "kept_sockets_dropped" in await running.journal()
    running.write_settings()
    await running.run("systemctl", "restart", UNIT)  # with nothing stored any more
    assert await running.served() == "v1"
    assert running.show("NFileDescriptorStore") == "4"


@pytest.mark.fault(
    "The daemon", "one that can't start, under systemd", "it is tried again while its workers serve"
)
async def test_a_daemon_that_cannot_start_is_tried_again_while_its_workers_serve(
    running: Shop,
) -> None:
    await eventually(lambda: len(running.workers()) == 1)
    workers = running.workers()
    running.write_settings(ACTIVE_PORTT=1)
    async with running.load() as load:
        (running.own_tmp / "spooled").touch()
        await running.refused_after_a_kill()
        assert running.workers() == workers
        for pid in workers:
            write_temporary(pid, "another")
        assert (running.own_tmp / "spooled").exists()
        assert (running.own_tmp / "another").exists()
        running.write_settings()
        await running.until_active()
        await eventually(lambda: len(running.workers()) == 1)
        report = await load.stop()
    assert not report.losses, report.describe()
    assert "no such key; the nearest accepted: ACTIVE_PORT" in await running.journal()


async def test_a_stop_that_drains_for_long_is_not_cut_short_and_leaves_nothing(
    running: Shop,
) -> None:
    """TimeoutStopSec is 2 s here: the daemon extends it."""
    (running.own_tmp / "spooled").touch()
    reader, writer = await asyncio.open_connection("127.0.0.1", running.public_port)
    writer.write(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab")
    await writer.drain()
    stop = asyncio.create_task(running.run("systemctl", "stop", UNIT))
    await eventually(lambda: running.show("StatusText").startswith("stopping; "))
    await asyncio.sleep(2.5)  # what is tested is this very time
    writer.write(b"cd")
    assert b" 200 " in await reader.readline()
    writer.close()
    await stop
    assert running.show("Result") == "success"
    assert running.machine.of_unit(UNIT) == []
    assert not running.temporary_files()
    with pytest.raises(OSError, match="Connect call failed"):
        await running.served()


@pytest.mark.fault("The daemon", "dead and unable to start at a stop", "the stop ends its workers")
async def test_stop_ends_the_workers_of_a_daemon_that_died_and_cannot_start(
    running: Shop,
) -> None:
    """Not even its program is there any more."""
    unit = running.machine.disk / f"etc/systemd/system/{UNIT}"
    text = unit.read_text()
    unit.write_text(text.replace(".venv/bin/python", ".venv/bin/no-python"))
    await running.run("systemctl", "daemon-reload")
    try:
        await running.refused_after_a_kill()
        assert running.workers()
        await running.run("systemctl", "stop", UNIT)
        assert running.machine.of_unit(UNIT) == []
        assert not running.temporary_files()
        assert running.show("ActiveState") in {"inactive", "failed"}
    finally:
        unit.write_text(text)
        await running.run("systemctl", "daemon-reload")


async def test_a_stop_right_after_the_daemon_s_death_ends_its_workers(running: Shop) -> None:
    """While systemd still runs what follows a death, which takes long here."""
    drop_in = running.machine.disk / f"etc/systemd/system/{UNIT}.d/slow.conf"
    drop_in.write_text("[Service]\nExecStopPost=/bin/sleep 1\n")
    await running.run("systemctl", "daemon-reload")
    try:
        os.kill(running.pid, signal.SIGKILL)
        await eventually(lambda: running.show("SubState") == "stop-post")
        assert running.workers()
        await running.run("systemctl", "stop", UNIT)
        await eventually(lambda: running.machine.of_unit(UNIT) == [])
        assert running.show("SubState") == "failed"  # its death was not asked for
    finally:
        drop_in.unlink()
        await running.run("systemctl", "daemon-reload")


async def test_the_installer_has_root_s_daemon_run_workers_of_another_user(shop: Shop) -> None:
    await shop.run("systemctl", "stop", UNIT)
    await shop.run("useradd", "--system", "web")
    shutil.rmtree(shop.machine.disk / f"var/lib/atlas/{NAME}")
    assert "differs" in await shop.install("--worker-user", "web", check=False)
    assert "WORKER_USER" not in shop.env_file.read_text()
    said = await shop.install("--worker-user", "web", "--force", "--now")
    assert f"set WORKER_USER=web in /etc/atlas/{NAME}.env" in said
    web = int(await shop.run("id", "-u", "web"))
    assert {uid_of(pid) for pid in shop.workers()} == {web}
    pid = shop.pid
    assert uid_of(pid) == 0
    await shop.deploy("v2")
    before = await shop.journal()  # of earlier tests, too
    os.kill(pid, signal.SIGKILL)
    await shop.until_active(after=pid)
    await eventually(lambda: len(shop.workers()) == 1)
    assert {uid_of(pid) for pid in shop.workers()} == {web}
    assert await shop.served() == "v2"
    assert "workers_ended_first" not in (await shop.journal()).removeprefix(before)


@pytest.mark.fault("Clock and machine", "a power cut", "the service is back with the same version")
async def test_it_is_back_after_a_power_cut_on_a_port_below_1024(shop: Shop) -> None:
    """With the version that was active; the port is one that it may have without privileges."""
    await shop.run("systemctl", "stop", UNIT)
    shutil.rmtree(shop.machine.disk / f"var/lib/atlas/{NAME}")
    shop.settings["PUBLIC_PORT"] = privileged_port()
    shop.write_settings()
    await shop.install("--force", "--now")
    await shop.deploy("v3")
    port = (await shop.request("GET", "/deploy/status"))["active_port"]
    await asyncio.to_thread(shop.machine.cut_power)
    with pytest.raises(OSError, match="Connect call failed"):
        await shop.served()
    await asyncio.to_thread(shop.machine.boot)
    await shop.until_active()
    assert await shop.served() == "v3"
    assert (await shop.request("GET", "/deploy/status"))["active_port"] == port
    assert privileges_of(shop.pid) == (False, 1 << 10)  # CAP_NET_BIND_SERVICE and no other
    assert uid_of(shop.pid) != 0
