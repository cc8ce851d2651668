"""The errors that cross layers, each with what a person needs to go on.

An error that stays inside one module is defined there; these are the ones that the API, the
command line and the daemon's own start must be able to tell apart.
"""

from __future__ import annotations

from typing import Any


class AtlasError(Exception):
    """Anything the daemon reports about itself on purpose; a bug is anything else."""


class SettingsError(AtlasError):
    """The settings are refused. `faults` holds one line per fault, ready to print."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class StartRefusedError(AtlasError):
    """The daemon can't start here (a port is taken, another daemon runs); the text says why."""


class RefusedError(AtlasError):
    """A request is refused and nothing was changed by it.

    `code` is stable and snake_case, `status` the HTTP status that it is answered with, `hint`
    what the caller can do. `extra` holds further top-level fields of the answer.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int,
        hint: str,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.hint = hint
        self.extra = extra or {}
