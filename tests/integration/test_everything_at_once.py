"""What can happen to a deploy while it runs: given up, switched, rolled back, asked for twice.

A daemon sees many scenes in a row. After each one, file, status and steering agree, the deploy's
record explains it, and nothing of it is left.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from tests.harness import Answer, DaemonProcess, Setting, eventually
from tests.integration.support import (
    WARM,
    everything_agrees,
    get,
    public_version,
    release,
    releases,
    roll_back,
    scripted_daemon,
    slot,
    until_phase,
)

COMMAND = '[[command]]\nname = "long"\nrun = ["sleep", "30"]\n'
REQUEST = '[[http]]\nname = "held"\npath = "/held"\ntimeout_seconds = 30\n'
NO_SMOKE = ""
REFUSED = {
    (409, "too_late"),
    (409, "nothing_to_abort"),
    (409, "nothing_to_switch"),
}


async def post(daemon: DaemonProcess, verb: str, **more: Any) -> Answer:
    return await daemon.request("POST", f"/deploy/{verb}", **more)


async def outcome(answer: Answer) -> tuple[int, str]:
    """Return the status, and the result or the code of the refusal."""
    error = answer.json.get("error")
    return answer.status, error["code"] if error else answer.json["result"]


async def begun(daemon: DaemonProcess, phase: str, name: str | None = None) -> str:
    """Begin a deploy and return its id once it is in this phase."""
    answer = await daemon.deploy(name, wait="false")
    assert answer.status == 202, answer
    record = await until_phase(daemon, phase)
    assert record["deploy_id"] == answer.json["deploy_id"]
    return str(record["deploy_id"])


async def until_draining(daemon: DaemonProcess, deploy_id: str) -> None:
    """Wait until a deploy that is not the last one drains."""
    async with asyncio.timeout(10):
        while (await daemon.request("GET", f"/deploy/{deploy_id}")).json["phase"] != "drain":  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.01)


async def nothing_left(daemon: DaemonProcess, deploy_id: str, result: str, version: str) -> None:
    """Check how it came out, who has the traffic, and that only that one lives."""
    record = await daemon.ended(deploy_id)
    assert record["result"] == result
    assert await public_version(daemon) == version
    status = await daemon.status()
    assert (status["mode"], status["deploy_in_progress"]) == ("bluegreen", False)
    assert slot(status, "staging")["state"] == "empty"
    assert daemon.leftovers() == [slot(status, "active")["pid"]]
    await everything_agrees(daemon)


@asynccontextmanager
async def asked(daemon: DaemonProcess, path: str) -> AsyncIterator[asyncio.Task[tuple[int, Any]]]:
    """Let a user ask the active version, and be answered whatever happens meanwhile."""
    task = asyncio.create_task(get(daemon.public_port, path))
    yield task
    assert (await task)[0] == 200


WAITING: dict[str, Setting] = {
    "AUTO_SWITCH_ON_HEALTH": "false",
    "HEALTH_PROBES": 2,
    "HEALTH_TIMEOUT_SECONDS": 20,
    "STOP_TIMEOUT_SECONDS": 0.5,
}


async def test_it_can_be_given_up_at_every_step_and_only_until_it_has_switched(
    tmp_path: Path,
) -> None:
    smoke = tmp_path / "smoke.toml"
    smoke.write_text(NO_SMOKE)
    async with scripted_daemon(tmp_path, {**WAITING, "SMOKE_FILE": smoke}) as daemon:
        scenes: list[tuple[str, str, dict[str, Any]]] = [
            ("launch", NO_SMOKE, {"health_delay": 30}),
            ("smoke", COMMAND, {}),
            ("smoke", REQUEST, {}),
            ("health", NO_SMOKE, {"health_delay": 0.3}),
            ("awaiting_switch", NO_SMOKE, {}),
        ]
        for phase, tests, behaviour in scenes:
            smoke.write_text(tests)
            release(daemon, "v2", **behaviour)
            deploying = asyncio.create_task(daemon.deploy())
            deploy_id = (await until_phase(daemon, phase))["deploy_id"]
            # Two operators at once: one of them gives it up, and both are told so.
            answers = await asyncio.gather(post(daemon, "abort"), post(daemon, "abort"))
            told = {await outcome(answer) for answer in answers}
            # The second one may come when it is all over.
            assert (200, "aborted") in told, phase
            assert told <= {(200, "aborted"), (409, "nothing_to_abort")}, phase
            assert await outcome(await deploying) in {(409, "deploy_aborted"), (200, phase)}
            await nothing_left(daemon, deploy_id, "aborted", "v1")
        smoke.write_text(NO_SMOKE)

        # While a stubborn one is stopped, it is given up already.
        release(daemon, "v2", ignore_sigterm=True)
        deploy_id = await begun(daemon, "awaiting_switch")
        aborting = asyncio.create_task(post(daemon, "abort"))
        await until_phase(daemon, "unstage")
        again, waited = await post(daemon, "abort"), await aborting
        assert await outcome(waited) == (200, "aborted")
        assert await outcome(again) == (200, "aborted")
        await nothing_left(daemon, deploy_id, "aborted", "v1")
        assert await outcome(await post(daemon, "abort")) == (409, "nothing_to_abort")

        # Given up and let go at the same moment: one of the two is done, and the other one is told.
        for moment in range(4):
            before = await public_version(daemon)
            release(daemon, f"v{moment + 3}")
            deploy_id = await begun(daemon, "awaiting_switch")
            switching = asyncio.create_task(post(daemon, "switch"))
            await asyncio.sleep(moment * 0.002)  # so that it comes before, in and after the switch
            both = [await post(daemon, "abort"), await switching]
            result = (await daemon.ended(deploy_id))["result"]
            assert (200, result) in [await outcome(answer) for answer in both]
            (refused,) = [answer for answer in both if answer.status != 200]
            assert await outcome(refused) in REFUSED
            version = f"v{moment + 3}" if result == "switched" else before
            await nothing_left(daemon, deploy_id, result, version)


@pytest.mark.fault(
    "Requests",
    "deploy, switch, abort and rollback at once",
    "each is done or refused, at every step",
)
async def test_while_it_runs_and_after_it_another_is_asked_for(tmp_path: Path) -> None:
    folder = releases(tmp_path, "r1", "r2", "r3", "r4")
    settings = {**WARM, "GUARD_SECONDS": 1.5, "HEALTH_PROBES": 1, "RELEASES_DIR": folder}
    async with scripted_daemon(tmp_path, settings) as daemon:
        # In the guard and in the warm time of the one before: that ends, as it came out.
        for name, phase in (("r1", "guard"), ("r2", "warm"), ("r3", "guard")):
            previous = (await daemon.status())["last_deploy"]
            assert (await daemon.deploy(name)).json["result"] == "switched"
            if previous is not None:
                record = await daemon.ended(previous["deploy_id"])
                assert (record["result"], record["phase"]) == ("switched", "ended")
                assert all(step["ok"] for step in record["steps"])
            await until_phase(daemon, phase)
            await everything_agrees(daemon)

        # In its drain: preflight waits for it, and can be given up; the user gets an answer.
        async with asked(daemon, "/slow"):
            draining = (await daemon.deploy("r4")).json["deploy_id"]
            aborted = await begun(daemon, "preflight", "r1")
            await until_draining(daemon, draining)
            assert await outcome(await post(daemon, "abort")) == (200, "aborted")
            assert (await daemon.ended(aborted))["result"] == "aborted"
            status = await daemon.request("GET", f"/deploy/{draining}")
            assert (status.json["phase"], status.json["result"]) == ("drain", "switched")
            assert await public_version(daemon) == "r4"
            assert (await daemon.deploy("r1")).json["result"] == "switched"
        assert (await daemon.ended(draining))["result"] == "switched"
        await everything_agrees(daemon)

        # Two at once, and one beside a rollback: one is done, the other one is told of it.
        for other in (daemon.deploy("r3"), daemon.deploy("r3", dry_run="true"), roll_back(daemon)):
            one_done(await asyncio.gather(daemon.deploy("r2"), other))
            await everything_agrees(daemon)

        # The warm time ends for a dry run as well, so the rollback that follows is a cold one.
        assert await outcome(await daemon.deploy("r3", dry_run="true")) == (200, "dry_run_passed")
        one_done(await asyncio.gather(roll_back(daemon), roll_back(daemon)))
        await everything_agrees(daemon)


def one_done(answers: list[Answer]) -> None:
    """Check that one of two was done, and that the other's refusal names it."""
    (done,) = [answer for answer in answers if answer.status == 200]
    (refused,) = [answer for answer in answers if answer.status != 200]
    error = refused.json["error"]
    assert (refused.status, error["code"]) == (409, "deploy_in_progress")
    assert done.json["deploy_id"] in error["message"]
    assert "abort" in error["hint"]


