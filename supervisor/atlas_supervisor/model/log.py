"""Log sources, line filters, and feeds of lines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from atlas_supervisor.model.slot import SlotName


class LogSource(StrEnum):
    """A log: the daemon's own, or what the workers of a slot print."""

    SUPERVISOR = "supervisor"
    BLUE = "blue"
    GREEN = "green"


class LogLevel(StrEnum):
    """The level of a line of the daemon's own log, lowest first."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


@dataclass(frozen=True)
class WantedLines:
    """A filter for log lines; every condition must hold.

    A worker's lines are plain text, so only `contains` applies to them.
    """

    level: LogLevel | None = None
    """The lowest level."""
    deploy_id: str | None = None
    slot: SlotName | None = None
    contains: str | None = None


@dataclass(frozen=True)
class LogLine:
    """One line, ready to show: printable, of bounded length, without its line end."""

    text: str
    cursor: str
    """Position in the log after this line, to resume from."""
    gap: bool = False
    """Not a line of the log: a note that lines are missing here."""


class LogFeed(Protocol):
    """A stream of log lines. Its receiver closes it."""

    async def next(self) -> list[LogLine] | None:
        """Return the next lines, an empty list after a silence, None at the end."""

    @property
    def cursor(self) -> str:
        """Position in the log after all lines returned or skipped so far."""

    def close(self) -> None:
        """End the feed at any time; a pending `next` returns at once."""
