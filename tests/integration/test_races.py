"""What only shows with real processes: two things at one moment, and a daemon that fails."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import (
    SCRIPTED,
    WARM,
    everything_agrees,
    public_version,
    release,
    releases,
    roll_back,
    scripted_daemon,
    slot,
    until_phase,
)

# A daemon with a bug: its care for the running worker breaks.
BROKEN = """
import sys
from atlas_supervisor.main import main
from atlas_supervisor.workers.slot import Slot
async def broken(self, instance):
    await instance.exited.wait() if self.name == "green" else None
    raise ZeroDivisionError("a bug")
Slot._watch_liveness = broken
sys.exit(main(sys.argv[1:]))
"""


# A daemon on a slow machine: a flip goes on for a while after the roles are exchanged, and so does
# the writing of a transition. The file FLIPPED says that the roles are exchanged.
SLOW = """
import os
import sys
import anyio
from atlas_supervisor.deploy.recorder import Recorder
from atlas_supervisor.deploy.switch import Switch
from atlas_supervisor.main import main
def slowed(quick):
    async def slow(*arguments):
        outcome = await quick(*arguments)
        if quick is flip:
            os.close(os.open(FLIPPED, os.O_CREAT | os.O_WRONLY))
        await anyio.sleep(0.15)
        return outcome
    return slow
