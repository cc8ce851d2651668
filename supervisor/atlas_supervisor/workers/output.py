"""A worker's output: a log file of its slot, which outlives the daemon.

A pipe without a reader would block or break the worker. A file must be bounded instead: its size
is checked often, and a file over the limit is copied aside and truncated, so that the worker and
any reader, by name or by descriptor, go on.

A worker also goes on writing to a file that was removed, renamed or replaced under its name. The
daemon keeps a descriptor of each worker's file: it moves what is written there to the file that has
the name, so that nothing grows unseen and readers go on.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import anyio
import structlog

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.system.descriptors import is_shortage
from atlas_supervisor.system.files import open_regular
from atlas_supervisor.system.text import escaped, without_known_secrets
from atlas_supervisor.system.threads import in_thread

log = structlog.get_logger(__name__)

LIMIT_BYTES = 16 * 1024 * 1024
"""A slot's log may reach this size, and one older part of the same size is kept."""
CHECK_SECONDS = 0.1
"""How often its size is checked; in between a worker writes as fast as its disk."""
FLOOD_CHECK_SECONDS = 0.01
"""The same after a late cut, of a file with twice the limit."""

_REPORT_SECONDS = 60.0
_TAIL_BYTES = 64 * 1024
_PIECE_BYTES = 1024 * 1024
_CATCH_UPS = 3
_MODE = 0o640
_TO_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC

_FileKey = tuple[int, int]
"""Device and inode: what a file is, under any name."""


class Lost(NamedTuple):
    """The last file that lost its name, as a reader needs to know to go on after its end."""

    generation: int
    size: int
    """How long it was then."""
    goes_on_at: int
    """Where its bytes go on in the file that has the name."""


