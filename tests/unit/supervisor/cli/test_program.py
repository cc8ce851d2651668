"""The client as a program of its own: in a pipe, on a terminal, interrupted."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from tests.unit.supervisor.cli.fakes import STAY, Played, problem, record, status, step
from tests.unit.supervisor.cli.support import (
    Call,
    Outcome,
    clean_environment,
    on_terminal,
    program,
    run,
)

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


async def in_shell(command: list[str], redirection: str) -> Outcome:
    """Run a program as a shell does with this redirection."""
    return await run(["bash", "-o", "pipefail", "-c", f"{shlex.join(command)} {redirection}"])


async def test_a_reader_that_left_ends_a_reading_call_quietly(
    daemon: Played, env_file: Path
) -> None:
    daemon.play("GET", "/deploy/status", status())
    outcome = await in_shell(program("--env-file", env_file, "status"), "| true")
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize(
    ("redirection", "why"),
    [
        (">/dev/full", "No space left on device"),
        (">&-", "it is closed"),
        ("| true", "Broken pipe"),
    ],
)
async def test_a_deploy_whose_display_fails_has_its_own_exit_status(
    daemon: Played, env_file: Path, redirection: str, why: str
) -> None:
    command = program("--env-file", env_file, "deploy")
    play_deploy(daemon)
    switched = await in_shell(command, redirection)
    assert switched.code == 0
    assert "switched to 2.0.0 on port 8791" in switched.err
    assert switched.err.endswith(
        f"atlasctl: standard output can't be written ({why}); the exit status is that of the "
        "request\n"
    )
    daemon.play("GET", "/deploy/d-42", record(result="failed", reason="smoke: no"))
    failed = await in_shell(command, redirection)
    assert failed.code == 1
    assert "smoke: no" in failed.err
    assert "Traceback" not in failed.err


async def test_a_client_without_any_stream_has_its_own_exit_status(
    daemon: Played, env_file: Path
) -> None:
    daemon.play("POST", "/deploy/mode", {"mode": "single"})
    command = program("--env-file", env_file, "mode", "single")
    assert (await in_shell(command, "<&- >&- 2>&-")).code == 0
    daemon.play("POST", "/deploy/mode", problem("no", "It is refused."), status=409)
    assert (await in_shell(command, ">/dev/full 2>/dev/full")).code == 1


async def test_a_deploy_goes_on_when_its_terminal_disappears(
    daemon: Played, env_file: Path
) -> None:
    daemon.play("POST", "/deploy/bluegreen", record(), status=202)
    daemon.play("GET", "/deploy/d-42", record(step("preflight"), phase="launch"))
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        "setsid",  # the terminal's hangup reaches its session
        "--ctty",
        "--wait",
        *program("--env-file", env_file, "deploy"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(),
    )
    os.close(theirs)
    shown = b""
    while b"preflight" not in shown:
        shown += await asyncio.to_thread(os.read, ours, 65536)
    os.close(ours)
    daemon.play("GET", "/deploy/d-42", record(step("preflight"), result="switched", phase="guard"))
    assert await process.wait() == 0


async def test_following_a_log_ends_with_its_reader(daemon: Played, env_file: Path) -> None:
    daemon.play_events(
        (b'id: 1\ndata: {"event": "first"}\n\n', b'id: 2\ndata: {"event": "second"}\n\n', STAY),
        path="/deploy/logs/supervisor",
    )
    command = program("--env-file", env_file, "logs", "--follow")
    outcome = await asyncio.wait_for(in_shell(command, "| true"), 30)
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["deploy", "--help"]])
async def test_help_needs_no_daemon(call: Call, arguments: list[str]) -> None:
    outcome = await call(*arguments)
    assert outcome.code == 0
    assert "--json" in outcome.out


async def test_the_client_loads_nothing_of_the_daemon_and_so_starts_quickly() -> None:
    script = (
        "import sys, atlas_supervisor.cli.__main__, atlas_supervisor.cli.verbs\n"
        "print(*(name for name in sys.modules if name.startswith('atlas_supervisor.')\n"
        "        and not name.startswith('atlas_supervisor.cli')\n"
        "        and name not in {'atlas_supervisor.output', 'atlas_supervisor.quick_import'}))\n"
        "print(*sorted({'pydantic', 'aiohttp.web', 'structlog'} & set(sys.modules)))\n"
    )
    outcome = await run([sys.executable, "-c", script])
    assert outcome.out.split() == []
    assert outcome.err == ""
