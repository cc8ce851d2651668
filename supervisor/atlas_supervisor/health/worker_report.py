"""Reads the checks that a worker reports in its answer on `HEALTH_PATH`.

Any program may answer there. A check that can't be understood is skipped, and the health rests on
what is observed from outside.
"""

from __future__ import annotations

import json
import math
from typing import Any

from atlas_supervisor.model.health import Check, CheckStatus
from atlas_supervisor.probes.http_client import HttpResponse, printable

REPORTED = ("llm_latency", "scheduler", "memory", "db_integrity")
"""Checks that only the worker can make; nothing else of its answer is read."""

GATE_CHECKS = ("scheduler", "memory", "db_integrity")
"""Checks whose failure fails a deploy: ADR 0006."""

MESSAGE_LIMIT = 200
UNIT_LIMIT = 16
"""Characters that are kept of a worker's text."""


def read(answer: HttpResponse) -> dict[str, Check]:
    """Return every check of `REPORTED`; those that are missing in the answer are skipped."""
    reported = _checks(answer)
    return {name: _check(name, reported.get(name)) for name in REPORTED}


def complaint(answer: HttpResponse) -> str | None:
    """Return the failed checks of `GATE_CHECKS` that the answer reports, in words; None if none."""
    found = read(answer)
    failed = [name for name in GATE_CHECKS if found[name].status is CheckStatus.FAIL]
    return "; ".join(f"{name} failed: {found[name].message}" for name in failed) or None


def skipped(why: str) -> dict[str, Check]:
    """Return every check of `REPORTED` as skipped, for this reason."""
    return {name: Check(status=CheckStatus.SKIPPED, message=why) for name in REPORTED}


def _checks(answer: HttpResponse) -> dict[str, Any]:
    if answer.cut:
        return {}
    try:
        # NaN and infinities are not JSON, but many programs write them; here they are no value.
        body = json.loads(answer.body, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {}
    checks = body.get("checks") if isinstance(body, dict) else None
    return checks if isinstance(checks, dict) else {}


def _check(name: str, reported: Any) -> Check:
    if reported is None:
        return Check(status=CheckStatus.SKIPPED, message="not reported by the worker")
    word = reported.get("status") if isinstance(reported, dict) else None
    if not isinstance(word, str) or word not in set(CheckStatus):
        why = f"the worker's answer has no readable {name}"
        return Check(status=CheckStatus.SKIPPED, message=why)
    return Check(
        status=CheckStatus(word),
        value=_number(reported.get("value")),
        unit=_line(reported.get("unit"), UNIT_LIMIT) or None,
        message=_line(reported.get("message"), MESSAGE_LIMIT),
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _line(text: Any, limit: int) -> str:
    """Return the text's beginning as one printable line; an empty one for anything but text."""
    if not isinstance(text, str):
        return ""
    line = printable(" ".join(text[: 2 * limit].split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"
