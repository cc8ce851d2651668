"""A version that is worse than the old one is found by users' requests, in its ramp."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import count
from pathlib import Path

from tests.harness import DaemonProcess, Setting, eventually

# Its release says how often it fails, out of a thousand requests.
APP = """
import pathlib, random
failing = int(pathlib.Path("VERSION").read_text().partition("-")[2]) / 1000
draw = random.Random(5).random

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only requests")
    status = 500 if scope["path"] == "/" and draw() < failing else 200
    headers = [(b"x-version", str(failing).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})
"""
SETTINGS: dict[str, Setting] = {
    "WORKER_COMMAND": "python -m atlas_worker.asgi --no-access-log --app-dir . failing:app",
    "TRAFFIC_RAMP": "0.5,1",
    "TRAFFIC_STEP_SECONDS": 30,
    "AFTER_FAILURE": "stay",
}
CONNECTIONS_PER_SECOND = 250


async def _load(
    port: int, seen: Counter[tuple[bytes, bytes]], enough: asyncio.Event, addresses: int = 0
) -> None:
    """Ask by a connection each, at an even pace, until it is enough; note versions and statuses.

    With `addresses`, from so many by turns; and every second request from one and the same.
    """
    asked = count()

    async def ask() -> None:
        number = next(asked)
        site = number // 2 % addresses if addresses and number % 2 else 0
        source = (f"127.{1 + site // 256}.{site % 256}.1", 0) if addresses else None
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=source)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        seen[answer.partition(b"x-version: ")[2].split(b"\r", 1)[0], answer[9:12]] += 1

    due = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as tasks:
        while not enough.is_set():
            tasks.create_task(ask())
            due += 1 / CONNECTIONS_PER_SECOND
            await asyncio.sleep(due - asyncio.get_running_loop().time())


async def test_5_percent_of_errors_beside_half_a_percent_are_reverted_in_the_ramp(
    tmp_path: Path,
) -> None:
    seen: Counter[tuple[bytes, bytes]] = Counter()
    files = {"failing.py": APP}
    async with DaemonProcess.running(tmp_path, SETTINGS, version="old-5", files=files) as daemon:
        enough = asyncio.Event()
        load = asyncio.create_task(_load(daemon.public_port, seen, enough))
        try:
            (daemon.worker_directory / "VERSION").write_text("new-50")
            deploy = await daemon.request("POST", "/deploy/bluegreen?wait=false")
            record = await daemon.ended(deploy.json["deploy_id"])
        finally:
            enough.set()
            await load

        assert record["result"] == "rolled_back"
        judgement = record["ramp"]["judgement"]
        assert judgement["verdict"] == "fail"
        assert judgement["against"] >= 100
        assert "of the new version failed" in record["reason"]
        # The record has what it cost.
        failed = seen[b"0.05", b"500"]
        assert 0 < judgement["new"]["failed"] <= failed <= judgement["new"]["failed"] + 10
        assert judgement["new"]["requests"] > 20
        assert (await daemon.status())["version"] == "old-5"


async def test_where_addresses_are_drawn_they_are_compared_also_over_a_kill(
    tmp_path: Path,
) -> None:
    seen: Counter[tuple[bytes, bytes]] = Counter()
    settings = {**SETTINGS, "TRAFFIC_STICKY": "address", "TRAFFIC_STEP_SECONDS": 300}
    files = {"failing.py": APP}
    async with DaemonProcess.running(tmp_path, settings, version="old-5", files=files) as daemon:
        enough = asyncio.Event()
        load = asyncio.create_task(_load(daemon.public_port, seen, enough, addresses=3000))
        try:
            (daemon.worker_directory / "VERSION").write_text("new-300")
            deploy = await daemon.request("POST", "/deploy/bluegreen?wait=false")
            await eventually(lambda: seen[b"0.3", b"500"], within=30)
            await daemon.kill()
            await daemon.start()
            record = await daemon.ended(deploy.json["deploy_id"])
        finally:
            enough.set()
            await load

        judgement = record["ramp"]["judgement"]
        assert (record["result"], judgement["verdict"]) == ("rolled_back", "fail")
        assert "addresses of the new version failed" in record["reason"]
        assert judgement["new"]["requests"] > 20
