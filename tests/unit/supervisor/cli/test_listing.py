"""Lists of records: one aligned line each where it fits, else two."""

from __future__ import annotations

import io

import pytest

from atlas_supervisor.cli.listing import listing
from atlas_supervisor.cli.terminal import Screen, safe

NAMES = ("deploy", "result", "reason")
LONG = "smoke: home answers: expected status 200, got 500 from the worker"
ROWS = [("d-42", "failed", LONG), ("d-41", "switched", ""), ("d-40", "aborted", "-")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, columns: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen(stream)
    rows = [[safe(cell) for cell in row] for row in ROWS]
    screen.print(listing(screen, NAMES, rows))
    lines = stream.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()
    return [line.rstrip() for line in lines]


def test_a_wide_terminal_and_a_pipe_have_one_line_for_each_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = [
        "deploy  result    reason",
        f"d-42    failed    {LONG}",
        "d-41    switched",
        "d-40    aborted   -",
    ]
    assert shown(monkeypatch, Terminal(), 100) == expected
    assert shown(monkeypatch, io.StringIO(), 40) == expected


def test_the_last_cell_wraps_in_its_column_where_most_of_it_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert shown(monkeypatch, Terminal(), 60) == [
        "deploy  result    reason",
        "d-42    failed    smoke: home answers: expected status 200,",
        "                  got 500 from the worker",
        "d-41    switched",
        "d-40    aborted   -",
    ]


def test_on_a_narrow_terminal_the_rest_goes_to_further_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = [
        "deploy  result",
        "d-42    failed",
        "    smoke: home answers: expected status 200, got",
        "    500 from the worker",
        "d-41    switched",
        "d-40    aborted",
    ]
    assert shown(monkeypatch, Terminal(), 50) == expected


def test_a_name_that_is_wider_than_the_terminal_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, Terminal(), 6)
    assert "".join(lines).replace(" ", "").count("switched") == 1
