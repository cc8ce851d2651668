from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor.model.verdict import Verdict
from supervisor.probes.smoke import CheckResult, run_smoke
from supervisor.probes.smoke_file import SmokePlan
from tests.unit.supervisor.probes.servers import (
    Handler,
    Server,
    answer,
    endless,
    raw,
    serve,
    unused_port,
)

NOWHERE = "http://127.0.0.1:1"


async def run_http(server: Server, *checks: dict[str, Any]) -> list[CheckResult]:
    plan = SmokePlan.model_validate(
        {"http": [{"name": f"check {n}", "path": "/", **c} for n, c in enumerate(checks)]}
    )
    return await run_smoke(plan, base_url=server.url, env={}, directory=Path(), deploy_id="d-1")


async def run_command(
    *run: str, directory: Path, timeout_seconds: float = 20, env: dict[str, str] | None = None
) -> CheckResult:
    check = {"name": "a command", "run": list(run), "timeout_seconds": timeout_seconds}
    plan = SmokePlan.model_validate({"command": [check]})
    (result,) = await run_smoke(
        plan,
        base_url=NOWHERE,
        env={"PATH": os.environ["PATH"]} if env is None else env,
        directory=directory,
        deploy_id="d-1",
    )
    return result


def pids_below(folder: Path) -> list[int]:
    return [int(path.read_text() or 0) for path in folder.glob("*/pid")]


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Tell whether it runs; a zombie waits for init, and does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# Requests


async def test_a_request_carries_what_it_was_told_and_the_mark_of_a_smoke_test() -> None:
    async with serve(answer()) as server:
        results = await run_http(
            server,
            {"path": "/a?b=%20c", "headers": {"X-Mine": "1", "x-atlas-smoke": "forged"}},
            {"method": "POST", "json": {"a": [1]}},
            {"method": "PUT", "body": "grüß"},
        )
    assert all(result.ok for result in results)
    get, post, put = server.requests
    assert get.startswith(b"GET /a?b=%20c HTTP/1.1\r\n")
    assert b"X-Mine: 1\r\n" in get
    assert b"forged" not in get
    assert all(b"X-Atlas-Smoke: d-1\r\n" in request for request in server.requests)
    assert b"Content-Type: application/json" in post
    assert post.endswith(b'{"a": [1]}')
    assert put.startswith(b"PUT /")
    assert put.endswith("grüß".encode())


JSON = json.dumps({"status": "ok", "db": {"up": True, "n": 1}, "list": [{"a": 1, "b": 2}]})


@pytest.mark.parametrize(
    "expect",
    [
        {},
        {"contains": '"db"'},
        {"json": {"status": "ok"}},
        {"json": {"db": {"up": True}}},
        {"json": {"db": {"n": 1.0}}},
        {"json": {"list": [{"a": 1}]}},
        {"json": {}},
        {"max_ms": 5000},
    ],
)
async def test_an_answer_as_expected_passes(expect: dict[str, Any]) -> None:
    async with serve(answer(JSON.encode())) as server:
        (result,) = await run_http(server, {"expect": expect})
    assert result.ok, result
    assert result.verdict is Verdict.PASS
    assert result.message == "GET /: as expected"


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        ({"status": 201}, "status is 200, expected 201"),
        ({"contains": "atlas"}, '"atlas" is not in the body'),
        ({"json": {"status": "fail"}}, 'json.status is "ok", expected "fail"'),
        ({"json": {"db": {"up": 1}}}, "json.db.up is true, expected 1"),
        ({"json": {"db": {"n": True}}}, "json.db.n is 1, expected true"),
        ({"json": {"gone": 1}}, "json.gone is missing, expected 1"),
        ({"json": {"list": []}}, "expected []"),
        ({"json": {"list": [{"a": 2}]}}, "json.list[0].a is 1, expected 2"),
        ({"json": [1]}, "expected [1]"),
        ({"max_ms": 0.001}, "expected at most 0.001 ms"),
    ],
)
async def test_what_is_not_as_expected_is_said(expect: dict[str, Any], words: str) -> None:
    async with serve(answer(JSON.encode())) as server:
        (result,) = await run_http(server, {"expect": expect})
    assert not result.ok
    assert words in result.message
    assert "status 200" in result.got


async def test_each_thing_that_is_wrong_is_a_problem_of_its_own() -> None:
    async with serve(answer(JSON.encode())) as server:
        failed, passed = await run_http(
            server, {"expect": {"status": 201, "json": {"status": "fail"}}}, {}
        )
    assert failed.problems == [
        "status is 200, expected 201",
        'json.status is "ok", expected "fail"',
    ]
    assert failed.message == f"GET /: {'; '.join(failed.problems)}"
    assert passed.problems == []


