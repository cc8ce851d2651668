"""Configures the daemon's own log: JSON lines in a file, readable lines on standard error.

Both are rendered from one event, which is sanitized before.
"""

from __future__ import annotations

import logging
from pathlib import Path

import structlog
from structlog.typing import Processor

from atlas_supervisor.telemetry.handlers import LogFile, console
from atlas_supervisor.telemetry.sanitize import in_order, plain_event

OWN_LOG = "supervisor.jsonl"

_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
    structlog.processors.format_exc_info,
    plain_event,
    in_order,
]
"""Processors of every line, those of libraries included."""

_JSON = structlog.processors.JSONRenderer(ensure_ascii=False)
"""Leaves printable characters as they are: the rest is escaped already."""


def configure_logs(path: Path, level: str) -> None:
    """Send every log line to `path` and to standard error. Raises OSError."""

    def report(error: Exception) -> None:
        shown.report("log_line_not_written", file=path.name, error=error)

    file = LogFile(path, on_failure=report)
    shown = console()
    shown.setFormatter(_formatter(*shown.processors))
    file.setFormatter(_formatter(_JSON))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(file)
    root.addHandler(shown)
    root.setLevel(level.upper())
    for noisy in ("aiosqlite", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _formatter(*processors: Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *processors],
    )
