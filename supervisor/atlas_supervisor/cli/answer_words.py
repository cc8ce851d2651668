"""Words for health checks and for entries of the audit trail, for every client."""

from __future__ import annotations

from typing import Any

from atlas_supervisor.cli.units import MISSING
from atlas_supervisor.cli.words import Record, mapping

REPORTED = ("llm_latency", "scheduler", "memory", "db_integrity")
"""Checks that a worker reports about itself, as the bundled one does."""


def applicable(checks: Record) -> Record:
    """Return the checks without those of the worker if it reports none of them.

    A foreign application has none; of any worker, `port_active` says why there are none now.
    """
    found = {name: mapping(check) for name, check in checks.items()}
    reported = [n for n in REPORTED if n in found and found[n].get("status") != "skipped"]
    return {name: each for name, each in found.items() if reported or name not in REPORTED}


def value_in_words(check: Record) -> str:
    """Return a check's value with its unit."""
    value = check.get("value")
    if not isinstance(value, int | float):
        return MISSING
    return f"{value:,.1f}".removesuffix(".0").replace(",", " ") + f" {check.get('unit') or ''}"


BAD_OUTCOMES = frozenset({"failed", "refused", "rolled_back", "aborted"})


def detail_in_words(detail: Any) -> str:
    """Return the detail on one line, without empty values."""
    if not isinstance(detail, dict):
        return ""
    return ", ".join(
        f"{name} {_value(value)}" for name, value in detail.items() if value not in (None, "", [])
    )


def _value(value: Any) -> str:
    """Return a value in words: a list by its items, a record by its values."""
    if isinstance(value, list):
        return " + ".join(map(_value, value))
    if isinstance(value, dict):
        return " ".join(map(_value, value.values()))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
