"""The two handlers of the daemon's log: a file, and standard error.

The file has whole lines and a bounded size, and never stops its writer. A full one is renamed and
a new one started: `tail -F` follows that, and a reader that has the old one open can read it to
its end. On a full disk a line is written whole or not at all; lost lines are counted, and the
count is logged once there is room again. Why this is not logging's RotatingFileHandler:
docs/adr/0024-a-log-file-of-whole-lines.md.

Standard error is for a person at a terminal or for systemd's journal. Its reader may stop reading
(a pager, a stopped terminal, a journal that hangs), and a write to it then blocks. So a bounded
queue and a thread stand between: the daemon never waits, and lines that find the queue full are
counted and reported.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from atlas_supervisor.system.files import open_regular

FILE_BYTES = 10 * 1024 * 1024
"""The size at which a new file is started."""
FILES_KEPT = 4
"""How many older files are kept."""

_MODE = 0o640

QUEUED_LINES = 1000
CLOSE_SECONDS = 1.0
"""How long the daemon's exit waits for a reader."""

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # as in syslog(3)
_EVENT_WIDTH = 26
_STANDARD_ERROR = 2
_FILE_ONLY = ("instance", "release")
_LAST = ("why", "deploy_id")

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
        self._replaced = False
        """Whether the file was replaced, and that is not logged yet."""
        self._displaced: OSError | None = None
        """Why there can be no file of the name, although ours has lost it."""
        self._displaced_logged = False
        self._descriptor: int | None = None  # set before a failure: the handler is closed at exit
        self._descriptor = self._open()

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
        if self._displaced and not self._displaced_logged:
            self._displaced_logged = True
            log.error("log_file_displaced", file=self._path.name, why=str(self._displaced))
        if self._replaced:
            self._replaced = self._displaced_logged = False
            self._displaced = None
            log.warning(
                "log_file_replaced",
                file=self._path.name,
                why="another program has removed, renamed or replaced it",
            )

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
        elif self._has_lost_its_name(self._descriptor):
            try:
                self._replace(self._descriptor)
            except OSError as error:  # the next line tries again; meanwhile the size is bounded
                self._displaced = self._displaced or error
        size = os.fstat(self._descriptor).st_size
        if size and size + len(line) > FILE_BYTES:
            self._descriptor = self._rotate(self._descriptor)
            size = 0
        written = os.write(self._descriptor, line)
        if written != len(line):
            os.ftruncate(self._descriptor, size)  # half a line is worse than none
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _has_lost_its_name(self, descriptor: int) -> bool:
        """Return whether another program has removed, renamed or replaced the file."""
        try:
            named = self._path.lstat()
        except OSError:
            return True
        return not os.path.samestat(named, os.fstat(descriptor))

    def _replace(self, lost: int) -> None:
        """Go on in a file of the name."""
        self._path.parent.mkdir(mode=0o750, exist_ok=True)
        self._descriptor = self._open()
        os.close(lost)
        self._replaced = True

    def _rotate(self, full: int) -> int:
        """Rename the full file and all older ones, and return a new file's descriptor.

        Where one can't be renamed, because a folder is in the way, its lines are dropped.
        """
        for number in range(FILES_KEPT - 1, -1, -1):
            name = older(self._path, number) if number else self._path
            with suppress(OSError):  # most often there is none
                name.replace(older(self._path, number + 1))
        self._descriptor = None  # if the new file can't be opened, the next line tries again
        try:
            fresh = self._open()
            if os.path.samestat(os.fstat(fresh), os.fstat(full)):
                os.ftruncate(fresh, 0)
        finally:
            os.close(full)
        return fresh

    def _open(self) -> int:
        descriptor = open_regular(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _MODE)
        os.fchmod(descriptor, _MODE)  # for any umask, and for a file that existed
        return descriptor


