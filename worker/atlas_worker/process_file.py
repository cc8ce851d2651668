"""Creates a memory-mapped file of this process, which the daemon reads.

The file gets its name when it is complete, and all or some of its blocks are there: on a full disk
a write to a hole would raise SIGBUS.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path

from atlas_worker.contract import ENV_INSTANCE, ENV_VERSION, ring
from atlas_worker.contract.ring import Owner


def this_process() -> Owner:
    """Return the identity of this process, its instance and version. Raises OSError."""
    status = Path("/proc/self/stat").read_text()
    return Owner(
        pid=os.getpid(),
        start_ticks=int(status.rpartition(")")[2].split()[19]),
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        instance=os.environ.get(ENV_INSTANCE, ""),
        version=os.environ.get(ENV_VERSION, ""),
    )


def create(
    folder: Path, suffix: str, size: int, fill: Callable[[int, Owner], None]
) -> tuple[mmap.mmap, Path]:
    """Create a file and map it; `fill` adds blocks and a header by its descriptor. Raises OSError.

    Also where cells can't be changed without a lock: without the global interpreter lock.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise OSError("files of a process need the global interpreter lock")
    if _is_full(folder):
        raise OSError(f"{folder} has {ring.FOLDER_BYTES_LIMIT} bytes of unread rings")
    owner = this_process()
    path = folder / f"{owner.pid}-{owner.start_ticks}-{os.urandom(4).hex()}{suffix}"
    unfinished = path.with_name(f".{path.name}.new")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(unfinished, flags, ring.RING_MODE)
    try:
        os.truncate(descriptor, size)
        fill(descriptor, owner)
        file = mmap.mmap(descriptor, size)
        unfinished.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    finally:
        os.close(descriptor)
    return file, path


def _is_full(folder: Path) -> bool:
    with os.scandir(folder) as files:
        listed = list(files)
    if len(listed) * ring.RING_BYTES <= ring.FOLDER_BYTES_LIMIT:
        return False
    used = 0
    for file in listed:
        with contextlib.suppress(OSError):  # the daemon may remove it now
            used += file.stat(follow_symlinks=False).st_blocks * 512
    return used > ring.FOLDER_BYTES_LIMIT
