"""What the tests of faults do to a daemon."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DaemonProcess
from tests.integration.support import get
from tests.loadclient import Load, LostError, Reason, Request, Response, Traffic


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