async def test_a_failing_answer_is_kept_with_the_headers_that_may_tell_why() -> None:
    headers = f"location: /sign-in\r\nSet-Cookie: secret\r\nAllow: {'GET, ' * 100}\r\n"
    async with serve(answer(status="302 Found", headers=headers)) as server:
        failed, passed = await run_http(server, {}, {"expect": {"status": 302}})
    assert failed.headers["Location"] == "/sign-in"
    assert set(failed.headers) == {"Location", "Allow"}
    assert len(failed.headers["Allow"]) == 200
    assert passed.headers == {}


async def test_a_redirect_is_an_answer_and_not_followed() -> None:
    async with serve(answer(status="302 Found", headers="Location: /x\r\n")) as server:
        (result,) = await run_http(server, {"expect": {"status": 302}})
    assert result.ok
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 100_000, b'{"a": nope}'])
async def test_a_body_that_is_no_json_fails(body: bytes) -> None:
    async with serve(answer(body)) as server:
        (result,) = await run_http(server, {"expect": {"json": {"a": 1}}})
    assert not result.ok
    assert "the body is no JSON" in result.message


async def test_all_are_run_even_if_one_fails(tmp_path: Path) -> None:
    plan = SmokePlan.model_validate(
        {
            "http": [{"name": "a", "path": "/"}, {"name": "b", "path": "/"}],
            "command": [{"name": "c", "run": ["false"]}, {"name": "d", "run": ["true"]}],
        }
    )
    async with serve(answer(status="500 No")) as server:
        results = await run_smoke(
            plan, base_url=server.url, env=dict(os.environ), directory=tmp_path, deploy_id="d-1"
        )
    assert [(r.name, r.kind, r.ok) for r in results] == [
        ("a", "http", False),
        ("b", "http", False),
        ("c", "command", False),
        ("d", "command", True),
    ]
    assert results[2].message == "false: exit 1"


LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (raw(b"", hold=True), "no answer within 0.2 s"),
        (raw(LONG, hold=True), "answered 200, but the body did not end"),
        (raw(b"garbage\r\n\r\n"), "not HTTP"),
        (raw(b""), "without an answer"),
    ],
)
async def test_no_whole_answer_is_a_failure(handler: Handler, words: str) -> None:
    async with serve(handler) as server:
        (result,) = await run_http(server, {"timeout_seconds": 0.2})
    assert (result.ok, result.got) == (False, "no complete answer")
    assert words in result.message


async def test_only_the_beginning_of_an_endless_answer_is_looked_at() -> None:
    async with serve(endless(b"atlas" * 10_000, head=LONG)) as server:
        found, missing, parsed = await run_http(
            server,
            {"expect": {"contains": "atlas"}},
            {"expect": {"contains": "other"}},
            {"expect": {"json": {"a": 1}}},
        )
    assert found.ok
    assert '"other" is not in the first 1048576 bytes' in missing.message
    assert "was not read as JSON" in parsed.message
    assert len(found.got) < 1000


async def test_nobody_there_is_a_failure() -> None:
    (result,) = await run_http(Server(unused_port()), {})
    assert not result.ok
    assert "connection refused" in result.message


async def test_what_is_shown_of_an_answer_can_not_steer_a_terminal() -> None:
    async with serve(answer(b"\x1b[2J\r\x00\xff\xe2\x80\xae ok")) as server:
        (result,) = await run_http(server, {})
    assert result.got.isprintable()
    assert "\\x1b[2J" in result.got


# Commands


async def test_a_command_that_exits_with_0_passes(tmp_path: Path) -> None:
    result = await run_command("sh", "-c", "echo out; echo err >&2", directory=tmp_path)
    assert (result.ok, result.verdict, result.message) == (True, Verdict.PASS, "sh: exit 0")
    assert result.got == "out\nerr"
    assert result.expected == "exit 0 within 20 s"


async def test_a_command_gets_its_environment_its_folder_and_no_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "secret")
    result = await run_command(
        "/bin/sh",
        "-c",
        'echo "$PWD $MINE $ATLAS_STAGING_URL"; cat; [ -z "$OURS" ]',
        directory=tmp_path,
        env={"MINE": "mine", "PATH": os.environ["PATH"]},
    )
    assert result.ok
    assert result.got == f"{tmp_path} mine {NOWHERE}"


