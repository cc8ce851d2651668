"""Replaces a file as a whole, so that a reader never sees half of it."""

from __future__ import annotations

import os
from pathlib import Path

_MODE = 0o640


def replace(path: Path, content: str) -> None:
    """Give the file this content: written beside it, fsync, rename. Blocks on the disk.

    Raises OSError, and then the file is as it was. That the new one stays, should the machine
    die now, takes an fsync of the folder besides.
    """
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  # a descriptor
            os.fchmod(file.fileno(), _MODE)  # independent of the umask
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
