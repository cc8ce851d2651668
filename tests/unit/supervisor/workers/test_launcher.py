from __future__ import annotations

import itertools
import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_supervisor.system import procfs
from atlas_supervisor.workers.launch import LAUNCHER
from atlas_supervisor.workers.launcher import find

REPORT = """
import json, os, resource, signal
fds = {}
for name in os.listdir("/proc/self/fd"):
    try:
        stat = os.fstat(int(name))
    except OSError:
        continue
    fds[name] = stat.st_ino
print(json.dumps({
    "fds": fds,
    "pid": os.getpid(),
    "env": dict(os.environ),
    "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
}))
"""
PLACE = f"""
import os, sys
sys.path.insert(0, {str(LAUNCHER.parent)!r})
import launcher
source = [os.open(path, os.O_RDONLY) for path in sys.argv[2:]]
numbers = [int(number) for number in sys.argv[1].split(",")]
away = [os.dup2(fd, 100 + index) for index, fd in enumerate(source)]
for fd, number in zip(away, numbers):
    os.dup2(fd, number)
for fd in [*away, *(fd for fd in source if fd not in numbers)]:
    os.close(fd)
launcher.place(numbers)
print(*(os.fstat(3 + index).st_ino for index in range(len(numbers))))
print(*sorted(set(map(int, os.listdir("/proc/self/fd"))) - {{0, 1, 2}})[:-1])
"""


def run(
    *arguments: str, pass_fds: tuple[int, ...] = (), **more: object
) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-I", "-S", str(LAUNCHER), *arguments],
        capture_output=True,
        text=True,
        pass_fds=pass_fds,
        check=False,
        timeout=20,
        **more,  # type: ignore[call-overload]  # what run() takes
    )
    return done


@pytest.mark.parametrize(
    "numbers",
    [*itertools.permutations((3, 4, 5)), (5, 6, 3), (20, 3, 4), (4, 63, 64), (64, 65, 3), (9,)],
)
def test_descriptors_land_in_order_independent_of_their_numbers(
    numbers: tuple[int, ...], tmp_path: Path
) -> None:
    paths = [tmp_path / str(index) for index in range(len(numbers))]
    for path in paths:
        path.touch()
    listed = ",".join(map(str, numbers))
    done = subprocess.run(
        [sys.executable, "-c", PLACE, listed, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    inodes, left = done.stdout.splitlines()
    assert [int(inode) for inode in inodes.split()] == [path.stat().st_ino for path in paths]
    assert [int(number) for number in left.split()] == list(range(3, 3 + len(numbers)))


def test_the_worker_finds_its_sockets_announced_to_itself() -> None:
    reader, writer = os.pipe()
    try:
        done = run(
            f"{writer},{reader}", "2", "512", "77", "-", sys.executable, "-c", REPORT,
            pass_fds=(reader, writer),
            env={**os.environ, "LISTEN_FDNAMES": "public:private"},
        )  # fmt: skip
        report = json.loads(done.stdout)
        assert report["env"]["LISTEN_FDS"] == "2"
        assert report["env"]["LISTEN_PID"] == str(report["pid"])
        assert report["env"]["LISTEN_FDNAMES"] == "public:private"
        assert report["open_files"] == 512
        assert report["fds"]["3"] == os.fstat(writer).st_ino
        assert report["fds"]["4"] == os.fstat(reader).st_ino
        assert set(report["fds"]) == {"0", "1", "2", "3", "4"}
    finally:
        os.close(reader)
        os.close(writer)


def test_nothing_is_announced_that_was_not_asked_for() -> None:
    done = run(
        "-", "0", "512", "77", "-", sys.executable, "-c", REPORT, env={"PATH": os.environ["PATH"]}
    )
    report = json.loads(done.stdout)
    assert not any(name.startswith("LISTEN_") for name in report["env"])
    assert set(report["fds"]) == {"0", "1", "2"}


def test_the_worker_starts_with_default_dispositions_and_an_empty_mask() -> None:
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER), "-", "0", "512", "77", "-"]
    spoiled = (
        "import os, signal, sys\n"
        "left = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}\n"
        "[signal.signal(number, signal.SIG_IGN) for number in left]\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, left)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    # A program other than Python, which would ignore SIGPIPE and SIGXFSZ again.
    command = [*launcher, "/bin/cat", "/proc/self/status"]
    done = subprocess.run(
        [sys.executable, "-c", spoiled, *command], capture_output=True, text=True, check=True
    )
    status = dict(line.split(":\t") for line in done.stdout.splitlines() if ":\t" in line)
    assert {int(status[name], 16) for name in ("SigIgn", "SigBlk", "SigCgt")} == {0}


def test_the_worker_and_its_descendants_carry_the_tag() -> None:
    code = "import os; print(os.getpid(), flush=True); os.read(0, 1)"
    with subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", str(LAUNCHER), "-", "0", "512", "77", "-"),
            *("/bin/sh", "-c", f"exec env -i setsid -w {shlex.join((sys.executable, '-c', code))}"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        assert procfs.tag_of(int(worker.stdout.readline())) == 77
        worker.communicate("x")


def test_a_missing_program_is_reported() -> None:
    done = run("-", "0", "512", "77", "-", "no-such-program", env={"PATH": "/bin:/usr/bin"})
    assert done.returncode == 127
    assert done.stderr == "no-such-program: not found in /bin:/usr/bin\n"


def test_a_file_that_is_no_program_is_reported(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a program")
    done = run("-", "0", "512", "77", "-", "./notes", cwd=tmp_path)
    assert done.returncode == 126
    assert done.stderr == "./notes: can't be executed: Permission denied\n"


def test_a_script_without_its_interpreter_is_not_replaced_by_another_of_its_name(
    tmp_path: Path,
) -> None:
    for folder, first in (("release", "#!/no/such/python"), ("daemon", "#!/bin/sh\necho wrong")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "serve").write_text(first + "\n")
        (tmp_path / folder / "serve").chmod(0o755)
    path = f"{tmp_path}/release:{tmp_path}/daemon"
    done = run("-", "0", "512", "77", "-", "serve", env={"PATH": path})
    assert done.returncode == 127
    assert done.stdout == ""
    assert f"{tmp_path}/release/serve" in done.stderr


def test_only_executable_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("folder", "plain", "program"):
        (tmp_path / folder).mkdir()
    (tmp_path / "folder" / "serve").mkdir()
    (tmp_path / "plain" / "serve").touch(mode=0o644)
    (tmp_path / "program" / "serve").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/folder:{tmp_path}/plain:{tmp_path}/program")
    assert find("serve") == f"{tmp_path}/program/serve"
    assert find("./serve") == "./serve"
    assert find("other") is None


def test_the_soft_limit_of_open_files_is_lowered_and_the_hard_limit_stays() -> None:
    code = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    done = run("-", "0", "256", "77", "-", sys.executable, "-c", code)
    assert done.stdout.split() == ["256", str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])]
