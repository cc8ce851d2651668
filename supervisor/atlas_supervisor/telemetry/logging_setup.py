"""The daemon's own log: JSON lines in a file for machines, readable lines for who started it.

Both come from one event, which is made fit for a log before either sees it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import Processor

from atlas_supervisor.telemetry.console import console
from atlas_supervisor.telemetry.log_file import LogFile
from atlas_supervisor.telemetry.sanitize import in_order, plain_event

OWN_LOG = "supervisor.jsonl"

_FINE: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
    structlog.processors.format_exc_info,
    plain_event,
    in_order,
]
"""What every line goes through, those of libraries as well."""


def configure_logs(path: Path, level: str) -> None:
    """Send every log line to `path` and to standard error. Raises OSError."""
    shown = console()
    kept = LogFile(path, complain=shown.complain)
    kept.setFormatter(_formatter(structlog.processors.JSONRenderer(serializer=_json)))
    shown.setFormatter(_formatter(*shown.processors))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(kept)
    root.addHandler(shown)
    root.setLevel(level.upper())
    for noisy in ("aiosqlite", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_FINE,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _formatter(*processors: Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_FINE,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *processors],
    )


def _json(event: dict[str, Any], **_more: Any) -> str:
    """Write the event as people read it, too: all that is unprintable in it is escaped already."""
    return json.dumps(event, ensure_ascii=False)
