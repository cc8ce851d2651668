"""A deploy's version gets growing shares of the traffic, and loses them when it proves bad."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from tests.harness import Answer, DaemonProcess, Setting, eventually, free_ports
from tests.integration.support import (
    agent_line,
    ask_to_die,
    everything_agrees,
    public_version,
    release,
    rows,
    scripted_daemon,
    slot,
    state_file,
    until_phase,
)

RAMPS: dict[str, Setting] = {
    "TRAFFIC_RAMP": "0.2,0.6,1",
    "TRAFFIC_STEP_SECONDS": 0.2,
    "AFTER_FAILURE": "single",
    "DRAIN_TIMEOUT_SECONDS": 1,
    "DRAIN_QUIET_SECONDS": 0.2,
    "HEALTH_TIMEOUT_SECONDS": 0.5,
    "LIVENESS_FAILURES": 2,
    "LIVENESS_INTERVAL_SECONDS": 60,
}


async def steer(daemon: DaemonProcess, action: str) -> Any:
    return await daemon.request("POST", "/deploy/ramp", json={"action": action})


async def advance(daemon: DaemonProcess, key: str) -> Answer:
    headers = {"Idempotency-Key": key}
    body = {"action": "advance"}
    return await daemon.request("POST", "/deploy/ramp", json=body, headers=headers)


async def start(daemon: DaemonProcess, version: str, **behaviour: Any) -> dict[str, Any]:
    """Deploy a version; return the record once it ramps, paused."""
    release(daemon, version, **behaviour)
    assert (await daemon.request("POST", "/deploy/bluegreen?wait=false")).status == 202
    await until_phase(daemon, "ramp")
    assert (await steer(daemon, "pause")).status == 200
    return await until_phase(daemon, "ramp")


async def until_share(daemon: DaemonProcess, share: float) -> None:
    """Wait until green has this share of new connections."""
    async with asyncio.timeout(20):
        while True:
            if (await daemon.status())["traffic"]["weights"]["green"] == share:
                return
            await asyncio.sleep(0.02)


async def settled(daemon: DaemonProcess, record: dict[str, Any]) -> dict[str, Any]:
    ended = await daemon.ended(record["deploy_id"])
    await daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
    return ended


async def test_a_ramp_is_paused_steered_and_survives_a_kill_until_it_has_passed(
    tmp_path: Path,
) -> None:
    [agent] = free_ports(1)
    async with scripted_daemon(tmp_path, {**RAMPS, "FLEET_AGENT_PORT": agent}) as daemon:
        refused = await steer(daemon, "pause")
        assert (refused.status, refused.json["error"]["code"]) == (409, "nothing_to_ramp")
        record = await start(daemon, "v2")
        assert (record["result"], record["ramp"]["share"], record["ramp"]["of"]) == (None, 0.2, 3)
        assert state_file(daemon)["staging_weight"] == 0.2
        assert await agent_line(agent) == b"up ready 50%\n"
        again = await steer(daemon, "pause")
        assert (again.status, again.json["error"]["code"]) == (409, "ramp_not_possible")
        for replayed in (None, "true"):  # the client tries again
            step = await advance(daemon, "k1")
            assert (step.status, step.json["share"]) == (200, 0.6)
            assert step.headers.get("Idempotency-Replayed") == replayed
        split = await daemon.request("POST", "/deploy/traffic", json={"staging_weight": 1})
        assert split.json["staging_weight"] == 1
        assert await public_version(daemon) == "v2"
        assert (await daemon.request("POST", "/deploy/rollback")).status == 409

        workers = daemon.leftovers()
        await daemon.kill()
        assert await public_version(daemon) == "v2"
        await daemon.start()
        ramp = (await until_phase(daemon, "ramp"))["ramp"]
        assert (ramp["share"], ramp["paused"], daemon.leftovers()) == (1, True, workers)
        assert await public_version(daemon) == "v2"

        step = await advance(daemon, "k1")
        assert (step.json["share"], step.headers["Idempotency-Replayed"]) == (1, "true")

        resumed = await steer(daemon, "resume")
        assert (resumed.json["paused"], resumed.json["next_share"]) == (False, 1)
        assert (await steer(daemon, "fly")).json["error"]["field"] == "action"
        record = await until_phase(daemon, "ended")
        assert record["result"] == "switched"
        assert await agent_line(agent) == b"up ready 100%\n"
        switch = next(each for each in record["steps"] if each["name"] == "switch")
        assert "after a ramp of 3 shares" in switch["detail"]["message"]
        assert [each["share"] for each in record["ramp"]["steps"]] == [0.2, 0.6, 1]
        assert all(each["until_ts"] for each in record["ramp"]["steps"])
        await everything_agrees(daemon)
        audited = rows(daemon, "SELECT outcome FROM audit WHERE action = 'ramp'")
        assert audited == [("pause",), ("advance",), ("resume",)]
        causes = rows(daemon, "SELECT event FROM transitions WHERE phase = 'ramp'")
        assert [event for (event,) in causes] == [
            *(
                "pause_requested",
                "advance_requested",
                "split_requested",
                "resume_requested",
                "passed",
            )
        ]


async def test_a_version_that_proves_bad_in_its_ramp_is_reverted(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, RAMPS) as daemon:
        crashes = await start(daemon, "v2", die_on="/die")
        await ask_to_die(slot(await daemon.status(), "staging")["port"])
        record = await daemon.ended(crashes["deploy_id"])
        assert record["result"] == "rolled_back"
        assert record["reason"].startswith("ramp: the staging instance went down")
        assert "(at 20 % for" in record["reason"]
        assert [each["name"] for each in record["steps"]][-1] == "switch"
        assert (record["steps"][-1]["ok"], state_file(daemon)["mode"]) == (False, "single")
        (problem,) = (await daemon.status())["fallback_suggestions"]
        assert "was reverted in its ramp" in problem["message"]
        assert await public_version(daemon) == "v1"
        await settled(daemon, record)

        hangs = await start(daemon, "v3")
        (daemon.worker_directory / "hang").touch()
        record = await settled(daemon, hangs)
        (daemon.worker_directory / "hang").unlink()
        assert record["result"] == "rolled_back"
        assert "failed 2 probes in a row" in record["reason"]
        assert record["steps"][-1]["detail"]["failed_probe"]["verdict"] == "fail"
        audited = rows(daemon, "SELECT outcome, subject FROM audit WHERE action = 'rollback'")
        assert audited == [("done", crashes["deploy_id"]), ("done", hangs["deploy_id"])]

        lost = await start(daemon, "v4")
        pid = slot(await daemon.status(), "staging")["pid"]
        await daemon.kill()
        os.kill(pid, signal.SIGKILL)
        await daemon.start()
        record = await settled(daemon, lost)
        assert (record["result"], record["ramp"]["paused"]) == ("rolled_back", True)
        assert "did not survive" in record["reason"]
        assert await public_version(daemon) == "v1"
        await everything_agrees(daemon)


async def test_while_the_old_version_is_down_the_new_one_has_all_the_traffic(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, RAMPS) as daemon:
        await start(daemon, "v2")
        behaviour = daemon.worker_directory / "behaviour.json"
        behaviour.write_text('{"exit": 3}')  # the old one can't be started again
        before = slot(await daemon.status(), "active")
        os.kill(before["pid"], signal.SIGKILL)
        await until_share(daemon, 1)
        for _ in range(5):
            assert await public_version(daemon) == "v2"
        behaviour.write_text("{}")
        await until_share(daemon, 0.2)
        assert slot(await daemon.status(), "active")["restarts"] > before["restarts"]
        aborted = await daemon.request("POST", "/deploy/abort")
        assert (aborted.status, aborted.json["result"]) == (200, "aborted")
        await eventually(lambda: state_file(daemon)["staging_weight"] == 0)
        assert await public_version(daemon) in {"v1", "v2"}  # the folder's version by now
        await everything_agrees(daemon)
