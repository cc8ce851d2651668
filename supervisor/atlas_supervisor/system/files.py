"""Opens regular files only: a FIFO or a device in the place of one would block the daemon.

What a setting names may be anything; so is what another program has put in a file's place. Links
are not followed unless a setting names them: the daemon's own files are none, so one in their place
would lead it astray.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIMIT_BYTES = 16 * 1024 * 1024


def open_regular(path: Path, flags: int, mode: int = 0o640, *, follow: bool = False) -> int:
    """Return a descriptor, closed on exec. Raises OSError, also if it is no regular file.

    `follow`: it may be a link to one.
    """
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
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
    os.set_blocking(descriptor, True)
    return descriptor


def read_regular(path: Path, *, follow: bool = False) -> bytes:
    """Return a regular file's content. Raises OSError, also if it has more than 16 MiB."""
    with open(open_regular(path, os.O_RDONLY, follow=follow), "rb") as file:  # a descriptor
        content = file.read(_LIMIT_BYTES + 1)
    if len(content) > _LIMIT_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {_LIMIT_BYTES} bytes", str(path))
    return content


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """Yield another name of a Unix socket, in an open folder. Raises OSError.

    The kernel allows 107 bytes, and STATE_DIR may be longer.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _not_regular(path: Path) -> OSError:
    return OSError(errno.EINVAL, "it is not a regular file", str(path))
