"""What the generators of documents share: links, lines and rows of tables."""

from __future__ import annotations

import re
import textwrap


def linked(text: str) -> str:
    """Return `text` with the documents that it names as links, for a page in docs/."""
    return re.sub(r"\bdocs/([\w./-]+\.md)", r"[\1](\1)", text)


def wrapped(text: str, indent: str = "") -> str:
    """Return a paragraph in lines of at most 100 characters; no link is broken."""
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def row(*cells: str) -> str:
    """Return one row of a table."""
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
