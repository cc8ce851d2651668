"""Files that a worker's process writes and the daemon reads: opened, and checked whose they are.

They belong to another program, which may be broken or hostile. So no FIFO may block the daemon, no
link is followed, owner and size must be right, and a living process named in a file must write it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path

from atlas_supervisor.errors import AtlasError
from atlas_supervisor.system import procfs
from atlas_worker.contract.ring import Owner

_NO_FAULT_OF_THE_FILE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class UnusableFileError(AtlasError):
    """The file can't be used; the text is the reason."""


def worker_files(folder: Path, suffix: str) -> list[Path]:
    """Return the files in a folder, sorted by name; none if there is no such folder."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - much cheaper, and read at each poll
    except OSError:
        return []
    return [folder / name for name in sorted(names) if name.endswith(suffix)]


def open_worker_file(path: Path, sizes: Collection[int], access: int) -> int:
    """Open a complete file of a trusted uid. Raises UnusableFileError.

    That uid is ours, or the folder's: with WORKER_USER the folder is the workers' own.
    Raises OSError where that is no fault of the file: too few descriptors, too little memory.
    """
    flags = access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in _NO_FAULT_OF_THE_FILE:
            raise
        raise UnusableFileError(f"{path.name} can't be opened: {error.strerror}") from error
    try:
        _check(os.fstat(descriptor), {os.getuid(), path.parent.stat().st_uid}, sizes)
    except (OSError, ValueError) as error:
        os.close(descriptor)
        raise UnusableFileError(f"{path.name} is refused: {error}") from error
    return descriptor


def refuse_forged(path: Path, owner: Owner) -> None:
    """Raise UnusableFileError if another process is named than the one that writes this file.

    A process has its own file mapped, and no other process can do that for it. One that can't be
    looked at (PR_SET_DUMPABLE) must be of a worker. One that is exiting has nothing mapped any
    more: its file is used, as that of a process that has exited is.
    """
    pid, state_dir = owner.pid, str(path.parent.parent)
    mapped = procfs.has_mapped(pid, path.name)
    if mapped is None:
        of_daemon = procfs.tag_for(state_dir, "") ^ procfs.tag_of(pid)
        mapped = not of_daemon & procfs.TAG_OF_DAEMON
    if not mapped and not procfs.is_exiting(pid):
        raise UnusableFileError(f"{path.name} is refused: pid {pid} does not write it")


def _check(status: os.stat_result, owners: set[int], sizes: Collection[int]) -> None:
    """Raise ValueError for a file that is not one of these users', or not of these sizes."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_uid not in owners:
        raise ValueError(f"owned by uid {status.st_uid}, not {' or '.join(map(str, owners))}")
    if status.st_size not in sizes:
        expected = " or ".join(map(str, sizes))
        raise ValueError(f"has {status.st_size} bytes instead of {expected}")
