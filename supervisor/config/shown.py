"""Making a value fit to be shown: short, printable and without a secret in it."""

from __future__ import annotations

import re

_SECRET_KEY = re.compile(r"(?i)(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY)$")
_USERINFO = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"(?<=\?)[^#\s]+")
_LONGEST = 60


def masked(key: str, value: str) -> str:
    """Return the value with anything secret in it replaced by `***`.

    No key of ours holds a secret itself, but a mistyped one well may, and a URL often does.
    """
    if value and _SECRET_KEY.search(key):
        return "***"
    if "://" in value:
        return _QUERY.sub("***", _USERINFO.sub("***@", value))
    return value


def shown(key: str, value: str) -> str:
    """Return the value for a message: one printable line of at most 60 characters."""
    text = masked(key, value)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 1]}…"
    return text if text.isprintable() else repr(text)[1:-1]
