"""WORKER_USER: a daemon that root runs, and workers of another user."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.support import start_again
from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import everything_agrees, get, public_version, release, rows

pytestmark = pytest.mark.needs_root

ROOT = Path(__file__).parents[2]
OWNER = ROOT.stat().st_uid
USER = pwd.getpwuid(OWNER) if OWNER else pwd.getpwuid(65534)
"""One that can run what is in the repository, if there is one."""
SMOKE = """
[[command]]
name = "who"
run = ["sh", "-c", "echo $(id -u) $(id -G) $USER $HOME; test $(id -u) != 0"]
"""
ATTACK = """
import os, socket, sys
folder, *paths = sys.argv[1:]
def attempt(name, act):
    try:
        act()
    except OSError as error:
        print(name, error.strerror)
    else:
        print(name, "done")
attempt("token", lambda: open(f"{folder}/control.token").read())
attempt("database", lambda: open(f"{folder}/atlas.db", "rb").read())
attempt("log", lambda: os.listdir(f"{folder}/logs"))
attempt("socket", lambda: socket.socket(socket.AF_UNIX).connect(f"{folder}/supervisor.sock"))
attempt("plant", lambda: open(f"{folder}/planted", "w"))
attempt("replace", lambda: os.rename(f"{folder}/canary", f"{folder}/other"))
attempt("state", lambda: open(f"{folder}/deploy_state.json").read())
"""


def as_user(*command: str, **more: Any) -> str:
    """Run a program as workers run."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command,
        user=USER.pw_uid,
        group=USER.pw_gid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        **more,
    )
    return done.stdout


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter, unlike tmp_path."""
    path = Path(tempfile.mkdtemp(prefix="atlas user "))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def daemon_of_two_users(
    folder: Path, settings: dict[str, Setting] | None = None, **more: Any
) -> AsyncIterator[DaemonProcess]:
    """A daemon of root, the scripted worker of another user; both programs are within reach."""
    scripted = (ROOT / "tests/apps/scripted.py").read_text()
    own: dict[str, Setting] = {
        "WORKER_USER": USER.pw_name,
        "WORKER_COMMAND": "/usr/bin/python3 -S scripted.py",
        "STOP_TIMEOUT_SECONDS": 2,
        **(settings or {}),
    }
    async with DaemonProcess.running(
        folder, own, files={"scripted.py": scripted}, **more
    ) as daemon:
        yield daemon


def identity(pid: int) -> tuple[set[str], set[str], str]:
    """Return a process's uids, gids and further groups."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.partition(":\t")[::2] for line in lines)
    return set(status["Uid"].split()), set(status["Gid"].split()), status["Groups"].strip()


async def test_workers_and_smoke_commands_run_as_that_user_and_reach_nothing_of_the_daemon(
    folder: Path,
) -> None:
    (folder / "smoke.toml").write_text(SMOKE)
    settings: dict[str, Setting] = {"SMOKE_FILE": folder / "smoke.toml"}
    async with daemon_of_two_users(folder, settings) as daemon:
        uid, gid = str(USER.pw_uid), str(USER.pw_gid)
        for pid in daemon.leftovers():
            assert identity(pid) == ({uid}, {gid}, gid)
        release(daemon, "v2", kit=True, say="hello")
        answer = await daemon.deploy()
        assert answer.json["result"] == "switched"
        (smoke,) = [step for step in answer.json["steps"] if step["name"] == "smoke"]
        said = smoke["detail"]["checks"][0]["got"]
        assert said == f"{uid} {gid} {USER.pw_name} {USER.pw_dir}"
        assert "hello" in (daemon.state_dir / "logs" / "worker-green.log").read_text()
        found = as_user("/usr/bin/python3", "-c", ATTACK, str(daemon.state_dir)).splitlines()
        assert found == [
            *("token Permission denied", "database Permission denied", "log Permission denied"),
            *("socket Permission denied", "plant Permission denied", "replace Permission denied"),
            "state done",
        ]
        await everything_agrees(daemon)


async def test_a_successor_goes_on_with_workers_of_another_user(
    folder: Path,
) -> None:
    async with daemon_of_two_users(folder) as daemon:
        before = daemon.leftovers()
        await daemon.kill()
        assert await public_version(daemon) == "v1"
        await start_again(daemon)
        assert await public_version(daemon) == "v1"
        assert daemon.leftovers() == before
        os.kill(before[0], signal.SIGKILL)  # of a process of another user, its end is seen as well
        await eventually(lambda: before[0] not in daemon.leftovers() and daemon.leftovers())
        assert await public_version(daemon) == "v1"
        await everything_agrees(daemon)


