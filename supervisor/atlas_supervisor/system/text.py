"""Makes text fit to be shown: printable, and without secrets. The one place that escapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

# Looked at one by one: control characters, those that reorder or part lines (U+202E, U+2028) and
# halves of characters are unprintable to Python, too.
_SUSPECT = re.compile(r"[^ -~]")

_SHORTEST_SECRET = 6
"""A shorter value is not a secret, and would be found in the middle of ordinary words."""
_SHORTEST_LINE = 16
MASK = "***"

_SECRET_KEY = re.compile(r"(?i)(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY)$")
_SECRET_HEADER = re.compile(r"(?i)auth|cookie|token|secret|passw|key|signature|credential")
_USERINFO = re.compile(r"(?<=://)[^/?#\s]*@")
_PASSWORD = re.compile(r"(?<=://)[^/?#\s:@]*:([^/?#\s]+)@")
_QUERY = re.compile(r"(?<=\?)[^#\s]+")


_known: list[str] = []
"""Secrets that were given to the daemon, the longest first: one may contain another."""


def keep_secret(values: Iterable[str]) -> None:
    """Mask these values in logs and in what workers say from now on; short ones are ignored.

    Of a value of several lines, such as a key, each line is masked.
    """
    found = {value for value in values if len(value) >= _SHORTEST_SECRET}
    lines = [line for value in found for line in value.splitlines() if line != value]
    found |= {line for line in lines if len(line) >= _SHORTEST_LINE}
    _known[:] = sorted(found.union(_known), key=len, reverse=True)


def without_known_secrets(text: str) -> str:
    """Return the text with every known secret in it replaced by `***`."""
    for value in _known:
        text = text.replace(value, MASK)
    return text


def is_secret(key: str) -> bool:
    """Return whether a field or variable of this name holds a secret."""
    return masked(key, "x") != "x"


def secrets_in(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the values of variables that are probably secret: by their names, and URLs' passwords.

    Too many are found rather than too few: what is masked by mistake can be read in the file.
    """
    for key, value in environment.items():
        if _SECRET_HEADER.search(key):
            yield value
        yield from _PASSWORD.findall(value)


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
        return MASK
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