class WorkerLog:
    """The log file of one slot. Its methods block, and may be called from any thread."""

    def __init__(self, path: Path, slot: SlotName) -> None:
        self.path = path
        self.aside = path.with_name(f"{path.name}.1")
        """The end of the file before the last cut, up to the limit."""
        self.slot = slot
        self.lock = threading.RLock()
        """Held while the file is cut, so that a reader sees it before or after."""
        self.generation = secrets.randbits(48)
        """Grows with each cut, and begins at random in each daemon."""
        self.aside_generation = self.generation - 1
        self.aside_start = 0
        """The older part's offset in the file before the last cut."""
        self.lost: Lost | None = None
        self._held: dict[str, int] = {}
        """Our own descriptor of the file that each instance writes to."""
        self._named_sizes: dict[_FileKey, int] = {}
        """How long each of these files was when it last had the name."""
        self._strayed: set[_FileKey] = set()
        """Those that have lost it."""
        self._failing = False
        self._launch_offset = 0
        self._launch_aside: int | None = None
        self._reported: Stopwatch | None = None
        self._unreported = [0, 0]

    def open(self, instance: str) -> int:
        """Return a descriptor to write to, and remember the offset where this instance begins.

        `close` is to be called when the instance has ended. Where the file can't be opened the
        output is dropped: a worker has to be started all the same. Raises OSError if there is no
        free descriptor.
        """
        self.rotate()
        descriptor = self._opened()
        try:
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            os.close(descriptor)
            raise
        with self.lock:
            status = os.fstat(own)
            self._held[instance] = own
            self._named_sizes[_key(status)] = status.st_size
            self._launch_offset, self._launch_aside = status.st_size, None
        return descriptor

    def adopt(self, instance: str, pid: int) -> None:
        """Keep the file of an instance of an earlier daemon, if it still writes there."""
        with suppress(OSError):
            if _key(os.stat(f"/proc/{pid}/fd/1")) == _key_of(self.path):  # noqa: PTH116  # a link
                with self.lock:
                    own = self._held[instance] = open_regular(self.path, os.O_RDWR)
                    self._named_sizes[_key(os.fstat(own))] = self.size()

    def _opened(self) -> int:
        try:
            # A link would lead astray, and a FIFO block.
            flags = _TO_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self.path, flags, _MODE)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.set_blocking(descriptor, True)  # as the worker expects it
                return descriptor
            os.close(descriptor)
            why = f"{self.path} is not a regular file"
        except OSError as error:
            if is_shortage(error):
                raise
            why = str(error)
        log.error("worker_output_dropped", slot=self.slot, why=why)
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def close(self, instance: str) -> None:
        """Forget an instance of which no process is left, or that was never started."""
        if instance not in self._held:
            return
        self.collect()
        with self.lock:
            os.close(self._held.pop(instance))
            left = {_key(os.fstat(each)) for each in self._held.values()}
            self._named_sizes = {key: self._named_sizes.get(key, 0) for key in left}
            self._strayed &= left

    def has_strayed(self) -> bool:
        """Return whether a worker has written to a file that has lost its name.

        Also notes the size of one that has not. Needs neither the lock nor a thread.
        """
        named = _key_of(self.path)
        for descriptor in list(self._held.values()):
            try:
                status = os.fstat(descriptor)
            except OSError:
                continue  # closed a moment ago
            if (key := _key(status)) == named:
                self._named_sizes[key] = status.st_size
            elif status.st_size > self._named_sizes.get(key, status.st_size):
                return True
        return False

    def collect(self) -> None:
        """Move what was written to files without the name to the file that has it."""
        with self.lock:
            for descriptor in self._held.values():
                if _key(os.fstat(descriptor)) == _key_of(self.path):
                    continue
                try:
                    self._move(descriptor)
                    self._failing = False
                except OSError as error:
                    if not self._failing:
                        log.error("worker_log_not_kept", slot=self.slot, why=str(error))
                    self._failing = True

    def _move(self, source: int) -> None:
        """Move the bytes since the file lost its name; those before are its new owner's."""
        status = os.fstat(source)
        key, end = _key(status), status.st_size
        begin = self._named_sizes.get(key, end)
        if end <= begin:
            return
        if not status.st_nlink:  # it has no name at all: free the space of all of it
            self._named_sizes[key] = 0
        try:
            self.path.parent.mkdir(mode=0o750, exist_ok=True)
            with (
                os.fdopen(open_regular(self.path, _TO_APPEND), "ab", buffering=0) as target,
                open(source, "rb", buffering=0, closefd=False) as file,
            ):
                self._note_loss(key, begin, target.tell())
                written = file.seek(begin, os.SEEK_DATA)
                start = max(written, end - LIMIT_BYTES)
                _copy(file, target, start, end)
        finally:
            os.ftruncate(source, self._named_sizes[key])
        if start > written:
            self._report_cut(end, dropped=start - written)

    def _note_loss(self, key: _FileKey, size: int, offset: int) -> None:
        """Note that a file of this size lost its name, and where in the new one its bytes begin."""
        if key in self._strayed:
            return
        self._strayed.add(key)
        self.lost = Lost(self.generation, size, offset)
        self.generation += 1
        self._launch_offset, self._launch_aside = offset, None
        log.warning(
            "worker_log_replaced",
            slot=self.slot,
            why=f"{self.path.name} was removed, renamed or replaced by another program; the output "
            "goes on in a file of that name",
        )

    def size(self) -> int:
        """Return the file's size; 0 if there is none."""
        try:
            status = self.path.lstat()
        except OSError:
            return 0
        return status.st_size if stat.S_ISREG(status.st_mode) else 0

    def rotate(self) -> int:
        """Copy a file over the limit aside and cut it; return its size, or 0 if it was not."""
        if self.size() <= LIMIT_BYTES:
            return 0
        try:
            opened = open_regular(self.path, os.O_RDWR)
            with self.lock, os.fdopen(opened, "rb+", buffering=0) as file:
                if (size := _used(file)) <= LIMIT_BYTES:  # another thread has just cut it
                    return 0
                start = self._copy_aside(file)
                file.truncate(0)  # lines since the end was read last are lost
                self._note_cut(start)
        except OSError as error:
            log.error("worker_log_not_rotated", slot=self.slot, why=str(error))
            return 0
        self._report_cut(size, dropped=max(size - LIMIT_BYTES, 0))
        return size

    def _note_cut(self, start: int) -> None:
        self._launch_aside = max(self._launch_offset - start, 0)
        self._launch_offset = 0
        self.aside_start, self.aside_generation = start, self.generation
        self.generation += 1

    def _copy_aside(self, file: BinaryIO) -> int:
        """Keep the file's last part, and return its offset.

        On a full disk it is dropped, so that there is room again.
        """
        end = file.seek(0, os.SEEK_END)
        start = position = max(end - LIMIT_BYTES, 0)
        try:
            self.aside.unlink(missing_ok=True)  # readers keep their descriptor
            with open(self.aside, "xb", buffering=0, opener=_private) as older:  # Path: no opener
                for _ in range(_CATCH_UPS):
                    position = _copy(file, older, position, end)
                    end = file.seek(0, os.SEEK_END)
                    if not 0 < end - position <= _PIECE_BYTES:
                        break  # there is no more, or too much to catch up with
        except OSError as error:
            log.error("worker_log_not_kept", slot=self.slot, why=str(error))
            with suppress(OSError):  # it may be a folder by now
                self.aside.unlink()
        return start

    def _report_cut(self, size: int, dropped: int) -> None:
        """Log cuts at intervals: a line for each would be a flood of its own."""
        self._unreported = [self._unreported[0] + 1, self._unreported[1] + dropped]
        if self._reported is None or self._reported.seconds >= _REPORT_SECONDS:
            cuts, lost = self._unreported
            level = log.warning if lost else log.info
            level("worker_log_cut", slot=self.slot, bytes=size, cuts=cuts, dropped_bytes=lost)
            self._reported, self._unreported = Stopwatch(), [0, 0]

    def last_lines(self, count: int = 20) -> list[str]:
        """Return the last lines of this instance's output, printable and shortened."""
        text = _tail(self.path, self._launch_offset, _TAIL_BYTES)
        if self._launch_aside is not None and len(text) < _TAIL_BYTES:  # it was cut a moment ago
            text = _tail(self.aside, self._launch_aside, _TAIL_BYTES - len(text)) + text
        lines = text.decode(errors="replace").splitlines()
        return [printable(line) for line in lines[-count:]]


