"""Reads a web page: its title, its links, and its number of visible words."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from atlas_worker.app.errors import bad_field

PAGE_BYTES = 256 * 1024
TAG_CHARACTERS = 4096
MAX_LINKS = 1000
_UNSEEN = ("script", "style", "template", "noscript")


def read_page(page: bytes, charset: str) -> dict[str, Any]:
    """Describe the page; raises `RequestError` for an empty body or an unknown charset."""
    return _read(page, charset, _Reader())


def read_page_at_once(page: bytes, charset: str) -> dict[str, Any]:
    """Do the same, and count the words of all texts together at the end."""
    return _read(page, charset, _GatheringReader())


def _read(page: bytes, charset: str, reader: _Reader) -> dict[str, Any]:
    try:
        text = page.decode(charset, errors="replace")
    except (LookupError, ValueError):
        raise bad_field("charset", f"{charset[:40]!r} is unknown", "a text encoding") from None
    if not text.strip():
        raise bad_field("body", "is empty", "an HTML page")
    _refuse_long_tags(text)
    try:
        reader.feed(text)
        reader.close()
    except AssertionError as error:  # html.parser's way to give up on a broken declaration
        raise bad_field("body", f"can't be parsed: {str(error)[:80]}", "an HTML page") from None
    return {
        "title": " ".join("".join(reader.title).split()) or None,
        "links": reader.links[:MAX_LINKS],
        "link_count": len(reader.links),
        "word_count": reader.words,
    }


def _refuse_long_tags(text: str) -> None:
    """Bound the work: html.parser takes quadratic time over a tag that does not end."""
    for part in text.split(">"):
        start = part.find("<")
        if start >= 0 and len(part) - start > TAG_CHARACTERS:
            raise bad_field(
                "body",
                "contains a tag that does not end",
                f"tags of at most {TAG_CHARACTERS} characters",
            )


class _Reader(HTMLParser):
    """Collects while the page is parsed. Text is counted outside of scripts and the like."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title: list[str] = []
        self.links: list[str] = []
        self.words = 0
        self._in_title = False
        self._unseen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self._unseen.append(tag)
        elif tag == "title":
            self._in_title = not self.title
        elif tag == "a":
            self.links.extend(value for name, value in attrs if name == "href" and value)

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif self._unseen and self._unseen[-1] == tag:
            self._unseen.pop()

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)
        elif not self._unseen:
            self.read(data)

    def read(self, text: str) -> None:
        """Count a visible text."""
        self.words += len(text.split())


class _GatheringReader(_Reader):
    """Keeps the texts until the page ends. No word spans two of them."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: list[str] = []

    def read(self, text: str) -> None:
        self._texts.append(text)

    def close(self) -> None:
        super().close()
        self.words = len(" ".join(self._texts).split())
