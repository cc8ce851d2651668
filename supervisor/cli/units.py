"""Numbers, spans and moments as people say them."""

from __future__ import annotations

from datetime import UTC, datetime

MISSING = "-"

SECOND = 1000.0  # in milliseconds, as are all spans here
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def duration(milliseconds: float) -> str:
    """Return a span with the units that matter: `0.08 ms`, `1.2 s`, `2 min 5 s`, `3 d 4 h`."""
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


def _pair(milliseconds: float, size: float, unit: str, part: float, part_unit: str) -> str:
    rest = int(milliseconds % size // part)
    whole = f"{int(milliseconds // size)} {unit}"
    return f"{whole} {rest} {part_unit}" if rest else whole


def moment(timestamp: object) -> datetime | None:
    """Return an ISO 8601 timestamp of the API as a moment, or None for anything else."""
    if not isinstance(timestamp, str):
        return None
    try:
        parsed = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def age(timestamp: object, now: datetime | None = None) -> str:
    """Return how long ago a timestamp was, in one unit; clocks that disagree mean no time."""
    then = moment(timestamp)
    if then is None:
        return MISSING
    passed = ((now or datetime.now(UTC)) - then).total_seconds() * SECOND
    for size, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (SECOND, "s")):
        if passed >= size:
            return f"{int(passed // size)} {unit}"
    return "0 s"


def local_time(timestamp: object) -> str:
    """Return a timestamp in the reader's own time zone, to the minute."""
    then = moment(timestamp)
    return MISSING if then is None else then.astimezone().strftime("%Y-%m-%d %H:%M")


def clock_time(timestamp: object) -> str:
    """Return a timestamp in the reader's own time zone, to the millisecond, without the year."""
    then = moment(timestamp)
    if then is None:
        return MISSING
    local = then.astimezone()
    return f"{local:%m-%d %H:%M:%S}.{local.microsecond // 1000:03}"
