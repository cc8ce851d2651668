"""Makes text of others printable: the one place in the daemon that escapes."""

from __future__ import annotations

import re

# Looked at one by one: control characters, those that reorder or part lines (U+202E, U+2028) and
# halves of characters are unprintable to Python, too.
_SUSPECT = re.compile(r"[^ -~]")


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
