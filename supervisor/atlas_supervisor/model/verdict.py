"""The outcome of a check, where a check that could not run is no evidence of a fault."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """The outcome of one check of a worker."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    """The check itself could not run (no file descriptors left, for example)."""
