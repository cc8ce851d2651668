"""What the tests of faults do to a daemon."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DaemonProcess
from tests.integration.support import get
from tests.loadclient import Load, LostError, Reason, Request, Response, Traffic

# A daemon that the kernel refuses pidfd_getfd, as in a container: the filter of seccomp(2) looks at
# the system call's number, which is the same everywhere, and has the call fail with EPERM.
WITHOUT_PIDFD_GETFD = """
import ctypes, runpy, struct
SET_NO_NEW_PRIVS, SET_SECCOMP, MODE_FILTER, PIDFD_GETFD = 38, 22, 2, 438
program = b"".join(struct.pack("=HBBI", *each) for each in (
    (0x20, 0, 0, 0), (0x15, 0, 1, PIDFD_GETFD), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)
))
code = ctypes.create_string_buffer(program, len(program))
filter = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(SET_SECCOMP, MODE_FILTER, filter, 0, 0) == 0, ctypes.get_errno()
runpy.run_module("atlas_supervisor", run_name="__main__", alter_sys=True)
"""


async def start_again(daemon: DaemonProcess) -> dict[str, Any]:
    """Start the next daemon, and return the last deploy as it now stands."""
    await daemon.start()
    record: dict[str, Any] = (await daemon.status())["last_deploy"]
    return record


@contextmanager
def replaced(path: Path, make: Callable[[Path], object]) -> Iterator[None]:
    """Have something else at the path, and what was there afterwards."""
    original = path.with_name("original")
    if path.exists():
        path.rename(original)
    make(path)
    try:
        yield
    finally:
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
        if original.exists():
            original.rename(path)


async def refused(daemon: DaemonProcess) -> str:
    """Start a daemon that is going to be refused; return what it printed."""
    output = daemon.folder / "daemon.out"
    output.touch()
    before = output.stat().st_size
    with pytest.raises(AssertionError, match=r"the daemon ended with [12]$"):
        await daemon.start()
    await daemon.stop_clients()
    return output.read_bytes()[before:].decode()


@contextmanager
def limited(pid: int, limit: int, most: int) -> Iterator[None]:
    """Let a running process have no more of something meanwhile, as on a full disk or table."""
    soft, hard = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (most, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, limit, (soft, hard))


def scripted_answer(_request: Request, response: Response) -> str:
    """Check that the scripted worker answered."""
    if response.status != 200:
        raise LostError(Reason.WRONG_STATUS, str(response.status))
    return str(json.loads(response.body)["version"])


def under_load(daemon: DaemonProcess) -> Load:
    """Put clients on the public port, each with a connection per request."""
    pause = (0.0, 0.06)
    clients = Traffic("one-shot", 2, scripted_answer, keep_alive=False, think=pause)
    return Load("127.0.0.1", daemon.public_port, (clients,))


async def worker_pid(daemon: DaemonProcess) -> int:
    status, body = await get(daemon.public_port)
    assert status == 200
    return int(body["pid"])


def queued(port: int) -> int:
    """Return how many connections at a port are not accepted yet."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(queues.rpartition(":")[2], 16)
        for _, address, _, state, queues, *_ in sockets
        if (address.rpartition(":")[2], state) == (f"{port:04X}", "0A")
    )
