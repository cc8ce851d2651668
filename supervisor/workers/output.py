"""Where a worker's output goes: a file of its slot, which outlives the daemon.

A pipe would fill up and block the worker, or break it, as soon as nobody reads. A file needs a
bound instead: it is copied aside and cut when it has grown too large, so that a reader that
follows it by name or by descriptor goes on.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LIMIT_BYTES = 16 * 1024 * 1024
"""A slot's log may reach this size, and one older part of the same size is kept."""

_TAIL_BYTES = 64 * 1024


class WorkerLog:
    """The log file of one slot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._launch_offset = 0

    def open(self) -> int:
        """Return a descriptor to write to, and remember where this instance begins."""
        self.rotate()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o640)
        self._launch_offset = os.fstat(descriptor).st_size
        return descriptor

    def rotate(self) -> bool:
        """Copy the file aside and cut it, if it is over its limit; tell whether it was."""
        try:
            if self.path.stat().st_size <= LIMIT_BYTES:
                return False
            with self.path.open("rb+") as file:
                file.seek(-LIMIT_BYTES, os.SEEK_END)
                with self.path.with_name(self.path.name + ".1").open("wb") as older:
                    shutil.copyfileobj(file, older)
                file.truncate(0)
        except FileNotFoundError:
            return False
        self._launch_offset = 0
        return True

    def last_lines(self, count: int = 20) -> list[str]:
        """Return the last lines that this instance printed, printable and shortened."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(
                    max(
                        self._launch_offset if self._launch_offset <= size else 0,
                        size - _TAIL_BYTES,
                    )
                )
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [printable(line) for line in text.splitlines()[-count:]]


def printable(text: str, limit: int = 500) -> str:
    """Return the text with control characters escaped, cut to `limit` characters."""
    escaped = "".join(
        character if character.isprintable() or character == "\t" else repr(character)[1:-1]
        for character in text[:limit]
    )
    return escaped + ("…" if len(text) > limit else "")
