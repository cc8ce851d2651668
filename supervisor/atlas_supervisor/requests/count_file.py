"""Reads the request files of worker processes.

The layout and its protocol are in `atlas_worker.contract.request_file`. A file is read with
`pread`, never mapped: a mapped file that its owner truncates kills its readers by SIGBUS. Only
checked values are used: cells only grow, and up to a bound. A worker counts as itself alone: the
file's process must have it mapped and belong to the instance that the file names.

Whether the process lives is asked *before* reading. If it was dead, all it ever wrote is there.
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from atlas_supervisor.model.requests import SEALED_AFTER_SECONDS, RequestCounts
from atlas_supervisor.requests.seconds import Cells
from atlas_supervisor.system import procfs
from atlas_supervisor.system.worker_file import UnusableFileError, open_worker_file, refuse_forged
from atlas_worker.contract import request_file as layout
from atlas_worker.contract.ring import Owner

_FIRSTS_AT = layout.HEADER_BYTES + layout.FIRSTS * layout.WORD_BYTES
_CELLS = struct.Struct(f"<{layout.CELLS}Q")
_MOST = 2**53
"""A cell with more is not a count."""

NO_CELLS = (0,) * layout.CELLS


class CountFile:
    """The counts of one process. Its methods read a file and may block briefly."""

    def __init__(
        self, path: Path, descriptor: int, owner: Owner, firsts_bytes: int, key_id: int
    ) -> None:
        self.path = path
        self.owner = owner
        self.key_id = key_id
        """Of the secret that it hashes addresses with; 0 if it counts connections."""
        self._firsts_bytes = firsts_bytes
        self._descriptor = descriptor
        self._same_boot = owner.boot_id == procfs.boot_id()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file. Raises UnusableFileError unless it is complete and its process's own.

        Raises OSError where that is no fault of the file: too few descriptors, too little memory.
        """
        descriptor = open_worker_file(path, layout.FILE_BYTES.values(), os.O_RDONLY)
        try:
            header = os.pread(descriptor, layout.HEADER_BYTES, 0)
            owner, size = layout.unpack_header(header), os.fstat(descriptor).st_size
            if size != layout.FILE_BYTES[layout.layout_of(header)]:
                raise ValueError(f"{size} bytes are not those of its layout")
            key_id = layout.key_id_of(header)
            found = cls(path, descriptor, owner, size - _FIRSTS_AT, key_id)
            if found.alive():
                refuse_forged(path, owner)
                _refuse_other_instance(path, owner)
        except (OSError, ValueError) as error:
            os.close(descriptor)
            raise UnusableFileError(f"{path.name} is refused: {error}") from error
        except UnusableFileError:
            os.close(descriptor)
            raise
        return found

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def alive(self) -> bool:
        """Return whether the process that writes this file still runs."""
        return self._same_boot and procfs.is_alive(self.owner.pid, self.owner.start_ticks)

    def read(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """Return all cells; `before` is what was read last. Raises UnusableFileError."""
        try:
            data = os.pread(self._descriptor, _CELLS.size, layout.HEADER_BYTES)
            cells = _CELLS.unpack(data)
        except (OSError, struct.error) as error:
            raise UnusableFileError(f"{self.path.name} can't be read: {error}") from error
        if cells == before:
            return before
        if max(cells) > _MOST or any(map(int.__lt__, cells, before)):
            raise UnusableFileError(f"{self.path.name} has cells that are no counts")
        return cells

    def read_firsts(self) -> bytes:
        """Return the cells of first requests; nothing of an earlier kit, or if they are cut off."""
        data = b""
        with suppress(OSError):
            data = os.pread(self._descriptor, self._firsts_bytes, _FIRSTS_AT)
        return data if len(data) == self._firsts_bytes else b""


def _refuse_other_instance(path: Path, owner: Owner) -> None:
    tag = procfs.tag_of(owner.pid)
    if tag and tag != procfs.tag_for(str(path.parent.parent), owner.instance):
        text = f"{path.name} is refused: pid {owner.pid} is not of instance {owner.instance!r}"
        raise UnusableFileError(text)


@dataclass
class TrackedFile:
    """A file that is read."""

    file: CountFile
    instance: str
    cells: Cells
    saved: Cells
    read_at: float
    """When it was read last, `time.monotonic()`."""
    since: int
    """The first second that all counts are known of."""
    open: dict[int, int] = field(default_factory=dict)
    """Requests without an outcome, by the second in which they began."""
    ended: bool = False

    def note(self, second: int, counts: RequestCounts) -> None:
        """Note requests that began or ended."""
        without = counts.begun - counts.ended - counts.left
        self.open[second] = self.open.get(second, 0) + without

    def forget_sealed(self, now: float) -> None:
        """Forget seconds whose counts do not change any more."""
        for second in [each for each in self.open if each + SEALED_AFTER_SECONDS < now]:
            del self.open[second]

    def end(self) -> None:
        """Close the file, which is read to its end."""
        self.ended = True
        self.file.close()


class Reading(NamedTuple):
    """What was read of a file."""

    tracked: TrackedFile
    cells: Cells
    firsts: bytes
    """The cells of first requests; nothing if they are not compared, or not there."""
    ended: bool
    """Whether its process has ended."""


def packed(cells: Cells) -> bytes:
    """Return the cells of all requests for the database."""
    return zlib.compress(_CELLS.pack(*cells), 1)


def unpacked(packed: bytes | None) -> Cells:
    """Return the cells that `packed` has packed; none if it is damaged."""
    if packed is None:
        return NO_CELLS
    try:
        return _CELLS.unpack(zlib.decompress(packed))
    except (zlib.error, struct.error):
        return NO_CELLS
