"""The console of a real process: its standard error is a pipe, or a socket as under systemd."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atlas_supervisor.telemetry.handlers import is_journal

SCRIPT = """
import sys
from pathlib import Path
import structlog
from atlas_supervisor.telemetry.logging_setup import configure_logs
configure_logs(Path(sys.argv[1]), "debug")
log = structlog.get_logger("t")
log.debug("small")
log.info("worker_ready", slot="blue", pid=3, instance="blue-1", release="v1", deploy_id="d1")
log.warning("odd", why="so it is")
try:
    raise ValueError("two\\nlines")
except ValueError:
    log.exception("failed")
log.critical("end")
"""


def run(folder: Path, journal: str | None) -> list[str]:
    """Run the script with a socket for standard error; `{}` in `journal` is its name."""
    ours, theirs = socket.socketpair()
    status = os.fstat(theirs.fileno())
    name = f"{status.st_dev}:{status.st_ino}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4] / "supervisor")}
    environment.pop("JOURNAL_STREAM", None)
    if journal is not None:
        environment["JOURNAL_STREAM"] = journal.format(name)
    with ours, theirs:
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder / "supervisor.jsonl")],
            stderr=theirs.fileno(),
            env=environment,
            check=True,
            timeout=30,
        )
        theirs.close()
        text = b"".join(iter(lambda: ours.recv(65536), b"")).decode()
    return text.splitlines()


def test_journal_lines_have_priorities_and_no_timestamp(tmp_path: Path) -> None:
    lines = run(tmp_path, "{}")
    assert lines[0] == "<7>small"
    assert lines[1].startswith("<6>worker_ready ")
    assert "deploy_id=d1 slot=blue instance=blue-1 release=v1 pid=3" in lines[1]
    assert re.fullmatch(r"<4>odd +why='so it is'", lines[2])
    assert all(line.startswith("<3>") for line in lines[3:-1])  # each line of the traceback
    assert "<3>ValueError: two" in lines
    assert lines[-1] == "<2>end"
    assert not [line for line in lines if re.search(r"\d\d:\d\d:\d\d|\x1b", line)]


@pytest.mark.parametrize("journal", [None, "", "1:2", "nonsense"])
def test_inherited_JOURNAL_STREAM_does_not_select_journal_format(
    tmp_path: Path, journal: str | None
) -> None:
    lines = run(tmp_path, journal)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} \[debug    \] small", lines[0])
    assert lines[1].endswith("slot=blue pid=3 deploy_id=d1")
    assert "\x1b" not in "".join(lines)


def test_a_closed_descriptor_is_not_the_journal() -> None:
    assert not is_journal(12345, {"JOURNAL_STREAM": "1:2"})


BLOCKED = """
import sys, time
from pathlib import Path
import structlog
from atlas_supervisor.telemetry.logging_setup import configure_logs
configure_logs(Path(sys.argv[1]), "info")
log = structlog.get_logger("t")
for number in range(3000):
    log.info("flood", number=number, text="x" * 200)
print("not blocked", flush=True)
sys.stdin.read()
log.info("last")
"""


def test_a_reader_that_stops_reading_does_not_block_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKED, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4] / "supervisor")},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"not blocked\n"
        _, printed = process.communicate(timeout=30)
    assert process.returncode == 0
    assert path.read_text().count("\n") == 3001
    assert re.search(rb"\[warning  \] console_lines_dropped lines=\d+\n", printed)
    assert b"number=0 " in printed


def test_a_reader_that_stopped_reading_does_not_delay_the_exit(tmp_path: Path) -> None:
    path, began = tmp_path / "supervisor.jsonl", time.monotonic()
    reading, writing = os.pipe()
    try:
        subprocess.run(
            [sys.executable, "-c", BLOCKED, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=writing,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4] / "supervisor")},
            check=True,
            timeout=30,
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert time.monotonic() - began < 30
    assert path.read_text().count("\n") == 3001


FAILING = """
import logging, sys
from pathlib import Path
from atlas_supervisor.telemetry.logging_setup import configure_logs
configure_logs(Path(sys.argv[1]), "info")
logging.getLogger("library").warning("%d", "no number")
logging.getLogger("library").warning("next")
"""


def test_a_line_that_cannot_be_formatted_is_reported_and_stops_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(tmp_path / "supervisor.jsonl")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4] / "supervisor")},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    printed = done.stderr
    assert "log_line_not_written file=supervisor.jsonl error=%d format" in printed
    assert "log_line_not_formatted logger=library error=%d format" in printed
    assert re.search(r"log_lines_lost +lines=1", printed)
    assert re.search(r"\[warning  \] next$", printed, re.MULTILINE)
    assert "Traceback" not in printed
