"""A file of whole lines that never grows beyond its bound, and never stops its writer.

A full file is renamed and begun anew, which `tail -F` follows and a reader that has it open can
read to its end. On a full disk a line is written whole or not at all, so what is there can be read;
what was missed is counted and told in a line as soon as there is room again.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import structlog

FILE_BYTES = 10 * 1024 * 1024
"""The size at which the file is begun anew; so many older ones are kept:"""
FILES_KEPT = 4

_MODE = 0o640

log = structlog.get_logger(__name__)


def older(path: Path, number: int) -> Path:
    """Return the name of an earlier part of the log at `path`; 1 is the youngest."""
    return path.with_name(f"{path.name}.{number}")


class LogFile(logging.Handler):
    """Appends each record's line to the file at `path`. Raises OSError if it can't be opened.

    `complain` is told in words when the file can't be written, and not again until it could.
    """

    def __init__(self, path: Path, complain: Callable[[str], None]) -> None:
        super().__init__()
        self._path = path
        self._complain = complain
        self._missed = 0
        self._descriptor: int | None = self._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line; called with the handler's lock held."""
        try:
            self._write(self.format(record).encode(errors="backslashreplace") + b"\n")
        except Exception as error:  # noqa: BLE001  # as logging has it: its user is not stopped
            if not self._missed:
                self._complain(f"{self._path.name} can't be written: {error}")
            self._missed += 1
            return
        if self._missed:
            missed, self._missed = self._missed, 0
            log.warning("log_lines_missed", lines=missed, why="the file could not be written")

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
            self._begin_anew()
            size = 0
        assert self._descriptor is not None  # noqa: S101  # opened above
        written = os.write(self._descriptor, line)
        if written != len(line):
            os.ftruncate(self._descriptor, size)  # half a line is worse than none
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _begin_anew(self) -> None:
        """Rename the full file and all before it, and open a new one."""
        for number in range(FILES_KEPT - 1, 0, -1):
            if older(self._path, number).exists():
                older(self._path, number).replace(older(self._path, number + 1))
        if self._path.exists():
            self._path.replace(older(self._path, 1))
        full, self._descriptor = self._descriptor, None
        if full is not None:
            os.close(full)
        self._descriptor = self._open()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, _MODE)
        os.fchmod(descriptor, _MODE)  # whatever the umask, and whoever made it
        return descriptor
