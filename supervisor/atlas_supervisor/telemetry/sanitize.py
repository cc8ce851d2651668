"""Sanitizes events before they are logged: bounded, printable, without secrets.

Much of an event comes from others: workers, clients, exceptions of libraries. Its line must have a
bounded length, must not steer the terminal that shows it, must not contain a secret (which a field,
a URL or an exception's text may carry), and must be written for any values. The work is linear in
the length of the text, which is bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from structlog.typing import EventDict, WrappedLogger

from atlas_supervisor.system.text import (
    MASK,
    escaped,
    is_secret,
    masked,
    without_known_secrets,
)

LONGEST_TEXT = 4096
LONGEST_TRACEBACK = 16 * 1024
MOST_VALUES = 64
"""In one mapping or list; also the number of fields of a line."""
DEEPEST = 4

_LONGEST_LINE = 24 * 1024  # characters, then one text more; in JSON and UTF-8 up to four bytes each
_SHORT = 80
_LARGEST = 2**64  # JSON readers get larger numbers wrong, and Python may refuse to write them

_FIRST = ("ts", "level", "event", "deploy_id", "slot", "instance", "release")
"""Fields that are always kept, in the order of a line."""
_MANY_LINES = frozenset({"exception", "stack"})

# Each begins at the start of a word and does not look at it twice: a long text must not cost more
# than its length.
_NAME = r"[\w-]*(?:token|secret|password|passwd|credentials?|api[_-]?key)"
_ASSIGNED = re.compile(rf"(?i)(?<![\w-])({_NAME}=)(\"[^\"]*\"|'[^']*'|[^\s\"'&,;)\]}}]+)")
_QUOTED = re.compile(rf"(?i)([\"']{_NAME}[\"']\s*[:=]\s*)(\"[^\"]*\"|'[^']*')")
_HEADER = re.compile(r"(?i)\b(authorization[\"']?\s*[:=]\s*[\"']?\w+\s+|bearer\s+)[\w.~+/=-]{6,}")
_URL = re.compile(r"\b\w++://[^\s\"'<>]+")


def without_secrets(key: str, text: str) -> str:
    """Return the text of a field with every secret in it replaced by `***`."""
    if text and is_secret(key):
        return MASK
    text = without_known_secrets(text)
    if "://" in text:
        text = _URL.sub(lambda found: masked("", found[0]), text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    text = _QUOTED.sub(rf"\1'{MASK}'", text)
    return _HEADER.sub(rf"\1{MASK}", text)


def plain_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Return the event with short, printable, harmless JSON values only.

    Fields that find the line full are named in `left_out`.
    """
    line = _Line()
    cleaned: EventDict = {key: line.field(key, event[key]) for key in _FIRST if key in event}
    left_out: list[str] = []
    others = sorted((key for key in event if key not in cleaned), key=_after_tracebacks)
    for key in others[:MOST_VALUES]:
        if key.startswith("_"):  # structlog's own of the chain
            cleaned[key] = event[key]
        elif line.room > 0:
            cleaned[key] = line.field(key, event[key])
        else:
            left_out.append(key[:_SHORT])
    if left_out:
        cleaned["left_out"] = left_out
    return cleaned


def in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Return the event with the fields of every line first, so that lines are easy to compare."""
    first = {key: event[key] for key in _FIRST if key in event}
    return first | {key: value for key, value in event.items() if key not in first}


def _after_tracebacks(key: str) -> bool:
    return key not in _MANY_LINES


class _Line:
    """Makes the values of one line, and counts the room that is left for them."""

    def __init__(self) -> None:
        self.room = _LONGEST_LINE

    def field(self, key: str, value: Any) -> Any:
        """Return a field's value as JSON can hold it."""
        self.room -= len(key)
        try:
            return self._plain(key, value, 0)
        except Exception:  # noqa: BLE001  # a value that can't be read must not lose the line
            return _unreadable(value)

    def _plain(self, key: str, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._text(key, value)
        if depth < DEEPEST and isinstance(value, Mapping):
            named = ((self._text("", each), inner) for each, inner in self._some(value.items()))
            return {name[:_SHORT]: self._plain(name, inner, depth + 1) for name, inner in named}
        if depth < DEEPEST and isinstance(value, list | tuple | set | frozenset):
            return [self._plain(key, inner, depth + 1) for inner in self._some(value)]
        if value is None or (isinstance(value, int) and -_LARGEST <= value <= _LARGEST):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)  # JSON has no infinity
        return self._text(key, value)

    def _some(self, values: Iterable[Any]) -> Iterator[Any]:
        """Yield the first values, while there is room."""
        for _, value in zip(range(MOST_VALUES), values, strict=False):
            if self.room <= 0:
                return
            self.room -= 8  # punctuation, and a number
            yield value

    def _text(self, key: str, value: Any) -> str:
        many = key in _MANY_LINES
        text = escaped(_short(key, _as_text(value), many=many), keep="\n" if many else "")
        self.room -= len(text)
        return text


def _as_text(value: Any) -> str:
    try:
        return value if isinstance(value, str) else str(value)
    except Exception:  # noqa: BLE001  # a failing `__str__` must not lose the line
        return _unreadable(value)


def _unreadable(value: Any) -> str:
    return f"<{type(value).__name__} that can't be shown>"


def _short(key: str, text: str, *, many: bool) -> str:
    """Return the text without secrets, and without its middle if it is long.

    A text begins with its subject, and an error ends with its cause.
    """
    limit = LONGEST_TRACEBACK if many else LONGEST_TEXT
    # More than is kept is searched for secrets, so that none is cut in two and missed.
    text = without_secrets(key, _without_middle(text, 2 * limit, 2 * limit))
    return _without_middle(text, limit // 4, limit - limit // 4)


def _without_middle(text: str, first: int, last: int) -> str:
    if len(text) <= first + last:
        return text
    return f"{text[:first]}…{text[-last:]}"
