"""The logs of a real daemon: the fields of its lines, and a worker that floods its log."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from atlas_supervisor.workers.output import LIMIT_BYTES
from tests.harness import DaemonProcess, eventually
from tests.integration.support import release, scripted_daemon

FLOOD_BYTES = 100_000_000
FLOODING = f"""
import os, sys, threading
from pathlib import Path

def flood():
    while not Path("flood").exists():
        threading.Event().wait(0.01)
    piece = bytes(1 << 20)
    left = {FLOOD_BYTES}
    while left:
        left -= os.write(1, piece[:left])
    Path("flooded").touch()
    while not Path("speak").exists():
        threading.Event().wait(0.01)
    os.write(1, b"\\nafter the flood\\n")

threading.Thread(target=flood, daemon=True).start()
script = Path(sys.argv[1])
sys.argv = [str(script)]
exec(compile(script.read_text(), str(script), "exec"))
"""


def lines(daemon: DaemonProcess) -> list[dict[str, Any]]:
    text = (daemon.state_dir / "logs" / "supervisor.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


async def test_lines_about_a_deploy_or_an_instance_carry_its_id(tmp_path: Path) -> None:
    quick: dict[str, Any] = {"LIVENESS_INTERVAL_SECONDS": 0.1, "KEEP_WARM_SECONDS": 60}
    async with scripted_daemon(tmp_path, {**quick, "KEEP_WARM_FOREIGN": "true"}) as daemon:
        release(daemon, "v2")
        good = (await daemon.deploy()).json
        release(daemon, "v3", exit=3, say="my password=hunter2 http://me:pw@host/")
        bad = (await daemon.deploy()).json
        await daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
        slots = {slot["slot"]: slot for slot in (await daemon.status())["slots"]}
        os.kill(slots["green"]["pid"], 9)  # its successor prints a secret
        await eventually(lambda: "worker_failed" in [line["event"] for line in lines(daemon)])
        await daemon.ended(good["deploy_id"])
    written = lines(daemon)
    assert written
    events = Counter(line["event"] for line in written)
    assert events["worker_launched"] >= 4
    assert events["deploy_transition"] >= 8
    for line in written:
        event = line["event"]
        if event.startswith("worker_"):
            assert line["slot"] in ("blue", "green"), line
            assert line["release"] in ("v1", "v2", "v3"), line
            assert line["instance"].startswith(f"{line['slot']}-"), line
        if event in ("deploy_transition", "mode_fallback") or "deploy/bluegreen" in str(line):
            assert line["deploy_id"] in (good["deploy_id"], bad["deploy_id"]), line
            assert line["release"] in ("v2", "v3"), line
    launched = {line["instance"]: line for line in written if line["event"] == "worker_launched"}
    of_v3 = next(line for line in launched.values() if line["release"] == "v3")
    assert of_v3["deploy_id"] == bad["deploy_id"]
    # An instance outlives its deploy: later events do not carry the deploy's id.
    (down,) = [line for line in written if line["event"] == "worker_down"]
    assert "deploy_id" not in down
    assert down["release"] == "v2"
    failed = next(line for line in written if line["event"] == "worker_failed")
    assert failed["output"] == "my password=*** http://***@host/"
    everything = (tmp_path / "daemon.out").read_text() + json.dumps(written)
    assert "hunter2" not in everything
    assert daemon.token not in everything


async def followed(daemon: DaemonProcess, source: str, until: str) -> list[str]:
    """Follow a log, and return its lines up to one with this text."""
    connector = aiohttp.UnixConnector(str(daemon.state_dir / "supervisor.sock"))
    async with (
        aiohttp.ClientSession("http://localhost", connector=connector) as session,
        session.get(f"/deploy/logs/{source}?follow=true") as response,
    ):
        assert response.status == 200
        found: list[str] = []
        async for raw in response.content:
            found.append(raw.decode().rstrip("\n"))
            if until in found[-1]:
                return found
    raise AssertionError(f"it ended after {found}")


@pytest.mark.fault(
    "Logs",
    "a worker that prints 100 MB of NUL bytes in one line",
    "the log is cut, and no request is delayed",
)
async def test_a_line_of_a_hundred_megabytes_of_nul_bytes_delays_no_request(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "apps" / "scripted.py"
    settings: dict[str, Any] = {"WORKER_COMMAND": f"python flooding.py {shlex.quote(str(script))}"}
    files = {"flooding.py": FLOODING}
    async with scripted_daemon(tmp_path, settings, files=files) as daemon:
        logs, work = daemon.state_dir / "logs", daemon.worker_directory
        following = asyncio.create_task(followed(daemon, "blue", "after the flood"))
        before = resident(daemon.pid)
        (work / "flood").touch()
        while not (work / "flooded").exists():  # written by the worker
            assert (await daemon.request("GET", "/deploy/status")).status == 200
            await asyncio.sleep(0.005)
        await eventually(lambda: (logs / "worker-blue.log").stat().st_size <= LIMIT_BYTES)
        (work / "speak").touch()  # not before: lines written during a truncation may be lost
        *_, end = await following
        assert end == "after the flood"
        assert (logs / "worker-blue.log.1").stat().st_size <= LIMIT_BYTES + 3 * 2**20
        assert resident(daemon.pid) - before < 40_000  # KiB
        answer = await daemon.request("GET", "/deploy/logs/blue?lines=2")
        assert re.fullmatch(r"(?:.*\n)?after the flood\n", answer.json)
        assert len(answer.json) < 100_000
        cuts = [line for line in lines(daemon) if line["event"] == "worker_log_cut"]
        assert {cut["slot"] for cut in cuts} == {"blue"}
        assert (await daemon.status())["slots"][0]["restarts"] == 0


@pytest.mark.fault(
    "Logs", "logs that another program removes", "they go on, bounded, and are followed"
)
async def test_logs_that_another_program_removes_go_on_bounded_and_are_followed(
    tmp_path: Path,
) -> None:
    script = Path(__file__).parent.parent / "apps" / "scripted.py"
    settings: dict[str, Any] = {"WORKER_COMMAND": f"python flooding.py {shlex.quote(str(script))}"}
    async with scripted_daemon(tmp_path, settings, files={"flooding.py": FLOODING}) as daemon:
        logs, work = daemon.state_dir / "logs", daemon.worker_directory
        own, blue, moved = logs / "supervisor.jsonl", logs / "worker-blue.log", tmp_path / "moved"
        following = [
            asyncio.create_task(followed(daemon, "supervisor", "worker_down")),
            asyncio.create_task(followed(daemon, "blue", "after the flood")),
        ]
        blue.rename(moved)
        own.unlink()
        (work / "flood").touch()
        await eventually((work / "flooded").exists, within=30)
        await eventually(lambda: moved.stat().st_size == 0 and blue.stat().st_size <= LIMIT_BYTES)
        (work / "speak").touch()
        assert (await following[1])[-1] == "after the flood"
        os.kill((await daemon.status())["slots"][0]["pid"], 9)
        assert "worker_down" in (await asyncio.wait_for(following[0], 10))[-1]
        events = Counter(line["event"] for line in lines(daemon))
        assert (events["log_file_replaced"], events["worker_log_replaced"]) == (1, 1)
        await eventually(lambda: "worker_ready" in own.read_text())


def resident(pid: int) -> int:
    """Return the resident memory of a process, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1])
