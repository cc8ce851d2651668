"""What was found: a check, how it went, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum

from pydantic import BaseModel


class Level(StrEnum):
    """How it went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(BaseModel, frozen=True):
    """One finding. A check may have several."""

    check: str
    status: Level
    message: str
    mend: str | None = None
    """A command or a sentence; None where nothing is to be done."""


class Report(BaseModel, frozen=True):
    """All findings; `status` is the worst of them. Printed as one line of JSON."""

    status: Level
    findings: list[Finding]


def ok(check: str, message: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(check=check, status=Level.OK, message=message)


def warn(check: str, message: str, mend: str) -> Finding:
    """Return a finding that a deploy works with."""
    return Finding(check=check, status=Level.WARN, message=message, mend=mend)


def fail(check: str, message: str, mend: str) -> Finding:
    """Return a finding that a start or a deploy fails with."""
    return Finding(check=check, status=Level.FAIL, message=message, mend=mend)


def looked(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a look finds, and a warning if the kernel does not let us look."""
    try:
        yield from look()
    except OSError as error:
        message = f"can't be looked at: {error.strerror or error}"
        yield warn(check, message, "Run it as root, or as the daemon's user.")


def report(findings: list[Finding]) -> Report:
    """Return the report of these findings."""
    worst = max((each.status for each in findings), key=list(Level).index, default=Level.OK)
    return Report(status=worst, findings=findings)