async def keep_bounded(logs: Sequence[WorkerLog]) -> None:
    """Cut files over the limit and collect from those without a name; never ends.

    Also between instances: a starting or lingering worker writes as well, and a file that grew
    while no daemon ran is cut at once.
    """
    while True:
        late = False
        for each in logs:
            if each.has_strayed():
                await in_thread(each.collect)
            if each.size() > LIMIT_BYTES:
                late |= await in_thread(each.rotate) > 2 * LIMIT_BYTES
        await anyio.sleep(FLOOD_CHECK_SECONDS if late else CHECK_SECONDS)


def _used(file: BinaryIO) -> int:
    """Return the size without the hole at the beginning.

    A worker that opened the file anew, and not to append, goes on writing at its old offset.
    """
    size = file.seek(0, os.SEEK_END)
    return size - file.seek(0, os.SEEK_DATA) if size else 0


def _copy(source: BinaryIO, target: BinaryIO, position: int, end: int) -> int:
    """Copy from `position` to `end`, and return the position reached. Raises OSError."""
    source.seek(position)
    while position < end and (piece := source.read(min(_PIECE_BYTES, end - position))):
        if target.write(piece) != len(piece):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        position += len(piece)
    return position


def _tail(path: Path, begin: int, most: int) -> bytes:
    """Return the last bytes of the file after `begin`; none if it can't be read."""
    try:
        with open(open_regular(path, os.O_RDONLY), "rb") as file:  # noqa: PTH123  # a descriptor
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin if begin <= size else 0, size - most))
            return file.read(most)
    except OSError:
        return b""


def _key(status: os.stat_result) -> _FileKey:
    return status.st_dev, status.st_ino


def _key_of(path: Path) -> _FileKey | None:
    try:
        return _key(path.lstat())
    except OSError:
        return None


def _private(path: str, flags: int) -> int:
    """Open a log; a link is not followed, and a FIFO without a reader not waited at."""
    return os.open(path, flags | os.O_NOFOLLOW, _MODE)


def printable(text: str, limit: int = 500) -> str:
    """Return the text, cut to `limit` characters, without known secrets and control characters."""
    text = without_known_secrets(text)
    return escaped(text[:limit], keep="\t") + ("…" if len(text) > limit else "")
