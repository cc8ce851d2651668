"""A daemon whose worker is the scripted one, and what tests of deploys ask of it."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.harness import DaemonProcess, Setting, write_release

WARM: dict[str, Setting] = {"KEEP_WARM_FOREIGN": "true", "KEEP_WARM_SECONDS": 60}

SCRIPTED = shlex.join(("python", "-S", str(Path(__file__).parents[1] / "apps" / "scripted.py")))
"""The command of the scripted worker; the repository's path may have spaces."""


@asynccontextmanager
async def scripted_daemon(
    folder: Path, settings: Mapping[str, Setting] | None = None, **more: Any
) -> AsyncIterator[DaemonProcess]:
    """A daemon that runs the scripted worker, version v1, behaving well."""
    quick: dict[str, Setting] = {
        "WORKER_COMMAND": SCRIPTED,
        "STOP_TIMEOUT_SECONDS": 2,
        "DRAIN_QUIET_SECONDS": 0.2,
    }
    async with DaemonProcess.running(folder, {**quick, **(settings or {})}, **more) as daemon:
        yield daemon


def release(daemon: DaemonProcess, version: str, **behaviour: Any) -> None:
    """Put another version into the worker directory."""
    (daemon.worker_directory / "VERSION").write_text(version)
    (daemon.worker_directory / "behaviour.json").write_text(json.dumps(behaviour))


async def get(port: int, path: str = "/", host: str = "127.0.0.1") -> tuple[int, Any]:
    """Ask a worker, on a connection of its own."""
    where = f"[{host}]" if ":" in host else host
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
        session.get(f"http://{where}:{port}{path}") as answer,
    ):
        return answer.status, await answer.json(content_type=None)


async def agent_line(port: int) -> bytes:
    """Return the answer to an agent check of HAProxy."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.read()
    finally:
        writer.close()


async def ask_to_die(port: int) -> None:
    """Ask a worker to end without an answer; an HTTP library would try again by itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /die HTTP/1.1\r\nHost: localhost\r\n\r\n")
    try:
        assert await reader.read() == b""
    except ConnectionResetError:
        pass
    finally:
        writer.close()


async def public_version(daemon: DaemonProcess) -> str:
    """Return the version that a user gets."""
    status, body = await get(daemon.public_port)
    assert status == 200
    return str(body["version"])


async def until_phase(daemon: DaemonProcess, phase: str, *, within: float = 10.0) -> dict[str, Any]:
    """Wait until the last deploy is in this phase, and return its record."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        last = (await daemon.status())["last_deploy"]
        if last is not None and last["phase"] == phase:
            record: dict[str, Any] = last
            return record
        assert asyncio.get_running_loop().time() < deadline, f"not in {phase}: {last}"
        await asyncio.sleep(0.02)


def slot(status: dict[str, Any], role: str) -> dict[str, Any]:
    """Return the slot that has this role."""
    (found,) = [each for each in status["slots"] if each["role"] == role]
    view: dict[str, Any] = found
    return view


def rows(daemon: DaemonProcess, query: str) -> list[tuple[Any, ...]]:
    """Read the daemon's database from outside."""
    with sqlite3.connect(f"file:{daemon.state_dir}/atlas.db?mode=ro", uri=True) as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


def write(daemon: DaemonProcess, statement: str) -> None:
    """Change the database of a daemon that is stopped."""
    with sqlite3.connect(daemon.state_dir / "atlas.db") as connection:
        connection.execute(statement)
    connection.close()


def rewrite(daemon: DaemonProcess, **changes: Any) -> None:
    """Change the state file of a daemon that is stopped."""
    path = daemon.state_dir / "deploy_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def state_file(daemon: DaemonProcess) -> dict[str, Any]:
    """Read the state file as anybody may, at any moment."""
    content: dict[str, Any] = json.loads((daemon.state_dir / "deploy_state.json").read_text())
    return content


async def everything_agrees(daemon: DaemonProcess) -> None:
    """Check that state file, status, steering and the last switched deploy say the same."""
    status, file = await daemon.status(), state_file(daemon)
    assert (status["active_port"], status["staging_port"]) == (
        file["active_port"],
        file["staging_port"],
    )
    assert status["mode"] == file["mode"]
    active = slot(status, "active")
    assert active["port"] == status["active_port"]
    assert status["traffic"]["weights"][active["slot"]] == 1.0
    through_public = (await get(daemon.public_port))[1]
    through_own = (await get(status["active_port"]))[1]
    assert through_public["pid"] == through_own["pid"]


