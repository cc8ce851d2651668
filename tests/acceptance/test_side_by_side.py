"""The suite's own processes: no failure is lost, and no test is left out or run twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.support import ROOT

pytestmark = pytest.mark.timeout(120)

TESTS = """
import os, signal, sys, time, pytest

@pytest.fixture(scope="module")
def shared():
    yield os.getpid()

def note(what):
    with open("ran", "a") as file:
        file.write(f"{what}\\n")

@pytest.mark.parametrize("number", range(20))
def test_passes(number, tmp_path):
    note(f"{number} {tmp_path}")

def test_fails(capsys):
    print("captured")
    assert capsys.readouterr().out == "captured\\n"
    print("printed")
    assert False

def test_dies():
    os.kill(os.getpid(), signal.SIGKILL)

def test_after_one_that_dies():
    note("after")

def test_leaves_an_error_behind(request):
    request.addfinalizer(lambda: 1 / 0)

@pytest.mark.skip
def test_skipped():
    note("skipped")

@pytest.mark.parametrize("number", range(9))
def test_share_a_fixture(shared, number):
    note("together" if os.getpid() == shared else "apart")
    note(f"in {shared}")

class Careless:
    def __del__(self):
        raise ValueError("in vain")

@pytest.mark.filterwarnings("error")
def test_cannot_be_destroyed():
    Careless()
"""


def outcome(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = (sys.executable, "-m", "pytest", "-p", "tests.side_by_side", "-p", "no:schemathesis")
    with subprocess.Popen(
        (*program, "-c", os.devnull, "--rootdir", ".", "--processes", "3", *arguments, "."),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        try:
            out, _ = run.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGABRT)  # it shows where it is
            raise AssertionError(run.communicate()[0]) from None
    return subprocess.CompletedProcess(run.args, run.returncode, out, "")


def test_every_test_is_run_once_and_every_failure_reported(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    run = outcome(tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "3 failed, 31 passed, 1 skipped, 1 error" in run.stdout
    for line in (
        "FAILED test_some.py::test_dies - its process ended with -9",
        "FAILED test_some.py::test_fails - assert False",
        "FAILED test_some.py::test_cannot_be_destroyed",
        "ERROR test_some.py::test_leaves_an_error_behind - ZeroDivisionError",
        "printed",
    ):
        assert line in run.stdout
    ran = (tmp_path / "ran").read_text().splitlines()
    passed = [line.split() for line in ran if line[0].isdigit()]
    assert sorted(int(number) for number, _ in passed) == list(range(20))
    assert len({folder for _, folder in passed}) == 20
    assert len({Path(folder).parent for _, folder in passed}) > 1  # processes
    assert ran.count("together") == 9
    assert len({line for line in ran if line.startswith("in ")}) == 1
    assert ran.count("after") == 1


def test_the_first_failure_ends_a_run_that_is_to_stop_there(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import time, pytest\n"
        "def test_fails(): assert False\n"
        "@pytest.mark.parametrize('number', range(50))\n"
        "def test_waits(number): time.sleep(0.1)\n"
    )
    run = outcome(tmp_path, "--exitfirst")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "stopping after 1 failures" in run.stdout
    assert "1 failed, 51 passed" not in run.stdout
