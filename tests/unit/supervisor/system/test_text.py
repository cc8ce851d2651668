from __future__ import annotations

import pytest

from atlas_supervisor.system.text import escaped


@pytest.mark.parametrize("character", "\x00\x1b\x7f\x85\x9b\u2028\u2029\u202e\u2066\u200f\ud800")
def test_characters_that_steer_a_terminal_or_part_a_line_are_escaped(character: str) -> None:
    shown = escaped(f"a{character}b")
    assert shown.startswith("a\\")
    assert shown.isprintable()


def test_printable_text_is_unchanged() -> None:
    assert escaped("größer → 漢字 🙂") == "größer → 漢字 🙂"


def test_kept_characters_are_not_escaped() -> None:
    assert escaped("a\tb\nc\x00", keep="\t\n") == "a\tb\nc\\x00"
