"""The daemon's own log: JSON lines in a file for machines, readable lines on a terminal.

Both are written by the standard library's handlers behind structlog, from one event. The file is
bounded: when it is full it is renamed and begun anew, which `tail -F` follows.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from functools import partial
from io import TextIOWrapper
from pathlib import Path

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

FILE_BYTES = 10 * 1024 * 1024
"""The size at which the file is begun anew; so many older ones are kept:"""
FILES_KEPT = 4

_MODE = 0o640
_MANY_LINES = {"exception", "stack"}


class _PrivateFile(logging.handlers.RotatingFileHandler):
    """Begins every new file with the mode of the first, and says in a line what goes wrong."""

    def _open(self) -> TextIOWrapper:
        private = partial(os.open, mode=_MODE)
        file = open(self.baseFilename, self.mode, encoding=self.encoding, opener=private)  # noqa: SIM115  # Path has no opener; the handler closes it
        assert isinstance(file, TextIOWrapper)  # noqa: S101  # what text mode gives
        return file

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the base's
        name, error = Path(self.baseFilename).name, sys.exception()
        print(f"{name} can't be written: {error}", file=sys.stderr)  # noqa: T201  # where else


def configure_logs(path: Path, level: str) -> None:
    """Send every log line to `path` and to standard error. Raises OSError."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        _plain_values,
    ]
    file = _PrivateFile(path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8")
    path.chmod(_MODE)
    file.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _readable_time,
                structlog.dev.ConsoleRenderer(
                    colors=sys.stderr.isatty(),
                    timestamp_key="ts",
                    pad_event_to=26,
                    sort_keys=False,  # the order in which they were said reads best
                ),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(file)
    root.addHandler(console)
    root.setLevel(level.upper())
    for noisy in ("aiosqlite", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _plain_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters: what a worker or a client said must not steer a terminal."""
    for key, value in event.items():
        if isinstance(value, str):
            lines = value.split("\n") if key in _MANY_LINES else [value]
            event[key] = "\n".join(map(_escaped, lines))
    return event


def _escaped(text: str) -> str:
    if text.isprintable():
        return str(text)
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def _readable_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["ts"] = str(event["ts"])[11:23]
    return event
