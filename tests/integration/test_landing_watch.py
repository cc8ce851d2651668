"""A worker that abuses the sockets it inherits: noticed, named and undone within an interval."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DaemonProcess, Setting, eventually, write_release
from tests.integration.support import get, public_version, rows, slot

COMMAND = shlex.join(("python", "-S", str(Path(__file__).parents[1] / "apps" / "hostile.py")))
INTERVAL = 0.5
WITHIN = 5.0
"""A busy machine is late; the interval itself is asserted by no test."""


@asynccontextmanager
async def staged(folder: Path, *, in_gates: str = "") -> AsyncIterator[DaemonProcess]:
    """A daemon that serves v1; the release `bad` is for its staging slot."""
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": COMMAND,
        "RELEASES_DIR": write_release(folder / "releases" / "bad", "bad").parent,
        "LIVENESS_INTERVAL_SECONDS": INTERVAL,
        "AUTO_SWITCH_ON_HEALTH": "false",
        "STOP_TIMEOUT_SECONDS": 2,
    }
    if in_gates:
        (folder / "releases" / "bad" / "in_gates").write_text(in_gates)
    async with DaemonProcess.running(folder, settings) as daemon:
        yield daemon


def found(daemon: DaemonProcess, outcome: str) -> list[dict[str, Any]]:
    """Return the details of the audit trail's entries about the steering."""
    entries = rows(daemon, "SELECT outcome, detail FROM audit WHERE action = 'steering'")
    return [json.loads(detail) for found, detail in entries if found == outcome]


async def until_found(daemon: DaemonProcess, outcome: str) -> dict[str, Any]:
    await eventually(lambda: found(daemon, outcome), within=WITHIN, what=outcome)
    return found(daemon, outcome)[-1]


def logged(daemon: DaemonProcess) -> list[dict[str, Any]]:
    """Return the log's lines about the steering."""
    lines = (daemon.state_dir / "logs" / "supervisor.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if '"steering_disturbed"' in line]


async def until_health_says(daemon: DaemonProcess, words: str) -> None:
    async with asyncio.timeout(WITHIN):
        while True:
            check = (await daemon.request("GET", "/health")).json["checks"]["steering"]
            if check["status"] != "pass" and words in check["message"]:
                return
            await asyncio.sleep(0.05)


async def until_only(daemon: DaemonProcess, version: str) -> None:
    """Wait until every connection to the public port is answered by this version."""
    async with asyncio.timeout(WITHIN):
        while True:
            if await versions(daemon) == {version}:
                return
            await asyncio.sleep(0.05)


async def versions(daemon: DaemonProcess, count: int = 12) -> set[str]:
    return {await public_version(daemon) for _ in range(count)}


@pytest.mark.fault(
    "Ports and connections",
    "a worker that takes the traffic",
    "the steering is restored, and the release named",
)
async def test_traffic_taken_by_a_staging_worker_is_given_back_and_the_release_named(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path) as daemon:
        assert (await daemon.deploy("bad")).json["result"] == "awaiting_switch"
        staging = slot(await daemon.status(), "staging")
        for count, attack in enumerate(("/steal", "/detach", "/swallow", "/shutdown"), start=1):
            status, answer = await get(staging["port"], attack)
            assert (status, answer["outcome"]) == (200, "done")
            await eventually(lambda: len(logged(daemon)) >= count, within=WITHIN, what=attack)  # noqa: B023  # ended before the next
            await until_only(daemon, "v1")
            assert f"pid {staging['pid']}" in logged(daemon)[-1]["why"], attack
        by_name, in_its_queue = found(daemon, "restored")  # a repetition within a minute has none
        assert [each["release"] for each in by_name["workers"]] == ["bad"]
        assert "green's queue" in in_its_queue["reason"]
        await until_health_says(daemon, "release bad")


async def test_a_lock_is_named_and_traffic_can_still_be_switched_and_restored(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path) as daemon:
        assert (await daemon.deploy("bad")).json["result"] == "awaiting_switch"
        staging = slot(await daemon.status(), "staging")
        assert (await get(staging["port"], "/lock"))[1]["outcome"] == "done"
        locked = await until_found(daemon, "locked")
        assert "bad" in [each["release"] for each in locked["workers"]]  # either has the sockets
        assert "SO_LOCK_FILTER" in locked["reason"]
        await until_health_says(daemon, "has locked the filters")
        assert "not permitted" in (await get(staging["port"], "/steal"))[1]["outcome"]
        assert (await get(staging["port"], "/detach"))[1]["outcome"] == "done"
        await until_found(daemon, "restored")
        assert await versions(daemon) == {"v1"}
        switched = await daemon.request("POST", "/deploy/switch")
        assert switched.json["result"] == "switched", switched
        assert await versions(daemon) == {"bad"}


async def test_a_release_that_takes_public_traffic_in_a_dry_run_fails_its_gates(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path, in_gates="/steal") as daemon:
        answer = await daemon.deploy("bad", dry_run="true")
        assert (answer.status, answer.json["result"]) == (422, "failed")
        assert "arrived at green (release bad, version bad, pid " in answer.json["reason"]
        assert await versions(daemon) == {"v1"}
        assert [each["release"] for each in found(daemon, "restored")[0]["workers"]] == ["bad"]


async def test_with_a_share_of_the_traffic_a_worker_can_not_take_all_of_it(tmp_path: Path) -> None:
    async with staged(tmp_path) as daemon:
        assert (await daemon.deploy("bad")).json["result"] == "awaiting_switch"
        staging = slot(await daemon.status(), "staging")
        share = {"staging_weight": 0.5}
        assert (await daemon.request("POST", "/deploy/traffic", json=share)).status == 200
        for count, attack in enumerate(("/steal", "/detach", "/shutdown"), start=1):
            assert (await get(staging["port"], attack))[1]["outcome"] == "done"
            await eventually(lambda: len(logged(daemon)) >= count, within=WITHIN, what=attack)  # noqa: B023  # ended before the next
        assert await versions(daemon, 40) == {"v1", "bad"}  # with its share, as before
        await daemon.request("POST", "/deploy/traffic", json={"staging_weight": 0})
        await until_only(daemon, "v1")
