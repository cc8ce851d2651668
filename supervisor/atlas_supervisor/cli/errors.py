"""The client's failures: a message that says what went wrong, and a hint that says what to do.

Every failure has the exit code that scripts rely on: 1 refused or failed, 2 wrong usage (click's
own `UsageError`), 3 no daemon there.
"""

from __future__ import annotations

import sys
from typing import IO, Any

import click

from atlas_supervisor.cli.terminal import Screen


class FailedError(click.ClickException):
    """The daemon refused the request, or the request failed: exit 1."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        """Print message and hint on standard error, or on `file`."""
        Screen(file or sys.stderr).failure(self.message, self.hint)


class NoDaemonError(FailedError):
    """No answer, or not one of a daemon: exit 3."""

    exit_code = 3


class BrokenError(NoDaemonError):
    """The connection broke before the answer: the request may have been executed."""


class NoStreamError(NoDaemonError):
    """There is no event stream, for example because the daemon is of an earlier version.

    `answer` is the answer instead, if it was one of the API.
    """

    def __init__(self, message: str, answer: Any = None) -> None:
        super().__init__(message)
        self.answer = answer


class InterruptedByUserError(FailedError):
    """Ctrl-C. The exit code is the shell's own, so that loops in scripts end as well."""

    exit_code = 130

    def show(self, file: IO[Any] | None = None) -> None:
        """Print what continues without the client, as a plain line: this is not a failure."""
        if self.message:
            Screen(file or sys.stderr).print(self.message)
