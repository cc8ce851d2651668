"""`atlasctl logs` against a daemon that plays recorded streams."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.unit.supervisor.cli.fakes import BREAK, STAY, Played, problem
from tests.unit.supervisor.cli.support import Call, clean_environment, program

OWN = "/deploy/logs/supervisor"
BLUE = "/deploy/logs/blue"


def sent(number: int, text: str, kind: str = "") -> bytes:
    name = f"event: {kind}\n" if kind else ""
    return f"id: 7-{number}-9\n{name}data: {text}\n\n".encode()


def own(event: str = "worker_ready", **fields: Any) -> str:
    line = {"ts": "2026-01-05T09:30:01.204116Z", "level": "info", "event": event, **fields}
    return json.dumps(line)


async def test_lines_are_shown_in_columns_with_the_fields_that_matter(
    daemon: Played, atlasctl: Call
) -> None:
    line = own(slot="blue", instance="blue-1", release="v1", why="so it is", pid=7, deploy_id="d")
    daemon.play_events((sent(1, line), sent(2, own("stopped"))), path=OWN)
    outcome = await atlasctl("logs")
    first, second = outcome.out.splitlines()
    assert first.endswith('  slot=blue  pid=7  why="so it is"  deploy_id=d')
    assert "info      worker_ready" in first
    assert "blue-1" not in first
    assert second.endswith("stopped")
    assert (outcome.code, outcome.err) == (0, "")
    assert daemon.asked[0].query == {"events": "true", "lines": "100", "follow": "false"}


async def test_a_traceback_comes_below_its_line(daemon: Played, atlasctl: Call) -> None:
    line = own("failed", level="error", exception="Traceback\n  at home\x1b[2J")
    daemon.play_events((sent(1, line),), path=OWN)
    outcome = await atlasctl("logs")
    assert outcome.out.splitlines()[1:] == ["    Traceback", "      at home\\x1b[2J"]


async def test_filters_are_passed_to_the_daemon(daemon: Played, atlasctl: Call) -> None:
    daemon.play_events((), path=OWN)
    options = ("-n", "5", "--level", "warning", "--deploy", "d", "--slot", "blue", "--grep", "x y")
    assert (await atlasctl("logs", "supervisor", *options)).code == 0
    assert daemon.asked[0].query == {
        "events": "true",
        "lines": "5",
        "follow": "false",
        "level": "warning",
        "deploy_id": "d",
        "slot": "blue",
        "contains": "x y",
    }


async def test_a_workers_lines_are_shown_unchanged(daemon: Played, atlasctl: Call) -> None:
    daemon.play_events((sent(1, "[bold]one[/]"), sent(2, "x" * 300), sent(3, "")), path=BLUE)
    assert (await atlasctl("logs", "blue")).out == f"[bold]one[/]\n{'x' * 300}\n\n"


async def test_json_prints_the_lines_only(daemon: Played, atlasctl: Call) -> None:
    lines = [own(number=n) for n in range(3)]
    stream = (sent(0, lines[0]), sent(1, "lost", "gap"), *(sent(n, lines[n]) for n in (1, 2)))
    daemon.play_events(stream, path=OWN)
    outcome = await atlasctl("--json", "logs")
    assert outcome.out.splitlines() == lines
    assert "lost" in outcome.err


@pytest.mark.parametrize("option", [("--level", "info"), ("--slot", "blue"), ("--deploy", "d")])
async def test_filters_that_a_workers_log_lacks_are_wrong_usage(
    atlasctl: Call, option: tuple[str, str]
) -> None:
    outcome = await atlasctl("logs", "green", *option)
    assert outcome.code == 2
    assert f"{option[0]} is for the daemon's own log" in outcome.err


async def test_a_refusal_is_shown_with_its_hint(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", OWN, problem("token_required", "it needs the token", "give it"), status=401)
    outcome = await atlasctl("logs", "-f")
    assert outcome.code == 1
    assert "it needs the token" in outcome.err
    assert "give it" in outcome.err


async def test_following_without_a_daemon_fails_at_once(atlasctl: Call) -> None:
    outcome = await atlasctl("logs", "-f")
    assert outcome.code == 3


async def test_an_answer_of_another_server_is_no_daemon(daemon: Played, atlasctl: Call) -> None:
    daemon.play("GET", OWN, b"<html>")
    assert (await atlasctl("logs")).code == 3


async def test_a_broken_stream_is_a_failure(daemon: Played, atlasctl: Call) -> None:
    daemon.play_events((sent(1, "one"), BREAK), path=BLUE)
    outcome = await atlasctl("logs", "blue")
    assert (outcome.code, outcome.out) == (3, "one\n")


async def followed(env_file: Path, *args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *program("--env-file", env_file, "logs", "-f", *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )


async def test_following_resumes_after_a_restart_until_ctrl_c(
    daemon: Played, env_file: Path
) -> None:
    daemon.play_events(
        (sent(1, "one"),),  # the daemon stops
        (sent(2, "two"), BREAK),  # it is killed
        (sent(3, "three"), STAY),
        path=BLUE,
    )
    process = await followed(env_file, "blue")
    assert process.stdout is not None
    for expected in (b"one\n", b"two\n", b"three\n"):
        assert await process.stdout.readline() == expected
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert b"Waiting for it" in err
    assert err.count(b"\n") == 1
    asked = [each.headers.get("last-event-id") for each in daemon.asked]
    assert asked == [None, "7-1-9", "7-2-9"]


async def test_a_closed_pipe_ends_the_client_quietly(daemon: Played, env_file: Path) -> None:
    daemon.play_events((sent(1, "one"), 2, sent(2, "two"), STAY), path=BLUE)
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *program("--env-file", env_file, "logs", "-f", "blue"),
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    os.close(writing)
    assert await asyncio.to_thread(os.read, reading, 100) == b"one\n"
    os.close(reading)
    daemon.asked.append(daemon.asked[0])  # lets the stream go on
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