async def test_the_kit_and_its_rings_work_across_the_two_users(folder: Path) -> None:
    if as_user("/bin/sh", "-c", '"$0" -c "print(1)"', sys.executable) != "1\n":
        pytest.skip(f"{USER.pw_name} can't reach {sys.executable}")
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": "python -m atlas_worker",
        "CANARY_ENABLED": "true",
        "CANARY_PERCENTAGE": 0.5,
    }
    call = "from atlas_worker import canary\nwith canary.call('vision'): pass"
    async with daemon_of_two_users(folder, settings) as daemon:
        as_user(sys.executable, "-c", call, env={"ATLAS_STATE_DIR": str(daemon.state_dir)})

        async def settled() -> bool:
            stats = (await daemon.status())["canary_stats"]
            checks = (await daemon.request("GET", "/health")).json["checks"]
            counted = stats["canary"]["calls"] + stats["stable"]["calls"] == 1
            kit = rows(daemon, "SELECT kit FROM instances") == [(1,)]
            return counted and kit and checks["memory"]["status"] == "pass"

        async with asyncio.timeout(10):
            while not await settled():  # noqa: ASYNC110  # another process's
                await asyncio.sleep(0.05)


async def test_a_launcher_without_the_daemon_gives_up_root_too(folder: Path) -> None:
    daemon = DaemonProcess(
        folder,
        {"WORKER_USER": USER.pw_name, "WORKER_COMMAND": "/usr/bin/python3 -S scripted.py"},
        files={"scripted.py": (ROOT / "tests/apps/scripted.py").read_text()},
    )
    daemon.write_settings()
    launcher = ROOT / "scripts/service_launcher.py"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(launcher), "--env-file", str(daemon.env_file)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port = int(str(daemon.settings["ACTIVE_PORT"]))
        async with asyncio.timeout(30):
            while True:
                try:
                    assert (await get(port))[1]["pid"] == process.pid
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        assert identity(process.pid)[0] == {str(USER.pw_uid)}
    finally:
        process.kill()
        await process.wait()


def test_git_runs_as_the_worker_user_never_as_root(folder: Path) -> None:
    from atlas_supervisor.system.account import Account
    from atlas_supervisor.workers.release_version import version_of

    work = folder / "work"
    work.mkdir()
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "one"), ("tag", "v7")):
        subprocess.run((*git, *command), cwd=work, check=True)
    # A filter is a program that a look for changed files starts.
    (work / "file").write_text("content")
    (work / ".gitattributes").write_text("file filter=spy\n")
    subprocess.run((*git, "add", "file"), cwd=work, check=True)
    spied = folder / "spied"
    spied.touch()
    spied.chmod(0o666)
    (work / "file").write_text("changed")
    subprocess.run(
        (*git, "config", "filter.spy.clean", f"sh -c 'id -u >> \"{spied}\"; cat'"),
        cwd=work,
        check=True,
    )
    found = version_of(work, "named", account=Account.named(USER.pw_name))
    assert found.version == "v7-dirty", found
    assert set(spied.read_text().split()) == {str(USER.pw_uid)}


@pytest.mark.parametrize(
    ("user", "why"),
    [
        ("no-such-user", "there is no such user"),
        ("root", "it is root"),
        ("member-of-root", "it is in group root"),
    ],
)
async def test_a_user_that_protects_nothing_is_refused(
    folder: Path, user: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_supervisor.config import load_settings
    from atlas_supervisor.errors import SettingsError

    if user == "member-of-root":
        user = USER.pw_name
        monkeypatch.setattr(os, "getgrouplist", lambda _name, gid: [gid, 0])
    daemon = DaemonProcess(folder, {"WORKER_USER": user})
    daemon.write_settings()
    with pytest.raises(SettingsError, match=f"WORKER_USER={user}: accepted: .*{why}"):
        load_settings(daemon.env_file, {})


async def test_an_env_file_or_a_token_that_the_user_can_use_is_refused(folder: Path) -> None:
    from atlas_supervisor.config import load_settings
    from atlas_supervisor.errors import SettingsError

    token = folder / "token"
    token.write_text("a-token-of-some-length\n")
    token.chmod(0o640)
    os.chown(token, -1, USER.pw_gid)
    daemon = DaemonProcess(folder, {"WORKER_USER": USER.pw_name, "CONTROL_TOKEN_FILE": token})
    with pytest.raises(AssertionError, match="the daemon ended with 1"):
        await daemon.start()
    await daemon.clean_up()
    assert f"readable by WORKER_USER={USER.pw_name}" in (folder / "daemon.out").read_text()
    daemon.env_file.chmod(0o666)
    with pytest.raises(SettingsError, match="may write it"):
        load_settings(daemon.env_file, {})


async def test_a_state_folder_of_workers_that_ran_as_root_is_handed_over(folder: Path) -> None:
    kept = folder / "state" / "worker"
    kept.mkdir(parents=True)
    (kept / "memory.db").touch()
    outside = folder / "outside"
    outside.touch()
    (kept / "link").symlink_to(outside)
    os.link(outside, kept / "hard")
    async with daemon_of_two_users(folder):
        assert (kept / "memory.db").stat().st_uid == USER.pw_uid
        assert outside.stat().st_uid == 0