class ConsoleHandler(QueueHandler):
    """Queues formatted lines for a thread that writes them; the caller never waits.

    `processors` make the lines; the last one renders.
    """

    def __init__(self, descriptor: int, processors: Sequence[Processor]) -> None:
        # Unlike Queue, this one may be put into by a finalizer that interrupts a put.
        self._lines: SimpleQueue[logging.LogRecord | threading.Event | None] = SimpleQueue()
        super().__init__(self._lines)
        self.processors = processors
        self.dropped = 0
        """Lines that found the queue full; only ever grows."""
        self._writer = _Writer(descriptor, self)
        self._writer.start()
        self._closed = False

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a line, or count it as dropped; called with the handler's lock held."""
        if self._lines.qsize() < QUEUED_LINES:
            self._lines.put(record)
        else:
            self.dropped += 1

    def report(self, event: str, **fields: Any) -> None:
        """Log an error of the log itself, here only."""
        self.handle(_record(logging.ERROR, event, fields))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Report a line that can't be formatted; logging's own way is a write that may block."""
        fields = {"logger": record.name, "error": sys.exc_info()[1]}
        self.enqueue(_record(logging.ERROR, "log_line_not_formatted", fields))

    def flush(self) -> None:
        """Wait until all lines are written, for a second at most."""
        if not self._closed:
            self._drained()

    def close(self) -> None:
        """Write what is queued, unless the reader has stopped reading."""
        if not self._closed:
            self._closed = True
            if self._drained():
                self._writer.stop()
        super().close()

    def _drained(self) -> bool:
        written = threading.Event()
        self._lines.put(written)
        return written.wait(CLOSE_SECONDS)


class _Writer(QueueListener):
    """The thread that writes, and that may block at any write."""

    def __init__(self, descriptor: int, console: ConsoleHandler) -> None:
        super().__init__(console.queue)
        self._descriptor = descriptor
        self._console = console
        self._reported = 0

    def handle(self, record: logging.LogRecord | threading.Event) -> None:
        """Write one line; an event in its place is set once all before it are written."""
        if isinstance(record, threading.Event):
            record.set()
            return
        self._write(record.getMessage())
        if lines := self._console.dropped - self._reported:
            self._reported += lines
            notice = _record(logging.WARNING, "console_lines_dropped", {"lines": lines})
            self._write(self._console.format(notice))

    def _write(self, line: str) -> None:
        data = f"{line}\n".encode(errors="backslashreplace")
        # Not by a stream object: the interpreter's exit would wait for its lock.
        with suppress(OSError):  # the reader is gone; the file has the line
            while data:
                data = data[os.write(self._descriptor, data) :]


def _record(level: int, event: str, fields: dict[str, Any]) -> logging.LogRecord:
    name = logging.getLevelName(level)
    text = " ".join([event, *(f"{key}={value}" for key, value in fields.items())])
    return logging.makeLogRecord({"levelno": level, "levelname": name, "msg": text})


def is_journal(descriptor: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the descriptor leads to systemd's journal, as `JOURNAL_STREAM` names it.

    Children inherit the variable even if their standard error leads elsewhere.
    """
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def console() -> ConsoleHandler:
    """Return the handler for this process's standard error, with its processors."""
    processors = _for_journal() if is_journal(_STANDARD_ERROR) else _for_people()
    return ConsoleHandler(_STANDARD_ERROR, processors)


def _for_people() -> list[Processor]:
    colours = os.isatty(_STANDARD_ERROR)
    return [_arranged, _renderer(colours=colours)]


def _for_journal() -> list[Processor]:
    """Return processors that leave out what the journal records itself: time and level."""
    render = _renderer(colours=False)

    def prioritised(logger: WrappedLogger, method: str, event: EventDict) -> str:
        event.pop("ts", None)
        priority = _PRIORITIES.get(str(event.pop("level", "")), 5)
        text = str(render(logger, method, event))
        # Each line is an entry of its own there, so each needs its priority.
        return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))

    return [prioritised]


def _renderer(*, colours: bool) -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(
        colors=colours,
        timestamp_key="ts",
        pad_event_to=_EVENT_WIDTH,
        sort_keys=False,  # the order of the call reads best
    )


def _arranged(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Arrange a line for reading: the time of day, and long names last or in the file only."""
    event["ts"] = str(event.get("ts", ""))[11:23]
    if "pid" in event or "deploy_id" in event:
        for name in _FILE_ONLY:
            event.pop(name, None)
    for name in _LAST:
        if name in event:
            event[name] = event.pop(name)
    return event
