"""One scenario that passes every failpoint, and the kill of a daemon at one passing of it.

A run kills the daemon, starts the next one with a failpoint armed, and lets it take over, deploy,
roll back, refuse a release and latch a canary until it dies there. Then it is started again without
a failpoint. The tests use it with a small worker, the soak with the bundled one.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from atlas_supervisor.system.failpoints import FAILPOINT, TRACE
from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import rows, slot, state_file, until_phase

ROOT = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, Setting] = {
    "AUTO_SWITCH_ON_HEALTH": "false",
    "CANARY_ENABLED": "true",
    "CANARY_PERCENTAGE": 0.5,
    "GUARD_SECONDS": 0.1,
    "HEALTH_PROBES": 1,
    "KEEP_WARM_FOREIGN": "true",
    "KEEP_WARM_SECONDS": 60,
    "STOP_TIMEOUT_SECONDS": 2,
    "TRAFFIC_MIN_REQUESTS": 0,
    "TRAFFIC_RAMP": "0.5,1",
    "TRAFFIC_STEP_SECONDS": 0,
}
RUN_SECONDS, END_SECONDS = 60.0, 2.0

CALLER = """
import sys
from atlas_worker import canary

for line in sys.stdin:
    number, error_rate = int(line.split()[0]), float(line.split()[1])
    for each in range(number):
        try:
            with canary.call("vision") as call:
                if call.is_canary and each < number * error_rate:
                    raise ValueError
        except ValueError:
            pass
    print("done", flush=True)
"""

Release = Callable[[str, bool], None]
"""Makes a release of this name, one that passes its gates or one that does not."""


class CanaryCaller:
    """A process of an application that calls a feature on command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def running(cls, daemon: DaemonProcess) -> AsyncIterator[CanaryCaller]:
        """Start the process, and end it afterwards."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", CALLER),
            cwd=ROOT,
            env={"ATLAS_STATE_DIR": str(daemon.state_dir)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # a spoilt state file is reported there
        )
        try:
            yield cls(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def call(self, number: int, error_rate: float = 0.0) -> None:
        """Make so many calls; of the canary's, this share fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{number} {error_rate}\n".encode())
        await asyncio.wait_for(self._process.stdout.readline(), 20)


async def pass_every_failpoint(
    daemon: DaemonProcess, release: Release, caller: CanaryCaller
) -> None:
    """Deploy, roll back, supersede, refuse, abort, latch: every phase and every effect."""
    await switch_to(daemon, release, "a")
    await until_phase(daemon, "warm")
    held = await daemon.request("POST", "/traffic/hold", json={"max_seconds": 60})
    assert held.status == 200, held
    await reload(daemon)
    released = await daemon.request("POST", "/traffic/release")
    assert released.status == 200, released
    rolled_back = await daemon.request("POST", "/deploy/rollback")
    assert rolled_back.json["result"] == "rolled_back", rolled_back
    await daemon.ended(rolled_back.json["deploy_id"])
    await switch_to(daemon, release, "b")
    await until_phase(daemon, "warm")
    release("c", False)
    refused = await daemon.deploy("c")
    assert (refused.status, refused.json["result"]) == (422, "failed"), refused
    await daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
    release("d", True)
    assert (await daemon.deploy("d")).json["result"] == "awaiting_switch"
    aborted = await daemon.request("POST", "/deploy/abort")
    assert aborted.json["result"] == "aborted", aborted
    await latch(daemon, caller)


async def switch_to(daemon: DaemonProcess, release: Release, version: str) -> None:
    """Deploy a version that waits, and switch to it."""
    release(version, True)
    waiting = await daemon.deploy(version)
    assert waiting.json["result"] == "awaiting_switch", waiting
    switched = await daemon.request("POST", "/deploy/switch")
    assert switched.json["result"] == "switched", switched


async def reload(daemon: DaemonProcess) -> int:
    """Reload the daemon; return the API's status, once another one runs if it was accepted."""
    before = (await daemon.status())["daemon"]
    answer = await daemon.request("POST", "/supervisor/reload")
    while answer.status == 202:
        with suppress(aiohttp.ClientConnectionError):  # one that was closed meanwhile
            if (await daemon.status())["daemon"] != before:
                break
        await asyncio.sleep(0.02)
    return answer.status


async def latch(daemon: DaemonProcess, caller: CanaryCaller) -> None:
    """Let the canary fall back, and wait until that is audited."""
    await caller.call(200, error_rate=1)
    await eventually(lambda: state_file(daemon)["canary_disabled_fallback"])
    query = {"action": "canary_fallback", "limit": 1}
    while not (  # noqa: ASYNC110  # the API has no event for it
        await daemon.request("GET", "/deploy/audit", params=query)
    ).json["entries"]:
        await asyncio.sleep(0.02)


async def reset(daemon: DaemonProcess) -> None:
    """Bring the daemon to where the scenario begins: no deploy waits, and no latch holds."""
    if (await daemon.status())["deploy_in_progress"]:
        await daemon.request("POST", "/deploy/abort")
    await daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
    await daemon.request("POST", "/deploy/canary/reset")


async def until_recorded(daemon: DaemonProcess) -> None:
    """Wait until the record says that the active worker is ready: only such a one is taken over."""
    pid = slot(await daemon.status(), "active")["pid"]
    query = f"SELECT 1 FROM instances WHERE pid = {pid} AND json_extract(life, '$.ready')"  # noqa: S608  # a number
    await eventually(lambda: rows(daemon, query))


@contextmanager
def armed(daemon: DaemonProcess, failpoint: str) -> Iterator[None]:
    """Let the next daemon be one with a failpoint."""
    daemon.environment = {FAILPOINT: failpoint}
    try:
        yield
    finally:
        daemon.environment = {}


async def passings(
    daemon: DaemonProcess, scenario: Callable[[], Coroutine[Any, Any, None]]
) -> Counter[str]:
    """Run the scenario to its end; return how often each failpoint was passed."""
    output = daemon.folder / "daemon.out"
    before = output.stat().st_size
    with armed(daemon, TRACE):
        await daemon.kill()
        await daemon.start()
        await scenario()
    text = output.read_bytes()[before:].decode(errors="replace")
    return Counter(re.findall(r"^failpoint (\S+)$", text, re.MULTILINE))


async def killed_at(
    daemon: DaemonProcess, failpoint: str, scenario: Callable[[], Coroutine[Any, Any, None]]
) -> bool:
    """Run the scenario until the daemon is killed there; return whether it was."""
    await until_recorded(daemon)
    with armed(daemon, failpoint):
        await daemon.kill()
        with suppress(AssertionError, aiohttp.ClientError):  # it may be killed before it is ready
            await daemon.start()
    assert daemon.process is not None
    end = asyncio.create_task(daemon.process.wait())
    run = asyncio.create_task(scenario())
    try:
        await asyncio.wait({end, run}, return_when=asyncio.FIRST_COMPLETED, timeout=RUN_SECONDS)
        if run.done() and run.exception():  # perhaps because the daemon is gone
            await asyncio.wait({end}, timeout=END_SECONDS)
        if daemon.runs:
            await run  # raises what went wrong in the scenario
            return False
    finally:
        for task in (end, run):
            task.cancel()
        await asyncio.gather(end, run, return_exceptions=True)
    await daemon.stop_clients()
    return daemon.process.returncode == -signal.SIGKILL
