"""Explanations of exit statuses and signals."""

from __future__ import annotations

import pytest

from atlas_supervisor.cli.hints import hint


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("it was ended by SIGKILL before it was ready", "lack of memory"),
        ("the active instance went down: it was ended by SIGSEGV", "native code"),
        ("it was ended by SIGABRT", "see its last output"),
        ("it exited with status 127 before it was ready", "no such program"),
        ("check.sh: exit 126", "can't be executed"),
        ("it exited with status 137", "137 is a shell's status for SIGKILL"),
        ("it was not ready within 30 s", "READY_TIMEOUT_SECONDS"),
        ("port 1, /: connection refused: nothing listens there", "another port"),
    ],
)
def test_a_known_ending_is_explained(message: str, words: str) -> None:
    assert words in str(hint(message))


@pytest.mark.parametrize(
    "message",
    [
        "it exited with status 1",
        "it exited with status 255",
        "it exited with status 9",
        "sh: exit 0",
        "it was ended by signal 40",
        "status is 127, expected 200",
        "version 1.2 can be launched",
        "",
        None,
    ],
)
def test_an_ambiguous_ending_is_not_explained(message: str | None) -> None:
    assert hint(message) is None
