"""How the client fails: one line that says what went wrong, one that says what to do.

Every failure carries the exit code that scripts rely on: 1 refused or failed, 2 wrong usage
(click's own `UsageError`), 3 no daemon there.
"""

from __future__ import annotations

import sys
from typing import IO, Any

import click

from atlas_supervisor.cli.terminal import Screen


class FailedError(click.ClickException):
    """The daemon refused, or what was asked for failed. Nothing is left to do here: exit 1."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        """Print message and hint on standard error, or on `file`."""
        Screen(file or sys.stderr).failure(self.message, self.hint)


class NoDaemonError(FailedError):
    """Nobody answered, or not as the daemon does: exit 3."""

    exit_code = 3


class BrokenError(NoDaemonError):
    """The connection broke before the answer: what was asked for may have been done."""


class NoStreamError(NoDaemonError):
    """Whoever answers there tells no events, as a daemon of an earlier version.

    `answer` is what it said instead, if that was an answer of the API.
    """

    def __init__(self, message: str, answer: Any = None) -> None:
        super().__init__(message)
        self.answer = answer


class InterruptedByUserError(FailedError):
    """Ctrl-C. The exit code is the shell's own for it, so that loops in scripts end as well."""

    exit_code = 130

    def show(self, file: IO[Any] | None = None) -> None:
        """Print what goes on without the client, as a plain line: it is no failure."""
        if self.message:
            Screen(file or sys.stderr).print(self.message)
