"""What may stand in a log line, whoever said it: bounded, printable, without a secret.

Much of the log was said by others: workers, clients, exceptions of libraries. A line must stay one
line of bounded length, must not steer the terminal that it is read on, and must never fail to be
written because of what is in it.

Keeping secrets out of the log: by their names, by where they stand, and by their very values.

A value can reach a line in many ways: as a field, in a URL, in the text of somebody's exception.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from structlog.typing import EventDict, WrappedLogger

from atlas_supervisor.config.describe import masked

MASK = "***"

_SHORTEST = 6
"""A shorter value is no secret, and would be found in the middle of ordinary words."""

_NAME = r"[\w-]*(?:token|secret|password|passwd|credentials?|api[_-]?key)"
_ASSIGNED = re.compile(rf"(?i)\b({_NAME}=)(\"[^\"]*\"|'[^']*'|[^\s\"'&,;)\]}}]+)")
_QUOTED = re.compile(rf"(?i)([\"']{_NAME}[\"']\s*[:=]\s*)(\"[^\"]*\"|'[^']*')")
_HEADER = re.compile(r"(?i)\b(authorization[\"']?\s*[:=]\s*[\"']?\w+\s+|bearer\s+)[\w.~+/=-]{6,}")
_URL = re.compile(r"\w+://[^\s\"'<>]+")

_known: set[str] = set()


def keep_secret(values: Iterable[str]) -> None:
    """Mask these values from now on, wherever they turn up; short ones are left alone."""
    _known.update(value for value in values if len(value) >= _SHORTEST)


def is_secret(key: str) -> bool:
    """Tell whether a field or variable of this name holds a secret."""
    return masked(key, "x") != "x"


def without_secrets(key: str, text: str) -> str:
    """Return the text of a field with anything secret in it replaced by `***`."""
    if text and is_secret(key):
        return MASK
    for value in list(_known):
        if value in text:
            text = text.replace(value, MASK)
    if "://" in text:
        text = _URL.sub(lambda found: masked("", found[0]), text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    text = _QUOTED.sub(rf"\1'{MASK}'", text)
    return _HEADER.sub(rf"\1{MASK}", text)


LONGEST_TEXT = 4096
LONGEST_TRACEBACK = 16 * 1024
MOST_VALUES = 64
"""In one mapping or list; also the number of fields of a line."""
DEEPEST = 4

_MANY_LINES = frozenset({"exception", "stack"})
_FIRST = ("ts", "level", "event", "deploy_id", "slot", "instance", "release")
"""What is kept whatever else has to go, in the order in which a line tells it."""
# Looked at one by one: control characters, those that reorder or part lines (U+202E, U+2028) and
# halves of characters are unprintable to Python, too.
_SUSPECT = re.compile(r"[^ -~]")
_LONGEST_LINE = 32 * 1024  # characters; in JSON and UTF-8 at most four times as many bytes
_SHORT = 80
_LARGEST = 2**64  # beyond, JSON's readers get it wrong, and Python may refuse to write it


def plain_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Return the event with nothing in it but short, printable, harmless JSON values."""
    cleaned: EventDict = {key: _shown(key, event[key]) for key in _FIRST if key in event}
    budget = _LONGEST_LINE - sum(map(_weight, cleaned.values()))
    left_out: list[str] = []
    others = [key for key in event if key not in cleaned]
    for key in _some(sorted(others, key=lambda each: each not in _MANY_LINES)):
        if key.startswith("_"):  # structlog's own of the chain
            cleaned[key] = event[key]
            continue
        fits = None if budget < 0 else _shown(key, event[key])
        budget -= _weight(key) + _weight(fits)
        if budget < 0:
            left_out.append(key[:_SHORT])
        else:
            cleaned[key] = fits
    if left_out:
        cleaned["left_out"] = left_out
    return cleaned


def _shown(key: str, value: Any) -> Any:
    try:
        return _plain(key, value, 0)
    except Exception:  # noqa: BLE001  # a value that can't be looked into must not silence the line
        return f"<{type(value).__name__} that can't be shown>"


def _weight(value: Any) -> int:
    """Return about how many characters a plain value takes, its punctuation included."""
    if isinstance(value, str):
        return len(value) + 4
    if isinstance(value, dict):
        return sum(_weight(key) + _weight(each) for key, each in value.items()) + 2
    if isinstance(value, list):
        return sum(map(_weight, value)) + 2
    return 24


def in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Return the fields that every line has first, so that lines can be read below each other."""
    first = {key: event[key] for key in _FIRST if key in event}
    return first | {key: value for key, value in event.items() if key not in first}


def _plain(key: str, value: Any, depth: int) -> Any:
    if value is None or (isinstance(value, int) and -_LARGEST <= value <= _LARGEST):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON knows no infinity
    if isinstance(value, str):
        return _text(key, value)
    if depth < DEEPEST and isinstance(value, Mapping):
        return {
            _text("", each)[:_SHORT]: _plain(str(each), inner, depth + 1)
            for each, inner in _some(value.items())
        }
    if depth < DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [_plain(key, inner, depth + 1) for inner in _some(value)]
    return _text(key, value)


def _some(values: Iterable[Any]) -> list[Any]:
    return [value for _, value in zip(range(MOST_VALUES), values, strict=False)]


def _text(key: str, value: Any) -> str:
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception:  # noqa: BLE001  # whose `__str__` fails must not silence the line
        text = f"<{type(value).__name__} that can't be shown>"
    many = key in _MANY_LINES
    text = _shortened(without_secrets(key, _cut(text, many=many)), many=many)
    return "\n".join(map(escaped, text.split("\n"))) if many else escaped(text)


def _cut(text: str, *, many: bool) -> str:
    """Bound what is looked through for secrets; more than is kept, so that none is cut in two."""
    room = 4 * (LONGEST_TRACEBACK if many else LONGEST_TEXT)
    if len(text) <= room:
        return text
    return f"{text[: room // 2]}…{text[-room // 2 :]}"


def _shortened(text: str, *, many: bool) -> str:
    """Cut the middle out: a text begins with what it is about, and an error ends with its cause."""
    limit = LONGEST_TRACEBACK if many else LONGEST_TEXT
    if len(text) <= limit:
        return text
    return f"{text[: limit // 4]}…{text[-(limit - limit // 4) :]}"


def escaped(text: str) -> str:
    """Return the text on one line, with everything escaped that could steer a terminal."""
    if text.isprintable():
        return str(text)  # of an enumeration's member, the plain text
    return _SUSPECT.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else repr(character)[1:-1]