async def test_a_program_is_looked_for_in_the_path_of_the_worker(tmp_path: Path) -> None:
    (tmp_path / "only-here").write_text("#!/bin/sh\necho here\n")
    (tmp_path / "only-here").chmod(0o755)
    found = await run_command("only-here", directory=tmp_path, env={"PATH": str(tmp_path)})
    beside = await run_command("./only-here", directory=tmp_path)
    missing = await run_command("only-here", directory=tmp_path)
    assert found.ok
    assert beside.ok
    assert "no such program" in missing.message


async def test_a_program_that_can_not_be_started_is_a_clear_failure(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    for run, directory, words in [
        (str(tmp_path), tmp_path, "Permission denied"),
        (str(tmp_path / "text"), tmp_path, "Exec format error"),
        ("true", tmp_path / "gone", "is not there"),
    ]:
        result = await run_command(run, directory=directory)
        assert not result.ok
        assert result.got == "not started"
        assert words in result.message


async def test_a_command_ended_by_a_signal_fails(tmp_path: Path) -> None:
    result = await run_command("sh", "-c", "kill -9 $$", directory=tmp_path)
    assert not result.ok
    assert result.message == "sh: ended by SIGKILL"


FAMILY = """
trap '' TERM INT HUP
sleep 1000 & echo $! > pids
(sleep 1000 & echo $! >> pids)
echo $$ >> pids
echo begun
"""


async def family(tmp_path: Path) -> list[int]:
    """Wait until a whole family of processes runs, and return their ids."""
    path = tmp_path / "pids"
    await eventually(lambda: path.exists() and len(path.read_text().splitlines()) == 3)
    return [int(pid) for pid in path.read_text().split()]


async def test_time_up_ends_the_whole_group(tmp_path: Path) -> None:
    started = time.monotonic()
    result = await run_command(
        "sh", "-c", FAMILY + "wait; sleep 1000", directory=tmp_path, timeout_seconds=0.5
    )
    assert time.monotonic() - started < 5
    assert not result.ok
    assert result.message == "sh: not done within 0.5 s, and stopped"
    assert result.got == "begun"
    pids = await family(tmp_path)
    await eventually(lambda: not any(map(is_alive, pids)))


async def test_what_a_command_leaves_running_is_ended_with_it(tmp_path: Path) -> None:
    started = time.monotonic()
    result = await run_command("sh", "-c", FAMILY + "exit 0", directory=tmp_path)
    assert time.monotonic() - started < 5
    assert (result.ok, result.got) == (True, "begun")
    pids = await family(tmp_path)
    await eventually(lambda: not any(map(is_alive, pids)))


async def test_cancellation_ends_the_whole_group(tmp_path: Path) -> None:
    # As the daemon cancels: asyncio's own way could meet a start that is still under way, and
    # asyncio then ends the first process alone.
    async with anyio.create_task_group() as tasks:
        script = FAMILY + "wait; sleep 1000"
        tasks.start_soon(partial(run_command, "sh", "-c", script, directory=tmp_path))
        pids = await family(tmp_path)
        tasks.cancel_scope.cancel()
    await eventually(lambda: not any(map(is_alive, pids)))


async def test_cancellation_at_any_early_moment_leaves_nothing(tmp_path: Path) -> None:
    for moment in range(12):
        folder = tmp_path / str(moment)
        folder.mkdir()
        task = asyncio.create_task(
            run_command("sh", "-c", "echo $$ > pid; exec sleep 1000", directory=folder)
        )
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not any(map(is_alive, pids_below(tmp_path)))


async def test_a_daemon_that_keeps_the_output_open_does_not_hold_us(tmp_path: Path) -> None:
    script = "setsid sleep 1000 & echo $! > pid; echo done"
    started = time.monotonic()
    result = await run_command("sh", "-c", script, directory=tmp_path)
    assert time.monotonic() - started < 5
    assert (result.ok, result.got) == (True, "done")
    os.kill(int((tmp_path / "pid").read_text()), 9)


async def test_a_flood_of_output_is_not_kept(tmp_path: Path) -> None:
    script = "import sys\nfor _ in range(1600): sys.stdout.write('x' * 65536)\nprint('the end')"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = await run_command(sys.executable, "-c", script, directory=tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert result.ok
    assert result.got.endswith("the end")
    assert len(result.got) <= 600
    assert grown < 20_000  # kB, of the 100 MB that came


async def test_output_that_is_no_text_is_made_printable(tmp_path: Path) -> None:
    result = await run_command("printf", r"\033[31m\000\377ok", directory=tmp_path)
    assert result.got == "\\x1b[31m\\x00\N{REPLACEMENT CHARACTER}ok"


async def test_our_own_lack_of_descriptors_is_not_the_releases_fault(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        result = await run_command("true", directory=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (result.ok, result.verdict) == (False, Verdict.INCONCLUSIVE)
    assert "the supervisor itself" in result.message
