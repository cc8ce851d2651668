"""Checks of the machine: the kernel, limits, the clock, and the programs that the daemon calls."""

from __future__ import annotations

import ctypes
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from atlas_supervisor.doctor.finding import Finding, fail, looked, ok, warn
from atlas_supervisor.system import clock, descriptors
from atlas_supervisor.traffic.listeners import BACKLOG, prove_steering

ROOMY_FILES = 1024
"""Open files that leave room for clients."""
SANE_YEARS = range(2025, 2100)
OLDEST_SYSTEMD = 249
UNITS = "atlas-supervisor*.service"
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_BOOTED = Path("/run/systemd/system")
"""There only where systemd runs the machine: sd_booted(3)."""
_CALL_SECONDS = 5.0
_NOT_SYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)
_SYNCHRONISE = "Run an NTP client, for example: timedatectl set-ntp true"
_TIMEX_BYTES = 512  # struct timex has 208


def machine(pid: int | None) -> Iterator[Finding]:
    """Yield what the machine is like; `pid` is that of the running daemon."""
    yield steering()
    yield from looked("somaxconn", lambda: [somaxconn()])
    yield open_files(pid)
    yield ptrace_scope()
    yield clock_of_machine()
    yield ok("python", f"{platform.python_version()}, {sys.executable}")
    yield git()
    yield from systemd(pid)


def steering() -> Finding:
    """Try the steering program out, on a free port of its own."""
    try:
        prove_steering()
    except OSError as error:
        mend = "Put {port} into WORKER_COMMAND: then the daemon relays, and needs no steering."
        return fail("steering", f"the kernel does not steer: {error.strerror or error}", mend)
    return ok("steering", "the kernel steers new connections to either of two sockets")


def somaxconn() -> Finding:
    """Check how many connections the kernel lets wait in one queue."""
    most = int(_SOMAXCONN.read_text())
    if most >= BACKLOG:
        return ok("somaxconn", f"{most:,} connections may wait in a queue")
    message = f"{most:,} connections may wait in a queue, and the daemon asks for {BACKLOG:,}"
    return warn("somaxconn", message, f"sysctl -w net.core.somaxconn={BACKLOG}")


def open_files(pid: int | None) -> Finding:
    """Check the limit of open files: that of the running daemon, or of one started here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError):
        limits = Path(f"/proc/{pid}/limits").read_text()
        if found := re.search(r"Max open files +\S+ +(\d+)", limits):
            hard = int(found[1])
    message = f"{hard:,} open files at most"
    mend = "ulimit -Hn 65536, before the start; in a unit LimitNOFILE=65536"
    if hard < descriptors.FEWEST:
        return fail("open_files", f"{message}; the daemon needs {descriptors.FEWEST}", mend)
    if hard < ROOMY_FILES:
        return warn("open_files", f"{message}, which leaves little room for clients", mend)
    return ok("open_files", message)


def ptrace_scope() -> Finding:
    """Report how a daemon that was killed gets its sockets back: none of the ways is a fault."""
    try:
        scope = int(_PTRACE_SCOPE.read_text())
    except OSError:
        scope = 0
    way = "from living workers" if scope == 0 else "from their keeper, or from systemd"
    return ok("ptrace_scope", f"{scope}: after a kill the next daemon gets its sockets {way}")


def clock_of_machine() -> Finding:
    """Check that the year can be right, and whether the kernel's clock is synchronised."""
    now = clock.now()
    if now.year not in SANE_YEARS:
        return fail("clock", f"it is {now:%Y-%m-%d} by this machine", _SYNCHRONISE)
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # reads only
    if state == _NOT_SYNCHRONISED:
        message = f"{now:%Y-%m-%d %H:%M} UTC, not synchronised: times in records may be off"
        return warn("clock", message, _SYNCHRONISE)
    return ok("clock", f"{now:%Y-%m-%d %H:%M} UTC" + (", synchronised" if state >= 0 else ""))


def git() -> Finding:
    """Report git, which gives a version to releases that are checkouts."""
    if shutil.which("git") is None:
        return ok("git", "not installed: a checkout's version is a digest of its files")
    return ok("git", _output("git", "--version").removeprefix("git version "))


def systemd(pid: int | None) -> Iterator[Finding]:
    """Yield systemd's version, and each unit of ours that it knows."""
    if not _BOOTED.is_dir():
        yield ok("systemd", "systemd does not run this machine")
        return
    found = re.search(r"\d+", _output("systemctl", "--version"))
    version = int(found[0]) if found else 0
    if version < OLDEST_SYSTEMD:
        message = f"version {version}; the unit needs {OLDEST_SYSTEMD}"
        yield warn("systemd", message, "Run the daemon by another service manager, or upgrade.")
    else:
        yield ok("systemd", f"version {version}")
    yield from units(pid)


def units(pid: int | None) -> Iterator[Finding]:
    """Yield each unit of ours that is loaded, or installed."""
    shown = _output("systemctl", "show", "--property=Id,ActiveState,MainPID", UNITS)
    loaded = [
        dict(line.split("=", 1) for line in each.splitlines()) for each in shown.split("\n\n")
    ]
    for unit in filter(None, loaded):
        name, state = unit["Id"], unit["ActiveState"]
        is_ours = "; it runs this daemon" if unit["MainPID"] == str(pid) else ""
        if state == "failed":
            yield fail("unit", f"{name} has failed", f"journalctl -u {name} -n 50")
        else:
            yield ok("unit", f"{name} is {state}{is_ours}")
    if any(loaded):
        return
    installed = _output("systemctl", "list-unit-files", "--no-legend", UNITS).split(maxsplit=1)
    if installed and "@" not in installed[0]:
        start = f"systemctl enable --now {installed[0]}"
        yield warn("unit", f"{installed[0]} is installed, and does not run", start)
    elif not installed:
        yield ok("unit", "none is installed; on a server, sudo ./scripts/install-systemd --now")


def _output(*command: str) -> str:
    """Return the output of a program; empty if it fails, or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_CALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