flip = Switch.flip
Switch.flip = slowed(Switch.flip)
Recorder.write = slowed(Recorder.write)
sys.exit(main(sys.argv[1:]))
"""


@asynccontextmanager
async def slow_daemon(
    folder: Path, settings: Mapping[str, Setting]
) -> AsyncIterator[DaemonProcess]:
    slow = SLOW.replace("FLIPPED", repr(str(folder / "flipped")))
    async with scripted_daemon(folder, {"HEALTH_PROBES": 1, **settings}, code=slow) as daemon:
        assert await public_version(daemon) == "v1"
        yield daemon


@pytest.mark.fault(
    "The daemon", "a failure of its own", "it says so and leaves its workers serving"
)
async def test_a_daemon_that_fails_by_itself_says_so_and_leaves_its_workers_serving(
    tmp_path: Path,
) -> None:
    daemon = DaemonProcess(tmp_path, {"WORKER_COMMAND": SCRIPTED}, code=BROKEN)
    try:
        process = await daemon.launch()
        assert await asyncio.wait_for(process.wait(), 20) == 70
        assert await public_version(daemon) == "v1"
        log = (daemon.state_dir / "logs" / "supervisor.jsonl").read_text()
        assert '"daemon_failed"' in log
        assert "ZeroDivisionError" in log
        daemon.code = None
        await daemon.start()  # and the next one is well
        await everything_agrees(daemon)
        await daemon.stop()
    finally:
        await daemon.clean_up()


@pytest.mark.parametrize("moment", ["worker_launched", "worker_failed"])
async def test_stopped_right_after_its_start_it_leaves_nothing(tmp_path: Path, moment: str) -> None:
    daemon = DaemonProcess(tmp_path, {"WORKER_COMMAND": SCRIPTED})
    behaviour = {"exit": 1} if moment == "worker_failed" else {"health_delay": 20}
    release(daemon, "v1", **behaviour)
    log = daemon.state_dir / "logs" / "supervisor.jsonl"
    try:
        process = await daemon.launch()
        await eventually(lambda: log.exists() and f'"{moment}"' in log.read_text())
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert daemon.leftovers() == []
    finally:
        await daemon.clean_up()


async def test_the_active_one_dies_while_the_next_one_passes_its_gates(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, WARM) as daemon:
        release(daemon, "v2", health_delay=0.3)
        deploying = asyncio.create_task(daemon.deploy())
        await until_phase(daemon, "health")
        os.kill(slot(await daemon.status(), "active")["pid"], signal.SIGKILL)
        answer = await deploying
        assert (answer.status, answer.json["result"]) == (200, "switched")
        assert await public_version(daemon) == "v2"
        await everything_agrees(daemon)


@pytest.mark.fault("Requests", "two rollbacks at once", "one goes back")
async def test_two_rollbacks_at_once_go_back_once(tmp_path: Path) -> None:
    folder = releases(tmp_path, "r1", "r2", "r3")
    async with scripted_daemon(tmp_path, {**WARM, "RELEASES_DIR": folder}) as daemon:
        for name in ("r1", "r2", "r3"):
            assert (await daemon.deploy(name)).status == 200
        # To a cold version: a warm one is back before a second request can come on a busy machine.
        os.kill(slot(await daemon.status(), "staging")["pid"], signal.SIGKILL)
        await until_phase(daemon, "ended")
        answers = await asyncio.gather(roll_back(daemon), roll_back(daemon))
        assert sorted(answer.status for answer in answers) == [200, 409]
        (refused,) = [answer for answer in answers if answer.status == 409]
        assert refused.json["error"]["code"] == "deploy_in_progress"
        assert await public_version(daemon) == "r2"
        await everything_agrees(daemon)


async def test_a_rollback_that_is_itself_reverted_leaves_the_right_version_for_the_next_start(
    tmp_path: Path,
) -> None:
    folder = releases(tmp_path, "r1", "r2")
    async with scripted_daemon(tmp_path, {**WARM, "RELEASES_DIR": folder}) as daemon:
        for name in ("r1", "r2"):
            assert (await daemon.deploy(name)).status == 200
        os.kill(slot(await daemon.status(), "staging")["pid"], signal.SIGKILL)
        await until_phase(daemon, "ended")
        cold = await roll_back(daemon)
        assert cold.json["result"] == "switched"
        assert await public_version(daemon) == "r1"
        undone = await roll_back(daemon)
        assert undone.json["result"] == "rolled_back"
        assert await public_version(daemon) == "r2"
        await daemon.stop()
        await daemon.start()
        assert await public_version(daemon) == "r2"


@pytest.mark.fault(
    "Workers", "the new one dies in the moment of the switch", "the switch is reverted"
)
async def test_a_version_that_dies_in_the_moment_of_the_switch_is_always_reverted(
    tmp_path: Path,
) -> None:
    settings = {**WARM, "GUARD_SECONDS": 0, "HEALTH_PROBES": 1}
    async with scripted_daemon(tmp_path, settings) as daemon:
        for milliseconds in (0, 1, 2, 4):
            release(daemon, f"bad{milliseconds}", exit_when_active=milliseconds)
            answer = await daemon.deploy()
            record = await daemon.ended(answer.json["deploy_id"])
            # Dead before the flip was done, it never had the traffic; else it is reverted.
            assert record["result"] in {"rolled_back", "failed"}, (milliseconds, record)
            assert await public_version(daemon) == "v1"
            await daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
        await everything_agrees(daemon)


async def test_a_version_that_dies_after_the_exchange_of_roles_is_reverted(tmp_path: Path) -> None:
    async with slow_daemon(tmp_path, WARM) as daemon:
        release(daemon, "v2", exit_with=str(tmp_path / "flipped"))
        answer = await daemon.deploy()
        assert (answer.status, answer.json["result"]) == (422, "rolled_back")
        assert await public_version(daemon) == "v1"
        await everything_agrees(daemon)


async def test_a_rollback_right_after_a_deploy_is_done_even_if_nothing_is_kept_warm(
    tmp_path: Path,
) -> None:
    folder = releases(tmp_path, "r1", "r2")
    async with slow_daemon(tmp_path, {"RELEASES_DIR": folder}) as daemon:
        await daemon.ended((await daemon.deploy("r1")).json["deploy_id"])
        assert (await daemon.deploy("r2")).json["result"] == "switched"
        answer = await roll_back(daemon)
        assert answer.status == 200, answer.json
        assert await public_version(daemon) == "r1"
        await everything_agrees(daemon)
