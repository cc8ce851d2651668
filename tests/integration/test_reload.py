"""A reload in place: the same process with new code and settings, and nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from atlas_supervisor.cli.client import DaemonClient
from atlas_supervisor.cli.endpoint import Endpoint
from atlas_supervisor.cli.follow import events
from tests.harness import DaemonProcess, eventually, free_ports
from tests.integration.support import agent_line, rows, scripted_daemon, slot, until_phase
from tests.loadclient import Load, bundled_worker_mix

REPOSITORY = Path(__file__).parents[2]
RELOADS = 2
WITHIN_SECONDS = 30.0


async def until_reloaded(daemon: DaemonProcess, before: dict[str, Any]) -> dict[str, Any]:
    """Wait for another daemon in the same process than the one of this status."""
    deadline = asyncio.get_running_loop().time() + WITHIN_SECONDS
    while True:
        try:
            answer = await daemon.request("GET", "/deploy/status")
        except aiohttp.ClientConnectionError:  # a kept connection that was closed meanwhile
            continue
        status: dict[str, Any] = answer.json
        if answer.status == 200 and status["daemon"] != before["daemon"]:
            assert status["daemon"]["pid"] == before["daemon"]["pid"] == daemon.pid
            assert status["daemon"]["start"] == "reload"
            return status
        assert asyncio.get_running_loop().time() < deadline, "not reloaded"
        await asyncio.sleep(0.02)


async def reload(daemon: DaemonProcess, **settings: Any) -> dict[str, Any]:
    """Change settings, reload, and return the next daemon's status."""
    before = await daemon.status()
    daemon.settings.update(settings)
    daemon.write_settings()
    answer = await daemon.request("POST", "/supervisor/reload")
    assert answer.status == 202, answer
    assert set(answer.json["changed"]) == set(settings)
    assert answer.json["before"]["started_ts"] == before["daemon"]["started_ts"]
    after = await until_reloaded(daemon, before)
    assert workers(after) == workers(before)
    return after


