"""The client as a program of its own: in a pipe, on a terminal, interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.unit.supervisor.cli.fakes import Played, record, status, step
from tests.unit.supervisor.cli.support import Call, clean_environment, on_terminal, program, run

ESCAPE = "\x1b"
SHOW_CURSOR = "\x1b[?25h"


def play_deploy(daemon: Played) -> None:
    evil = "ready\x1b]0;owned\x07"
    daemon.play("POST", "/deploy/bluegreen", record(), status=202)
    daemon.play(
        "GET",
        "/deploy/d-42",
        *[record(phase="launch")] * 3,
        record(step("launch", message=evil), phase="guard", result="switched"),
    )


async def test_a_terminal_gets_colours_and_its_cursor_back(daemon: Played, env_file: Path) -> None:
    play_deploy(daemon)
    written = await on_terminal("--env-file", env_file, "deploy")
    assert "\x1b[32m✓" in written
    assert "launch" in written
    assert written.rfind(SHOW_CURSOR) > written.rfind("\x1b[?25l")
    assert "\x1b]0;" not in written
    assert r"ready\x1b]0;owned\x07" in written


async def test_no_color_is_honoured_on_a_terminal(daemon: Played, env_file: Path) -> None:
    daemon.play("GET", "/deploy/status", status())
    coloured = await on_terminal("--env-file", env_file, "status")
    plain = await on_terminal("--env-file", env_file, "status", NO_COLOR="1")
    assert "\x1b[32m" in coloured
    assert "\x1b[32m" not in plain
    assert "╭─" in plain


async def test_a_dumb_terminal_gets_no_spinner_and_no_colours(
    daemon: Played, env_file: Path
) -> None:
    play_deploy(daemon)
    written = await on_terminal("--env-file", env_file, "deploy", TERM="dumb")
    assert ESCAPE not in written


async def test_json_on_a_terminal_is_escaped(daemon: Played, env_file: Path) -> None:
    daemon.play("GET", "/deploy/status", '{"mode":"\x9b2J😀\x7f\U000e0001","slots":[]}'.encode())
    written = await on_terminal("--env-file", env_file, "--json", "status")
    expected = r'{"mode":"\u009b2J😀\u007f\udb40\udc01","slots":[]}'
    assert written.replace("\r\n", "\n") == expected + "\n"


async def test_a_pipe_gets_no_control_codes_in_any_environment(
    daemon: Played, env_file: Path
) -> None:
    play_deploy(daemon)
    outcome = await run(
        program("--env-file", env_file, "deploy"),
        FORCE_COLOR="1",
        TTY_COMPATIBLE="1",
        TTY_INTERACTIVE="1",
        COLUMNS="20",
    )
    assert outcome.code == 0
    assert ESCAPE not in outcome.out
    assert [line.rstrip() for line in outcome.out.splitlines()] == outcome.out.splitlines()
    assert r"✓ launch        12 ms  ready\x1b]0;owned\x07" in outcome.out


async def test_an_encoding_without_the_signs_gets_plain_signs(
    daemon: Played, env_file: Path
) -> None:
    daemon.play("GET", "/deploy/d-42", record(step("launch", message="späť"), result="switched"))
    outcome = await run(
        program("--env-file", env_file, "show", "d-42"), PYTHONIOENCODING="ascii", PYTHONUTF8="0"
    )
    assert outcome.code == 0
    assert r"+ launch        12 ms  sp\xe4\u0165" in outcome.out


async def test_a_pipe_gets_each_step_when_it_happens(daemon: Played, env_file: Path) -> None:
    daemon.play("POST", "/deploy/bluegreen", record(), status=202)
    daemon.play("GET", "/deploy/d-42", record(step("preflight"), phase="launch"))
    process = await asyncio.create_subprocess_exec(
        *program("--env-file", env_file, "deploy"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    assert process.stdout is not None
    assert b"d-42" in await process.stdout.readline()
    assert b"preflight" in await process.stdout.readline()  # and the deploy has not ended
    daemon.play("GET", "/deploy/d-42", record(step("preflight"), result="switched", phase="guard"))
    await process.communicate()
    assert process.returncode == 0


async def test_ctrl_c_leaves_the_deploy_running_with_a_message(
    daemon: Played, env_file: Path
) -> None:
    daemon.play("POST", "/deploy/bluegreen", record(), status=202)
    daemon.play("GET", "/deploy/d-42", record(step("preflight"), phase="launch"))
    process = await asyncio.create_subprocess_exec(
        *program("--env-file", env_file, "deploy"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    assert process.stdout is not None
    await process.stdout.readline()
    await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert err.decode() == "The deploy continues; `atlasctl show d-42` shows its result.\n"
    assert [asked.path for asked in daemon.asked if asked.method == "POST"] == ["/deploy/bluegreen"]


async def test_ctrl_c_before_the_answer_makes_no_claim(daemon: Played, env_file: Path) -> None:
    daemon.stall("POST", "/deploy/bluegreen")
    process = await asyncio.create_subprocess_exec(
        *program("--env-file", env_file, "deploy", "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    await daemon.heard.wait()
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert b"If the deploy has started, it continues" in err


async def test_a_closed_pipe_ends_the_client_quietly(daemon: Played, env_file: Path) -> None:
    daemon.play("GET", "/deploy/status", status())
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = await asyncio.create_subprocess_exec(
            *program("--env-file", env_file, "status"),
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
            env=clean_environment(),
        )
        _, err = await process.communicate()
    finally:
        os.close(writing)
    assert process.returncode == 1
    assert err == b""


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["deploy", "--help"]])
async def test_help_needs_no_daemon(call: Call, arguments: list[str]) -> None:
    outcome = await call(*arguments)
    assert outcome.code == 0
    assert "--json" in outcome.out


async def test_the_client_loads_nothing_of_the_daemon_and_so_starts_quickly() -> None:
    script = (
        "import sys, atlas_supervisor.cli.__main__\n"
        "print(*(name for name in sys.modules if name.startswith('supervisor.')\n"
        "        and not name.startswith('atlas_supervisor.cli')))\n"
        "print(*sorted({'pydantic', 'aiohttp.web', 'structlog'} & set(sys.modules)))\n"
    )
    outcome = await run([sys.executable, "-c", script])
    assert outcome.out.split() == []
    assert outcome.err == ""
