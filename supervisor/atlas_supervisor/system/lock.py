"""One daemon per state folder: a lock that the kernel releases at any end of the daemon.

The daemon's descriptor of the lock also says, to everyone who may look, that the process is a
supervisor: its workers are no orphans, wherever the folder has been moved or copied to.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system.files import open_regular
from atlas_supervisor.system.procfs import describe

LOCK_FILE = "supervisor.lock"


def holds_a_lock(pid: int) -> bool:
    """Return whether the process is a living supervisor, on any state folder."""
    folder = Path(f"/proc/{pid}/fd")
    with suppress(OSError):
        for entry in folder.iterdir():
            with suppress(OSError):
                if Path(str(entry.readlink()).removesuffix(" (deleted)")).name == LOCK_FILE:
                    return True
    return False


@contextmanager
def only_daemon(path: Path) -> Iterator[None]:
    """Hold the lock. Raises StartRefusedError, naming the daemon that holds it."""
    try:
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise StartRefusedError(f"{path} can't be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(descriptor, 32).decode(errors="replace").strip()
            who = describe(int(text)) if text.isdecimal() else "another process"
            raise StartRefusedError(
                f"another supervisor runs on this state folder: {who} holds {path}"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
