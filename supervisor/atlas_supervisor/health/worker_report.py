"""What a worker's own answer on `HEALTH_PATH` tells of it, whatever that answer holds.

Any program may answer there. What is not understood is not believed and does no harm: such a
check is skipped, and what is seen from outside has to do.
"""

from __future__ import annotations

import json
import math
from typing import Any

from atlas_supervisor.model.health import Check, CheckStatus
from atlas_supervisor.probes.http_client import HttpResponse, printable

TOLD = ("llm_latency", "scheduler", "memory", "db_integrity")
"""What only the worker can see; nothing else is read of its answer."""

AT_THE_GATE = ("scheduler", "memory", "db_integrity")
"""Those of which a failure fails a deploy: ADR 0006."""

MESSAGE_LIMIT = 200
UNIT_LIMIT = 16
"""Characters that are kept of a worker's words."""


def read(answer: HttpResponse) -> dict[str, Check]:
    """Return every check of `TOLD`; those that the answer does not tell are skipped."""
    told = _checks(answer)
    return {name: _check(name, told.get(name)) for name in TOLD}


def complaint(answer: HttpResponse) -> str | None:
    """Return what an answer itself says is broken, in words; None if nothing that counts."""
    found = read(answer)
    failed = [name for name in AT_THE_GATE if found[name].status is CheckStatus.FAIL]
    return "; ".join(f"{name} failed: {found[name].message}" for name in failed) or None


def skipped(why: str) -> dict[str, Check]:
    """Return every check of `TOLD` as skipped, for this reason."""
    return {name: Check(status=CheckStatus.SKIPPED, message=why) for name in TOLD}


def _checks(answer: HttpResponse) -> dict[str, Any]:
    if answer.cut:
        return {}
    try:
        # NaN and its kin are no JSON, yet many write them; here they are no value.
        body = json.loads(answer.body, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {}
    checks = body.get("checks") if isinstance(body, dict) else None
    return checks if isinstance(checks, dict) else {}


def _check(name: str, told: Any) -> Check:
    if told is None:
        return Check(status=CheckStatus.SKIPPED, message="the worker's answer does not tell")
    word = told.get("status") if isinstance(told, dict) else None
    if not isinstance(word, str) or word not in set(CheckStatus):
        why = f"the worker's answer has no readable {name}"
        return Check(status=CheckStatus.SKIPPED, message=why)
    return Check(
        status=CheckStatus(word),
        value=_number(told.get("value")),
        unit=_line(told.get("unit"), UNIT_LIMIT) or None,
        message=_line(told.get("message"), MESSAGE_LIMIT),
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
    """Return the text's beginning as one printable line; nothing for what is no text."""
    if not isinstance(text, str):
        return ""
    line = printable(" ".join(text[: 2 * limit].split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"
