"""The log on standard error, for a person at a terminal or for systemd's journal.

The reader of standard error may stop reading (a pager, a stopped terminal, a journal that hangs),
and a write to it then blocks. So a bounded queue and a thread stand between: the daemon never
waits, and lines that find the queue full are counted and reported.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

QUEUED_LINES = 1000
CLOSE_SECONDS = 1.0
"""How long the daemon's exit waits for a reader."""

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # as in syslog(3)
_EVENT_WIDTH = 26
_STANDARD_ERROR = 2
_FILE_ONLY = ("instance", "release")
_LAST = ("why", "deploy_id")


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
