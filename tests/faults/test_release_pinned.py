"""A release is the folder that was deployed, whatever names and links lead to later."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DaemonProcess, Setting, eventually, write_release
from tests.integration.support import (
    WARM,
    everything_agrees,
    public_version,
    releases,
    roll_back,
    rows,
    scripted_daemon,
    slot,
    state_file,
    until_phase,
)


def linked(folder: Path, **settings: Setting) -> dict[str, Setting]:
    """Return settings whose worker directory is a link to the release v1."""
    write_release(folder / "all" / "v1", "v1")
    write_release(folder / "all" / "v2", "v2")
    (folder / "current").symlink_to("all/v1")
    return {"WORKER_DIRECTORY": folder / "current", **settings}


def point_to(folder: Path, name: str) -> None:
    """Swap the link as deploy tools do."""
    (folder / "new").symlink_to(f"all/{name}")
    (folder / "new").rename(folder / "current")


def replace(folder: Path, version: str) -> None:
    """Put another folder in the place of a release."""
    folder.rename(folder.with_name(f".{folder.name}.old"))
    write_release(folder, version)


async def crash(daemon: DaemonProcess) -> int:
    """Kill the active worker; return its pid."""
    pid = int(slot(await daemon.status(), "active")["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


async def restarted(daemon: DaemonProcess, before: int) -> dict[str, Any]:
    """Return the status once another worker runs."""
    while True:
        status = await daemon.status()
        active = slot(status, "active")
        if active["state"] == "running" and active["pid"] != before:
            return status
        await asyncio.sleep(0.02)


async def suggested(daemon: DaemonProcess) -> dict[str, str]:
    found = (await daemon.status())["fallback_suggestions"]
    return {each["code"]: each["message"] for each in found}


def logged(daemon: DaemonProcess, event: str) -> list[dict[str, Any]]:
    lines = (daemon.state_dir / "logs" / "supervisor.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


async def test_a_swapped_link_changes_nothing_until_a_deploy(tmp_path: Path) -> None:
    """Neither a crash nor a start of the daemon brings code that has passed no gate."""
    async with scripted_daemon(tmp_path, {**linked(tmp_path), **WARM}) as daemon:
        recorded = state_file(daemon)["active_release"]
        assert recorded["path"] == str(daemon.folder / "all" / "v1")
        point_to(tmp_path, "v2")
        await restarted(daemon, await crash(daemon))
        assert await public_version(daemon) == "v1"
        assert "active_release_changed" not in await suggested(daemon)
        for end in (daemon.stop, daemon.kill):
            await end()
            await daemon.stop_clients()
            await daemon.start()
            assert await public_version(daemon) == "v1"
        assert (await daemon.deploy()).json["version"] == "v2"
        point_to(tmp_path, "v1")
        await restarted(daemon, await crash(daemon))
        assert await public_version(daemon) == "v1", "the warm one took over"
        await everything_agrees(daemon)


async def test_another_version_in_the_same_folder_is_an_error_in_log_status_and_health(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        (daemon.worker_directory / "VERSION").write_text("v2")
        before = await crash(daemon)
        for _ in range(2):  # and so after the next start
            status = await restarted(daemon, before)
            assert (status["version"], await public_version(daemon)) == ("v2", "v2")
            problem = "now holds version v2, and version v1 was deployed"
            assert problem in (await suggested(daemon))["active_release_changed"]
            health = (await daemon.request("GET", "/health")).json
            assert (health["status"], health["version"]) == ("degraded", "v2")
            assert problem in health["checks"]["port_active"]["message"]
            assert problem in logged(daemon, "release_changed")[-1]["why"]
            await daemon.stop()
            await daemon.start()
        assert (await daemon.deploy()).json["result"] == "switched"
        assert "active_release_changed" not in await suggested(daemon)


async def test_the_crashed_worker_of_a_replaced_folder_says_so_and_runs_nothing_else(
    tmp_path: Path,
) -> None:
    """Until it can be put right: a rollback goes back, and the folder itself may be put back."""
    folder = releases(tmp_path, "r1")
    async with scripted_daemon(tmp_path, {"RELEASES_DIR": folder}) as daemon:
        await daemon.ended((await daemon.deploy("r1")).json["deploy_id"])
        replace(folder / "r1", "r1")  # even if it calls itself the same
        await crash(daemon)
        why = f"its folder {folder / 'r1'} was replaced by another one"
        await eventually(
            lambda: any(why in each["why"] for each in logged(daemon, "worker_failed"))
        )
        assert why in (await suggested(daemon))["active_release_gone"]
        health = await daemon.request("GET", "/health")
        assert health.status == 503
        assert why in health.json["checks"]["port_active"]["message"]
        assert (await roll_back(daemon)).json["result"] == "switched"
        assert await public_version(daemon) == "v1"
        assert "active_release_gone" not in await suggested(daemon)


async def test_a_start_whose_active_release_is_gone_falls_back_to_the_version_before(
    tmp_path: Path,
) -> None:
    folder = releases(tmp_path, "r1", "r2", "r3")
    async with scripted_daemon(tmp_path, {"RELEASES_DIR": folder}) as daemon:
        for name in ("r1", "r2", "r3"):
            await daemon.ended((await daemon.deploy(name)).json["deploy_id"])
        await daemon.stop()
        shutil.rmtree(folder / "r3")
        replace(folder / "r2", "r2")  # so that it is not what was deployed
        await daemon.start()
        assert await public_version(daemon) == "r1"
        message = (await suggested(daemon))["active_release_changed"]
        assert f"release r3 is gone: its folder {folder / 'r3'} does not exist any more" in message
        assert "version r1, an earlier one, was started instead" in message
        assert rows(daemon, "SELECT release FROM versions WHERE NOT undone ORDER BY id") == [
            (None,),
            ("r1",),
        ]
        assert state_file(daemon)["active_release"]["name"] == "r1"
        audited = "SELECT outcome FROM audit WHERE action = 'release'"
        assert rows(daemon, audited) == [("fell_back",)]
        await everything_agrees(daemon)
        assert (await roll_back(daemon)).json["release"] is None
        await everything_agrees(daemon)


async def test_a_start_needs_no_worker_directory_if_another_release_is_active(
    tmp_path: Path,
) -> None:
    folder = releases(tmp_path, "r1")
    async with scripted_daemon(tmp_path, {"RELEASES_DIR": folder}) as daemon:
        await daemon.ended((await daemon.deploy("r1")).json["deploy_id"])
        await daemon.stop()
        shutil.rmtree(daemon.worker_directory)
        await daemon.start()
        assert await public_version(daemon) == "r1"
        refused = (await daemon.deploy()).json["error"]
        assert refused["code"] == "unknown_release"
        assert f"WORKER_DIRECTORY {daemon.worker_directory} is gone" in refused["message"]
        await daemon.stop()
        (daemon.state_dir / "deploy_state.json").unlink()  # the database has it, too
        await daemon.start()
        assert await public_version(daemon) == "r1"
        await daemon.stop()
        shutil.rmtree(folder)  # now nothing that was ever active is there
        checked = check(daemon)
        assert checked.returncode == 2
        assert checked.stderr.splitlines()[0].startswith("WORKER_DIRECTORY=")
        assert checked.stderr.splitlines()[1].startswith("RELEASES_DIR=")
        assert checked.stderr.count("accepted: a folder that exists") == 2


def check(daemon: DaemonProcess) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atlas_supervisor", "--check", "--env-file"]
    return subprocess.run(
        [*command, str(daemon.env_file)], capture_output=True, text=True, check=False
    )


async def test_a_waiting_release_is_the_folder_that_passed_the_gates(tmp_path: Path) -> None:
    waits: dict[str, Setting] = {"AUTO_SWITCH_ON_HEALTH": "false"}
    async with scripted_daemon(tmp_path, linked(tmp_path, **waits)) as daemon:
        point_to(tmp_path, "v2")
        assert (await daemon.deploy()).json["result"] == "awaiting_switch"
        await daemon.kill()
        point_to(tmp_path, "v1")
        await daemon.stop_clients()
        await daemon.start()
        await until_phase(daemon, "awaiting_switch")
        switched = await daemon.request("POST", "/deploy/switch")
        assert (switched.json["result"], switched.json["version"]) == ("switched", "v2")
        assert await public_version(daemon) == "v2"


async def test_a_waiting_release_whose_folder_is_gone_is_not_switched_to(tmp_path: Path) -> None:
    """It could not be started again after a crash."""
    waits: dict[str, Setting] = {"AUTO_SWITCH_ON_HEALTH": "false"}
    async with scripted_daemon(tmp_path, linked(tmp_path, **waits)) as daemon:
        point_to(tmp_path, "v2")
        assert (await daemon.deploy()).json["result"] == "awaiting_switch"
        folder = (tmp_path / "all" / "v2").resolve()
        away = folder.rename(folder.with_name("away"))
        refused = await daemon.request("POST", "/deploy/switch")
        assert (refused.status, refused.json["error"]["code"]) == (503, "switch_failed")
        assert f"its folder {folder} does not exist any more" in refused.json["error"]["message"]
        assert await public_version(daemon) == "v1"
        away.rename(folder)
        switched = await daemon.request("POST", "/deploy/switch")
        assert switched.json["result"] == "switched"
        assert await public_version(daemon) == "v2"


@pytest.mark.fault("Workers", "a release deleted during its gates", "it is refused")
async def test_a_release_whose_folder_goes_during_its_gates_is_refused(tmp_path: Path) -> None:
    smoke = tmp_path / "smoke.toml"
    smoke.write_text('[[command]]\nname = "it goes"\nrun = ["sh", "-c", "mv $PWD $PWD-away"]\n')
    async with scripted_daemon(tmp_path, linked(tmp_path, SMOKE_FILE=smoke)) as daemon:
        point_to(tmp_path, "v2")
        refused = await daemon.deploy()
        assert (refused.status, refused.json["result"]) == (422, "failed")
        assert [step["name"] for step in refused.json["steps"]][-1] == "health"
        assert "does not exist any more" in refused.json["reason"]
        assert await public_version(daemon) == "v1"
