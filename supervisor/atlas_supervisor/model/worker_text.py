"""What a worker said, inside of what the daemon says: marked, so that it can be left out.

A worker's words are as secret as its log: its last lines, excerpts of its answers, what it reports
of itself. In the detail of a step they have fields of their own. In a sentence (a message, a
cause, a reason) they stand in ⟦brackets⟧ that nothing else uses, also in the database and the log.
An answer of the API has no brackets: either it has the words, or `WITHHELD` in their place.
"""

from __future__ import annotations

import json
import re
from typing import Any

WITHHELD = "[withheld]"

_OPEN, _CLOSE = "⟦", "⟧"
_INNER = str.maketrans(_OPEN + _CLOSE, "[]")
_QUOTED = re.compile(f"{_OPEN}[^{_CLOSE}]*(?:{_CLOSE}|\\Z)")
_MARKS = (_OPEN.encode(), _CLOSE.encode())
_LEFT_OUT = frozenset({"output", "excerpt", "problems", "headers"})
"""Fields of a step's detail, its probes and its checks, which can be absent."""
_REPLACED = "got"
"""One that can't be absent."""


def quoted(text: str) -> str:
    """Return a worker's words for a sentence."""
    return f"{_OPEN}{text.translate(_INNER)}{_CLOSE}"


def disclosed(document: bytes) -> bytes:
    """Return a JSON document with a worker's words, for callers that may read logs."""
    for mark in _MARKS:
        document = document.replace(mark, b"")
    return document


def withheld(document: bytes) -> bytes:
    """Return a JSON document without a worker's words, for all others."""
    # Most documents have none, and a long history takes a while to walk.
    if _MARKS[0] not in document and b'"detail":' not in document:
        return document
    return json.dumps(_without(json.loads(document), in_detail=False)).encode()


def _without(value: Any, *, in_detail: bool) -> Any:
    if isinstance(value, str):
        return _QUOTED.sub(WITHHELD, value)
    if isinstance(value, list):
        return [_without(each, in_detail=in_detail) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: WITHHELD
        if in_detail and key == _REPLACED
        else _without(each, in_detail=in_detail or key == "detail")
        for key, each in value.items()
        if not (in_detail and each and key in _LEFT_OUT)
    }
