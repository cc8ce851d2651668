"""Reading the logs: which one, which lines of it, and what comes of it."""

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
    """How much a line of the daemon's own log matters, the least first."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


@dataclass(frozen=True)
class WantedLines:
    """Which lines of a log: all of the given conditions hold for each.

    A worker's lines have nothing but text, so only `contains` is for them.
    """

    level: LogLevel | None = None
    """At least that one."""
    deploy_id: str | None = None
    slot: SlotName | None = None
    contains: str | None = None


@dataclass(frozen=True)
class LogLine:
    """One line, fit to be shown: printable, of bounded length, without its end."""

    text: str
    place: str
    """Where the log goes on after it, for whoever comes back."""
    gap: bool = False
    """Whether it is no line, but says that some are missing here."""


class LogFeed(Protocol):
    """Lines as they come. Whoever gets it closes it."""

    async def next(self) -> list[LogLine] | None:
        """Return the next lines, none if it was silent for a while; None: there are no more."""

    @property
    def place(self) -> str:
        """Where the log goes on after all that was returned, and what was passed over."""

    def close(self) -> None:
        """End it, from anywhere and at any time; whoever waits for the next is told at once."""
