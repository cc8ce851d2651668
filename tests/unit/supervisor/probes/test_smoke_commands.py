from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import pytest

from atlas_supervisor.config.smoke_file import SmokePlan
from atlas_supervisor.model.probe import CheckResult
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.http_client import RequestShape
from atlas_supervisor.probes.smoke import run_smoke

NOWHERE = "http://127.0.0.1:1"


async def run_command(
    *run: str, directory: Path, timeout_seconds: float = 20, env: dict[str, str] | None = None
) -> CheckResult:
    check = {"name": "a command", "run": list(run), "timeout_seconds": timeout_seconds}
    plan = SmokePlan.model_validate({"command": [check]})
    (result,) = await run_smoke(
        plan,
        base_url=NOWHERE,
        headers=RequestShape().headers_for(1),
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
    """Return whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


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


async def test_a_program_is_found_in_the_workers_path(tmp_path: Path) -> None:
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
        ("true", tmp_path / "gone", "does not exist"),
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


async def test_processes_that_a_command_leaves_running_are_ended(tmp_path: Path) -> None:
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
