"""The log for whoever started the daemon: a person at a terminal, or systemd's journal.

Whoever reads standard error may stop to read (a pager, a stopped terminal, a journal that hangs),
and then a write to it waits for ever. So lines go through a queue of bounded length and a thread
of their own: the daemon never waits, and what could not be told is counted and told later.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

QUEUED_LINES = 1000
CLOSE_SECONDS = 1.0
"""How long the end of the daemon waits for a reader."""

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # as in syslog(3)
_EVENT_WIDTH = 26
_STANDARD_ERROR = 2
_IN_THE_FILE_ALONE = ("instance", "release")
_LAST = ("why", "deploy_id")


class ConsoleHandler(logging.Handler):
    """Writes to a descriptor without ever making the caller wait.

    `processors` make its lines; the last one renders.
    """

    def __init__(self, descriptor: int, processors: Sequence[Processor]) -> None:
        super().__init__()
        self.processors = processors
        self._mark = f"<{_PRIORITIES['error']}>" if is_journal(descriptor) else ""
        self._descriptor = descriptor
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._writing = False
        self._changed = threading.Condition()
        self._ended = False
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line; called with the handler's lock held."""
        try:
            self._say(self.format(record))
        except Exception as error:  # noqa: BLE001  # as logging has it: its user is not stopped
            self.complain(f"a line of the log can't be shown: {error}")

    def complain(self, message: str) -> None:
        """Tell in a line what is wrong with the log itself."""
        self._say(f"{self._mark}{message}")

    def _say(self, line: str) -> None:
        """Queue a line; one too many is dropped and counted."""
        with self._changed:
            if self._ended:
                return
            if len(self._waiting) >= QUEUED_LINES:
                self._dropped += 1
                return
            self._waiting.append(line)
            if self._thread is None:  # not before there is something to say
                name = "console"
                self._thread = threading.Thread(target=self._write_all, name=name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, but not for long."""
        with self._changed:
            self._changed.wait_for(
                lambda: not (self._waiting or self._writing) or self._ended, CLOSE_SECONDS
            )

    def close(self) -> None:
        """Write what there is to be written, if somebody reads, and end."""
        self.flush()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        super().close()

    def _write_all(self) -> None:
        while (text := self._next()) is not None:
            try:
                data = text.encode(errors="backslashreplace")
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                continue  # nobody is there any more; the file has it

    def _next(self) -> str | None:
        with self._changed:
            self._writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if not self._waiting:
                return None
            self._writing = True
            text = f"{self._waiting.popleft()}\n"
            if self._dropped:
                missing = f"{self._dropped} lines were not shown: nobody read them in time"
                text += f"{self._mark}{missing}\n"
                self._dropped = 0
            return text


def is_journal(descriptor: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether the descriptor leads to systemd's journal, as `JOURNAL_STREAM` names it.

    The variable is inherited by those whose standard error is something else by now.
    """
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def console() -> ConsoleHandler:
    """Return the handler for this process's standard error, with its processors."""
    fitting = _for_journal() if is_journal(_STANDARD_ERROR) else _for_people()
    return ConsoleHandler(_STANDARD_ERROR, fitting)


def _for_people() -> list[Processor]:
    colours = os.isatty(_STANDARD_ERROR)
    return [_arranged, _renderer(colours=colours)]


def _for_journal() -> list[Processor]:
    """Return what leaves out whatever the journal notes by itself: time, level, program."""
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
        sort_keys=False,  # the order in which they were said reads best
    )


def _arranged(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Arrange a line for a glance: the time of day, and long names last or in the file alone."""
    event["ts"] = str(event.get("ts", ""))[11:23]
    if "pid" in event or "deploy_id" in event:
        for name in _IN_THE_FILE_ALONE:
            event.pop(name, None)
    for name in _LAST:
        if name in event:
            event[name] = event.pop(name)
    return event
