"""Reading the logs: sources, filters, lines and feeds."""

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
    """The level of a line in the daemon's own log, the lowest first."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


@dataclass(frozen=True)
class WantedLines:
    """A filter of lines; all given conditions must hold.

    A worker's lines are plain text, so only `contains` applies to them.
    """

    level: LogLevel | None = None
    """The lowest level."""
    deploy_id: str | None = None
    slot: SlotName | None = None
    contains: str | None = None


@dataclass(frozen=True)
class LogLine:
    """One line for a client: printable, of bounded length, without its newline."""

    text: str
    cursor: str
    """The position after this line, for a client that resumes."""
    gap: bool = False
    """Whether it is a note that lines are missing here."""


class LogFeed(Protocol):
    """A stream of lines. The caller must close it."""

    async def next(self) -> list[LogLine] | None:
        """Return the next lines; an empty list after a silence, None at the end."""

    @property
    def cursor(self) -> str:
        """The position after all returned lines and those that the filter excluded."""

    def close(self) -> None:
        """End the feed, from any task at any time; a pending `next` returns at once."""