def workers(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the fields of both slots that a reload must not change."""
    fields = ("slot", "role", "state", "pid", "version", "started_ts", "restarts")
    return [{name: slot[name] for name in fields} for slot in status["slots"]]


def resources(daemon: DaemonProcess) -> dict[str, int]:
    """Return how many descriptors, threads and dead children the daemon has."""
    process = Path(f"/proc/{daemon.pid}")
    children = (process / f"task/{daemon.pid}/children").read_text().split()
    states = [Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] for pid in children]
    return {
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "zombies": states.count("Z"),
    }


async def watch(daemon: DaemonProcess, seen: list[tuple[str, str]]) -> None:
    """Follow all deploys as `atlasctl` does."""
    endpoint = Endpoint(base="http://localhost", socket=daemon.state_dir / "supervisor.sock")
    async with DaemonClient(endpoint) as client:
        async for event in events(client):
            if event is not None:
                data = json.loads(event.data)
                seen.append((data["deploy_id"], data["target"]))


@pytest.mark.timeout(150)
@pytest.mark.fault(
    "The daemon", "reloads under load", "no request and no event is lost, and nothing leaks"
)
async def test_reloads_under_load_lose_no_request_and_no_event_and_leak_nothing(
    tmp_path: Path,
) -> None:
    seen: list[tuple[str, str]] = []
    async with DaemonProcess.running(tmp_path) as daemon:
        watching = asyncio.create_task(watch(daemon, seen))
        async with Load("127.0.0.1", daemon.public_port, bundled_worker_mix(think=0.1)) as load:
            await reload(daemon, LOG_LEVEL="debug")
            first = resources(daemon)
            for number in range(1, RELOADS):
                answer = await daemon.deploy()
                assert answer.json["result"] == "switched", answer
                await daemon.ended(answer.json["deploy_id"])
                status = await reload(daemon, CANARY_RETENTION_DAYS=number)
                assert status["last_deploy"]["deploy_id"] == answer.json["deploy_id"]
                assert not status["daemon"]["settings_pending"]
            last = resources(daemon)
            report = await load.stop()
        happened = rows(daemon, "SELECT deploy_id, target FROM transitions ORDER BY id")
        await eventually(lambda: len(seen) >= len(happened), what="every event")
        watching.cancel()
        await asyncio.wait([watching])
    assert [str(loss) for tally in report.kinds.values() for loss in tally.losses] == []
    assert report.total().answered > 100
    assert seen == happened
    assert last["zombies"] == 0
    assert last["threads"] <= first["threads"] + 2
    assert last["descriptors"] <= first["descriptors"] + 4  # connections of this test


@pytest.mark.timeout(120)
async def test_worker_settings_wait_for_a_deploy_and_other_settings_apply_at_once(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, worker_env={"COLOUR": "blue"}) as daemon:
        (tmp_path / "worker.env").write_text("COLOUR=green\n")
        port, agent = free_ports(2)
        before = daemon.control_port
        ports = {"CONTROL_PORT": port, "FLEET_AGENT_PORT": agent}

        status = await reload(daemon, **ports, AUTO_SWITCH_ON_HEALTH="false")

        assert (await daemon.request_tcp("GET", "/livez")).status == 200
        with pytest.raises(aiohttp.ClientConnectorError):
            async with aiohttp.ClientSession() as session:
                await session.get(f"http://127.0.0.1:{before}/livez")

        assert status["daemon"]["settings_pending"]
        answer = await daemon.deploy()
        assert answer.json["result"] == "awaiting_switch", answer

        status = await reload(daemon, CHANNEL="beta")  # a waiting deploy is no reason against it

        assert await agent_line(agent) == b"up ready 100%\n"
        assert status["channel"] == "beta"
        assert status["daemon"]["settings_pending"]
        assert status["deploy_in_progress"]
        await until_phase(daemon, "awaiting_switch")
        assert (await daemon.request("POST", "/deploy/switch")).status == 200
        assert (await daemon.deploy()).json["result"] == "awaiting_switch"  # with CHANNEL, too
        assert (await daemon.request("POST", "/deploy/switch")).status == 200
        assert not (await daemon.status())["daemon"]["settings_pending"]


@pytest.mark.timeout(120)
@pytest.mark.fault(
    "The daemon",
    "a reload to a broken program or settings",
    "it is refused with its lines, and nothing changes",
)
async def test_a_refused_reload_changes_nothing_and_SIGHUP_reloads_too(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        before = await daemon.status()

        (port,) = free_ports(1)
        good = dict(daemon.settings)
        daemon.settings["PUBLIC_PORT"] = port
        daemon.write_settings()
        answer = await daemon.request("POST", "/supervisor/reload")
        assert (answer.status, answer.json["error"]["code"]) == (422, "reload_refused")
        (line,) = answer.json["error"]["lines"]
        assert line == f"PUBLIC_PORT={port}: a reload can't change it; it is {good['PUBLIC_PORT']}"

        daemon.settings = good | {"GUARD_SECONDS": "soon"}
        daemon.write_settings()
        os.kill(daemon.pid, signal.SIGHUP)
        log = daemon.state_dir / "logs/supervisor.jsonl"
        said = '"event": "reload_refused"'
        await eventually(lambda: said in log.read_text(), within=WITHIN_SECONDS)
        assert "GUARD_SECONDS=soon" in log.read_text()
        outcomes = "SELECT actor, outcome FROM audit WHERE action = 'reload' ORDER BY id"
        await eventually(lambda: len(rows(daemon, outcomes)) == 2)
        uid = f"uid:{os.geteuid()}"
        assert rows(daemon, outcomes) == [(uid, "refused"), ("SIGHUP", "refused")]
        after = await daemon.status()
        assert after["daemon"] == before["daemon"]
        assert slot(after, "active")["pid"] == slot(before, "active")["pid"]

        daemon.settings = good | {"GUARD_SECONDS": 1}
        daemon.write_settings()
        os.kill(daemon.pid, signal.SIGHUP)
        await until_reloaded(daemon, before)
        assert rows(daemon, outcomes)[-1] == ("SIGHUP", "accepted")

        answer = await daemon.request("POST", "/supervisor/reload")
        assert answer.status == 202
        # SIGTERM in the midst of it: the daemon stops, in order, which the harness checks.


@pytest.mark.timeout(120)
async def test_new_code_is_refused_if_it_is_broken_and_else_runs_in_the_same_process(
    tmp_path: Path,
) -> None:
    installed = tmp_path / "installed"
    for root in ("supervisor", "worker"):
        shutil.copytree(REPOSITORY / root, installed, dirs_exist_ok=True)
    run = f"""import runpy, sys
sys.path.insert(0, {str(installed)!r})
runpy.run_module("atlas_supervisor", run_name="__main__", alter_sys=True)"""
    opening_source, program_source = (
        installed / "atlas_supervisor" / name for name in ("opening.py", "system/program.py")
    )
    async with scripted_daemon(tmp_path, program=("-c", run)) as daemon:
        before = await daemon.status()
        released = opening_source.read_text()

        opening_source.write_text(f"{released}\ndef broken(:\n")
        answer = await daemon.request("POST", "/supervisor/reload")
        assert answer.status == 422
        assert "SyntaxError: invalid syntax" in answer.json["error"]["lines"]
        assert (await daemon.status())["daemon"] == before["daemon"]

        # The new code audits its start in another word, and can't be replaced itself.
        opening_source.write_text(released.replace('"started",', '"started_anew",'))
        failing = program_source.read_text().replace("os.execve(", "_fail(")
        program_source.write_text(f"{failing}\ndef _fail(*_):\n    raise OSError(12, 'full')\n")
        after = await reload(daemon)
        started = "SELECT outcome FROM audit WHERE outcome LIKE 'started%' ORDER BY id"
        assert rows(daemon, started) == [("started",), ("started_anew",)]

        answer = await daemon.request("POST", "/supervisor/reload")
        assert answer.status == 202
        failed = "SELECT outcome FROM audit WHERE action = 'reload' ORDER BY id DESC LIMIT 1"
        await eventually(lambda: rows(daemon, failed) == [("failed",)], within=WITHIN_SECONDS)
        await daemon.stop_clients()
        again = await daemon.status()
        assert again["daemon"] == after["daemon"]
        assert workers(again) == workers(before)
        assert (await daemon.deploy()).json["result"] == "switched"


SLOW = """
import http.server, sys, threading
go = threading.Event()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "8")
        self.end_headers()
        if self.path == "/go":
            go.set()
        self.wfile.write(b"half")
        if self.path == "/slow":
            go.wait()
        self.wfile.write(b"half")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


async def test_connections_that_the_daemon_relays_go_on_in_the_middle_of_an_answer(
    tmp_path: Path,
) -> None:
    async def ask(path: str, end: bytes) -> None:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        async with asyncio.timeout(WITHIN_SECONDS):
            await reader.readuntil(end)

    command: dict[str, Any] = {"WORKER_COMMAND": "python slow.py {port}"}
    async with DaemonProcess.running(tmp_path, command, files={"slow.py": SLOW}) as daemon:
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.public_port)
        await ask("/", b"\r\n\r\nhalfhalf")
        await ask("/slow", b"\r\n\r\nhalf")
        await reload(daemon, CANARY_RETENTION_DAYS=7)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{daemon.public_port}/go") as answer,
        ):
            assert await answer.text() == "halfhalf"
        assert await reader.readexactly(4) == b"half"
        await ask("/", b"\r\n\r\nhalfhalf")
        writer.close()
