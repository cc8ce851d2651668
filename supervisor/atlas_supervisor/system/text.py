"""Makes text fit to be shown: printable, and without secrets. The one place that escapes."""

from __future__ import annotations

import re

# Looked at one by one: control characters, those that reorder or part lines (U+202E, U+2028) and
# halves of characters are unprintable to Python, too.
_SUSPECT = re.compile(r"[^ -~]")

_SECRET_KEY = re.compile(r"(?i)(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY)$")
_SECRET_HEADER = re.compile(r"(?i)auth|cookie|token|secret|passw|key|signature|credential")
_USERINFO = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"(?<=\?)[^#\s]+")


def escaped(text: str, *, keep: str = "") -> str:
    """Return the text with everything escaped that could steer a terminal or part a line.

    Characters in `keep`, such as tabs, stay as they are.
    """
    if text.isprintable():
        return str(text)  # of an enumeration's member, the plain text

    def escape(found: re.Match[str]) -> str:
        character = found[0]
        if character.isprintable() or character in keep:
            return character
        return repr(character)[1:-1]

    return _SUSPECT.sub(escape, text)


def masked(key: str, value: str) -> str:
    """Return the value with anything secret in it replaced by `***`.

    No setting is a secret itself, but a mistyped key may be one, and a URL often has a password.
    """
    if value and _SECRET_KEY.search(key):
        return "***"
    if "HEADER" in key.upper():
        return ";".join(map(_masked_header, value.split(";")))
    if "://" in value:
        return _QUERY.sub("***", _USERINFO.sub("***@", value))
    return value


def _masked_header(header: str) -> str:
    name, colon, _value = header.partition(":")
    if not _SECRET_HEADER.search(name):
        return header
    return f"{name}{colon} ***" if colon else "***"
