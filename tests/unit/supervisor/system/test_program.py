"""A program that executes itself anew: what it keeps, and what it gives back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FIRST = """
import json, os, resource, signal, socket, subprocess, sys, threading, time
from atlas_supervisor.system import signals
from atlas_supervisor.system.passed_sockets import receive
from atlas_supervisor.system.program import Program, is_reloaded

again = is_reloaded()
signals.ignore_signals(reloaded=again)
passed, program = receive(), Program()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if not again:
    os.environ["SET_BY_THE_FIRST"] = "1"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    child = subprocess.Popen(["true"])
    listener = socket.create_server(("127.0.0.1", 0))
    with signals.kept() as pipe:
        MEANWHILE
        program.execute({"public": listener.fileno(), "signals": pipe})
asked = []
signal.signal(signal.SIGTERM, lambda number, _: asked.append(signal.Signals(number).name))
signal.signal(signal.SIGHUP, lambda number, _: asked.append(signal.Signals(number).name))
before = list(asked)
signals.repeat(passed.take_descriptor("signals"))
signals.handled()
print(json.dumps({
    "pid": os.getpid(),
    "arguments": sys.argv[1:],
    "port": bool(passed.take("public").getsockname()[1]),
    "unused": sorted(passed.close()),
    "open_files": soft,
    "environment": sorted(name for name in os.environ if name not in os.environ["KNOWN"].split()),
    "asked_early": before,
    "asked": sorted(set(asked)),
    "child": os.waitpid(-1, 0)[1],
}))
"""
IN_ANOTHER_THREAD = """
        import fcntl, struct, termios
        def read():
            return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
        signal.signal(signal.SIGTERM, lambda *_: None)
        ready = threading.Event()
        def take_signals():
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            ready.set()
            time.sleep(60)
        threading.Thread(target=take_signals, daemon=True).start()
        ready.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        while not read():
            time.sleep(0.001)
"""


def run(folder: Path, meanwhile: str) -> dict[str, object]:
    """Run the program, which executes itself, and return what it reports then."""
    path = folder / "program.py"
    path.write_text(FIRST.replace("        MEANWHILE", meanwhile or "        pass"))
    environment = {"PATH": os.environ["PATH"], "GIVEN": "yes"}
    environment["KNOWN"] = "KNOWN LC_CTYPE PATH PWD"
    with subprocess.Popen(
        ["sh", "-c", 'ulimit -S -n 200; exec "$@"', "sh", sys.executable, path, "a b", "--option"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        output, _ = process.communicate(timeout=30)
        found: dict[str, object] = json.loads(output)
        assert found.pop("pid") == process.pid
    return found


def test_the_next_program_has_the_same_process_arguments_environment_and_children(
    tmp_path: Path,
) -> None:
    assert run(tmp_path, "") == {
        "arguments": ["a b", "--option"],
        "port": True,
        "unused": [],
        "open_files": 200,
        "environment": ["GIVEN"],
        "asked_early": [],
        "asked": [],
        "child": 0,
    }


def test_signals_that_arrive_during_the_exec_reach_the_next_program(tmp_path: Path) -> None:
    both = (
        "        os.kill(os.getpid(), signal.SIGTERM)\n        os.kill(os.getpid(), signal.SIGHUP)"
    )
    found = run(tmp_path, both)

    assert found["asked_early"] == []
    assert found["asked"] == ["SIGHUP", "SIGTERM"]


def test_a_signal_that_another_thread_takes_reaches_the_next_program_too(tmp_path: Path) -> None:
    found = run(tmp_path, IN_ANOTHER_THREAD)

    assert found["asked"] == ["SIGTERM"]


def test_an_exec_that_fails_changes_nothing() -> None:
    code = """
import os, resource, signal, socket
from atlas_supervisor.system import signals
from atlas_supervisor.system.program import Program
program = Program()
program.command = ("/nowhere/python",)
listener = socket.create_server(("127.0.0.1", 0))
seen = []
signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
before = resource.getrlimit(resource.RLIMIT_NOFILE), os.listdir("/proc/self/fd")
try:
    with signals.kept() as pipe:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not seen
        program.execute({"public": listener.fileno(), "signals": pipe})
except FileNotFoundError:
    assert seen == [signal.SIGTERM]
    assert not os.get_inheritable(listener.fileno())
    after = resource.getrlimit(resource.RLIMIT_NOFILE), os.listdir("/proc/self/fd")
    print("as before" if before == after else (before, after))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "as before\n"
