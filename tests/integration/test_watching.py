"""The client watches a real daemon: by its events, over its restart, from anywhere in a deploy."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.harness import DaemonProcess
from tests.integration.support import scripted_daemon
from tests.unit.supervisor.cli.support import call_client, clean_environment, program, run

FOREVER = """\
[[command]]
name = "takes its time"
run = ["sleep", "60"]
timeout_seconds = 60
"""


async def watched(daemon: DaemonProcess, *args: str) -> Process:
    """Run the client with its output in pipes."""
    command = program("--env-file", daemon.env_file, *args)
    return await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=PIPE, env=clean_environment()
    )


async def until(process: Process, words: str) -> list[str]:
    """Return the lines that the client prints, up to the one with these words."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or words not in lines[-1]:
        line = (await process.stdout.readline()).decode()
        assert line, f"ended without {words!r}: {lines}"
        lines.append(line.rstrip("\n"))
    return lines


async def test_a_deploy_that_a_restart_of_the_daemon_interrupts_is_told_how_it_came_out(
    tmp_path: Path,
) -> None:
    smoke = tmp_path / "smoke.toml"
    smoke.write_text(FOREVER)
    async with scripted_daemon(tmp_path, {"SMOKE_FILE": smoke}) as daemon:
        process = await watched(daemon, "deploy")
        await until(process, "✓ launch")
        await daemon.stop()
        await daemon.start()
        out, err = await process.communicate()
    assert process.returncode == 1
    assert err == b""
    assert "✗ aborted\n" in out.decode()


async def test_show_follows_from_the_middle_to_the_end_and_tells_the_same_afterwards(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, {"AUTO_SWITCH_ON_HEALTH": "false"}) as daemon:
        begun = await call_client("--env-file", daemon.env_file, "deploy")
        assert begun.code == 0, begun
        process = await watched(daemon, "show", "--follow")
        before = await until(process, "Switch to it with")
        assert sum("✓" in line and " launch " in line for line in before) == 1
        assert not any("switched" in line for line in before)
        assert (await daemon.request("POST", "/deploy/switch")).status == 200
        out, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
        told = out.decode()
        assert "switch requested" in told
        assert [told.count(words) for words in ("✓ switched to", "old version drained")] == [1, 1]
        afterwards = await call_client("--env-file", daemon.env_file, "show", "-f", "--json")
        assert json.loads(afterwards.out)["phase"] == "ended"


@asynccontextmanager
async def losing_the_first_answer(port: int) -> AsyncIterator[str]:
    """Pass connections on to a port; the first one breaks as soon as there is an answer."""
    first = iter([True])
    here, there = "", f"127.0.0.1:{port}"

    async def ask(reader: asyncio.StreamReader, daemon: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            daemon.write(piece.replace(here.encode(), there.encode()))  # the `Host` it answers to

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, daemon = await asyncio.open_connection("127.0.0.1", port)
        asking = asyncio.create_task(ask(reader, daemon))
        lose = next(first, False)
        try:
            while piece := await answers.read(65536):
                if lose:
                    break
                writer.write(piece)
        finally:
            asking.cancel()
            daemon.close()
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        here = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield f"http://{here}"


async def test_a_deploy_whose_answer_is_lost_is_begun_once_and_watched(tmp_path: Path) -> None:
    async with (
        scripted_daemon(tmp_path) as daemon,
        losing_the_first_answer(daemon.control_port) as url,
    ):
        outcome = await call_client("--url", url, "deploy", env={"ATLAS_TOKEN": daemon.token})
        history = await daemon.request("GET", "/deploy/history")
    assert (outcome.code, outcome.err) == (0, "")
    assert "✓ switched to" in outcome.out
    assert len(history.json["deploys"]) == 1


async def test_a_deploy_in_a_pipe_is_plain_lines_one_a_step_as_they_happen(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        outcome = await run(program("--env-file", daemon.env_file, "deploy"), FORCE_COLOR="1")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.replace("\n", "").isprintable()
    words = [line.split()[1] for line in outcome.out.splitlines()[1:]]
    assert words[:5] == ["preflight", "launch", "smoke", "health", "switch"]
    assert words[-1] == "switched"  # a guard of no time may have ended by then
