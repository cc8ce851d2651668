"""Going back: at once while the old version is warm, through the gates when it is not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DaemonProcess
from tests.integration.support import (
    WARM,
    everything_agrees,
    get,
    public_version,
    release,
    releases,
    roll_back,
    rows,
    scripted_daemon,
    slot,
    until_phase,
)


async def test_a_warm_version_takes_over_at_once_and_the_bad_one_is_drained(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, WARM) as daemon:
        release(daemon, "v2")
        deploy_id = (await daemon.deploy()).json["deploy_id"]
        await until_phase(daemon, "warm")
        assert slot(await daemon.status(), "staging")["state"] == "warm"
        warm_pid = slot(await daemon.status(), "staging")["pid"]
        answer = await roll_back(daemon)
        assert (answer.status, answer.json["result"]) == (200, "rolled_back")
        assert answer.json["deploy_id"] == deploy_id
        assert await public_version(daemon) == "v1"
        await daemon.ended(deploy_id)
        status = await daemon.status()
        assert slot(status, "active")["pid"] == warm_pid
        assert slot(status, "staging")["state"] == "empty"
        assert status["mode"] == "bluegreen"
        there, back = (await daemon.request("GET", "/deploy/requests")).json["switches"]
        assert (there["deploy_id"], there["version"], there["taken_back"]) == (
            deploy_id,
            "v2",
            False,
        )
        assert (back["deploy_id"], back["version"], back["taken_back"]) == (deploy_id, "v2", True)
        assert there["ts"] < back["ts"]
        await everything_agrees(daemon)


async def test_a_cold_version_passes_the_gates_again_and_the_next_rollback_goes_one_further(
    tmp_path: Path,
) -> None:
    folder = releases(tmp_path, "r1", "r2", "r3")
    async with scripted_daemon(tmp_path, {"RELEASES_DIR": folder}) as daemon:
        for name in ("r1", "r2", "r3"):
            await daemon.ended((await daemon.deploy(name)).json["deploy_id"])
        first = await roll_back(daemon)
        assert (first.status, first.json["result"], first.json["release"]) == (
            200,
            "switched",
            "r2",
        )
        assert [step["name"] for step in first.json["steps"]][:4] == [
            "preflight",
            "launch",
            "smoke",
            "health",
        ]
        await daemon.ended(first.json["deploy_id"])
        second = await roll_back(daemon)
        assert (second.json["result"], second.json["release"]) == ("switched", "r1")
        assert await public_version(daemon) == "r1"
        await everything_agrees(daemon)


@pytest.mark.fault(
    "Workers", "a release deleted before a rollback", "the rollback is refused and says so"
)
async def test_a_named_release_comes_back_after_a_restart_and_deleted_is_no_rollback_s_aim(
    tmp_path: Path,
) -> None:
    folder = releases(tmp_path, "r1", "r2")
    async with scripted_daemon(tmp_path, {"RELEASES_DIR": folder}) as daemon:
        answer = await daemon.deploy("r1")
        assert (answer.json["release"], answer.json["version"]) == ("r1", "r1")
        await daemon.stop()
        await daemon.start()
        assert await public_version(daemon) == "r1"
        assert (await daemon.status())["version"] == "r1"

        await daemon.ended((await daemon.deploy("r2")).json["deploy_id"])
        shutil.rmtree(folder / "r1")
        answer = await roll_back(daemon)
        assert (answer.status, answer.json["error"]["code"]) == (409, "previous_version_gone")
        assert await public_version(daemon) == "r2"
        assert (await daemon.status())["mode"] == "bluegreen"


async def test_no_name_leads_out_of_the_folder_of_releases(tmp_path: Path) -> None:
    folder = releases(tmp_path, "r1", ".hidden")
    (folder / "link").symlink_to(tmp_path / "work")
    async with scripted_daemon(tmp_path, {"RELEASES_DIR": folder}) as daemon:
        for name in ("../work", "..", "a/b", "link", ".hidden", "none", "r1/../r1"):
            answer = await daemon.deploy(name)
            assert answer.status in {400, 404, 422}, name
            assert "error" in answer.json
            assert rows(daemon, "SELECT * FROM deploys") == []


async def test_the_guard_reverts_a_version_whose_health_fails_after_the_switch(
    tmp_path: Path,
) -> None:
    settings = {
        **WARM,
        "GUARD_SECONDS": 30,
        "HEALTH_TIMEOUT_SECONDS": 0.3,
        "LIVENESS_FAILURES": 2,
        "HEALTH_PROBES": 1,
        "DRAIN_TIMEOUT_SECONDS": 1,
    }
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v2", stop_after_health=3)
        answer = await daemon.deploy()
        assert answer.json["result"] == "switched"
        record = await daemon.ended(answer.json["deploy_id"])
        assert record["result"] == "rolled_back"
        assert record["reason"].startswith("guard: ")
        assert [(s["name"], s["ok"]) for s in record["steps"]][-2:] == [
            ("guard", False),
            ("drain", True),
        ]
        assert "no answer within" in record["steps"][-2]["detail"]["failed_probe"]["message"]
        assert await public_version(daemon) == "v1"
        assert (await daemon.status())["mode"] == "single"
        assert len(rows(daemon, "SELECT * FROM audit WHERE action = 'rollback'")) == 1
        await everything_agrees(daemon)


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_version_that_is_killed_while_the_old_one_is_warm_is_reverted_at_once(
    tmp_path: Path, guarded: bool
) -> None:
    settings = {**WARM, "GUARD_SECONDS": 30 if guarded else 0}
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v2")
        deploy_id = (await daemon.deploy()).json["deploy_id"]
        await until_phase(daemon, "guard" if guarded else "warm")
        os.kill(slot(await daemon.status(), "active")["pid"], signal.SIGKILL)
        record = await daemon.ended(deploy_id)
        assert record["result"] == "rolled_back"
        assert "was ended by SIGKILL" in record["reason"]
        assert await public_version(daemon) == "v1"
        assert (await daemon.status())["mode"] == ("single" if guarded else "bluegreen")
        await everything_agrees(daemon)


async def until_queued(daemon: DaemonProcess, name: str, count: int) -> int:
    """Wait until at least so many connections wait in the queue of a slot; return how many do."""
    queued = re.compile(rf'^atlas_listener_queue_connections{{slot="{name}"}} (\S+)$', re.MULTILINE)
    async with asyncio.timeout(10):
        while True:
            found = queued.search((await daemon.request("GET", "/metrics")).json)
            if found and float(found[1]) >= count:
                return int(float(found[1]))
            await asyncio.sleep(0.02)


async def test_connections_queued_for_a_dead_version_are_answered_by_the_warm_one(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, WARM) as daemon:
        release(daemon, "v2")
        deploy_id = (await daemon.deploy()).json["deploy_id"]
        await until_phase(daemon, "warm")
        pid = slot(await daemon.status(), "active")["pid"]
        os.kill(pid, signal.SIGSTOP)  # so that connections stay in its queue
        waiting = [asyncio.create_task(get(daemon.public_port)) for _ in range(20)]
        queued = await until_queued(daemon, "green", 20)
        assert not any(task.done() for task in waiting)
        os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*waiting)
        assert {(status, body["version"]) for status, body in answers} == {(200, "v1")}
        record = await daemon.ended(deploy_id)
        # The daemon's own checks of the public port are among them, and may be one more.
        assert record["steps"][-1]["detail"]["rescued"] in {queued, queued + 1}


@pytest.mark.fault("Workers", "the warm one ends", "nothing is reverted")
async def test_a_warm_version_that_ends_by_itself_is_no_reason_to_revert(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, WARM) as daemon:
        release(daemon, "v2")
        deploy_id = (await daemon.deploy()).json["deploy_id"]
        await until_phase(daemon, "warm")
        os.kill(slot(await daemon.status(), "staging")["pid"], signal.SIGKILL)
        record = await daemon.ended(deploy_id)
        assert record["result"] == "switched"
        assert await public_version(daemon) == "v2"


async def test_the_next_deploy_ends_the_warm_time_of_the_one_before(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {**WARM, "GUARD_SECONDS": 30}) as daemon:
        release(daemon, "v2")
        first = (await daemon.deploy()).json["deploy_id"]
        release(daemon, "v3")
        second = await daemon.deploy()
        assert second.json["result"] == "switched"
        record = (await daemon.request("GET", f"/deploy/{first}")).json
        assert (record["result"], record["phase"]) == ("switched", "ended")
        assert [step["ok"] for step in record["steps"]] == [True] * 7
        assert await public_version(daemon) == "v3"


async def test_without_a_version_before_or_with_another_in_its_folder_there_is_no_rollback(
    tmp_path: Path,
) -> None:
    """A foreign version is drained at the switch, unless it is to be kept."""
    async with scripted_daemon(tmp_path, {"KEEP_WARM_SECONDS": 60}) as daemon:
        answer = await roll_back(daemon)
        assert (answer.status, answer.json["error"]["code"]) == (409, "nothing_to_roll_back")

        release(daemon, "v2")
        await daemon.ended((await daemon.deploy()).json["deploy_id"])
        assert slot(await daemon.status(), "staging")["state"] == "empty"
        answer = await roll_back(daemon)
        assert (answer.status, answer.json["error"]["code"]) == (409, "previous_version_gone")
        assert await public_version(daemon) == "v2"


async def rollback(daemon: DaemonProcess, **body: Any) -> Any:
    return await daemon.request("POST", "/deploy/rollback", json=body)


async def until_said(daemon: DaemonProcess, path: str, word: str) -> None:
    async with asyncio.timeout(10):
        while word not in json.dumps((await daemon.request("GET", path)).json):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_one_can_go_back_to_an_older_version_fast_or_through_its_gates(
    tmp_path: Path,
) -> None:
    folder = releases(tmp_path, "r1", "r2", "r3", "r4")
    async with scripted_daemon(tmp_path, {"RELEASES_DIR": folder}) as daemon:
        for name in ("r1", "r2", "r3", "r4"):
            await daemon.ended((await daemon.deploy(name)).json["deploy_id"])
        refused = await rollback(daemon, version="r9")
        assert (refused.status, refused.json["error"]["code"]) == (404, "unknown_version")
        assert "there is: r3, r2, r1" in refused.json["error"]["message"]
        assert (await rollback(daemon, version="r4")).json["error"]["code"] == "version_is_active"
        shutil.rmtree(folder / "r2")
        gone = await rollback(daemon, version="r2")
        assert (gone.status, gone.json["error"]["code"]) == (409, "previous_version_gone")
        listed = (await daemon.request("GET", "/deploy/rollback")).json["versions"]
        assert [(v["version"], v["next"], v["fast"], bool(v["gone"])) for v in listed[:3]] == [
            ("r3", True, True, False),
            ("r2", False, True, True),
            ("r1", False, True, False),
        ]
        one = await rollback(daemon, version="r1", fast=True)
        assert (one.status, one.json["result"], one.json["version"]) == (200, "switched", "r1")
        steps = {step["name"]: step for step in one.json["steps"]}
        assert steps["smoke"]["detail"]["skipped"] is steps["health"]["detail"]["skipped"] is True
        others = sum(step["duration_ms"] for step in one.json["steps"] if step["name"] != "launch")
        assert others < 1000, one.json["steps"]  # a loaded machine; 100 ms are measured apart
        assert await public_version(daemon) == "r1"
        await daemon.ended(one.json["deploy_id"])
        # What was gone back from has to pass its gates, and is put on top again.
        refused = await rollback(daemon, version="r4", fast=True)
        assert (refused.status, refused.json["error"]["code"]) == (409, "fast_not_allowed")
        again = await rollback(daemon, version="r4")
        assert (again.json["result"], again.json["version"]) == ("switched", "r4")
        assert "probes" in again.json["steps"][3]["detail"]
        await daemon.ended(again.json["deploy_id"])
        last = await roll_back(daemon)
        assert (last.json["result"], last.json["version"]) == ("switched", "r1")
        await everything_agrees(daemon)


@pytest.mark.fault(
    "Workers",
    "a release marked irreversible dies after its switch",
    "it keeps the traffic and is restarted; alarm, and back by hand only",
)
async def test_an_irreversible_version_is_held_and_only_an_operator_goes_back(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, {**WARM, "GUARD_SECONDS": 30}) as daemon:
        (daemon.worker_directory / "release.toml").write_text("irreversible = maybe")
        release(daemon, "v2")
        failed = await daemon.deploy()
        assert (failed.status, failed.json["steps"][-1]["name"]) == (422, "preflight")
        assert "release.toml" in failed.json["reason"]
        (daemon.worker_directory / "release.toml").write_text("irreversible = true")
        deploy_id = (await daemon.deploy()).json["deploy_id"]
        (daemon.worker_directory / "release.toml").unlink()  # what was recorded holds
        worker = slot(await daemon.status(), "active")["pid"]
        os.kill(worker, signal.SIGKILL)
        record = await until_phase(daemon, "warm")
        assert (record["result"], record["steps"][-1]["name"]) == ("switched", "guard")
        assert not record["steps"][-1]["ok"]
        assert "irreversible" in record["reason"]
        assert (await daemon.status())["mode"] == "bluegreen"
        await until_said(daemon, "/deploy/status", "revert_held")
        assert rows(daemon, "SELECT 1 FROM audit WHERE action = 'rollback' AND outcome = 'held'")
        assert await public_version(daemon) == "v2"  # it waits for the restart
        # The alarm outlives the daemon.
        await daemon.kill()
        await daemon.start()
        await until_said(daemon, "/deploy/status", "revert_held")
        await until_said(daemon, "/health", "irreversible")
        answer = await rollback(daemon, version="v1", fast=True)
        assert (answer.status, answer.json["result"]) == (200, "rolled_back")
        assert answer.json["deploy_id"] == deploy_id
        assert "past irreversible v2" in answer.json["reason"]
        assert await public_version(daemon) == "v1"
        assert (await daemon.status())["fallback_suggestions"] == []