async def held(daemon: DaemonProcess) -> Any:
    """Return the hold of new connections as the status shows it; None without one."""
    return (await daemon.status())["traffic"]["held"]


async def roll_back(daemon: DaemonProcess) -> Any:
    return await daemon.request("POST", "/deploy/rollback")


def releases(folder: Path, *names: str) -> Path:
    """Make a folder of releases that can run the scripted worker."""
    for name in names:
        write_release(folder / "releases" / name, name)
    return folder / "releases"


def environment(**more: object) -> dict[str, str]:
    """Return the environment of a job: this environment's programs, and what it is given."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin",
        **{name: str(value) for name, value in more.items()},
    }


async def bash(script: str, where: Path, **more: object) -> tuple[int, str]:
    """Run a script as a job does; return its exit status and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        script,
        cwd=where,
        env=environment(**more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    return process.returncode or 0, printed.decode()


@asynccontextmanager
async def fleet_of_three(
    folder: Path, endpoints: Sequence[str], settings: Mapping[str, Setting] | None = None
) -> AsyncIterator[list[DaemonProcess]]:
    """Daemons web1, web2 and web3 of one fleet; each has the releases r1 and r2, and serves v1."""
    found = releases(folder, "r1", "r2")
    async with AsyncExitStack() as stack:
        daemons = []
        for host in ("web1", "web2", "web3"):
            own: dict[str, Setting] = {
                "FLEET_ETCD_ENDPOINTS": ",".join(endpoints),
                "FLEET_NAME": folder.name,
                "FLEET_HOST": host,
                "RELEASES_DIR": found,
                "HEALTH_PROBES": 1,
                "GUARD_SECONDS": 0,
                **(settings or {}),
            }
            daemons.append(await stack.enter_async_context(scripted_daemon(folder / host, own)))
        for daemon in daemons:
            await until_fleet(daemon, lambda fleet: len(fresh(fleet)) == len(daemons))
        yield daemons


async def until_fleet(
    daemon: DaemonProcess, holds: Callable[[dict[str, Any]], bool], *, within: float = 20.0
) -> dict[str, Any]:
    """Wait until the fleet, as a daemon knows it, is so, and return it."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        fleet: dict[str, Any] = (await daemon.request("GET", "/fleet")).json
        if holds(fleet):
            return fleet
        assert asyncio.get_running_loop().time() < deadline, json.dumps(fleet, indent=1)
        await asyncio.sleep(0.1)


def fresh(fleet: dict[str, Any]) -> list[str]:
    """Return the hosts that announce themselves."""
    return [host["name"] for host in fleet["hosts"] if host["fresh"]]


CALLER = """
import sys
from atlas_worker import canary, is_canary_enabled, record_canary_call, use_canary_version

for line in sys.stdin:
    word, *rest = line.split()
    if word == "calls":
        for number in range(int(rest[0])):
            try:
                with canary.call("vision") as call:
                    if call.is_canary and rest[1] == "bad":
                        raise ValueError
            except ValueError:
                pass
        print("done", flush=True)
    elif word == "open":
        call = canary.call("vision")
        call.__enter__()
        print(call.arm, flush=True)
    elif word == "enabled":
        print(is_canary_enabled(), flush=True)
    elif word == "keys":
        used = [use_canary_version("web", key=str(number)) for number in range(int(rest[0]))]
        print(sum(used), flush=True)
"""


class Caller:
    """A process that calls features on command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def send(self, *words: object) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{' '.join(map(str, words))}\n".encode())
        return (await asyncio.wait_for(self.process.stdout.readline(), 20)).decode().strip()

    async def until(self, word: str, answer: str) -> None:
        """Send a command until this is the answer."""
        async with asyncio.timeout(10):
            while await self.send(word) != answer:
                pass


@asynccontextmanager
async def caller(daemon: DaemonProcess) -> AsyncIterator[Caller]:
    environment = {"ATLAS_STATE_DIR": str(daemon.state_dir), "PATH": os.environ["PATH"]}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", CALLER),
        cwd=Path(__file__).parents[2],
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Caller(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