async def waited_for(daemon: DaemonProcess, name: str) -> Answer:
    """Ask for a deploy together with others: under one key it is one, and each waits for it."""
    key = {"Idempotency-Key": f"all-{name}"}
    return await post(daemon, "bluegreen", json={"release": name}, headers=key)


def descriptors(daemon: DaemonProcess) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


async def alone(daemon: DaemonProcess) -> int:
    """Return how many descriptors the daemon has once its last client has left."""
    with_client = descriptors(daemon)
    await daemon.stop_clients()
    await eventually(lambda: descriptors(daemon) < with_client, what="the client is still there")
    return descriptors(daemon)


async def test_a_deploy_goes_on_while_its_surroundings_change(tmp_path: Path) -> None:
    folder = releases(tmp_path, "r1", "r2", "r3", "r4")
    smoke = tmp_path / "smoke.toml"
    smoke.write_text(NO_SMOKE)
    settings: dict[str, Setting] = {
        "HEALTH_PROBES": 1,
        "RELEASES_DIR": folder,
        "SMOKE_FILE": smoke,
    }
    async with scripted_daemon(tmp_path, settings) as daemon:
        # All who wait for it leave.
        await daemon.ended((await daemon.deploy("r1")).json["deploy_id"])
        before = await alone(daemon)
        write_behaviour(folder / "r2", health_delay=0.2)
        leaving = [asyncio.create_task(waited_for(daemon, "r2")) for _ in range(5)]
        deploy_id = (await until_phase(daemon, "launch"))["deploy_id"]
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        assert (await daemon.ended(deploy_id))["result"] == "switched"
        await daemon.stop_clients()
        await eventually(lambda: descriptors(daemon) <= before, what="descriptors are left")
        assert await public_version(daemon) == "r2"
        await everything_agrees(daemon)

        # The mode is what the operator said, and counts for the next one.
        write_behaviour(folder / "r3", health_delay=0.2)
        begun = await daemon.deploy("r3", wait="false")
        assert (begun.status, begun.json["result"]) == (202, None)
        location = urljoin("/deploy/bluegreen", begun.headers["Location"])
        followed = await daemon.request("GET", location)
        assert (followed.status, followed.json["deploy_id"]) == (200, begun.json["deploy_id"])
        assert (await set_mode(daemon, "single")).json["mode"] == "single"
        assert (await daemon.ended(begun.json["deploy_id"]))["result"] == "switched"
        assert await outcome(await daemon.deploy("r1")) == (409, "mode_is_single")
        assert (await set_mode(daemon, "bluegreen")).json["mode"] == "bluegreen"
        assert await public_version(daemon) == "r3"
        await everything_agrees(daemon)

        # Its release is deleted: what runs goes on, what needs the folder says that it is gone.
        smoke.write_text('[[command]]\nname = "any"\nrun = ["true"]\n')
        write_behaviour(folder / "r4", health_delay=0.3)
        deploying = asyncio.create_task(daemon.deploy("r4"))
        await until_phase(daemon, "launch")
        shutil.rmtree(folder / "r4")
        answer = await deploying
        assert await outcome(answer) == (422, "release_did_not_pass")
        assert str(folder / "r4") in answer.json["reason"]
        assert await public_version(daemon) == "r3"
        await everything_agrees(daemon)


def write_behaviour(folder: Path, **behaviour: Any) -> None:
    (folder / "behaviour.json").write_text(json.dumps(behaviour))


async def set_mode(daemon: DaemonProcess, mode: str) -> Answer:
    return await daemon.request("POST", "/deploy/mode", json={"mode": mode})
