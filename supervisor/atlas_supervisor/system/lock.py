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
def only_daemon(path: Path, passed: int | None = None) -> Iterator[int]:
    """Hold the lock, and yield its descriptor. `passed` is that of the daemon before a reload.

    Raises StartRefusedError, naming the daemon that holds it.
    """
    if passed is not None and not _is_at(passed, path):
        os.close(passed)
        passed = None
    try:
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT) if passed is None else passed
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
        _write_own_pid(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


def _write_own_pid(descriptor: int, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:  # a full disk: the first start is the first to write here
        raise StartRefusedError(f"{path} can't be written: {error.strerror}") from error


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False
