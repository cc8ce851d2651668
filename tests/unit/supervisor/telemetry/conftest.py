from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from atlas_supervisor.system import text
from atlas_supervisor.telemetry.logging_setup import configure_logs


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Configure the process's logging for one test, and restore it."""
    monkeypatch.setattr(text, "_known", [])
    structlog.contextvars.clear_contextvars()  # of tests before this one
    root = logging.getLogger()
    level, quiet = root.level, {n: logging.getLogger(n).level for n in ("aiosqlite", "asyncio")}
    handlers = root.handlers[:]
    root.handlers.clear()  # pytest's own must stay open
    configure_logs(tmp_path / "supervisor.jsonl", "info")
    yield tmp_path / "supervisor.jsonl"
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in quiet.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()
