"""What a check found out, where "I could not tell" must not be taken for "it is broken"."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """The outcome of one check of a worker."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    """The checker itself failed (no descriptors left, say): no evidence against the worker."""
