"""A log file of whole lines and bounded size that never stops its writer.

A full file is renamed and a new one started: `tail -F` follows that, and a reader that has the old
one open can read it to its end. On a full disk a line is written whole or not at all; lost lines
are counted, and the count is logged once there is room again. Why this is not logging's
RotatingFileHandler: docs/adr/0024-a-log-file-of-whole-lines.md.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import structlog

FILE_BYTES = 10 * 1024 * 1024
"""The size at which a new file is started."""
FILES_KEPT = 4
"""How many older files are kept."""

_MODE = 0o640

log = structlog.get_logger(__name__)


def older(path: Path, number: int) -> Path:
    """Return the name of an older file of the log at `path`; 1 is the youngest."""
    return path.with_name(f"{path.name}.{number}")


class LogFile(logging.Handler):
    """Appends each record's line to the file at `path`. Raises OSError if it can't be opened.

    `on_failure` is called with the first error of a series of failed writes.
    """

    def __init__(self, path: Path, on_failure: Callable[[Exception], None]) -> None:
        super().__init__()
        self._path = path
        self._on_failure = on_failure
        self._lost = 0
        self._descriptor: int | None = self._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line; called with the handler's lock held."""
        try:
            self._write(self.format(record).encode(errors="backslashreplace") + b"\n")
        except Exception as error:  # noqa: BLE001  # as in logging, no error reaches the caller
            if not self._lost:
                self._on_failure(error)
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            log.warning("log_lines_lost", lines=lost, why="they could not be written")

    def close(self) -> None:
        """Close the file."""
        self.acquire()
        try:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
        finally:
            self.release()
        super().close()

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            self._descriptor = self._open()
        size = os.fstat(self._descriptor).st_size
        if size and size + len(line) > FILE_BYTES:
            self._descriptor = self._rotate(self._descriptor)
            size = 0
        written = os.write(self._descriptor, line)
        if written != len(line):
            os.ftruncate(self._descriptor, size)  # half a line is worse than none
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _rotate(self, full: int) -> int:
        """Rename the full file and all older ones, and return a new file's descriptor."""
        for number in range(FILES_KEPT - 1, 0, -1):
            if older(self._path, number).exists():
                older(self._path, number).replace(older(self._path, number + 1))
        if self._path.exists():
            self._path.replace(older(self._path, 1))
        self._descriptor = None  # if the new file can't be opened, the next line tries again
        os.close(full)
        return self._open()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, _MODE)
        os.fchmod(descriptor, _MODE)  # for any umask, and for a file that existed
        return descriptor
