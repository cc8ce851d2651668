"""Prose in the field's terms: words that a reader must decode are counted, and may only get fewer.

`python -m tests.unit.test_words` lists them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.support import ROOT, log_calls

PLACES = {
    "supervisor": "supervisor/**/*.py",
    "worker": "worker/**/*.py",
    "scripts": "scripts/**/*",
    "docs": "docs/**/*.md",
    "pages": "*.md",
    "tests": "tests/**/*.py",
}
WORDS = re.compile(
    r"\b(?:nobody|whoever|whatever|somebody|anybody|owed?|told|untold|let go|come to|for ever"
    r"|ever later|holds the place|it said|what it (?:has|had|was))\b"
    r"|\bReturn what\b|\bTell whether\b",
    re.IGNORECASE,
)
MOST = {"supervisor": 0, "worker": 0, "scripts": 0, "docs": 0, "pages": 0, "tests": 167}
"""Lines with such a word. Lower these when they fall; none may rise."""

EVENT = re.compile(r"[a-z]+(?:_[a-z0-9]+)*")
EVENT_WORDS = {"gone", "unwise", "told", "owed", "unwritten", "forgotten", "nobody"}
EVENTS_MOST = 0
RIDDLES_MOST = 0


def lines_with_words(place: str) -> Iterator[str]:
    """Yield each line that needs decoding, with where it is."""
    for path in sorted(ROOT.glob(PLACES[place])):
        if path.is_file() and path != Path(__file__) and "__pycache__" not in path.parts:
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if WORDS.search(line):
                    yield f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def log_events() -> Iterator[tuple[str, str]]:
    """Yield the events that the daemon and the worker log, with where that is."""
    for call in log_calls():
        if isinstance(call.event, ast.Constant):
            yield call.place, str(call.event.value)


def riddles() -> list[str]:
    """Return the tests whose names are no sentences about behaviour."""
    named = re.compile(r"def (test_(?:what|who|whoever|nobody|somebody)_\w+)")
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted(ROOT.glob(PLACES["tests"]))
        for name in named.findall(path.read_text())
    ]


def unusual_events() -> list[str]:
    return [
        f"{place}: {event}"
        for place, event in log_events()
        if " " not in event  # the worker logs sentences
        if not EVENT.fullmatch(event) or EVENT_WORDS & {*event.split("_")}
    ]


@pytest.mark.parametrize("place", PLACES)
def test_words_that_need_decoding_only_get_fewer(place: str) -> None:
    found = list(lines_with_words(place))

    assert len(found) <= MOST[place], "\n".join(found)


def test_log_events_are_snake_case_in_standard_terms() -> None:
    assert len(list(log_events())) > 50
    assert len(unusual_events()) <= EVENTS_MOST, unusual_events()


def test_test_names_are_sentences_about_behaviour() -> None:
    assert len(riddles()) <= RIDDLES_MOST, "\n".join(riddles())


if __name__ == "__main__":
    for place in PLACES:
        found = list(lines_with_words(place))
        print(*found, f"{place}: {len(found)} lines", "", sep="\n")  # noqa: T201 - for people
    print(*unusual_events(), *riddles(), sep="\n")  # noqa: T201 - the same
