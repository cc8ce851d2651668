"""Counts the calls of a process without a ring, in a file that outlives it.

The folder is full of unread rings, or the disk is, so no file can be created. The daemon has
created one with a single count, to which such processes add theirs under a lock of the file.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

from atlas_worker.contract.ring import REFUSED_CALLS_FILE

_COUNT = struct.Struct("<Q")
_LAST_SECONDS = 0.1  # how long the end of a process waits for the lock


class RefusedCalls:
    """The calls of this process in a folder's file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / REFUSED_CALLS_FILE
        self.counted = 0

    def count(self, total: int, *, last: bool = False) -> None:
        """Add what is missing up to this total; if the file is in use, the next time.

        The `last` time waits a little.
        """
        deadline = time.monotonic() + _LAST_SECONDS
        while self.counted < total:
            if self._add(total - self.counted):
                self.counted = total
            elif last and time.monotonic() < deadline:
                time.sleep(0.001)
            else:
                return

    def _add(self, calls: int) -> bool:
        import fcntl  # noqa: PLC0415 - most processes have a ring

        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._path, flags)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (before,) = _COUNT.unpack(os.pread(descriptor, _COUNT.size, 0))
            os.pwrite(descriptor, _COUNT.pack(before + calls), 0)
        except (OSError, struct.error):
            return False
        finally:
            os.close(descriptor)
        return True
