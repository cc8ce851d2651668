"""No catchable signal ends the daemon but SIGTERM and SIGINT, from its first line on."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from atlas_supervisor.system import signals

RUN = """
import os, signal, sys
import atlas_supervisor.__main__, atlas_supervisor.main
from atlas_supervisor.system import signals

def run():  # as the program does before its event loop runs
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP,
            signal.SIGTTIN, signal.SIGTTOU, signal.SIGTERM, signal.SIGINT}:
        os.kill(os.getpid(), number)
    seen = []
    signals.report(seen.append)
    os.kill(os.getpid(), signal.SIGHUP)
    print(*map(signals.name_of, seen))
    return 0

atlas_supervisor.main.main = run
status = atlas_supervisor.__main__.main()
sys.stdout.flush()
if len(sys.argv) > 1:
    os.kill(os.getpid(), int(sys.argv[1]))
sys.exit(status)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False
    )


def test_every_signal_is_ignored_and_those_that_can_be_are_kept_for_the_log() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    names = done.stdout.split()
    for name in ("HUP", "QUIT", "USR1", "USR2", "ALRM", "VTALRM", "PROF", "XCPU", "ABRT", "RTMIN"):
        assert f"SIG{name}" in names
    assert names[-1] == "SIGHUP"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_end_it(number: signal.Signals) -> None:
    assert run(str(number.value)).returncode in {-number, 1}


def test_a_parent_that_blocked_signals_does_not_make_it_unstoppable() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        assert run(str(signal.SIGTERM.value)).returncode == -signal.SIGTERM
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_fault_of_its_own_ends_it_even_so() -> None:
    code = (
        "import ctypes; from atlas_supervisor.system.signals import ignore_signals\n"
        "ignore_signals(); ctypes.string_at(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGSEGV


def test_real_time_signals_have_a_name_too() -> None:
    assert signals.name_of(signal.SIGRTMIN + 1) == f"signal {signal.SIGRTMIN + 1}"
