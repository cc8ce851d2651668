"""Opens regular files only: a FIFO or a device in the place of one would block the daemon.

Links are not followed. The daemon's own files are none, so one was put there to lead it astray.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_regular(path: Path | str, flags: int, mode: int = 0o640) -> int:
    """Return a descriptor, closed on exec. Raises OSError, also if it is no regular file."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, mode)
    except OSError as error:
        if error.errno in {errno.ENXIO, errno.ENODEV}:  # a FIFO without a reader, a socket
            raise _not_regular(path) from error
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return descriptor


def read_regular(path: Path) -> bytes:
    """Return a regular file's content. Raises OSError."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:  # a descriptor
        return file.read()


def _not_regular(path: Path | str) -> OSError:
    return OSError(errno.EINVAL, "it is not a regular file", str(path))
