"""Keeping secrets out of the log: by their names, by where they stand, and by their very values.

A value can reach a line in many ways: as a field, in a URL, in the text of somebody's exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from supervisor.config.shown import masked

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
