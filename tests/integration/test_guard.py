"""The guard by evidence, with real workers and users' requests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DaemonProcess, Setting, eventually, write_release
from tests.integration.support import public_version, slot, state_file, until_phase

APP = """
import json
from pathlib import Path
share = float((Path(__file__).parent / "share").read_text())
version = (Path(__file__).parent / "VERSION").read_text().strip()
body = json.dumps({"version": version}).encode()
seen = 0

async def app(scope, receive, send):
    global seen
    if scope["type"] == "lifespan":
        while True:
            said = (await receive())["type"]
            await send({"type": said + ".complete"})
            if said.endswith("shutdown"):
                return
    seen += scope["path"] == "/"
    bad = scope["path"] == "/" and int(seen * share) > int((seen - 1) * share)
    await send({"type": "http.response.start", "status": 500 if bad else 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""
SETTINGS: dict[str, Setting] = {
    "WORKER_COMMAND": "env ATLAS_IDLE_GRACE_SECONDS=0.2 python -m atlas_worker.asgi app:app",
    "RELEASES_DIR": "releases",
    "WORKER_DIRECTORY": "releases/good",
    "KEEP_WARM_SECONDS": 60,
    "GUARD_SECONDS": 60,
}


@asynccontextmanager
async def flaky_daemon(folder: Path, **settings: Setting) -> AsyncIterator[DaemonProcess]:
    for name, share in (("good", 0.0), ("same", 0.0), ("bad", 0.2), ("worse", 0.5), ("poor", 0.05)):
        files = {"app.py": APP, "share": str(share)}
        write_release(folder / "releases" / name, name, files)
    async with DaemonProcess.running(folder, {**SETTINGS, **settings}) as daemon:
        yield daemon


class Users:
    """Send requests at a steady rate, each on a connection of its own, and count the answers."""

    def __init__(self, daemon: DaemonProcess, per_second: float) -> None:
        self._port = daemon.public_port
        self._pause = 1 / per_second
        self.sent = self.failed = self.lost = 0

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._send())
            try:
                yield
            finally:
                task.cancel()

    async def _send(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._ask())
                await asyncio.sleep(self._pause)

    async def _ask(self) -> None:
        self.sent += 1
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
            finally:
                writer.close()  # also if the test ends meanwhile
        except OSError:
            answer = b""
        self.failed += b" 500 " in answer[:15]
        self.lost += not answer


def remember(daemon: DaemonProcess, version: str, *, requests: int, failed: int) -> None:
    """Give a version a record, as if it had served for longer."""
    minute, counts = (
        int(time.time()) // 60 * 60 - 600,
        [requests, [0, requests - failed, 0, 0, failed]],
    )
    with closing(sqlite3.connect(daemon.state_dir / "atlas.db", timeout=10)) as database, database:
        database.execute(
            "INSERT INTO request_minutes VALUES (?, 'green', ?, ?, x'')",
            (minute, version, json.dumps([*counts, 0, 0])),
        )


def guard_step(record: dict[str, Any]) -> dict[str, Any]:
    (found,) = [step["detail"] for step in record["steps"] if step["name"] == "guard"]
    detail: dict[str, Any] = found
    return detail


async def test_a_version_that_fails_is_reverted_within_seconds_and_its_record_says_why(
    tmp_path: Path,
) -> None:
    async with flaky_daemon(tmp_path, AFTER_FAILURE="stay") as daemon:
        users = Users(daemon, 80)
        async with users.busy():
            assert (await daemon.deploy("bad")).json["result"] == "switched"
            record = await until_phase(daemon, "ended", within=30)
            failed = users.failed
            # One that is as good keeps the traffic; the status has what the guard has seen.
            assert (await daemon.deploy("same")).json["result"] == "switched"
            seen = await until_seen(daemon, requests=50)
            assert users.failed == failed
            # With a record of 0.5 %, 5 % are enough.
            remember(daemon, "same", requests=180_000, failed=900)
            assert (await daemon.deploy("poor")).json["result"] == "switched"
            poor = guard_step(await until_phase(daemon, "ended", within=50))
        assert 0.02 < poor["error_rate"] < 0.1
        assert poor["old_requests"] > 180_000
        assert 0 < poor["failed"] <= users.failed - failed
        detail = guard_step(record)
        assert record["result"] == "rolled_back"
        assert record["reason"] == f"guard: {detail['message']}"
        assert f"{detail['failed']} of {detail['requests']} requests failed" in detail["message"]
        assert detail["failed"] <= failed
        assert detail["error_rate"] > detail["allowed_error_rate"] > detail["old_error_rate"] == 0
        assert detail["odds"] >= detail["odds_needed"] > 100
        assert detail["seconds"] < 15
        assert (seen["failed"], users.lost) == (0, 0)
        assert seen["odds"] <= 1
        assert await public_version(daemon) == "same"


@pytest.mark.fault(
    "The daemon",
    "killed while its guard has evidence against a version",
    "the next daemon goes on with it, and with what users saw meanwhile, and reverts the version",
)
async def test_a_killed_daemon_goes_on_with_its_evidence(tmp_path: Path) -> None:
    async with flaky_daemon(tmp_path, GUARD_HOLDBACK=0.3, GUARD_ALPHA="1e-9") as daemon:
        users = Users(daemon, 30)
        assert (await daemon.deploy("worse")).json["result"] == "switched"
        async with users.busy():
            before = await until_seen(daemon, requests=20)
            shared = (await daemon.status())["traffic"]["weights"]
            assert shared == {"blue": 0.3, "green": 0.7}
            await daemon.kill()
            asked = users.sent
            await eventually(lambda: users.sent > asked + 20)  # its workers go on
            await daemon.start()
            assert (await daemon.status())["traffic"]["weights"] == shared
            record = await until_phase(daemon, "ended", within=30)
        detail, status = guard_step(record), await daemon.status()
        assert record["reason"].startswith("guard: ")
        assert detail["requests"] > before["requests"] + 10
        assert detail["old_requests"] == before["old_requests"]
        assert detail["allowed_error_rate"] == before["allowed_error_rate"]
        assert (status["version"], status["traffic"]["weights"]["blue"]) == ("good", 1)
        assert (state_file(daemon)["staging_weight"], users.lost) == (0, 0)
        assert await public_version(daemon) == "good"


async def test_a_holdback_ends_with_the_guard_and_with_the_old_version(tmp_path: Path) -> None:
    more: dict[str, Setting] = {"GUARD_HOLDBACK": 0.3, "GUARD_SECONDS": 3}
    async with flaky_daemon(tmp_path, **more) as daemon:
        assert (await daemon.deploy("same")).json["result"] == "switched"
        await until_shared(daemon, {"blue": 0.3, "green": 0.7})
        await until_shared(daemon, {"blue": 0, "green": 1})
        assert (await until_phase(daemon, "warm"))["result"] == "switched"
        assert (await daemon.request("POST", "/deploy/rollback")).json["result"] == "rolled_back"
        await until_phase(daemon, "ended")

        assert (await daemon.deploy("same")).json["result"] == "switched"
        await until_shared(daemon, {"blue": 0.3, "green": 0.7})
        os.kill(slot(await daemon.status(), "staging")["pid"], signal.SIGKILL)
        await until_shared(daemon, {"blue": 0, "green": 1})
        assert await public_version(daemon) == "same"


async def until_shared(daemon: DaemonProcess, weights: dict[str, float]) -> None:
    """Wait until traffic is shared like this, by the status and in the state file."""
    deadline = asyncio.get_running_loop().time() + 10
    while True:
        found, file = (await daemon.status())["traffic"]["weights"], state_file(daemon)
        if found == weights and file["staging_weight"] == weights["blue"]:
            return
        assert asyncio.get_running_loop().time() < deadline, (found, file)
        await asyncio.sleep(0.02)


async def until_seen(daemon: DaemonProcess, *, requests: int) -> dict[str, Any]:
    """Wait until the guard has seen so many requests, and return what it says."""
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        record = (await daemon.status())["last_deploy"]
        seen: dict[str, Any] = record["guard"] or {}
        if seen.get("requests", 0) >= requests:
            return seen
        assert asyncio.get_running_loop().time() < deadline, record
        await asyncio.sleep(0.05)
