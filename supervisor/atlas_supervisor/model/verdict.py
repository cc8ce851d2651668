"""The outcome of a check, where "unknown" must not count as "broken"."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """The outcome of one check of a worker."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    """The check itself failed (no descriptors left, for example): no evidence either way."""
