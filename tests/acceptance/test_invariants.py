"""The check of the invariants finds each violation: one that finds nothing proves nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.harness import DaemonProcess
from tests.integration.support import release, scripted_daemon, state_file, write
from tests.invariants import INVARIANTS, violations
from tests.loadclient import Loss, Reason


@asynccontextmanager
async def process(program: str, **environment: str) -> AsyncIterator[int]:
    """Run a program that prints a line once it is ready, and kill it afterwards."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        await child.stdout.readline()
        yield child.pid
    finally:
        child.kill()
        await child.wait()


async def only(daemon: DaemonProcess, name: str) -> str:
    """Expect violations of this invariant alone, and return them."""
    found = await violations(daemon)
    assert list(found) == [name]
    return "\n".join(found[name])


async def test_each_violation_is_found_and_named(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        deployed = await daemon.deploy()
        await daemon.ended(deployed.json["deploy_id"])
        assert await violations(daemon) == {}

        lost = Loss(1.0, "GET", "t1", Reason.RESET, "", 1)
        assert list(await violations(daemon, [lost])) == ["no request is lost"]

        marks = {"ATLAS_STATE_DIR": str(daemon.state_dir), "ATLAS_INSTANCE": "green-0"}
        wait = "import sys; print(flush=True); sys.stdin.read()"
        async with process(wait, **marks) as pid:
            assert f"pid {pid} " in await only(daemon, "no process or zombie is left over")
        opened = f"file = open({str(daemon.state_dir / 'atlas.db')!r}); {wait}"
        async with process(opened) as pid:
            assert f"pid {pid} " in await only(daemon, "one daemon writes")

        write(daemon, "UPDATE deploys SET phase = 'smoke', ended_ts = NULL")
        assert "is in smoke" in await only(daemon, "every deploy reaches an end")
        write(daemon, "UPDATE deploys SET phase = 'ended', ended_ts = started_ts")

        write(daemon, "UPDATE versions SET version = 'v0'")
        assert "v0" in await only(daemon, "file, database and steering agree")
        write(daemon, "UPDATE versions SET version = 'v2'")

        answer = await daemon.request("POST", "/deploy/mode", json={"mode": "single"})
        assert answer.status == 200
        write(daemon, "UPDATE audit SET outcome = 'bluegreen' WHERE action = 'mode'")
        latch, trail = "a latch stays latched", "the audit trail is whole"
        assert list(await violations(daemon)) == [latch, trail]
        write(daemon, "UPDATE audit SET outcome = 'single' WHERE action = 'mode'")

        log = daemon.state_dir / "logs" / "supervisor.jsonl"
        os.truncate(log, 18 << 20)
        assert log.name in await only(daemon, "descriptors, memory and logs are bounded")
        os.truncate(log, 0)
        assert state_file(daemon)["mode"] == "single"
        assert await violations(daemon) == {}
    assert len(INVARIANTS) == 8


async def test_a_connection_that_another_process_accepts_is_found(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {"PUBLIC_HOST": "0.0.0.0"}) as daemon:
        stray = (
            "import socket, sys; sock = socket.socket(); sock.setsockopt(1, 15, 1);"
            f"sock.setsockopt(1, 2, 1); sock.bind(('127.0.0.1', {daemon.public_port}));"
            "sock.listen(); kept = []; print(flush=True)\n"
            "while True: kept.append(sock.accept())"
        )
        async with process(stray) as pid:
            found = await only(daemon, "file, database and steering agree")
            assert f"pid {pid} " in found
