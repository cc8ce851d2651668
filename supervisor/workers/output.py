"""Where a worker's output goes: a file of its slot, which outlives the daemon.

A pipe would fill up and block the worker, or break it, as soon as nobody reads. A file needs a
bound instead: it is copied aside and cut when it has grown too large, so that a reader that
follows it by name or by descriptor goes on.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

import structlog

log = structlog.get_logger(__name__)

LIMIT_BYTES = 16 * 1024 * 1024
"""A slot's log may reach this size, and one older part of the same size is kept."""

_TAIL_BYTES = 64 * 1024


class WorkerLog:
    """The log file of one slot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._launch_offset = 0

    def open(self) -> int:
        """Return a descriptor to write to, and remember where this instance begins.

        Raises OSError.
        """
        self.rotate()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = _private(self.path, flags)
        self._launch_offset = os.fstat(descriptor).st_size
        return descriptor

    def rotate(self) -> bool:
        """Copy the file aside and cut it, if it is over its limit; tell whether it was cut."""
        try:
            if self.path.stat().st_size <= LIMIT_BYTES:
                return False
            with self.path.open("rb+") as file:
                self._copy_aside(file)
                file.truncate(0)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.error("worker_log_not_rotated", path=str(self.path), why=str(error))
            return False
        self._launch_offset = 0
        return True

    def _copy_aside(self, file: BinaryIO) -> None:
        """Keep the file's last part; on a full disk it is given up, so that there is room again."""
        aside = self.path.with_name(self.path.name + ".1")
        try:
            file.seek(-LIMIT_BYTES, os.SEEK_END)
            with open(aside, "wb", opener=_private) as older:  # Path has no opener
                shutil.copyfileobj(file, older)
        except OSError as error:
            log.error("worker_log_not_kept", path=str(aside), why=str(error))
            aside.unlink(missing_ok=True)

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


def _private(path: str | Path, flags: int) -> int:
    return os.open(path, flags, 0o640)


def printable(text: str, limit: int = 500) -> str:
    """Return the text with control characters escaped, cut to `limit` characters."""
    escaped = "".join(
        character if character.isprintable() or character == "\t" else repr(character)[1:-1]
        for character in text[:limit]
    )
    return escaped + ("…" if len(text) > limit else "")
