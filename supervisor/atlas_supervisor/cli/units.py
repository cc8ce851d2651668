"""Formats numbers, durations and times for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

MISSING = "-"

SECOND = 1000.0  # in milliseconds, as all durations here
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_LEAST_PERCENT = 0.0001


def duration(milliseconds: float) -> str:
    """Return a duration in its largest units: `0.08 ms`, `1.2 s`, `2 min 5 s`, `3 d 4 h`."""
    if milliseconds < 1:
        return f"{round(max(milliseconds, 0), 2):g} ms"
    if milliseconds < SECOND:
        return f"{milliseconds:.0f} ms"
    if milliseconds < MINUTE:
        return f"{milliseconds / SECOND:.1f} s"
    if milliseconds < HOUR:
        return _pair(milliseconds, MINUTE, "min", SECOND, "s")
    if milliseconds < DAY:
        return _pair(milliseconds, HOUR, "h", MINUTE, "min")
    return _pair(milliseconds, DAY, "d", HOUR, "h")


def recent_errors(recent: Mapping[str, Any]) -> str:
    """Return the words for the `requests` of a status: `3 of 1,200 requests failed in 5 min`."""
    seconds = int(recent.get("seconds") or 0)
    span = f"{seconds} s" if seconds < 60 else f"{seconds // 60} min"
    if not (failed := recent.get("failed")):
        return f"0 errors in {span}"
    return f"{amount(failed)} of {amount(recent.get('requests'))} requests failed in {span}"


def _pair(milliseconds: float, size: float, unit: str, part: float, part_unit: str) -> str:
    rest = int(milliseconds % size // part)
    whole = f"{int(milliseconds // size)} {unit}"
    return f"{whole} {rest} {part_unit}" if rest else whole


def moment(timestamp: object) -> datetime | None:
    """Return an ISO 8601 timestamp of the API as a datetime; None for anything else."""
    if not isinstance(timestamp, str):
        return None
    try:
        parsed = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def age(timestamp: object, now: datetime | None = None) -> str:
    """Return how long ago a timestamp was, in one unit; `0 s` for one in the future."""
    then = moment(timestamp)
    if then is None:
        return MISSING
    passed = ((now or datetime.now(UTC)) - then).total_seconds() * SECOND
    for size, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (SECOND, "s")):
        if passed >= size:
            return f"{int(passed // size)} {unit}"
    return "0 s"


def local_time(timestamp: object) -> str:
    """Return a timestamp in local time, to the minute."""
    then = moment(timestamp)
    return MISSING if then is None else then.astimezone().strftime("%Y-%m-%d %H:%M")


def latency(milliseconds: object) -> str:
    """Return a duration with three digits, for comparison: `1.48 ms`, `74.1 ms`."""
    number = _number(milliseconds)
    if number is None:
        return MISSING
    if number >= SECOND - 0.5:  # just below, three digits round to a second
        return duration(max(number, SECOND))
    return f"{number:.3g} ms" if number >= 0.1 else f"{round(max(number, 0), 3):g} ms"


def amount(count: object) -> str:
    """Return a count: `12,345`."""
    number = _number(count)
    return MISSING if number is None else f"{number:,.0f}"


def size(count: float) -> str:
    """Return a number of bytes: `12 kB`, `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.1f} {unit}" if count < 10 and unit != "B" else f"{count:,.0f} {unit}"


def percent(rate: object) -> str:
    """Return a rate, 0 to 1, in percent: `12.3 %`; a small one with two digits: `0.052 %`.

    Only exactly 1 is `100 %`, and only exactly 0 is `0 %`.
    """
    number = _number(rate)
    if number is None:
        return MISSING
    value = abs(number) * 100
    short = min(value, abs(100 - value))  # distance to 0 or 100, whichever is nearer
    if 0 < short < _LEAST_PERCENT:
        return f"under {_LEAST_PERCENT} %" if value < 1 else f"over {100 - _LEAST_PERCENT} %"
    decimals = max(1, 1 - math.floor(math.log10(short))) if short else 0
    digits = f"{value:.{decimals}f}"
    return f"{digits.rstrip('0').rstrip('.') if decimals else digits} %"


def change(rate: object) -> str:
    """Return a difference of two rates with its sign: `+1.7 %`, `-0.7 %`, `0 %`."""
    number = _number(rate)
    if number is None:
        return MISSING
    if abs(number) * 100 < _LEAST_PERCENT:
        return "0 %"
    return f"{'+' if number > 0 else '-'}{percent(abs(number))}"


def _number(value: object) -> float | None:
    """Return a finite number of the API; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def clock_time(timestamp: object) -> str:
    """Return a timestamp in local time, to the millisecond, without the year."""
    then = moment(timestamp)
    if then is None:
        return MISSING
    local = then.astimezone()
    return f"{local:%m-%d %H:%M:%S}.{local.microsecond // 1000:03}"
